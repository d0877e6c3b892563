"""Recipes as files: every setting of a run in YAML, read without running anything.

    recipe: 1
    run: prune
    model: smollm2-135m
    sparsity: '0.7'
    …

Values are read as on a command line: each is a text or a list of texts, which the specification checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from rose.errors import RoseError
from rose.files import reachable, write_atomically
from rose.recipe.tools import SPECS
from rose.spec import SHOWN, Spec

VERSION = 1  # raise it where a field changes its meaning
NAME = "recipe.yaml"
LARGEST, DEEPEST = 100_000, 8  # bytes of a recipe, and lists or mappings inside each other
HEAD = "# Again: rose run recipe.yaml output=FOLDER\n# Changed: the same with NAME=VALUE behind it\n"
NULL = ("", "~", "null")
PLACE = "FOLDER"  # stands for an output until somebody says where the result goes
GONE = {  # fields of version 0.1.0
    "steps": "has several steps, which are no longer run at once; make a recipe of each, and run one after the other",
    "rotate": "rotates heads, which is no longer done; take the line rotate: heads out",
}


@dataclass(frozen=True)
class Recipe:
    """A specification of a run, written down."""

    spec: Spec

    @classmethod
    def read(cls, path: str | Path, *changes: str, is_placed: bool = False) -> Recipe:
        """Reads a recipe.yaml or a folder with it. Changes are "NAME=VALUE". `is_placed` demands an output.

        Raises:
            RoseError: the file is not a recipe, has a later version, an unknown field, a wrong type or a bad value.
        """
        place = reachable(path)
        place = place / NAME if place.is_dir() else place
        if not place.is_file():
            raise RoseError(f"There is no recipe {place}; name a recipe.yaml, or a folder that has one.")
        if place.stat().st_size > LARGEST:
            raise RoseError(f"{place} is larger than {LARGEST} bytes, so it is not a recipe.")
        return cls.parse(place.read_bytes(), *changes, name=str(place), is_placed=is_placed)

    @classmethod
    def parse(cls, text: str | bytes, *changes: str, name: str = "This text", is_placed: bool = False) -> Recipe:
        """As `read`, from the text of a file."""
        values = _read(text, name)
        _check_version(values.pop("recipe", None), name)
        for field, problem in GONE.items():
            if values.get(field, "null") not in NULL and not (field == "steps" and values.get("run")):
                raise RoseError(f"{name} {problem}.")
        values.pop("rotate", None)
        if "trust_remote_code" in values:
            raise RoseError("A recipe cannot ask for code of a repository to run; add trust_remote_code=true yourself.")
        run = values.pop("run", None)
        if not isinstance(run, str) or run not in SPECS:
            raise RoseError(f"A recipe needs a run: {', '.join(SPECS)}, not {run!r:.80}.")
        fields = SPECS[run].fields()
        for change in changes:
            field, equals, value = change.partition("=")
            if not (field and equals):
                raise RoseError(f"A change of a recipe is NAME=VALUE, not {change!r}.")
            if field not in fields:
                raise RoseError(f"The recipe of {run} has no field {field!r}.")
            values[field] = _value(value, is_text=fields[field].kind in (str, Path))
        if "output" in fields and fields["output"].is_required and "output" not in values:
            if is_placed:
                raise RoseError("A recipe does not say where the result goes; add output=FOLDER.")
            values["output"] = PLACE
        absent = [name for name, field in fields.items() if field.default is None and not field.is_required]
        return cls(SPECS[run](**{n: value for n, value in values.items() if not (n in absent and value in NULL)}))

    def write(self, folder: str | Path) -> None:
        """Writes recipe.yaml into a folder, whole or not at all."""
        write_atomically(Path(folder) / NAME, str(self).encode())

    def __str__(self) -> str:
        data = {"recipe": VERSION, "run": self.spec.run, **self.spec.to_dict()}
        return HEAD + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)

    def run(self, **places: str | Path) -> Any:
        """Does all that the recipe says, as the command line does; returns the written report, None without one.

        Args:
            places: `output` and `checkpoint`, which a recipe does not say.

        Raises:
            RoseError: it cannot be done; one sentence says why.
        """
        from rose.commands import Output, command  # with torch and transformers
        from rose.report import RunReport

        changes = [f"{name}={place}" for name, place in places.items()]
        spec = Recipe.parse(str(self), *changes, is_placed=True).spec
        command(spec.run)(spec, Output(stderr=True, highlight=False))
        output = getattr(spec, "output", None)
        return RunReport.load(output) if output and (output / "report.json").exists() else None


def _check_version(version: Any, name: str) -> None:
    if not isinstance(version, str) or not version.isdecimal() or int(version) < 1:
        raise RoseError(f"{name} does not say which version of recipes it is; begin it with recipe: {VERSION}.")
    if int(version) > VERSION:
        raise RoseError(
            f"{name} is a recipe of version {version}, and this program reads version {VERSION}; update it."
        )


def _read(text: str | bytes, name: str) -> dict[str, Any]:
    """The texts of a YAML mapping."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        _check_events(text)
        values = _plain(yaml.compose(text, yaml.BaseLoader))
    except UnicodeDecodeError:
        raise RoseError(f"{name} is not a recipe: it is not UTF-8 text.") from None
    except yaml.YAMLError as problem:
        where = getattr(problem, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        why = getattr(problem, "problem", None) or str(problem).partition("\n")[0]
        raise RoseError(f"{name} is not a recipe{line}: {why}; write NAME: VALUE lines.") from None
    if not isinstance(values, dict):
        lines = f"it must have lines NAME: VALUE, the first of them recipe: {VERSION}"
        raise RoseError(f"{name} is not a recipe; {lines}.")
    return values


def _check_events(text: str) -> None:
    """Refuses anchors, aliases and tags, which a small file can make large, and deep lists."""
    depth = 0
    for event in yaml.parse(text, yaml.BaseLoader):
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            _refuse("anchors, aliases and tags are not allowed", event)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            _refuse("values are nested too deeply", event)


def _plain(node: Any) -> Any:
    """A text, or a list or mapping of them; refuses a name that stands twice in one mapping."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(each) for each in node.value]
    if not isinstance(node, yaml.MappingNode):
        return getattr(node, "value", "")
    values: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value in values:
            _refuse(f"{key.value!r:.{SHOWN}} is not a name, or stands twice", key)
        values[key.value] = _plain(value)
    return values


def _refuse(problem: str, place: Any) -> NoReturn:
    raise yaml.MarkedYAMLError(None, None, problem, place.start_mark)


def _value(text: str, is_text: bool) -> Any:
    """A text as typed; other values as YAML writes them, so that lists can be given."""
    if is_text:
        return text
    try:
        return _plain(yaml.compose(text, yaml.BaseLoader))
    except yaml.YAMLError:
        return text
