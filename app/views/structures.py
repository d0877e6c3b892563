"""Heads and channels: which can go?"""

from collections.abc import Sequence
from functools import partial

import streamlit as st
from torch import nn

import rose
from app import components, session, shared, words
from app.components.work import follow
from app.figures import savings as figures
from app.forms import study_form
from app.forms.widgets import start_button
from app.results import tune_panel
from app.results.downloads import checkpoint_button, csv_button, file_button
from app.runs.request import PROMPT
from app.runs.slimming import Slimming, estimate
from app.study.preflight import asked_of_hub
from app.study.setup import weights_size
from app.study.structures import Structures, collecting
from app.study.study import Study
from rose.recipe.parts import SlimSettings
from rose.rows import with_cautions
from rose.structured.allocation import head_shapes
from rose.structured.defaults import ALLOCATIONS
from rose.structured.parts import CHANNELS, HEADS, Part, Shape

RATIOS = [step / 20 for step in range(13)]


def draw() -> None:
    st.title("Heads and channels: which can go?")
    components.require_weights()
    study = components.require_study("Here you see what every head and every channel of a model costs")
    if study.job.status == "kept" and not asked_of_hub(study.setup):
        _ask_for_inputs(study)
        st.stop()
    components.begin_restored(study)
    if study.job.status == "running":
        ready = "the inputs of all layers are collected" if study.is_restored else "all layers are measured"
        components.info(f"Results appear here once {ready}.")
        components.wait_for(study, lambda: study.job.status != "running")
        st.stop()
    if study.loaded is None:
        st.info("The run ended before the model was loaded; start it again on the start page.")
        st.stop()
    try:
        known = Structures(study)
    except rose.RoseError as problem:
        components.info(problem)
        st.stop()
    view = components.section({name: name for name in VIEWS}, "structures_view", "What is shown")
    VIEWS[view](known)
    components.cautions(known.cautions())


def _ask_for_inputs(study: Study) -> None:
    seconds = collecting(study.setup, shared.skeleton(study.setup.model))
    st.info(
        "The cost of a head or channel is computed from the inputs of its layer. These layers were read from disk, "
        "which holds their numbers and no inputs."
    )
    st.button(
        f"Collect the inputs, about {words.duration(max(1.0, seconds))}",
        type="primary",
        icon=":material/input:",
        key="structures-collect",
        on_click=session.start,
    )


def _can_show(known: Structures, kind: str, tied: str) -> bool:
    """Whether there are parts of this kind to show; says `tied` where the model must keep them."""
    if kind not in known.kinds:
        components.info(tied)
    elif not known.blocks(kind):
        _ask_to_measure(known)
    return bool(known.blocks(kind))


def _ask_to_measure(known: Structures) -> None:
    first, *others = known.missing
    more = f", and {words.count(len(others), 'more layer')}" if others else ""
    components.info(f"This needs layers that were not measured: {words.short_layer(first)}{more}.")
    st.page_link(components.START_PAGE, label="Measure all layers", icon=":material/play_arrow:")


def _chosen_block(known: Structures, kind: str | None = None) -> int:
    block, _ = words.place_of(session.layer() or "")
    there = known.blocks(kind)
    return block if block in there else there[0]


def _block(known: Structures, kind: str | None = None) -> int:
    """A choice of decoder block; the chosen layer moves to it."""
    st.session_state.structures_block = _chosen_block(known, kind)

    def follow() -> None:
        old, new = session.layer() or "", st.session_state.structures_block
        place, _ = words.place_of(old)
        name = old.replace(f".{place}.", f".{new}.", 1)
        measured = next(part for (_, at), part in reversed(known.parts.items()) if at == new)
        session.choose_layer(name if name in known.study.layer_names else measured.output.name)

    return st.selectbox("Decoder block", known.blocks(kind), key="structures_block", on_change=follow)


def _are_priced(known: Structures, parts: Sequence[Part], what: str) -> bool:
    """Prices these parts in the background; what takes long waits for a press of the button."""
    seconds, asked = known.pricing(parts), (known.study.created, what)
    unit = "channel" if any(part.kind == CHANNELS for part in parts) else "head"
    blocks = words.count(len({part.block_index for part in parts}), "decoder block")
    says = f"{what} needs the cost of every {unit} in {blocks}."
    if not components.may_begin(seconds, says, "Compute it", "structures", asked):
        return False
    pieces = [partial(known.priced, part) for part in parts]
    return components.finished(pieces, "structures", asked, "part")


def _map(known: Structures) -> None:
    tied = (
        "This model's configuration ties the number of heads to their size, so heads must stay; channels can be "
        "removed."
    )
    if not _can_show(known, HEADS, tied):
        return
    parts = [part for (kind, _), part in known.parts.items() if kind == HEADS]
    if not _are_priced(known, parts, "This map"):
        return
    table = known.head_costs()
    drawn = figures.head_map(table, marked_block=_chosen_block(known, HEADS), theme=session.theme())
    components.show(drawn, "structures-heads")
    part = known.parts[HEADS, known.blocks(HEADS)[0]]
    if part.shape.per_group > 1:
        shared_by = words.sentence(words.count(part.shape.per_group, "query head"))
        st.caption(
            f"{shared_by} share one key-value head: remove whole groups, or the same number of query heads from every "
            "group."
        )


def _channels(known: Structures) -> None:
    if not _can_show(known, CHANNELS, "This model's MLP channels cannot be removed; heads can."):
        return
    block = _block(known, CHANNELS)
    if not _are_priced(known, [known.parts[CHANNELS, block]], "This curve"):
        return
    table = known.channel_costs(block)
    count = len(table)
    if (st.session_state.get("structures_cut") or 0) >= count:  # of a model with more channels
        st.session_state.structures_cut = count // 4
    cut = st.slider("Channels to take out", 0, count - 1, count // 4, key="structures_cut", bind=components.URL)
    drawn = figures.channel_curve(table, cut, block=block, theme=session.theme())
    components.show(drawn, "structures-channels")


def _head_shape(known: Structures, block: int) -> Shape:
    part = known.parts[HEADS, block]
    shapes = [shape for shape in head_shapes(part.shape) if shape != part.shape] or [part.shape]
    names = {shape: f"{shape.units} query heads on {shape.groups} key-value heads" for shape in shapes}
    return st.selectbox("Heads to keep", shapes, format_func=names.__getitem__, key="structures_shape")


def _swaps(known: Structures) -> None:
    if not _can_show(known, HEADS, "This model's heads cannot be removed, so there is nothing to swap."):
        return
    block = _block(known, HEADS)
    shape = _head_shape(known, block)
    found = known.study.remember(("swaps", block, shape), lambda: known.swapped(block, shape))
    labels = {"slimllm": "slimllm, by correlation", "obs": "obs, by exact cost"}
    rows = [
        {
            "Method": labels[one.method],
            "Kept at first": ", ".join(map(str, one.before)),
            "After swaps": ", ".join(map(str, one.after)),
            "Error at first": words.number(one.cost_before),
            "Error after": words.number(one.cost_after),
        }
        for one in found
    ]
    components.table(rows, "Heads kept before and after swaps")
    first, second = found
    changed = "keep the same heads" if first.after == second.after else "keep different heads"
    st.caption(
        f"The two methods {changed}. A swap puts a removed head back in place of a kept one where that improves the "
        f"method's own measure. Errors are relative, after least squares for both."
    )


def _recovery(known: Structures) -> None:
    if not known.parts:
        _ask_to_measure(known)
        return
    block = _block(known)
    labels = {HEADS: "Heads", CHANNELS: "Channels"}
    kinds = {name: labels[name] for name in known.kinds[::-1] if (name, block) in known.parts}
    if st.session_state.get("structures_recovery_of") not in (None, *kinds):
        del st.session_state["structures_recovery_of"]  # not measured in this decoder block
    kind = components.choose("Part", kinds, "structures_recovery_of")
    part = known.parts[kind, block]
    if kind == HEADS:
        shape = _head_shape(known, block)
        what = f"Attention of decoder block {block}, {shape.units} of {part.shape.units} query heads kept"
    else:
        share = st.slider("Channels to take out, %", 5, 80, 25, key="structures_recovery_cut", bind=components.URL)
        shape = Shape(1, max(1, round(part.shape.units * (1 - share / 100))))
        what = f"MLP of decoder block {block}, {shape.units} of {part.shape.units} channels kept"
    pieces = [partial(known.recovered, part, shape)]
    if not components.finished(pieces, "structures", (known.study.created, part.output.name, shape), "choice of units"):
        return
    drawn = figures.recovery_bars(known.recovered(part, shape), what=what, theme=session.theme())
    components.show(drawn, "structures-recovery")


def _trade_off(known: Structures) -> None:
    if known.missing:
        _ask_to_measure(known)
        return
    if not _are_priced(known, list(known.parts.values()), "The trade-off"):
        return
    try:
        table = known.study.remember("structures trade-off", lambda: known.trade_off(RATIOS))
    except rose.RoseError as problem:
        components.info(problem)
        return
    percent = st.slider("Take out, %", 0, 60, 20, step=5, key="structures_ratio", bind=components.URL)
    components.show(figures.trade_off(table, percent / 100, theme=session.theme()), "structures-trade")


def _choose_slimming(damping: float) -> tuple[SlimSettings, str]:
    """How a copy is made smaller, and the prompt that it continues."""
    one, two, three = st.columns(3)
    method = one.selectbox(
        "Method",
        list(rose.STRUCTURED),
        key="slim_method",
        bind=components.URL,
        help="\n".join(f"- **{entry.name}**: {entry.summary}" for entry in rose.STRUCTURED.values()),
    )
    percent = two.slider("Take out, %", 5, 60, 20, step=5, key="slim_ratio", bind=components.URL)
    allocation = three.selectbox(
        "Shapes",
        list(ALLOCATIONS),
        key="slim_allocation",
        bind=components.URL,
        disabled=method == "depth",
        help="\n".join(f"- **{name}**: {text}" for name, text in ALLOCATIONS.items()),
    )
    prompt = st.text_input("Prompt to continue", value=PROMPT, key="slim_prompt", bind=components.URL)
    shapes = "uniform" if method == "depth" else allocation  # whole decoder blocks leave none to choose
    if shapes != "uniform":
        st.warning(
            "The decoder blocks will differ in shape: rose.load_model reads the result, plain transformers does not.",
            icon=":material/warning:",
        )
    return SlimSettings.of(method=method, ratio=percent / 100, allocation=shapes, damping=damping), prompt


def _slim(known: Structures) -> None:
    study = known.study
    assert study.loaded is not None
    run: Slimming | None = st.session_state.get("slimming")
    if run is not None and run.setup != study.setup:
        run = None
    settings, prompt = _choose_slimming(study.setup.damping)
    model, problem, says = study.loaded.model, "", ""
    try:
        cost = study.remember(("slimming", settings), lambda: estimate(study.setup, settings, model))
        copied = words.size(weights_size(cost, study.setup.dtype))
        says = f"About {components.lasting(cost)}, with perplexity, text and speed of both models. Memory besides the "
        says += f"model: {copied} for the copy, {words.size(cost.memory)} for its calibration."
    except rose.RoseError as refused:
        problem = str(refused)
    right = start_button(
        "Make a smaller copy",
        "slim-start",
        _start,
        settings,
        prompt,
        problem=problem,
        running=session.sees_at_work(run),
        icon=":material/compress:",
    )
    if says:
        with right:
            st.caption(says)
            study_form.say_hub(study.setup)
    if run is None:
        st.info("Size, speed, perplexity and text of the smaller model appear here beside those of the dense one.")
    elif run.job.status == "done":
        _outcome(run, model)
    else:
        follow(run, "slim", "; nothing was changed.")


def _start(settings: SlimSettings, prompt: str) -> None:
    setup = session.setup()
    run = Slimming(setup, settings, lambda: shared.load(setup.model, setup.dtype), prompt=prompt)
    session.start_run("slimming", run, "compress: Making it smaller")


def _outcome(run: Slimming, model: nn.Module) -> None:
    dense, slim = (model.summary["kept_parameters"] for model in run.models[:2])
    rows = [
        {
            "Model": model.name,
            "Parameters": words.whole(model.summary["kept_parameters"]),
            "Perplexity, held-out": f"{model.perplexity:.2f}" if "perplexity_after" in model.summary else "–",
            "Prompt speed, tokens per second": words.whole(round(model.summary["tokens_per_second"])),
        }
        for model in run.models
    ]
    components.table(rows, "The dense and the smaller model")
    for moved, *odd in run.perplexities():
        st.markdown(words.plain(moved))
        components.cautions(odd)
    assert run.speedup is not None
    latest, setup = run.models[-1], run.setup
    windows = f"{setup.held_out} × {setup.length} held-out tokens; that of Prune is on others, so not comparable"
    st.caption(
        f"{words.percent(latest.summary['removed_fraction'])} of the decoder blocks' parameters are gone, "
        f"{words.percent(1 - slim / dense)} of the whole model's. "
        f"{run.speedup.says()}" + (f" Perplexity is on {windows}." if setup.held_out else "")
    )
    components.cautions(latest.remarks)
    if run.prompt.strip():
        for one in run.models:
            st.markdown(f"**{words.plain(one.name)}**")
            st.code(one.summary.get("continuation") or "(nothing: the text ended)", language=None, wrap_lines=True)
    with st.container(horizontal=True):
        file_button("Report, JSON", latest.to_json, "report.json", key="slim-report")
        csv_button("Parts, CSV", with_cautions(latest.layers), "layers.csv", "slim-layers")
        if (place := run.kept(latest)) is not None:
            checkpoint_button(place)
    tune_panel.draw(run, lambda: model)


VIEWS = {
    "Heads": _map,
    "Channels": _channels,
    "Swaps": _swaps,
    "Recovery": _recovery,
    "Trade-off": _trade_off,
    "Make it smaller": _slim,
}
draw()
