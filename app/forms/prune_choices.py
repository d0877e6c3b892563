"""The choices of Prune: what is pruned, how it is evaluated, and what is kept."""

from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import rose
from app import session
from app.forms.widgets import linked, spec_number, text_input
from app.runs.pruning import PROMPT, WINDOWS, Keep, PruneRequest
from app.study.setup import Setup, patterns_of
from rose.layer.pattern import BITS as GRID_BITS
from rose.layer.pattern import GROUP, GROUPS, METHOD, THRESHOLD, Grid, parse_grid
from rose.model.defaults import HELD_OUT, SOURCES
from rose.model.measure import zero_shot
from rose.model.settings import PruneSettings
from rose.recipe.steps import Prune

FILE = "a file"
KEEP: dict[Keep, str] = {
    "best": "of the best copy, in a temporary folder",
    "all": "of all copies, in a temporary folder",
    "folder": "of all copies, in a folder on this machine",
    "none": "none",
}
KEEP_HELP = (
    "Pruned models to keep, for download and for other pages. The best is the copy of the lowest perplexity at each "
    "sparsity. Temporary copies go when the app stops, or when later work needs their room."
)
AS_STORED = "stored"
BITS = {AS_STORED: "as they are", **{str(bits): f"{bits} bits" for bits in sorted(GRID_BITS, reverse=True)}}
TARGETS = {name: name for name in ("dense", "layer")}
FIELDS = Prune.fields()


def choose(setup: Setup) -> PruneRequest:
    threshold = session.threshold()
    if threshold != THRESHOLD:  # then ROSE prunes differently
        st.caption(f"Columnar: a relative range above **{threshold:g}**, as chosen on Explore.")
    methods_place, sparsities_place, layers_place = st.columns([4, 1, 1])
    methods = methods_place.multiselect(
        "Methods",
        list(rose.METHODS),
        default=["sparsegpt", "rose", METHOD],
        format_func=lambda name: rose.METHODS[name].label,
        **linked("prune_methods"),
        help=f"Recommended: {rose.METHODS[METHOD].label}, the lowest perplexity in at most twice "
        "SparseGPT's time (docs/results.md).\n\n"
        + "\n".join(f"- **{method.label}**: {method.summary}" for method in rose.METHODS.values()),
    )
    help_text = 'Ratios or N:M, separated by spaces: "0.5 0.7 2:4". Every method runs at each of them.'
    sparsities = text_input("Sparsities", "prune_sparsities", setup.sparsity, help_text, sparsities_place)
    layers = text_input("Layers", "prune_layers", setup.layers_text, None, layers_place)
    with st.expander("More", icon=":material/more_horiz:", key="prune-more"):
        settings = _evaluation(setup)
        settings["grids"], settings["targets"], walk = _weights()
        settings |= _tasks()
    return PruneRequest(
        methods=tuple(dict.fromkeys(methods)),
        sparsities=_names(sparsities) or (setup.sparsity,),
        shared=PruneSettings.of(layers=patterns_of(layers or setup.layers), threshold=threshold, **walk),
        window_length=setup.length,
        **settings,
    )


def _several(place: DeltaGenerator, label: str, options: dict[str, str], usual: str, key: str, help: str) -> list[str]:
    """The chosen options, in their order."""
    look: dict[str, Any] = {"format_func": options.__getitem__, "help": help}
    chosen = place.multiselect(label, list(options), default=[usual], **look, **linked(key))
    return [name for name in options if name in chosen]


def _evaluation(setup: Setup) -> dict[str, Any]:
    """Choices of the measurements on each copy, and of the folder for checkpoints."""
    first, second, third, fourth = st.columns([3, 1, 3, 3], vertical_alignment="bottom")
    text = first.selectbox(
        "Perplexity on",
        [HELD_OUT, *SOURCES, FILE],
        format_func=lambda name: "held-out windows of the calibration text" if name == HELD_OUT else name,
        **linked("prune_text"),
        help="Held-out windows come from the calibration text, and nothing else uses them. Data sets are from the "
        "Hub, and use their test split. Plain English is always measured besides.",
    )
    if text == FILE:
        text = text_input("A .txt or .jsonl file", "prune_path", "~/texts/evaluation.txt", None, first)
    look: dict[str, Any] = {"value": None, "placeholder": str(WINDOWS), "help": None}
    windows = spec_number(second, FIELDS["windows"], linked("prune_windows"), **look)
    prompt = third.text_input("Prompt to continue", value=PROMPT, **linked("prune_prompt"))
    keep = fourth.selectbox(
        "Checkpoints", list(KEEP), format_func=KEEP.__getitem__, help=KEEP_HELP, **linked("prune_keep")
    )
    is_folder = keep == "folder"
    folder = text_input("Folder on this machine", "prune_folder", "pruned/", None, fourth) if is_folder else ""
    return {"evaluate": text, "prompt": prompt, "windows": windows or WINDOWS, "keep": keep, "folder": folder}


def _weights() -> tuple[tuple[Grid | None, ...], tuple[str, ...], dict[str, Any]]:
    """The grids of kept weights, what each layer is fitted to, and further settings of that."""
    first, second, third, fourth = st.columns([3, 2, 2, 3], vertical_alignment="bottom")
    bits = _several(first, "Bits of kept weights", BITS, AS_STORED, "prune_bits", "Kept weights are rounded to a grid "
                    "with an exact zero, and later columns compensate for that too. Copies of different bits are not "
                    "ranked.")  # fmt: skip
    group = str(GROUP)
    if bits not in ([], [AS_STORED]):
        group = second.selectbox("Columns that share a scale", list(map(str, GROUPS)), 1, **linked("prune_group"))
    targets = _several(third, "Target", TARGETS, "dense", "prune_targets", "What each layer is fitted to. Dense: the "
                       "dense model's output, which also compensates for the losses of earlier layers. Layer: the "
                       "output of its own dense weights, as in the papers.")  # fmt: skip
    walk = dict[str, Any]()
    if "dense" in targets:
        look = {"value": None, "placeholder": "automatic", "label": "Damping of the correction, μ", "help": None}
        walk["target_damping"] = spec_number(fourth, FIELDS["target_damping"], linked("prune_target_damping"), **look)
    if "layer" in targets:  # dense targets always are true-sequential
        walk["true_sequential"] = fourth.toggle(
            "True-sequential",
            **linked("prune_true_sequential"),
            help="Calibrates each layer after those before it in the decoder block are pruned: one forward pass "
            "instead of two, more memory.",
        )
    grids = tuple(None if name == AS_STORED else parse_grid(name, group) for name in bits)
    return grids, tuple(targets), walk


def _tasks() -> dict[str, Any]:
    """Zero-shot tasks, or a sentence on how to get them."""
    if not zero_shot.is_installed():
        st.caption(zero_shot.MISSING)
        return {}
    help_text = f"Names of lm-eval's tasks, separated by spaces: {' '.join(zero_shot.TASKS)}. The first "
    help_text += f"{PruneRequest.questions} questions of each come from the Hub, unless they were loaded before."
    return {"tasks": _names(text_input("Zero-shot tasks", "prune_tasks", "none", help_text))}


def _names(text: str) -> tuple[str, ...]:
    """The words between spaces or commas, each once."""
    return tuple(dict.fromkeys(text.replace(",", " ").split()))
