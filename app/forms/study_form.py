"""The set-up as widgets of the start page, and in one line."""

from typing import Any
from urllib.parse import urlsplit

import streamlit as st
from huggingface_hub import constants
from streamlit.delta_generator import DeltaGenerator
from torch import nn

import rose
from app import shared, words
from app.study import preflight
from app.study.setup import FIELDS, LARGEST, NUMBERS, Setup
from rose.model.defaults import STORED
from rose.model.load.models import DTYPES, is_hub_id, load_skeleton, read_as
from rose.model.load.tokens import DATASETS
from rose.model.network.layers import decoder_blocks
from rose.model.network.network import Network
from rose.model.network.precision import name_of
from rose.model.packaged import PACKAGED

HUB = urlsplit(constants.ENDPOINT).netloc
FILE = "file"
NAMES = {"wikitext2": "WikiText-2", "c4": "C4", "ptb": "Penn Treebank"}  # of data sets, for people
SOURCES = {
    "packaged": "Packaged English text, works offline",
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
PREFIX = "start_"  # of the keys of these widgets
PHRASES = {
    "dtype": "{}",
    "seed": "seed {}",
    "held_out": "{} held out",
    "block_size": "block size {}",
    "damping": "damping {:g}",
}  # of rarely changed fields


def choose(draft: Setup) -> dict[str, Any]:
    """The choices that most people change, in a row: model, sparsity and layers."""
    _seed(draft)
    left, middle, right = st.columns([3, 2, 3])
    with left:
        model = _choose_model()
    with middle:
        sparsity = choose_sparsity(PREFIX + "sparsity", draft.sparsity, persist_state="page")
    with right:
        choice = st.selectbox("Layers", list(LAYERS), format_func=LAYERS.__getitem__, **_key("layers"))
        layers = _choose_layers(choice, model)
    return {"model": model, "sparsity": sparsity, "layers": layers}


def choose_more(model: str) -> dict[str, Any]:
    """What fewer people change; fields that are hidden keep what they hold."""
    left, right = st.columns([3, 1])
    text = left.selectbox("Calibration text", list(SOURCES), format_func=SOURCES.__getitem__, **_key("text"))
    seed_number = _number(right, "seed", help="Which windows of the text are drawn.")
    if text == FILE:
        text = st.text_input("File", placeholder="~/texts/calibration.txt", **_key("path")).strip()
    left, middle, right = st.columns(3)
    samples = _number(left, "samples", help="Windows of text that calibrate the pruning.")
    length = _number(middle, "length")
    held_out = _number(right, "held_out", help="Not used for pruning; errors are measured on them too.")
    left, middle, right = st.columns(3)
    block_size = _number(left, "block_size", help="Columns that are pruned together.")
    help_text = "Added to the Hessian's diagonal, relative to its mean."
    damping = _number(middle, "damping", step=0.01, format="%g", help=help_text)
    dtype = right.selectbox("Number format of weights", list(DTYPES), **_key("dtype"))
    stream = model not in PACKAGED and st.toggle(
        "Leave the weights on disk",
        help="Reads one decoder block at a time, for safetensors files larger than memory. The numbers "
        "are the same. Pages that run the whole model do not work with it.",
        **_key("stream"),
    )
    calibration = {"text": text, "samples": samples, "length": length, "seed": seed_number, "held_out": held_out}
    return calibration | {"block_size": block_size, "damping": damping, "dtype": dtype, "stream": stream}


def choose_sparsity(key: str, current: str, **options: Any) -> str:
    """The sparsity of a set-up; `asked` is offered whatever it is."""
    return (
        st.selectbox(
            "Sparsity",
            SPARSITIES if current in SPARSITIES else [*SPARSITIES, current],
            accept_new_options=True,
            help="The share of weights removed, or N:M, where N of every M neighbouring weights stay. Choose one or "
            "type another, such as 0.55 or 8:16.",
            key=key,
            **options,
        )
        or ""
    )


def forget() -> None:
    for name in [name for name in st.session_state if str(name).startswith(PREFIX)]:
        del st.session_state[name]


def _seed(draft: Setup) -> None:
    """Gives the widgets that are not on screen yet the draft's values."""
    layers, block = preflight.layer_choice(draft.layers)
    values = {name: getattr(draft, name) for name in (*NUMBERS, "model", "sparsity", "dtype", "stream")} | {
        "text": draft.text if draft.text in SOURCES else FILE,
        "path": "" if draft.text in SOURCES else draft.text,
        "layers": layers,
        "block": block,
        "own": draft.layers,
    }
    for name, value in values.items():
        st.session_state.setdefault(PREFIX + name, value)


def _key(name: str) -> dict[str, Any]:
    """A widget's key; hidden fields keep what was typed into them."""
    return {"key": PREFIX + name, "persist_state": "page"}


def _number(place: DeltaGenerator, name: str, **options: Any) -> Any:
    """A number of the set-up, within the limits that a link has to keep to as well."""
    field = FIELDS[name]
    low, high = (field.limits.get(limit) for limit in ("ge", "le"))
    least, most = (None if limit is None else field.kind(min(limit, LARGEST)) for limit in (low, high))
    return place.number_input(field.label, least, most, **options, **_key(name))


def _choose_model() -> str:
    packaged, typed = list(PACKAGED), st.session_state[PREFIX + "model"]
    name = st.selectbox(
        "Model, or type a folder or Hub name",
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
    skeleton = structure((st.session_state[PREFIX + "model"] or "").strip())
    stored = None if skeleton is None else Network(skeleton).dtype
    st.session_state[PREFIX + "dtype"] = name_of(read_as(STORED, stored))


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


def say_hub(*setups: Setup) -> None:
    """A line beside the start button: the names that these runs ask the Hub for, if any."""
    if names := list(dict.fromkeys(name for setup in setups for name in preflight.asked_of_hub(setup))):
        notice = f"This asks {HUB} for {words.listing(names)}; what is not here yet is downloaded."
        st.caption(words.plain(notice))


def problems() -> dict[str, str]:
    return st.session_state.setdefault("model_problems", {})


def offer_to_find(model: str) -> None:
    """Buttons for a model that `structure` does not find: ask the Hub, or look again."""
    if is_hub_id(model):
        st.caption(f"Asking sends this name to {HUB}, which sends the model's configuration.")
        st.button("Ask the Hub", icon=":material/cloud_download:", on_click=_ask_hub, args=(model,))
    else:
        st.button("Try again", icon=":material/refresh:", on_click=_look_again, args=(model,))


def _look_again(model: str) -> None:
    problems().pop(model, None)
    st.session_state.pop("inspected", None)


def _ask_hub(model: str) -> None:
    """Downloads the model's configuration."""
    _look_again(model)
    try:
        load_skeleton(model)
    except rose.RoseError as problem:
        problems()[model] = str(problem)
    _read_as_stored()


def describe(setup: Setup) -> str:
    """The set-up in one line; rarely changed fields appear only if changed."""
    text = setup.text if setup.text in SOURCES else setup.text.rsplit("/", 1)[-1]
    model = setup.model if setup.model in PACKAGED else setup.model.rstrip("/").rsplit("/", 1)[-1]
    choice, block = preflight.layer_choice(setup.layers)
    layers = {"block": f"decoder block {block}", "own": setup.layers}.get(choice, LAYERS[choice].lower())
    unusual = [name for name in PHRASES if getattr(setup, name) != getattr(Setup(), name)]
    other = [PHRASES[name].format(getattr(setup, name)) for name in unusual]
    sizes = f"{text} {setup.samples} × {setup.length}"
    other += ["weights left on disk"] if setup.stream else []
    return ", ".join([model, layers, sizes, f"sparsity {setup.sparsity}", *other])
