"""The order lab's first section: blocks are moved and columns sorted; what that changes stands beside other orders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

import rose
from app import components, glossary, session, words
from app.figures import orders as figures
from app.figures import palette
from app.figures.shapes import to_numpy
from app.figures.style import Drawing
from app.lab.own_order import OwnOrder, read_columns, read_order, read_shares, write_columns, write_order, write_shares
from app.lab.sweeps import BASELINE, Bench, PlannedSweep, SweepResult, outcomes
from rose.layer.columnar import outlier
from rose.layer.forecast import best_shares
from rose.layer.order import blocks_of, visited_blocks
from rose.layer.registry import order_names

STRIP = st.components.v2.component(
    "own_order",
    html='<canvas tabindex="0" role="application"></canvas>',
    css="canvas { display: block; width: 100%; height: 236px; touch-action: none; }",
    js=Path(__file__).with_name("strip.js").read_text(encoding="utf-8"),
)
MOST_ORDERS = 20  # of other layers that a session remembers
LONGEST_LINK = 400  # characters of an order in a link
SEEDS = 3  # random orders, whose mean is drawn: one alone may be luck, good or bad
KEY = "lab-own-strip"
OWN, BEST = "own", "best"
RULES = {  # that a person tries first
    "natural": "as in the model, which is SparseGPT's order",
    "two_level": "columns within each block, then blocks, costliest first, which is ROSE's order",
    "dealt": "costly columns are dealt out evenly over the blocks",
    "random": "columns of all blocks are mixed",
    "global": "columns by loss over the whole layer, costliest first",
    "pivot": "the column that those before it explain least goes next",
    "pivot_weighted": "the same, where columns of large weights count more",
}
SHARES = {
    "block": ("equal", "every block gives up the same part of its weights"),
    "layer": ("one threshold", "the least score removed is the same in all blocks, so cheap blocks give up more"),
    BEST: ("best by forecast", "each block gives up what the forecast finds best"),
    OWN: ("your own", "as written under More"),
}
HEIGHTS = {"loss": "Column loss", "price": "Log price"}


def _rules() -> list[str]:
    """Names of orders, those of plugins last."""
    return [*RULES, *(name for name in order_names() if name not in RULES)]


def label(order: str) -> str:
    return palette.order_style(order).label


def own_state(bench: Bench) -> OwnOrder:
    """The current order and budget: the link's at first, what a person has made of it, or of another layer before."""
    drafts = st.session_state.get("lab_orders")
    draft = OwnOrder.natural(bench.plan)
    if drafts is None and (linked := st.query_params.get("own")):
        with contextlib.suppress(rose.RoseError):  # of another layer, or of other blocks
            draft = read_order(linked, bench.plan)
    draft = (drafts or {}).pop(bench.place, draft)
    st.session_state.lab_orders = {**dict(list((drafts or {}).items())[-MOST_ORDERS:]), bench.place: draft}
    return draft


def edited() -> OwnOrder:
    """The order that was drawn last."""
    return next(reversed(st.session_state.lab_orders.values()))


def keep(draft: OwnOrder) -> None:
    orders = st.session_state.lab_orders
    orders[next(reversed(orders))] = draft


def draw(bench: Bench) -> None:
    components.live(lambda: _draw(bench), None)  # a drag draws this section alone


def _draw(bench: Bench) -> None:
    draft = own_state(bench)
    order = draft.order(bench.plan)
    link = "" if draft.is_natural else write_order(draft)
    if 0 < len(link) <= LONGEST_LINK:
        st.query_params["own"] = link
    elif "own" in st.query_params:
        del st.query_params["own"]
    sweeps = planned(bench, PlannedSweep("natural" if draft.is_natural else order, draft.budget))
    results = outcomes(bench, [sweep for _, sweep in sweeps], "lab-own")
    if results is None:
        return
    hands, changes = st.columns([1, 1.13], gap="medium")
    with hands.container(gap="xsmall"):
        _strip(bench, draft, results[-1])
        _controls(bench, draft, results[-1])
    with hands:
        components.show(curves(bench, sweeps, results), "lab-own-curve", captioned=False)
    with changes:
        components.show(parts(bench, draft, sweeps, results), "lab-parts")
        components.cautions(bench.study.cautions(bench.layer))


def planned(bench: Bench, mine: PlannedSweep) -> list[tuple[str, PlannedSweep]]:
    """The orders that stand beside one's own, which comes last, each with the name of its order."""
    whole = "block" if bench.plan.pattern.is_grouped else "layer"  # every N:M group gives up the same number
    seeds = [("random", f"random:{seed}", "block") for seed in range(SEEDS)]
    pairs = [("natural", *BASELINE), ("two_level", "two_level", "block"), *seeds]
    pairs += [(name, name, whole) for name in ("global", "pivot")]
    return [*((name, PlannedSweep(order, budget)) for name, order, budget in pairs), ("custom", mine)]


def curves(bench: Bench, sweeps: list[tuple[str, PlannedSweep]], results: list[SweepResult]) -> Drawing:
    """Errors of four of the sweeps, block after block."""
    four = {"natural": "SparseGPT", "two_level": _ordered(bench), "pivot": "Pivot", "custom": "Yours"}
    lines = {name: result.curve for (name, _), result in zip(sweeps, results, strict=True) if name in four}
    tokens = "held-out" if results[-1].is_held_out else "calibration"
    return figures.error_curve(
        lines, tokens=tokens, names=four, height=240, finding="Where the error arises, block after block",
        theme=session.theme(),
    )  # fmt: skip


def parts(bench: Bench, draft: OwnOrder, sweeps: list[tuple[str, PlannedSweep]], results: list[SweepResult]) -> Drawing:
    """What each order changes: the mask's part of its error, and the sequence's."""
    known = {
        "natural": ("SparseGPT", "natural order"),
        "two_level": (_ordered(bench), "two-level order"),
        "random": ("Random", "columns mixed"),
        "global": ("ROSE global", "costliest first"),
        "pivot": ("Pivot", "by price"),
        "custom": ("Yours", draft.says(bench.plan, {name: label(name).lower() for name in _rules()})),
    }
    rows = [
        {
            "order": name,
            "label": known[name][0],
            "says": f"{known[name][1]}, {_shares_of(sweep.budget)}",
            "relative_error": result.result.relative_error,
            "held_out_error": result.held_out_error,
            "mask_error": result.mask_error,
        }
        for (name, sweep), result in zip(sweeps, results, strict=True)
    ]
    return figures.mask_and_sequence(pd.DataFrame(rows), **components.look(bench.layer))


def _ordered(bench: Bench) -> str:
    return "ROSE" if bench.plan.is_columnar else "Two-level"


def _shares_of(budget: str | tuple[float, ...]) -> str:
    return {"block": "equal shares", "layer": "one threshold"}.get(str(budget), "own shares")


# What is moved


def _strip(bench: Bench, draft: OwnOrder, mine: SweepResult) -> None:
    """The columns as visited, in blocks that are handles; the block that makes the layer columnar has the accent."""
    plan, result, theme = bench.plan, mine.result, session.theme()
    name = words.plain(words.short_layer(bench.layer))
    with st.container(horizontal=True, vertical_alignment="top", key="lab-strip-figure-head"):
        st.html(f'<div class="figure-title"><b>Your order of {name}</b></div>', width="stretch")
        height = components.choose("Height of a column", HEIGHTS, "lab_height", label_visibility="collapsed")
    says = glossary.explained("Drag a block, or sort columns by a rule. What stands left goes first.")
    st.html(f'<div class="figure-title below"><span>{says}</span></div>')
    order, ink = result.order, palette.INKS[theme]
    places = to_numpy(order.permutation)
    assert result.prices is not None
    values = to_numpy(plan.column_loss)[places] if height == "loss" else np.log(to_numpy(result.prices.price))
    profile = bench.study.profile(bench.layer)
    standing_out = profile and outlier(profile, bench.size, bench.study.head_width_of(bench.layer))
    marked = blocks_of(plan.block_width, places) == (standing_out.block if standing_out else -1)
    quiet, accent = palette.shades(theme)[1], palette.ACCENT[theme][1]
    blocks = visited_blocks(plan, order)
    data = {
        "layer": bench.layer,
        "size": bench.size,
        "values": values.astype(float).round(4).tolist(),
        "marked": marked.astype(int).tolist(),
        "widths": list(order.widths),
        "names": [["mixed", ""] if block is None else [f"block {block}", str(block)] for block in blocks],
        "axis": HEIGHTS[height].lower(),
        "zero": height == "loss",
        "ink": {"text": ink.text, "muted": ink.muted, "grid": ink.grid, "quiet": quiet, "accent": accent}
        | {"mark": palette.PURPLE, "box": palette.QUIET[theme][0], "tint": palette.blend(ink.page, palette.MARK, 0.12)},
        "says": f"The {words.count(len(blocks), 'block')} as visited. Left and right arrow keys move the chosen block, "
        "Home and End move it to an end, Page Up and Page Down choose another block.",
    }
    STRIP(key=KEY, data=data, on_moved_change=_moved)


def _moved() -> None:
    draft, places = edited(), [int(place) for place in st.session_state[KEY].moved or ()]
    if sorted(places) == list(range(len(draft.widths))):
        keep(draft.moved(places))


# What is chosen


def _controls(bench: Bench, draft: OwnOrder, mine: SweepResult) -> None:
    is_grouped = bench.plan.pattern.is_grouped
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="lab-controls"):
        with components.labelled("Sort by"):
            rule = st.session_state.lab_own_rule = draft.rule or None
            st.selectbox(
                "Sort by", _rules(), placeholder="a rule", key="lab_own_rule", format_func=label, width=118,
                label_visibility="collapsed", on_change=lambda: _sort(bench, draft),
            )  # fmt: skip
        chosen = _chosen_shares(draft)
        if not is_grouped:
            with components.labelled("Shares"):
                st.session_state.lab_own_budget = chosen
                st.selectbox(
                    "Shares of blocks", [name for name in SHARES if name != OWN or chosen == OWN], width=140,
                    key="lab_own_budget", format_func=lambda name: SHARES[name][0], label_visibility="collapsed",
                    on_change=lambda: _share(bench, draft),
                )  # fmt: skip
        undo: Any = {"disabled": not draft.past, "on_click": lambda: keep(draft.undone())}
        st.button("Undo", icon=":material/undo:", key="lab-own-undo", **undo)
        with st.popover("More", help="Paste, upload or download an order, or begin again"):
            _more(bench, draft, mine)
    sentences = [f"{label(rule)}: {RULES[rule]}"] if rule in RULES else []
    sentences += [] if is_grouped else [f"{words.sentence(SHARES[chosen][0])}: {SHARES[chosen][1]}"]
    st.caption(". ".join([*sentences, ""]).strip())
    if problem := st.session_state.pop("lab_own_problem", ""):
        components.error(problem)


def _chosen_shares(draft: OwnOrder) -> str:
    if isinstance(draft.budget, str):
        return draft.budget
    return BEST if draft.budget == st.session_state.get("lab_own_best") else OWN


def _sort(bench: Bench, draft: OwnOrder) -> None:
    if (rule := st.session_state.lab_own_rule) is not None:
        _tried(lambda: keep(draft.sorted(bench.plan, rule)))


def _share(bench: Bench, draft: OwnOrder) -> None:
    chosen = st.session_state.lab_own_budget
    if chosen == BEST:
        options = bench.options | {"order": draft.order(bench.plan)}
        chosen = tuple(best_shares(bench.weight, bench.statistics, **options).shares.tolist())
        st.session_state.lab_own_best = chosen
    if chosen != OWN:
        keep(draft.to(budget=chosen))


def _tried(act: Callable[[], None]) -> None:
    """Does it, or has the page say why not."""
    try:
        act()
    except rose.RoseError as problem:
        st.session_state.lab_own_problem = str(problem)


def _more(bench: Bench, draft: OwnOrder, mine: SweepResult) -> None:
    pattern, natural = bench.plan.pattern, OwnOrder.natural(bench.plan)
    fresh: Mapping[str, Any] = {"columns": natural.columns, "widths": natural.widths, "budget": "block"}
    is_fresh = (draft.columns, draft.widths, draft.budget) == tuple(fresh.values())
    reset: Any = {"disabled": is_fresh, "on_click": lambda: keep(draft.to(**fresh, rule=natural.rule))}
    st.button("Reset", icon=":material/restart_alt:", key="lab-own-reset", **reset)
    text = st.text_area("Columns in the order visited", write_columns(draft.columns), key="lab_own_columns")
    file = st.file_uploader("or a text file of them", ["txt", "csv", "json"], key="lab_own_file")
    use = partial(_tried, lambda: _use_columns(bench, draft, text, file))
    st.button("Use this order", key="lab-own-use", on_click=use)
    if pattern.is_grouped:
        st.caption(f"Under {pattern} each group of {pattern.of} columns stays together.")
        return
    count, widths = words.count(len(draft.widths), "block"), draft.widths
    shares = st.text_input(
        f"Shares of {count}, first visited first", write_shares(mine.shares, widths), key="lab_own_shares"
    )
    use = partial(_tried, lambda: keep(draft.to(budget=read_shares(shares, widths, pattern.ratio))))
    st.button("Use these shares", key="lab-own-use-shares", on_click=use)
    name, columns = f"order-{len(draft.columns)}.txt", ",".join(map(str, draft.columns))
    st.download_button("Download the order", columns, name, on_click="ignore")


def _use_columns(bench: Bench, draft: OwnOrder, text: str, file: Any) -> None:
    try:
        content = text if file is None else file.getvalue().decode()
    except UnicodeDecodeError:
        raise rose.RoseError("The file is no text; give column numbers separated by spaces or commas.") from None
    columns = read_columns(content, len(draft.columns))
    other = draft.to(columns=columns, widths=OwnOrder.natural(bench.plan).widths, rule="")
    other.order(bench.plan)  # N:M groups must be whole
    keep(other)
