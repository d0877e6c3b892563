"""Start: choose a model and a calibration text, see what the run will take, and measure the layers."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from torch import nn

import rose
from app import components, session, shared, words
from app.figures import overview
from app.study import preflight
from app.study.preflight import Preflight
from app.study.setup import LIMITS, Setup, weights_size
from app.study.study import Study
from rose.layer.pattern import parse_sparsity
from rose.model.load.models import DTYPES, PACKAGED
from rose.model.load.tokens import DATASETS

OTHER = "other"
FILE = "file"
SOURCES = {
    "packaged": "Packaged English text, works offline",
    "wikitext2": "WikiText-2, from the Hub",
    "c4": "C4, from the Hub",
    "ptb": "Penn Treebank, from the Hub",
    FILE: "A .txt or .jsonl file",
}
LAYERS = {
    "all": "All layers",
    "attention": "Attention output projections",
    "block": "One decoder block",
    "own": "Layers by name",
}
PATTERNS = ["2:4", "4:8", "1:4"]
PREFIX = "start_"  # of the keys of this page's widgets
SETTINGS = "start-settings"
NAMED = 5  # most columnar layers that are listed


def draw() -> None:
    st.title("Start: which model do you want to see inside?")
    text, learn = st.columns([2, 1], vertical_alignment="center")
    learn.page_link("views/learn.py", label="New to pruning? Learn how", icon=":material/school:")
    study = session.study()
    is_there = study is not None and study.is_measured
    text.markdown(
        "Every layer below was pruned and measured: see which weights go, what that costs, and where the order matters."
        if is_there
        else "Choose a model and a text, and see in every layer which weights go and what that costs."
    )
    if study is not None:
        picture(study)
    if study is not None and study.job.status in ("failed", "cancelled") and not study.is_measured:
        open_settings(study)
    label = "Set-up" if study is None else "Change set-up"
    with st.expander(
        label, expanded=study is None, key=SETTINGS, on_change="rerun", icon=":material/tune:"
    ) as settings:
        left, right = st.columns([2, 1])
        with left:
            edited = choose(session.draft())
            session.choose_draft(edited)
        with right:
            run_card(edited, is_shown=bool(settings.open))
            recent()


def open_settings(study: Study) -> None:
    """Once for a run that ended early: what to change is there."""
    if st.session_state.get("start_reopened") != study.created:
        st.session_state.start_reopened = study.created
        st.session_state[SETTINGS] = True


# The choices


def choose(draft: Setup) -> Setup:
    """The set-up as the widgets have it; they start from the draft."""
    seed(draft)
    with st.container(border=True):
        model, dtype, stream = choose_model()
    with st.container(border=True):
        calibration = choose_calibration()
    with st.container(border=True):
        pruning = choose_pruning(model)
    return Setup(model=model, dtype=dtype, stream=stream, **calibration, **pruning)


def seed(draft: Setup) -> None:
    """Gives the widgets that are not on screen yet the draft's values."""
    layers, block = preflight.layer_choice(draft.layers)
    grouped = ":" in draft.sparsity
    values = {
        "model": draft.model if draft.model in PACKAGED else OTHER,
        "model_name": "" if draft.model in PACKAGED else draft.model,
        "dtype": draft.dtype,
        "stream": draft.stream,
        "text": draft.text if draft.text in SOURCES else FILE,
        "path": "" if draft.text in SOURCES else draft.text,
        "samples": draft.samples,
        "length": draft.length,
        "seed": draft.seed,
        "held_out": draft.held_out,
        "layers": layers,
        "block": block,
        "own": draft.layers,
        "kind": "N:M" if grouped else "Ratio",
        "ratio": 0.7 if grouped else ratio(draft.sparsity),
        "pattern": draft.sparsity if grouped else PATTERNS[0],
        "block_size": draft.block_size,
        "damping": draft.damping,
    }
    for name, value in values.items():
        st.session_state.setdefault(PREFIX + name, value)


def ratio(sparsity: str) -> float:
    try:
        return parse_sparsity(sparsity).ratio
    except rose.RoseError:
        return 0.7


def key(name: str) -> dict[str, Any]:
    """A widget's key; hidden fields keep what was typed into them."""
    return {"key": PREFIX + name, "persist_state": "page"}


def number(place: DeltaGenerator, name: str, **more: Any) -> Any:
    """A number of the set-up, within the limits that a link has to keep to as well."""
    label, least, most = LIMITS[name]
    return place.number_input(label, least, most, **more, **key(name))


def choose_model() -> tuple[str, str, bool]:
    left, right = st.columns([2, 1])
    name = left.selectbox(
        "Model",
        [*PACKAGED, OTHER],
        format_func=lambda name: "Hub id, folder or .gguf file" if name == OTHER else f"{name}, packaged",
        **key("model"),
    )
    dtype = right.selectbox("Weights in", list(DTYPES), **key("dtype"))
    if name == OTHER:
        name = st.text_input(
            "Hub id, folder or .gguf file",
            placeholder="meta-llama/Llama-3.2-1B, ~/models/mine or ~/models/mine.gguf",
            **key("model_name"),
        )
        stream = st.toggle(
            "Leave the weights on disk",
            help="For models larger than memory, in safetensors files: one decoder block at a time is read. The "
            "numbers are the same. Pages that run the whole model do not work with it.",
            **key("stream"),
        )
    else:
        stream = False
        st.caption(PACKAGED[name].description)
    return (name or "").strip(), dtype, stream


def choose_calibration() -> dict[str, Any]:
    left, right = st.columns([3, 1])
    text = left.selectbox("Calibration text", list(SOURCES), format_func=SOURCES.__getitem__, **key("text"))
    seed_number = number(right, "seed", help="Which windows of the text are drawn.")
    if text == FILE:
        text = st.text_input("File", placeholder="~/texts/calibration.txt", **key("path")).strip()
    one, two, three = st.columns(3)
    samples = number(one, "samples", help="Windows of text that calibrate the pruning.")
    length = number(two, "length")
    held_out = number(three, "held_out", help="Not used for pruning; errors are measured on them too.")
    return {"text": text, "samples": samples, "length": length, "seed": seed_number, "held_out": held_out}


def choose_pruning(model: str) -> dict[str, Any]:
    left, right = st.columns(2)
    layers = left.selectbox("Layers", list(LAYERS), format_func=LAYERS.__getitem__, **key("layers"))
    with right:
        patterns = choose_layers(layers, model)
    left, right = st.columns([1, 2])
    kind = left.segmented_control("Sparsity", ["Ratio", "N:M"], required=True, **key("kind"))
    if kind == "Ratio":
        share = right.slider("Share of weights removed", 0.0, 1.0, step=0.05, **key("ratio"))
        sparsity = f"{share:g}"
    else:
        sparsity = right.selectbox(
            "N:M, N of every M neighbouring weights stay",
            PATTERNS if st.session_state[PREFIX + "pattern"] in PATTERNS else [*PATTERNS, draft_pattern()],
            accept_new_options=True,
            help="Choose one or type another, such as 8:16.",
            **key("pattern"),
        )
    left, right = st.columns(2)
    block_size = number(left, "block_size", help="Columns that are pruned together.")
    damping = number(
        right, "damping", step=0.01, format="%g", help="Added to the Hessian's diagonal, relative to its mean."
    )
    return {"layers": patterns, "sparsity": sparsity or "", "block_size": block_size, "damping": damping}


def draft_pattern() -> str:
    return st.session_state[PREFIX + "pattern"]


def choose_layers(choice: str, model: str) -> str:
    """Name patterns for a choice, and the widgets that the choice needs."""
    if choice == "all":
        st.text_input("Names", "*", disabled=True, help="All linear layers inside the decoder blocks.")
        return "*"
    if choice == "own":
        return (
            st.text_input(
                "Names",
                placeholder="* (all layers)",
                help='Separated by spaces; * matches any part: "*.o_proj". Empty: all layers.',
                **key("own"),
            ).strip()
            or "*"
        )
    known = structure(model)
    if choice == "attention":
        patterns = preflight.attention_outputs(known) if known is not None else preflight.ATTENTION_OUTPUTS[0]
        st.text_input("Names", patterns, disabled=True)
        return patterns
    last = preflight.block_count(known) - 1 if known is not None else 0
    st.session_state[PREFIX + "block"] = min(st.session_state[PREFIX + "block"], last)
    index = st.number_input(f"Decoder block, 0 to {last}", 0, last, **key("block"))
    return preflight.block_pattern(known, index) if known is not None else f"*.{index}.*"


# What it will take


def structure(model: str) -> nn.Module | None:
    """The model's skeleton, or None where it cannot be had; `problem_with` says why."""
    if model in problems():
        return None
    try:
        return shared.skeleton(model)
    except rose.RoseError as problem:
        # Remembered, or every move of a slider would ask the network again.
        problems()[model] = str(problem)
        return None


def problems() -> dict[str, str]:
    """Sentences about models that could not be found, by name."""
    return st.session_state.setdefault("model_problems", {})


def inspect(setup: Setup) -> Preflight | str:
    """What the run will take, or a sentence that says why it cannot be."""
    try:
        setup.check()
        skeleton = structure(setup.model)
        return problems()[setup.model] if skeleton is None else preflight.preflight(setup, skeleton)
    except rose.RoseError as problem:
        return str(problem)


def run_card(edited: Setup, *, is_shown: bool) -> None:
    """What the run will take, and the button.

    Args:
        is_shown: whether anybody sees it; finding out takes seconds for a model that was not looked at before.
    """
    known, found = st.session_state.get("inspected", (None, None))
    fresh = known == edited
    study = session.study()
    with st.container(border=True):
        expected = st.container(key="start-expected")
        cannot = fresh and (isinstance(found, str) or (found is not None and not found.fits))
        own = study is not None and study.setup == edited
        outdated = study is not None and own and shared.is_outdated(study)
        ended = study is not None and own and study.job.status in ("running", "done") and not outdated
        st.button(
            "Measure layers",
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            on_click=begin,
            args=(edited,),
            disabled=bool(cannot) or ended,
            help="These are being measured, or have been; change something above." if ended else None,
            key="measure",
        )
        if outdated:
            st.warning(
                "The files of this model or text have changed since; measure the layers again.",
                icon=":material/update:",
            )
        if fresh:
            with expected:
                show_preflight(edited, found)
    if not fresh and is_shown:
        # The button above works meanwhile.
        with expected, st.spinner("Estimating time and memory …"):
            st.session_state.inspected = (edited, inspect(edited))
        st.rerun()


def show_preflight(edited: Setup, found: Preflight | str) -> None:
    if isinstance(found, str):
        st.error(found, icon=":material/error:")
        if edited.model in problems():
            st.button("Try again", icon=":material/refresh:", on_click=look_again, args=(edited.model,))
        return
    tokens = words.whole((edited.samples + edited.held_out) * edited.length)
    st.markdown(
        f"**{words.sentence(words.count(found.cost.layers, 'layer'))}**, {tokens} tokens: about "
        f"**{components.duration(max(1.0, found.cost.seconds))}** after loading, **{components.size(found.needed)}** "
        f"of memory of {components.size(found.available)} free."
    )
    if edited.stream:
        st.caption(
            f"The weights, {components.size(weights_size(found.cost, edited.dtype))}, stay on disk. In memory are one "
            "decoder block at a time and the statistics of all these layers."
        )
    if not found.fits:
        can_stream = preflight.can_stream(edited.model) and not edited.stream
        spare = ", or leave the weights on disk" if can_stream else ""
        st.error(
            f"This will not fit into memory. Choose fewer layers, fewer samples, bfloat16 or a smaller model{spare}.",
            icon=":material/memory:",
        )
    for warning in found.warnings:
        st.warning(warning, icon=":material/warning:")


def look_again(model: str) -> None:
    problems().pop(model, None)
    st.session_state.pop("inspected", None)


def begin(chosen: Setup) -> None:
    """Starts a run, and ends the one this session was waiting for."""
    former = session.study()
    if former is not None and former.setup != chosen and former.job.status == "running":
        session.leave(former.job)
    st.session_state.link_problem = ""
    st.session_state[SETTINGS] = False  # makes room for the map
    session.choose_setup(chosen)
    session.start()


# What has been measured


def picture(study: Study) -> None:
    """The map of the study, filling while it runs, and the ways into it."""
    running = study.job.status == "running"

    def follow() -> None:
        if st.session_state.pop("start_open", False):
            st.switch_page("views/layer.py")
        if st.session_state.pop("layer_picked", False) or (running and study.job.status != "running"):
            st.rerun()
        table = study.overview(session.threshold())
        left, right = st.columns([5, 2])
        with right:
            beside(study, table)
        with left:
            if table.empty:
                st.info("The first layers appear here as soon as they are measured.")
                return
            drawing = overview.model_map(
                table,
                threshold=session.threshold(),
                layers=study.layer_names,
                left_out=study.left_out,
                marked_layer=session.layer(),
                theme=session.theme(),
            )
            components.show(drawing, "start-map", on_select=pick)

    components.live(follow, 2.0 if running else None)


def pick() -> None:
    """A click on a cell of the map chooses its layer."""
    points = st.session_state["start-map"].selection.points
    if points:
        found = points[0].get("customdata")
        session.choose_layer(found[0] if isinstance(found, list) else found)
        st.session_state.layer_picked = True


def measure_others() -> None:
    """Callback: layers that failed are left out, and the study goes on."""
    session.start(go_on=True)


def beside(study: Study, table: pd.DataFrame) -> None:
    """What the map is of, how far it is, and the layers to look at first."""
    whose = "Example: " if study.is_example else ""
    st.markdown(f"**{whose}{describe(study.setup)}**")
    if not table.empty:
        columnar = int(table["is_columnar"].sum())
        among = words.word(columnar) if columnar else "none"
        st.markdown(f"**{len(table)} of {len(study.expected)} layers measured**, {among} columnar")
    components.study_status(study, "start")
    if study.job.status == "failed" and study.can_go_on:
        st.button("Measure the other layers", icon=":material/skip_next:", on_click=measure_others)
    for layer, why in study.failed.items():
        st.warning(f"{words.short_layer(layer)} was left out: {why}", icon=":material/error:")
    if study.left_dense:
        none = words.count(len(study.left_dense), "layer")
        st.caption(
            f"No calibration token was routed to {none} of experts, which stay dense; more samples may reach them."
        )
    if table.empty:
        return
    best = table.sort_values("relative_range", ascending=False, kind="stable").head(NAMED)
    if study.is_measured:
        st.button(
            "Explore the example" if study.is_example else "Explore the most columnar layer",
            type="primary",
            icon=":material/travel_explore:",
            width="stretch",
            on_click=look_into,
            args=(str(best["layer"].iloc[0]),),
            key="explore",
        )
    st.caption("Most columnar" + ("" if study.is_measured else " so far") + ", with their relative range")
    for place, (name, value) in enumerate(zip(best["layer"], best["relative_range"], strict=True)):
        st.button(
            f"{words.short_layer(name)}: {value:.2f}",
            key=f"start-layer-{place}",
            width="stretch",
            on_click=look_into,
            args=(name,),
        )
    st.page_link("views/layers.py", label="See all layers at a glance", icon=":material/grid_on:")
    st.page_link("views/layer.py", label="See one layer in depth", icon=":material/layers:")
    if study.is_example:
        st.caption(example_note(study))


def look_into(layer: str) -> None:
    session.choose_layer(layer)
    st.session_state.start_open = True


def example_note(study: Study) -> str:
    assert study.kept is not None
    text = f"It came with the app, measured with {study.kept.made_with}. "
    if not study.kept.is_exact:
        return text + "The packaged text of your Python differs, so each layer is measured again on it when opened."
    return text + (
        f"{words.sentence(words.count(len(study.kept.statistics), 'layer'))} open as soon as the model is loaded, the "
        "others once their inputs are collected."
    )


def describe(setup: Setup) -> str:
    text = setup.text if setup.text in DATASETS or setup.text == "packaged" else setup.text.rsplit("/", 1)[-1]
    model = setup.model if setup.model in PACKAGED else setup.model.rstrip("/").rsplit("/", 1)[-1]
    choice, block = preflight.layer_choice(setup.layers)
    layers = {"block": f"decoder block {block}", "own": setup.layers}.get(choice, LAYERS[choice].lower())
    usual = Setup()
    phrases = {
        "dtype": "{}",
        "seed": "seed {}",
        "held_out": "{} held out",
        "block_size": "block size {}",
        "damping": "damping {:g}",
    }
    unusual = [name for name in phrases if getattr(setup, name) != getattr(usual, name)]
    other = [phrases[name].format(getattr(setup, name)) for name in unusual]
    sizes = f"{text} {setup.samples} × {setup.length}"
    other += ["weights left on disk"] if setup.stream else []
    return ", ".join([model, layers, sizes, f"sparsity {setup.sparsity}", *other])


def recent() -> None:
    """Set-ups of this session: what has been measured is shown at once, anything else is measured."""
    others = [setup for setup in session.recent_setups() if setup != session.setup()]
    if not others:
        return
    st.caption("Recent")
    for place, setup in enumerate(others):
        st.button(
            describe(setup), key=f"recent-{place}", icon=":material/history:", width="stretch",
            on_click=again, args=(setup,),
        )  # fmt: skip


def again(setup: Setup) -> None:
    for name in [name for name in st.session_state if str(name).startswith(PREFIX)]:
        del st.session_state[name]
    begin(setup)


draw()
