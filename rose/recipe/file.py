"""Recipes as files: one step, or a list of steps, in YAML; complete, canonical, and read without running anything.

    recipe: 1
    run: prune
    model: smollm2-135m
    sparsity: '0.7'
    …

A list of `steps` has several; each takes what the one before it has written. See docs/recipes.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from rose.errors import RoseError
from rose.files import reachable, write_atomically
from rose.recipe.parts import BETWEEN, PREVIOUS, SavingPart
from rose.recipe.steps import Tune
from rose.recipe.tools import SPECS, PicturesPart
from rose.spec import SHOWN, Spec, SpecField

VERSION = 1  # raise it where a field changes its meaning
NAME = "recipe.yaml"
LARGEST, DEEPEST = 100_000, 16  # bytes of a recipe, and PyYAML's states, one a level
HEAD = "# Again: rose run recipe.yaml output=FOLDER\n# Changed: the same with NAME=VALUE behind it\n"
CHAINED = {"model", "pruned"}  # fields of a later step that the step before it fills
TEXTS = {name for spec in SPECS.values() for name, field in spec.fields().items() if field.is_text}
NULL = "tag:yaml.org,2002:null"


class _Loader(yaml.SafeLoader):
    """Plain values alone, as YAML 1.2 reads them: no anchors or tags, shallow, no name twice in one mapping.

    YAML 1.1, which PyYAML reads, takes 2:4 for a number of minutes, 010 for 8 and 2026-12-01 for a date.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            _refuse("anchors, aliases and tags are not allowed", event)
        if len(self.states) > DEEPEST:
            _refuse("values are nested too deeply", event)
        node = super().compose_node(parent, index)
        if getattr(index, "value", None) in TEXTS:  # a folder may be named 2026 or true
            for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
                each.tag = each.tag if isinstance(each.value, list) or each.tag == NULL else self.DEFAULT_SCALAR_TAG
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = set[str]()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str) or name in names:
                _refuse(f"{name!r:.{SHOWN}} {'stands twice' if isinstance(name, str) else 'is not a name'}", key)
            names.add(name)
        return super().construct_mapping(node, deep)


def _refuse(problem: str, place: Any) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, place.start_mark)


for _kind, _values, _first in (  # longer numbers stay texts, which no field takes
    ("null", "~|null|", [*"~nN", ""]),
    ("bool", "true|false", [*"tTfF"]),
    ("int", "[-+]?(0|[1-9][0-9]{0,19})", [*"-+0123456789"]),
    ("float", r"[-+]?(\.\d+|\d+\.\d*|\d+(?=e))(e[-+]?\d+)?|[-+]?\.inf|\.nan", [*"-+.0123456789"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?ai:{_values})$"), _first)


@dataclass(frozen=True)
class Recipe:
    """One specification to run, or several in order; each takes the output of the step before it."""

    steps: tuple[Spec, ...]

    @classmethod
    def read(cls, path: str | Path, *changes: str, is_placed: bool = False) -> Recipe:
        """Reads a recipe.yaml or a folder with it. Changes are "NAME=VALUE" or, in a list of steps, "2.NAME=VALUE".
        `is_placed` demands an output.

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
        try:
            data = yaml.load(text.decode() if isinstance(text, bytes) else text, _Loader)
        except UnicodeDecodeError:
            raise RoseError(f"{name} is not a recipe: it is not UTF-8 text.") from None
        except yaml.YAMLError as problem:
            where = getattr(problem, "problem_mark", None)
            line = f", line {where.line + 1}" if where else ""
            why = getattr(problem, "problem", None) or str(problem).partition("\n")[0]
            raise RoseError(f"{name} is not a recipe{line}: {why}; write NAME: VALUE lines.") from None
        if not isinstance(data, dict):
            lines = f"it must have lines NAME: VALUE, the first of them recipe: {VERSION}"
            raise RoseError(f"{name} is not a recipe; {lines}.")
        version = data.pop("recipe", None)
        if type(version) is not int or version < 1:
            raise RoseError(f"{name} does not say which version of recipes it is; begin it with recipe: {VERSION}.")
        if version > VERSION:
            ours = f"this program reads version {VERSION}"
            raise RoseError(f"{name} is a recipe of version {version}, and {ours}; update it.")
        is_number = "run" in data and not isinstance(data.get("steps"), list)  # of denoising steps
        steps = None if is_number else data.pop("steps", None)
        if steps is None:
            steps = [data]
        elif data or not (isinstance(steps, list) and steps and all(isinstance(step, dict) for step in steps)):
            raise RoseError(
                f"The steps of {name} must be a list of steps, each with run: and fields, and nothing beside it."
            )
        if any("trust_remote_code" in step for step in steps):
            raise RoseError("A recipe cannot ask for code of a repository to run; add trust_remote_code=true yourself.")
        if any(step.pop("rotate", None) for step in steps):  # None in most recipes of version 0.1.0
            raise RoseError(f"{name} rotates heads, which is no longer done; take the line rotate: heads out.")
        return cls(tuple(_change(steps, changes, is_placed=is_placed)))

    def write(self, folder: str | Path) -> None:
        """Writes recipe.yaml into a folder, whole or not at all."""
        write_atomically(Path(folder) / NAME, str(self).encode())

    def __str__(self) -> str:
        steps = [{"run": step.run, **step.to_dict()} for step in self.steps]
        data = {"recipe": VERSION, **(steps[0] if len(steps) == 1 else {"steps": steps})}
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
        recipe = Recipe.parse(str(self), *changes, is_placed=True)
        command("run")(recipe, Output(stderr=True, highlight=False))
        output = getattr(recipe.steps[-1], "output", None)
        return RunReport.load(output) if output and (output / "report.json").exists() else None


def _change(steps: Sequence[dict[str, Any]], changes: Sequence[str], *, is_placed: bool) -> list[Spec]:
    """The steps with these changes, each checked."""
    kinds = []
    for step in steps:
        run = step.pop("run", None)
        if not isinstance(run, str) or run not in SPECS:
            raise RoseError(f"A recipe needs a run: {', '.join(SPECS)}, not {run!r:.80}.")
        kinds.append(SPECS[run])
    if len(kinds) > 1:
        _check_chain(kinds)
    for change in changes:
        name, equals, value = change.partition("=")
        if not (name and equals):
            raise RoseError(f"A change of a recipe is NAME=VALUE, not {change!r}.")
        number, _, field = name.rpartition(".")
        places = [at for at, kind in enumerate(kinds) if field in kind.fields() and number in ("", str(at + 1))]
        if field in ("output", "checkpoint") and not number:
            places = places[-1:]
        if len(places) != 1:
            many = f"in {len(places)} steps; write 1.{field}=VALUE for the first" if places else "in no step"
            raise RoseError(f"The field {name!r} is {many}.")
        steps[places[0]][field] = _value(kinds[places[0]].fields()[field], value)
    checked: list[Spec] = []
    for kind, step in zip(kinds, steps, strict=True):
        is_last = len(checked) == len(steps) - 1
        if checked:
            step = {name: PREVIOUS for name in CHAINED if name in kind.fields()} | step
            if kind is Tune:
                step = {"dense": getattr(checked[0], "dense" if isinstance(checked[0], Tune) else "model")} | step
        if "output" in kind.fields() and "output" not in step:
            is_needed = kind.fields()["output"].is_required or len(steps) > 1
            if is_last and is_needed and is_placed:
                raise RoseError("A recipe does not say where the result goes; add output=FOLDER.")
            step |= {"output": BETWEEN} if is_needed else {}
        checked.append(kind(**step))
    return checked


def _check_chain(kinds: Sequence[type[Spec]]) -> None:
    """Raises RoseError where a step does not write what the next one reads, or the last one writes no folder."""
    *before, last = kinds
    misplaced = [kind for kind in before if not issubclass(kind, SavingPart | PicturesPart)]
    if misplaced or "output" not in last.fields() or last.fields()["output"].extra["metavar"] != "FOLDER":
        place = "each step writes a model for the next one, and the last one a folder"
        raise RoseError(f"The step {(*misplaced, last)[0].run} does not fit there: {place}.")
    if len({issubclass(kind, PicturesPart) for kind in kinds}) > 1:
        raise RoseError("The steps of a recipe change one kind of model; run the diffusion steps alone.")


def _value(field: SpecField, text: str) -> Any:
    """A text or a path as typed; other values as YAML writes them, so that lists, numbers and null can be given."""
    try:
        value = yaml.load(f"{field.name}:\n {text}", _Loader)[field.name]
    except yaml.YAMLError:
        value = text
    is_typed = field.kind in (str, Path) and (value is not None or field.is_required or field.default is not None)
    return text if is_typed else value
