"""The layers that the lessons look at."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch

import rose
from app.lessons import subjects, texts
from app.lessons.subjects import LayerDesign
from rose.layer.pattern import parse_sparsity


def test_generated_layer_is_as_asked() -> None:
    weight, statistics = subjects.generate(LayerDesign(rows=32, blocks=4, strength=1.5, place=1, seed=3))
    plain, _ = subjects.generate(LayerDesign(rows=32, blocks=4, strength=0.0, place=1, seed=3))
    assert weight.shape == (32, 64)
    assert statistics.columns == 64
    assert torch.allclose(weight[:, 16:32], 2.5 * plain[:, 16:32])
    assert torch.equal(weight[:, 32:], plain[:, 32:])
    other, _ = subjects.generate(LayerDesign(rows=32, blocks=4, strength=1.5, place=1, seed=4))
    assert not torch.equal(weight, other)


def test_why_a_random_order_may_beat_a_good_one_is_told() -> None:
    subject = SimpleNamespace(plan=SimpleNamespace(pattern=parse_sparsity("0.5")))
    errors = dict.fromkeys(product(subjects.SEPARATED, ("block", "layer")), 0.4)
    for random, is_told in ((0.2, True), (0.5, False)):
        errors["random:0", "block"] = random
        told = texts.effects_lesson(subject, errors).text  # type: ignore[arg-type]
        assert ("because it mixes columns" in told) is is_told


def test_order_matters_more_the_stronger_a_late_block_is() -> None:
    points = subjects.strengths(LayerDesign(), subjects.STRENGTHS)
    ratios = [ratio for _, _, ratio in points]
    ranges = [spread for _, spread, _ in points]
    assert ranges == sorted(ranges)
    assert ratios[-1] < 0.7 < 0.9 < ratios[0]
    weight, statistics = subjects.generate(LayerDesign(strength=2.0))
    errors = [
        rose.prune_layer(weight, statistics, order=order, budget="block", sparsity=0.7, block_size=16).relative_error
        for order in ("natural", "two_level")
    ]
    assert points[subjects.STRENGTHS.index(2.0)][2] == pytest.approx(errors[1] / errors[0], rel=1e-5)
