"""Recipes as files: one step, or a list of steps, in YAML; complete, canonical, and read without running anything.

    recipe: 1
    run: prune
    model: smollm2-135m
    sparsity: '0.7'
    …

Several steps are a list: each takes what the one before it has written.

    recipe: 1
    steps:
    - run: slim
      ratio: 0.2
    - run: prune
      sparsity: '0.5'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rose.errors import RoseError
from rose.files import reachable, write_atomically
from rose.recipe.steps import Tune
from rose.recipe.tools import SPECS
from rose.spec import Spec

VERSION = 1  # raise it where a field changes its meaning
NAME = "recipe.yaml"
LARGEST = 100_000  # bytes of a recipe
HEAD = "# Again: rose run recipe.yaml output=FOLDER\n# Changed: the same with NAME=VALUE behind it\n"
CHAINED = {"model", "pruned"}  # fields of a later step that the step before it fills
PREVIOUS, BETWEEN = "previous", "between"  # stand for the output of the step before, and its folder


class _Loader(yaml.SafeLoader):
    """Plain values alone: no anchors, which can unfold to any size, and no name twice in one mapping."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "an alias is not allowed", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


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
        text = place.read_text(encoding="utf-8", errors="replace")
        return cls.parse(text, *changes, name=str(place), is_placed=is_placed)

    @classmethod
    def parse(cls, text: str, *changes: str, name: str = "This text", is_placed: bool = False) -> Recipe:
        """As `read`, from the text of a file."""
        try:
            data = yaml.load(text, _Loader)
        except (yaml.YAMLError, ValueError, RecursionError) as problem:
            where = getattr(problem, "problem_mark", None)
            line = f", line {where.line + 1}" if where else ""
            why = getattr(problem, "problem", None) or str(problem).partition("\n")[0][:100]
            raise RoseError(f"{name} is not a recipe{line}: {why}; write NAME: VALUE lines.") from None
        if not isinstance(data, dict) or not all(isinstance(field, str) for field in data):
            lines = f"it must have lines NAME: VALUE, the first of them recipe: {VERSION}"
            raise RoseError(f"{name} is not a recipe; {lines}.")
        version = data.pop("recipe", None)
        if type(version) is not int or version < 1:
            raise RoseError(f"{name} does not say which version of recipes it is; begin it with recipe: {VERSION}.")
        if version > VERSION:
            ours = f"this program reads version {VERSION}"
            raise RoseError(f"{name} is a recipe of version {version}, and {ours}; update it.")
        steps = data.pop("steps", None)
        if steps is None:
            steps = [data]
        elif data or not (isinstance(steps, list) and steps and all(isinstance(step, dict) for step in steps)):
            raise RoseError(
                f"The steps of {name} must be a list of steps, each with run: and fields, and nothing beside it."
            )
        if any("trust_remote_code" in step for step in steps):
            raise RoseError("A recipe cannot ask for code of a repository to run; add trust_remote_code=true yourself.")
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
        steps[places[0]][field] = _value(kinds[places[0]], field, value)
    checked: list[Spec] = []
    for kind, step in zip(kinds, steps, strict=True):
        is_last = len(checked) == len(steps) - 1
        if checked:
            step = {name: PREVIOUS for name in CHAINED if name in kind.fields()} | step
            if kind is Tune:
                step = {"dense": getattr(checked[0], "model", None)} | step
        if "output" in kind.fields() and "output" not in step:
            is_needed = kind.fields()["output"].is_required
            if is_last and is_needed and is_placed:
                raise RoseError("A recipe does not say where the result goes; add output=FOLDER.")
            step |= {"output": BETWEEN} if is_needed else {}
        checked.append(kind(**step))
    return checked


def _value(kind: type[Spec], field: str, text: str) -> Any:
    """A value as YAML writes it, so that lists, numbers and null can be given; a text of a form as that form has it."""
    if kind.fields()[field].extra["form"] == "commas":
        return text
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text
