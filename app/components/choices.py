"""Widgets for choices: buttons in a row, layers, and choices that keep their value by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import glossary, session, words
from app.study.study import Study

URL: Final = "query-params"  # a widget bound to it keeps its choice in the URL


def choose(label: str, options: Mapping[Any, str], key: str, **widget: Any) -> Any:
    """One of a few, as buttons in a row; the choice is in the URL.

    `options`: value -> text on screen and in the URL; the first is the default, also for a choice that went.
    """
    if st.session_state.get(key) not in (None, *options):
        del st.session_state[key]
    return st.segmented_control(
        label,
        list(options),
        **({"default": next(iter(options))} | widget),
        required=True,
        format_func=lambda option: words.plain(options[option]),  # also names from files
        key=key,
        bind=URL,
    )


def section(options: Mapping[str, Any] | Sequence[str], key: str, label: str = "Section", **widget: Any) -> Any:
    """Chooses the part of a page to show; screen readers read the label.

    `options`: value -> text on screen, or a tuple that begins with the text; or texts, each its own value.
    """
    texts = options if isinstance(options, Mapping) else dict(zip(options, options, strict=True))
    texts = {value: text[0] if isinstance(text, tuple) else text for value, text in texts.items()}
    return choose(label, texts, key, label_visibility="collapsed", **widget)


def select_layer(layer: str) -> None:
    """Chooses a layer from inside a live part of the page."""
    session.choose_layer(layer)


def pick_layer(key: str, choose: Callable[[str], None] = select_layer) -> None:
    """Callback: a click on a mark of this figure chooses its layer, for all pages unless `choose` says otherwise."""
    points = st.session_state[key].selection.points
    if points:
        layer = points[0].get("customdata")
        choose(layer[0] if isinstance(layer, list) else layer)


def pick_row(key: str, rows: Sequence[Any], choose: Callable[[Any], None] = select_layer) -> None:
    """Callback: a chosen row of this table chooses its entry in `rows`; see `pick_layer`."""
    chosen = st.session_state[key].selection.rows
    if chosen and chosen[0] < len(rows):
        choose(rows[chosen[0]])


def keep_choice(key: str, offered: Mapping[str, Any]) -> list[str]:
    """Lets a widget's choice, of one name or several, follow renamed objects, and drops what is not offered any more.

    Call it before the widget. Names change when runs arrive that would have the same ones. Returns the present names of
    values offered before: the same object, or an equal tuple.
    """
    state = st.session_state
    before, chosen = state.get(f"{key}-offered", {}), state.get(key)
    state[f"{key}-offered"] = dict(offered)
    names = {old: _name_of(value, offered) for old, value in before.items()}
    current = chosen if isinstance(chosen, list) else [] if chosen is None else [chosen]
    offered_still = [name for name in (names.get(value, value) for value in current) if name in offered]
    if offered_still != current:
        if isinstance(chosen, list):
            state[key] = offered_still
        elif offered_still:
            state[key] = offered_still[0]
        else:
            del state[key]
    return [name for name in names.values() if name is not None]


def _name_of(target: Any, offered: Mapping[str, Any]) -> str | None:
    """The name of the same object, or of an equal tuple."""
    same = (name for name, value in offered.items() if value is target or (type(value) is tuple and value == target))
    return next(same, None)


def own_or_other(
    label: str, key: str, options: dict[Any, str], of_study: Any, *, kind: Callable[..., Any], **widget: Any
) -> Any:
    """A choice that the link keeps where it is not the study's own."""
    linked = st.query_params.get(key)
    if st.session_state.get(key) not in options:
        st.session_state[key] = next((value for value in options if str(value) == linked), of_study)
    look: dict[str, Any] = {"label_visibility": "collapsed", "key": key}
    kind(label, list(options), format_func=options.__getitem__, **look, **widget)
    chosen = st.session_state[key]
    if chosen == of_study:
        st.query_params.pop(key, None)
    elif linked != str(chosen):
        st.query_params[key] = str(chosen)
    return chosen


def labelled(word: str) -> DeltaGenerator:
    """A place for a widget, behind a word that explains itself."""
    place = st.container(horizontal=True, vertical_alignment="center", gap="small", width="content")
    place.html(f'<span class="choice">{glossary.explained(word)}</span>', width="content")
    return place


def choose_layer(study: Study) -> None:
    """The chosen layer by name, and its neighbours by the keys J and K."""
    names, layer = study.layer_names, session.layer() or study.layer_names[0]
    for key, icon, by, shortcut in (("previous", "back", -1, "J"), ("next", "forward", 1, "K")):
        step = names[(names.index(layer) + by) % len(names)]
        st.button(
            "", icon=f":material/arrow_{icon}:", key=f"layer-{key}", type="tertiary", shortcut=shortcut,
            help=f"The {key} layer", on_click=session.choose_layer, args=(step,),
        )  # fmt: skip
    st.session_state.layer_widget = layer
    st.selectbox(
        "Layer", names, key="layer_widget", format_func=words.short_layer, label_visibility="collapsed", width=170,
        on_change=lambda: session.choose_layer(st.session_state.layer_widget),
    )  # fmt: skip
