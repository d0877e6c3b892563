"""The eleven lessons: stage and controls of each; `story.md.jinja` has the texts. The engine computes every number.

A lesson has a text on the left, a stage on the right, controls, and a question for the class. Each answers the question
with which the one before ends. Columns and blocks are counted from 0, as on all pages; the paper counts from 1.
"""

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
from app.figures.orders import basis_errors
from app.figures.style import Drawing
from app.lab.basis import BASES
from app.lessons import example
from app.study.setup import Setup
from app.words import apart, number, percent, word
from rose.layer.methods.rose_admm import ITERATIONS

Values = Mapping[str, Any]
LAST_BLOCK_FIRST = (6, 7, 8, 0, 1, 2, 3, 4, 5)
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
    removal = example.remove_one(values["alike"], values["removed"])
    weights = {"before": removal.before.tolist(), "after": removal.after.tolist()}
    costs = {"nobody helps": removal.alone, "others help": removal.cost}
    stage = partial(figures.removal, removal.hessian.tolist(), weights, costs, values["removed"])
    return Screen("One weight goes, others make up for it", TEXT.one_weight(values["removed"], removal), stage)


def column_by_column(values: Values, answered: bool) -> Screen:
    pruned, shown = values["pruned"], values["shown"]
    result, price = example.prune("natural"), example.prices()
    assert result.trace is not None
    now = result.trace.weights[pruned]
    matrix, subtitle = now, "Weights w as they stand"
    if shown == "cost":
        matrix, subtitle = now.square() * now.new_tensor(price), "Cost w² d of every weight as it stands"
    removed = result.mask & (np.arange(9) < 3 * pruned)
    finding = f"{int(removed.sum())} of {removed.numel()} weights are removed"
    finding += "" if pruned == 3 else f"; {int(result.mask.sum())} will be"
    marks: dict[str, Any] = {"removed": removed, "below": {"price d": price}, "marked": None if pruned == 3 else pruned}
    stage = partial(figures.number_matrix, matrix, finding, f"{subtitle}; grey and struck: removed", **marks)
    return Screen("Each column has a price", TEXT.column_by_column(price), stage)


def early_and_late(values: Values, answered: bool) -> Screen:
    orders = {"Block 2 goes first": LAST_BLOCK_FIRST, "Block 2 goes last": example.NATURAL}
    results = {name: example.prune(order) for name, order in orders.items()}
    traces = [result.trace for result in results.values() if result.trace is not None]
    shares = [float(trace.compensated[place] / trace.lost[place]) for trace, place in zip(traces, (0, 2), strict=True)]
    text = TEXT.early_and_late(answered, shares, [result.relative_error for result in results.values()])
    stage = partial(figures.early_late, results, example.energy(), shares, answered=answered)
    return Screen("Early and late", text, stage)


def the_law(values: Values, answered: bool) -> Screen:
    orders: dict[str, Sequence[int]] = {"natural": example.NATURAL}
    orders |= {name.partition(":")[0]: example.order(name) for name in ("random:0", "pivot")}
    if step := values["trade"]:
        orders["custom"] = [*example.NATURAL[: step - 1], step, step - 1, *example.NATURAL[step + 1 :]]
    lines = {name: (columns, example.prices(columns)) for name, columns in orders.items()}
    text = TEXT.the_law(float(np.prod(lines["natural"][1])))
    return Screen("The law: an order deals prices out", text, partial(figures.price_lines, lines, step))


def columnar(values: Values, answered: bool) -> Screen:
    plan, shown = example.plan(), values["losses"]
    losses, columns, scores = plan.loss_per_column.tolist(), plan.column_loss.tolist(), plan.importance
    high, low = (losses.index(extreme) for extreme in (max(losses), min(losses)))
    lost = [f"{loss:.1f}/{width}" for loss, width in zip(plan.block_loss, plan.block_width, strict=True)]
    findings = {
        "importance": f"Importance runs from {float(scores.min()):.1f} to {float(scores.max()):.1f}",
        "pre-pruning": f"{int((plan.potential_loss > 0).sum())} of {scores.numel()} weights would go",
        "losses": f"Block {high} would lose most: {losses[high]:.2f} per column",
    }
    subtitle, marks = "Importance S, three blocks of three columns", dict[str, Any]()
    if shown != "importance":
        subtitle, marks["removed"] = f"{subtitle}; struck: would be removed", plan.potential_loss > 0
    if shown == "losses":
        marks |= {"below": {"column loss": columns, "block mean": losses}, "marked": high}
    stage = partial(figures.number_matrix, scores, findings[shown], subtitle, **marks)
    return Screen("Columnar: one block loses much more", TEXT.columnar(plan, columns, lost[high], lost[low]), stage)


def the_order(values: Values, answered: bool) -> Screen:
    plan = example.plan()
    columns = plan.permutation.tolist() if answered else list(example.NATURAL)
    losses = [float(plan.loss_per_column[column // 3]) for column in columns[::3]]
    natural, ordered = (example.prune(order).relative_error for order in ("natural", "two_level"))
    listed = ", ".join(map(str, columns))
    claim, finding, below = "Which block goes first?", "Which first?", {}
    if answered:
        claim, finding = "ROSE's order: the block that loses most first", f"Pruned in the order {listed}"
        below = {"column loss": plan.column_loss[columns].tolist(), "block mean": losses}
    marks: dict[str, Any] = {"removed": (plan.potential_loss > 0)[:, columns], "columns": columns, "below": below}
    subtitle = "Importance S, columns as they are pruned; struck: pre-pruning's guess"
    stage = partial(figures.number_matrix, plan.importance[:, columns], finding, subtitle, **marks)
    return Screen(claim, TEXT.the_order(answered, listed, losses, natural, ordered), stage)


def your_turn(values: Values, answered: bool) -> Screen:
    return Screen("Your turn: beat ROSE", TEXT.your_turn())


def the_budget(values: Values, answered: bool) -> Screen:
    orders = {name: (name,) for name in ("natural", "two_level", "random", "pivot", "global")}
    errors = {
        (order, budget): float(np.mean([example.prune(name, budget).relative_error for name in names]))
        for budget in figures.BUDGETS
        for order, names in (orders | {"random": example.RANDOM}).items()
    }
    ratio = {pair: error / errors["natural", "block"] for pair, error in errors.items()}
    labels = {order: figures.look_of(order).label.replace(" (", "<br>(") for order in orders}
    rows = [(labels[order], budget, value) for (order, budget), value in ratio.items()]
    table = pd.DataFrame(rows, columns=["name", "group", "value"])
    finding = f"Equal shares: random orders leave {ratio['random', 'block']:.2f} of the error"
    if answered:
        finding = f"One threshold leaves {ratio['natural', 'layer']:.2f} of the error"
    shown, subtitle = table.iloc[: None if answered else len(orders)], "The 4 × 9 layer, a third of its weights removed"
    stage = partial(figures.bars, shown, finding, subtitle, axis="error, SparseGPT = 1")
    if answered and values["budget_view"] == "shares":
        finding = "Under one threshold columns 6, 7 and 8 keep most weights"
        subtitle = "Bold: weights that a block gives up, of 12; below: its columns"
        stage = partial(figures.bars, shares_by_block(), finding, subtitle, axis="weights removed", equal=4)
    columns = ", ".join(map(str, example.order("global")))
    outputs = [example.mean_of("orders-outputs.csv", f"global/{budget}") for budget in ("block", "layer")]
    return Screen("The budget decides", TEXT.the_budget(answered, ratio, columns, outputs), stage)


def shares_by_block() -> pd.DataFrame:
    """How many weights each block gives up under one threshold: name of its turn, order, value, columns."""
    rows = []
    for order in ("natural", "two_level", "global"):
        result = example.prune(order, "layer")
        for turn, block in zip(("pruned first", "second", "last"), result.order.permutation.split(3), strict=True):
            columns = " ".join(map(str, block.tolist()))
            rows.append((turn, order, int(result.mask[:, block].sum()), columns))
    return pd.DataFrame(rows, columns=["name", "group", "value", "columns"])


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
    wikitext = int((example.measured()["file"] == "layers-70.csv").sum()), 1 - example.mean_of("layers-70.csv", "rose")
    conditions = Setup().conditions
    text = TEXT.in_whole_models(answered, len(layers), columnar_layers, conditions, saved, wikitext, ITERATIONS, ratios)
    if not answered:
        return Screen("Does it help a whole model?", text, partial(figures.columnar_map, layers, conditions))
    subtitle = "SmolLM2-135M at 70 % zeros, towards dense outputs; 95 % intervals"
    finding = f"No clear difference: {ratios['ROSE'].value:.2f} times SparseGPT's perplexity"
    caption = "docs/results/headline.csv: three draws of 16 × 512 tokens of WikiText-2 to calibrate, 24 × 512 to judge."
    stage = partial(figures.ratio_lines, ratios, subtitle, finding, caption)
    return Screen("In a whole model: no clear difference", text, stage)


def make_columnar(values: Values, answered: bool) -> Screen:
    layers, chosen = example.turned(), values["basis"]
    texts = apart(*(layers[name].errors["sparsegpt"] for name in ("given", "learned")))
    importance, relative_range = layers[chosen].importance, layers[chosen].relative_range
    top = max(max(layer.importance) for layer in layers.values())
    stage = partial(figures.importance_bars, importance, relative_range, top, example.HEAD_SIZE, BASES[chosen])
    if answered and values["basis_view"] == "errors":
        stage = partial(basis_errors, example.errors_in_bases(), BASES, chosen)
    outputs = example.mean_of("rotation.csv", "learned")
    return Screen("A layer can be made columnar", TEXT.make_columnar(answered, layers, texts, outputs), stage)


def what_for(values: Values, answered: bool) -> Screen:
    names = {
        "natural/block": "SparseGPT",
        "rose": "ROSE, where columnar",
        "two_level/block": "Two-level order everywhere",
        "random:0/block": "Random order",
        "global/layer": "ROSE global",
        "rose_admm": "ROSE ADMM, no order",
    }
    errors = [(label, "error", example.mean_of("orders-outputs.csv", name)) for name, label in names.items()]
    table = pd.DataFrame(errors, columns=["name", "group", "value"])
    rose, admm = (example.perplexity_ratio(method) for method in ("rose", "rose_admm"))
    subtitle = "Held-out error of 30 output projections at 70 % zeros; SparseGPT = 1"
    caption = "From docs/results/orders-outputs.csv: means over 30 layers and three draws of calibration text."
    stage = partial(figures.bars, table, "Revising the mask helps more than any order", subtitle, caption)
    return Screen("So what is ROSE for?", TEXT.what_for(example.saved_by_rose(), rose, admm), stage)


LESSONS = (
    Lesson(
        "One weight goes",
        one_weight,
        (
            Slider("alike", "Overlap H₀₁", tuple(k / 10 for k in range(10)), 0.6),
            Slider("removed", "Remove weight", (0, 1, 2), 0),
        ),
        proof=("Where does the formula come from?", TEXT.derivation()),
    ),
    Lesson(
        "Column by column",
        column_by_column,
        (
            Slider("pruned", "Blocks pruned", (0, 1, 2, 3), 0),
            Choice("shown", "Shown", {"weights": "w", "cost": "w² d"}),
        ),
    ),
    Lesson(
        "Early and late",
        early_and_late,
        question=Question("How much is compensated if block 2 goes last?", ("most", "half", "hardly any"), 2),
    ),
    Lesson(
        "The law",
        the_law,
        (Slider("trade", "Swap two neighbours", tuple(range(9)), 0, lambda k: f"{k - 1} and {k}" if k else "none"),),
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
        question=Question(
            "Which block should go first?", ("block 1, which loses least", "block 2, which loses most"), 1
        ),
    ),
    Lesson("Your turn", your_turn),
    Lesson(
        "The budget",
        the_budget,
        (Choice("budget_view", "Shown", {"errors": "Errors", "shares": "What blocks give up"}, follows_answer=True),),
        Question("What does one threshold leave of natural order's error?", ("nearly all", "half", "a fifth"), 2),
    ),
    Lesson(
        "Whole models",
        in_whole_models,
        question=Question(
            "By how much does ROSE lower perplexity?", ("a fifth", "a twentieth", "less than a hundredth"), 2
        ),
    ),
    Lesson(
        "Make a layer columnar",
        make_columnar,
        (
            Slider("basis", "Basis of the heads", tuple(BASES), "given", BASES.__getitem__),
            Choice("basis_view", "Shown", {"errors": "Errors", "columns": "Columns"}, follows_answer=True),
        ),
        Question("In the learned basis, what is SparseGPT's error?", ("higher", "the same", "lower"), 2),
    ),
    Lesson("What is ROSE for?", what_for),
)
