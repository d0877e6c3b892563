"""The set-up as widgets of the start page, and in one line."""

from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from torch import nn

import rose
from app import shared
from app.study import preflight
from app.study.setup import LIMITS, Setup
from rose.layer.pattern import parse_sparsity
from rose.model.load.models import DTYPES, PACKAGED
from rose.model.network.layers import decoder_blocks

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
PREFIX = "start_"  # of the keys of these widgets
PHRASES = {
    "dtype": "{}",
    "seed": "seed {}",
    "held_out": "{} held out",
    "block_size": "block size {}",
    "damping": "damping {:g}",
}  # of what few people change


def choose(draft: Setup) -> Setup:
    _seed(draft)
    with st.container(border=True):
        model, dtype, stream = _choose_model()
    with st.container(border=True):
        calibration = _choose_calibration()
    with st.container(border=True):
        pruning = _choose_pruning(model)
    return Setup(model=model, dtype=dtype, stream=stream, **calibration, **pruning)


def forget() -> None:
    for name in [name for name in st.session_state if str(name).startswith(PREFIX)]:
        del st.session_state[name]


def _seed(draft: Setup) -> None:
    """Gives the widgets that are not on screen yet the draft's values."""
    layers, block = preflight.layer_choice(draft.layers)
    grouped = ":" in draft.sparsity
    values = {name: getattr(draft, name) for name in (*LIMITS, "dtype", "stream")} | {
        "model": draft.model if draft.model in PACKAGED else OTHER,
        "model_name": "" if draft.model in PACKAGED else draft.model,
        "text": draft.text if draft.text in SOURCES else FILE,
        "path": "" if draft.text in SOURCES else draft.text,
        "layers": layers,
        "block": block,
        "own": draft.layers,
        "kind": "N:M" if grouped else "Ratio",
        "ratio": 0.7 if grouped else _ratio(draft.sparsity),
        "pattern": draft.sparsity if grouped else PATTERNS[0],
    }
    for name, value in values.items():
        st.session_state.setdefault(PREFIX + name, value)


def _ratio(sparsity: str) -> float:
    try:
        return parse_sparsity(sparsity).ratio
    except rose.RoseError:  # as typed for N:M
        return 0.7


def _key(name: str) -> dict[str, Any]:
    """A widget's key; hidden fields keep what was typed into them."""
    return {"key": PREFIX + name, "persist_state": "page"}


def _number(place: DeltaGenerator, name: str, **more: Any) -> Any:
    """A number of the set-up, within the limits that a link has to keep to as well."""
    label, least, most = LIMITS[name]
    return place.number_input(label, least, most, **more, **_key(name))


def _choose_model() -> tuple[str, str, bool]:
    left, right = st.columns([2, 1])
    name = left.selectbox(
        "Model",
        [*PACKAGED, OTHER],
        format_func=lambda name: "Hub id, folder or .gguf file" if name == OTHER else f"{name}, packaged",
        **_key("model"),
    )
    dtype = right.selectbox("Weights in", list(DTYPES), **_key("dtype"))
    if name == OTHER:
        name = st.text_input(
            "Hub id, folder or .gguf file",
            placeholder="meta-llama/Llama-3.2-1B, ~/models/mine or ~/models/mine.gguf",
            **_key("model_name"),
        )
        stream = st.toggle(
            "Leave the weights on disk",
            help="For models larger than memory, in safetensors files: one decoder block at a time is read. The "
            "numbers are the same. Pages that run the whole model do not work with it.",
            **_key("stream"),
        )
    else:
        stream = False
        st.caption(PACKAGED[name].description)
    return (name or "").strip(), dtype, stream


def _choose_calibration() -> dict[str, Any]:
    left, right = st.columns([3, 1])
    text = left.selectbox("Calibration text", list(SOURCES), format_func=SOURCES.__getitem__, **_key("text"))
    seed_number = _number(right, "seed", help="Which windows of the text are drawn.")
    if text == FILE:
        text = st.text_input("File", placeholder="~/texts/calibration.txt", **_key("path")).strip()
    one, two, three = st.columns(3)
    samples = _number(one, "samples", help="Windows of text that calibrate the pruning.")
    length = _number(two, "length")
    held_out = _number(three, "held_out", help="Not used for pruning; errors are measured on them too.")
    return {"text": text, "samples": samples, "length": length, "seed": seed_number, "held_out": held_out}


def _choose_pruning(model: str) -> dict[str, Any]:
    left, right = st.columns(2)
    layers = left.selectbox("Layers", list(LAYERS), format_func=LAYERS.__getitem__, **_key("layers"))
    with right:
        patterns = _choose_layers(layers, model)
    left, right = st.columns([1, 2])
    kind = left.segmented_control("Sparsity", ["Ratio", "N:M"], required=True, **_key("kind"))
    if kind == "Ratio":
        share = right.slider("Share of weights removed", 0.0, 1.0, step=0.05, **_key("ratio"))
        sparsity = f"{share:g}"
    else:
        typed = st.session_state[PREFIX + "pattern"]
        sparsity = right.selectbox(
            "N:M, N of every M neighbouring weights stay",
            PATTERNS if typed in PATTERNS else [*PATTERNS, typed],
            accept_new_options=True,
            help="Choose one or type another, such as 8:16.",
            **_key("pattern"),
        )
    left, right = st.columns(2)
    block_size = _number(left, "block_size", help="Columns that are pruned together.")
    damping = _number(
        right, "damping", step=0.01, format="%g", help="Added to the Hessian's diagonal, relative to its mean."
    )
    return {"layers": patterns, "sparsity": sparsity or "", "block_size": block_size, "damping": damping}


def _choose_layers(choice: str, model: str) -> str:
    if choice == "all":
        st.text_input("Names", "*", disabled=True, help="All linear layers inside the decoder blocks.")
        return "*"
    if choice == "own":
        said = 'Separated by spaces; * matches any part: "*.o_proj". Empty: all layers.'
        return st.text_input("Names", placeholder="* (all layers)", help=said, **_key("own")).strip() or "*"
    known = structure(model)
    if choice == "attention":
        patterns = preflight.attention_outputs(known)
        st.text_input("Names", patterns, disabled=True)
        return patterns
    prefix, count = ("*", 1) if known is None else (decoder_blocks(known)[0], len(decoder_blocks(known)[1]))
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
        problems()[model] = str(problem)
        return None


def problems() -> dict[str, str]:
    return st.session_state.setdefault("model_problems", {})


def describe(setup: Setup) -> str:
    """The set-up in one line: what few people change is named only where it is changed."""
    text = setup.text if setup.text in SOURCES else setup.text.rsplit("/", 1)[-1]
    model = setup.model if setup.model in PACKAGED else setup.model.rstrip("/").rsplit("/", 1)[-1]
    choice, block = preflight.layer_choice(setup.layers)
    layers = {"block": f"decoder block {block}", "own": setup.layers}.get(choice, LAYERS[choice].lower())
    unusual = [name for name in PHRASES if getattr(setup, name) != getattr(Setup(), name)]
    other = [PHRASES[name].format(getattr(setup, name)) for name in unusual]
    sizes = f"{text} {setup.samples} × {setup.length}"
    other += ["weights left on disk"] if setup.stream else []
    return ", ".join([model, layers, sizes, f"sparsity {setup.sparsity}", *other])
