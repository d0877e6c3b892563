"""Requirements on every method: counts, edge cases, dtypes, and bad input."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import rose
from rose.layer.error import relative_error
from rose.layer.methods.toolkit import prune_by_mask
from tests.layer.helpers import ORDERS, Layer, block_sizes, every_method, layers, make_layer, ratios, statistics_of
from tests.refusals import refused

SWEEPING = [name for name, method in rose.METHODS.items() if method.sweeps]
SELECTING = ["magnitude", "wanda"]  # remove the smallest scores and change nothing else
# Over which unit a method promises its count, where that is not the block; "measured" chooses.
BUDGET = dict.fromkeys(("wanda", "dsnot"), "row")
BUDGET |= dict.fromkeys(("magnitude", "alps", "rose_admm", "rose_global"), "layer")
NO_MEAN = "needs the mean of the inputs, which a Hessian does not hold"
FILLED = "its low-rank part fills removed weights"
BOTH_PARTS = "counts parameters of two parts, see test_oats.py"
VARIANTS = [
    (name, {field.name: choice})
    for name, method in rose.METHODS.items()
    for field in method.options.fields().values()
    for choice in field.choices
]
every_variant = pytest.mark.parametrize(("method", "options"), [(name, {}) for name in rose.METHODS] + VARIANTS)


def blocks_of(result: rose.LayerResult) -> list[Tensor]:
    return list(result.mask[:, result.order.permutation].split(list(result.order.widths), dim=1))


@every_method(oats=BOTH_PARTS)
@given(layer=layers(), ratio=ratios, block_size=block_sizes)
def test_masks_have_exact_counts(method, layer, ratio, block_size):
    result = layer.prune(method=method, sparsity=ratio, block_size=block_size)
    rows, columns = layer.weight.shape
    removed = int(result.mask.sum())
    assert result.weight[result.mask].eq(0).all()
    assert result.sparsity == pytest.approx(removed / (rows * columns))
    assert result.method == method
    assert result.budget == BUDGET.get(method, "block") or method == "measured"
    if result.budget == "block":
        expected = [round(ratio * (rows * width)) for width in result.order.widths]
        assert [int(block.sum()) for block in blocks_of(result)] == expected
    elif result.budget == "row":
        assert result.mask.sum(1).tolist() == [round(ratio * columns)] * rows
    else:
        assert removed == round(ratio * (rows * columns))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("budget", ["block", "layer"])
@pytest.mark.parametrize("method", SWEEPING)
def test_order_and_budget_are_independent(method, order, budget):
    layer = make_layer(rows=5, columns=26, loud=6)
    result = layer.prune(method=method, order=order, budget=budget, sparsity=0.63)
    assert result.budget == budget
    assert torch.equal(result.order.permutation, rose.make_order(result.plan, order).permutation)
    of_blocks = sum(round(0.63 * 5 * width) for width in result.order.widths)
    assert int(result.mask.sum()) == (round(0.63 * 5 * 26) if budget == "layer" else of_blocks)
    if budget == "layer" and order == "natural":
        shares = [float(block.float().mean()) for block in blocks_of(result)]
        assert shares[-1] < min(shares[:-1])  # the loud columns are protected


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4", "4:8", "1:2", "0:4", "4:4"])
@every_method(oats=f"{FILLED}; of N:M is its sparse part, see test_oats.py")
def test_at_most_n_of_m_weights_stay(method, pattern):
    keep, of = map(int, pattern.split(":"))
    for layer in (make_layer(rows=5, columns=40), make_layer(rows=5, columns=40, loud=8, dead=[9])):
        result = layer.prune(method=method, sparsity=pattern)
        nonzeros = (result.weight != 0).view(5, -1, of).sum(2)
        assert int(nonzeros.max()) <= keep
        assert (result.mask.view(5, -1, of).sum(2) == of - keep).all()
        assert result.sparsity == pytest.approx(1 - keep / of)


@every_method()
def test_ratio_zero_changes_nothing(method):
    for layer in (make_layer(), make_layer(dead=[0, 7, 31], loud=8)):
        for nothing in (0, 0.0, "0%", "4:4"):
            result = layer.prune(method=method, sparsity=nothing)
            assert torch.equal(result.weight, layer.weight)
            assert not result.mask.any()
            assert result.relative_error == 0.0
            assert result.column_error.eq(0).all()


@every_method()
def test_ratio_one_removes_everything(method):
    for layer in (make_layer(columns=30), make_layer(dead=[0, 7], loud=8, columns=32)):
        for everything in (1, 1.0, "100%", "0:2"):
            result = layer.prune(method=method, sparsity=everything)
            assert result.weight.eq(0).all()
            assert result.mask.all()
            assert result.relative_error == pytest.approx(1.0, abs=1e-6)


def test_rose_is_sparsegpt_where_the_layer_is_not_columnar():
    flat = make_layer()
    assert not flat.prune().plan.is_columnar
    assert torch.equal(flat.prune().weight, flat.prune(method="sparsegpt").weight)
    loud = make_layer(loud=8)
    result = loud.prune()
    assert result.plan.is_columnar
    assert result.order.name == "two_level"
    assert torch.equal(result.weight, loud.prune(method="sparsegpt", order="two_level").weight)
    assert result.relative_error < loud.prune(method="sparsegpt").relative_error
    never = loud.prune(threshold=1.0)
    assert never.order.name == "natural"
    assert torch.equal(never.weight, loud.prune(method="sparsegpt").weight)


def test_orders_of_methods_by_name_and_by_permutation():
    layer = make_layer(loud=8)
    permutation = rose.plan_order(layer.weight, layer.statistics, block_size=8).permutation
    two_level = layer.prune(order="two_level").weight
    for same in (layer.prune(order=permutation), layer.prune(order=permutation.tolist())):
        assert torch.equal(same.weight, two_level)
    assert torch.equal(layer.prune(method="sparsegpt", order="rose").weight, layer.prune(method="rose").weight)
    by_hand = layer.prune(method="sparsegpt", order="global", budget="layer")
    assert torch.equal(layer.prune(method="rose_global").weight, by_hand.weight)


@given(layer=layers(), ratio=ratios)
def test_wanda_and_magnitude_by_hand(layer, ratio):
    score = layer.weight.abs() * layer.inputs.square().mean(0).sqrt()
    mask = layer.prune(method="wanda", sparsity=ratio).mask
    removed, least_kept = score.masked_fill(~mask, -1).amax(1), score.masked_fill(mask, torch.inf).amin(1)
    assert (removed <= least_kept * (1 + 1e-6)).all()
    result = layer.prune(method="magnitude", sparsity=ratio)
    size, mask = layer.weight.abs(), result.mask
    assert size.masked_fill(~mask, -1).max() <= size.masked_fill(mask, torch.inf).min()
    assert torch.equal(result.weight, layer.weight.masked_fill(mask, 0))


@every_method(oats="removes no weights for good: its low-rank part and its mask are found together")
@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9, "2:4"])
def test_never_worse_than_removing_the_same_weights(method, sparsity):
    for layer in (make_layer(rows=16, columns=48, tokens=200), make_layer(rows=16, columns=48, loud=8, dead=[3])):
        result = layer.prune(method=method, sparsity=sparsity, block_size=16)
        bare = relative_error(layer.weight, layer.weight.masked_fill(result.mask, 0), layer.hessian)
        if method in (*SELECTING, "dsnot"):  # compensate nothing
            assert torch.equal(result.weight, layer.weight.masked_fill(result.mask, 0))
        else:
            assert 0 < result.relative_error < bare


@every_variant
@given(layer=layers(), ratio=ratios, power=st.integers(-12, 12))
def test_scaling_h_changes_nothing(layer, ratio, method, options, power):
    """By powers of four, whose square roots are exact, so that results must be identical to the bit."""
    first, second = (
        rose.prune_layer(
            layer.weight,
            statistics_of(layer.inputs, weight),
            method=method,
            sparsity=ratio,
            block_size=8,
            options=options,
        )
        for weight in (1.0, 4.0**power)
    )
    assert torch.equal(first.mask, second.mask)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.order.permutation, second.order.permutation)
    assert first.plan.relative_range == second.plan.relative_range
    assert first.relative_error == second.relative_error
    assert first.damping == second.damping
    assert second.added_damping == first.added_damping * 4.0**power


@every_method()
@pytest.mark.parametrize(
    ("rows", "columns", "block_size"), [(1, 1, 8), (1, 17, 8), (6, 1, 8), (3, 9, 8), (3, 5, 128), (2, 6, 1)]
)
def test_small_and_uneven_shapes_are_pruned(method, rows, columns, block_size):
    for seed in range(5):
        layer = make_layer(rows=rows, columns=columns, seed=seed)
        result = layer.prune(method=method, block_size=block_size, sparsity=0.5, trace=True)
        assert result.weight.shape == result.mask.shape == (rows, columns)
        assert result.weight.isfinite().all()
        assert result.column_error.shape == (columns,)
        assert result.block_error.shape == (len(result.order.widths),)
        assert sum(result.order.widths) == columns


@every_variant
@pytest.mark.parametrize("scale", [1e-4, 1, 1e4])
def test_dead_columns_cost_nothing(method, options, scale):
    dead = [0, 5, 6, 31]
    layer = make_layer(dead=dead)
    result = replace(layer, inputs=layer.inputs * scale).prune(method=method, sparsity=0.5, options=options)
    assert result.column_error[dead].eq(0).all()
    assert result.weight.isfinite().all()
    assert result.plan.column_loss[dead].eq(0).all()
    if method != "magnitude":  # which does not know
        assert result.mask[:, dead].all()
        assert result.weight[:, dead].eq(0).all()


@every_method()
def test_a_layer_of_dead_columns_becomes_zero(method):
    layer = Layer(torch.randn(3, 8), torch.zeros(5, 8))
    result = layer.prune(method=method, sparsity=0.5, block_size=4)
    assert result.relative_error == 0.0
    assert result.plan.relative_range == 0.0
    assert int(result.mask.sum()) == (15 if method == "oats" else 12)  # in which a quarter of what is kept is L's


@every_method(oats=BOTH_PARTS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 1.0, "2:4"])
def test_a_zero_weight_stays_zero(method, sparsity):
    layer = Layer(torch.zeros(3, 16), make_layer(columns=16).inputs)
    result = layer.prune(method=method, sparsity=sparsity, trace=True)
    assert result.weight.eq(0).all()
    assert result.sparsity == pytest.approx(0.5 if isinstance(sparsity, str) else sparsity)
    assert result.relative_error == 0.0
    assert result.plan.relative_range == 0.0


@pytest.mark.parametrize(
    ("method", "order"), [(m, None) for m in rose.METHODS] + [(m, o) for m in ("rose", "rose_global") for o in ORDERS]
)
def test_blocks_of_zeros_are_pruned(method, order):
    """Whole blocks of zeros: nothing may be divided by what they lose."""
    layer = make_layer()
    layer.weight[:, 8:16] = 0
    result = layer.prune(method=method, order=order, sparsity=0.75)
    assert result.weight.isfinite().all()
    assert result.plan.relative_range == 1.0
    assert result.plan.is_columnar
    assert 0 < result.relative_error < 1
    if method in SELECTING:
        assert result.mask[:, 8:16].all()


@every_method()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept_and_the_mask_exact(method, dtype):
    layer = make_layer(loud=8)
    low = layer.weight.to(dtype)
    for sparsity in (0.0, 0.6, "2:4"):
        result = rose.prune_layer(low, layer.statistics, method=method, sparsity=sparsity, block_size=8)
        same = rose.prune_layer(low.float(), layer.statistics, method=method, sparsity=sparsity, block_size=8)
        assert result.weight.dtype == dtype
        assert torch.equal(result.mask, same.mask)
        assert torch.equal(result.weight, same.weight.to(dtype))
        if method != "oats":  # whose low-rank part fills removed weights
            assert torch.equal(result.weight == 0, result.mask)
        if sparsity == 0:
            assert torch.equal(result.weight, low)
        assert result.relative_error == pytest.approx(same.relative_error, rel=0.05)


@every_method()
@pytest.mark.parametrize("trace", [False, True])
def test_inputs_are_not_changed(method, trace):
    layer = make_layer(dead=[3], loud=8)
    statistics, weight = layer.statistics, layer.weight.clone()
    hessian = statistics.hessian.clone()
    ready = hessian.clone()
    for inputs in (statistics, ready)[: 1 + (method != "dsnot")]:  # which takes no ready Hessian
        rose.prune_layer(layer.weight, inputs, method=method, block_size=8, trace=trace)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(statistics.hessian, hessian)
    assert torch.equal(ready, hessian)


@every_method()
def test_weight_may_be_a_view(method):
    """GPT-2 stores W transposed, so W arrives as a view with swapped strides."""
    layer = make_layer(loud=8)
    view = layer.weight.T.contiguous().T
    result = rose.prune_layer(view, layer.statistics, method=method, block_size=8)
    assert torch.equal(result.weight, layer.prune(method=method).weight)


@pytest.mark.parametrize(
    ("method", "order"), [(m, None) for m in rose.METHODS] + [(m, o) for m in SWEEPING for o in ORDERS]
)
@pytest.mark.parametrize("damping", [0.0, 1e-7, 0.01])
def test_a_singular_hessian_raises_the_damping(method, order, damping):
    """Fewer tokens than columns, and two channels that are copies of each other."""
    for seed in range(2):
        layer = make_layer(columns=32, tokens=6, seed=seed)
        layer.inputs[:, 9] = layer.inputs[:, 4]
        result = layer.prune(method=method, order=order, damping=damping, sparsity=0.5)
        assert result.weight.isfinite().all()
        assert result.damping >= damping
        assert (result.damping > damping) == (damping < 0.01)
        assert result.added_damping == pytest.approx(result.damping * layer.hessian.diagonal().mean().item(), rel=1e-5)


def test_a_column_order_that_makes_h_indefinite_raises_the_damping():
    """Rank 5 of 576, damped by about the rounding error: one order can be factorized, another cannot."""
    raised = 0
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(64, 5, generator=generator) @ torch.randn(5, 576, generator=generator)
        layer = Layer(torch.randn(2, 576, generator=generator), inputs)
        for damping in (3e-6, 1e-5, 2e-5):
            for order in ("natural", "hessian"):
                result = layer.prune(order=order, damping=damping, block_size=128)
                assert result.weight.isfinite().all()
                assert result.damping >= damping
                raised += result.damping > damping
    assert raised


@pytest.mark.parametrize("method", ["sparsegpt", "rose_admm"])
def test_pruned_weights_that_their_dtype_cannot_hold_are_refused(method):
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(400, 4, generator=generator) @ torch.randn(4, 64, generator=generator)
    statistics = statistics_of(common + 0.05 * torch.randn(400, 64, generator=generator))
    weight = (2e4 * torch.randn(32, 64, generator=generator)).clamp(-6e4, 6e4)
    options = {"method": method, "sparsity": 0.7, "block_size": 16}
    assert rose.prune_layer(weight, statistics, **options).weight.abs().max() > torch.finfo(torch.float16).max
    refused(r"too large for torch\.float16; load the model", rose.prune_layer, weight.half(), statistics, **options)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused(bad):
    layer = make_layer()
    weight, hessian = layer.weight.clone(), layer.hessian
    weight[2, 3] = hessian[2, 3] = bad
    refused("W holds NaN or infinity", rose.prune_layer, weight, layer.statistics, method="rose")
    refused("H holds NaN or infinity", rose.prune_layer, layer.weight, hessian, method="rose")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "prune_harder"}, "no method named 'prune_harder'; choose one of rose, "),
        ({"sparsity": "2:5", "block_size": 10}, "input columns divisible by 5, but this layer has 32"),
        *(({"damping": bad}, "damping must be a number of at least 0") for bad in (-1, math.nan, math.inf, "much")),
        ({"threshold": 2}, "threshold must be a number from 0 to 1"),
        ({"order": "upwards"}, "no order named 'upwards'"),
        ({"budget": "row"}, "budget must be one of block, layer, not 'row'"),
        ({"method": "wanda", "order": "natural"}, "Wanda does not sweep over columns"),
        ({"method": "wanda", "options": {"start": "wanda"}}, "Wanda has no option 'start'; it has none"),
        ({"method": "dsnot", "options": {"start": "ria"}}, "one of wanda, magnitude, sparsegpt"),
        ({"method": "rose_admm", "options": {"effort": 11}}, "effort must be a whole"),
        ({"bits": 4, "method": "oats"}, "choose another method"),
        ({"bits": 4}, "choose the group 32 or row"),
        ({"options": 3.0}, "options must be names with values, not 3.0"),
        ({"trace": "foo"}, "trace must be True, False or 'errors', not 'foo'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    refused(message, make_layer().prune, **{"sparsity": 0.5, **options})


def test_weights_that_cannot_be_pruned_are_refused():
    for weight in (torch.zeros(8), torch.zeros(0, 8), torch.zeros(8, 0), torch.zeros(2, 2, 8)):
        refused("W must be a non-empty", rose.prune_layer, weight, torch.eye(8), method="rose")
    for dtype in (torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn):
        with pytest.raises(rose.RoseError, match=r"real floating-point numbers, not .*; dequantize it first"):
            rose.prune_layer(torch.ones(2, 8).to(dtype), torch.eye(8), method="rose")


@every_method()
def test_hessians_that_cannot_be_used_are_refused(method):
    indefinite = torch.tensor([[1.0, 9.0], [9.0, 1.0]])
    message = NO_MEAN if method == "dsnot" else "cannot be factorized even with a damping"
    refused(message, rose.prune_layer, torch.ones(2, 2), indefinite, method=method)


def _other_shape(*given):
    result = rose.METHODS["wanda"].prune(*given)
    return replace(result, weight=result.weight[:1])


def _in_place(weight, *more):
    mask = weight.abs() < 0.5
    weight[mask] = 0
    return rose.result_of(weight, weight, mask, *more, budget="layer")


def _three_of_a_group(weight, *more):
    mask = torch.arange(weight.shape[1]).remainder(2).eq(0).repeat(len(weight), 1)
    mask[0, :4] = torch.tensor([True, False, False, False])
    return prune_by_mask(weight, *more, mask, budget="row")


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        (lambda w, *more: rose.result_of(w, w, w.abs() < 0.5, *more, budget="layer"), "not 0 where its mask is"),
        (_other_shape, r"Faulty returned \(1, 32\) weights of torch.float32 on cpu; they must be as W, \(6, 32\)"),
        (_in_place, r"Faulty writes into W; let it change a copy, such as weight\.clone\(\)"),
        (lambda w, *more: rose.prune_by_score(w, *more, w, budget="rows"), "not by the budget 'rows'"),
        (
            lambda w, *more: prune_by_mask(w, *more, w, budget="row"),
            r"must be bool, .* \(6, 32\), not torch.float",
        ),
        (_three_of_a_group, r"Faulty keeps more than 2 weights in some groups of 4 .* not 2:4"),
        (lambda *_: {}["rank"], "Faulty failed: KeyError: 'rank'"),
        (lambda w, *more: rose.result_of(w, w * math.nan, w > 9, *more, budget=""), "Faulty gave NaN, although"),
        (lambda w, *more: rose.result_of(w, w * math.inf, w > 9, *more, budget=""), "too large for torch.float"),
        (lambda *_: None, "Faulty must return a LayerResult"),
    ],
)
def test_results_of_registered_methods_are_checked(prune, message, monkeypatch):
    monkeypatch.setattr("rose.layer.registry.METHODS", dict(rose.METHODS))
    rose.register("faulty", "Faulty", "Does something wrong.")(prune)
    layer = make_layer()
    before = layer.weight.clone()
    refused(message, layer.prune, method="faulty", sparsity="2:4" if prune is _three_of_a_group else 0.5)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("name", [5, None, "two words"])
def test_bad_registrations_are_refused(name):
    refused(f"A method cannot be named {name!r}", rose.register, name, "X", "X.")
    refused(f"An order cannot be named {name!r}", rose.register_order, name)
    message = r"The options of x must be a class of rose\.Spec, not \{'a': 3\}"
    refused(message, rose.register, "x", "X", "X.", options={"a": 3})
