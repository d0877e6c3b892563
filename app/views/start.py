"""Start: choose a model and a calibration text, see what the run will take, and measure the layers."""

from __future__ import annotations

from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from torch import nn

import rose
from app import components, session, shared, words
from app.study import preflight
from app.study.preflight import Preflight
from app.study.setup import LIMITS, Setup
from app.study.study import Study
from rose.layer.pattern import parse_sparsity
from rose.model.calibration import DATASETS
from rose.model.loading import DTYPES, PACKAGED

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


def draw() -> None:
    st.title("Start: which model do you want to see inside?")
    text, learn = st.columns([2, 1], vertical_alignment="center")
    text.markdown(
        "ROSE Explorer shows what one-shot pruning does to a language model: which weights go, what that costs, and "
        "when the pruning order matters."
    )
    learn.page_link("views/learn.py", label="New to pruning? Learn how", icon=":material/school:")
    if st.session_state.get("link_problem"):
        st.warning(f"{st.session_state.link_problem} The defaults are shown instead.", icon=":material/link_off:")
    left, right = st.columns([2, 1])
    with left:
        edited = choose(session.draft())
        session.choose_draft(edited)
    with right:
        run_card(edited)
        recent()


# The choices


def choose(draft: Setup) -> Setup:
    """The set-up as the widgets have it; they start from the draft."""
    seed(draft)
    with st.container(border=True):
        model, dtype = choose_model()
    with st.container(border=True):
        calibration = choose_calibration()
    with st.container(border=True):
        pruning = choose_pruning(model)
    return Setup(model=model, dtype=dtype, **calibration, **pruning)


def seed(draft: Setup) -> None:
    """Gives the widgets that are not on screen yet the draft's values."""
    layers, block = preflight.layer_choice(draft.layers)
    grouped = ":" in draft.sparsity
    values = {
        "model": draft.model if draft.model in PACKAGED else OTHER,
        "model_name": "" if draft.model in PACKAGED else draft.model,
        "dtype": draft.dtype,
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


def choose_model() -> tuple[str, str]:
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
    else:
        st.caption(PACKAGED[name].description)
    return (name or "").strip(), dtype


def choose_calibration() -> dict[str, Any]:
    left, right = st.columns([3, 1])
    text = left.selectbox("Calibration text", list(SOURCES), format_func=SOURCES.__getitem__, **key("text"))
    seed_number = number(right, "seed", help="Which windows of the text are drawn.")
    if text == FILE:
        text = st.text_input("File", placeholder="~/texts/calibration.txt", **key("path")).strip()
    one, two, three = st.columns(3)
    samples = number(one, "samples", help="Windows of text that calibrate the pruning.")
    length = number(two, "length")
    held_out = number(three, "held_out", help="Errors are measured on them too, but nothing is fitted.")
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
    """Name patterns for a choice; the space beside it holds what the choice needs."""
    if choice == "all":
        st.text_input("Names", "*", disabled=True, help="All linear layers inside the decoder blocks.")
        return "*"
    if choice == "own":
        return st.text_input("Names", help="Separated by spaces; * matches any part.", **key("own")).strip() or "*"
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


def run_card(edited: Setup) -> None:
    known, found = st.session_state.get("inspected", (None, None))
    fresh = known == edited
    study = session.study()
    with st.container(border=True):
        expected = st.container(height=132, border=False)
        problem = found if fresh and isinstance(found, str) else ""
        own = study is not None and study.setup == edited
        outdated = study is not None and own and shared.is_outdated(study)
        st.button(
            "Measure layers",
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            on_click=begin,
            args=(edited,),
            disabled=bool(problem)
            or (own and not outdated and study is not None and study.job.status in ("running", "done")),
            key="measure",
        )
        if outdated:
            st.warning(
                "The files of this model or text have been replaced since; measure the layers again.",
                icon=":material/update:",
            )
        if study is not None:
            show_run(study, own)
        if fresh:
            with expected:
                show_preflight(edited, found)
    if not fresh:
        # The button above works meanwhile: finding out takes seconds for a model that was not looked at before.
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
    if not found.fits:
        st.warning(
            "This will not fit into memory. Choose fewer layers, fewer samples, bfloat16 or a smaller model.",
            icon=":material/memory:",
        )


def look_again(model: str) -> None:
    problems().pop(model, None)
    st.session_state.pop("inspected", None)


def begin(chosen: Setup) -> None:
    """Starts a run, and ends the one this session was waiting for."""
    former = session.study()
    if former is not None and former.setup != chosen and former.job.status == "running":
        session.leave(former.job)
    st.session_state.link_problem = ""
    session.choose_setup(chosen)
    session.start()


# The run


def show_run(study: Study, own: bool) -> None:
    running = study.job.status == "running"

    def follow() -> None:
        if running and study.job.status != "running":
            st.rerun()
        if not own:
            st.caption(f"So far: {describe(study.setup)}")
        components.job_status(study.job, "start")
        arrivals(study)

    components.live(follow, 1.0 if running else None)
    if study.job.status == "done":
        st.page_link("views/layers.py", label="See all layers at a glance", icon=":material/grid_on:")
        st.page_link("views/layer.py", label="See one layer in depth", icon=":material/layers:")


def arrivals(study: Study) -> None:
    """What has been measured so far, latest first."""
    table = study.overview(session.threshold())
    if table.empty:
        return
    columnar = int(table["is_columnar"].sum())
    among = words.word(columnar) if columnar else "none"
    st.markdown(f"**{len(table)} of {len(study.layer_names)} layers measured**, {among} columnar")
    latest = table.iloc[::-1].head(4)[["layer", "relative_range"]]
    st.dataframe(
        latest.assign(layer=latest["layer"].map(words.short_layer)),
        hide_index=True,
        column_config={
            "layer": st.column_config.TextColumn("Latest", width=128),
            "relative_range": st.column_config.ProgressColumn(
                "Relative range", width=112, min_value=0.0, max_value=1.0, format="%.2f"
            ),
        },
        alt="The layers measured last, with their relative range",
    )


def describe(setup: Setup) -> str:
    text = setup.text if setup.text in DATASETS or setup.text == "packaged" else setup.text.rsplit("/", 1)[-1]
    model = setup.model if setup.model in PACKAGED else setup.model.rstrip("/").rsplit("/", 1)[-1]
    layers = LAYERS[preflight.layer_choice(setup.layers)[0]].lower()
    return f"{model}, {layers}, {text} {setup.samples} × {setup.length}, sparsity {setup.sparsity}"


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
