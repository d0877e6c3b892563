"""Checks fail on planted errors and pass on sound layers."""

from dataclasses import replace

import pytest
import torch

import rose
from rose.layer import checks, error
from rose.layer.pattern import parse_sparsity
from tests.layer.helpers import Layer, make_layer, statistics_of
from tests.refusals import refused


@pytest.mark.parametrize("method", ["rose", "sparsegpt", "wanda", "magnitude", "oats", "alps", "rose_dealt"])
def test_three_measures_agree_for_every_method(method):
    layer = make_layer(columns=24, dead=(3, 20), loud=4)
    result = layer.prune(method=method, sparsity=0.6)
    direct = checks.DirectError(layer.weight, {"it": result.weight})
    for part in layer.inputs.split(17):
        direct.update(part)
    assert direct.tokens == len(layer.inputs)
    measures = checks.measure_error(layer.weight, layer.statistics, result, direct.errors["it"])
    assert measures.quadratic_form > 0
    assert measures.sweep_sum == pytest.approx(measures.quadratic_form, rel=1e-3)
    assert measures.direct == pytest.approx(measures.quadratic_form, rel=1e-3)
    assert measures.check.status == "pass"
    assert measures.dense == pytest.approx(float((layer.inputs @ layer.weight.T).square().sum()), rel=1e-4)


@pytest.mark.parametrize(("factor", "status"), [(1.0, "pass"), (1.005, "look"), (1.2, "fail")])
def test_disagreement_is_judged_by_the_stated_limits(factor, status):
    measures = checks.ErrorMeasures("rose", 100.0, 100.0, 100.0 * factor, 1000.0)
    assert measures.disagreement == pytest.approx((factor - 1) / factor)
    assert measures.check.status == status
    assert measures.relative_error == 0.1


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_measures_that_are_not_finite_disagree(place, value):
    values = [100.0] * 3
    values[place] = value
    measures = checks.ErrorMeasures("rose", *values, 1000.0)
    assert measures.disagreement == float("inf")
    assert (measures.check.status, measures.check.finding) == ("fail", "a measure is not finite")


def test_the_curve_equals_pruning_on_each_prefix():
    layer, fresh = make_layer(tokens=64), make_layer(tokens=50, seed=0).inputs.flip(0)
    options = {"method": "rose", "sparsity": 0.5, "block_size": 8}
    curve = checks.CalibrationCurve(layer.weight, statistics_of(fresh), [16, 64, 40], **options)
    for part in torch.cat([layer.inputs, layer.inputs[:9]]).split(13):  # lengths fall inside batches
        curve.update(part)
    assert [point.tokens for point in curve.points] == [16, 40, 64]
    for point in curve.points:
        prefix = Layer(layer.weight, layer.inputs[: point.tokens])
        result = prefix.prune(method="rose", sparsity=0.5)
        assert point.calibration_error == pytest.approx(result.relative_error, rel=1e-3)
        unseen = error.direct_error(layer.weight, result.weight, fresh)
        dense = error.direct_error(layer.weight, torch.zeros_like(layer.weight), fresh)
        assert point.held_out_error == pytest.approx(unseen / dense, rel=1e-3)


def test_curve_needs_lengths():
    for lengths in ([], [0, 4]):
        refused("calibration length", checks.CalibrationCurve, torch.ones(2, 2), None, lengths)
    expected = {1: [8], 2: [8, 16], 5: [8, 16, 32, 40], 16: [8, 16, 32, 64, 128]}
    assert {samples: checks.prefix_lengths(samples, 8) for samples in expected} == expected


@pytest.mark.parametrize(
    ("calibration", "held_out", "status"),
    [
        *((0.1, 0.12, "pass"), (0.1, 0.2, "look"), (0.1, 0.4, "look"), (0.9, 1.05, "fail"), (0.0, 0.0, "pass")),
        *((0.1, None, None), (0.1, float("nan"), None)),
    ],
)
def test_overfitting_is_judged_by_the_stated_limits(calibration, held_out, status):
    check = checks.check_overfitting(calibration, held_out)
    assert (check and check.status) == status


@pytest.mark.parametrize(
    ("method", "sparsity", "unit", "units"),
    [
        ("sparsegpt", 0.55, "block", 4),
        ("rose", 0.55, "block", 4),
        ("rose_global", 0.55, "layer", 1),
        ("magnitude", 0.55, "layer", 1),
        ("wanda", 0.55, "row", 6),
        ("rose", "2:4", "group", 6 * 7),
        ("wanda", "1:4", "group", 6 * 7),
        ("oats", 0.5, "parameters", 1),
        ("oats", "2:4", "group", 6 * 7),
    ],
)
def test_realised_sparsity_is_counted_in_its_unit(method, sparsity, unit, units):
    layer = make_layer(columns=28, dead=(5,), loud=3)  # the last block is narrower
    check = checks.realised_sparsity(layer.prune(method=method, sparsity=sparsity), sparsity)
    assert (check.unit, check.units) == (unit, units)
    assert check.deviation <= check.allowed
    assert check.left == 0
    assert check.check.status == "pass"
    promised, weights = check.of_unit
    assert promised == parse_sparsity(sparsity).count(weights)
    assert weights * units >= layer.weight.numel()  # of the last, narrow block there are fewer


@pytest.mark.parametrize(
    ("method", "sparsity"), [("sparsegpt", 0.5), ("wanda", 0.5), ("magnitude", 0.5), ("rose", "2:4")]
)
def test_one_weight_too_many_fails(method, sparsity):
    result = make_layer().prune(method=method, sparsity=sparsity)
    mask = result.mask.clone()
    row, column = (~mask).nonzero()[0].tolist()
    mask[row, column] = True
    check = checks.realised_sparsity(replace(result, mask=mask), sparsity)
    assert (check.deviation, check.left) == (1, 1)
    assert check.check.status == "fail"
    assert "1 weight " in check.check.finding


def status(results: list[checks.Check]) -> dict[str, str]:
    return {check.name: check.status for check in results}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_nan_or_infinity_in_the_inputs_is_found(value):
    layer = make_layer()
    layer.inputs[7, 3] = value
    results = checks.check_inputs(layer.statistics, 0.01)
    assert status(results)["Finite inputs"] == "fail"
    assert results[0].finding == "1 of 32 input columns saw NaN or infinity"
    assert checks.worst(results) == "fail"


@pytest.mark.parametrize(
    ("statistics", "damping", "expected"),
    [
        (make_layer().statistics, 0.01, dict.fromkeys(["Finite inputs", "Live columns", "Enough tokens"], "pass")),
        (make_layer().statistics, 0.01, {"Damping as asked": "pass"}),
        (make_layer(tokens=12, dead=(1, 2)).statistics, 0.01, {"Live columns": "look", "Enough tokens": "look"}),
        (make_layer(tokens=12).statistics, 0.0, {"Damping as asked": "look"}),
        (torch.tensor([[1.0, 30.0], [30.0, 1.0]]), 0.01, {"Damping as asked": "fail"}),
    ],
)
def test_inputs_are_judged(statistics, damping, expected):
    if isinstance(statistics, torch.Tensor):
        statistics = rose.InputStatistics.from_hessian(statistics, tokens=10)
    assert expected.items() <= status(checks.check_inputs(statistics, damping)).items()
