"""The lessons without Streamlit: their claims hold on the layers that they show, and their formulas agree."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from app.figures.palette import INKS
from app.lessons import example, story
from app.lessons.story import LESSONS, Slider
from tests.app.figures.test_contract import hold
from tests.benchmarks.example_study import copied_numbers

PAPER = json.loads((Path(__file__).parents[2] / "fixtures" / "worked_example.json").read_text())


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.title)
def test_every_choice_of_every_lesson_can_be_drawn(lesson):
    options = [c.values if isinstance(c, Slider) else tuple(c.options) for c in lesson.controls]
    screens = itertools.product(itertools.product(*options), {False, lesson.question is not None})
    for (chosen, answered), theme in zip(screens, itertools.cycle(INKS), strict=False):
        values = dict(zip((control.key for control in lesson.controls), chosen, strict=True))
        screen = lesson.screen(values, answered)
        assert "{" not in screen.claim
        if screen.stage is not None:
            hold(screen.stage(theme=theme), theme)


def test_worked_example_matches_the_paper():
    plan = example.plan()
    assert plan.importance.tolist() == [pytest.approx(row) for row in PAPER["importance"]]
    assert (plan.permutation + 1).tolist() == PAPER["permutation_one_based"]
    assert plan.block_loss.tolist() == pytest.approx(PAPER["block_loss"])


def test_the_printed_relative_range_follows_the_printed_formula():
    plan, text = example.plan(), story.columnar({"losses": "losses"}, False).text
    assert r"B_b = \frac{1}{n_b} \sum_{j \in b} \ell_j" in text
    *terms, printed = re.findall(r"frac{(\S+) - (\S+)}{(\S+)} = (\S+)", text)[0]
    high, low, largest = (float(loss) / float(width) for loss, width in (term.split("/") for term in terms))
    assert (high, low) == pytest.approx((float(plan.loss_per_column.max()), float(plan.loss_per_column.min())))
    assert plan.relative_range == pytest.approx((high - low) / largest)
    assert float(printed) == pytest.approx(plan.relative_range, abs=5e-4)


@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize("alike", [0.0, 0.6, 0.9])
def test_one_removal_is_the_least_squares_solution(alike, column):
    removal = example.remove_one(alike, column)
    change = removal.after - removal.before
    assert removal.after[column] == 0
    assert removal.cost == pytest.approx(float(change @ removal.hessian @ change))
    rest = [k for k in range(3) if k != column]
    best = torch.linalg.solve(removal.hessian[rest][:, rest], removal.hessian[rest, column] * removal.before[column])
    assert change[rest].tolist() == pytest.approx(best.tolist())
    text = story.one_weight({"alike": alike, "removed": column}, False).text
    assert f"with help {removal.cost:.2f} stays" in text


@pytest.mark.parametrize("step", range(1, 9))
def test_swapping_neighbours_keeps_the_product_of_prices(step):
    order = list(range(9))
    order[step - 1], order[step] = order[step], order[step - 1]
    before, after = np.array(example.prices("natural")), np.empty(9)
    after[order] = example.prices(order)
    pair, rest = [step - 1, step], [j for j in range(9) if j not in (step - 1, step)]
    assert after[rest] == pytest.approx(before[rest], rel=1e-4)
    assert after[pair].prod() == pytest.approx(before[pair].prod(), rel=1e-4)
    finding = story.the_law({"trade": step}, False).stage(theme="light").figure.layout.meta["finding"]
    assert f"column {step - 1} × {after[step - 1] / before[step - 1]:.2f}, of column {step} ÷" in finding


def test_answers_match_computed_errors():
    """The right answers of all questions, and the sentences that say how large the effects are."""
    assert "57\u202f% of its loss is compensated; last, 4\u202f%" in story.early_and_late({}, True).text
    assert "3.87 > 1.57 > 0.87" in story.the_order({}, True).text
    orders = {name: [name] for name in ("natural", "two_level", "global")} | {"random": example.RANDOM}
    error = {
        (order, budget): float(np.mean([example.prune(name, budget).relative_error for name in names]))
        for order, names in orders.items()
        for budget in ("block", "layer")
    }
    by_block = {order: value for (order, budget), value in error.items() if budget == "block"}
    assert min(by_block, key=by_block.__getitem__) == "random"
    assert max(error, key=error.__getitem__) == ("global", "block")
    assert min(error, key=error.__getitem__) == ("global", "layer")
    assert not example.perplexity_ratio("rose").is_clear
    assert example.perplexity_ratio("rose_admm").high < 1


def test_learned_basis_changes_the_error_and_not_the_model():
    layers = example.turned()
    assert max(layer.moved for layer in layers.values()) < 1e-6
    given, learned = layers["given"], layers["learned"]
    assert given.relative_range < 0.5 < learned.relative_range
    assert learned.errors["sparsegpt"] < 0.5 * given.errors["sparsegpt"]
    assert learned.errors["rose"] < learned.errors["sparsegpt"]
    assert given.errors["rose"] == given.errors["sparsegpt"]


def test_whole_model_numbers_match_the_documents():
    copied, packaged = copied_numbers(), example.measured()
    assert packaged.equals(copied), "run python -m tests.benchmarks.example_study whole_models"
    layers = example.example_layers()
    assert len(layers) == 210
    text = story.in_whole_models({}, True).text
    assert f"the other {210 - int(layers['is_columnar'].sum())} ROSE does what SparseGPT does" in text
