"""The order lab's first section: the user moves blocks, columns and shares; known orders stand beside."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
import torch

import rose
from app import components, session, words
from app.figures import orders as figures
from app.figures import palette
from app.figures.shapes import to_numpy
from app.figures.style import Drawing
from app.lab.sections import BUDGETS, RULES, WHO_IS_WHO, label, outcomes
from app.lab.sweeps import BASELINE, PlannedSweep, SweepResult, outcome
from app.study.study import Study
from rose.layer.forecast import best_shares
from rose.layer.loss import block_widths
from rose.layer.order import visited_blocks

STRIP = st.components.v2.component(
    "own_order",
    html='<canvas tabindex="0" role="application"></canvas>',
    css="canvas { display: block; width: 100%; height: 232px; touch-action: none; }",
    js=Path(__file__).with_name("strip.js").read_text(encoding="utf-8"),
)
MOST_ORDERS = 20  # of other layers that a session remembers
LONGEST_LINK = 400  # characters of an order in a link
NUMBERS = re.compile(r"[\s,;\[\]]+")
KEY = "lab-own-strip"
OWN, BEST = "own", "best"
CANDIDATES = (("pivot", "layer"), ("pivot_weighted", "layer"), ("global", "layer"))  # one is drawn
CAPTION = (
    "{} has the lowest calibration error of pivot, weighted pivot and global order under one threshold. The curves are "
    "{} errors; an order that you choose by them is fitted to their tokens."
)


def own_state(study: Study, layer: str, plan: rose.OrderPlan) -> OwnOrder:
    """The current order and budget: the link's at first, what a person has made of it, or of another layer before."""
    place, columns, drafts = (study.subject, layer), len(plan.column_loss), st.session_state.get("lab_orders")
    draft = OwnOrder(tuple(range(columns)))
    if drafts is None and (linked := st.query_params.get("own")):
        with contextlib.suppress(rose.RoseError):  # of another layer
            other = OwnOrder(read_columns(linked, columns))
            other.order(plan)
            draft = other
    draft = (drafts or {}).pop(place, draft)
    st.session_state.lab_orders = {**dict(list((drafts or {}).items())[-MOST_ORDERS:]), place: draft}
    return draft


def edited() -> OwnOrder:
    """The order that was drawn last."""
    return next(reversed(st.session_state.lab_orders.values()))


def keep(draft: OwnOrder) -> None:
    orders = st.session_state.lab_orders
    orders[next(reversed(orders))] = draft


def change(**changes: Any) -> None:
    keep(edited().to(**changes))


def draw(study: Study, layer: str, _row: object) -> None:
    components.live(lambda: _draw(study, layer), None)  # a drag draws this section alone


def _draw(study: Study, layer: str) -> None:
    plan = study.plan(layer)
    draft = own_state(study, layer, plan)
    order = draft.order(plan)
    link = "" if order.is_natural else write_columns(draft.columns)
    if 0 < len(link) <= LONGEST_LINK:
        st.query_params["own"] = link
    elif "own" in st.query_params:
        del st.query_params["own"]
    every = outcomes(study, layer, planned("natural" if order.is_natural else order, draft.budget), "lab-own")
    if every is None:
        return
    four, shown = leading(every), study.plan(layer, session.threshold())
    mine = four[0]
    hands, errors = st.columns([1.3, 1])
    with hands:
        _strip(plan, mine, draft, layer)
        _controls(study, layer, plan, draft, mine)
    with errors:
        components.show(curves(shown, four, theme=session.theme()), "lab-own-curve", fill=(420, "560px"))
    st.caption(WHO_IS_WHO)


def leading(every: Sequence[SweepResult]) -> tuple[SweepResult, ...]:
    """One's own sweep, ROSE's, SparseGPT's, and the least calibration error among the others."""
    return (*every[:3], min(every[3:], key=lambda result: result.result.relative_error))


def planned(order: rose.Order | str, budget: str | tuple[float, ...]) -> list[PlannedSweep]:
    """One's own sweep, and those that it is compared with."""
    pairs = [("two_level", "block"), BASELINE, *CANDIDATES]
    return [PlannedSweep(order, budget), *(PlannedSweep(*pair) for pair in pairs)]


def curves(plan: rose.OrderPlan, four: tuple[SweepResult, ...], **look: Any) -> Drawing:
    """The four sweeps' errors block by block; their labels have the final errors."""
    mine, ordered, base, best = four
    best_name = figures.run_name(best.result)
    runs = {"natural": base, "two_level": ordered, best_name: best, "custom": mine}
    second = "ROSE" if plan.is_columnar else "Two-level order"
    third = figures.run_style(best_name).label
    labels = ("SparseGPT {}", f"{second} {{}}", f"{third}, {{}}", "Yours {}")
    errors = words.apart(*(result.error for result in runs.values()))
    names = {name: label.format(error) for name, label, error in zip(runs, labels, errors, strict=True)}
    tokens = "held-out" if mine.is_held_out else "calibration"
    lines = {name: result.curve for name, result in runs.items()}
    drawing = figures.error_curve(lines, tokens=tokens, names=names, **look)
    return replace(drawing, caption=CAPTION.format(third, tokens))


def opening(study: Study, layer: str, theme: palette.Theme) -> Drawing:
    """What the section opens on: natural order as one's own."""
    every = [outcome(study, layer, sweep) for sweep in planned("natural", "block")]
    return curves(study.plan(layer), leading(every), theme=theme)


def _strip(plan: rose.OrderPlan, mine: SweepResult, draft: OwnOrder, layer: str) -> None:
    """The columns as visited, tall where dear and bright where important, and the shares of the blocks below."""
    result, theme = mine.result, session.theme()
    assert result.prices is not None
    order = result.order
    importance = to_numpy(plan.importance).mean(0)[to_numpy(order.permutation)]
    importance = importance.clip(max=np.quantile(importance, 0.97))  # or one column would leave all others dark
    ink, grouped = palette.INKS[theme], plan.pattern.is_grouped
    data = {
        "layer": layer,
        "columns": list(draft.columns),
        "prices": np.log(to_numpy(result.prices.price)).round(3).tolist(),
        "colours": palette.magnitude_colours(importance, theme),
        "widths": list(order.widths),
        "names": ["mixed" if block is None else f"block {block}" for block in visited_blocks(plan, order)],
        "shares": list(mine.shares),
        "ratio": plan.pattern.ratio,
        "unit": plan.pattern.of or 1,
        "own": not grouped,
        "ink": {"text": ink.text, "mark": palette.MARK, "bar": palette.TEAL},
        "says": f"The {len(draft.columns)} columns as visited, shares of {len(order.widths)} blocks. Arrow keys move "
        "the chosen columns and change their block's share, Page Up and Page Down choose another block.",
    }
    STRIP(key=KEY, data=data, on_moved_change=_moved, on_shared_change=_shared)
    st.caption(
        "Click a block or drag over columns, then drag them"
        + ("" if grouped else "; below, drag shares")
        + ". Height: log price; colour: importance."
    )


def _moved() -> None:
    if moved := st.session_state[KEY].moved:
        change(columns=tuple(map(int, moved)))


def _shared() -> None:
    if shares := st.session_state[KEY].shared:
        change(budget=tuple(map(float, shares)))


def _controls(study: Study, layer: str, plan: rose.OrderPlan, draft: OwnOrder, mine: SweepResult) -> None:
    widths, grouped = mine.result.order.widths, plan.pattern.is_grouped
    with st.container(horizontal=True, vertical_alignment="bottom", gap="xsmall"):
        st.selectbox(
            "Sort by",
            RULES,
            index=None,
            placeholder="a rule",
            key="lab_own_rule",
            format_func=label,
            on_change=_tried(lambda: change(columns=sorted_by(plan, st.session_state.lab_own_rule)), "lab_own_rule"),
            width=132,
        )
        if not grouped:
            options = BUDGETS | {BEST: "Best by forecast", OWN: "Your own"}
            is_best = draft.budget == st.session_state.get("lab_own_best")
            st.session_state.lab_own_budget = (
                draft.budget if isinstance(draft.budget, str) else BEST if is_best else OWN
            )
            st.selectbox(
                "Shares of blocks",
                list(options),
                key="lab_own_budget",
                format_func=options.__getitem__,
                on_change=lambda: change(budget=_budget(study, layer, draft, mine)),
                width=132,
            )
        back, undo = not draft.past, lambda: keep(draft.undone())
        st.button("Undo", icon=":material/undo:", key="lab-own-undo", disabled=back, on_click=undo)
        with st.popover("More", help="Paste, upload or download an order, or begin again"):
            _paste(plan, draft, mine, widths)
    if problem := st.session_state.pop("lab_own_problem", ""):
        components.error(problem)


def _budget(study: Study, layer: str, draft: OwnOrder, mine: SweepResult) -> Any:
    """The choice: a budget, the present shares, or the best shares of the forecast."""
    chosen = st.session_state.lab_own_budget
    if chosen == BEST:
        options = study.layer_options() | {"order": draft.order(study.plan(layer))}
        best = best_shares(study.weight(layer), study.statistics(layer), **options)
        st.session_state.lab_own_best = tuple(best.shares.tolist())
        return st.session_state.lab_own_best
    return mine.shares if chosen == OWN else chosen


def _tried(act: Callable[[], None], clear: str = "") -> Callable[[], None]:
    """A callback whose refusal the page says; empties the widget that asked."""

    def again() -> None:
        if not clear or st.session_state[clear] is not None:
            try:
                act()
            except rose.RoseError as problem:
                st.session_state.lab_own_problem = str(problem)
        if clear:
            st.session_state[clear] = None

    return again


def _paste(plan: rose.OrderPlan, draft: OwnOrder, mine: SweepResult, widths: tuple[int, ...]) -> None:
    count, fresh = len(draft.columns), {"columns": tuple(range(len(draft.columns))), "budget": "block"}
    is_fresh, reset = (draft.columns, draft.budget) == tuple(fresh.values()), lambda: change(**fresh)
    st.button("Reset", icon=":material/restart_alt:", key="lab-own-reset", disabled=is_fresh, on_click=reset)
    text = st.text_area("Columns in the order visited", write_columns(draft.columns), key="lab_own_columns")
    file = st.file_uploader("or a text file of them", ["txt", "csv", "json"], key="lab_own_file")
    st.button("Use this order", key="lab-own-use", on_click=_tried(lambda: _use_columns(plan, draft, text, file)))
    if plan.pattern.is_grouped:
        st.caption(f"Under {plan.pattern} each group of {plan.pattern.of} columns stays together.")
        return
    shares = st.text_input(
        f"Shares of {words.count(len(widths), 'block')}, first visited first",
        write_shares(mine.shares, widths),
        key="lab_own_shares",
    )
    use = _tried(lambda: change(budget=read_shares(shares, widths, plan.pattern.ratio)))
    st.button("Use these shares", key="lab-own-use-shares", on_click=use)
    st.download_button("Download the order", ",".join(map(str, draft.columns)), f"order-{count}.txt", on_click="ignore")


def _use_columns(plan: rose.OrderPlan, draft: OwnOrder, text: str, file: Any) -> None:
    try:
        content = text if file is None else file.getvalue().decode()
    except UnicodeDecodeError:
        raise rose.RoseError("The file is no text; give column numbers separated by spaces or commas.") from None
    columns = read_columns(content, len(draft.columns))
    draft.to(columns=columns).order(plan)  # N:M groups must be whole
    change(columns=columns)


@dataclass(frozen=True)
class OwnOrder:
    """The columns as visited, and the budget: "block", "layer", or the part of the layer's weights by visited block."""

    columns: tuple[int, ...]
    budget: str | tuple[float, ...] = "block"
    past: tuple[OwnOrder, ...] = ()

    def to(self, **changes: object) -> OwnOrder:
        """A changed state; its `undone` leads back here."""
        other = replace(self, **changes)  # type: ignore[arg-type]
        if (other.columns, other.budget) == (self.columns, self.budget):
            return self
        return replace(other, past=(*self.past[-50:], replace(self, past=())))

    def undone(self) -> OwnOrder:
        return replace(self.past[-1], past=self.past[:-1]) if self.past else self

    def order(self, plan: rose.OrderPlan) -> rose.Order:
        """For a sweep; raises RoseError as `rose.layer.order.make_order`."""
        if list(self.columns) == list(range(len(self.columns))):
            return rose.make_order(plan, "natural")
        widths = block_widths(len(self.columns), plan.block_size)
        return rose.make_order(plan, rose.Order(torch.tensor(self.columns), widths, "custom"))


def sorted_by(plan: rose.OrderPlan, name: str) -> tuple[int, ...]:
    return tuple(rose.make_order(plan, name).permutation.tolist())


def read_columns(text: str, columns: int) -> tuple[int, ...]:
    """Columns as numbers, or ranges such as 128-255, by spaces or commas; RoseError unless each is there once."""
    order: list[int] = []
    for part in filter(None, NUMBERS.split(text)):
        ends = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        if ends is None:
            raise rose.RoseError(f"{part[:40]!r} is no column number and no range such as 0-127; correct it.")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if max(first, last) >= columns:
            raise rose.RoseError(f"{part} is beyond the last column, {columns - 1}; columns are counted from 0.")
        order += range(first, last + 1) if last >= first else range(first, last - 1, -1)
        if len(order) > 2 * columns:
            break
    if len(set(order)) < len(order):
        twice = next(column for column in order if order.count(column) > 1)
        raise rose.RoseError(f"Column {twice} is there twice; name each column once.")
    if missing := sorted(set(range(columns)) - set(order)):
        raise rose.RoseError(f"{len(missing)} of {columns} columns are missing, such as {missing[0]}; name each once.")
    return tuple(order)


def write_columns(columns: Sequence[int]) -> str:
    """The text that `read_columns` reads, neighbours as ranges."""
    parts: list[list[int]] = []
    for column in columns:
        if parts and column == parts[-1][1] + 1:
            parts[-1][1] = column
        else:
            parts.append([column, column])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in parts)


def read_shares(text: str, widths: Sequence[int], ratio: float) -> tuple[float, ...]:
    """Shares of visited blocks, 0.7 or 70 % of their own weights, as parts of the layer's weights; or RoseError."""
    parts = [part for part in NUMBERS.split(text.replace(" %", "%")) if part]
    if len(parts) != len(widths):
        raise rose.RoseError(f"There are {len(parts)} shares for {len(widths)} blocks; give one for each.")
    try:
        parts_of_blocks = [float(part.removesuffix("%")) / (100 if part.endswith("%") else 1) for part in parts]
    except ValueError:
        raise rose.RoseError("A share is a number from 0 to 1 or a percentage, such as 0.7 or 70 %.") from None
    if not all(0 <= share <= 1 for share in parts_of_blocks):
        raise rose.RoseError("A block can give up between 0 and all of its weights: shares lie between 0 and 1.")
    shares = tuple(share * width / sum(widths) for share, width in zip(parts_of_blocks, widths, strict=True))
    if abs(sum(shares) - ratio) > 0.005:
        raise rose.RoseError(f"Together these shares remove {sum(shares):.3f} of the layer, but sparsity is {ratio:g}.")
    return tuple(share * ratio / sum(shares) for share in shares)


def write_shares(shares: Sequence[float], widths: Sequence[int]) -> str:
    """The text that `read_shares` reads."""
    return ", ".join(f"{share * sum(widths) / width:.4f}" for share, width in zip(shares, widths, strict=True))
