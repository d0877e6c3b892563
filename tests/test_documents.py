"""The API pages build without a warning, and commands, links and numbers in documents are right."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rose
from rose import cli
from tests.benchmarks import commands, document_numbers

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `make docs` builds, by its own command line."""
    (recipe,) = re.findall(r"^docs:.*\n\t\$\(BIN\)/python (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    folder = tmp_path_factory.mktemp("docs")
    arguments = [word.strip("'") for word in recipe.replace("build/docs", str(folder)).split()]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "arn" not in done.stderr, done.stderr  # Warn and warning
    assert [path.name for path in folder.glob("rose*")] == ["rose.html"]
    return (folder / "rose.html").read_text()


@pytest.mark.parametrize("name", rose.__all__)
def test_the_public_interface_is_typed_and_on_the_page(page: str, name: str) -> None:
    public = getattr(rose, name)
    assert f'id="{name}"' in page
    assert inspect.getdoc(public) or not callable(public), f"{name} has no docstring"
    if inspect.isfunction(public):
        signature = inspect.signature(public)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())


@pytest.mark.parametrize("path", document_numbers.documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_numbers_in_documents_are_those_of_the_files(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == document_numbers.render(text), "run python -m tests.benchmarks.document_numbers"


def test_every_generated_region_is_in_a_document() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in document_numbers.documents())
    assert set(re.findall(r"<!-- (\w+) -->", text)) == set(document_numbers.REGIONS)


def test_the_table_of_the_readme_has_what_its_commands_give() -> None:
    """Whoever changes a default measures the rows again, or the table describes another command."""
    rows, text = document_numbers.read("commands.csv"), (ROOT / "README.md").read_text(encoding="utf-8")
    for row in rows.to_dict("records"):
        assert f"\nrose {row['command']} --output half/" in text
        assert f"`rose {row['command']}`" in text
        made = {name: row[name] for name in commands.DEFAULTS}
        assert made == commands.defaults(row["command"]), "run python -m tests.benchmarks.commands"


def test_relative_range_is_defined_alike_everywhere() -> None:
    """Per column, because a last block may be narrower; lesson 5 has its own test."""
    folders = (ROOT / folder for folder in ("rose", "app", "docs", "notebooks"))
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in {".py", ".md", ".ipynb"}]
    found = {path.name: re.findall(r"\(max − min\) / max(.{0,25})", path.read_text(encoding="utf-8")) for path in files}
    defining = {name: texts for name, texts in found.items() if texts}
    assert {"loss.py", "order.py", "maps.py", "glossary.md", "tutorial.md", "columnar_layers.ipynb"} <= set(defining)
    assert {text for texts in defining.values() for text in texts} == {" of block loss per column"}


def test_counts_of_columnar_layers_say_for_what() -> None:
    paths = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    pattern = re.compile(r"\d+ of \d+ (?:layers|output projections) are columnar(.{0,120})", re.DOTALL)
    counts = [(path.name, rest) for path in paths for rest in pattern.findall(path.read_text(encoding="utf-8"))]
    assert {"README.md", "tutorial.md", "columnar_layers.ipynb"} <= {name for name, _ in counts}
    assert [count for count in counts if "blocks of" not in count[1]] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_in_documents_lead_somewhere(path: Path) -> None:
    assert len(headings(path)) == len(set(headings(path))), "a link to one of two equal headings is ambiguous"
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", path.read_text()):
        if "://" in target:
            continue
        leads_to = path.parent / target if target else path
        assert leads_to.exists(), target
        # As a forge names headings.
        names = {
            re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-") for heading in headings(leads_to)
        }
        assert not anchor or anchor in names, f"{target}#{anchor}"


def headings(path: Path) -> list[str]:
    if path.suffix != ".md":
        return []
    return re.findall(r"^#+ .*$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)


def test_every_picture_exists_and_is_shown() -> None:
    notebooks = {path: json.loads(path.read_text())["cells"] for path in ROOT.glob("notebooks/*.ipynb")}
    texts = {path: str([cell["source"] for cell in cells]) for path, cells in notebooks.items()}
    texts |= {path: path.read_text() for path in DOCUMENTS}
    names = [(path, name) for path, text in texts.items() for name in re.findall(r"[\w./-]+\.png", text)]
    shown = {(path.parent / name).resolve() for path, name in names}
    pictures = {path.resolve() for path in (ROOT / "docs/screenshots").iterdir()}
    assert {path for path in shown if "screenshots" in path.parts} == pictures


def test_commands_in_documents_are_understood() -> None:
    """Every `python -m rose ...` and `rose ...` in a fenced block, with continued lines joined."""
    blocks = [block for path in DOCUMENTS for block in re.findall(r"```\w*\n(.*?)```", path.read_text(), re.DOTALL)]
    text = "\n".join(block.replace("\\\n", " ") for block in blocks)
    commands = re.findall(r"^(?:\S*python -m )?rose ((?:[a-z]).*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        words = [word.strip("'\"") for word in command.partition("#")[0].split()]
        cli._read(words)  # leaves with an exit status where it does not know a word


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        for line in re.findall(r"`(?:[A-Z]+=\S+ )*make ([^`]*)`", path.read_text()):
            assert {word for word in line.split() if "=" not in word} <= targets, line


def test_hooks_before_a_commit_are_the_checks_of_make_check() -> None:
    configuration = ROOT / ".pre-commit-config.yaml"
    assert subprocess.run([sys.executable, "-m", "pre_commit", "validate-config", configuration]).returncode == 0
    entries = re.findall(r"entry: \.venv/bin/(.*)", configuration.read_text())
    (recipe,) = re.findall(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    checks = re.findall(r"\$\(BIN\)/(.*)", recipe)
    assert [entry.removesuffix(" --force-exclude") for entry in entries] == [
        check.removesuffix(" .") for check in checks
    ]
