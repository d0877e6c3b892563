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
from rose.diffusion.garments import GARMENTS
from rose.diffusion.steps import STEP_WEIGHTS, STEPS

SPARSITIES = ("0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "2:4")
VIEWS = {"pictures": "Pictures", "drift": "Drift by step", "weights": "Step weights", "layers": "Columnar layers"}


def draw() -> None:
    st.title("Diffusion: what does pruning do to a picture?")
    st.caption(
        "A packaged transformer of 1.8 million parameters draws garments from noise in "
        f"{STEPS} denoising steps. Its layers are pruned by the same methods as those of a language model; their "
        "Hessians are sums over the steps."
    )
    try:
        model = shared.dense_diffusion()
    except rose.RoseError as problem:
        components.error(problem, ":material/extension_off:")
        return
    request = choose()
    run: DiffusionRun | None = st.session_state.get("diffusion_run")
    offer(request, run)
    done = run if run is not None and run.job.status == "done" else None
    view = components.section(VIEWS, "diffusion_view", "Results")
    {"pictures": pictures, "drift": drift, "weights": weights, "layers": layers}[view](model, done, request)


def choose() -> DiffusionRequest:
    one, two, three, four = st.columns([2, 2, 2, 1])
    method = method_choice(one, DiffusionRequest.method, "diffusion_method")
    usual = DiffusionRequest.sparsity
    sparsity = two.select_slider("Sparsity", SPARSITIES, usual, key="diffusion_sparsity", bind=components.URL)
    alpha = three.selectbox(
        "Step weights",
        list(STEP_WEIGHTS),
        format_func=figures.weighting,
        **linked("diffusion_weights"),
        help="How much each denoising step counts in the Hessians. OBS-Diff lets early, noisy steps count more.",
    )
    noise = four.number_input("Noise", 0, 9999, 0, key="diffusion_noise", bind=components.URL, help="Seed.")
    return DiffusionRequest(method=method, sparsity=sparsity, step_weights=alpha, noise=int(noise))


def offer(request: DiffusionRequest, run: DiffusionRun | None) -> None:
    running, problem = session.sees_at_work(run), ""
    try:
        request.check()
    except rose.RoseError as wrong:
        problem = str(wrong)
    right = start_button(
        "Prune and draw",
        "diffusion-start",
        start,
        request,
        problem="" if running else problem,
        running=running,
        icon=":material/content_cut:",
    )
    if run is not None and run.job.status != "done":
        with right:
            follow(run, "diffusion", ". The dense model was not changed.", every=0.5)
    elif run is not None:
        again = "" if run.request == request else " Prune again to see your choice."
        right.caption(f"Shown: {label(run)}.{again}")
    elif not problem:
        right.caption(f"Calibrates on {request.samples} pictures × {STEPS} steps; takes a few seconds.")


def start(request: DiffusionRequest) -> None:
    run = DiffusionRun(request, shared.dense_diffusion())
    session.start_run("diffusion_run", run, "blur_on: Pruning the diffusion model")


def label(run: DiffusionRun) -> str:
    return (
        f"{rose.METHODS[run.request.method].label}, {run.request.sparsity}, "
        f"{figures.weighting(run.request.step_weights).lower()}, noise {run.request.noise}"
    )


def pictures(model: DenseModel, done: DiffusionRun | None, request: DiffusionRequest) -> None:
    with st.spinner(f"The dense model draws, in {STEPS} steps", show_time=True):
        dense = model.trajectory(request.noise if done is None else done.request.noise)
    step = st.slider(
        "Denoising steps done", 0, STEPS, STEPS, key="diffusion_step", bind=components.URL, help="0 is pure noise."
    )
    rows = {"Dense": at(dense, step)}
    if done is not None and done.pruned is not None:
        rows[f"{rose.METHODS[done.request.method].label} {done.request.sparsity}"] = at(done.pruned, step)
    drawing = figures.pictures(
        rows,
        GARMENTS[:PICTURES],
        step,
        time=dense.times[step] if step < STEPS else None,
        drift=None if done is None or done.drift is None else float(done.drift[step]),
        theme=session.theme(),
    )
    components.show(drawing, "diffusion-pictures", fill=(460, f"min({130 + 145 * len(rows)}px, {11 * len(rows)}vw)"))
    if done is None:
        st.info("The pruned model's pictures will appear below these, drawn from the same noise.")


def at(trajectory: rose.Trajectory, step: int) -> np.ndarray:
    """x after this many steps, (n, 28, 28)."""
    shown = trajectory.pictures if step == len(trajectory.states) else trajectory.states[step]
    return shown[:, 0].numpy()


def drift(_model: DenseModel, done: DiffusionRun | None, _request: DiffusionRequest) -> None:
    if done is None or done.drift is None or done.dense is None:
        st.info("Prune first: this shows how far the pruned model's pictures drift, step by step.")
        return
    drawing = figures.drift_curve(
        done.drift.tolist(),
        done.dense.times,
        method=done.request.method,
        marked=st.session_state.get("diffusion_step"),
        theme=session.theme(),
    )
    components.show(drawing, "diffusion-drift")


def weights(model: DenseModel, _done: DiffusionRun | None, request: DiffusionRequest) -> None:
    with st.spinner(f"The dense model draws, for the inputs of its layers at each of {STEPS} steps", show_time=True):
        diagonals = model.diagonals()
    layer = st.selectbox(
        "Layer", list(diagonals), key="diffusion_layer", bind=components.URL, format_func=words.short_layer
    )
    names = dict.fromkeys(["uniform", request.step_weights])
    if request.step_weights == "uniform":
        names = dict.fromkeys(STEP_WEIGHTS)
    drawing = figures.step_weighting(
        {name: rose.step_weights(name, STEPS) for name in names},
        diagonals[layer].numpy(),
        request.step_weights,
        layer=layer,
        theme=session.theme(),
    )
    components.show(drawing, "diffusion-weights")


def layers(_model: DenseModel, done: DiffusionRun | None, _request: DiffusionRequest) -> None:
    if done is None or done.report is None:
        st.info("Prune first: this shows which layers were columnar when they were pruned.")
        return
    table = done.report.layers
    threshold = float(done.report.summary["threshold"])
    st.markdown(
        f"**Columnar layers: {table['is_columnar'].sum()} of {len(table)}.** Their relative range (block-loss spread) "
        f"was above {threshold:.2f}."
    )
    drawing = maps.model_map(table, threshold=threshold, block="transformer block", theme=session.theme())
    components.show(drawing, "diffusion-map")
    components.cautions(done.report.remarks)
    summary = done.report.summary
    pruned, every = (words.whole(summary[name]) for name in ("weights", "denoiser_weights"))
    st.caption(
        f"Blocks are {summary['block_size']} columns wide, as is an attention head. Pruned: {pruned} of {every} "
        "weights; embeddings, modulation and the patch convolution stay dense."
    )


draw()
