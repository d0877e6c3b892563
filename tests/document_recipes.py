"""The table of fields in docs/recipes.md, from the specifications: `python -m tests.document_recipes` writes it."""

from pathlib import Path

from rose.recipe.spec import SpecField
from rose.recipe.tools import SPECS

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
BEGIN, END = "<!-- fields: begin -->\n", "<!-- fields: end -->"


def table() -> str:
    """Every field, a row for each default; help of a command line says what each is."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for run, spec in SPECS.items():
        for name, field in spec.fields().items():
            if field.extra["kept"]:
                rows.setdefault((name, field.takes, _default(field)), []).append(run)
    lines = ["| field | takes | default | runs |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{name}` | {takes} | {default} | {', '.join(runs)} |"
        for (name, takes, default), runs in sorted(rows.items())
    ]
    return "\n".join(lines) + "\n"


def _default(field: SpecField) -> str:
    if field.is_required:
        return "required"
    default = field.default
    if default in (None, {}, ()):
        return "none"
    return f"`{','.join(map(str, default)) if isinstance(default, tuple) else str(default).lower()}`"


def whole(text: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


if __name__ == "__main__":
    PAGE.write_text(whole(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
