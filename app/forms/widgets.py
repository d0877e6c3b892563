"""What the pages about runs draw alike: progress, how a run ended, a table to take away."""

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.runtime.uploaded_file_manager import UploadedFile

from app import components, shared
from app.runs.damage import DamageRequest
from app.runs.pruning import kept_checkpoints
from app.runs.request import PruneRequest
from app.study.setup import Setup
from rose import METHODS, RoseError
from rose.model.estimate.duration import Cost


def linked(key: str) -> dict[str, Any]:
    return {"key": key, "bind": components.URL}


def method_choice(place: DeltaGenerator, usual: str, key: str) -> str:
    methods = list(METHODS)
    labels = {name: method.label for name, method in METHODS.items()}
    return place.selectbox("Method", methods, methods.index(usual), format_func=labels.__getitem__, **linked(key))


def priced(setup: Setup, request: DamageRequest | PruneRequest) -> tuple[Cost | None, str]:
    """What a run would take, or a sentence that says why it cannot be."""
    try:
        skeleton = shared.skeleton(setup.model)
        request.check(setup, skeleton)
        return request.estimate(setup, skeleton), ""
    except RoseError as wrong:
        return None, str(wrong)


def path_input(label: str, key: str, example: str, help: str) -> str:
    """The path of something on this machine, as every page asks for it."""
    return st.text_input(label, **linked(key), placeholder=example, help=help).strip()


def file_input(label: str, key: str, types: Sequence[str], example: str, help: str) -> UploadedFile | str:
    """A file from the browser's machine, or else the path of one on this; "" for neither. In the URL as KEY_path."""
    one, two = st.columns(2)
    upload = one.file_uploader(label, type=list(types), key=f"{key}-file")
    with two:
        named = path_input("or its path on this machine", f"{key}_path", example, help)
    return upload or named


def folders_input(label: str, key: str, help: str) -> str:
    """Paths of folders of saved runs or models, for `saved`."""
    return path_input(label, key, "pruned/; slim/", f"{help}; separated by semicolons.")


def saved(folders: str, read: Callable[[str], Sequence[Any]]) -> list[Any]:
    """What is in the folders that the user named; says which cannot be read, and why."""
    found: list[Any] = []
    for one in filter(None, (part.strip() for part in folders.split(";"))):
        try:
            found += read(one)
        except RoseError as problem:
            components.error(problem)
    return found


def pruned_model(model: str, key: str, label: str, other: str, place: tuple[str, str], help: str) -> str:
    """The path of a pruned copy of a model: one that the Prune page has kept, unless a link or the user names another.

    Args:
        key: begins the keys of both widgets; that of the path, KEY_path, is in the URL.
        label: of the choice of a kept copy.
        other: the choice that leads to the path.
        place: label and placeholder of the path, for which `help` is.
    """
    named, copy = f"{key}_path", f"{key}_copy"
    kept = {name: str(one.place) for name, one in kept_checkpoints(list(shared.prunings().values()), model).items()}

    def typed() -> None:
        if (chosen := st.session_state[copy]) not in (*kept, other):
            st.session_state[named] = chosen

    if kept and not st.session_state.get(named) and named not in st.query_params:
        chosen = st.selectbox(label, [*kept, other], key=copy, accept_new_options=True, on_change=typed)
        if chosen != other:
            return kept[chosen]
    return path_input(place[0], named, place[1], help)


def start_button(
    label: str, key: str, start: Callable[..., None], *args: Any, problem: str = "", running: bool = False, icon: str
) -> DeltaGenerator:
    """The button that starts a run, and the place beside it, which says what stands in the way."""
    left, right = st.columns([1, 3], vertical_alignment="center")
    left.button(
        label,
        type="primary",
        icon=icon,
        key=key,
        on_click=start,
        args=args,
        disabled=bool(problem) or running,
        width="stretch",
    )
    if problem:
        with right:
            components.warning(problem)
    return right
