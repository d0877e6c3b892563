"""The eleven lessons: stage and controls of each; `story.md.jinja` has the texts. The engine computes every number.

A lesson has a text on the left, a stage on the right, controls, and a question for the class. Each answers the question
with which the one before ends. Columns and blocks are counted from 1, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined

from app.figures import lessons as figures
from app.figures.lessons import signed
from app.figures.style import Drawing
from app.lab.basis import BASES
from app.lessons import example
from app.words import apart, number, percent, word

Values = Mapping[str, Any]
BLOCK_3_FIRST = (6, 7, 8, 0, 1, 2, 3, 4, 5)
TURNS = ("pruned first", "second", "last")  # of three blocks
NATURAL = tuple(range(9))
RANDOM = tuple(f"random:{seed}" for seed in range(20))
JINJA = Environment(
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    variable_start_string="<<", variable_end_string=">>", block_start_string="<%", block_end_string="%>",
    comment_start_string="<#", comment_end_string="#>",
)  # fmt: skip
JINJA.globals |= {"number": number, "percent": percent, "signed": signed, "word": word}
JINJA.filters["signed"] = signed
# One macro for each lesson. LaTeX uses braces, so Jinja's delimiters differ.
TEXT: Any = JINJA.from_string(Path(__file__).with_name("story.md.jinja").read_text(encoding="utf-8")).module


@dataclass(frozen=True)
class Slider:
    """A number that the class moves."""

    key: str
    label: str
    values: tuple[Any, ...]
    default: Any
    show: Callable[[Any], str] = str


@dataclass(frozen=True)
class Choice:
    """What the stage shows; the first option is the default."""

    key: str
    label: str
    options: Mapping[str, str]
    follows_answer: bool = False  # shown once the question is answered


@dataclass(frozen=True)
class Question:
    """What a class votes on before the lesson goes on."""

    asks: str
    answers: tuple[str, ...]
    right: int  # position in `answers`


@dataclass(frozen=True)
class Screen:
    """A lesson with everything chosen."""

    claim: str  # the heading, one line
    text: str  # Markdown with formulas
    stage: Callable[..., Drawing] | None = None  # takes the theme; None: the board of `app.lessons.board`


@dataclass(frozen=True)
class Lesson:
    """A lesson's declaration."""

    title: str
    screen: Callable[[Values, bool], Screen]  # from the controls' values by key, and whether the question is answered
    controls: tuple[Slider | Choice, ...] = ()
    question: Question | None = None
    proof: tuple[str, str] | None = None  # name of a button, and the Markdown behind it


def one_weight(values: Values, answered: bool) -> Screen:
    removal = example.remove_one(values["alike"], values["removed"] - 1)
    weights = {"before": removal.before.tolist(), "after": removal.after.tolist()}
    costs = {"nobody helps": removal.alone, "others help": removal.cost}
    overlaps = (values["alike"], example.SECOND_OVERLAP)
    stage = partial(figures.removal, overlaps, weights, costs, values["removed"] - 1)
    return Screen("One weight goes, others make up for it", TEXT.one_weight(values["removed"], removal), stage)


def column_by_column(values: Values, answered: bool) -> Screen:
    pruned, shown = values["pruned"], values["shown"]
    result, price = example.prune("natural"), example.prices()
    assert result.trace is not None
    now = result.trace.weights[pruned]
    matrix, subtitle = {
        "weights": (now, "Weights w as they stand"),
        "cost": (now.square() * np.array(price), "Cost w² d of every weight as it stands"),
        "standin": (example.plan().importance.square(), "S² of every weight, before anything is pruned"),
    }[shown]
    finding, removed = "S² is what a weight would cost if nobody helped", None
    if shown != "standin":
        finding = f"{4 * pruned} of 12 weights are removed" if pruned else "Nothing is removed yet: block 1 is next"
        removed = result.mask & (np.arange(9) < 3 * pruned)
    marks: dict[str, Any] = {"removed": removed, "below": {"price d": price}, "marked": None if pruned == 3 else pruned}
    stage = partial(figures.number_matrix, matrix, finding, f"{subtitle}; grey and struck: removed", **marks)
    return Screen("Each column has a price", TEXT.column_by_column(price), stage)


def early_and_late(values: Values, answered: bool) -> Screen:
    results = {"Block 3 goes first": example.prune(BLOCK_3_FIRST), "Block 3 goes last": example.prune(NATURAL)}
    shares = []
    for result, place in zip(results.values(), (0, 2), strict=True):
        assert result.trace is not None
        shares.append(float(result.trace.compensated[place] / result.trace.lost[place]))
    text = TEXT.early_and_late(answered, shares, [result.relative_error for result in results.values()])
    stage = partial(figures.early_late, results, example.energy(), 2, answered=answered)
    return Screen("Early and late", text, stage)


def the_law(values: Values, answered: bool) -> Screen:
    orders: dict[str, Sequence[int]] = {"natural": NATURAL}
    orders |= {name: example.prune(name).order.permutation.tolist() for name in ("two_level", "pivot")}
    if step := values["trade"]:
        orders["custom"] = [*NATURAL[: step - 1], step, step - 1, *NATURAL[step + 1 :]]
    lines = {name: (columns, example.prices(columns)) for name, columns in orders.items()}
    before, after = (dict(zip(*lines[name], strict=True)) for name in ("natural", "custom" if step else "natural"))
    text = TEXT.the_law(float(np.prod(lines["natural"][1])), step, before, after)
    return Screen("The law: an order deals prices out", text, partial(figures.price_lines, lines))


def columnar(values: Values, answered: bool) -> Screen:
    plan, shown = example.plan(), values["losses"]
    losses, columns = plan.block_loss.tolist(), plan.column_loss.tolist()
    high, low, scores = max(losses), min(losses), plan.importance
    findings = {
        "importance": f"Importance runs from {float(scores.min()):.1f} to {float(scores.max()):.1f}",
        "pre-pruning": f"{int((plan.potential_loss > 0).sum())} of {scores.numel()} weights would go",
        "losses": f"Block {losses.index(high) + 1} would lose most: {high:.1f}",
    }
    subtitle, marks = "Importance S, three blocks of three columns", dict[str, Any]()
    if shown != "importance":
        subtitle, marks["removed"] = f"{subtitle}; struck: would be removed", plan.potential_loss > 0
    if shown == "losses":
        marks |= {"below": {"column loss": columns, "block loss": losses}, "marked": losses.index(high)}
    stage = partial(figures.number_matrix, scores, findings[shown], subtitle, **marks)
    return Screen("Columnar: one block loses much more", TEXT.columnar(plan, columns, high, low), stage)


def the_order(values: Values, answered: bool) -> Screen:
    plan = example.plan()
    columns = plan.permutation.tolist() if answered else list(NATURAL)
    losses = [float(plan.block_loss[column // 3]) for column in columns[::3]]
    natural, ordered = (example.prune(order).relative_error for order in ("natural", "two_level"))
    listed = ", ".join(str(column + 1) for column in columns)
    claim, finding, below = "Which block goes first?", "Which first?", {}
    if answered:
        claim, finding = "ROSE's order: the dearest block first", f"Pruned in the order {listed}"
        below = {"column loss": plan.column_loss[columns].tolist(), "block loss": losses}
    marks: dict[str, Any] = {"removed": (plan.potential_loss > 0)[:, columns], "columns": columns, "below": below}
    scores, subtitle = plan.importance[:, columns], "Importance S, columns as they are pruned"
    stage = partial(figures.number_matrix, scores, finding, subtitle, **marks)
    return Screen(claim, TEXT.the_order(answered, listed, losses, natural, ordered), stage)


def your_turn(values: Values, answered: bool) -> Screen:
    return Screen("Your turn: beat ROSE", TEXT.your_turn())


def the_budget(values: Values, answered: bool) -> Screen:
    rows = []
    for budget in ("block", "layer"):
        for order in ("natural", "two_level", "random", "global"):
            names = RANDOM if order == "random" else (order,)
            error = float(np.mean([example.prune(name, budget).relative_error for name in names]))
            rows.append((order, budget, error))
    errors = pd.DataFrame(rows, columns=["order", "group", "error"])
    table = errors.assign(value=errors["error"] / errors["error"].iloc[0])
    names = table["order"].map(figures.ORDERS)
    table["name"] = names.str.replace(" (", "<br>(").str.replace(", ", ",<br>")
    ratio = table.set_index(["order", "group"])["value"].to_dict()
    subtitle, axis = "The 4 × 9 layer, a third of its weights removed", "error, natural order with equal shares = 1"
    if answered and values["budget_view"] == "shares":
        turns = []
        for order in ("natural", "two_level", "global"):
            result = example.prune(order, "layer")
            removed = result.mask[:, result.order.permutation].sum(0).split(3)
            turns += [(turn, order, int(block.sum())) for turn, block in zip(TURNS, removed, strict=True)]
        table = pd.DataFrame(turns, columns=["name", "group", "value"])
        finding, subtitle = "Under one threshold dear blocks keep their weights", "Weights that each block gives up"
        stage = partial(figures.bars, table, finding, subtitle, axis="weights removed, of 12", size=12, equal=4)
    elif answered:
        finding = "Packed columns are worst with equal shares, best with one threshold"
        stage = partial(figures.bars, table, finding, subtitle, axis=axis)
    else:
        finding = f"Equal shares: ROSE leaves {ratio['two_level', 'block']:.2f} of natural order's error"
        stage = partial(figures.bars, table.iloc[:2], finding, subtitle, axis=axis)
    return Screen("The budget decides", TEXT.the_budget(answered, ratio), stage)


def in_whole_models(values: Values, answered: bool) -> Screen:
    layers, ratio = example.example_layers(), example.perplexity_ratio
    ratios = {
        "ROSE": ratio("rose"),
        "ROSE ADMM": ratio("rose_admm"),
        "SparseGPT, tuned": ratio("sparsegpt", tuned=True),
        "ROSE, tuned": ratio("rose", tuned=True),
        "ROSE ADMM, tuned": ratio("rose_admm", tuned=True),
    }
    saved, columnar_layers = example.saved_by_rose(), int(layers["is_columnar"].sum())
    text = TEXT.in_whole_models(answered, len(layers), columnar_layers, saved, ratios)
    if not answered:
        return Screen("Does it help a whole model?", text, partial(figures.columnar_map, layers))
    subtitle = "SmolLM2-135M, 70 % zeros, towards the dense model; three draws of calibration text, 95 % intervals"
    finding = f"ROSE has {ratios['ROSE'].value:.2f} times SparseGPT's perplexity"
    caption = "From docs/results/headline.csv: 16 × 512 tokens of WikiText-2 to calibrate, 24 × 512 others to judge."
    stage = partial(figures.ratio_lines, ratios, subtitle, finding, caption)
    return Screen("In a whole model little is left", text, stage)


def make_columnar(values: Values, answered: bool) -> Screen:
    layers, chosen = example.turned(), values["basis"]
    texts = apart(*(layers[name].errors["sparsegpt"] for name in ("given", "learned", "random")))
    moved = max(layer.moved for layer in layers.values())
    errors, layer = example.errors_in_bases()[: None if answered else 0], layers[chosen]
    stage = partial(figures.basis_panels, layer.importance, layer.relative_range, errors, chosen, BASES)
    return Screen("A layer can be made columnar", TEXT.make_columnar(answered, layers, texts, moved), stage)


def what_for(values: Values, answered: bool) -> Screen:
    names = {
        "natural/block": "SparseGPT",
        "rose": "ROSE, where columnar",
        "two_level/block": "Two-level order everywhere",
        "random:0/block": "Random order",
        "global/layer": "ROSE global",
        "rose_admm": "ROSE ADMM, no order",
    }
    errors = [(label, "error", example.output_error(name)) for name, label in names.items()]
    table = pd.DataFrame(errors, columns=["name", "group", "value"])
    rose, admm = (example.perplexity_ratio(method) for method in ("rose", "rose_admm"))
    finding = "Revising the mask helps more than any order"
    subtitle = "Held-out error of SmolLM2-135M's 30 output projections at 70 %, SparseGPT = 1"
    caption = "From docs/results/orders-outputs.csv: means over 30 layers and three draws of calibration text."
    stage = partial(figures.bars, table, finding, subtitle, caption)
    return Screen("So what is ROSE for?", TEXT.what_for(example.saved_by_rose(), rose, admm), stage)


LESSONS = (
    Lesson(
        "One weight goes",
        one_weight,
        (
            Slider("alike", "Overlap H₁₂", tuple(k / 10 for k in range(10)), 0.6),
            Slider("removed", "Remove weight", (1, 2, 3), 1),
        ),
        proof=("Where does the formula come from?", TEXT.derivation()),
    ),
    Lesson(
        "Column by column",
        column_by_column,
        (
            Slider("pruned", "Blocks pruned", (0, 1, 2, 3), 0),
            Choice("shown", "Shown", {"weights": "w", "cost": "w² d", "standin": "S²"}),
        ),
    ),
    Lesson(
        "Early and late",
        early_and_late,
        question=Question(
            "How much of block 3's loss is made good when it goes last?", ("most", "about half", "hardly any"), 2
        ),
    ),
    Lesson(
        "The law",
        the_law,
        (
            Slider(
                "trade",
                "Swap two neighbours of natural order",
                tuple(range(9)),
                0,
                lambda step: f"{step} and {step + 1}" if step else "none",
            ),
        ),
        proof=("Why is that so?", TEXT.proof_of_the_law()),
    ),
    Lesson(
        "Columnar",
        columnar,
        (Choice("losses", "Shown", {"importance": "Importance", "pre-pruning": "Pre-pruning", "losses": "Losses"}),),
    ),
    Lesson(
        "ROSE's order",
        the_order,
        question=Question("Which block should go first?", ("block 1", "block 2", "block 3"), 2),
    ),
    Lesson("Your turn", your_turn),
    Lesson(
        "The budget",
        the_budget,
        (Choice("budget_view", "Shown", {"errors": "Errors", "shares": "What blocks give up"}, follows_answer=True),),
        Question("Which order leaves the least error with equal shares?", ("ROSE's", "global", "random"), 2),
    ),
    Lesson(
        "Whole models",
        in_whole_models,
        question=Question(
            "By how much does ROSE lower the whole model's perplexity?",
            ("by a fifth", "by a twentieth", "not at all"),
            2,
        ),
    ),
    Lesson(
        "Make a layer columnar",
        make_columnar,
        (Slider("basis", "Basis of the heads", tuple(BASES), "given", BASES.__getitem__),),
        Question("In the learned basis, what is SparseGPT's error?", ("higher", "the same", "lower"), 2),
    ),
    Lesson("What is ROSE for?", what_for),
)
