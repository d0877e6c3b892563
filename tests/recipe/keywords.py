"""Keywords of functions for type checkers, from the recipes: `python -m tests.recipe.keywords` writes them."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import rose.recipe
from rose.layer.pattern import SettingsOptions
from rose.recipe.parts import CutPart, PruneSettings, SlimSettings, TuneSettings
from rose.spec import Spec

FILE = Path(rose.recipe.__file__).with_name("keywords.py")
HEAD = '''"""Keywords of functions, written from the recipes by `python -m tests.recipe.keywords`."""

from collections.abc import Sequence
from typing import TypedDict

from rose.layer.pattern import SettingsOptions
'''
CLASSES: tuple[tuple[str, str, type[Spec], set[str]], ...] = (
    ("RunOptions", "SettingsOptions", PruneSettings, {*SettingsOptions.__annotations__, "layers"}),
    ("TuneOptions", "TypedDict", TuneSettings, set()),
    ("CutOptions", "TypedDict", CutPart, set()),
    ("SlimOptions", "CutOptions", SlimSettings, set(CutPart.fields())),
)


def hint(kind: Any) -> str:
    """What a caller may give: any text for a choice of texts, any sequence for a tuple."""
    if get_origin(kind) is Literal:
        return type(get_args(kind)[0]).__name__
    return "Sequence[str]" if get_origin(kind) is tuple else kind.__name__


def text() -> str:
    """The content of the file."""
    parts = [HEAD]
    for name, base, spec, elsewhere in CLASSES:
        parts.append(f"\nclass {name}({base}, total=False):")
        parts += [
            f"    {field.name}: {hint(field.kind)}{' | None' if field.default is None else ''}"
            for field in spec.fields().values()
            if field.name not in elsewhere
        ]
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
