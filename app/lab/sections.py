"""The order lab's sections on prices, on one sweep from inside, and on order and budget apart; what they all share."""

from collections.abc import Sequence
from functools import partial
from math import isnan
from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import rose
from app import components, session, words
from app.components import URL
from app.figures import orders, palette
from app.figures.orders import forecast_scatter, price_lines
from app.figures.sweeps import sweep_film
from app.lab.sweeps import (
    LARGEST_TRACE,
    PlannedSweep,
    SweepResult,
    dense_energy,
    frame,
    outcome,
    times,
    trace_bytes,
)
from app.study.study import Study
from rose.layer.forecast import forecasts
from rose.layer.loss import block_widths
from rose.layer.pattern import parse_sparsity
from rose.layer.registry import order_names

BUDGETS = {"block": "Equal shares", "layer": "One threshold"}
SEEDS = 3  # random orders that are compared with others: one alone may be luck, good or bad
FORECAST = [
    (order, budget) for order in ("natural", "two_level", "dealt", "random:0", "global", "pivot") for budget in BUDGETS
]
RULES = ("natural", "two_level", "dealt", "random", "global", "pivot", "pivot_weighted")  # that a person tries first
YOURS = "custom"
CHOICES = ":material/tune:"
WHO_IS_WHO = (
    "SparseGPT: natural order, an equal share from every block. ROSE: two-level order (columns within blocks, then "
    "blocks, costliest first) where a layer is columnar, else SparseGPT. ROSE global: columns by loss over the whole "
    "layer, and one threshold that decides how much each block gives up."
)


def require_layer(purpose: str) -> tuple[Study, str, rose.OrderPlan]:
    """The chosen layer and its plan, after its numbers."""
    study, layer = components.require_layer(purpose, key_figures)
    key_figures(study, layer)
    return study, layer, study.plan(layer, session.threshold())


def key_figures(study: Study, layer: str) -> None:
    """The numbers of a measured layer, held-out errors first; its inputs are not needed."""
    row = study.overview(session.threshold()).set_index("layer").loc[layer]
    blocks = words.count(len(block_widths(row["columns"], study.setup.block_columns)), "block")
    called, sign = ("columnar", ">") if row["is_columnar"] else ("not columnar", "≤")
    st.markdown(
        f"**{words.plain(words.short_layer(layer))}**, {row['rows']} × {row['columns']} weights in {blocks}, sparsity "
        f"{parse_sparsity(study.setup.sparsity)}: **{called}**, relative range {row['relative_range']:.3f} {sign} "
        f"{session.threshold():g}. {errors(row, 'held_out', 'Held-out') or errors(row, 'error', 'Calibration')}"
    )
    components.cautions(study.cautions(layer))


def errors(row: pd.Series, kind: str, tokens: str) -> str:
    """Of SparseGPT and of ROSE; nothing where nothing was held out."""
    natural, ordered = row[f"{kind}_sparsegpt"], row[f"{kind}_rose"]
    if pd.isna(natural):
        return ""
    first, other = words.apart(natural, ordered)
    saved = 1 - times(ordered, natural)  # NaN: 0 of 0
    change = f"{words.percent(abs(saved))} {'less' if saved > 0 else 'more'}"
    if not row["is_columnar"] or isnan(saved) or not saved:
        change = "the same" if row["is_columnar"] else "the same by construction"
    return f"{tokens} error: SparseGPT **{first}**, ROSE **{other}**, {change}."


def label(order: str) -> str:
    return palette.order_style(order).label


def single_orders() -> list[str]:
    """Orders without random order, which stands for many."""
    return [name for name in order_names() if name != "random"]


def outcomes(study: Study, layer: str, sweeps: Sequence[PlannedSweep], key: str) -> list[SweepResult] | None:
    """The results of these sweeps, or None while they are made: progress is drawn, and other sweeps at this key end."""
    pieces = [partial(outcome, study, layer, sweep) for sweep in sweeps if not study.knows(sweep.key, ("lab", layer))]
    if not components.finished(pieces, key, (study.subject, layer, tuple(sweep.key for sweep in sweeps))):
        return None
    return [outcome(study, layer, sweep) for sweep in sweeps]


def mask_and_sequence(study: Study, layer: str, row: DeltaGenerator) -> None:
    """What an order changes: the mask's part of the error, and the sequence's; a person's own order among them."""
    chosen = row.popover("Orders", icon=CHOICES).multiselect(
        "Orders",
        order_names(),
        default=RULES,
        format_func=lambda name: f"{label(name)}, {SEEDS} seeds" if name == "random" else label(name),
        key="lab_matrix_orders",
        bind=URL,
        wrap=True,
    )
    plan = study.plan(layer)
    budgets = ["block"] if plan.pattern.is_grouped else [*BUDGETS]  # every N:M group gives up the same number
    orders_chosen = ["natural", *(name for name in chosen if name != "natural")]
    seeds = [f"random:{seed}" for seed in range(SEEDS)]
    names = {name: seeds if name == "random" else [name] for name in orders_chosen}
    sweeps = [PlannedSweep(order, budget, True) for budget in budgets for name in names for order in names[name]]
    draft = st.session_state.get("lab_orders", {}).get((study.subject, layer))
    if draft and draft.past:
        sweeps.append(PlannedSweep(draft.order(plan), draft.budget, True))
    results = outcomes(study, layer, sweeps, "lab-budget")
    if results is None:
        return
    components.show(orders.mask_and_sequence(frame(results), **components.look(layer)), "lab-matrix")


def inside_sweep(study: Study, layer: str, row: DeltaGenerator) -> None:
    """One sweep played, or two side by side, and what each block costs."""
    with row.popover("Which sweep", icon=CHOICES):
        pairs = _choose_sweeps()
    needed = len(pairs) * trace_bytes(study, layer)
    if needed > LARGEST_TRACE:
        components.warning(
            f"Recording this would take {words.size(needed)}; choose a larger block size on the start page, or a "
            "smaller layer."
        )
        return
    pieces = [partial(study.prune, layer, order=order, budget=budget, trace=True) for order, budget in pairs]
    if not components.finished(pieces, "lab-sweep", (study.subject, layer, *pairs)):
        return
    results = {pair: study.prune(layer, order=pair[0], budget=pair[1], trace=True) for pair in pairs}
    film = sweep_film(list(results.values()), dense_energy(study, layer), **components.look(layer))
    components.show(film, "lab-sweep")


def _choose_sweeps() -> list[tuple[str, str]]:
    """Order and budget of the sweep, and of the sweep chosen to compare."""

    def choose(title: str, options: dict[str, str], key: str, index: int = 0) -> Any:
        shown = options.__getitem__
        return st.selectbox(title, list(options), index, format_func=shown, key=key, bind=URL)

    names = single_orders()
    order = choose("Order", {name: label(name) for name in names}, "lab_sweep_order", names.index("two_level"))
    budget = choose("Shares of blocks", BUDGETS, "lab_sweep_budget")
    comparisons = {"none": "Nothing", "order": "Natural order", "budget": "The other shares"}
    beside = choose("Beside it", comparisons, "lab_sweep_beside")
    other = {"order": ("natural", budget), "budget": (order, "layer" if budget == "block" else "block")}
    return list(dict.fromkeys([(order, budget), *([other[beside]] if beside in other else [])]))


def prices(study: Study, layer: str, row: DeltaGenerator) -> None:
    """How orders deal out one total of prices, and how well a forecast knows what follows."""
    plan = study.plan(layer)
    draft = st.session_state.get("lab_orders", {}).get((study.subject, layer))
    with row.popover("Orders", icon=CHOICES):
        chosen = st.multiselect(
            "Orders",
            [*single_orders(), *([YOURS] if draft else [])],
            default=["natural", "two_level", "pivot", *([YOURS] if draft and draft.past else [])],
            format_func=label,
            key="lab_price_orders",
        )
        blocks = ["none", *map(str, range(len(plan.block_width)))]
        if st.session_state.get("lab_price_block") not in blocks:
            st.session_state.lab_price_block = "none"
        block = st.selectbox("Columns of block, marked on every line", blocks, key="lab_price_block", bind=URL)
    lines = {name: study.prices(layer, draft.order(plan) if name == YOURS and draft else name) for name in chosen}
    if not lines:
        st.info("Choose at least one order.")
        return
    look = components.look(layer, marked_block=None if block in (None, "none") else int(block))
    components.show(price_lines(lines, widths=plan.block_width, **look), "lab-prices")
    _forecast(study, layer)


def _forecast(study: Study, layer: str) -> None:
    """Forecasts of six orders under both budgets, against their sweeps."""
    pairs, key = FORECAST[:: 2 if study.plan(layer).pattern.is_grouped else 1], ("forecast", layer)
    tokens = "calibration" if study.held_out_statistics(layer) is None else "held-out"

    def compute() -> list[float]:
        results = forecasts(study.weight(layer), study.statistics(layer), pairs, **study.layer_options())
        return [forecast.error if tokens == "calibration" else forecast.held_out for forecast in results]

    recall = partial(study.remember, key, compute)
    if not components.finished([] if study.knows(key) else [recall], "lab-forecast", (study.subject, *key)):
        return
    results = outcomes(study, layer, [PlannedSweep(*pair) for pair in pairs], "lab-forecast-sweeps")
    if results is None:
        return
    rows = [
        (order.partition(":")[0], budget, forecast, sweep.error)
        for (order, budget), forecast, sweep in zip(pairs, recall(), results, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["order", "budget", "forecast", "measured"])
    components.show(forecast_scatter(table, tokens=tokens, **components.look(layer)), "lab-forecast")
