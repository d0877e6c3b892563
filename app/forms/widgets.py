"""Widgets that several pages' forms share: fields of recipes, files, folders, pruned copies, the start button."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import streamlit as st
from huggingface_hub import constants
from streamlit.delta_generator import DeltaGenerator

from app import components, shared, words
from app.runs.copies import kept_checkpoints
from app.study.preflight import asked_of_hub
from app.study.setup import LARGEST, Setup
from rose import METHODS, RoseError
from rose.spec import Spec, SpecField

HUB = urlsplit(constants.ENDPOINT).netloc


def linked(key: str) -> dict[str, Any]:
    return {"key": key, "bind": components.URL}


def spec_number(place: DeltaGenerator, field: SpecField, key: Mapping[str, Any], **widget: Any) -> Any:
    """A number of a recipe, with its label, help and limits unless `widget` has others; `key` as from `linked`."""
    low, high = (field.limits.get(f"{limit}e", field.limits.get(f"{limit}t")) for limit in "gl")
    least, most = (None if limit is None else field.kind(min(limit, LARGEST)) for limit in (low, high))
    look = {"label": field.label, "help": words.sentence(field.description) + "."}
    look |= {"format": "%g"} if field.kind is float else {}
    return place.number_input(**(look | widget), min_value=least, max_value=most, **key)


def method_choice(place: DeltaGenerator, usual: str, key: str) -> str:
    look: dict[str, Any] = {"format_func": lambda name: METHODS[name].label, "index": list(METHODS).index(usual)}
    return place.selectbox("Method", list(METHODS), **look, **linked(key))


def attempt(make: Callable[[], Any]) -> tuple[Any, str]:
    """The result of `make`, or None and the error's sentence."""
    try:
        return make(), ""
    except RoseError as problem:
        return None, str(problem)


def text_input(label: str, key: str, example: str, help: str | None, place: Any = st) -> str:
    """A text that the URL carries, such as a path on this machine."""
    return place.text_input(label, **linked(key), placeholder=example, help=help).strip()


def folders_input(label: str, key: str, help: str) -> str:
    """Paths of folders of saved runs or models, for `saved`."""
    return text_input(label, key, "pruned/; slim/", f"{help}; separated by semicolons.")


def saved(folders: str, read: Callable[[str], Sequence[Any]]) -> list[Any]:
    """The contents of the folders that the user named; says which cannot be read, and why."""
    contents: list[Any] = []
    for path in filter(None, (part.strip() for part in folders.split(";"))):
        try:
            contents += read(path)
        except RoseError as problem:
            components.error(problem)
    return contents


def pruned_model(model: str, key: str, label: str, other: str, place: tuple[str, str], help: str | None) -> str:
    """The path of a pruned copy of a model: a copy that this server has kept, unless a link or the user names a path.

    `label` is of the choice of a kept copy, `other` leads to the path; `place` has label and placeholder of the path,
    whose key is KEY_path.
    """
    path_key, copy_key = f"{key}_path", f"{key}_copy"
    copies = {name: str(place) for name, place in kept_checkpoints(list(shared.prunings().values()), model).items()}

    def typed() -> None:
        if (chosen := st.session_state[copy_key]) not in (*copies, other):
            st.session_state[path_key] = chosen

    if copies and not st.session_state.get(path_key) and path_key not in st.query_params:
        chosen = st.selectbox(label, [*copies, other], key=copy_key, accept_new_options=True, on_change=typed)
        if chosen != other:
            return copies[chosen]
    return text_input(place[0], path_key, place[1], help)


def start_button(
    label: str,
    key: str,
    start: Callable[..., None],
    *args: Any,
    icon: str,
    problem: str = "",
    running: bool = False,
    ready: bool = True,
    takes: str = "",
    asking: Sequence[Setup] = (),
    recipes: Sequence[Spec] = (),
) -> DeltaGenerator:
    """The button that starts a run, and the place beside it.

    The place says what stands in the way; or, unless a run goes on, what a run takes and what `asking` asks the Hub.
    The `recipes` of the run are offered beside it.
    """  # fmt: skip
    left, *middle, right = st.columns([1, 0.6, 2.4] if recipes else [1, 3], vertical_alignment="center")
    disabled = bool(problem) or running or not ready
    look: dict[str, Any] = {"type": "primary", "icon": icon, "disabled": disabled, "width": "stretch"}
    left.button(label, key=key, on_click=start, args=args, **look)
    if recipes:
        with middle[0]:
            components.recipe(key.removesuffix("-start"), recipes)
    with right:
        if problem:
            components.warning(problem)
        elif takes and not running:
            st.caption(takes)
            say_hub(*asking)
    return right


def say_hub(*setups: Setup) -> None:
    """A line beside the start button: the names that these runs ask the Hub for, if any."""
    if names := list(dict.fromkeys(name for setup in setups for name in asked_of_hub(setup))):
        notice = f"This asks {HUB} for {words.listing(names)}; what is not here yet is downloaded."
        st.caption(words.plain(notice))
