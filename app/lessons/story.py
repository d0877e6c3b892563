"""The eleven lessons: text, stage and controls of each. Every number is computed by the engine.

Each lesson answers the question with which the one before ends. Columns and blocks are counted from 1, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from app.figures import lessons as figures
from app.lab.bases import BASES
from app.lessons import basis, example, whole_models
from app.lessons.lesson import Choice, Lesson, Question, Screen, Slider
from app.words import apart, number, percent, word

Values = Mapping[str, Any]
BLOCK_3_FIRST = (6, 7, 8, 0, 1, 2, 3, 4, 5)
NATURAL = tuple(range(9))
RANDOM = tuple(f"random:{seed}" for seed in range(20))


def _display(formula: str) -> str:
    """A formula on a line of its own."""
    return f"\n\n$$\n{formula}\n$$\n\n"


def _signed(value: float, decimals: int = 2) -> str:
    return f"{value:.{decimals}f}".replace("-", "−")


# 1


def one_weight(values: Values, answered: bool) -> Screen:
    removal = example.remove_one(values["alike"], values["removed"] - 1)
    j, helpers = values["removed"], [k for k in (1, 2, 3) if k != values["removed"]]
    changes = " and ".join(
        f"weight {k} from {_signed(float(removal.before[k - 1]))} to {_signed(float(removal.after[k - 1]))}"
        for k in helpers
    )
    text = (
        r"A layer computes $y = w_1x_1 + w_2x_2 + w_3x_3$. **H** says how much its inputs overlap: "
        r"$H_{jk} = \sum_t x_{jt}x_{kt}$ over all tokens t; here $H_{jj} = 1$."
        "\n\nRemove $w_j$, and let the other weights change as is best. This error stays:"
        + _display(r"\frac{w_j^2}{[H^{-1}]_{jj}}")
        + f"The part of input {j} that the others cannot explain is "
        f"$1/[H^{{-1}}]_{{{j}{j}}} = {1 / float(removal.inverse[j - 1, j - 1]):.2f}$. Without help the error would be "
        f"$w_{j}^2H_{{{j}{j}}} = {removal.alone:.2f}$; with help {removal.cost:.2f} stays. Compensation changes "
        f"{changes}."
        "\n\n*Next: what if many weights go, one column after another?*"
    )
    weights = {"before": removal.before.tolist(), "after": removal.after.tolist()}
    costs = {"nobody helps": removal.alone, "others help": removal.cost}
    overlaps = (values["alike"], example.SECOND_OVERLAP)
    return Screen(
        "One weight goes, others make up for it",
        text,
        lambda theme: figures.removal(overlaps, weights, costs, j - 1, theme=theme),
    )


DERIVATION = (
    r"Call the change of all weights $\delta$. It must remove weight j, $\delta_j = -w_j$, and keep the error "
    r"$\delta H \delta^\top$ small. With a Lagrange multiplier, $2H\delta^\top = \lambda e_j$."
    "\n\n"
    r"So $\delta^\top = -\frac{w_j}{[H^{-1}]_{jj}} H^{-1}e_j$, and $\delta H \delta^\top = "
    r"\frac{w_j^2}{[H^{-1}]_{jj}}$."
)


# 2


def column_by_column(values: Values, answered: bool) -> Screen:
    pruned, shown = values["pruned"], values["shown"]
    result, price = example.prune("natural"), example.prices()
    assert result.trace is not None
    now = result.trace.weights[pruned]
    removed = None if shown == "standin" else result.mask & (np.arange(9) < 3 * pruned)
    matrix, decimals, subtitle = {
        "weights": (now, 1, "Weights w as they stand"),
        "cost": (now.square() * np.array(price), 1, "Cost w² d of every weight as it stands"),
        "standin": (example.plan().importance.square(), 1, "S² of every weight, before anything is pruned"),
    }[shown]
    text = (
        "A sweep goes from left to right and never back: **only columns to the right can help**. The **price** of "
        "column j is the part of input j that the columns still free cannot explain:"
        + _display(r"d_j = \frac{1}{[H_{\text{free}}^{-1}]_{jj}} = \frac{1}{U_{jj}^2}")
        + r"U is the upper triangular factor of the inverse, $H^{-1} = U^\top U$ (Cholesky): it holds all prices. "
        f"Column 3 has the price {price[2]:.2f}. Nobody is left to help column 9: its price is $H_{{99}} = "
        f"{price[8]:.2f}$."
        "\n\nFrom every block of three columns SparseGPT removes the four weights of least cost $w^2 d$. ROSE looks "
        "ahead by S, where $S_{ij}^2 = w_{ij}^2 H_{jj}$ is the cost **if nobody helps**. S needs no U."
        "\n\n*Next: how much does it matter whether a column comes early or late?*"
    )
    removed_count = 4 * pruned
    finding = (
        f"{removed_count} of 12 weights are removed" if removed_count else "Nothing is removed yet: block 1 is next"
    )
    if shown == "standin":
        finding = "S² is what a weight would cost if nobody helped"
    return Screen(
        "Each column has a price",
        text,
        lambda theme: figures.number_matrix(
            matrix, finding, f"{subtitle}; grey and struck: removed", removed=removed, below={"price d": price},
            marked=None if pruned == 3 else pruned, decimals=decimals, theme=theme,
        ),
    )  # fmt: skip


# 3


def early_and_late(values: Values, answered: bool) -> Screen:
    results = {"Block 3 goes first": example.prune(BLOCK_3_FIRST), "Block 3 goes last": example.prune(NATURAL)}
    shares = []
    for result, place in zip(results.values(), (0, 2), strict=True):
        assert result.trace is not None
        shares.append(float(result.trace.compensated[place] / result.trace.lost[place]))
    first, last = (result.relative_error for result in results.values())
    text = (
        "The same layer, the same weights to choose from. Only the turn of block 3 differs: first, while six columns "
        "are still free, or last, when only its own are left."
    )
    if answered:
        text += (
            f"\n\nFirst, {percent(shares[0], 0)} of its loss is made good; last, {percent(shares[1], 0)}. The error of "
            f"the whole layer is {number(first)} where it goes first and {number(last)} where it goes last."
            "\n\nThe height of a pale bar changes too: a block that comes late has taken over what others lost."
            "\n\n*Next: then why not give every column an early turn?*"
        )
    return Screen(
        "Early and late",
        text,
        lambda theme: figures.early_late(results, example.energy(), 2, answered=answered, theme=theme),
    )


# 4


def the_law(values: Values, answered: bool) -> Screen:
    step = values["trade"]
    orders = {"natural": NATURAL}
    for name in ("two_level", "pivot"):
        orders[name] = tuple(example.prune(name).order.permutation.tolist())
    traded = ""
    if step:
        swapped = list(NATURAL)
        swapped[step - 1], swapped[step] = swapped[step], swapped[step - 1]
        orders["custom"] = tuple(swapped)
        before, after = (dict(zip(columns, example.prices(columns), strict=True)) for columns in (NATURAL, swapped))
        left, right = step - 1, step
        factor = after[left] / before[left]
        traded = (
            f"\n\n**Your trade.** Column {right + 1} now goes before column {left + 1}. The price of column {left + 1} "
            f"goes from {before[left]:.3f} to {after[left]:.3f}, {factor:.3f} times; that of column {right + 1} from "
            f"{before[right]:.3f} to {after[right]:.3f}, $1/{factor:.3f}$ times. All others stay."
        )
    lines = {name: (columns, example.prices(columns)) for name, columns in orders.items()}
    product = float(np.prod(lines["natural"][1]))
    text = (
        _display(r"\prod_j d_j = \det H")
        + f"whatever the order: here {number(product)}. The logarithms of every order have the same mean. **An order "
        f"deals prices out; it does not save.** Early columns are cheap, as many can help, and what is left over pays."
        "\n\n*Pivot* order is the steepest: redundant inputs go first, and those that nothing else explains last."
        f"{traded}"
        "\n\n*Next: then which columns should be cheap? Those that lose most.*"
    )
    return Screen("The law: an order deals prices out", text, lambda theme: figures.price_lines(lines, theme=theme))


LAW = (
    r"From $H^{-1} = U^\top U$ follows $\det H = 1/\det(U)^2 = \prod_j 1/U_{jj}^2 = \prod_j d_j$. Another order "
    r"exchanges rows and columns of H alike, and leaves its determinant as it is."
    "\n\nA swap of two neighbours leaves all other columns the same free columns, so only two prices change; their "
    "product cannot."
)


# 5 and 6


def columnar(values: Values, answered: bool) -> Screen:
    plan, shown = example.plan(), values["losses"]
    losses = plan.block_loss.tolist()
    high, low = max(losses), min(losses)
    columns = plan.column_loss.tolist()
    removed = None if shown == "importance" else plan.potential_loss > 0
    below = {"column loss": columns, "block loss": losses} if shown == "losses" else {}
    findings = {
        "importance": f"Importance runs from {float(plan.importance.min()):.1f} to {float(plan.importance.max()):.1f}",
        "pre-pruning": f"{int((plan.potential_loss > 0).sum())} of {plan.importance.numel()} weights would go",
        "losses": f"Block {losses.index(high) + 1} would lose most: {high:.1f}",
    }
    text = (
        "This layer has the importances of the ROSE paper. ROSE looks at it before any sweep."
        + _display(r"S_{ij} = |w_{ij}|\sqrt{\tfrac1T\textstyle\sum_t x_{jt}^2}")
        + "**Pre-pruning** strikes the four smallest S of every block. What is struck is the potential loss L."
        + _display(r"\ell_j = \textstyle\sum_i L_{ij} \qquad B_b = \sum_{j \in b} \ell_j")
        + f"Block 3 would lose {' + '.join(f'{loss:.1f}' for loss in columns[6:])} = {high:.1f}. The **relative "
        f"range** compares the blocks:"
        + _display(
            rf"r = \frac{{\max B - \min B}}{{\max B}} = \frac{{{high:.1f} - {low:.1f}}}{{{high:.1f}}} = "
            rf"{plan.relative_range:.2f}"
        )
        + f"That is above {plan.threshold:g}: the layer is **columnar**."
        "\n\n*Next: in which order should such a layer be pruned?*"
    )
    subtitle = "Importance S, three blocks of three columns" + (
        "; struck: would be removed" if removed is not None else ""
    )
    return Screen(
        "Columnar: one block loses much more",
        text,
        lambda theme: figures.number_matrix(
            plan.importance, findings[shown], subtitle, removed=removed, below=below, theme=theme,
            marked=losses.index(high) if shown == "losses" else None,
        ),
    )  # fmt: skip


def the_order(values: Values, answered: bool) -> Screen:
    plan = example.plan()
    columns = plan.permutation.tolist() if answered else list(NATURAL)
    losses = [float(plan.block_loss[column // 3]) for column in columns[::3]]
    natural, ordered = (example.prune(order).relative_error for order in ("natural", "two_level"))
    text, finding, below = (
        "A block that goes first is helped by all columns, the last block by nobody.",
        "Which first?",
        {},
    )
    if answered:
        listed = ", ".join(str(column + 1) for column in columns)
        finding, below = f"Pruned in the order {listed}", {"column loss": plan.column_loss[columns].tolist()}
        below["block loss"] = losses
        text += (
            f" What loses most goes first: {' > '.join(f'{loss:.1f}' for loss in losses)}. The same rule orders the "
            f"columns inside each block. Both together are the **two-level order**: {listed}."
            f"\n\nHere it lowers the error from {number(natural)} to {number(ordered)}, by "
            f"{percent(1 - ordered / natural, 0)}."
            "\n\n**Names.** *SparseGPT* prunes in natural order. *ROSE* prunes columnar layers in two-level order, and "
            "all others as SparseGPT does. *ROSE global* is ours; lesson 8 has it."
            "\n\n*Next: is there a better order?*"
        )
    return Screen(
        "ROSE's order: the dearest block first" if answered else "Which block goes first?",
        text,
        lambda theme: figures.number_matrix(
            plan.importance[:, columns], finding, "Importance S, columns as they are pruned",
            removed=(plan.potential_loss > 0)[:, columns], columns=columns, below=below, theme=theme,
        ),
    )  # fmt: skip


# 7: its stage is the board


def your_turn(values: Values, answered: bool) -> Screen:
    return Screen(
        "Your turn: beat ROSE",
        "This is the layer of lessons 2 to 6. **Drag a column** by its head, or move it with the arrow keys: columns "
        "are pruned from left to right. **Change a weight** by typing another. Mask, compensation and error follow at "
        "once."
        "\n\nBelow the matrix stands the price of every column in your order. The cheapest four weights of every block "
        "go; under each weight stands what it has become."
        "\n\n*Next: most random orders beat ROSE here. Why?*",
    )


# 8


def the_budget(values: Values, answered: bool) -> Screen:
    rows = []
    for budget in ("block", "layer"):
        for order in ("natural", "two_level", "random", "global"):
            names = RANDOM if order == "random" else (order,)
            error = float(np.mean([example.prune(name, budget).relative_error for name in names]))
            rows.append((order, budget, error))
    table = pd.DataFrame(rows, columns=["order", "budget", "error"])
    table["ratio"] = table["error"] / table["error"].iloc[0]
    ratio = table.set_index(["order", "budget"])["ratio"]
    shown = table if answered else table[(table["budget"] == "block") & table["order"].isin(["natural", "two_level"])]
    text = (
        "Until now every block gave up **an equal share**: four of twelve weights. Columns can also be packed by loss "
        "over the whole layer (*global*), or shuffled (*random*, mean of 20)."
    )
    if answered:
        text += (
            f"\n\n**Equal shares.** Random order leaves {ratio['random', 'block']:.2f} of the error of natural order, "
            f"ROSE {ratio['two_level', 'block']:.2f}. A block of dear columns must give up four weights all the same; "
            f"random order mixes dear and cheap ones. Packing does the opposite: {ratio['global', 'block']:.2f}, the "
            f"worst."
            "\n\n**One threshold.** Weights go wherever $w^2 d$ is small, and a block of dear columns keeps its "
            f"weights. Now an uneven deal pays: packed, the error is {ratio['global', 'layer']:.2f}, the lowest. This "
            f"is ROSE global."
            "\n\n*Next: what is left of all this in a whole model?*"
        )
    if answered and values["budget_view"] == "shares":
        shares = {}
        for order in ("natural", "two_level", "global"):
            result = example.prune(order, "layer")
            removed = result.mask[:, result.order.permutation].sum(0)
            shares[order] = [int(block.sum()) for block in removed.split(3)]
        return Screen("The budget decides", text, lambda theme: figures.share_bars(shares, 12, 4, theme=theme))
    finding = f"Equal shares: ROSE leaves {ratio['two_level', 'block']:.2f} of natural order's error"
    if answered:
        finding = "Packed columns are worst with equal shares, best with one threshold"
    return Screen("The budget decides", text, lambda theme: figures.budget_bars(shown, finding, theme=theme))


# 9


def in_whole_models(values: Values, answered: bool) -> Screen:
    layers = whole_models.example_layers()
    every, columnar_layers = len(layers), int(layers["is_columnar"].sum())
    chosen = layers[layers["is_columnar"]]
    saved = 1 - float((chosen["two_level"] / chosen["sparsegpt"]).mean())
    text = (
        f"SmolLM2-135M has {every} layers to prune. At 70 % zeros {word(columnar_layers)} are columnar. In the other "
        f"{every - columnar_layers} ROSE does what SparseGPT does: **the same by construction**. In the "
        f"{word(columnar_layers)}, ROSE's order lowers the held-out error by {percent(saved, 0)} on average."
    )
    if not answered:
        return Screen(
            "Does it help a whole model?", text,
            lambda theme: figures.columnar_map(layers, theme=theme),
        )  # fmt: skip
    ratios = {
        "ROSE": whole_models.perplexity_ratio("rose"),
        "ROSE ADMM": whole_models.perplexity_ratio("rose_admm"),
        "SparseGPT, tuned": whole_models.perplexity_ratio("sparsegpt", tuned=True),
        "ROSE, tuned": whole_models.perplexity_ratio("rose", tuned=True),
        "ROSE ADMM, tuned": whole_models.perplexity_ratio("rose_admm", tuned=True),
    }
    text += (
        f"\n\nPerplexity is {ratios['ROSE'].value:.2f} times SparseGPT's, with a 95 % interval of "
        f"{ratios['ROSE'].bounds}: **no difference**."
        "\n\nOther ways do better than an order. *ROSE ADMM* has none; it **revises the mask** "
        f"({ratios['ROSE ADMM'].value:.2f} times). **Tuning** trains the weights that are left: SparseGPT, tuned, has "
        f"{ratios['SparseGPT, tuned'].value:.2f} times, ROSE, tuned, {ratios['ROSE, tuned'].value:.2f} times."
        "\n\n*Next: if few layers are columnar, can a layer be made so?*"
    )
    subtitle = "SmolLM2-135M, 70 % zeros, towards the dense model; three draws of calibration text, 95 % intervals"
    finding = f"ROSE has {ratios['ROSE'].value:.2f} times SparseGPT's perplexity"
    caption = "From docs/results/headline.csv: 16 × 512 tokens of WikiText-2 to calibrate, 24 × 512 others to judge."
    return Screen(
        "In a whole model little is left",
        text,
        lambda theme: figures.ratio_lines(ratios, subtitle, finding, caption, theme=theme),
    )


# 10


def make_columnar(values: Values, answered: bool) -> Screen:
    layers, chosen = basis.turned(), values["basis"]
    text = (
        "An attention layer puts out $y = W_oW_vx$. Each head may be **rotated** between the two matrices:"
        + _display(r"W_v' = R^\top W_v \qquad W_o' = W_oR")
        + "$W_o'W_v' = W_oW_v$: the model stays the same; its columns do not. Move the slider and look at the "
        "importances of the columns of $W_o$."
    )
    if answered:
        natural_basis, learned, random = (layers[name].errors["sparsegpt"] for name in ("given", "learned", "random"))
        moved = max(layer.moved for layer in layers.values())
        before, after, mixed = apart(natural_basis, learned, random)
        text += (
            f"\n\nThe dense output changes by {number(moved, 1)} of its norm: rounding. SparseGPT's held-out error "
            f"goes from {before} to {after}; in a random basis it is {mixed}."
            f"\n\nThe relative range rises from {layers['given'].relative_range:.2f} to "
            f"{layers['learned'].relative_range:.2f}: the layer has become columnar. Now ROSE's order applies, and "
            f"leaves {layers['learned'].errors['rose'] / layers['learned'].errors['sparsegpt']:.2f} of SparseGPT's "
            "error. **The basis is worth more than the order.**"
            "\n\n*Next: so what is ROSE for?*"
        )
    errors = basis.errors() if answered else basis.errors().iloc[:0]
    return Screen(
        "A layer can be made columnar",
        text,
        lambda theme: figures.basis_panels(
            layers[chosen].importance, layers[chosen].relative_range, errors, chosen, BASES, theme=theme
        ),
    )


# 11


def what_for(values: Values, answered: bool) -> Screen:
    names = {
        "natural/block": "SparseGPT",
        "rose": "ROSE, where columnar",
        "two_level/block": "Two-level order everywhere",
        "random:0/block": "Random order",
        "global/layer": "ROSE global",
        "rose_admm": "ROSE ADMM, no order",
    }
    errors = {label: whole_models.output_error(name) for name, label in names.items()}
    layers = whole_models.example_layers()
    chosen = layers[layers["is_columnar"]]
    saved = 1 - float((chosen["two_level"] / chosen["sparsegpt"]).mean())
    rose, admm = (whole_models.perplexity_ratio(method) for method in ("rose", "rose_admm"))
    text = (
        f"1. ROSE moves dear **blocks** to the cheap end. Where a layer is columnar and every block must give up an "
        f"equal share, that saves {percent(saved, 0)} of its error."
        f"\n2. A whole model has few such layers: perplexity is {rose.value:.2f} times SparseGPT's."
        f"\n3. Revising the mask does more and needs no order: {admm.value:.2f} times."
        "\n\n**What to do instead.** Prune with *ROSE ADMM*, the default of this app, and tune what is left. Use an "
        "order where you prune by one plain sweep: then take *ROSE global*."
        "\n\nSee for yourself: **Order lab › Your order** is lesson 7 with a real layer."
    )
    finding = "Revising the mask helps more than any order"
    subtitle = "Held-out error of SmolLM2-135M's 30 output projections at 70 %, SparseGPT = 1"
    caption = "From docs/results/orders-outputs.csv: means over 30 layers and three draws of calibration text."
    return Screen(
        "So what is ROSE for?",
        text,
        lambda theme: figures.remaining_bars(errors, subtitle, finding, caption, theme=theme),
    )


def _trade(step: int) -> str:
    return f"{step} and {step + 1}" if step else "none"


LESSONS = (
    Lesson(
        "One weight goes",
        one_weight,
        (
            Slider("alike", "Overlap H₁₂", tuple(k / 10 for k in range(10)), 0.6),
            Slider("removed", "Remove weight", (1, 2, 3), 1),
        ),
        proof=("Where does the formula come from?", DERIVATION),
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
        (Slider("trade", "Swap two neighbours of natural order", tuple(range(9)), 0, _trade),),
        proof=("Why is that so?", LAW),
    ),
    Lesson(
        "Columnar",
        columnar,
        (
            Choice(
                "losses",
                "Shown",
                {"importance": "Importance", "pre-pruning": "Pre-pruning", "losses": "Losses"},
            ),
        ),
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
