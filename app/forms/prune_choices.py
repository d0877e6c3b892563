"""The Prune page's choices: what is pruned, how it is evaluated, and what is kept."""

from typing import Any

import streamlit as st

import rose
from app import session, shared
from app.forms.widgets import linked, spec_number, text_input
from app.runs.pruning import HELD_OUT, PROMPT, WINDOWS, Keep, PruneRequest
from app.study.setup import Setup
from rose.layer.pattern import BITS as GRID_BITS
from rose.layer.pattern import GROUPS, RECOMMENDED, THRESHOLD
from rose.model.defaults import SOURCES
from rose.model.measure import zero_shot
from rose.recipe.steps import Prune

FILE = "a file"
KEEP: dict[Keep, str] = {
    "best": "of the best copy, until you prune again",
    "all": "of all copies, until you prune again",
    "folder": "of all copies, in a folder on this machine",
    "none": "none",
}
KEEP_HELP = (
    "Pruned models to keep, for download and for other pages. The best is the copy of the lowest perplexity at each "
    f"sparsity. Temporary copies go when the app stops, or after {shared.KEPT_RUNS} later runs."
)
AS_STORED = "stored"
BITS = {AS_STORED: "as they are", **{str(bits): f"{bits} bits" for bits in sorted(GRID_BITS, reverse=True)}}
TARGETS = {"dense": "dense: the dense model's output", "layer": "layer: its own output"}
FIELDS = Prune.fields()


def choose(setup: Setup) -> PruneRequest:
    threshold = session.threshold()
    if threshold != THRESHOLD:  # then ROSE prunes differently
        st.caption(f"Columnar: a relative range above **{threshold:g}**, as chosen on the page Layers.")
    methods_place, sparsities_place, layers_place = st.columns([4, 1, 1])
    methods = methods_place.multiselect(
        "Methods",
        list(rose.METHODS),
        default=["sparsegpt", "rose", RECOMMENDED],
        format_func=lambda name: rose.METHODS[name].label,
        **linked("prune_methods"),
        help=f"Each method prunes its own copy. Recommended: {rose.METHODS[RECOMMENDED].label}, the lowest perplexity "
        "in at most twice SparseGPT's time (docs/results.md).\n\n"
        + "\n".join(f"- **{method.label}**: {method.summary}" for method in rose.METHODS.values()),
    )
    help_text = 'Ratios or N:M, separated by spaces: "0.5 0.7 2:4". Every method runs at each of them.'
    sparsities = text_input("Sparsities", "prune_sparsities", setup.sparsity, help_text, sparsities_place)
    help_text = 'Names separated by spaces, * allowed: "*.o_proj". Empty: all of the set-up.'
    layers = text_input("Layers", "prune_layers", setup.layers, help_text, layers_place)
    with st.expander("More", icon=":material/more_horiz:", key="prune-more"):
        settings = {**_weights(), **_windows(setup), **_targets(), **_tasks()}
    return PruneRequest(
        methods=tuple(dict.fromkeys(methods)),
        sparsities=_names(sparsities) or (setup.sparsity,),
        layers=layers or setup.layers,
        threshold=threshold,
        **settings,
    )


def _pills(label: str, options: dict[str, str], usual: str, key: str, help: str) -> list[str]:
    """The chosen options, in their order."""
    look: dict[str, Any] = {"selection_mode": "multi", "format_func": options.__getitem__, "help": help}
    chosen = st.pills(label, list(options), default=[usual], **look, **linked(key))
    return [name for name in options if name in chosen]


def _weights() -> dict[str, Any]:
    """The grid of kept weights, and where checkpoints go."""
    left, right = st.columns(2)
    group = PruneRequest.group
    with left:
        bits = _pills("Bits of kept weights", BITS, AS_STORED, "prune_bits", "Kept weights are rounded to a grid with "
                      "an exact zero, and later columns compensate for that too. Copies of different bits are not "
                      "ranked.")  # fmt: skip
        if bits not in ([], [AS_STORED]):
            help_text = "Consecutive input columns of a row. Each scale takes 16 bits."
            group = st.selectbox(
                "Columns that share a scale", list(map(str, GROUPS)), 1, help=help_text, **linked("prune_group")
            )
    with right:
        look: dict[str, Any] = {"format_func": KEEP.__getitem__, "help": KEEP_HELP}
        keep = st.selectbox("Checkpoints", list(KEEP), **look, **linked("prune_keep"))
        help_text = "Each checkpoint is a new folder in it, with its report."
        is_folder = keep == "folder"
        folder = text_input("Folder on this machine", "prune_folder", "pruned/", help_text) if is_folder else ""
    stored = tuple(None if name == AS_STORED else int(name) for name in bits)
    return {"bits": stored, "group": group, "keep": keep, "folder": folder}


def _windows(setup: Setup) -> dict[str, Any]:
    first, second, third, fourth = st.columns([3, 1, 1, 3], vertical_alignment="bottom")
    text = first.selectbox(
        "Perplexity on",
        [HELD_OUT, *SOURCES, FILE],
        format_func=lambda name: "held-out windows of the calibration text" if name == HELD_OUT else name,
        **linked("prune_text"),
        help="Held-out windows come from the calibration text, and nothing else uses them. Data sets are from the "
        "Hub, and use their test split. Plain English is always measured besides.",
    )
    if text == FILE:
        label, example = "Path on this machine", "~/texts/evaluation.txt"
        text = text_input(label, "prune_path", example, "A .txt or .jsonl file.", first)
    windows = spec_number(second, FIELDS["windows"], linked("prune_windows"), value=None, placeholder=str(WINDOWS))
    look: dict[str, Any] = {"value": None, "label": "Tokens each", "placeholder": str(setup.length)}
    length = spec_number(third, FIELDS["length"], linked("prune_length"), **look)
    help_text = "Every model continues it by the most likely next token. Empty: skip this."
    prompt = fourth.text_input("Prompt to continue", value=PROMPT, **linked("prune_prompt"), help=help_text)
    sizes = {"windows": windows or WINDOWS, "window_length": length or setup.length}
    return {"evaluate": text, "prompt": prompt, **sizes}


def _targets() -> dict[str, Any]:
    first, second, third = st.columns([3, 2, 2], vertical_alignment="bottom")
    with first:
        targets = _pills("Target", TARGETS, "dense", "prune_targets", "What each layer is fitted to. Dense: the dense "
                         "model's output, which also makes good what pruned layers before it lost. Layer: the output "
                         "of its own dense weights, as in the papers.")  # fmt: skip
    damping, sequential = None, False
    if "dense" in targets:
        look = {"value": None, "placeholder": "automatic", "label": "Damping of the correction, μ"}
        damping = spec_number(second, FIELDS["target_damping"], linked("prune_target_damping"), **look)
    if "layer" in targets:  # dense targets always are true-sequential
        sequential = third.toggle(
            "True-sequential",
            **linked("prune_true_sequential"),
            help="Calibrates each layer after those before it in the decoder block are pruned: one forward pass "
            "instead of two, more memory.",
        )
    return {"targets": tuple(targets), "target_damping": damping, "true_sequential": sequential}


def _tasks() -> dict[str, Any]:
    """Zero-shot tasks, or a sentence on how to get them."""
    if not zero_shot.is_installed():
        st.caption(zero_shot.MISSING)
        return {}
    first, second, third = st.columns([2, 1, 2], vertical_alignment="bottom")
    help_text = f"Names of lm-eval's tasks, separated by spaces: {' '.join(zero_shot.TASKS)}. Their questions come "
    help_text += "from the Hub, unless they were loaded before."
    tasks = text_input("Zero-shot tasks", "prune_tasks", "none", help_text, first)
    if not tasks:
        return {}
    help_text = "The first questions of each task. With 100 of them the standard error is about 5 points."
    usual = PruneRequest.questions
    questions = second.number_input("Questions each", 1, value=usual, **linked("prune_questions"), help=help_text)
    folder = third.text_input(
        "Folder of tasks of your own",
        key="prune-task-folder",  # in no link: what others wrote there would be run
        help="Task definitions for lm-eval (.yaml), in place of its own: then nothing comes from the network. Tasks "
        "that run Python code are refused.",
    )
    return {"tasks": _names(tasks), "task_folder": folder, "questions": questions}


def _names(text: str) -> tuple[str, ...]:
    """The words between spaces or commas, each once."""
    return tuple(dict.fromkeys(text.replace(",", " ").split()))
