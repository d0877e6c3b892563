"""Learn: from a weight matrix to ROSE in ten steps, with live numbers. Works before any model is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable

import streamlit as st

import rose
from app import components, session, words
from app.components import URL
from app.figures import depth as depth_figures
from app.figures import learn as figures
from app.figures import losses, maps
from app.figures import order_lab as order_figures
from app.figures.race import race_animation, sweep_race
from app.figures.style import Drawing
from app.lab import sweeps
from app.lessons import chain, sizes, subjects, texts
from app.lessons import projector as keys
from app.lessons.subjects import LayerDesign, Subject
from app.lessons.texts import Lesson
from app.study.study import Study
from rose.layer.methods import BUDGETS

# Of text and stage, pixels: nothing below them moves from step to step, and on a screen of 1280 × 800 nothing is cut.
HEIGHT = 560
SPEEDS = {1.0: "1×", 0.5: "½×", 2.0: "2×", 4.0: "4×"}
SPLIT = (1, 1.55)
TICK = 1.2  # seconds a block is shown while a sweep plays at speed 1
LABELS = [f"{number} {title}" for number, title in enumerate(subjects.TITLES, 1)]
COLUMNAR = LayerDesign(strength=3.0)
FLAT = LayerDesign(strength=0.0, seed=10)  # with others chance may make a visible difference


def draw_lesson(lesson: Lesson) -> None:
    st.header(lesson.claim, anchor=False)
    for formula in lesson.formulas:
        st.latex(formula)
    st.markdown(lesson.text)


def draw(drawing: Drawing, key: str) -> None:
    if projector:
        drawing.figure.update_layout(hovermode=False)  # the pointer's place is not that of the enlarged figure
        keys.fit(f"learn-{key}", drawing.figure.layout.height)
    components.show(drawing, f"learn-{key}")


# Steps 1 to 4: the worked example


def steady(drawing: Drawing) -> Drawing:
    """Keeps the matrix at the same place in every step, with or without losses below it."""
    drawing.figure.update_layout(height=428, margin={"l": 110, "t": 100})
    drawing.figure.update_yaxes(range=[5.9, -0.6], automargin=False)
    return drawing


def example_stage(plan: rose.OrderPlan, *, losses: bool, mask: bool) -> Drawing:
    """The example in natural order; with its losses, the block that loses most is marked."""
    lost = plan.potential_loss > 0
    drawing = figures.number_matrix(
        plan.importance,
        plan.block_width,
        removed=lost if mask else None,
        column_loss=plan.column_loss if losses else None,
        block_loss=plan.block_loss if losses else None,
        marked_block=int(plan.block_loss.argmax()) if losses else None,
        finding=f"Block {int(plan.block_loss.argmax()) + 1} would lose most: {float(plan.block_loss.max()):.1f}"
        if losses
        else f"{int(lost.sum())} of {lost.numel()} weights would go"
        if mask
        else "",
        theme=session.theme(),
    )
    return steady(drawing)


def ordered_stage(plan: rose.OrderPlan) -> Drawing:
    """The example with its columns in two-level order."""
    order = plan.permutation
    columns = ", ".join(str(int(j) + 1) for j in order)
    drawing = figures.number_matrix(
        plan.importance[:, order],
        [plan.block_width[int(b)] for b in plan.block_order],
        removed=(plan.potential_loss > 0)[:, order],
        column_loss=plan.column_loss[order],
        block_loss=plan.block_loss[plan.block_order],
        columns=[int(j) for j in order],
        marked_block=0,
        finding=f"Pruned in the order {columns}",
        theme=session.theme(),
    )
    return steady(drawing)


def importance_step() -> None:
    plan = subjects.example()
    example_step(texts.importance_lesson(plan), example_stage(plan, losses=False, mask=False), "importance")


def pre_pruning_step() -> None:
    plan = subjects.example()
    example_step(texts.pre_pruning_lesson(plan), example_stage(plan, losses=False, mask=True), "pre-pruning")


def losses_step() -> None:
    plan = subjects.example()
    example_step(texts.loss_lesson(plan), example_stage(plan, losses=True, mask=True), "losses")


def example_step(lesson: Lesson, drawing: Drawing, key: str) -> None:
    left, stage = sides()
    with left:
        draw_lesson(lesson)
    with stage:
        draw(drawing, key)


def order_step() -> None:
    """Predict, then reveal."""
    plan = subjects.example()
    left, stage = sides()
    revealed = bool(st.session_state.get("lesson_revealed"))
    with left:
        guess = st.session_state.get("lesson_guess")
        draw_lesson(texts.order_lesson(plan, guess if revealed else None))
        if not revealed:
            blocks = range(len(plan.block_width))
            guess = st.pills("Your guess", blocks, format_func=lambda b: f"Block {b + 1}", key="lesson_guess")
            st.button(
                "Reveal",
                type="primary",
                disabled=guess is None,
                key="lesson-reveal",
                on_click=keep_guess,
                args=(guess,),
            )
        else:
            st.button("Guess again", icon=":material/replay:", key="lesson-again", on_click=forget_guess)
    with stage:
        draw(ordered_stage(plan) if revealed else example_stage(plan, losses=False, mask=True), "order")


def keep_guess(guess: int) -> None:
    # Assigned by hand: the widget that made the guess is gone on the next run, and its value with it.
    st.session_state.lesson_guess = guess
    st.session_state.lesson_revealed = True


def forget_guess() -> None:
    st.session_state.lesson_guess = None
    st.session_state.lesson_revealed = False


# Steps 5 and 6: sweeps on a real layer


def real_layer(columnar: bool) -> tuple[Study, str] | None:
    """The measured layer to show, if there is one that can be recorded: see `subjects.examples`.

    Its inputs may have to be collected first.
    """
    study = session.study()
    found = subjects.examples(study, session.threshold()) if study is not None else None
    if study is None or found is None:
        return None
    layer = found[0] if columnar else found[1]
    is_small = not study.has(layer) or sweeps.trace_bytes(study, layer) <= sweeps.LARGEST_TRACE
    return (study, layer) if is_small else None


def choose_subject(columnar: bool, note: st.delta_generator.DeltaGenerator) -> tuple[Study, str] | None:
    """A measured layer where the user asks for one; None for the generated one, which is the same for every class.

    `note` takes what is to be said while the measured one is not there yet.
    """
    measured = real_layer(columnar)
    if measured is None:
        st.caption("A generated layer. Once a model is measured, you can choose a real one.")
        return None
    kinds = {"generated": "Generated layer", "real": "Real layer"}
    if components.section(kinds, "lesson_kind", "Layer") != "real":
        return None
    study, layer = measured
    if study.has(layer):
        return measured
    with note:
        if components.can_have_inputs(study):
            st.info(
                f"{words.short_layer(layer)} appears as soon as its inputs are collected; until then a generated layer "
                "is shown."
            )
            components.wait_for(study, lambda: study.has(layer), shown=False)
    return None


def subject_of(chosen: tuple[Study, str] | None, design: LayerDesign) -> Subject:
    return subjects.generated(design) if chosen is None else subjects.real(*chosen, session.threshold())


def where_from(chosen: tuple[Study, str] | None, columnar: bool, plan: rose.OrderPlan) -> None:
    """Says which real layer the stage shows."""
    if chosen is None:
        return
    study, layer = chosen
    measured = study.records()["layer"].nunique()
    word = f"{'highest' if columnar else 'lowest'} relative range"
    if columnar and plan.is_columnar and subjects.blocks_move(plan):
        word += " of a columnar layer whose blocks change places"
    st.caption(
        f"**{words.short_layer(layer)}** of {study.setup.model}: the {word}, {plan.relative_range:.2f}, of "
        f"{words.count(measured, 'measured layer')}."
    )


def sweep_step(columnar: bool) -> None:
    """Two sweeps, block by block; the result is told only after the user has seen the end."""
    left, stage = sides()
    with left:
        note, text = st.container(), st.container()
        chosen = choose_subject(columnar, note)
    subject = subject_of(chosen, COLUMNAR if columnar else FLAT)
    orders = ("natural", "two_level")
    with stage:
        pieces = [lambda order=order: subject.prune(order, "block", True) for order in orders]
        signature = (subject.name, chosen[0].created if chosen else None)
        if not components.finished(pieces, f"learn-sweeps-{columnar}", signature):
            return
    natural, ordered = (subject.prune(order, "block", True) for order in orders)
    blocks = len(natural.order.widths)
    step = played_step(blocks)
    seen = (subject.name, columnar)
    if step == blocks:
        st.session_state.lesson_ended = seen
    ended = st.session_state.get("lesson_ended") == seen
    with text:
        draw_lesson(texts.sweep_lesson(subject, natural, ordered, step, ended, st.session_state.get("lesson_bet")))
        if not ended:
            st.pills(
                "Your guess, before you play", list(texts.BETS), format_func=texts.BETS.__getitem__, key="lesson_bet"
            )
    with left:
        where_from(chosen, columnar, subject.plan)
    with stage:
        name = subject.name if chosen is None else words.short_layer(subject.name)
        play_controls(blocks, (natural, ordered), subject.energy, name)
        theme = session.theme()
        race = sweep_race((natural, ordered), step, subject.energy, layer=name, height=376, show_end=ended, theme=theme)
        draw(race, "race")


def played_step(blocks: int) -> int:
    """The step to show now; one more where the sweep plays and the tick has passed."""
    state = st.session_state
    step = min(state.get("lesson_at", linked_step()), blocks)
    if playing() and time.monotonic() - state.lesson_ticked >= 0.8 * tick():
        step, state.lesson_ticked = min(step + 1, blocks), time.monotonic()
        if step == blocks:
            state.lesson_playing = False
    state.lesson_at = state.lesson_step = step
    return step


def linked_step() -> int:
    """The step that a link asks for; the widget that is bound to it is drawn only after the step has been used."""
    text = st.query_params.get("lesson_step", "0")
    return int(text) if text.isdecimal() else 0


def playing() -> bool:
    return bool(st.session_state.get("lesson_playing"))


def tick() -> float:
    """Seconds a block is shown at the chosen speed."""
    return TICK / (st.session_state.get("lesson_speed") or 1.0)


def play(blocks: int) -> None:
    state = st.session_state
    state.lesson_playing, state.lesson_ticked = not playing(), 0.0 if playing() else time.monotonic()
    if playing() and state.get("lesson_at", 0) >= blocks:
        state.lesson_at = 0


def moved() -> None:
    """The slider has been moved by hand, which ends the play, or a busy browser repeats what it showed a moment ago."""
    state = st.session_state
    is_recent = time.monotonic() - state.get("lesson_ticked", 0.0) < 5 * TICK
    if not (is_recent and state.lesson_at - 3 < state.lesson_step < state.lesson_at):
        state.lesson_playing, state.lesson_at = False, state.lesson_step


def go(by: int, blocks: int) -> None:
    state = st.session_state
    state.lesson_playing, state.lesson_at = False, min(max(state.lesson_at + by, 0), blocks)


def play_controls(blocks: int, results: tuple[rose.LayerResult, rose.LayerResult], energy: float, name: str) -> None:
    """Play and pause, one block back or forward, position, speed, and the whole sweep as a file."""
    start, back, forth, where, speed, file = st.columns([2.1, 0.8, 0.8, 2.6, 1.5, 0.8], vertical_alignment="bottom")
    step = st.session_state.lesson_at
    icon = ":material/pause:" if playing() else ":material/play_arrow:"
    start.button(
        "Pause" if playing() else "Play", icon=icon, key="lesson-play", on_click=play, args=(blocks,), width="stretch"
    )
    back.button(
        ":material/chevron_left:", key="lesson-back", help="One block back", on_click=go, args=(-1, blocks),
        disabled=step == 0, width="stretch",
    )  # fmt: skip
    forth.button(
        ":material/chevron_right:", key="lesson-forth", help="One block forward", on_click=go, args=(1, blocks),
        disabled=step == blocks, width="stretch",
    )  # fmt: skip
    where.slider("Blocks pruned", 0, blocks, key="lesson_step", on_change=moved, bind=URL)
    speed.selectbox("Speed", list(SPEEDS), format_func=SPEEDS.__getitem__, key="lesson_speed")
    theme = session.theme()
    file.download_button(
        ":material/download:",
        lambda: components.as_html(race_animation(results, energy, layer=name, theme=theme)),
        "sweep.html",
        on_click="ignore",
        key="lesson-animation",
        help="The whole sweep as one HTML file that plays in any browser, without a network",
        width="stretch",
    )


# Step 7: a generated layer


def strength_step() -> None:
    left, stage = sides()
    with left:
        text = st.container()
        design = choose_design()
    here = subjects.generated(design)
    points = subjects.strengths(design, subjects.STRENGTHS)
    with text:
        draw_lesson(texts.strength_lesson(design, points, here))
    with stage:
        views = {"gain": "Gain by strength", "weights": "Weights", "loss": "Block loss"}
        view = components.section(views, "lesson_view", "Stage")
        theme = session.theme()
        if view == "gain":
            threshold = here.plan.threshold
            drawing = figures.strength_curve(points, threshold=threshold, marked=design.strength, theme=theme)
        elif view == "weights":
            weight, _ = subjects.generate(design)
            drawing = maps.weight_map(
                weight, widths=here.plan.block_width, marked_block=design.strong_block, layer=here.name, theme=theme
            )
        else:
            drawing = losses.block_loss_bars(here.plan, marked_block=design.strong_block, layer=here.name, theme=theme)
        drawing.figure.update_layout(height=372)
        draw(drawing, "strength")


def choose_design() -> LayerDesign:
    strength = st.slider("Strength of one block", 0.0, 4.0, 2.0, 0.25, key="lesson_strength", bind=URL)
    first, second = st.columns(2)
    blocks = first.slider("Blocks", 3, 8, 6, key="lesson_blocks", bind=URL)
    place = second.slider(
        "Which block", 0, 7, 5, key="lesson_place", bind=URL, help="The last block if there are fewer"
    )
    with st.popover("Rows and seed", icon=":material/tune:"):
        rows = st.slider("Rows", 16, 96, 64, 16, key="lesson_rows", bind=URL)
        seed = st.number_input("Seed", 0, 9999, 0, key="lesson_seed", bind=URL)
    return LayerDesign(rows, blocks, strength, place, seed)


# Step 8: two effects


def effects_step() -> None:
    left, stage = sides()
    with left:
        note, text = st.container(), st.container()
        chosen = choose_subject(True, note)
    subject = subject_of(chosen, COLUMNAR)
    with stage:
        pairs = [(order, budget) for order in subjects.SEPARATED for budget in BUDGETS]
        pieces = [lambda pair=pair: subject.prune(pair[0], pair[1], False) for pair in pairs]
        signature = (subject.name, chosen[0].created if chosen else None)
        if not components.finished(pieces, "learn-effects", signature):
            return
        errors = {pair: subject.prune(pair[0], pair[1], False).relative_error for pair in pairs}
        table = subjects.error_table(errors)
        name = subject.name if chosen is None else words.short_layer(subject.name)
        draw(order_figures.order_budget_matrix(table, layer=name, theme=session.theme()), "effects")
    with text:
        draw_lesson(texts.effects_lesson(subject, errors))
    with left:
        where_from(chosen, True, subject.plan)


# Step 9: from layer to layer


def depth_step() -> None:
    left, stage = sides()
    with left:
        text = st.container()
        first, second = st.columns(2)
    sparsity = first.slider("Sparsity", 0.3, 0.9, 0.7, 0.1, key="lesson_chain_sparsity", bind=URL)
    tokens = second.select_slider("Tokens", (64, 128, 256, 512, 2048, 8192), 2048, key="lesson_chain_tokens", bind=URL)
    design = chain.ChainDesign(sparsity=sparsity, tokens=tokens)
    table = chain.drifts(design)
    with text:
        draw_lesson(texts.depth_lesson(design, table))
    finding = texts.depth_finding(table)
    drawing = depth_figures.drift_curves(table, place="layer", finding=finding, theme=session.theme())
    with stage:
        draw(drawing, "depth")


# Step 10: weights, columns, heads


def sizes_step() -> None:
    left, stage = sides()
    with left:
        text = st.container()
        heads = st.select_slider(
            "Share removed", range(1, sizes.HEADS), 2, key="lesson_share", bind=URL,
            format_func=lambda count: f"{count} of {sizes.HEADS}",
        )  # fmt: skip
    table = sizes.errors(heads)
    with text:
        draw_lesson(texts.sizes_lesson(table))
    shown = table.assign(size=table["size"].map(sizes.SIZES))
    what = f"{heads} of {sizes.HEADS} parts of the layer go"
    with stage:
        draw(figures.size_bars(shown, what=what, theme=session.theme()), "sizes")


# The page


def sides() -> tuple[st.delta_generator.DeltaGenerator, st.delta_generator.DeltaGenerator]:
    left, right = st.columns(SPLIT)
    height = keys.STAGE if projector else HEIGHT
    return (
        left.container(height=height, border=False, key="lesson-text"),
        right.container(height=height, border=True, key="lesson-stage"),
    )


STEPS: tuple[Callable[[], None], ...] = (
    importance_step,
    pre_pruning_step,
    losses_step,
    order_step,
    lambda: sweep_step(columnar=True),
    lambda: sweep_step(columnar=False),
    strength_step,
    effects_step,
    depth_step,
    sizes_step,
)


def turn(by: int) -> None:
    # From where the session stands, not from where the button was drawn: two quick clicks turn two pages.
    here = LABELS.index(st.session_state.lesson)
    st.session_state.lesson = LABELS[min(max(here + by, 0), len(LABELS) - 1)]
    turned()


def renamed_lesson() -> str | None:
    """The lesson that an old link names by a former title, found by its number."""
    linked = st.query_params.get("lesson", "")
    same = [label for label in LABELS if label.partition(" ")[0] == linked.partition(" ")[0]]
    return same[0] if same and linked not in LABELS else None


def turned() -> None:
    """Callback: another lesson starts from the beginning."""
    state = st.session_state
    state.lesson_playing, state.lesson_at = False, 0
    state.lesson_ended = state.lesson_bet = None


projector = st.query_params.get("projector") == "on"
keys.draw(projector)
with st.container(key="lesson-head"):
    st.title("Learn: how does ROSE choose an order?")
    if "lesson" not in st.session_state and (renamed := renamed_lesson()):
        st.session_state.lesson = renamed
    first = None if "lesson" in st.session_state else LABELS[0]  # a default and a value set by hand exclude each other
    lesson = st.segmented_control(
        "Step", LABELS, default=first, required=True, key="lesson", bind=URL, on_change=turned,
        label_visibility="collapsed", wrap=True,
    )  # fmt: skip
index = LABELS.index(lesson or LABELS[0])
timer = tick() if playing() else None


def body() -> None:
    try:
        STEPS[index]()
    except rose.RoseError as problem:
        st.error(str(problem), icon=":material/error:")
    if (tick() if playing() else None) != timer:
        st.rerun()  # the whole page: the timer is set, or taken away, there


def switch(on: bool) -> None:
    if on:
        st.query_params.projector = "on"
    else:
        st.query_params.pop("projector", None)


components.live(body, timer)
back, middle, forth = st.columns([1, 3, 1], vertical_alignment="center")
back.button(
    "Previous", icon=":material/arrow_back:", key="lesson-previous", on_click=turn, args=(-1,),
    disabled=index == 0, help="Page Up", width="stretch",
)  # fmt: skip
with middle.container(horizontal=True, horizontal_alignment="center", vertical_alignment="center"):
    if projector:
        st.caption(f"{LABELS[index]}, of {len(LABELS)}", width="content")
    st.button(
        "Leave the projector" if projector else "Projector",
        icon=":material/close_fullscreen:" if projector else ":material/present_to_all:",
        key="lesson-leave" if projector else "lesson-project",
        type="tertiary",
        on_click=switch,
        args=(not projector,),
        help="Escape"
        if projector
        else "Fills the window; press F11 to hide the browser too. Works with arrow keys, space and a presenter's "
        "clicker.",
    )
forth.button(
    "Next", icon=":material/arrow_forward:", icon_position="right", key="lesson-next", on_click=turn,
    args=(1,), disabled=index == len(STEPS) - 1, help="Page Down", type="primary", width="stretch",
)  # fmt: skip
