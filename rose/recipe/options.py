"""A specification as options of the command line, and back."""

from __future__ import annotations

import argparse
from typing import Any, get_origin

from rose.recipe.spec import Spec, SpecField


def add_options(parser: argparse.ArgumentParser, spec: type[Spec]) -> None:
    """Adds an option for every field. Values stay texts: the specification reads them, in one place for all."""
    for field in spec.fields().values():
        _add(parser, field)


def _add(parser: argparse.ArgumentParser, field: SpecField) -> None:
    options: dict[str, Any] = {"help": _help(field), "default": argparse.SUPPRESS}
    is_list = get_origin(field.kind) is tuple
    if field.extra["metavar"]:
        options["metavar"] = field.extra["metavar"]
    if field.extra["form"] == "place":
        many = ("+" if field.is_required else "*") if is_list else None if field.is_required else "?"
        parser.add_argument(field.name, **options | ({"nargs": many} if many else {}))
        return
    options["dest"] = field.name
    if field.kind is bool:
        options["action"] = "store_true"
    elif field.extra["form"] == "words":
        options["nargs"] = "*" if field.name == "tasks" else "+"
    elif field.extra["form"] == "pairs":
        options["action"] = "append"
    if field.choices and field.extra["form"] != "commas":
        options["metavar"] = f"{{{','.join(map(str, field.choices))}}}"  # which the specification checks
    parser.add_argument(field.option, required=field.is_required, **options)


def _help(field: SpecField) -> str:
    """The description, with the default where there is one to tell."""
    default = field.default
    if field.is_required or default in (None, False, {}, ()) or "(default:" in field.description:
        text = field.description
    else:
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{field.description} (default: {shown})"
    return text.replace("%", "%%")


def read_options(spec: type[Spec], options: argparse.Namespace) -> Spec:
    """Builds the specification from parsed options; raises RoseError for a bad value."""
    return spec(**{name: value for name, value in vars(options).items() if name in spec.fields()})
