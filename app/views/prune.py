"""Prune: what does the whole model lose?"""

from __future__ import annotations

import functools
from pathlib import Path

import pandas as pd
import streamlit as st

import rose
from app import components, session, shared, words
from app.figures import comparison, palette, style
from app.figures import prune as figures
from app.runs import finished, recipes
from app.runs.pruning import EvaluatedModel, PruningRun, accuracy_table, layer_table, model_table
from app.runs.request import HELD_OUT, Keep, PruneRequest, estimate, run_name
from app.runs.results import over_seeds, read_results, time_and_perplexity
from app.study.setup import Setup, weights_size
from rose.files import expand
from rose.layer.methods import RECOMMENDED
from rose.model.load.tokens import SOURCES
from rose.model.measure import zero_shot

FILE = "a file"
PROMPT = "Python is a programming language that"
KEEP: dict[Keep, str] = {"nothing": "do not keep", "zip": "for download, .zip", "folder": "in a folder on this machine"}
TARGETS = {"dense": "dense: the dense model's output", "layer": "layer: its own output"}
ERRORS = {  # on, against -> column
    ("calibration", "own output"): "relative_error",
    ("held-out", "own output"): "held_out_error",
    ("calibration", "dense model's output"): "target_error",
    ("held-out", "dense model's output"): "held_out_target_error",
}
SUMMARY, LAYERS, TEXTS, TASKS = "Perplexity", "Layers", "Texts", "Zero-shot"
DOWNLOADS, SEEDS = "Downloads", "Over seeds"
SECTIONS = {name: name for name in (SUMMARY, LAYERS, TEXTS, TASKS, DOWNLOADS, SEEDS)}


def draw() -> None:
    st.title("Prune: what does the whole model lose?")
    components.edited_setup()
    components.require_weights()
    setup, run = session.setup(), session.pruning()
    with st.expander(
        "What to prune, and how to evaluate it",
        expanded=run is None,
        icon=":material/tune:",
        key="prune-settings",
        on_change="rerun",
    ):
        request = _choose(setup)
        with st.popover("The same from a terminal and from Python", icon=":material/terminal:", key="prune-code"):
            st.code(recipes.command_lines(setup, request), language="bash", wrap_lines=True)
            st.code(recipes.python_code(setup, request), language="python", wrap_lines=True)
    _offer(setup, request, run)
    _others()
    if run is not None and run.job.status == "running":
        _wait(run)
    elif run is not None:
        _ended(run)
    view = components.section(SECTIONS, "prune_view", "Results")
    if view == SEEDS:
        _seeds()
    elif run is not None and run.dense is None and run.job.status != "running":
        st.info("This run ended before a model was evaluated, so there are no results.")
    elif run is None or run.dense is None:
        st.info("Results appear here as soon as the dense model and the first pruned copy have been evaluated.")
    else:
        pages = {SUMMARY: _summary, LAYERS: _layers, TEXTS: _texts, TASKS: _accuracies, DOWNLOADS: _downloads}
        pages[view](run, run.models)


# Choices


def _choose(setup: Setup) -> PruneRequest:
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
        bind="query-params",
        help=f"Each method prunes its own copy, one after another. Recommended: {rose.METHODS[RECOMMENDED].label}, "
        "whose models had the lowest perplexity of all that take at most twice SparseGPT's time, on the packaged model "
        "with dense targets.\n\n"
        + "\n".join(f"- **{method.label}**: {method.summary}" for method in rose.METHODS.values()),
    )
    sparsities = two.text_input(
        "Sparsities",
        placeholder=setup.sparsity,
        key="prune_sparsities",
        bind="query-params",
        help='Ratios or N:M, separated by spaces: "0.5 0.7 2:4". Every method runs at each of them.',
    )
    layers = three.text_input(
        "Layers",
        placeholder=setup.layers,
        key="prune_layers",
        bind="query-params",
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
        bind="query-params",
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
        bind="query-params",
        disabled="dense" not in targets,
        help="μ, relative to the mean Hessian diagonal, where the target is the dense model. Few tokens need a large "
        "one, and so do many decoder blocks: a correction reads the noise of those before it. Automatic goes by both.",
    )
    true_sequential = three.toggle(
        "True-sequential",
        key="prune_true_sequential",
        bind="query-params",
        disabled="layer" not in targets,
        help="Calibrates each layer after the layers before it in the same decoder block have been pruned. One forward "
        "pass per decoder block instead of two, but more memory. Always on with target dense.",
    )
    return PruneRequest(
        methods=tuple(dict.fromkeys(methods)),
        sparsities=tuple(dict.fromkeys(sparsities.replace(",", " ").split())) or (setup.sparsity,),
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
        bind="query-params",
        help="Held-out windows come from the calibration text but are not used for pruning. Data sets use their test "
        "split. The packaged text has none: its first windows may overlap the calibration.",
    )
    path = two.text_input("Path of a .txt or .jsonl file", key="prune_path", bind="query-params", disabled=text != FILE)
    windows = three.number_input(
        "Windows",
        min_value=1,
        value=None,
        placeholder=str(_default_windows(setup, text)),
        key="prune_windows",
        bind="query-params",
    )
    length = four.number_input(
        "Tokens each", min_value=2, value=None, placeholder=str(setup.length), key="prune_length", bind="query-params"
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
        bind="query-params",
        help="Every model continues it, always with the most likely next token. Leave it empty to skip this.",
    )
    new_tokens = two.number_input(
        "New tokens", min_value=1, max_value=500, value=30, key="prune_new_tokens", bind="query-params"
    )
    keep: Keep = three.selectbox(
        "Checkpoints",
        list(KEEP),
        format_func=KEEP.__getitem__,
        key="prune_keep",
        bind="query-params",
        help="A .zip is kept until you prune again, or until two minutes after this page is closed; choose a folder to "
        "keep it.",
    )
    folder = four.text_input(
        "Folder on this machine",
        key="prune_folder",
        bind="query-params",
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
        bind="query-params",
        placeholder="none",
        help=f"Names of lm-eval's tasks, separated by spaces: {' '.join(zero_shot.TASKS)}. Every model answers them; "
        "their questions come from the Hub, unless they were loaded before.",
    )
    questions = two.number_input(
        "Questions each",
        min_value=1,
        value=PruneRequest.questions,
        key="prune_questions",
        bind="query-params",
        help="The first so many of each task. With 100 of them the standard error is about 5 points.",
    )
    folder = three.text_input(
        "Folder of tasks of your own",
        key="prune_task_folder",
        bind="query-params",
        help="Task definitions for lm-eval (.yaml), in place of its own: then nothing comes from the network.",
    )
    return tuple(dict.fromkeys(tasks.replace(",", " ").split())), folder, questions


def _offer(setup: Setup, request: PruneRequest, run: PruningRun | None) -> None:
    """What the run would take, and the button; or a sentence that says what to fix."""
    try:
        skeleton = shared.skeleton(setup.model)
        request.check(setup, skeleton)
        cost = estimate(skeleton, setup, request)
        said = (
            f"{words.sentence(words.count(len(request.cases), 'copy', 'copies'))}, "
            f"{words.count(cost.layers, 'layer')} each: about {components.duration(max(1.0, cost.seconds))}; besides "
            f"the model {components.size(weights_size(cost, setup.dtype))} for one copy at a time and "
            f"{components.size(cost.memory)} for its calibration."
        )
        problem = ""
    except rose.RoseError as wrong:
        said, problem = "", str(wrong)
    own = session.own_pruning()
    if not problem and own is not run and own is not None and own.job.status == "running":
        problem = "Your own run goes on; go back to it below, under the other runs, to cancel it first."
    left, right = st.columns([1, 3], vertical_alignment="center")
    left.button(
        "Prune",
        type="primary",
        icon=":material/content_cut:",
        on_click=_start,
        args=(request,),
        disabled=bool(problem) or (run is not None and run.job.status == "running"),
        key="prune-start",
        width="stretch",
    )
    if problem:
        right.warning(problem, icon=":material/warning:")
    else:
        right.caption(said)


def _start(request: PruneRequest) -> None:
    st.session_state["prune-settings"] = False  # makes room for the results
    session.start_pruning(request)


# The run


def _others() -> None:
    """Buttons for the server's other runs: a run outlives the page that started it."""
    others = [
        (name, run)
        for name, run in list(shared.prunings().items())
        if run is not session.pruning() and (run.job.status == "running" or run.copies)
    ]
    if not others:
        return
    with st.expander(f"Other runs on this server ({len(others)})", icon=":material/history:"):
        for name, run in reversed(others):
            doing = f"{100 * run.fraction:.0f} % done" if run.job.status == "running" else run.job.status
            methods = ", ".join(rose.METHODS[method].label for method in run.request.methods)
            st.button(
                f"{run.setup.model}: {methods} at {', '.join(run.request.sparsities)}, {doing}",
                key=f"prune-run-{name}",
                on_click=session.follow_pruning,
                args=(name,),
                width="stretch",
            )


def _wait(run: PruningRun) -> None:
    finished = len(run.copies), run.dense is None

    def poll() -> None:
        run.job.watch(session.viewer())
        left = "" if run.remaining is None else f", about {components.duration(run.remaining)} left"
        st.progress(run.fraction, text=f"{run.job.message}. {components.duration(run.seconds)} so far{left}")
        pruned = list(run.pruned)
        if run.layers:
            drawing = figures.progress_timeline(_timeline(pruned), run.layers, theme=session.theme())
            label = f"This copy so far: {len(pruned)} of {run.layers} layers"
            with st.expander(label, key="prune-timeline", on_change="rerun") as shown:
                if shown.open:
                    components.show(drawing, "prune-timeline-figure", wide=True)
        components.cancel_button(run.job, "prune")
        # Last: a fragment that ends before it has drawn anything leaves a gap until the page is redrawn.
        if run.job.status != "running" or (len(run.copies), run.dense is None) != finished:
            st.rerun()  # what the page shows below has changed

    components.live(poll, 1.0)


def _timeline(pruned: list[dict[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(pruned, columns=["layer", "relative_error", "seconds"])


def _ended(run: PruningRun) -> None:
    finished = words.count(len(run.copies), "model")
    if run.job.status == "failed":
        st.error(run.job.message, icon=":material/error:")
        if run.copies:
            st.info(
                f"{words.sentence(finished)} finished before that; numbers and requested checkpoints are below.",
                icon=":material/inventory_2:",
            )
    elif run.job.status == "cancelled" and not run.copies:
        components.stopped(run.job, " before a copy was finished; temporary files are deleted.")
    elif run.job.status == "cancelled":
        kept = [str(model.checkpoint) for model in run.copies if run.request.keep == "folder"]
        components.stopped(
            run.job,
            f" after {finished}; the numbers of finished models are below, and temporary files are deleted."
            + (f" Written: {', '.join(kept)}." if kept else ""),
        )


# Results


def _summary(run: PruningRun, models: list[EvaluatedModel]) -> None:
    setup, request, table = run.setup, run.request, model_table(models)
    rows = [
        {
            "Model": model.label,
            "Perplexity": f"{model.perplexity:.2f}",
            "× dense": f"{row['ratio_to_dense']:.2f}",
            "Mean error, calibration": _error(row["mean_relative_error"]),
            "Mean error, held-out": _error(row["mean_held_out_error"]),
            "Against dense, held-out": _error(row["mean_held_out_target_error"]),
            "Drift": _error(row["drift"]),
            "Removed of these layers": words.percent(row["removed_fraction"], 2),
            "Pruning time": "–" if model.report is None else components.duration(row["seconds"]),
        }
        for model, (_, row) in zip(models, table.iterrows(), strict=True)
    ]
    st.table(pd.DataFrame(rows), hide_index=True, border="horizontal", alt="Perplexity and errors of every model")
    where = "held-out windows of the calibration text" if request.evaluate == HELD_OUT else request.evaluate
    st.caption(
        f"{setup.model}, {_pruned_part(run, models)}, calibrated on {setup.samples} × {setup.length} tokens of "
        f"{setup.text}, seed {setup.seed}. Perplexity on {request.windows} × {request.window_length} tokens of "
        f"{where}. Pruning time includes calibration.{_computed(models)}"
    )
    with st.expander("What the columns say", icon=":material/help:"):
        st.markdown(
            "- **Mean error**: relative, averaged over layers, on the inputs that each layer gets from the pruned "
            "blocks before it, against the output of its own dense weights.\n"
            "- **Against dense**: against the dense model's output, where that was the target. Layers that write into "
            "the residual stream then also aim at what the stream has lost, most of which their inputs cannot tell: "
            "an error near 1 is normal there.\n"
            "- **Drift**: how far the hidden states after the last pruned decoder block are from the dense model's, "
            "‖h_p − h_d‖²/‖h_d‖² as a mean over held-out tokens."
        )
    for remark in dict.fromkeys(said for model in models if model.report for said in model.report.remarks):
        st.caption(remark)
    if request.evaluate == HELD_OUT and "measured" in request.methods:
        st.caption("Measured order chose its order on these held-out windows, so its numbers are slightly optimistic.")
    dense, *pruned = models
    if any(model.report is not None and model.report.summary.get("drift") for model in pruned):
        label = "Depth: where these models drift from the dense one"
        st.page_link("views/depth.py", label=label, icon=":material/waterfall_chart:")
    if pruned:
        bars = table.iloc[1:].assign(run=[model.label for model in pruned])
        components.show(
            figures.perplexity_bars(
                bars, dense=dense.perplexity, losses=[model.losses for model in pruned], theme=session.theme()
            ),
            "perplexity",
            wide=True,
        )
        _time_and_perplexity(run, bars.assign(target=[model.target for model in pruned]))
        reports = [model.report for model in pruned if model.report is not None]
        components.report_button(lambda: [finished.run_of(report) for report in reports], "pruned", "prune-report")


def _pruned_part(run: PruningRun, models: list[EvaluatedModel]) -> str:
    """ "all 210 layers pruned", or which of them."""
    pruned = next((len(model.report.layers) for model in models if model.report is not None), 0)
    if not pruned:
        return "no copy is finished yet"
    if run.request.layers == "*":
        return f"all {words.count(pruned, 'layer')} pruned"
    return f"{words.count(pruned, 'layer')} pruned ({run.request.layers})"


def _computed(models: list[EvaluatedModel]) -> str:
    """What is to be said of forward passes that were not in float32."""
    rounded = any(model.report is not None and model.report.summary.get("compute") == "bfloat16" for model in models)
    return " Pruning computed its forward passes in bfloat16; perplexity is in float32." if rounded else ""


def _time_and_perplexity(run: PruningRun, table: pd.DataFrame) -> None:
    """What a method's lower perplexity costs, among copies of one sparsity."""
    several = {asked: asked for asked, rows in table.groupby("sparsity", sort=False) if len(rows) > 1}
    if not several or run.dense is None:
        return
    asked = components.choose("Sparsity", several, "prune_time_at") if len(several) > 1 else next(iter(several))
    rows = table[table["sparsity"] == asked]
    drawing = comparison.time_and_perplexity(rows, dense=run.dense.perplexity, theme=session.theme())
    components.show(drawing, "time-and-perplexity", wide=True)


def _error(value: float | None) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:.4f}"


def _layers(run: PruningRun, models: list[EvaluatedModel]) -> None:
    table = layer_table(models)
    if table.empty:
        st.info("Layers appear here as soon as the first copy is pruned.")
        return
    known = {pair: column for pair, column in ERRORS.items() if table[column].notna().any()}
    tokens, outputs = ({pair[place]: pair[place] for pair in known} for place in (0, 1))
    asked = {sparsity: sparsity for sparsity in table["asked"].unique()}
    aimed = {target: TARGETS[target] for target in table["target"].unique()}
    kinds = {"map": "every layer", "dumbbell": "largest differences"}
    with st.container(horizontal=True):
        sparsity = components.choose("Sparsity", asked, "prune_layers_at", width="content")
        target = components.choose("Target", aimed, "prune_layers_target", width="content")
        on = components.choose("Error on", tokens, "prune_layers_error", width="content")
        against = components.choose("Error against", outputs, "prune_layers_against", width="content")
        kind = components.choose("Show", kinds, "prune_layers_as", width="content")
    rows, column = table[(table["asked"] == sparsity) & (table["target"] == target)], known[on, against]
    if rows[column].isna().all():
        st.info("Errors against the dense model's output are measured only with that target; choose it above.")
        return
    labels = {method: palette.method_style(method).label for method in dict.fromkeys(rows["method"])}
    try:
        if kind == "map":
            ours = [method for method in labels if method != style.BASELINE]
            method = components.choose("Method", labels, "prune_map_method", default=(ours or list(labels))[0])
            drawing = figures.layer_map(
                rows, method, column=column, marked_layer=session.layer(), theme=session.theme()
            )
        else:
            drawing = figures.layer_differences(rows, column=column, theme=session.theme())
    except rose.RoseError as problem:
        st.info(str(problem))
        return
    components.show(drawing, "layer-errors", wide=True)


def _texts(run: PruningRun, models: list[EvaluatedModel]) -> None:
    if not run.request.prompt.strip():
        st.info("No prompt was given; enter one above and prune again.")
        return
    st.markdown("Continuations by the most likely next token. The prompt:")
    st.code(run.request.prompt, language=None, wrap_lines=True)
    for model in models:
        st.markdown(f"**{model.label}**, perplexity {model.perplexity:.2f}")
        st.code(model.text or "(nothing: the text ended)", language=None, wrap_lines=True)


def _accuracies(run: PruningRun, models: list[EvaluatedModel]) -> None:
    table = accuracy_table(models)
    if table.empty:
        st.info("No zero-shot tasks were asked for; name some above and prune again.")
        return
    components.show(figures.accuracy_bars(table, theme=session.theme()), "accuracies", wide=True)


def _downloads(run: PruningRun, models: list[EvaluatedModel]) -> None:
    pruned = models[1:]
    left, right = st.columns(2)
    left.download_button(
        "All models, CSV",
        model_table(models).to_csv(index=False),
        "models.csv",
        on_click="ignore",
        icon=":material/download:",
        width="stretch",
    )
    right.download_button(
        "All layers, CSV",
        lambda: layer_table(models).to_csv(index=False),
        "layers.csv",
        on_click="ignore",
        icon=":material/download:",
        width="stretch",
        disabled=not pruned,
    )
    for model in pruned:
        _download_one(model)


def _download_one(model: EvaluatedModel) -> None:
    assert model.report is not None
    name = run_name(model.method, model.sparsity, model.target)
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{model.label}**", width="stretch")
        st.download_button(
            "Report, JSON", model.report.to_json, f"{name}-report.json", on_click="ignore", key=f"{name}-report"
        )
        st.download_button(
            "Layers, CSV",
            model.report.layers.to_csv(index=False),
            f"{name}-layers.csv",
            on_click="ignore",
            key=f"{name}-layers",
        )
        if model.checkpoint is None:
            st.caption("checkpoint not kept")
        elif not model.checkpoint.exists():
            st.caption("checkpoint deleted")
        elif model.checkpoint.is_dir():
            st.caption(f"checkpoint in {model.checkpoint}")
        else:
            st.download_button(
                f"Checkpoint, {components.size(model.checkpoint.stat().st_size)}",
                functools.partial(Path.open, model.checkpoint, "rb"),  # read only for those who ask
                f"{name}.zip",
                on_click="ignore",
                key=f"{name}-checkpoint",
            )


def _seeds() -> None:
    one, two = st.columns(2)
    upload = one.file_uploader("Results of many runs, CSV", type="csv", key="prune-results")
    path = two.text_input(
        "or its path on this machine",
        key="prune_results_path",
        bind="query-params",
        help="rows.csv of `python -m rose compare`, or any CSV file with the columns method, sparsity, seed, "
        "perplexity, mean_held_out_error and seconds.",
    )
    if upload is None and not path.strip():
        st.info(
            "Perplexities after pruning vary by several per cent between calibration seeds. `python -m rose compare` "
            "runs methods over several seeds; open its rows.csv here to see means and spread."
        )
        return
    try:
        table = read_results(upload if upload is not None else str(expand(path.strip())))
    except rose.RoseError as problem:
        st.error(str(problem), icon=":material/error:")
        return
    left, right = st.columns(2)
    sparsities = list(dict.fromkeys(table["sparsity"]))
    with left:
        sparsity = components.choose("Sparsity", {one: one for one in sparsities}, "seeds_sparsity")
    with right:
        column = components.choose("Compare", comparison.MEASURES, "seeds_column")
    try:
        components.show(
            comparison.over_seeds_bars(table, sparsity, column=column, theme=session.theme()), "over-seeds", wide=True
        )
        components.show(
            comparison.time_and_perplexity(time_and_perplexity(table, sparsity), theme=session.theme()),
            "time-and-perplexity-over-seeds",
            wide=True,
        )
    except rose.RoseError as problem:
        st.info(str(problem))
    st.dataframe(over_seeds(table), hide_index=True, alt="Means and spread by method and sparsity")


draw()
