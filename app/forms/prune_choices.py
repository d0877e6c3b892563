"""The Prune page's choices: what is pruned, how it is evaluated, and what is kept."""

from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import rose
from app import session, shared
from app.forms.widgets import linked, path_input
from app.runs.request import HELD_OUT, NEW_TOKENS, PROMPT, WINDOWS, Keep, PruneRequest
from app.study.setup import Setup
from rose.layer.defaults import BITS as GRID_BITS
from rose.layer.defaults import GROUPS, RECOMMENDED, THRESHOLD
from rose.model.defaults import SOURCES
from rose.model.measure import zero_shot

FILE = "a file"
KEEP: dict[Keep, str] = {
    "best": "of the best copy, until you prune again",
    "all": "of all copies, until you prune again",
    "folder": "of all copies, in a folder on this machine",
    "none": "none",
}
AS_STORED = "stored"
BITS = {AS_STORED: "as they are", **{str(bits): f"{bits} bits" for bits in sorted(GRID_BITS, reverse=True)}}
TARGETS = {"dense": "dense: the dense model's output", "layer": "layer: its own output"}


def choose(setup: Setup) -> PruneRequest:
    threshold = session.threshold()
    if threshold != THRESHOLD:  # then ROSE prunes differently
        st.caption(
            f"Columnar: a relative range (block-loss spread) above **{threshold:g}**, as chosen on the page Layers."
        )
    one, two, three = st.columns([4, 1, 1])
    methods = one.multiselect(
        "Methods",
        list(rose.METHODS),
        default=["sparsegpt", "rose", RECOMMENDED],
        format_func=lambda name: rose.METHODS[name].label,
        **linked("prune_methods"),
        help=f"Each method prunes its own copy, one after another. Recommended: {rose.METHODS[RECOMMENDED].label}, "
        "whose models had the lowest perplexity of all that take at most twice SparseGPT's time, on the packaged model "
        "with dense targets.\n\n"
        + "\n".join(f"- **{method.label}**: {method.summary}" for method in rose.METHODS.values()),
    )
    sparsities = two.text_input(
        "Sparsities",
        placeholder=setup.sparsity,
        **linked("prune_sparsities"),
        help='Ratios or N:M, separated by spaces: "0.5 0.7 2:4". Every method runs at each of them.',
    )
    layers = three.text_input(
        "Layers",
        placeholder=setup.layers,
        **linked("prune_layers"),
        help='Names separated by spaces, * allowed: "*.o_proj". Empty: those of the set-up.',
    )
    left, right = st.columns(2)
    with left:
        bits = _bits()
    with right:
        kept = _checkpoints()
    with st.expander("More", icon=":material/more_horiz:", key="prune-more"):
        more = {**_windows(setup), **_prompt(), **_tasks(), **_targets(), **_group(bits)}
    return PruneRequest(
        methods=tuple(dict.fromkeys(methods)),
        sparsities=_words(sparsities) or (setup.sparsity,),
        layers=layers.strip() or setup.layers,
        threshold=threshold,
        bits=bits,
        **kept,
        **more,
    )


def _text() -> str:
    text = st.selectbox(
        "Perplexity on",
        [HELD_OUT, *SOURCES, FILE],
        format_func=lambda name: "held-out windows of the calibration text" if name == HELD_OUT else name,
        **linked("prune_text"),
        help="Held-out windows come from the calibration text, and nothing else uses them. Data sets are from the "
        "Hub, and use their test split. The packaged text has none: its first windows may overlap the calibration.",
    )
    if text != FILE:
        return text
    return path_input("Path on this machine", "prune_path", "~/texts/evaluation.txt", "A .txt or .jsonl file.")


def _checkpoints() -> dict[str, Any]:
    keep = st.selectbox(
        "Checkpoints",
        list(KEEP),
        format_func=KEEP.__getitem__,
        **linked("prune_keep"),
        help="Pruned models to keep, for download and for the pages Your text and Check a checkpoint. The best is the "
        "recommended copy of each sparsity. Copies kept until you prune again are also deleted when the app stops, "
        f"or when {shared.KEPT_RUNS} later runs on this server keep theirs.",
    )
    if keep != "folder":
        return {"keep": keep}
    asked = "Each checkpoint is a new folder in it, with its report."
    return {"keep": keep, "folder": path_input("Folder on this machine", "prune_folder", "pruned/", asked)}


def _windows(setup: Setup) -> dict[str, Any]:
    first, one, two = st.columns([3, 1, 1], vertical_alignment="bottom")
    with first:
        text = _text()
    asked = "Number of windows of the text that perplexity is measured on. Only several windows can tell a difference "
    asked += "from chance."
    windows = one.number_input(
        "Windows", min_value=1, value=None, placeholder=str(WINDOWS), **linked("prune_windows"), help=asked
    )
    length = two.number_input(
        "Tokens each", min_value=2, value=None, placeholder=str(setup.length), **linked("prune_length")
    )
    return {"evaluate": text, "windows": windows or WINDOWS, "window_length": length or setup.length}


def _bits() -> tuple[int | None, ...]:
    bits = st.pills(
        "Bits of kept weights",
        list(BITS),
        default=[AS_STORED],
        selection_mode="multi",
        format_func=BITS.__getitem__,
        **linked("prune_bits"),
        help="Kept weights are rounded to a grid with an exact zero, and columns still to be pruned compensate for "
        "that too. Choose several to have a copy of each; copies of different bits are not ranked.",
    )
    return tuple(None if one == AS_STORED else int(one) for one in BITS if one in bits)


def _group(bits: tuple[int | None, ...]) -> dict[str, Any]:
    group = st.selectbox(
        "Columns that share a scale",
        [str(one) for one in GROUPS],
        index=1,
        **linked("prune_group"),
        disabled=bits in ((), (None,)),
        help="Consecutive input columns of a row. Each scale takes 16 bits, so that narrow groups take more room.",
    )
    return {"group": group}


def _prompt() -> dict[str, Any]:
    one, two = st.columns([3, 1], vertical_alignment="bottom")
    prompt = one.text_input(
        "Prompt to continue",
        value=PROMPT,
        **linked("prune_prompt"),
        help="Every model continues it, always with the most likely next token. Leave it empty to skip this.",
    )
    linked_tokens = linked("prune_new_tokens")
    new_tokens = two.number_input("New tokens", min_value=1, max_value=500, value=NEW_TOKENS, **linked_tokens)
    return {"prompt": prompt, "new_tokens": new_tokens}


def _targets() -> dict[str, Any]:
    one, two, three = st.columns([3, 2, 2], vertical_alignment="bottom")
    targets = one.pills(
        "Target",
        list(TARGETS),
        default=["dense"],
        selection_mode="multi",
        format_func=TARGETS.__getitem__,
        **linked("prune_targets"),
        help="What each layer is fitted to. Dense: the dense model's output, so that the layer also compensates for "
        "the pruned layers before it. Layer: what its own dense weights give on the pruned inputs, as in the papers. "
        "Choose both to compare them.",
    )
    damping = two.number_input(
        "Damping of the correction, μ",
        min_value=0.0,
        value=None,
        placeholder="automatic",
        **linked("prune_target_damping"),
        disabled="dense" not in targets,
        help="μ, relative to the mean Hessian diagonal, where the target is the dense model. Few tokens need a large "
        "one, and so do many decoder blocks, as a correction also fits the noise of those before it. Automatic goes by "
        "both.",
    )
    true_sequential = _true_sequential(three, is_asked="layer" in targets)
    known = tuple(name for name in TARGETS if name in targets)
    return {"targets": known, "target_damping": damping, "true_sequential": true_sequential}


def _true_sequential(place: DeltaGenerator, *, is_asked: bool) -> bool:
    """Whether target layer is; dense targets always are, so that with them alone there is nothing to ask."""
    shown: dict[str, Any] = {"value": True, "disabled": True, "key": "prune-always-sequential"}
    is_on = place.toggle(
        "True-sequential",
        **(linked("prune_true_sequential") if is_asked else shown),
        help="Calibrates each layer after the layers before it in the same decoder block have been pruned. One forward "
        "pass per decoder block instead of two, but more memory. Always on with target dense.",
    )
    return is_asked and is_on


def _tasks() -> dict[str, Any]:
    """Zero-shot tasks, or a sentence on how to get them."""
    if not zero_shot.is_installed():
        st.caption(zero_shot.MISSING)
        return {}
    one, two, three = st.columns([2, 1, 2], vertical_alignment="bottom")
    tasks = one.text_input(
        "Zero-shot tasks",
        **linked("prune_tasks"),
        placeholder="none",
        help=f"Names of lm-eval's tasks, separated by spaces: {' '.join(zero_shot.TASKS)}. Every model answers them; "
        "their questions come from the Hub, unless they were loaded before.",
    )
    questions = two.number_input(
        "Questions each",
        min_value=1,
        value=PruneRequest.questions,
        **linked("prune_questions"),
        help="The first so many of each task. With 100 of them the standard error is about 5 points.",
    )
    folder = three.text_input(
        "Folder of tasks of your own",
        key="prune-task-folder",  # in no link: what others wrote there would be run
        help="Task definitions for lm-eval (.yaml), in place of its own: then nothing comes from the network. Those "
        "that run Python code are refused.",
    )
    return {"tasks": _words(tasks), "task_folder": folder, "questions": questions}


def _words(text: str) -> tuple[str, ...]:
    """What is separated by spaces or commas, each once."""
    return tuple(dict.fromkeys(text.replace(",", " ").split()))
