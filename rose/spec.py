"""Specifications: frozen pydantic models whose fields declare type, limits, unit and help once.

It uses pydantic, because errors of msgspec lack the refused value, and a program cannot read its limits.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rose.errors import RoseError
from rose.files import expand, reachable
from rose.wording import sentence, several

Function = TypeVar("Function", bound=Callable[..., Any])
NAMED: set[str] = set()  # values that never name a file
LIMITS = ("ge", "gt", "le", "lt")
SHOWN = 80  # characters of a refused value
PLAIN: dict[str, Any] = {
    "label": "", "unit": "", "changes": True, "kept": True, "path": False, "form": "", "flag": "", "metavar": "",
}  # fmt: skip


def _number(value: Any) -> Any:
    """NumPy's numbers as Python's; True and False are refused."""
    if isinstance(value, bool):
        raise ValueError("a truth value is not a number")
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]


def whole_number(value: Any) -> Any:
    """A whole number that was written as text, as on a command line; other values stay as they are."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def names_of(value: Any) -> Any:
    """Reads a list of names, a single name or A,B; drops repeats. None is not a list."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("names nothing")
    return tuple(name for at, name in enumerate(value) if name not in value[:at])


def one_or_several(value: Any) -> Any:
    """A list of names; a single name becomes a list of one."""
    if isinstance(value, list | tuple) and not value:
        raise ValueError("names nothing")
    return tuple(several(value)) if isinstance(value, str | list | tuple) else value


def setting(description: str, **options: Any) -> Any:
    """Metadata of a field, for `Annotated`: one line of help, limits `ge`, `gt`, `le` and `lt`, and of these

    label, flag, metavar: name in a form and of the option, by default the field's; placeholder in the help.
    unit: of a number.
    changes: whether the field can change results; True by default.
    kept: whether a recipe file holds it, as by default; output folders are not kept.
    path: whether it may name a file or folder. A recipe file holds absolute paths.
    form: spelling on a command line: "words" for several words, "commas" for A,B, "pairs" for repeated NAME=VALUE,
        "place" for a positional argument.
    """
    limits = {name: options.pop(name) for name in LIMITS if name in options}
    assert options.keys() <= PLAIN.keys(), options
    return Field(description=description, json_schema_extra=options, **limits)


class Spec(BaseModel):
    """A specification; for a command, its docstring is the line of help.

    Raises:
        RoseError: an unknown field, a wrong type or a value out of range, in one sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    run: ClassVar[str] = ""  # name of the command

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as problem:
            raise RoseError(_sentence(type(self), problem.errors()[0])) from None

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Calls the class, for values whose types only the specification checks."""
        return cls(**values)

    @classmethod
    def among(cls, values: Mapping[str, Any]) -> Self:
        """Takes the fields from these values, such as the arguments of a function that has fields as keywords; None
        stands for a default."""
        return cls(**{name: values[name] for name in cls.model_fields if values.get(name) is not None})

    def changed(self, **values: Any) -> Self:
        """A copy with other values, checked again."""
        return type(self)(**self.pick(self.model_fields_set) | values)

    def pick(self, names: Iterable[str]) -> dict[str, Any]:
        """The existing fields among these names."""
        return {name: getattr(self, name) for name in names if name in self.fields()}

    def to_dict(self, only: Literal["kept", "changes"] = "kept") -> dict[str, Any]:
        """Fields as JSON values, in declared order: "kept" in a recipe file, or only if it "changes" results."""
        fields = {name: field for name, field in self.fields().items() if field.extra[only]}
        values = self.model_dump(mode="json", include=set(fields))
        return {name: _absolute(value) if fields[name].extra["path"] else value for name, value in values.items()}

    @classmethod
    def explain(cls, function: Function) -> Function:
        """Decorator: the docstring of a function with these fields as keywords gets a line for each that it lacks."""
        text = inspect.getdoc(function) or ""
        missing = [field for field in cls.fields().values() if f"{field.name}: " not in text]
        lines = (f"    {field.name}: {field.description}." for field in missing)
        function.__doc__ = "\n".join([text, "", "Keyword arguments besides:", *lines])
        return function

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Adds an option for every field. Values stay texts, because the specification reads them."""
        for field in cls.fields().values():
            field.add_option(parser)

    @classmethod
    @cache
    def fields(cls) -> dict[str, SpecField]:
        """Every field, by name."""
        return {name: SpecField.of(name, info) for name, info in cls.model_fields.items()}

    def given(self, *names: str) -> str:
        """The options among these fields that were given, and not left to their defaults: "--samples and --seed"."""
        among = self.model_fields_set.intersection(names)
        return " and ".join(field.option for name, field in self.fields().items() if name in among)


def _absolute(value: Any) -> Any:
    """Makes the name of an existing file or folder absolute, so that it works from every folder."""
    if isinstance(value, list):
        return [_absolute(name) for name in value]
    if value is None or value in NAMED or not reachable(value).exists():
        return value
    whole = expand(value).absolute()
    plain = Path(os.path.normpath(whole))
    return str(plain if plain.exists() and plain.samefile(whole) else whole)  # .. behind a link may lead elsewhere


@dataclass(frozen=True)
class SpecField:
    """A declared field."""

    name: str
    kind: Any  # its type, without None
    description: str
    default: Any  # its value unless given; None for a required field
    is_required: bool  # whether a value must be given
    choices: tuple[Any, ...]  # allowed values, of each entry for a list; empty if any value will do
    limits: Mapping[str, float]  # bounds of a number, by name: `ge`, `gt`, `le`, `lt`
    extra: Mapping[str, Any]  # see `setting`

    @classmethod
    def of(cls, name: str, info: FieldInfo) -> SpecField:
        kind, described = info.annotation, list[FieldInfo]()
        if get_origin(kind) in (Union, UnionType):  # for `X | None`, X has the metadata
            kind = next(option for option in get_args(kind) if option is not NoneType)
        if get_origin(kind) is Annotated:
            kind, *metadata = get_args(kind)
            described = [entry for entry in metadata if isinstance(entry, FieldInfo)]
        extra, limits, description = {**PLAIN}, dict[str, float](), ""
        for entry in [*described, info]:  # the outermost metadata comes last and wins
            description = entry.description or description
            extra |= entry.json_schema_extra if isinstance(entry.json_schema_extra, dict) else {}
            for limit in entry.metadata:
                limits |= {n: getattr(limit, n) for n in LIMITS if hasattr(limit, n)}
        each = get_args(kind)[0] if get_origin(kind) is tuple else kind
        choices = get_args(each) if get_origin(each) is Literal else ()
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        return cls(name, kind, description, default, info.is_required(), choices, limits, extra)

    @property
    def option(self) -> str:
        """The option of the command line."""
        return "--" + (self.extra["flag"] or self.name).replace("_", "-")

    @property
    def is_text(self) -> bool:
        """Whether it holds a text, a path or a list of them, which may look like a number."""
        each = get_args(self.kind)[0] if get_origin(self.kind) is tuple else self.kind
        return getattr(each, "__origin__", each) in (str, Path)  # of Annotated

    def add_option(self, parser: argparse.ArgumentParser) -> None:
        """Adds this field to a command line. The help names the default, if there is one."""
        text, default, form = self.description, self.default, self.extra["form"]
        if not (self.is_required or default in (None, False, {}, ()) or "(default:" in text):
            text += f" (default: {','.join(map(str, default)) if isinstance(default, tuple) else default})"
        options: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
        if self.extra["metavar"]:
            options["metavar"] = self.extra["metavar"]
        if form == "place":
            if get_origin(self.kind) is tuple or not self.is_required:
                options["nargs"] = "?" if get_origin(self.kind) is not tuple else "+" if self.is_required else "*"
            parser.add_argument(self.name, **options)
            return
        if self.kind is bool:
            options["action"] = "store_true"
        elif form == "words":
            options["nargs"] = "*" if self.name == "tasks" else "+"
        elif form == "pairs":
            options["action"] = "append"
        if self.choices and form != "commas":
            options["metavar"] = f"{{{','.join(map(str, self.choices))}}}"  # the specification checks the choice
        parser.add_argument(self.option, dest=self.name, required=self.is_required, **options)

    @property
    def label(self) -> str:
        """The name in a form."""
        return self.extra["label"] or sentence(self.name.replace("_", " "))

    @property
    def takes(self) -> str:
        """The accepted values: "a whole number of at least 1"."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        if self.kind is bool:
            return "true or false"
        if self.kind in (int, float):
            return ("a whole number" if self.kind is int else "a number") + _says_limits(self.limits)
        if get_origin(self.kind) is tuple:
            return "whole numbers of at least 0" if self.name == "seeds" else "a list of names"
        return "names with values" if get_origin(self.kind) is dict else "a path" if self.kind is Path else "a text"


def _says_limits(limits: Mapping[str, float]) -> str:
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if "ge" in limits and "le" in limits:
        return f" from {low} to {high}"
    parts = []
    if low is not None:
        parts.append(f" of at least {low:g}" if "ge" in limits else f" above {low:g}")
    if high is not None:
        parts.append(f" of at most {high:g}" if "le" in limits else f" below {high:g}")
    return " and".join(parts)


def _sentence(spec: type[Spec], error: ErrorDetails) -> str:
    """One sentence for the first error of pydantic."""
    if error["type"] == "value_error" and isinstance(problem := error["ctx"]["error"], RoseError):
        return str(problem)
    name, fields = str(error["loc"][0]) if error["loc"] else "", spec.fields()
    subject = spec.run.capitalize() or "This"
    if error["type"] == "extra_forbidden" or name not in fields:
        near = difflib.get_close_matches(name, fields, 1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}."
        return f"{subject} has no field {name[:SHOWN]!r}; {advice}"
    if error["type"] == "missing":
        return f"{subject} needs {name}: {fields[name].description}."
    value = repr(error["input"])
    value = value if len(value) <= SHOWN else f"{value[:SHOWN]}…"
    return f"{name} must be {fields[name].takes}, not {value}."
