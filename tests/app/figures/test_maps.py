"""Numbers in maps of layers, for one run or two, and in the scatter plot of gains."""

import numpy as np
import pandas as pd
import pytest

from app.figures import maps, palette, shapes
from app.words import percent, short_layer
from rose.verdicts import rank_correlation
from tests.app.figures.test_contract import below, title

ALL = [f"model.layers.{b}.{p}" for b in range(5) for p in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")]


def cells(trace: object) -> list[tuple[int, str]]:
    return list(zip(trace.x, trace.y, strict=True))


def expert_table() -> pd.DataFrame:
    """Two decoder blocks, attention and three experts; the largest of block 0 is expert 2's, of block 1 expert 1's."""
    rows = []
    for block in range(2):
        for projection, values in (("self_attn.o_proj", [0.3]), ("mlp.experts.{}.gate_proj", [0.7, 0.1, 0.9])):
            for expert, value in enumerate(values):
                name = projection.format(expert)
                value = value if block == 0 or "expert" not in name else 1 - value - 0.05
                rows.append((f"model.layers.{block}.{name}", block, name, value))
    return pd.DataFrame(rows, columns=["layer", "block_index", "projection", "relative_range"])


def test_map_has_the_accent_above_the_threshold_and_rings_what_is_undecided(layers):
    table = layers.assign(range_low=layers["relative_range"] - 0.02, range_high=layers["relative_range"] + 0.02)
    table.loc[table["layer"] == "model.layers.1.self_attn.o_proj", "range_low"] = 0.45
    drawing = maps.model_map(table, layers=ALL, marked_layer="model.layers.2.mlp.down_proj")
    (box,) = drawing.figure.layout.shapes
    assert (box.x0, box.x1, box.y0, box.y1, box.line.color) == (1.5, 2.5, 1.5, 2.5, palette.INKS["light"].text)
    assert title(drawing) == "Two of twelve layers are columnar, one undecided"
    scale = drawing.figure.data[0].colorscale
    assert [place for place, _ in scale] == [0, 0.5, 0.5, 1]
    assert scale[2][1] != scale[1][1]
    assert "not yet (3 of 15)" in below(drawing)
    heat, marks, rings = drawing.figure.data
    assert heat.z.shape == (3, 5)
    assert np.isnan(heat.z[:, 4]).all()
    assert heat.z[1, 3] == pytest.approx(0.9)
    assert list(marks.customdata[:2]) == ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"]
    assert cells(rings) == [(1, "self_attn.o_proj")]
    zero = maps.model_map(layers.assign(relative_range=0.0))
    assert title(zero) == "Relative range is 0 in all twelve layers"
    none = maps.model_map(layers.assign(gain=np.nan), "gain")  # no value, and none to come
    assert f"blank: no value ({len(layers)})" in below(none)


def test_experts_share_a_row_by_their_largest_value_and_a_colour():
    table = expert_table().assign(gain=0.1, dead_columns=3)
    names = [*table["layer"], "model.layers.2.mlp.experts.1.gate_proj"]
    drawing = maps.model_map(table, layers=names, marked_layer="model.layers.0.mlp.experts.1.gate_proj")
    heat, marks, crosses = drawing.figure.data
    assert list(heat.y) == ["self_attn.o_proj", "mlp.experts.*.gate_proj"]
    assert heat.z[1, :2].tolist() == pytest.approx([0.9, 0.85])
    largest = {f"model.layers.{block}.mlp.experts.{expert}.gate_proj" for block, expert in ((0, 2), (1, 1))}
    assert largest <= set(marks.customdata)
    assert len(marks.customdata) == len(crosses.x) == 4
    assert "of experts the largest" in below(maps.model_map(table.assign(gain=0.1), "gain"))
    assert "not yet (1 of 9)" in below(drawing)
    assert "; ◆ massive" in below(maps.model_map(table.assign(massive=["channel 3"] + [""] * (len(table) - 1))))
    (frame,) = [shape for shape in drawing.figure.layout.shapes if shape.type == "rect"]
    assert (frame.x0, frame.y0, frame.y1) == (-0.5, 0.5, 1.5)
    assert len(drawing.data["relative_range"]) == 8  # the download has every expert
    drawn = maps.gain_scatter(table).figure.data
    assert [trace.name for trace in drawn] == ["not columnar", "columnar"]
    many = pd.concat([table.iloc[1:2]] * (shapes.SVG_MARKS + 1), ignore_index=True)
    assert {trace.type for trace in maps.gain_scatter(many).figure.data} == {"scattergl"}


def test_experts_one_by_one_have_an_axis():
    table = expert_table()
    assert maps.expert_kinds(list(table["layer"])) == ["mlp.experts.*.gate_proj"]
    assert maps.expert_kinds(ALL) == []
    heat = maps.model_map(table, layers=list(table["layer"]), experts="mlp.experts.*.gate_proj").figure.data[0]
    assert list(heat.y) == ["expert 0", "expert 1", "expert 2"]
    assert heat.z.ravel().tolist() == pytest.approx([0.7, 0.25, 0.1, 0.85, 0.9, 0.05])
    many = pd.concat([table.assign(projection=[f"mlp.experts.{k}.up_proj"] * 8, layer=f"{k}") for k in range(128)])
    assert maps.model_map(many, experts="mlp.experts.*.up_proj").figure.layout.height < 1100


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        ("relative_range", "gain", "ROSE's order saves {} there, 0\u202f% elsewhere"),
        ("forecast_gain", "held_out_gain", "ROSE's order gains on eight of twelve layers"),
        ("forecast_global_gain", "held_out_global_gain", "ROSE global gains on eight of twelve layers"),
    ],
)
def test_scatter_shows_gain_against_its_predictor(layers, x, y, says):
    table = layers.assign(forecast_gain=layers["gain"] / 2, forecast_global_gain=np.linspace(0, 0.2, 12))
    table["global_gain"] = layers["gain"]
    table = table if y == "gain" else table.assign(**{y: np.linspace(-0.1, 0.2, 12)})
    drawing = maps.gain_scatter(table, x)
    shown = {row[0]: (a, b) for t in drawing.figure.data for row, a, b in zip(t.customdata, t.x, t.y, strict=True)}
    for row in table.to_dict("records"):
        along = 100 if x.startswith("forecast") else 1  # shares are drawn in per cent
        assert shown[row["layer"]] == pytest.approx((along * row[x], 100 * row[y]), abs=1e-6)
    assert title(drawing) == says.format(percent(table.query("relative_range > 0.5")[y].mean(), 0))
    ranked = rank_correlation(table[x], table[y])
    assert ranked is not None
    assert f" and error saved: {ranked}." in drawing.caption
    assert f"Of SparseGPT's {'held-out' if 'held' in y else 'calibration'} error" in below(drawing)
    chosen = table["layer"].iloc[4]
    marked = maps.gain_scatter(table, x, marked_layer=chosen).figure
    assert [note.text for note in marked.layout.annotations] == [short_layer(chosen)]
    assert list(marked.data[-1].y) == pytest.approx([100 * table[y].iloc[4]])


def test_saving_has_its_range_over_draws(layers):
    table = layers.assign(held_out_gain=0.1, gain_draw_1=0.05, gain_draw_2=0.2)
    drawing = maps.gain_scatter(table)
    assert title(drawing) == "ROSE's order saves 10\u202f% (5 to 20\u202f%) there, 10\u202f% elsewhere"
    assert "in brackets: three draws of text" in below(drawing)
    assert "one draw of text" in below(maps.gain_scatter(layers.assign(held_out_gain=0.1)))


def test_each_metric_has_its_own_scale_and_name(layers):
    drawing = maps.model_map(layers, "gain")
    heat = drawing.figure.data[0]
    assert heat.zmin == -heat.zmax
    assert np.nanmax(heat.z) == pytest.approx(100 * (1 - 0.10 / 0.11))
    assert title(drawing) == "ROSE's order gains on two of twelve layers, loses on none"
    same = title(maps.model_map(layers.assign(gain=0.0), "gain"))
    assert same == "ROSE's order has SparseGPT's error on all twelve layers"
    heat = maps.model_map(layers, "condition").figure.data[0]
    assert heat.z[0].tolist() == [1, 2, 3, 4]
    assert list(heat.colorbar.ticktext) == ["10.0", "100", "1 000", "10 000"]
    near = maps.model_map(layers.assign(condition=np.linspace(12_000, 14_000, 12)), "condition").figure.data[0]
    assert list(near.colorbar.ticktext) == ["12 000", "14 000"]  # no power of ten lies between
    drawing = maps.model_map(layers, "error_rose")
    assert title(drawing).startswith("Calibration error of ROSE is highest in ")
    assert np.nanmax(drawing.figure.data[0].z) == pytest.approx(layers["error_rose"].max())


def test_outlier_layer_does_not_set_the_colour_scale():
    ratios = np.array([66.06, 1.2, 0.8, 1.0, 0.5, 0.0])
    rows = pd.DataFrame({"block_index": np.arange(6), "projection": "up", "first": 0.1, "second": 0.1 * ratios})
    rows["layer"] = [f"layers.{block}.up" for block in range(6)]
    drawing = maps.run_difference(rows, ("A", "B"), "error")
    heat, hidden = drawing.figure.data
    assert heat.zmax == -heat.zmin == pytest.approx(np.log(2))
    assert heat.z[0] == pytest.approx(np.log([2, 1.2, 0.8, 1, 0.5, 0.5]), abs=1e-6)
    assert [text.rstrip("\u202f%") for text in hidden.text] == ["+6506.0", "+20.0", "−20.0", "0.0", "−50.0", "−100.0"]
    assert list(heat.colorbar.ticktext) == ["−50\u202f%", "−20\u202f%", "0\u202f%", "+20\u202f%", "+100\u202f%"]
    assert heat.colorbar.tickvals[0] == pytest.approx(np.log(0.5))
    assert "two layers beyond" in below(drawing)
    nothing = maps.run_difference(rows[:2].assign(first=0.0), ("A", "B"), "error")
    assert "blank: two layers in which A has 0" in below(nothing)


def test_experts_of_two_runs_share_a_row_with_the_largest():
    """Hundreds of rows of pixels each would make a picture of ten thousand."""
    kinds = ["self_attn.o_proj", *(f"mlp.experts.{expert}.up_proj" for expert in range(128))]
    rows = pd.DataFrame([(f"layers.{b}.{kind}", b, kind) for b in (0, 1) for kind in kinds])
    rows = rows.set_axis(["layer", "block_index", "projection"], axis=1).assign(first=0.1, second=0.2)
    rows.loc[7, "second"] = 0.9
    two, apart = ("A", "B"), pd.concat([rows.assign(second=np.nan), rows.assign(first=np.nan)])
    for drawing in (
        maps.run_maps(rows, two, "error"),
        maps.run_maps(apart, two, "error", why="Not compared."),
        maps.run_difference(rows, two, "error"),
    ):
        assert drawing.figure.layout.height < 700
        *_, heat, marked = drawing.figure.data
        assert heat.z.shape == (2, 2)
        assert "layers.0.mlp.experts.6.up_proj" in marked.customdata
        assert len(drawing.data) >= len(rows)
