"""Diffusion: what does pruning do to a picture?"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import streamlit as st

import rose
from app import components, session, shared, words
from app.components.work import follow
from app.figures import drift as figures
from app.figures import maps
from app.forms.study_form import SPARSITIES, choose_sparsity
from app.forms.widgets import attempt, linked, method_choice, start_button
from app.runs import example
from app.runs.diffusion import PICTURES, DiffusionRun, recipe
from rose.diffusion.loading import GARMENTS
from rose.diffusion.steps import STEP_WEIGHTS, STEPS, step_weights
from rose.recipe.tools import DiffusePrune

COMPARED = 2  # earlier runs whose pictures stay beside the latest
FIELDS = DiffusePrune.fields()
PICTURE, DRIFT, WEIGHTS, LAYERS = "Pictures", "Drift by step", "Step weights", "Columnar layers"


def draw() -> None:
    st.title("Diffusion: what does pruning do to a picture?")
    chosen = _choose()
    request, problem = attempt(partial(recipe, **chosen))
    run: DiffusionRun | None = session.run_in("diffusion")
    _offer(request, problem, run)
    first = example.diffusion()
    finished = st.session_state.setdefault("diffusion_finished", {str(first.request): first})
    if run is not None and run.job.status == "done":
        finished[str(run.request)] = run
    for request_text in list(finished)[: -COMPARED - 1]:
        del finished[request_text]
    done = run if run is not None and run.job.status == "done" else example.diffusion()
    earlier = [ended for ended in finished.values() if ended is not done and ended.noise == done.noise]
    shown = done.request
    label = (
        f"{rose.METHODS[shown.method].label}, {shown.sparsity}, {figures.WEIGHTINGS[shown.step_weights].label.lower()}"
    )
    again = "" if shown == request else " Prune to see your choice."
    if done is run:
        st.caption(f"Shown: {label}, noise {done.noise}.{again}")
    else:
        components.example(label, ", in a packaged transformer that draws garments from noise in 20 steps")
    sections: dict[str, Callable[[DiffusionRun], None]] = {
        PICTURE: partial(_pictures, earlier[-COMPARED:]),
        DRIFT: _drift,
        LAYERS: _layers,
        WEIGHTS: partial(_weights, chosen["step_weights"]),
    }
    sections[components.section(list(sections), "diffusion_view", "Results")](done)


def _choose() -> dict[str, Any]:
    first, second, third = st.columns([2, 2, 1], vertical_alignment="bottom")
    popover = third.popover("More", icon=":material/tune:", help="Step weights and noise", width="stretch")
    method = method_choice(first, FIELDS["method"].default, "diffusion_method")
    with second:
        usual, key = FIELDS["sparsity"].default, "diffusion_sparsity"
        look = {"index": SPARSITIES.index(usual), "bind": components.URL}
        sparsity = choose_sparsity(key, st.session_state.get(key, usual), **look)
    help = "How much each denoising step counts in the Hessians. OBS-Diff lets early, noisy steps count more."
    labels = {name: figures.WEIGHTINGS[name].label for name in STEP_WEIGHTS}
    weights = popover.selectbox(
        "Step weights", list(labels), format_func=labels.__getitem__, **linked("diffusion_weights"), help=help
    )
    noise = popover.number_input("Noise", 0, 9999, 0, **linked("diffusion_noise"), help="Seed.")
    return {"method": method, "sparsity": sparsity, "step_weights": weights, "seed": int(noise) + 1}


def _offer(request: Any, problem: str, run: DiffusionRun | None) -> None:
    running = session.sees_at_work(run)
    takes = "One sweep takes some seconds; methods that refit or revise a mask take about a minute."
    is_over = run is None or run.job.status == "done"
    place = start_button(
        "Prune and draw", "diffusion-start", session.start_run, "diffusion",
        partial(DiffusionRun, request, shared.dense_diffusion), "blur_on: Pruning the diffusion model",
        problem="" if running else problem, running=running, takes=takes if is_over else "",
        icon=":material/content_cut:", recipes=[request] if request else (),
    )  # fmt: skip
    if run is not None:
        with place:
            follow(run, "diffusion", ". The dense model was not changed.", every=0.5)


def _pictures(earlier: Sequence[DiffusionRun], done: DiffusionRun) -> None:
    """Pictures of the dense model, of earlier runs from the same noise, and of the shown run."""
    assert done.dense is not None
    assert done.drift is not None
    step = st.slider("Denoising steps done", 0, STEPS, STEPS, **linked("diffusion_step"), help="0 is pure noise.")
    trajectories = {"Dense": done.dense}
    for run in (*earlier, done):
        weights = "" if run.request.step_weights == FIELDS["step_weights"].default else f", {run.request.step_weights}"
        assert run.pruned is not None
        trajectories[f"{rose.METHODS[run.request.method].label} {run.request.sparsity}{weights}"] = run.pruned
    rows = {
        name: (trajectory.states[step] if step < len(trajectory.states) else trajectory.pictures)[:, 0].numpy()
        for name, trajectory in trajectories.items()
    }
    drawing = figures.pictures(
        rows,
        GARMENTS[:PICTURES],
        step,
        time=done.dense.times[step] if step < STEPS else None,
        drift=float(done.drift[step]),
        theme=session.theme(),
    )
    components.show(drawing, "diffusion-pictures", fill=(460, "min(420px, 22vw)"))


def _drift(done: DiffusionRun) -> None:
    assert done.drift is not None
    assert done.dense is not None
    step, theme = st.session_state.get("diffusion_step"), session.theme()
    values, method = done.drift.tolist(), done.request.method
    drawing = figures.drift_curve(values, done.dense.times, method=method, marked=step, theme=theme)
    components.show(drawing, "diffusion-drift")


def _weights(chosen: str, _done: DiffusionRun) -> None:
    try:
        with st.spinner(f"The dense model draws, for its layers' inputs at each of {STEPS} steps", show_time=True):
            diagonals = shared.dense_diffusion().diagonals()
    except rose.RoseError as problem:
        components.error(problem, ":material/extension_off:")
        return
    layer = st.selectbox("Layer", list(diagonals), format_func=words.short_layer, **linked("diffusion_layer"))
    names = STEP_WEIGHTS if chosen == "uniform" else ("uniform", chosen)
    weights = {name: step_weights(name, STEPS) for name in names}
    drawing = figures.step_weighting(weights, diagonals[layer].numpy(), chosen, **components.look(layer))
    components.show(drawing, "diffusion-weights")


def _layers(done: DiffusionRun) -> None:
    assert done.report is not None
    table, summary = done.report.layers, done.report.summary
    threshold = float(summary["threshold"])
    drawing = maps.model_map(table, threshold=threshold, block="transformer block", theme=session.theme())
    components.show(drawing, "diffusion-map")
    components.cautions([remark for remark in done.report.remarks if "held out" not in remark])  # nothing ever is here
    pruned, every = (words.whole(summary[name]) for name in ("weights", "denoiser_weights"))
    sizes = table["rows"] * table["columns"]
    zeros = words.percent(float((table["sparsity"] * sizes).sum() / sizes.sum()), 0)
    st.caption(
        f"The {len(table)} pruned layers hold {pruned} of {every} weights, and {zeros} of these are zero. Embeddings, "
        "modulation and the patch convolution stay dense."
    )


draw()
