"""The sentences and formulas of the lessons. Every number in them is computed from a plan or result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

import rose
from app.figures.orders import trace_of
from app.lessons import chain
from app.lessons.basis import Turned
from app.lessons.chain import ChainDesign
from app.lessons.subjects import LayerDesign, Subject
from app.words import because, count, listing, number, percent, sentence, which_way, whole
from rose.layer.columnar import outlier
from rose.layer.order import visited_blocks


@dataclass(frozen=True)
class Lesson:
    """What stands beside the picture: one claim, formulas, and what to look at."""

    claim: str
    formulas: tuple[str, ...]
    text: str


def importance_lesson(plan: rose.OrderPlan) -> Lesson:
    """Lesson 1, on the worked example."""
    score = plan.importance
    rows, columns = score.shape
    high, low = (divmod(int(flat), columns) for flat in (score.argmax(), score.argmin()))
    removed = _removed(plan)
    return Lesson(
        "A weight matters by its own size and by the size of the input it meets.",
        (
            r"S_{ij} = |W_{ij}|\,\sqrt{\tfrac1T \textstyle\sum_t x_{jt}^2}",
            rf"S_{{{high[0] + 1},{high[1] + 1}}} = {_entry(score, *high)}\qquad "
            rf"S_{{{low[0] + 1},{low[1] + 1}}} = {_entry(score, *low)}",
        ),
        f"The picture shows the importance S of a layer with {rows} outputs (rows) and {columns} inputs (columns), in "
        f"blocks of {plan.block_size} columns. It is the worked example of the ROSE paper, which counts from 1. A "
        f"third of the {score.numel()} weights are to be removed: {sum(removed)} in all, {removed[0]} in every block. "
        f"The largest importance is {_entry(score, *high)}, the smallest {_entry(score, *low)}.",
    )


def pre_pruning_lesson(plan: rose.OrderPlan) -> Lesson:
    """Lesson 2, on the worked example."""
    counts, widths = _removed(plan), plan.block_width
    size = plan.importance.shape[0] * widths[0]
    lost = [
        sorted(round(x, 1) for x in block[block > 0].tolist())
        for block in plan.potential_loss.split(list(widths), dim=1)
    ]
    worst = int(plan.block_loss.argmax())
    spared = int(plan.block_loss.argmin())
    return Lesson(
        "The same share of weights does not mean the same loss.",
        (
            r"L_{ij} = \begin{cases} S_{ij} & \text{one of the } k \text{ smallest}\\"
            r" 0 & \text{else}\end{cases}",
            rf"k = \tfrac13 \cdot {plan.importance.shape[0]} \cdot {widths[0]} = {counts[0]}\ \text{{of }} {size}",
        ),
        f"The {counts[0]} smallest of each block are struck out. Block {worst + 1} must give up "
        f"{_listing(lost[worst])}; block {spared + 1} only {_listing(lost[spared])}. Nothing is removed yet: this "
        "look ahead is called pre-pruning.",
    )


def loss_lesson(plan: rose.OrderPlan) -> Lesson:
    """Lesson 3, on the worked example."""
    losses = plan.block_loss
    high, low = float(losses.max()), float(losses.min())
    called, sign = ("columnar", ">") if plan.is_columnar else ("not columnar", "≤")
    worst, found = int(losses.argmax()), outlier(plan, plan.importance, torch.ones(plan.importance.shape[1]))
    columns = plan.column_loss.split(list(plan.block_width))[worst].tolist()
    added = " + ".join(f"{x:.1f}" for x in columns)
    return Lesson(
        "Added up by block, the losses say whether the layer is columnar.",
        (
            r"\ell_j = \textstyle\sum_i L_{ij} \qquad B_b = \textstyle\sum_{j \in b} \ell_j",
            rf"B_{{{worst + 1}}} = {added} = {high:.1f}",
            rf"\begin{{aligned}} r &= \frac{{\max B - \min B}}{{\max B}}\\[8pt]"
            rf" &= \frac{{{high:.1f} - {low:.1f}}}{{{high:.1f}}} = {plan.relative_range:.2f} \end{{aligned}}",
        ),
        f"The relative range r (block-loss spread) is {plan.relative_range:.2f} {sign} {plan.threshold:g}, the "
        f"threshold: the layer is {called}. Block {worst + 1} holds {percent(high / float(losses.sum()), 0)} of the "
        f"loss. {which_way(found) if found else ''}",
    )


def order_lesson(plan: rose.OrderPlan, guess: int | None) -> Lesson:
    """Lesson 4, on the worked example; `guess` is the block that was said to go first, counted from 0."""
    question = (
        "Pruning goes block by block. When a weight is removed, the columns that have **not been pruned yet** are "
        "adjusted to make up for it. No block is left to help the last one: each of its columns can use only "
        "the columns to its right in the same block."
    )
    if guess is None:
        return Lesson(
            "Which block should be pruned first?", (), f"{question}\n\nChoose a block, then see what ROSE does."
        )
    order = [int(b) for b in plan.block_order]
    first, last = order[0], order[-1]
    losses = [float(x) for x in plan.block_loss]
    said = (
        f"Yes: block {first + 1}."
        if guess == first
        else f"You said block {guess + 1}, which would lose {losses[guess]:.1f}. ROSE starts with block {first + 1}."
    )
    ranking = r" \;>\; ".join(rf"B_{{{b + 1}}} = {losses[b]:.1f}" for b in order)
    columns = [int(j) + 1 for j in plan.permutation]
    leading = columns[: plan.block_width[first]]
    inside = r" \;>\; ".join(rf"\ell_{{{j}}} = {float(plan.column_loss[j - 1]):.1f}" for j in leading)
    permutation = r",\,".join(map(str, columns))
    return Lesson(
        "What loses most goes first, while most columns are still free to help.",
        (ranking, inside, rf"\pi = ({permutation})"),
        f"**{said}** It would lose most, {losses[first]:.1f}, so it goes while every other column can still "
        f"compensate; block {last + 1} loses only {losses[last]:.1f} and can go last. The same rule orders the columns "
        f"inside each block. Both "
        "together are the two-level order π of ROSE.",
    )


BETS = {"less": "clearly less error", "same": "about the same", "more": "clearly more error"}
CLEAR = 0.02  # change of the error from which on a lesson calls it clear


def sweep_lesson(
    subject: Subject, natural: rose.LayerResult, ordered: rose.LayerResult, step: int, ended: bool, bet: str | None
) -> Lesson:
    """Lessons 5 and 6: two sweeps after `step` blocks. How they end is not given away before the user has seen it."""
    gain = 1 - ordered.relative_error / natural.relative_error if natural.relative_error > 0 else 0.0
    blocks = len(subject.plan.block_width)
    formula = r"e = \frac{w_j}{U_{jj}} \qquad w_{j:} \leftarrow w_{j:} - e\,U_{j,j:}"
    done = f"{step} of {blocks} {'block' if blocks == 1 else 'blocks'} pruned."
    spread = because(subject.plan, subject.found)
    if not ended:
        what = "A columnar layer" if subject.plan.is_columnar else "A layer that is not columnar"
        first = [visited_blocks(subject.plan, result.order)[0] for result in (natural, ordered)]
        return Lesson(
            f"{what}, pruned in two orders: how will they end?",
            (formula,),
            f"{done if step else 'Nothing is pruned yet.'} Each removed weight leaves an error e, and the columns to "
            f"its right absorb what they can (U: upper Cholesky factor of H⁻¹). Natural order starts with block "
            f"{first[0]}, two-level order with block {first[1]}, counted from 0. {spread}.\n\n"
            "After all blocks, compared with natural order, two-level order will have …",
        )
    if subject.plan.is_columnar and gain > 0:
        claim = f"On this columnar layer, two-level order saves {percent(gain)} of the error."
    elif subject.plan.is_columnar:
        claim = f"This layer is columnar, yet two-level order costs {percent(-gain)} more error."
    else:
        claim = f"This layer is not columnar, and two-level order changes its error by {_signed(-gain)}."
    lines = [
        _block_sentence(result, step, order, subject.energy)
        for result, order in ((natural, "natural"), (ordered, "two-level"))
    ]
    now = "Nothing is pruned yet." if step == 0 else " ".join([done, *lines])
    if step == blocks:
        now += " All of that came from inside the block: no other is left to help the last one."
    decision = (
        "ROSE uses two-level order here"
        if subject.plan.is_columnar
        else "ROSE keeps natural order here, as in all layers that are not columnar, though many gain by another"
    )
    return Lesson(
        claim,
        (
            formula,
            rf"\frac{{\text{{two-level}}}}{{\text{{natural}}}} = "
            rf"\frac{{{ordered.relative_error:.5f}}}{{{natural.relative_error:.5f}}} = {1 - gain:.3f}",
        ),
        f"{_judged(bet, gain)}{now}\n\n{spread}. {decision}.",
    )


def _judged(bet: str | None, gain: float) -> str:
    if bet is None:
        return ""
    right = "less" if gain > CLEAR else "more" if gain < -CLEAR else "same"
    said = f"You said {BETS[bet]}"
    return f"**{said}: yes.** " if bet == right else f"**{said}; it is {BETS[right]}.** "


def strength_lesson(design: LayerDesign, points: Sequence[tuple[float, float, float]], here: Subject) -> Lesson:
    """Lesson 7: from which strength on the order matters, by the points that `strengths` gives."""
    natural, ordered = (here.prune(order, "block", False).relative_error for order in ("natural", "two_level"))
    crossing = next((strength for strength, spread, _ in points if spread > here.plan.threshold), None)
    where = (
        f"It counts as columnar from strength {crossing:g} on."
        if crossing is not None
        else "It counts as columnar at none of the strengths measured."
    )
    return Lesson(
        "The more the loss concentrates in a block that comes late, the more the order matters.",
        (
            rf"W_{{:,\,\text{{block {design.strong_block}}}}} \leftarrow (1 + {design.strength:g})\,"
            rf"W_{{:,\,\text{{block {design.strong_block}}}}}",
            rf"r = {here.plan.relative_range:.2f},\quad \frac{{\text{{two-level}}}}{{\text{{natural}}}} = "
            rf"\frac{{{ordered:.4f}}}{{{natural:.4f}}} = {ordered / natural:.3f}",
        ),
        f"A generated layer of {here.plan.importance.shape[0]} × {here.plan.importance.shape[1]} weights. Without any "
        f"strong block the order changes the error by {_signed(points[0][2] - 1)}; at strength "
        f"{points[-1][0]:g} by {_signed(points[-1][2] - 1)}. {where}",
    )


def effects_lesson(subject: Subject, errors: dict[tuple[str, str], float]) -> Lesson:
    """Lesson 8: compensation and budget apart, by the errors of all of `SEPARATED` under both budgets."""
    base = errors["natural", "block"]
    share = {key: value / base if base > 0 else 1.0 for key, value in errors.items()}
    best = min(share, key=lambda key: share[key])
    called, pattern = best[0].partition(":")[0].replace("two_level", "two-level"), subject.plan.pattern
    budgets = (
        f"Under {pattern} every group of columns loses the same number of weights, so both budgets are the same."
        if pattern.is_grouped
        else "**Block budget**: every block gives up the same share. **Layer budget**: one threshold for the layer."
    )
    mixed = (
        " It beats two-level order under equal shares because it mixes columns: no block is made of costly ones alone."
        if not pattern.is_grouped and share["random:0", "block"] < share["two_level", "block"]
        else ""
    )
    return Lesson(
        "An order has two effects: compensation and budget.",
        (
            r"\underbrace{\frac{\text{two-level order}}{\text{natural order}}}_{\text{compensation, block budget}}"
            rf" = {share['two_level', 'block']:.3f}",
            r"\underbrace{\frac{\text{layer budget}}{\text{block budget}}}_{\text{budget, natural order}}"
            rf" = {share['natural', 'layer']:.3f}",
        ),
        f"{budgets}\n\n"
        "Random order ignores the losses: "
        f"{share['random:0', 'block']:.3f} under the block budget, {share['random:0', 'layer']:.3f} under the layer "
        f"budget.{mixed} "
        f"Global order puts the costliest columns first: {share['global', 'block']:.3f} and "
        f"{share['global', 'layer']:.3f}. Lowest: {called} order, {best[1]} budget, {share[best]:.3f}.",
    )


def depth_lesson(design: ChainDesign, table: pd.DataFrame) -> Lesson:
    """Lesson 9: compensation inside a layer, then between layers, by the table of `chain.drifts`."""
    none, inside, between = chain.ends(table)
    noise = (
        f" That is more than without compensation: with only {whole(design.tokens)} tokens, compensation fits noise."
        if inside > none
        else ""
    )
    return Lesson(
        "Layers can compensate for the layers before them.",
        (
            r"G = (X_d - X_p)\,W^\top + h_d - h_p",
            r"W^* = W + G^\top X_p\,(H + \lambda I)^{-1}",
        ),
        f"{sentence(count(design.layers, 'generated layer'))} add to one stream h (d: dense, p: pruned), each pruned "
        f"on the inputs X that those before it give, from {whole(design.tokens)} tokens. Drift after the "
        f"last layer: **{number(none)}** without compensation; **{number(inside)}** with compensation inside each "
        f"layer, where W is pruned and the gap G to the dense model is ignored.{noise} **{number(between)}** with "
        f"compensation between layers, where W* is pruned instead of W, {percent(1 - between / inside, 0)} less. "
        f"λ = μ · mean of diag(H), with μ = {number(chain.damping(design))}; fewer tokens need a larger μ.",
    )


def tuning_lesson(design: ChainDesign, table: pd.DataFrame) -> Lesson:
    """Lesson 12: three ways to compensate, by the table of `chain.drifts_tuned`."""
    none, inside, between, tuned = chain.ends(table)
    change = (
        f"{percent(1 - tuned / between, 0)} less"
        if tuned < between
        else f"more: {whole(design.tokens)} tokens are so few that it learns them by heart"
    )
    return Lesson(
        "There are three ways to compensate: inside a layer, between layers, through the loss.",
        (
            r"\min_{W_1, \dots, W_n} \mathbb{E}\,\lVert h_p - h_d\rVert^2 / \lVert h_d\rVert^2",
            r"W_{ij} = 0 \text{ stays where it was removed}",
        ),
        f"Drift after the chain of lesson 9: **{number(none)}** without compensation. *Inside* each layer: "
        f"**{number(inside)}**, for one factorization of H. *Between* layers: **{number(between)}**, for the dense "
        f"model's stream beside it. *Through the loss*: **{number(tuned)}**, {change}, for {whole(chain.STEPS)} passes "
        "forward and backward, with a gradient and two moments for every weight: all kept weights move together. On "
        "the page Prune: *Tune what is left*.",
    )


def sizes_lesson(table: pd.DataFrame) -> Lesson:
    """Lesson 10: weights, columns and heads by one formula."""
    row = {one["size"]: one for one in table.to_dict("records")}
    saved = {size: 1 - one["compensated"] / one["dropped"] for size, one in row.items()}
    return Lesson(
        "One formula prices a weight, a column and a head.",
        (
            r"\text{cost of } R = \operatorname{tr}\left(W_R\,P_{RR}^{-1}\,W_R^{\top}\right)",
            r"P = H^{-1}\qquad \text{one weight: } w^2 / P_{jj}",
        ),
        f"The same share of a generated layer is removed three times: {whole(row['weights']['removed'])} single "
        f"weights, {row['columns']['removed']} of {row['columns']['units']} columns, or {row['heads']['removed']} of "
        f"{row['heads']['units']} heads of {row['columns']['units'] // row['heads']['units']} columns. What stays is "
        f"solved by least squares, which takes {percent(saved['weights'], 0)}, {percent(saved['columns'], 0)} and "
        f"{percent(saved['heads'], 0)} of the error away. Single weights are chosen one by one. Columns and heads go "
        "whole and cost more, but removing them makes a model smaller and faster in every program; zeros alone do not.",
    )


CHANGES = {"no": "no, except for rounding", "yes": "yes"}


def basis_lesson(layer: Mapping[str, Turned], guesses: tuple[str, str] | None) -> Lesson:
    """Lesson 11: what a rotation of heads changes; `guesses`, of `CHANGES` and `BETS`, on the learned basis."""
    formulas = (r"W_v' = R^\top W_v \qquad W_o' = W_o\,R",)
    heads = count(len(layer["given"].plan.block_width), "head")
    intro = (
        f"A generated attention layer of {heads}: the output projection $W_o$ reads the values that $W_v$ makes. Each "
        "head may be rotated between the two. Move the slider: columns of $W_o$ come and go."
    )
    if guesses is None:
        return Lesson(
            "Heads can be rotated so that importance gathers in few columns.",
            formulas,
            intro,
        )
    given, learned, random = (layer[name].errors["sparsegpt"][1] for name in ("given", "learned", "random"))
    moved, gain = max(one.moved for one in layer.values()), 1 - learned / given
    said = f"You said {CHANGES[guesses[0]]}" + (": right." if guesses[0] == "no" else "; it does not.")
    return Lesson(
        "The basis leaves the model as it is, and changes what pruning costs.",
        formulas,
        f"**The model.** {said} The dense layer's output changes by at most {number(moved)} of its norm: "
        f"rounding, as R and Rᵀ cancel.\n\n**The error.** {_judged(guesses[1], gain)}SparseGPT's held-out error goes "
        f"from {number(given)} to {number(learned)} ({_signed(-gain)}) in the learned basis, and to {number(random)} "
        f"({_signed(random / given - 1)}) in a random one. In the learned basis the weights that pre-pruning would "
        "remove matter less. The order lab does the same on a real layer: **Make a layer columnar**.",
    )


def _block_sentence(result: rose.LayerResult, step: int, order: str, energy: float) -> str:
    if step == 0:
        return ""
    trace = trace_of(result)
    lost, saved = float(trace.lost[step - 1]), float(trace.compensated[step - 1])
    block = visited_blocks(result.plan, result.order)[step - 1]
    assert block is not None  # both orders of the lesson keep blocks whole
    share = percent(saved / lost if lost > 0 else 0.0, 0)
    cost = number(lost / energy if energy > 0 else 0.0)
    return (
        f"In {order} order, block {block} was just pruned: without compensation it would have cost {cost}, of which "
        f"{share} was compensated."
    )


def _removed(plan: rose.OrderPlan) -> list[int]:
    return [plan.pattern.count(plan.importance.shape[0] * width) for width in plan.block_width]


def _entry(matrix: Tensor, row: int, column: int) -> str:
    return f"{float(matrix[row, column]):.1f}"


def _listing(values: Sequence[float]) -> str:
    return listing([f"{value:.1f}" for value in values], len(values))


def _signed(change: float) -> str:
    return ("+" if change > 0 else "") + percent(change)
