"""The Prune page's choices: what is pruned, how it is evaluated, and what is kept."""

from __future__ import annotations

import streamlit as st

import rose
from app import session
from app.components import URL
from app.runs.request import HELD_OUT, Keep, PruneRequest
from app.study.setup import Setup
from rose.layer.methods import RECOMMENDED
from rose.model.load.tokens import SOURCES
from rose.model.measure import zero_shot

FILE = "a file"
PROMPT = "Python is a programming language that"
KEEP: dict[Keep, str] = {"nothing": "do not keep", "zip": "for download, .zip", "folder": "in a folder on this machine"}
TARGETS = {"dense": "dense: the dense model's output", "layer": "layer: its own output"}


def choose(setup: Setup) -> PruneRequest:
    st.caption(
        f"Copies of **{setup.model}**, calibrated on {setup.samples} × {setup.length} tokens of {setup.text}, seed "
        f"{setup.seed}, block size {setup.block_size}, damping {setup.damping:g}. Change these on the start page."
        + _columnar_above(session.threshold())
    )
    one, two, three = st.columns([3, 1, 1])
    methods = one.multiselect(
        "Methods",
        list(rose.METHODS),
        default=["sparsegpt", "rose", RECOMMENDED],
        format_func=lambda name: rose.METHODS[name].label,
        key="prune_methods",
        bind=URL,
        help=f"Each method prunes its own copy, one after another. Recommended: {rose.METHODS[RECOMMENDED].label}, "
        "whose models had the lowest perplexity of all that take at most twice SparseGPT's time, on the packaged model "
        "with dense targets.\n\n"
        + "\n".join(f"- **{method.label}**: {method.summary}" for method in rose.METHODS.values()),
    )
    sparsities = two.text_input(
        "Sparsities",
        placeholder=setup.sparsity,
        key="prune_sparsities",
        bind=URL,
        help='Ratios or N:M, separated by spaces: "0.5 0.7 2:4". Every method runs at each of them.',
    )
    layers = three.text_input(
        "Layers",
        placeholder=setup.layers,
        key="prune_layers",
        bind=URL,
        help='Names separated by spaces, * allowed: "*.o_proj". Empty: those of the set-up.',
    )
    text, windows, length = _evaluation(setup)
    prompt, new_tokens, keep, folder = _prompt_and_checkpoint()
    tasks, task_folder, questions = _tasks()
    one, two, three = st.columns([3, 2, 2], vertical_alignment="bottom")
    targets = one.pills(
        "Target",
        list(TARGETS),
        default=["dense"],
        selection_mode="multi",
        format_func=TARGETS.__getitem__,
        key="prune_targets",
        bind=URL,
        help="What each layer is fitted to. Dense: the dense model's output, so that the layer also compensates for "
        "the pruned layers before it. Layer: what its own dense weights give on the pruned inputs, as in the papers. "
        "Choose both to compare them.",
    )
    damping = two.number_input(
        "Damping of the correction",
        min_value=0.0,
        value=None,
        placeholder="automatic",
        key="prune_target_damping",
        bind=URL,
        disabled="dense" not in targets,
        help="μ, relative to the mean Hessian diagonal, where the target is the dense model. Few tokens need a large "
        "one, and so do many decoder blocks: a correction reads the noise of those before it. Automatic goes by both.",
    )
    true_sequential = three.toggle(
        "True-sequential",
        key="prune_true_sequential",
        bind=URL,
        disabled="layer" not in targets,
        help="Calibrates each layer after the layers before it in the same decoder block have been pruned. One forward "
        "pass per decoder block instead of two, but more memory. Always on with target dense.",
    )
    return PruneRequest(
        methods=tuple(dict.fromkeys(methods)),
        sparsities=_words(sparsities) or (setup.sparsity,),
        layers=layers.strip() or setup.layers,
        threshold=session.threshold(),
        true_sequential=true_sequential,
        evaluate=text,
        windows=windows,
        window_length=length,
        prompt=prompt,
        new_tokens=new_tokens,
        keep=keep,
        folder=folder,
        targets=tuple(name for name in TARGETS if name in targets),
        target_damping=damping,
        tasks=tasks,
        task_folder=task_folder,
        questions=questions,
    )


def _columnar_above(threshold: float) -> str:
    """Where the threshold on the Layers page is not the usual one, ROSE prunes differently."""
    if threshold == session.DEFAULT_THRESHOLD:
        return ""
    return f" Layers with a relative range above **{threshold:g}** are columnar, as chosen on the page Layers."


def _evaluation(setup: Setup) -> tuple[str, int, int]:
    one, two, three, four = st.columns([2, 2, 1, 1], vertical_alignment="bottom")
    text = one.selectbox(
        "Perplexity on",
        [HELD_OUT, *SOURCES, FILE],
        format_func=lambda name: "held-out windows of the calibration" if name == HELD_OUT else name,
        key="prune_text",
        bind=URL,
        help="Held-out windows come from the calibration text but are not used for pruning. Data sets use their test "
        "split. The packaged text has none: its first windows may overlap the calibration.",
    )
    path = two.text_input("Path of a .txt or .jsonl file", key="prune_path", bind=URL, disabled=text != FILE)
    windows = three.number_input(
        "Windows",
        min_value=1,
        value=None,
        placeholder=str(_default_windows(setup, text)),
        key="prune_windows",
        bind=URL,
    )
    length = four.number_input(
        "Tokens each", min_value=2, value=None, placeholder=str(setup.length), key="prune_length", bind=URL
    )
    return path if text == FILE else text, windows or _default_windows(setup, text), length or setup.length


def _default_windows(setup: Setup, text: str) -> int:
    return max(setup.held_out, 1) if text == HELD_OUT else 8


def _prompt_and_checkpoint() -> tuple[str, int, Keep, str]:
    one, two, three, four = st.columns([2, 1, 1, 2], vertical_alignment="bottom")
    prompt = one.text_input(
        "Prompt to continue",
        value=PROMPT,
        key="prune_prompt",
        bind=URL,
        help="Every model continues it, always with the most likely next token. Leave it empty to skip this.",
    )
    new_tokens = two.number_input("New tokens", min_value=1, max_value=500, value=30, key="prune_new_tokens", bind=URL)
    keep: Keep = three.selectbox(
        "Checkpoints",
        list(KEEP),
        format_func=KEEP.__getitem__,
        key="prune_keep",
        bind=URL,
        help="A .zip is kept until you prune again or the app is stopped; choose a folder to keep it.",
    )
    folder = four.text_input(
        "Folder on this machine",
        key="prune_folder",
        bind=URL,
        disabled=keep != "folder",
        help="Each checkpoint is a new folder in it, with its report.",
    )
    return prompt, new_tokens, keep, folder


def _tasks() -> tuple[tuple[str, ...], str, int]:
    """Zero-shot tasks, or a sentence on how to get them."""
    if not zero_shot.is_installed():
        st.caption("Zero-shot tasks need lm-eval, which is not installed; run `pip install -r requirements-eval.txt`.")
        return (), "", PruneRequest.questions
    one, two, three = st.columns([2, 1, 2], vertical_alignment="bottom")
    tasks = one.text_input(
        "Zero-shot tasks",
        key="prune_tasks",
        bind=URL,
        placeholder="none",
        help=f"Names of lm-eval's tasks, separated by spaces: {' '.join(zero_shot.TASKS)}. Every model answers them; "
        "their questions come from the Hub, unless they were loaded before.",
    )
    questions = two.number_input(
        "Questions each",
        min_value=1,
        value=PruneRequest.questions,
        key="prune_questions",
        bind=URL,
        help="The first so many of each task. With 100 of them the standard error is about 5 points.",
    )
    folder = three.text_input(
        "Folder of tasks of your own",
        key="prune_task_folder",
        bind=URL,
        help="Task definitions for lm-eval (.yaml), in place of its own: then nothing comes from the network.",
    )
    return _words(tasks), folder, questions


def _words(text: str) -> tuple[str, ...]:
    """What is separated by spaces or commas, each once."""
    return tuple(dict.fromkeys(text.replace(",", " ").split()))
