"""Numbers in the figures of one layer: weights, Hessian, losses, orders, sweeps, and checks of its errors."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import rose
from app.figures import explore, losses, methods, orders, palette, sweeps, trust, weights
from app.figures.style import Drawing
from app.words import percent
from rose.layer.checks import CurvePoint, ErrorMeasures
from rose.layer.error import quadratic_form
from rose.layer.profile import profile
from rose.layer.trace import SweepTrace
from tests.app.figures.test_contract import below, title
from tests.refusals import refused


def test_weight_map_finds_the_strongest_column_and_shrinks_in_place():
    weight = torch.full((10, 30), 0.1)
    weight[:, 21] = -0.5
    drawing = weights.weight_map(weight, widths=(16, 14), marked_block=1)
    assert title(drawing) == "Input channel 21 has the largest sum of |W|, 5.0 times the median channel's"
    (box,) = drawing.figure.layout.shapes
    assert (box.x0, box.x1) == (15.5, 29.5)
    assert drawing.caption.endswith("Block 1 is outlined.")
    assert drawing.data.shape == (10, 31)
    heat = weights.weight_map(torch.rand(600, 1200)).figure.data[0]
    assert heat.z.shape == (300, 400)
    assert (heat.x0, heat.dx, heat.y0, heat.dy) == (1, 3, 0.5, 2)


def test_mask_counts_what_the_pattern_asks_in_cells_of_any_size(lab):
    drawing = weights.prepruning_mask(lab.plan)
    heat = drawing.figure.data[0]
    assert heat.z.sum() == lab.plan.importance.numel() // 2
    assert heat.zmax == 1
    assert "480 of 960 weights (50.0\u202f%)" in drawing.caption
    weight = 1 - torch.rand(1030, 520)  # without a 0, which has no importance and counts as removed
    plan = rose.plan_order(weight, torch.eye(520), sparsity=0.7, block_size=128)
    heat = weights.prepruning_mask(plan).figure.data[0]
    assert (heat.z.shape, heat.zmax) == ((344, 260), 6)
    assert heat.z.astype(int).sum() == int((plan.potential_loss > 0).sum())


def test_diagonal_marks_dead_columns_and_damping():
    diagonal = torch.tensor([4.0, 0.0, 40.0, 1.0])
    drawing = weights.hessian_diagonal(diagonal, added=2.0, arrange="sorted", scale="log")
    line, dead, level = drawing.figure.data
    assert line.customdata.tolist() == [2, 0, 3, 1]
    assert dead.customdata.tolist() == [1]
    assert level.name == "damping λ = 2.00"
    assert drawing.figure.layout.yaxis.type == "log"
    assert "no 0" in below(drawing)
    assert drawing.caption.startswith("One dead column of 4; the live ones span a factor of 40.0, and one of them lies")
    assert weights.hessian_diagonal(diagonal).data["input_channel"].tolist() == [0, 1, 2, 3]


def test_spectrum_counts_eigenvalues_below_the_damping():
    drawing = weights.hessian_spectrum(torch.tensor([-1e-6, 1.0, 10.0, 100.0]), added=2.0)
    assert drawing.caption.startswith("Two eigenvalues of 4 lie below the damping λ = 2.00")
    assert drawing.data["eigenvalue"].tolist() == pytest.approx([100, 10, 1, -1e-6])
    assert title(drawing) == "One direction carries half of the input's energy"
    refused("calibration inputs", weights.hessian_spectrum, torch.zeros(3))


def test_column_loss_leaves_the_rest_of_a_narrow_block_blank(lab):
    drawing = losses.column_loss_map(lab.plan, marked_block=2)
    heat = drawing.figure.data[0]
    assert heat.z.shape == (3, 16)
    assert np.isnan(heat.z[2, 8:]).all()
    assert heat.z[2, :8].tolist() == pytest.approx(lab.plan.column_loss[32:].tolist())
    (box,) = drawing.figure.layout.shapes
    assert (box.x1, box.y0, box.y1) == (7.5, 1.5, 2.5)
    assert drawing.data["column_loss"].tolist() == pytest.approx(lab.plan.column_loss.tolist())
    assert drawing.data["position"].tolist() == [*range(16), *range(16), *range(8)]


def test_block_bars_compare_losses_per_column_and_draw_the_threshold(lab):
    drawing = losses.block_loss_bars(replace(lab.plan, threshold=0.6), marked_block=1)
    bar, per_column = drawing.figure.data[0], lab.plan.loss_per_column
    assert bar.y.tolist() == pytest.approx(per_column.tolist())
    assert list(bar.marker.pattern.shape) == ["", "", "/"]
    assert bar.marker.color[1] == palette.MARK
    assert drawing.figure.layout.shapes[0].y0 == pytest.approx(0.4 * float(per_column.max()))
    assert title(drawing) == f"Columnar: relative range {lab.plan.relative_range:.3f}, above 0.6"
    assert title(losses.block_loss_bars(replace(lab.plan, threshold=1.0))).startswith("Not columnar")


def drawn(drawing: Drawing) -> list[list[float]]:
    """The heights of the bars of each strip."""
    return [list(trace.y) for trace in drawing.figure.data]


def test_strips_have_the_columns_of_the_plan_in_either_order(lab):
    drawing = explore.strips(lab.columns, layer="1 · o_proj")
    expected = [lab.weight.norm(dim=0), (lab.plan.hessian_diagonal / lab.statistics.tokens).sqrt()]
    expected += [lab.plan.importance.mean(0), lab.plan.column_loss]
    for bars, values in zip(drawn(drawing), expected, strict=True):
        assert bars == pytest.approx(values.tolist(), rel=1e-5)
    assert title(drawing) == f"1 · o_proj is columnar: {lab.plan.relative_range:.2f}"
    assert below(drawing).endswith("what block 0 loses a column: its weights are large</span>")
    order = rose.make_order(lab.plan, "two_level")
    moved = explore.strips(lab.columns._replace(order=order))
    for bars, values in zip(drawn(moved), expected, strict=True):
        assert bars == pytest.approx(values[order.permutation].tolist(), rel=1e-5)
    assert moved.data["block"].tolist()[:8] == [2] * 8
    assert list(moved.figure.data[0].marker.color[:8]) == [0] * 8  # all of head 4
    plain = lab.columns._replace(head_width=None, threshold=0.9)
    assert title(explore.strips(plain)).startswith("The layer is not columnar: ")
    assert set(explore.strips(plain).figure.data[0].marker.color) == {1}


def test_wide_layers_show_the_largest_of_neighbouring_columns():
    weight, statistics = torch.rand(4, 1300), rose.InputStatistics(1300)
    statistics.update(torch.rand(2, 8, 1300))
    plan = rose.plan_order(weight, statistics, sparsity=0.5, block_size=128)
    columns = explore.Columns(profile(weight, plan, ()), 128, None, 0.5, plan.relative_range)
    drawing = explore.strips(columns)
    assert len(drawing.figure.data[3].y) == 434
    assert drawing.figure.data[3].y[0] == pytest.approx(float(plan.column_loss[:3].max()))
    assert drawing.caption == "A bar is the largest of its columns."
    assert len(drawing.data) == 1300
    assert len(explore.joined_blocks(columns, None).figure.layout.annotations) == 2 * 10  # without the narrow last one


def test_blocks_are_joined_to_where_they_go(lab):
    order = lab.columns.profile.order(lab.columns.size)
    drawing = explore.joined_blocks(lab.columns, order)
    per_column = lab.plan.loss_per_column
    visited = per_column.argsort(descending=True).tolist()
    names = [note.text.removeprefix("block ") for note in drawing.figure.layout.annotations]
    assert names == ["0", "1", "2", *map(str, visited)]
    assert drawing.data["loss_per_column"].tolist() == pytest.approx(per_column.tolist())
    assert drawing.data["step"].tolist() == [visited.index(block) for block in range(3)]
    boxes = [shape for shape in drawing.figure.layout.shapes if shape.type == "rect"]
    assert boxes[2].fillcolor == boxes[3].fillcolor == palette.ACCENT["light"][1], "the narrow, strong block goes first"
    assert (boxes[3].x0, boxes[3].x1) == (0, 7)
    stays = explore.joined_blocks(lab.columns._replace(threshold=0.9), None)
    assert title(stays) == "ROSE keeps the order of a layer that is not columnar"


def test_the_error_stands_twice_with_its_spread():
    row = pd.Series({"held_out_sparsegpt": 0.2, "held_out_rose": 0.15, "is_columnar": True})
    drawing = explore.errors_twice(row, draws=[0.25, 0.2, 0.31])
    assert [bar.x[0] for bar in drawing.figure.data] == [0.2, 0.15]
    assert [bar.text[0] for bar in drawing.figure.data] == ["0.200", "0.150, −25\u202f%"]
    assert "20\u202f% to 31\u202f% in 3 draws" in below(drawing)
    assert "One draw of text" in below(explore.errors_twice(row, draws=[0.25]))
    row = pd.Series(
        {"held_out_sparsegpt": float("nan"), "error_sparsegpt": 0.0, "error_rose": 0.0, "is_columnar": False}
    )
    drawing = explore.errors_twice(row)
    assert title(drawing).endswith("on calibration text")
    assert drawing.figure.data[1].text[0] == "0, the same"


def test_error_curve_is_the_undamped_error_so_far(lab):
    curves = {name: orders.so_far(result) / lab.energy for name, result in lab.results.items()}
    drawing = orders.error_curve(curves)
    for trace, (name, result) in zip(drawing.figure.data, lab.results.items(), strict=True):
        moved = [stage - lab.weight for stage in result.trace.weights]
        errors = [quadratic_form(change, lab.statistics.hessian) / lab.energy for change in moved]
        assert trace.y == pytest.approx(errors, rel=1e-4)
        assert trace.y[-1] == pytest.approx(result.relative_error, rel=1e-4)
        assert trace.line.color == palette.ORDER_COLOURS[name]
    saved = 1 - lab.results["two_level"].relative_error / lab.results["natural"].relative_error
    assert title(drawing) == f"Two-level, equal shares: {percent(saved, 0)} less error than SparseGPT"
    assert list(drawing.data.columns) == ["pruned_blocks", *lab.results]
    refused("No order is chosen", orders.error_curve, {})


def test_sweeps_have_the_name_of_a_method_only_where_order_and_budget_are_its_own():
    labels = {
        "natural": "SparseGPT",
        "two_level": "Two-level, equal shares",
        "global + layer": "ROSE global",
        "natural + layer": "Natural, one threshold",
        "two_level + layer": "Two-level, one threshold",
        "global": "Global, equal shares",
        "two_level_ascending": "Two-level, ascending, equal shares",
    }
    assert {run: orders.run_style(run).label for run in labels} == labels
    block, layered = orders.run_style("global"), orders.run_style("global + layer")
    assert block.colour == layered.colour
    assert block.dash != layered.dash


def test_mask_and_sequence_are_the_parts_of_each_error(lab):
    rows = [(order, result.relative_error, lab.masks[order]) for order, result in lab.results.items()]
    table = pd.DataFrame(rows, columns=["order", "relative_error", "mask_error"])
    table = table.assign(label=table["order"], says="equal shares", held_out_error=[0.4, 0.3, 0.5])
    drawing = orders.mask_and_sequence(table)
    mask, sequence, ring = drawing.figure.data
    base = lab.results["natural"].relative_error
    whole = table["relative_error"] / base
    assert mask.x + sequence.x == pytest.approx(whole.to_numpy())
    assert mask.x[0] == pytest.approx(lab.masks["natural"] / base)
    assert list(ring.x) == pytest.approx([1, 0.75, 1.25])
    numbers = [note.text for note in drawing.figure.layout.annotations if note.xanchor == "left"]
    assert numbers == ["<b>1.00</b>", "<b>0.75</b>", "<b>1.25</b>"]
    refused("choose a sparsity above 0", orders.mask_and_sequence, table.assign(relative_error=0.0))


def test_random_orders_are_one_bar():
    rows = [("natural", 0.2, 0.1), ("random", 0.1, 0.08), ("random", 0.2, 0.06)]
    table = pd.DataFrame(rows, columns=["order", "relative_error", "mask_error"])
    table = table.assign(label=table["order"].str.title(), says="equal shares", held_out_error=np.nan)
    drawing = orders.mask_and_sequence(table)
    mask, sequence = drawing.figure.data
    assert list(mask.x) == pytest.approx([0.5, 0.35])
    assert list(sequence.x) == pytest.approx([0.5, 0.4])
    assert drawing.caption.startswith("Saved in the mask and in the sequence: Random 0.15 and 0.10.")


def test_position_curve_compares_last_with_first():
    table = pd.DataFrame({"position": [2, 0, 1], "relative_error": [0.33, 0.22, 0.25]})
    drawing = orders.position_curve(table, block=25, base="two_level", place=2)
    assert title(drawing) == "Pruned last, block 25 leaves 50\u202f% more error than pruned first"
    curve, ring = drawing.figure.data
    assert curve.x.tolist() == [1, 2, 3]
    assert (list(ring.x), ring.name) == ([3], "its place in two-level order")
    assert drawing.figure.layout.yaxis.range[0] == 0


def test_order_bars_compare_with_natural_order():
    errors = {"natural": 0.1, "two_level": 0.08}
    rows = [(order, share, error * share) for order, error in errors.items() for share in (0.6, 0.7, 0.8)]
    table = pd.DataFrame(rows, columns=["order", "sparsity", "relative_error"])
    drawing = orders.order_bars(table)
    assert title(drawing) == "Two-level order leaves 20\u202f% less error than SparseGPT"
    assert [shape.y0 for shape in drawing.figure.layout.shapes] == pytest.approx([0.06, 0.07, 0.08])
    assert list(drawing.figure.layout.xaxis.ticktext) == ["60\u202f%", "70\u202f%", "80\u202f%"]


def test_titles_name_the_best_on_calibration_tokens_with_its_held_out_error():
    errors = pd.DataFrame({"relative_error": [0.2, 0.1, 0.15], "held_out_error": [0.2, 0.18, 0.1]})
    records = errors.assign(method=["sparsegpt", "rose", "rose_global"], layer="model.layers.0.mlp.up_proj")
    drawing = methods.method_errors(records, column="held_out_error")
    assert title(drawing) == "ROSE has 10\u202f% less error than SparseGPT"
    assert drawing.caption == "The title's method has the lowest calibration error."


def test_a_sweep_shows_pruned_cells_and_their_error(lab):
    results = [lab.results["two_level"], replace(lab.results["natural"], budget="layer")]
    first, veil, *_ = sweeps.sweep_state(results, 1, lab.energy).figure.data
    assert (first.z[:, :8] == 0).sum() == 96, "the narrow strong block comes first and gives up half of its 192 weights"
    assert (first.z[:, 8:] > 0).all()
    assert veil.z.tolist() == [[2] * 8 + [0] * 32]
    for result, line in zip(results, sweeps.sweep_state(results, 3, lab.energy).figure.data[-2:], strict=True):
        assert line.y[-1] == pytest.approx(result.relative_error, rel=1e-3)
    assert (line.name, line.marker.symbol[-5:]) == ("Natural, one threshold", "-open")
    ends = [sweeps.sweep_state([lab.results["natural"]], step, lab.energy).figure.data[0].z for step in (0, 3)]
    assert [(end == 0).sum() for end in ends] == [0, 480], "a small weight is not a pruned one"


def test_a_sweep_of_a_large_layer_stays_small(lab):
    stages = torch.rand(87, 300, 344)
    trace = SweepTrace(stages, torch.ones(86), torch.ones(86), torch.full((86,), 2.0), torch.zeros(86))
    order = rose.Order(torch.arange(344), (4,) * 86, "natural")
    result = replace(lab.results["natural"], trace=trace, order=order, weight=stages[-1])
    assert len(sweeps.sweep_state([result, result], 40, 100.0).figure.to_json()) < 500_000


def test_held_out_curve_compares_both_errors():
    points = [CurvePoint(256, 0.02, 0.09, 0.10, True), CurvePoint(512, 0.03, 0.06, 0.01)]
    drawing = trust.held_out_curve(points, method="sparsegpt")
    assert title(drawing) == "With 512 tokens, held-out error is 2.00 times the calibration error"
    held_out, calibration = drawing.figure.data
    assert held_out.y.tolist() == [0.09, 0.06]
    assert calibration.y.tolist() == [0.02, 0.03]
    assert drawing.caption.endswith("Damping had to be raised at one point.")
    assert "nothing was held out" in title(trust.held_out_curve([CurvePoint(256, 0.02, None, 0.01)], method="rose"))


def test_error_measures_are_relative_with_their_disagreement():
    measures = [ErrorMeasures("sparsegpt", 2.0, 2.5, 2.0, 10.0), ErrorMeasures("wanda", 3.0, 3.0, None, 10.0)]
    drawing = trust.error_measures(measures)
    assert drawing.figure.data[0].y.tolist() == [0.2, 0.3]
    assert np.isnan(drawing.figure.data[2].y[1])
    assert title(drawing) == "Three measurements of the error differ by at most 0.200"
    assert [note.text for note in drawing.figure.layout.annotations] == ["0.200 apart", "0 apart"]
