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


def test_the_relative_range_follows_from_the_printed_losses():
    plan, text = example.plan(), story.the_order({"losses": "losses"}, False).text
    printed = re.search(r"Block 2 loses (\S+) a column and block 1 (\S+): relative range (\S+), so", text)
    high, low, spread = map(float, printed.groups())
    assert spread == pytest.approx(plan.relative_range, abs=5e-4)
    assert spread == pytest.approx((high - low) / high, abs=0.005)


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
    assert removal.explained["both"] == pytest.approx(1 - removal.cost / removal.alone)
    text = story.one_weight({"alike": alike, "removed": column}, False).text
    assert f"with help {removal.cost:.2f} stays" in text


@pytest.mark.parametrize("step", story.SWAPS[1:])
def test_swapping_neighbours_keeps_the_product_of_prices(step):
    order = list(range(9))
    order[step - 1], order[step] = order[step], order[step - 1]
    before, after = np.array(example.prices("natural")), np.empty(9)
    after[order] = example.prices(order)
    pair, rest = [step - 1, step], [j for j in range(9) if j not in (step - 1, step)]
    assert after[rest] == pytest.approx(before[rest], rel=1e-4)
    assert after[pair].prod() == pytest.approx(before[pair].prod(), rel=1e-4)
    finding = story.the_law({"trade": step}, False).stage(theme="light").figure.layout.meta["finding"]
    factor = after[step - 1] / before[step - 1]
    assert f"column {step - 1} × {factor:.2f}, of column {step} ÷" in finding
    assert factor > 1.05, "a change that can be seen"


def finding(screen: story.Screen) -> str:
    return screen.stage(theme="light").figure.layout.meta["finding"]


def test_the_right_answers_are_what_is_computed():
    errors = example.compensated(2)
    repaired = {turn: 1 - errors[turn] / errors["nobody helps"] for turn in ("first", "last")}
    assert repaired["last"] < 0.1 < 0.4 < repaired["first"]
    assert "47\u202f% if it goes first, by 8\u202f% if last" in finding(story.early_and_late({}, True))
    assert example.mean_of("heads.csv", "64") > 1.02, "one head a block"
    ordered = story.the_order({"outcome": "errors"}, True)
    assert "3.87 > 1.57 > 0.87" in ordered.text
    assert "0.0685 of 0.107" in finding(ordered)
    assert not example.perplexity_ratio("rose").is_clear
    assert example.perplexity_ratio("rose_admm").high < 1


def test_compensation_of_a_block_is_the_least_squares_solution():
    weight, hessian = torch.tensor(example.WEIGHT).double(), example.hessian().double()
    root = torch.linalg.cholesky(hessian).T  # δHδᵀ = ‖root δᵀ‖²
    mask, errors = example.plan().potential_loss > 0, example.compensated(2)
    for turn, free in (("first", range(9)), ("last", range(6, 9))):
        total = 0.0
        for row, removed in zip(weight, mask, strict=True):
            gone = [column for column in range(6, 9) if removed[column]]
            kept = [column for column in free if column not in gone]
            missing = root[:, gone] @ row[gone]
            solution = torch.linalg.lstsq(root[:, kept], missing).solution
            total += float((missing - root[:, kept] @ solution).square().sum())
        assert errors[turn] == pytest.approx(total / example.energy())


@pytest.mark.parametrize("layer", ["toy", "real"])
def test_what_lesson_8_says_holds_in_the_toy_and_in_real_layers(layer):
    if layer == "toy":
        error, mask = (dict(zip(story.SWEEPS, part, strict=True)) for part in zip(*(
            example.split(*name.split("/")) for name in story.SWEEPS), strict=True))  # fmt: skip
    else:
        error, mask = ({name: example.part_of(name, part) for name in story.SWEEPS} for part in ("error", "mask"))
    saved = {name: 1 - error[name] for name in error}
    in_mask = {name: mask["natural/block"] - mask[name] for name in error}
    assert in_mask["two_level/block"] < 0.3 * saved["two_level/block"], "ROSE: the sequence"
    assert in_mask["random/block"] > 0.6 * saved["random/block"], "mixing: the mask"
    mixed = [mask[name] for name in ("global/layer", "pivot/layer")]
    assert max(mixed) / min(mixed) < 1.15, "one threshold: nearly the same mask in every order"


def test_lesson_5_counts_columnar_layers_by_heads():
    ranges = example.ranges_by_heads()
    counts = (ranges[..., 0] > 0.5).sum(1).tolist()
    assert counts == sorted(counts, reverse=True)
    screen = story.heads({"heads": "one"}, False)
    assert finding(screen) == f"With one head a block {counts[1]} of 30 are columnar, with four {counts[3]}"
    one, two = (text.text for text in screen.stage(theme="light").figure.layout.annotations[:2])
    assert one.endswith(", columnar")
    assert two.endswith(", not columnar")


def test_whole_model_numbers_match_the_documents():
    copied, packaged = copied_numbers(), example.measured()
    assert packaged.equals(copied), "run python -m tests.benchmarks.example_study whole_models"
    layers = example.example_layers()
    assert len(layers) == 210
    text = story.whole_models({}, False).text
    assert f"the other {210 - int(layers['is_columnar'].sum())} ROSE does what SparseGPT does" in text
