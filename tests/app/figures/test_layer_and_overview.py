"""What the figures of the model and of one layer show, number by number."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import rose
from app.figures import hessian, losses, maps, methods, palette, shapes, style, weights

ALL = [f"model.layers.{b}.{p}" for b in range(5) for p in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")]


def title(drawing: style.Drawing) -> str:
    return drawing.figure.layout.title.text.split("</b>")[0].removeprefix("<b>").replace("<br>", " ")


def below(drawing: style.Drawing) -> str:
    return drawing.figure.layout.title.text.split("</b>")[1].replace("<br>", " ")


# Overview


def test_map_rings_columnar_layers_and_leaves_the_rest_blank(layers: pd.DataFrame) -> None:
    drawing = maps.model_map(layers, layers=ALL, marked_layer="model.layers.2.mlp.down_proj")
    (box,) = drawing.figure.layout.shapes
    assert (box.x0, box.x1, box.y0, box.y1, box.line.color) == (1.5, 2.5, 1.5, 2.5, palette.MARK)
    assert title(drawing) == (
        "Relative range is highest in 3 · self_attn.o_proj, 0.900; columnar layers lie in decoder blocks 1 and 3"
    )
    assert "not yet (3 of 15)" in below(drawing)
    assert drawing.caption.endswith("Three layers still to come.")
    heat, marks, rings = drawing.figure.data
    assert heat.z.shape == (3, 5)
    assert np.isnan(heat.z[:, 4]).all()
    assert heat.z[1, 3] == pytest.approx(0.9)
    assert list(marks.customdata[:2]) == ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"]
    assert list(zip(rings.x, rings.y, strict=True)) == [(1, "self_attn.o_proj"), (3, "self_attn.o_proj")]
    one = maps.model_map(layers, threshold=0.75)
    assert title(one).endswith("; the columnar layer lies in decoder block 3")
    assert title(maps.model_map(layers, threshold=0.95)).endswith("; no layer is columnar")


def expert_table() -> pd.DataFrame:
    """Two decoder blocks, attention and three experts; the largest of block 0 is expert 2's, of block 1 expert 0's."""
    rows = []
    for block in range(2):
        for projection, values in (("self_attn.o_proj", [0.3]), ("mlp.experts.{}.gate_proj", [0.7, 0.1, 0.9])):
            for expert, value in enumerate(values):
                name = projection.format(expert)
                value = value if block == 0 or "expert" not in name else 1 - value - 0.05
                rows.append((f"model.layers.{block}.{name}", block, name, value))
    return pd.DataFrame(rows, columns=["layer", "block_index", "projection", "relative_range"])


def test_experts_share_a_row_by_their_largest_value() -> None:
    table = expert_table()
    names = [*table["layer"], "model.layers.2.mlp.experts.1.gate_proj"]
    drawing = maps.model_map(table, layers=names, marked_layer="model.layers.0.mlp.experts.1.gate_proj")
    heat, marks, rings = drawing.figure.data
    assert list(heat.y) == ["self_attn.o_proj", "mlp.experts.*.gate_proj"]
    assert heat.z.shape == (2, 3)
    assert heat.z[1, :2].tolist() == pytest.approx([0.9, 0.85])
    assert np.isnan(heat.z[:, 2]).all()
    assert "model.layers.0.mlp.experts.2.gate_proj" in marks.customdata
    assert "model.layers.1.mlp.experts.1.gate_proj" in marks.customdata
    assert len(marks.customdata) == 4
    assert list(zip(rings.x, rings.y, strict=True)) == [(b, "mlp.experts.*.gate_proj") for b in (0, 1)]
    assert "of experts the largest" in below(drawing)
    assert "not yet (1 of 9)" in below(drawing)
    frame = [shape for shape in drawing.figure.layout.shapes if shape.type == "rect"]
    assert [(frame[0].x0, frame[0].y0, frame[0].y1)] == [(-0.5, 0.5, 1.5)]
    assert len(drawing.data) == 8  # the download has every expert


def test_experts_share_a_colour_and_a_cross() -> None:
    table = expert_table().assign(gain=0.1, dead_columns=3)
    drawn = maps.gain_scatter(table).figure.data
    assert [one.name for one in drawn] == ["self_attn.o_proj", "mlp.experts.*.gate_proj", "dead columns"]
    assert len(drawn[1].customdata) == 6
    drawing = maps.model_map(table)
    cross = next(trace for trace in drawing.figure.data if trace.name == "dead columns")
    assert len(cross.x) == 4
    assert "Eight layers have dead columns" in drawing.caption
    many = pd.concat([table.iloc[1:2]] * (shapes.SVG_MARKS + 1), ignore_index=True)
    assert {trace.type for trace in maps.gain_scatter(many).figure.data} == {"scattergl"}
    assert {trace.type for trace in drawn} == {"scatter"}


def test_experts_one_by_one_have_an_axis() -> None:
    table = expert_table()
    assert maps.expert_kinds(list(table["layer"])) == ["mlp.experts.*.gate_proj"]
    assert maps.expert_kinds(ALL) == []
    drawing = maps.model_map(table, layers=list(table["layer"]), experts="mlp.experts.*.gate_proj")
    heat, marks, *_ = drawing.figure.data
    assert list(heat.y) == ["expert 0", "expert 1", "expert 2"]
    assert heat.z.ravel().tolist() == pytest.approx([0.7, 0.25, 0.1, 0.85, 0.9, 0.05])
    assert len(marks.customdata) == 6
    assert "of every expert's gate_proj" in below(drawing)
    many = pd.concat([table.assign(projection=[f"mlp.experts.{k}.up_proj"] * 8, layer=f"{k}") for k in range(128)])
    assert maps.model_map(many, experts="mlp.experts.*.up_proj").figure.layout.height < 1100


def test_gain_against_range_counts_who_gains(layers: pd.DataFrame) -> None:
    drawing = maps.gain_scatter(layers, threshold=0.5)
    assert (
        title(drawing) == "Two-level order lowers the error of two of twelve layers, all two columnar layers among them"
    )
    shown = {name: (x, y) for t in drawing.figure.data for name, x, y in zip(t.customdata, t.x, t.y, strict=True)}
    for row in layers.itertuples():
        assert shown[row.layer] == pytest.approx((row.relative_range, row.gain), abs=1e-6)
    line = drawing.figure.layout.shapes[0]
    assert (line.x0, line.x1) == (0.5, 0.5)
    (note,) = [one for one in drawing.figure.layout.annotations if one.text.startswith("columnar above")]
    assert (note.y, note.yanchor) == (1, "bottom")  # outside the plot, where it covers no mark
    held = maps.gain_scatter(layers.assign(held_out_gain=-0.1))
    assert title(held) == "Two-level order lowers the held-out error of none of twelve layers"
    other = layers["relative_range"].idxmin()  # alone helped, and not columnar
    held = maps.gain_scatter(layers.assign(held_out_gain=[0.01 if i == other else -0.1 for i in layers.index]))
    assert title(held).endswith("held-out error of one of twelve layers, none of two columnar layers among them")


def test_gains_are_averaged_only_over_layers_that_there_are(layers: pd.DataFrame) -> None:
    caption = maps.gain_scatter(layers).caption
    assert "is 8.4 % less than SparseGPT's in two columnar layers and the same as SparseGPT's in ten others." in caption
    worse = maps.gain_scatter(layers.assign(gain=-0.1), threshold=0.95).caption
    assert worse.startswith("On average its error is 10.0 % more than SparseGPT's in twelve layers. It saves most in")
    one = maps.gain_scatter(layers[layers["relative_range"] > 0.85], threshold=0.505)
    assert title(one) == "Two-level order lowers the error of the one layer"
    assert one.caption.startswith("On average its error is 7.7 % less than SparseGPT's in one columnar layer. It saves")
    assert any(note.text == "columnar above 0.505" for note in one.figure.layout.annotations)


def test_where_there_is_nothing_no_layer_or_channel_is_singled_out(layers: pd.DataFrame) -> None:
    drawing = maps.model_map(layers.assign(relative_range=0.0))
    assert title(drawing) == "Relative range is 0 in all twelve layers; no layer is columnar"
    one = maps.model_map(layers.tail(1))
    assert one.caption == "Relative range is 0.120 in 3 · mlp.down_proj."
    assert title(weights.weight_map(torch.zeros(4, 6))) == "All weights are 0"
    plan = rose.plan_order(torch.rand(4, 6), torch.eye(6), sparsity=0, block_size=3)
    assert title(weights.potential_loss_map(plan)) == "No block would lose anything"
    assert title(weights.prepruning_mask(plan)) == "No weight would go"


def test_dead_columns_are_badged_with_the_range_without_them(layers: pd.DataFrame) -> None:
    row = layers.index[layers["layer"] == "model.layers.1.self_attn.o_proj"][0]
    layers = layers.assign(live_range=np.nan)
    layers.loc[row, ["dead_columns", "live_range"]] = [64, 0.12]
    drawing = maps.model_map(layers)
    cross = next(trace for trace in drawing.figure.data if trace.name == "dead columns")
    assert (list(cross.x), list(cross.y)) == ([1], ["self_attn.o_proj"])
    assert "One layer has dead columns; without them the relative range is 0.120 instead of 0.700" in drawing.caption


def test_each_metric_has_its_own_scale_and_name(layers: pd.DataFrame) -> None:
    drawing = maps.model_map(layers, "gain")
    heat = drawing.figure.data[0]
    assert heat.zmin == -heat.zmax
    assert np.nanmax(heat.z) == pytest.approx(1 - 0.10 / 0.11)
    assert title(drawing) == "Two-level order has less error than SparseGPT on two of twelve layers, more on none"
    assert title(maps.model_map(layers.assign(gain=0.0), "gain")) == (
        "Two-level order has SparseGPT's error on all twelve layers"
    )
    heat = maps.model_map(layers, "condition").figure.data[0]
    assert heat.z[0].tolist() == [1, 2, 3, 4]
    assert "log" in heat.colorbar.title.text
    assert list(heat.colorbar.ticktext) == ["10.0", "100", "1 000", "10 000"]
    near = maps.model_map(layers.assign(condition=np.linspace(12_000, 14_000, 12)), "condition").figure.data[0]
    assert list(near.colorbar.ticktext) == ["12 000", "14 000"]  # no power of ten lies between
    drawing = maps.model_map(layers, "error_rose")
    assert title(drawing).startswith("Relative error of ROSE is highest in ")
    assert np.nanmax(drawing.figure.data[0].z) == pytest.approx(layers["error_rose"].max())


def test_bars_are_sorted_and_answer_with_names(layers: pd.DataFrame) -> None:
    drawing = maps.range_bars(layers)
    (bar,) = drawing.figure.data
    assert list(bar.customdata)[:2] == ["model.layers.3.self_attn.o_proj", "model.layers.1.self_attn.o_proj"]
    assert bar.x.tolist() == sorted(layers["relative_range"], reverse=True)
    assert title(drawing) == "3 · self_attn.o_proj has the highest relative range, 0.900"


def test_missing_metric_or_layers(layers: pd.DataFrame) -> None:
    drawing = maps.model_map(layers.assign(gain=np.nan), "gain")  # no value, and none to come
    assert f"blank: no value ({len(layers)})" in below(drawing)
    assert "yet" not in drawing.caption
    assert title(drawing).endswith("no layer has one")
    with pytest.raises(rose.RoseError, match="no condition number of H"):
        maps.model_map(layers.drop(columns="condition"), "condition")
    with pytest.raises(rose.RoseError, match="measure layers on the start page"):
        maps.range_bars(layers.head(0))
    with pytest.raises(rose.RoseError, match="use fewer filters"):
        maps.gain_scatter(layers.head(0))


# One layer


def test_weight_map_finds_the_strong_column_and_shrinks_in_place() -> None:
    weight = torch.full((10, 30), 0.1)
    weight[:, 21] = -0.5
    drawing = weights.weight_map(weight, widths=(16, 14), marked_block=1)
    assert title(drawing) == "The strongest input channel is 21, 5.00 times the median one"
    (box,) = drawing.figure.layout.shapes
    assert (box.x0, box.x1) == (15.5, 29.5)
    assert drawing.caption.endswith("Block 1 is outlined.")
    assert drawing.data.shape == (10, 31)
    heat = weights.weight_map(torch.rand(600, 1200)).figure.data[0]
    assert heat.z.shape == (300, 400)
    assert (heat.x0, heat.dx, heat.y0, heat.dy) == (1, 3, 0.5, 2)


def test_diagonal_marks_dead_columns_and_damping() -> None:
    diagonal = torch.tensor([4.0, 0.0, 40.0, 1.0])
    drawing = hessian.hessian_diagonal(diagonal, added=2.0, arrange="sorted", scale="log")
    line, dead, level = drawing.figure.data
    assert line.customdata.tolist() == [2, 0, 3, 1]
    assert dead.customdata.tolist() == [1]
    assert level.name == "damping λ = 2.00"
    assert drawing.figure.layout.yaxis.type == "log"
    assert "no 0" in below(drawing)
    assert drawing.caption.startswith("One dead column of 4; the live ones span a factor of 40.0, and one of them lies")
    assert hessian.hessian_diagonal(diagonal).data["input_channel"].tolist() == [0, 1, 2, 3]


def test_massive_activations_are_named_with_the_errors() -> None:
    diagonal = torch.ones(400)
    diagonal[[7, 301]] = torch.tensor([2000.0, 8000.0])
    drawing = hessian.hessian_diagonal(diagonal, added=5.0, massive_errors=(0.001, 0.25))
    carried = "Input channels 301 and 7 carry 96.2 % of the input"
    without = "SparseGPT's relative error is 0.00100, and 0.250 without these channels."
    assert title(drawing) == carried
    assert drawing.caption.endswith(f"λ is 5.00 times the median of diag(H). {without}")
    weight = torch.randn(8, 400, generator=torch.Generator().manual_seed(0))
    plan = rose.plan_order(weight, diagonal.diag(), sparsity=0.5, block_size=100)
    strips = weights.layer_strips(weight, plan, diagonal.sqrt(), massive_errors=(0.001, 0.25))
    assert strips.caption.startswith(f"{carried}. {without} ")
    for shown in (drawing, strips):
        marks = next(trace for trace in shown.figure.data if trace.name == "massive activations")
        assert sorted(marks.x) == [7, 301]


def test_spectrum_counts_what_lies_below_the_damping() -> None:
    drawing = hessian.hessian_spectrum(torch.tensor([-1e-6, 1.0, 10.0, 100.0]), added=2.0)
    assert drawing.caption == (
        "Two eigenvalues of 4 lie below the damping λ = 2.00, which brings the condition number to 51.0."
    )
    assert drawing.data["eigenvalue"].tolist() == pytest.approx([100, 10, 1, -1e-6])
    assert title(drawing) == "One direction carries half of the input's energy"
    with pytest.raises(rose.RoseError, match="calibration inputs"):
        hessian.hessian_spectrum(torch.zeros(3))


def test_mask_counts_exactly_what_the_pattern_asks_in_cells_of_any_size(lab: SimpleNamespace) -> None:
    drawing = weights.prepruning_mask(lab.plan)
    heat = drawing.figure.data[0]
    assert heat.z.sum() == lab.plan.importance.numel() // 2
    assert heat.zmax == 1
    assert "480 of 960 weights (50.0 %)" in drawing.caption
    weight = 1 - torch.rand(1030, 520)  # without a 0, which has no importance and counts as removed
    plan = rose.plan_order(weight, torch.eye(520), sparsity=0.7, block_size=128)
    heat = weights.prepruning_mask(plan).figure.data[0]
    assert heat.z.shape == (344, 260)
    assert heat.zmax == 6
    assert heat.z.astype(int).sum() == int((plan.potential_loss > 0).sum())


def test_column_loss_leaves_the_narrow_block_blank(lab: SimpleNamespace) -> None:
    drawing = losses.column_loss_map(lab.plan, marked_block=2)
    heat = drawing.figure.data[0]
    assert heat.z.shape == (3, 16)
    assert np.isnan(heat.z[2, 8:]).all()
    assert heat.z[2, :8].tolist() == pytest.approx(lab.plan.column_loss[32:].tolist())
    (box,) = drawing.figure.layout.shapes
    assert (box.x1, box.y0, box.y1) == (7.5, 1.5, 2.5)
    assert drawing.data["column_loss"].tolist() == pytest.approx(lab.plan.column_loss.tolist())
    assert drawing.data["position"].tolist() == [*range(16), *range(16), *range(8)]


def test_losses_in_order_compare_what_the_costliest_block_adds() -> None:
    natural, ordered = np.array([0.1, 0.2, 0.5]), np.array([0.25, 0.1, 0.2])
    errors = {"natural": natural, "two_level": ordered}
    drawing = losses.losses_in_order(np.array([1.0, 2.0, 4.0]), [2, 1, 0], errors)
    assert (
        title(drawing)
        == "Block 2 loses most; pruned as number 1, not 3, it leaves 50.0 % less error than in natural order"
    )
    assert drawing.data["block"].tolist() == [0, 1, 2, 2, 1, 0]
    assert drawing.data["error"].tolist() == [*natural, *ordered]
    same = losses.losses_in_order(np.array([4.0, 2.0, 1.0]), [0, 1, 2], errors)
    assert title(same).startswith(
        "Block 0 loses most and is number 1 in both orders; all together leave 31.2 % less error"
    )


def test_block_bars_compare_per_column_and_draw_the_threshold(lab: SimpleNamespace) -> None:
    drawing = losses.block_loss_bars(replace(lab.plan, threshold=0.6), marked_block=1)
    bar = drawing.figure.data[0]
    assert bar.y.tolist() == pytest.approx(lab.plan.loss_per_column.tolist())
    assert list(bar.marker.pattern.shape) == ["", "", "/"]
    assert bar.marker.color[1] == palette.MARK
    assert drawing.figure.layout.shapes[0].y0 == pytest.approx(0.4 * float(lab.plan.loss_per_column.max()))
    assert title(drawing) == f"Columnar: relative range {lab.plan.relative_range:.3f}, above 0.6"
    assert title(losses.block_loss_bars(replace(lab.plan, threshold=1.0))).startswith("Not columnar")


def test_order_picture_follows_a_column(lab: SimpleNamespace) -> None:
    drawing = losses.order_picture(lab.plan, "two_level", marked_column=35)
    order = rose.make_order(lab.plan, "two_level")
    step = int(order.inverse[35])
    followed = drawing.figure.data[-1]
    assert list(followed.x) == [35, step]
    assert f"is pruned at step {step}." in drawing.caption
    assert title(drawing).startswith("Two-level: pruning starts in block 2, with column")
    assert drawing.data["step"].tolist() == order.inverse.tolist()
    names = [a.text for a in drawing.figure.layout.annotations[:6]]
    assert names == ["0", "1", "2", *map(str, lab.plan.loss_per_column.argsort(descending=True).tolist())]


def test_wide_layers_show_ribbons_where_blocks_stay_whole() -> None:
    plan = rose.plan_order(torch.rand(4, 1300), torch.eye(1300), sparsity=0.5, block_size=128)
    ribbons = losses.order_picture(plan, "blocks").figure.data
    assert {trace.fill for trace in ribbons} == {"toself"}
    lines = losses.order_picture(plan, "random:1")
    assert "a line for one column in 3" in below(lines)
    assert sum(len(trace.x) // 3 for trace in lines.figure.data) <= losses.PICTURE_LINES


def test_method_errors_name_the_saving(records: pd.DataFrame) -> None:
    one = records[records["layer"] == "model.layers.1.self_attn.o_proj"]
    drawing = methods.method_errors(one)
    assert title(drawing) == "ROSE has 9.1 % less error than SparseGPT"
    assert drawing.caption == "Error, lowest first: ROSE 0.100, SparseGPT 0.110."
    colours = [bar.marker.color for bar in drawing.figure.data]
    assert colours == [palette.METHOD_COLOURS[method] for method in ("sparsegpt", "rose")]
    several = methods.method_errors(records.assign(relative_error=np.where(records["method"] == "rose", 0.3, 0.2)))
    assert title(several).startswith("Against SparseGPT: ROSE has the higher error in")
    assert title(several).endswith("on average it is 50 % higher")
    with pytest.raises(rose.RoseError, match="No error"):
        methods.method_errors(records[records["projection"] == "mlp.down_proj"], column="held_out_error")


def test_a_projection_looks_the_same_whatever_is_filtered(layers: pd.DataFrame) -> None:
    def looks(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
        drawn = maps.gain_scatter(table, projections=layers["projection"].tolist()).figure.data
        return {one.name: (one.marker.color, one.marker.symbol) for one in drawn}

    last = layers["projection"].iloc[-1]
    assert looks(layers[layers["projection"] == last])[last] == looks(layers)[last]


def test_why_loss_dips_where_inputs_spike_is_told() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(32, 64, generator=generator), torch.randn(200, 64, generator=generator)
    for strength, is_told in ((1, False), (20, True)):
        inputs[:, 5] *= strength
        statistics = rose.InputStatistics(64)
        statistics.update(inputs)
        plan = rose.plan_order(weight, statistics, sparsity=0.5, block_size=16)
        caption = weights.layer_strips(weight, plan, statistics.mean_square.sqrt()).caption
        assert f"Relative range {plan.relative_range:.3f}." in caption
        assert ("Where inputs spike, the loss dips" in caption) is is_told
