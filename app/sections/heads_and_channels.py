"""Heads and channels: which can go?"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import streamlit as st

import rose
from app import components, session, shared, words
from app.components.work import follow
from app.figures import sensitivity as figures
from app.forms.widgets import attempt, linked, spec_number, start_button
from app.results.downloads import checkpoint_button, csv_button, file_button, menu
from app.runs import example
from app.runs.pruning import PROMPT
from app.runs.slimming import Slimming, estimate, recipe_of
from app.sections import copy_results
from app.study.setup import weights_size
from app.study.structures import Structures
from rose.recipe.steps import Slim
from rose.rows import with_cautions
from rose.structured.methods import STRUCTURED
from rose.structured.parts import CHANNELS, HEADS, Part
from rose.structured.settings import ALLOCATIONS, RATIO

HEAD_MAP, CHANNEL_CURVE, COPY = "Heads", "Channels", "A smaller copy"


def draw() -> None:
    views = {HEAD_MAP: _heads, CHANNEL_CURVE: _channels, COPY: _slim}
    view = components.section(list(views), "structures_view", "What is shown")
    try:
        views[view]()
    except rose.RoseError as problem:
        components.info(problem)


def _structures(kind: str) -> Structures | None:
    """The heads or channels of the current study; None, with a way to get them, where their inputs are not here.

    Raises RoseError where this model has no such parts, or none was measured.
    """
    study, setup = session.study(), session.setup()
    if study is not None and study.loaded is not None and study.job.status == "done":
        structures = Structures(study)
        if kind not in structures.kinds:
            noun = "heads" if kind == HEADS else "channels"
            raise rose.RoseError(f"The configuration of this model keeps all {noun}; see the other view.")
        if not structures.blocks(kind):
            missing = words.short_layer(structures.missing[0])
            raise rose.RoseError(f"{missing} was not measured; measure all layers on Explore.")
        return structures
    if study is not None and study.job.status == "running":  # its progress is beside the page
        components.while_running(study.job, lambda: None)
        return None
    components.offer_inputs(setup, "structures-collect")
    return None


def _are_priced(structures: Structures, parts: Sequence[Part], noun: str) -> bool:
    """Prices these parts in the background, once a person has asked for that; until then the example is shown."""
    seconds, signature = structures.pricing(parts), (structures.study.subject, noun)
    blocks = words.count(len({part.block_index for part in parts}), "decoder block")
    reason = f"Your set-up needs the cost of every {noun}{f' in {blocks}' if noun == 'head' else ''}."
    if seconds and not components.may_begin(
        max(seconds, components.UNASKED + 1), reason, "Compute it", "structures", signature
    ):
        return False
    pieces = [partial(structures.priced, part) for part in parts]
    return components.finished(pieces, "structures", signature, "part")


def _heads() -> None:
    block, _ = words.place_of(session.layer() or "")
    picture = st.container()  # above what an own set-up needs
    structures, table, per_group = _structures(HEADS), example.head_costs(), 3
    if structures is not None:
        parts = [part for (kind, _), part in structures.parts.items() if kind == HEADS]
        if _are_priced(structures, parts, "head"):
            table, per_group = structures.head_costs(), parts[0].shape.per_group
        else:
            structures = None
    with picture:
        if structures is None:
            components.example("heads and channels")
        components.show(figures.head_map(table, marked_block=block, theme=session.theme()), "structures-heads")
    if per_group > 1:
        st.caption(
            f"{words.sentence(words.count(per_group, 'query head'))} share one key-value head: whole groups go, or "
            "the same number of query heads from every group."
        )
    if structures is not None:
        components.cautions(structures.cautions())


def _channels() -> None:
    picture = st.container()
    structures, block, table = _structures(CHANNELS), 0, example.channel_costs()
    if structures is not None:
        blocks, (chosen, _) = structures.blocks(CHANNELS), words.place_of(session.layer() or "")
        index = blocks.index(chosen) if chosen in blocks else 0
        choice = st.selectbox("Decoder block", blocks, index, key="structures_block")
        if _are_priced(structures, [structures.parts[CHANNELS, choice]], f"channel of decoder block {choice}"):
            block, table = choice, structures.channel_costs(choice)
        else:
            structures = None
    count = len(table)
    if (st.session_state.get("structures_cut") or 0) >= count:  # of a model with more channels
        st.session_state.structures_cut = count // 4
    with picture:
        if structures is None:
            components.example("heads and channels")
        cut = st.slider("Channels to take out", 0, count - 1, count // 4, key="structures_cut", bind=components.URL)
        drawing = figures.channel_curve(table, cut, block=block, theme=session.theme())
        components.show(drawing, "structures-channels")


def _choose_slimming() -> tuple[Any, str, str]:
    """How a copy is made smaller, or why it cannot be; and the prompt that it continues."""
    first, second, third, fourth = st.columns([2, 2, 2, 3])
    help = "\n".join(f"- **{method.name}**: {method.summary}" for method in STRUCTURED.values())
    method = first.selectbox("Method", list(STRUCTURED), **linked("slim_method"), help=help)
    field, key = Slim.fields()["ratio"], linked("slim_ratio")
    ratio = spec_number(second, field, key, value=RATIO, step=0.05, label="Share to take out", help=None)
    help = "\n".join(f"- **{name}**: {text}" for name, text in ALLOCATIONS.items())
    is_depth = method == "depth"
    allocation = third.selectbox("Shapes", list(ALLOCATIONS), **linked("slim_allocation"), disabled=is_depth, help=help)
    prompt = fourth.text_input("Prompt to continue", value=PROMPT, **linked("slim_prompt"))
    shapes = "uniform" if is_depth else allocation  # whole decoder blocks leave none to choose
    if shapes != "uniform":
        components.warning(
            "The decoder blocks will differ in shape: rose.load_model reads the result, plain transformers does not."
        )
    chosen = {"method": method, "ratio": ratio, "allocation": shapes}
    return *attempt(partial(recipe_of, session.setup(), **chosen)), prompt


def _slim() -> None:
    setup = session.setup()
    run: Slimming | None = session.run_in("slimming")
    if run is not None and run.setup != setup:
        run = None
    request, problem, prompt = _choose_slimming()
    takes, cost = "", None
    if request is not None:
        cost, problem = attempt(lambda: estimate(setup, request, shared.skeleton(setup.model)))
    if cost is not None:
        memory = words.size(weights_size(cost, setup.dtype) + cost.memory)
        takes = f"About {components.lasting(cost)}, {memory} besides the model."
    make = partial(Slimming, setup, request, partial(shared.load, setup.model, setup.dtype), prompt=prompt)
    start_button(
        "Make a smaller copy", "slim-start", session.start_run, "slimming", make, "compress: Making it smaller",
        icon=":material/compress:",
        problem=problem, running=session.sees_at_work(run), takes=takes, asking=[setup],
        recipes=[request] if request else (),
    )  # fmt: skip
    if run is not None and run.job.status != "done":
        follow(run, "slim", "; nothing was changed.")
        return
    if run is None:
        components.example("a copy with a fifth of each decoder block taken out")
        _outcome(example.slimming())
        return
    _outcome(run)
    copy_results.tune(run, lambda: shared.skeleton(setup.model))


def _outcome(run: Slimming) -> None:
    """How perplexity moved, then a row a model; speed, texts and files."""
    dense, rows = run.models[0], []
    for sentences in run.perplexities():
        st.markdown(f"**{words.plain(sentences[0])}**")
        components.cautions(sentences[1:])
    for model in run.models:
        summary = model.summary
        perplexities = {
            name: words.number(summary[key])
            + ("" if model is dense else f", {words.times(summary[key] / dense.summary[key])}")
            for name, key in {"Perplexity": "perplexity_after", "elsewhere": "perplexity_second"}.items()
            if key in summary and key in dense.summary
        }
        rows.append(
            {
                "Model": model.name,
                **perplexities,
                "Parameters": words.whole(summary["kept_parameters"]),
                "Prompt tokens a second": words.whole(round(summary["tokens_per_second"])),
            }
        )
    components.table(rows, "The dense and the smaller model", key="slim-table")
    assert run.speedup is not None
    latest, setup = run.models[-1], run.setup
    st.caption(
        f"{run.speedup.says()} Perplexity: {setup.held_out} × {setup.length} held-out tokens; elsewhere: plain English."
    )
    components.cautions(latest.remarks)
    if run.prompt.strip():
        with st.expander("Texts", icon=":material/notes:", key="slim-texts"):
            for model in run.models:
                components.continued(f"**{words.plain(model.name)}**", model.summary)
    with menu("slim-downloads"):
        file_button("Record, JSON", latest.to_json, "report.json", key="slim-report")
        csv_button("Parts, CSV", with_cautions(latest.layers), "layers.csv", "slim-layers")
        if (place := run.kept(latest)) is not None:
            checkpoint_button(place)
