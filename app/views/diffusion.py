"""Diffusion: what does pruning do to a picture?"""

import numpy as np
import streamlit as st

import rose
from app import components, session, shared, words
from app.components.work import follow
from app.figures import drift as figures
from app.figures import maps
from app.forms.widgets import linked, method_choice, start_button
from app.runs.diffusion import PICTURES, DenseModel, DiffusionRequest, DiffusionRun
from rose.diffusion.evaluation import GARMENTS
from rose.diffusion.steps import STEP_WEIGHTS, STEPS

SPARSITIES = ("0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "2:4")
PICTURE, DRIFT, WEIGHTS, LAYERS = "Pictures", "Drift by step", "Step weights", "Columnar layers"


def draw() -> None:
    st.title("Diffusion: what does pruning do to a picture?")
    st.caption(
        "A packaged transformer of 1.8 million parameters draws garments from noise in "
        f"{STEPS} steps. Its layers are pruned like a language model's; Hessians are sums over the steps."
    )
    try:
        model = shared.dense_diffusion()
    except rose.RoseError as problem:
        components.error(problem, ":material/extension_off:")
        return
    request = _choose()
    run: DiffusionRun | None = st.session_state.get("diffusion_run")
    _offer(request, run)
    done = run if run is not None and run.job.status == "done" else None
    sections = [PICTURE, WEIGHTS] if done is None else [PICTURE, DRIFT, LAYERS, WEIGHTS]
    if st.session_state.get("diffusion_view") not in (None, *sections):
        st.session_state.pop("diffusion_view")
    view = components.section({name: name for name in sections}, "diffusion_view", "Results")
    if view == WEIGHTS:
        _weights(model, request)
    elif view == PICTURE or done is None:
        _pictures(model, done, request)
    else:
        {DRIFT: _drift, LAYERS: _layers}[view](done)


def _choose() -> DiffusionRequest:
    first, second, third, fourth = st.columns([2, 2, 2, 1])
    method = method_choice(first, DiffusionRequest.method, "diffusion_method")
    usual = DiffusionRequest.sparsity
    sparsity = second.select_slider("Sparsity", SPARSITIES, usual, **linked("diffusion_sparsity"))
    help = "How much each denoising step counts in the Hessians. OBS-Diff lets early, noisy steps count more."
    labels = {name: figures.weighting(name) for name in STEP_WEIGHTS}
    weights = third.selectbox(
        "Step weights", list(labels), format_func=labels.__getitem__, **linked("diffusion_weights"), help=help
    )
    noise = fourth.number_input("Noise", 0, 9999, 0, **linked("diffusion_noise"), help="Seed.")
    return DiffusionRequest(method=method, sparsity=sparsity, step_weights=weights, noise=int(noise))


def _offer(request: DiffusionRequest, run: DiffusionRun | None) -> None:
    running, problem, icon = session.sees_at_work(run), "", ":material/content_cut:"
    try:
        request.check()
    except rose.RoseError as refused:
        problem = "" if running else str(refused)
    right = start_button(
        "Prune and draw", "diffusion-start", _start, request, problem=problem, running=running, icon=icon
    )
    if run is not None and run.job.status != "done":
        with right:
            follow(run, "diffusion", ". The dense model was not changed.", every=0.5)
    elif run is not None:
        again = "" if run.request == request else " Prune again to see your choice."
        shown = run.request
        label = f"{rose.METHODS[shown.method].label}, {shown.sparsity}, {figures.weighting(shown.step_weights).lower()}"
        right.caption(f"Shown: {label}, noise {shown.noise}.{again}")
    elif not problem:
        right.caption(f"Calibrates on {request.samples} pictures × {STEPS} steps; takes a few seconds.")


def _start(request: DiffusionRequest) -> None:
    run = DiffusionRun(request, shared.dense_diffusion())
    session.start_run("diffusion_run", run, "blur_on: Pruning the diffusion model")


def _pictures(model: DenseModel, done: DiffusionRun | None, request: DiffusionRequest) -> None:
    with st.spinner(f"The dense model draws, in {STEPS} steps", show_time=True):
        dense = model.trajectory(request.noise if done is None else done.request.noise)
    step = st.slider("Denoising steps done", 0, STEPS, STEPS, **linked("diffusion_step"), help="0 is pure noise.")
    rows = {"Dense": _at(dense, step)}
    if done is not None and done.pruned is not None:
        rows[f"{rose.METHODS[done.request.method].label} {done.request.sparsity}"] = _at(done.pruned, step)
    drawing = figures.pictures(
        rows,
        GARMENTS[:PICTURES],
        step,
        time=dense.times[step] if step < STEPS else None,
        drift=None if done is None or done.drift is None else float(done.drift[step]),
        theme=session.theme(),
    )
    most = f"min({130 + 145 * len(rows)}px, {11 * len(rows)}vw)"
    components.show(drawing, "diffusion-pictures", fill=(460, most))


def _at(trajectory: rose.Trajectory, step: int) -> np.ndarray:
    """x after this step, (n, 28, 28)."""
    shown = trajectory.pictures if step == len(trajectory.states) else trajectory.states[step]
    return shown[:, 0].numpy()


def _drift(done: DiffusionRun) -> None:
    assert done.drift is not None
    assert done.dense is not None
    step, theme = st.session_state.get("diffusion_step"), session.theme()
    values, method = done.drift.tolist(), done.request.method
    drawing = figures.drift_curve(values, done.dense.times, method=method, marked=step, theme=theme)
    components.show(drawing, "diffusion-drift")


def _weights(model: DenseModel, request: DiffusionRequest) -> None:
    with st.spinner(f"The dense model draws, for the inputs of its layers at each of {STEPS} steps", show_time=True):
        diagonals = model.diagonals()
    layer = st.selectbox("Layer", list(diagonals), format_func=words.short_layer, **linked("diffusion_layer"))
    chosen, theme = request.step_weights, session.theme()
    names = STEP_WEIGHTS if chosen == "uniform" else ("uniform", chosen)
    weights = {name: rose.step_weights(name, STEPS) for name in names}
    drawing = figures.step_weighting(weights, diagonals[layer].numpy(), chosen, layer=layer, theme=theme)
    components.show(drawing, "diffusion-weights")


def _layers(done: DiffusionRun) -> None:
    assert done.report is not None
    table, summary = done.report.layers, done.report.summary
    threshold = float(summary["threshold"])
    st.markdown(f"**Columnar layers: {table['is_columnar'].sum()} of {len(table)}.**")
    drawing = maps.model_map(table, threshold=threshold, block="transformer block", theme=session.theme())
    components.show(drawing, "diffusion-map")
    components.cautions(done.report.remarks)
    pruned, every = (words.whole(summary[name]) for name in ("weights", "denoiser_weights"))
    st.caption(f"Pruned: {pruned} of {every} weights; embeddings, modulation and the patch convolution stay dense.")


draw()
