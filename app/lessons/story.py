"""Ten lessons, from 0 to 9: stage and controls of each; `story.md.jinja` has the texts. The engine computes every
number.

A lesson has a text on the left, a stage on the right, controls, and a question for the class. Each answers the question
with which the one before ends. Columns and blocks are counted from 0, as on all pages; the paper counts from 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined

from app.figures import lessons as figures
from app.figures.lessons import signed
from app.figures.style import Drawing
from app.lessons import example
from app.study.setup import Setup
from app.words import number, percent, short_layer, word
from rose.layer.methods.rose_admm import ITERATIONS
from rose.layer.profile import block_sizes

Values = Mapping[str, Any]
SWAPS = (0, 1, 5, 6)  # of column j and the one before; 0: none. Of others the prices hardly change.
HEADS_LAYER = 2  # the decoder block of lesson 5, whose output projection is columnar with one head a block
SIZES = {"half": "½ and 1", "one": "1 and 2", "two": "2 and 4"}  # heads a block, of the two pictures
HEAD_COUNTS = ("half a head", "one head", "two heads", "four heads")
SWEEPS = ("natural/block", "two_level/block", "random/block", "natural/layer", "global/layer", "pivot/layer")
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
    shown: Literal["always", "before", "after"] = "always"  # the question is answered
    default: str = ""

    @property
    def first(self) -> str:
        return self.default or next(iter(self.options))


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


def what_pruning_is(values: Values, answered: bool) -> Screen:
    zeros = values["zeros"]
    mask, error = example.magnitude(zeros)
    finding = f"{zeros} of {mask.numel()} weights are zero, and {percent(error)} of the output is lost"
    subtitle = "Weights of a small layer; grey and struck: set to zero, smallest first"
    stage = partial(figures.number_matrix, example.WEIGHT, finding, subtitle, removed=mask)
    return Screen("What pruning is", TEXT.what_pruning_is(), stage)


def one_weight(values: Values, answered: bool) -> Screen:
    removal = example.remove_one(values["alike"], values["removed"])
    weights = {"before": removal.before.tolist(), "after": removal.after.tolist()}
    costs = {"nobody helps": removal.alone, "others help": removal.cost}
    stage = partial(figures.removal, removal.explained, weights, costs, values["removed"])
    text = TEXT.one_weight(values["removed"], removal, values["alike"])
    return Screen("One weight goes, others make up for it", text, stage)


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
    errors = [example.compensated(block) for block in range(3)]
    stage = partial(figures.early_late, errors, answered=answered)
    return Screen("Early and late", TEXT.early_and_late(answered), stage)


def the_law(values: Values, answered: bool) -> Screen:
    lines = {"natural": example.NATURAL}
    lines |= {name.partition(":")[0]: example.order(name) for name in ("random:0", "pivot")}
    before, swapped, changed = example.prune("natural"), "", 0
    if step := values["trade"]:
        natural = example.NATURAL
        lines["custom"] = (*natural[: step - 1], step, step - 1, *natural[step + 1 :])
        after = example.prune(lines["custom"])
        changed = int((after.mask & ~before.mask).sum())
        swapped = f"{number(before.relative_error)} to {number(after.relative_error)}"
    prices = {name: (columns, example.prices(columns)) for name, columns in lines.items()}
    text = TEXT.the_law(float(np.prod(prices["natural"][1])), step, swapped, changed)
    return Screen("The law of prices", text, partial(figures.price_lines, prices, step))


def heads(values: Values, answered: bool) -> Screen:
    first = list(SIZES).index(values["heads"])
    name, profile = example.output_profile(HEADS_LAYER)
    sizes = block_sizes(example.head_width())
    shown = {
        HEAD_COUNTS[at]: (profile.column_loss(sizes[at]).numpy(), sizes[at]) for at in (first, first + 1)
    }  # fmt: skip
    more = example.mean_of("heads.csv", "64") - 1
    text = TEXT.heads(answered, len(profile.weight_norm) // example.head_width(), example.head_width(), more)
    stage = partial(
        figures.heads, shown, example.head_width(), example.ranges_by_heads(), HEADS_LAYER,
        f"{short_layer(name)}, SmolLM2-135M, 70\u202f%",
    )  # fmt: skip
    return Screen("Heads make a layer columnar", text, stage)


def the_order(values: Values, answered: bool) -> Screen:
    plan = example.plan()
    ordered = plan.permutation.tolist()
    columns = ordered if answered else list(example.NATURAL)
    losses = [float(plan.loss_per_column[column // 3]) for column in columns[::3]]
    errors = {name: example.prune(name.partition("/")[0]).relative_error for name in SWEEPS[:2]}
    natural, two_level = errors.values()
    listed = ", ".join(map(str, ordered))
    text = TEXT.the_order(answered, plan, listed, losses)
    claim = "The block that loses most goes first" if answered else "Which block goes first?"
    if answered and values["outcome"] == "errors":
        finding = (
            f"ROSE's order leaves {number(two_level)} of {number(natural)}, {percent(1 - two_level / natural, 0)} less"
        )
        stage = partial(figures.bars, errors, finding, "Error of the 4 × 9 layer, a third of its weights removed")
        return Screen(claim, text, stage)
    marks: dict[str, Any] = {"columns": columns}
    shown, subtitle = values["losses"], "Importance S, three blocks of three columns"
    finding = f"Importance runs from {float(plan.importance.min()):.1f} to {float(plan.importance.max()):.1f}"
    if answered or shown != "importance":
        marks["removed"] = (plan.potential_loss > 0)[:, columns]
        finding, subtitle = "Pre-pruning would remove 12 of 36 weights", f"{subtitle}; struck: would be removed"
    if answered or shown == "losses":
        marks["below"] = {"column loss": plan.column_loss[columns].tolist(), "block mean": losses}
        finding = f"Block 2 would lose most: {max(losses):.2f} a column"
    if answered:
        finding, subtitle = f"Pruned in the order {listed}", "Importance S, columns as they are pruned"
    return Screen(claim, text, partial(figures.number_matrix, plan.importance[:, columns], finding, subtitle, **marks))


def your_turn(values: Values, answered: bool) -> Screen:
    return Screen("Your turn: beat ROSE", TEXT.your_turn())


def mask_and_sequence(values: Values, answered: bool) -> Screen:
    rows = [(*name.split("/"), *example.split(*name.split("/"))) for name in SWEEPS]
    toy = pd.DataFrame(rows, columns=["order", "budget", "error", "mask"])
    real = toy.assign(**{part: [example.part_of(name, part) for name in SWEEPS] for part in ("error", "mask")})
    finding = "ROSE's order repairs more; mixing and one threshold choose better zeros"
    if not answered:
        finding = "Orders leave less of SparseGPT's error, and one threshold least"
    layers = {"this 4 × 9 layer": toy, "15 output projections": real}
    stage = partial(figures.two_parts, layers, finding, answered=answered)
    return Screen("The mask and the sequence", TEXT.mask_and_sequence(answered, toy, real), stage)


def whole_models(values: Values, answered: bool) -> Screen:
    layers, ratio = example.example_layers(), example.perplexity_ratio
    columnar_layers, conditions = int(layers["is_columnar"].sum()), Setup().conditions
    ratios = {name: ratio(name) for name in ("rose", "rose_admm")}
    ratios |= {f"{name}, tuned": ratio(name, tuned=True) for name in ("sparsegpt", "rose", "rose_admm")}
    saved = example.saved_by_rose()
    text = TEXT.whole_models(answered, len(layers), columnar_layers, saved, ITERATIONS, ratios)
    if not answered:
        return Screen("Does it help a whole model?", text, partial(figures.columnar_map, layers, conditions))
    claim = "What ROSE is for"
    if values["whole"] == "layers":
        names = ("natural/block", "two_level/block", "random:0/block", "global/layer", "rose_admm")
        errors = {name: example.mean_of("orders-outputs.csv", name) for name in names}
        caption = "From docs/results/orders-outputs.csv: means over 30 layers and three draws of calibration text."
        subtitle = "Held-out error of 30 output projections at 70\u202f% zeros; SparseGPT = 1"
        stage = partial(figures.bars, errors, "Revising the mask helps more than any order", subtitle, caption)
        return Screen(claim, text, stage)
    subtitle = "SmolLM2-135M at 70\u202f% zeros, towards dense outputs; 95\u202f% intervals"
    finding = f"No clear difference: {ratios['rose'].value:.2f} times SparseGPT's perplexity"
    caption = "docs/results/headline.csv: three draws of 16 × 512 tokens of WikiText-2 to calibrate, 24 × 512 to judge."
    return Screen(claim, text, partial(figures.ratio_lines, ratios, subtitle, finding, caption))


LESSONS = (
    Lesson("What pruning is", what_pruning_is, (Slider("zeros", "Weights set to zero", (0, 6, 12, 18, 24, 30), 12),)),
    Lesson(
        "One weight goes",
        one_weight,
        (
            Slider("alike", "Overlap H₀₁", tuple(k / 10 for k in range(10)), 0.8),
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
        "The law of prices",
        the_law,
        (Slider("trade", "Swap columns", SWAPS, 0, lambda k: f"{k - 1} and {k}" if k else "none"),),
        proof=("Why is that so?", TEXT.proof_of_the_law()),
    ),
    Lesson(
        "Heads",
        heads,
        (Choice("heads", "Heads a block", SIZES, default="one"),),
        Question(
            "With one head a block, is SparseGPT's error smaller or larger than with two?", ("smaller", "larger"), 1
        ),
    ),
    Lesson(
        "ROSE's order",
        the_order,
        (
            Choice(
                "losses",
                "Shown",
                {"importance": "Importance", "pre-pruning": "Pre-pruning", "losses": "Losses"},
                shown="before",
            ),
            Choice("outcome", "Shown", {"order": "The order", "errors": "The error"}, shown="after"),
        ),
        Question("Which block should go first?", ("block 1, which loses least", "block 2, which loses most"), 1),
    ),
    Lesson("Your turn", your_turn),
    Lesson(
        "Mask and sequence",
        mask_and_sequence,
        question=Question(
            "ROSE moves blocks, and columns inside blocks. Which part gets smaller?",
            ("mostly the mask's", "mostly the sequence's", "both alike"),
            1,
        ),
    ),
    Lesson(
        "Whole models",
        whole_models,
        (Choice("whole", "Shown", {"models": "Whole models", "layers": "Single layers"}, shown="after"),),
        Question("By how much does ROSE lower perplexity?", ("a fifth", "a twentieth", "less than a hundredth"), 2),
    ),
)
