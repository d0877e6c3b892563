"""The set-up as a dialog that every page opens, and in one line."""

from typing import Any

import streamlit as st
from torch import nn

import rose
from app import components, session, shared, words
from app.forms.widgets import HUB, say_hub, spec_number
from app.study import preflight
from app.study.preflight import Preflight
from app.study.setup import NUMBERS, Setup, patterns_of, weights_size
from rose.model.defaults import STORED
from rose.model.load.models import DTYPES, is_hub_id, load_skeleton, read_as
from rose.model.load.tokens import DATASETS
from rose.model.network.layers import decoder_blocks
from rose.model.network.network import Network
from rose.model.network.precision import name_of
from rose.model.packaged import PACKAGED

FILE, RECIPE = "file", "measure-recipe"
NAMES = {"wikitext2": "WikiText-2", "c4": "C4", "ptb": "Penn Treebank"}  # of data sets, for people
SOURCES = {
    "packaged": "Python's language reference, works offline",
    **{name: f"{NAMES.get(name, name)}, from the Hub" for name in DATASETS},
    FILE: "A .txt or .jsonl file",
}
LAYERS = {
    "all": "All layers",
    "attention": "Attention output projections",
    "block": "One decoder block",
    "own": "Layers by name",
}
SPARSITIES = ["0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "2:4", "4:8", "1:4"]
PREFIX = "measure_"  # of the keys of these widgets
PHRASES = {
    "dtype": "{}",
    "seed": "seed {}",
    "held_out": "{} held out",
    "block_size": "block size {}",
    "damping": "damping {:g}",
}  # of rarely changed fields


def close() -> None:
    st.session_state.choosing = False


@st.dialog("Measure a model", width="large", icon=":material/grid_on:", on_dismiss=close)
def dialog() -> None:
    """Model, layers and sparsity, what measuring will take, and the buttons that begin."""
    if st.session_state.pop("form_is_new", False):
        forget()
    chosen = choose(st.session_state.form_setup)
    with st.expander("More: text, tokens, block size, recipe", icon=":material/tune:", key="measure-more"):
        edited = Setup.edited(**chosen, **choose_more(chosen["model"]))
        st.file_uploader("Or drop a recipe.yaml", ["yaml", "yml"], key=RECIPE, max_upload_size=1)
        if (file := st.session_state[RECIPE]) is not None and file.file_id != st.session_state.get("recipe-read"):
            st.session_state["recipe-read"] = file.file_id
            st.session_state["recipe-dropped"] = file
            close()
            st.rerun()
    with st.spinner("Estimating time and memory …"):
        estimate = inspect(edited)
    study = shared.find(edited) if not isinstance(estimate, str) else None
    is_there = study is not None and study.is_measured and not shared.is_outdated(study)
    show_estimate(edited, estimate)
    with st.container(horizontal=True, vertical_alignment="center"):
        if not isinstance(estimate, str) and (is_there or estimate.fits):
            label = "Show its layers" if is_there else "Measure its layers"
            if st.button(label, type="primary", icon=":material/play_arrow:", key="measure"):
                (session.choose_setup if is_there else session.measure)(edited)
                _leave()
        if not isinstance(estimate, str):
            help = "Prune, Make it smaller and Check need no measured layers."
            if st.button("Only choose it", icon=":material/check:", key="only-choose", help=help):
                session.choose_setup(edited)
                _leave()


def _leave() -> None:
    close()
    st.rerun()


def inspect(setup: Setup) -> Preflight | str:
    try:
        setup.check()
        skeleton = structure(setup.model)
        return problems()[setup.model] if skeleton is None else preflight.preflight(setup, skeleton)
    except rose.RoseError as problem:
        return str(problem)


def show_estimate(edited: Setup, estimate: Preflight | str) -> None:
    if isinstance(estimate, str):
        components.error(estimate)
        if edited.model in problems():
            offer_to_find(edited.model)
        return
    tokens = words.whole((edited.samples + edited.held_out) * edited.length)
    st.markdown(
        f"**{words.sentence(words.count(estimate.cost.layers, 'layer'))}**, {tokens} tokens: about "
        f"**{components.lasting(estimate.cost)}** after loading, **{words.size(estimate.needed)}** "
        f"of memory of {words.size(estimate.available)} free."
    )
    if edited.stream:
        weights = words.size(weights_size(estimate.cost, edited.dtype))
        st.caption(f"The weights, {weights}, stay on disk; one decoder block at a time is in memory.")
    if not estimate.fits:
        can_stream = preflight.can_stream(edited.model) and not edited.stream
        spare = ", or leave the weights on disk" if can_stream else ""
        components.error(
            f"This will not fit into memory. Choose fewer layers, fewer samples, bfloat16 or a smaller model{spare}.",
            ":material/memory:",
        )
    say_hub(edited)
    for warning in estimate.warnings:
        components.warning(warning)


def choose(draft: Setup) -> dict[str, Any]:
    """The choices that most people change, in a row: model, sparsity and layers."""
    scope, block = preflight.layer_choice(draft.layers)
    has_name = draft.calibration in SOURCES
    values = {name: getattr(draft, name) for name in (*NUMBERS, "model", "sparsity", "dtype", "stream")}
    values |= {"calibration": draft.calibration if has_name else FILE, "path": "" if has_name else draft.calibration}
    values |= {"layers": scope, "block": block, "own": draft.layers_text}
    for name, value in values.items():  # of widgets that are not on screen yet
        st.session_state.setdefault(PREFIX + name, value)
    left, middle, right = st.columns([3, 2, 3])
    with left:
        model = _choose_model()
    with middle:
        sparsity = choose_sparsity(PREFIX + "sparsity", draft.sparsity, persist_state="page")
    with right:
        choice = st.selectbox("Layers", list(LAYERS), format_func=LAYERS.__getitem__, **_key("layers"))
        layers = _choose_layers(choice, model)
    return {"model": model, "sparsity": sparsity, "layers": patterns_of(layers)}


def choose_more(model: str) -> dict[str, Any]:
    """What fewer people change; fields that are hidden keep what they hold."""
    left, right = st.columns([3, 1])
    text = left.selectbox("Calibration text", list(SOURCES), format_func=SOURCES.__getitem__, **_key("calibration"))
    if text == FILE:
        text = st.text_input("File", placeholder="~/texts/calibration.txt", **_key("path")).strip()
    places = [right, *st.columns(3), *st.columns(3)]
    numbers = {
        name: spec_number(place, Setup.fields()[name], _key(name))
        for name, place in zip(("seed", "samples", "length", "held_out", "block_size", "damping"), places, strict=False)
    }
    dtype = places[-1].selectbox("Number format of weights", list(DTYPES), **_key("dtype"))
    help_text = (
        "Reads one decoder block at a time, for safetensors files larger than memory. The numbers are the same. "
    )
    help_text += "Pages that run the whole model do not work with it."
    stream = model not in PACKAGED and st.toggle("Leave the weights on disk", help=help_text, **_key("stream"))
    return numbers | {"calibration": text, "dtype": dtype, "stream": stream}


def choose_sparsity(key: str, current: str, **widget: Any) -> str:
    """The sparsity of a set-up; `current` is offered whatever it is."""
    help_text = "The share of weights removed, or N:M, where N of every M neighbouring weights stay. Choose one or "
    help_text += "type another, such as 0.55 or 8:16."
    options = SPARSITIES if current in SPARSITIES else [*SPARSITIES, current]
    return st.selectbox("Sparsity", options, accept_new_options=True, help=help_text, key=key, **widget) or ""


def forget() -> None:
    for name in [name for name in st.session_state if str(name).startswith(PREFIX)]:
        del st.session_state[name]


def _key(name: str) -> dict[str, Any]:
    """A widget's key; hidden fields keep what was typed into them."""
    return {"key": PREFIX + name, "persist_state": "page"}


def _choose_model() -> str:
    packaged, typed = list(PACKAGED), st.session_state[PREFIX + "model"]
    name = st.selectbox(
        "Model, folder or Hub name",
        packaged if typed in PACKAGED else [*packaged, typed],
        format_func=lambda name: f"{name}, packaged" if name in PACKAGED else name,
        accept_new_options=True,
        help="Choose a packaged one, or type a Hub id (meta-llama/Llama-3.2-1B), a folder (~/models/mine) or a .gguf "
        "file. " + " ".join(f"{name}: {package.description}." for name, package in PACKAGED.items()),
        on_change=_read_as_stored,
        **_key("model"),
    )
    return (name or "").strip()


def _read_as_stored() -> None:
    """A model that is chosen is read in the format that suits how it is stored, until another is chosen."""
    st.session_state[PREFIX + "dtype"] = format_of((st.session_state[PREFIX + "model"] or "").strip())


def format_of(model: str) -> str:
    """The number format in which a model is read, as it is stored; float32 where its configuration is not found."""
    skeleton = structure(model)
    return name_of(read_as(STORED, None if skeleton is None else Network(skeleton).dtype))


def _choose_layers(choice: str, model: str) -> str:
    if choice == "all":
        return "*"
    if choice == "own":
        help_text = 'Separated by spaces; * matches any part: "*.o_proj". Empty: all layers.'
        return st.text_input("Names", placeholder="* (all layers)", help=help_text, **_key("own")).strip() or "*"
    skeleton = structure(model)
    if choice == "attention":
        return preflight.attention_outputs(skeleton)
    prefix, count = ("*", 1) if skeleton is None else (decoder_blocks(skeleton)[0], len(decoder_blocks(skeleton)[1]))
    last = count - 1
    st.session_state[PREFIX + "block"] = min(st.session_state[PREFIX + "block"], last)
    index = st.number_input(f"Decoder block, 0 to {last}", 0, last, **_key("block"))
    return f"{prefix}.{index}.*"


def structure(model: str) -> nn.Module | None:
    """The model's skeleton, or None where it cannot be had; `problems` says why."""
    if model in problems():
        return None
    try:
        return shared.skeleton(model)
    except rose.RoseError as problem:
        # Remembered, or every move of a slider would look for it again.
        problems()[model] = str(problem).replace(shared.ASKED_ON_START, "")  # see `offer_to_find`
        return None


def problems() -> dict[str, str]:
    return st.session_state.setdefault("model_problems", {})


def offer_to_find(model: str) -> None:
    """Buttons for a model that `structure` does not find: ask the Hub, or look again."""

    def look(ask: bool) -> None:
        problems().pop(model, None)
        st.session_state.pop("inspected", None)
        if not ask:
            return
        try:
            load_skeleton(model)  # downloads the configuration
        except rose.RoseError as problem:
            problems()[model] = str(problem)
        _read_as_stored()

    if is_hub_id(model):
        st.caption(f"This sends the name to {HUB} and downloads the model's configuration.")
        st.button("Ask the Hub", icon=":material/cloud_download:", on_click=look, args=(True,))
    else:
        st.button("Try again", icon=":material/refresh:", on_click=look, args=(False,))


def describe(setup: Setup) -> str:
    """The set-up in one line; rarely changed fields appear only if changed."""
    text = setup.calibration if setup.calibration in SOURCES else setup.calibration.rsplit("/", 1)[-1]
    model = setup.model if setup.model in PACKAGED else setup.model.rstrip("/").rsplit("/", 1)[-1]
    choice, block = preflight.layer_choice(setup.layers)
    layers = {"block": f"decoder block {block}", "own": setup.layers_text}.get(choice, LAYERS[choice].lower())
    unusual = [name for name in PHRASES if getattr(setup, name) != getattr(Setup(), name)]
    other = [PHRASES[name].format(getattr(setup, name)) for name in unusual]
    sizes = f"{text} {setup.samples} × {setup.length}"
    other += ["weights left on disk"] if setup.stream else []
    return ", ".join([model, layers, sizes, f"sparsity {setup.sparsity}", *other])
