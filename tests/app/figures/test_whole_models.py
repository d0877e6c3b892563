"""Numbers in the figures of whole models: maps of layers, methods, sensitivity, drift, what is saved, and verdicts."""

import numpy as np
import pandas as pd
import pytest

import rose
from app.figures import drift, maps, methods, palette, savings, sensitivity, shapes, trust
from rose.diffusion.steps import STEP_WEIGHTS
from rose.verdicts import Result
from tests.app.figures.test_contract import BLOCK_DAMAGES, DAMAGES, DRIFTS, HEADS, OF_BITS, below, title

ALL = [f"model.layers.{b}.{p}" for b in range(5) for p in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")]


def cells(trace: object) -> list[tuple[int, str]]:
    return list(zip(trace.x, trace.y, strict=True))


# Maps


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
    assert cells(rings) == [(1, "self_attn.o_proj"), (3, "self_attn.o_proj")]
    assert title(maps.model_map(layers, threshold=0.75)).endswith("; the columnar layer lies in decoder block 3")
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
    largest = {f"model.layers.{block}.mlp.experts.{expert}.gate_proj" for block, expert in ((0, 2), (1, 1))}
    assert largest <= set(marks.customdata)
    assert len(marks.customdata) == 4
    assert cells(rings) == [(b, "mlp.experts.*.gate_proj") for b in (0, 1)]
    assert "of experts the largest" in below(drawing)
    assert "not yet (1 of 9)" in below(drawing)
    frame = [shape for shape in drawing.figure.layout.shapes if shape.type == "rect"]
    assert [(frame[0].x0, frame[0].y0, frame[0].y1)] == [(-0.5, 0.5, 1.5)]
    assert len(drawing.data) == 8  # the download has every expert


def test_experts_share_a_colour_and_a_cross() -> None:
    table = expert_table().assign(gain=0.1, dead_columns=3)
    drawn = maps.gain_scatter(table).figure.data
    assert [trace.name for trace in drawn] == ["self_attn.o_proj", "mlp.experts.*.gate_proj", "dead columns"]
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
    lowers = "Two-level order lowers the"
    assert title(drawing) == f"{lowers} error of two of twelve layers, all two columnar layers among them"
    shown = {name: (x, y) for t in drawing.figure.data for name, x, y in zip(t.customdata, t.x, t.y, strict=True)}
    for row in layers.itertuples():
        assert shown[row.layer] == pytest.approx((row.relative_range, row.gain), abs=1e-6)
    line = drawing.figure.layout.shapes[0]
    assert (line.x0, line.x1) == (0.5, 0.5)
    (note,) = [note for note in drawing.figure.layout.annotations if note.text.startswith("columnar above")]
    assert (note.y, note.yanchor) == (1, "bottom")  # outside the plot, where it covers no mark
    held = maps.gain_scatter(layers.assign(held_out_gain=-0.1))
    assert title(held) == f"{lowers} held-out error of none of twelve layers"
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


def test_dead_columns_are_marked_with_the_range_without_them(layers: pd.DataFrame) -> None:
    row = layers.index[layers["layer"] == "model.layers.1.self_attn.o_proj"][0]
    layers = layers.assign(live_range=np.nan)
    layers.loc[row, ["dead_columns", "live_range"]] = [64, 0.12]
    drawing = maps.model_map(layers)
    cross = next(trace for trace in drawing.figure.data if trace.name == "dead columns")
    assert cells(cross) == [(1, "self_attn.o_proj")]
    assert "One layer has dead columns; without them the relative range is 0.120 instead of 0.700" in drawing.caption


def test_each_metric_has_its_own_scale_and_name(layers: pd.DataFrame) -> None:
    drawing = maps.model_map(layers, "gain")
    heat = drawing.figure.data[0]
    assert heat.zmin == -heat.zmax
    assert np.nanmax(heat.z) == pytest.approx(1 - 0.10 / 0.11)
    assert title(drawing) == "Two-level order has less error than SparseGPT on two of twelve layers, more on none"
    same = title(maps.model_map(layers.assign(gain=0.0), "gain"))
    assert same == "Two-level order has SparseGPT's error on all twelve layers"
    heat = maps.model_map(layers, "condition").figure.data[0]
    assert heat.z[0].tolist() == [1, 2, 3, 4]
    assert "log" in heat.colorbar.title.text
    assert list(heat.colorbar.ticktext) == ["10.0", "100", "1 000", "10 000"]
    near = maps.model_map(layers.assign(condition=np.linspace(12_000, 14_000, 12)), "condition").figure.data[0]
    assert list(near.colorbar.ticktext) == ["12 000", "14 000"]  # no power of ten lies between
    drawing = maps.model_map(layers, "error_rose")
    assert title(drawing).startswith("Relative error of ROSE is highest in ")
    assert np.nanmax(drawing.figure.data[0].z) == pytest.approx(layers["error_rose"].max())


def test_map_without_values_singles_out_no_layer(layers: pd.DataFrame) -> None:
    drawing = maps.model_map(layers.assign(relative_range=0.0))
    assert title(drawing) == "Relative range is 0 in all twelve layers; no layer is columnar"
    assert maps.model_map(layers.tail(1)).caption == "Relative range is 0.120 in 3 · mlp.down_proj."
    drawing = maps.model_map(layers.assign(gain=np.nan), "gain")  # no value, and none to come
    assert f"blank: no value ({len(layers)})" in below(drawing)
    assert "yet" not in drawing.caption
    assert title(drawing).endswith("no layer has one")


def test_range_bars_are_sorted_and_answer_with_names(layers: pd.DataFrame) -> None:
    drawing = maps.range_bars(layers)
    (bar,) = drawing.figure.data
    assert list(bar.customdata)[:2] == ["model.layers.3.self_attn.o_proj", "model.layers.1.self_attn.o_proj"]
    assert bar.x.tolist() == sorted(layers["relative_range"], reverse=True)
    assert title(drawing) == "3 · self_attn.o_proj has the highest relative range, 0.900"


def test_a_projection_looks_the_same_whatever_is_filtered(layers: pd.DataFrame) -> None:
    def looks(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
        drawn = maps.gain_scatter(table, projections=layers["projection"].tolist()).figure.data
        return {trace.name: (trace.marker.color, trace.marker.symbol) for trace in drawn}

    last = layers["projection"].iloc[-1]
    assert looks(layers[layers["projection"] == last])[last] == looks(layers)[last]


def test_one_layer_far_off_leaves_the_others_their_colours() -> None:
    ratios = np.array([66.06, 1.2, 0.8, 1.0, 0.5, 0.0])
    rows = pd.DataFrame({"block_index": np.arange(6), "projection": "up", "first": 0.1, "second": 0.1 * ratios})
    rows["layer"] = [f"layers.{block}.up" for block in range(6)]
    drawing = maps.run_difference(rows, ("A", "B"), "error", as_share=True)
    heat, hidden = drawing.figure.data
    assert heat.zmax == -heat.zmin == pytest.approx(np.log(2))
    assert heat.z[0] == pytest.approx(np.log([2, 1.2, 0.8, 1, 0.5, 0.5]), abs=1e-6)
    assert list(hidden.text) == ["+6506.0 %", "+20.0 %", "−20.0 %", "0.0 %", "−50.0 %", "−100.0 %"]
    assert list(heat.colorbar.ticktext) == ["−50 %", "−20 %", "0 %", "+20 %", "+100 %"]
    assert heat.colorbar.tickvals[0] == pytest.approx(np.log(0.5))
    assert "the scale ends at −50.0 % and +100 %, two layers beyond" in below(drawing)
    assert "beyond" not in below(maps.run_difference(rows[1:4], ("A", "B"), "error", as_share=True))
    nothing = maps.run_difference(rows[:2].assign(first=0.0), ("A", "B"), "error", as_share=True)
    assert nothing.caption == "Of two layers B is higher in two."
    assert "blank: two layers in which A has 0" in below(nothing)


def test_experts_of_two_runs_share_a_row_with_the_largest() -> None:
    """Hundreds of rows of pixels each would make a picture of ten thousand."""
    kinds = ["self_attn.o_proj", *(f"mlp.experts.{expert}.up_proj" for expert in range(128))]
    rows = pd.DataFrame([(f"layers.{b}.{kind}", b, kind) for b in (0, 1) for kind in kinds])
    rows = rows.set_axis(["layer", "block_index", "projection"], axis=1).assign(first=0.1, second=0.2)
    rows.loc[7, "second"] = 0.9
    two, apart = ("A", "B"), (rows.assign(value=rows["first"]), rows.assign(value=rows["second"]))
    for drawing in (
        maps.run_maps(rows, two, "error"),
        maps.maps_apart(apart, two, "error"),
        maps.run_difference(rows, two, "error"),
        maps.run_difference(rows, two, "error", as_share=True),
    ):
        assert "of experts the largest" in below(drawing)
        assert drawing.figure.layout.height < 700
        *_, heat, marked = drawing.figure.data
        assert heat.z.shape == (2, 2)
        assert "layers.0.mlp.experts.6.up_proj" in marked.customdata
        assert len(drawing.data) >= len(rows)


def test_verdict_map_marks_what_is_wrong_and_shows_the_worst_of_experts() -> None:
    places = [(0, "up_proj"), (0, "experts.0.gate"), (0, "experts.1.gate"), (1, "up_proj")]
    table = pd.DataFrame(places, columns=["block_index", "projection"]).assign(
        layer=lambda x: "model.layers." + x["block_index"].astype(str) + "." + x["projection"],
        verdict=["mask without compensation", "mask without compensation", "zeros lost", "mask without compensation"],
        reason="<i>Why",
        is_wrong=[False, False, True, True],
    )
    drawing = trust.verdict_map(table, "Two are wrong")
    heat, over, *drawn = drawing.figure.data
    assert heat.y == ("up_proj", "experts.*.gate")
    assert heat.z[:, 0].tolist() == [1, 0]  # of two verdicts here, the worst is 0
    assert over.text[0] == "mask without compensation<br>&lt;i&gt;Why"
    legend = [trace.name for trace in drawn if trace.showlegend is not False]
    assert legend == ["zeros lost 1", "mask without compensation 3, 1 of them marked"]
    marked = {trace.name: cells(trace) for trace in drawn if trace.showlegend is False}
    assert marked == {"zeros lost": [(0, "experts.*.gate")], "mask without compensation": [(1, "up_proj")]}
    assert drawing.caption == f"Layers by verdict: {'; '.join(legend)}."


def test_damping_strip_marks_what_was_raised(records: pd.DataFrame) -> None:
    drawing = trust.damping_strip(records, 0.01)
    assert title(drawing) == "One of twelve layers needed more damping than requested"
    usual, raised = drawing.figure.data
    assert list(raised.customdata) == ["model.layers.2.self_attn.q_proj"]
    assert raised.marker.symbol != usual.marker.symbol
    assert drawing.data["raised"].sum() == 1
    none = trust.damping_strip(records.assign(is_damping_raised=False), 0.01)
    assert title(none) == "None of twelve layers needed more damping than requested"


# Methods


def test_layer_map_shows_what_a_method_saves_in_every_layer(records: pd.DataFrame) -> None:
    drawing = methods.layer_map(records, "rose")
    assert title(drawing).startswith("ROSE has less error than SparseGPT on two of twelve layers")
    saved = drawing.data.set_index("layer")["saved_rose"]
    assert saved["model.layers.3.self_attn.o_proj"] == pytest.approx(1 - 0.12 / 0.13)
    assert saved["model.layers.0.self_attn.q_proj"] == 0
    alone = methods.layer_map(records, "sparsegpt", column="held_out_error")
    assert title(alone).startswith("Held-out error of SparseGPT is highest in 3 · self_attn.")


def test_method_errors_name_the_saving(records: pd.DataFrame) -> None:
    drawing = methods.method_errors(records[records["layer"] == "model.layers.1.self_attn.o_proj"])
    assert title(drawing) == "ROSE has 9.1 % less error than SparseGPT"
    assert drawing.caption == "Error, lowest first: ROSE 0.100, SparseGPT 0.110."
    colours = [bar.marker.color for bar in drawing.figure.data]
    assert colours == [palette.METHOD_COLOURS[method] for method in ("sparsegpt", "rose")]
    several = methods.method_errors(records.assign(relative_error=np.where(records["method"] == "rose", 0.3, 0.2)))
    assert title(several).startswith("Against SparseGPT: ROSE has the higher error in")
    assert title(several).endswith("on average it is 50 % higher")


def test_dumbbells_are_of_layers_on_which_methods_differ(records: pd.DataFrame) -> None:
    drawing = methods.layer_differences(records)
    assert list(drawing.figure.data[1].y) == ["1 · self_attn.o_proj", "3 · self_attn.o_proj"]
    finding = "Against SparseGPT: ROSE has the lower error in two of twelve layers, and the same in ten; over the two"
    assert title(drawing).startswith(finding)
    spread = records.assign(relative_error=records["relative_error"] * 10.0 ** records["block_index"])
    assert "log scale" in below(methods.layer_differences(spread))


def perplexities(**values: float) -> list[Result]:
    return [Result(name, name.lower(), value) for name, value in values.items()]


def test_perplexity_has_a_log_axis_only_where_it_must() -> None:
    drawing = methods.perplexity_bars(perplexities(SparseGPT=32.2, ROSE=31.0), dense=20.7)
    assert title(drawing) == "ROSE has the lowest perplexity, 31.0; chance is not ruled out"
    assert drawing.figure.layout.yaxis.range[0] == 0
    assert drawing.figure.layout.shapes[0].y0 == 20.7
    drawing = methods.perplexity_bars(perplexities(SparseGPT=32.2, Magnitude=5e4, Wanda=np.inf), dense=20.7)
    assert drawing.figure.layout.yaxis.type == "log"
    assert "log scale" in below(drawing)
    assert drawing.figure.data[0].text[2] == "∞"
    assert "an infinite one has no bar" in below(drawing)
    assert "no bar" not in below(methods.perplexity_bars(perplexities(SparseGPT=32.2, Magnitude=5e4)))
    equal = methods.perplexity_bars(perplexities(SparseGPT=31.0, ROSE=31.0))
    assert title(equal) == "SparseGPT and ROSE are identical by construction: perplexity 31.0"
    near = methods.perplexity_bars(perplexities(SparseGPT=23.12, ROSE=23.08), dense=23.1)
    assert list(near.figure.data[0].text) == ["23.12", "23.08"]
    assert title(near).startswith("ROSE has the lowest perplexity, 23.08")
    assert "dashed: dense, 23.10" in below(near)


def test_accuracies_are_ranked_over_the_tasks_that_all_models_answered() -> None:
    rows = [("piqa", 100, 0.5, 0.05, "A", "rose"), ("boolq", 100, 0.9, 0.03, "A", "rose")]
    rows += [("piqa", 100, 0.8, 0.04, "B", "sparsegpt"), ("boolq", 200, 0.1, 0.02, "B", "sparsegpt")]
    table = pd.DataFrame(rows, columns=["task", "questions", "accuracy", "accuracy_error", "run", "method"])
    alt = methods.accuracy_bars(table).alt
    assert "B answers 80.0 % correctly, mean over one task that all models answered" in alt
    assert "answered no task in common" in methods.accuracy_bars(table.drop(index=0)).alt


def test_timeline_has_room_for_all_layers_and_tells_projections_apart(records: pd.DataFrame) -> None:
    drawing = methods.progress_timeline(records[records["method"] == "rose"].head(5), 210)
    assert title(drawing) == "Five of 210 layers are pruned"
    assert list(drawing.figure.layout.xaxis.range) == [0, 211]
    start = methods.progress_timeline(records.head(0), 210)
    assert title(start) == "None of 210 layers are pruned"
    assert start.caption == "No layer is done yet."
    names = ["transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj"]
    drawing = methods.progress_timeline(pd.DataFrame({"layer": names, "relative_error": 0.1, "seconds": 1.0}), 2)
    assert [trace.name for trace in drawing.figure.data] == ["attn.c_proj", "mlp.c_proj"]


@pytest.mark.parametrize(("steps", "start"), [(5, "No step is better"), (40, "No step so far is better")])
def test_tuning_that_gains_nothing_is_told_as_ended_or_going_on(steps: int, start: str) -> None:
    curve = pd.DataFrame([(0, 1.0, 0.9), (5, 9.0, 1.2)], columns=["step", "seconds", "held_out"])
    assert title(methods.tuning_curve(curve, steps, dense=None)).startswith(f"{start} than the start")


# Sensitivity


def test_whiskers_are_told_of_only_where_there_are_any() -> None:
    assert "Whiskers" in sensitivity.damage_bars(BLOCK_DAMAGES).caption
    assert "Whiskers" not in sensitivity.damage_bars(BLOCK_DAMAGES.assign(standard_error=np.nan)).caption


def test_axes_of_close_values_have_ticks() -> None:
    close = DAMAGES.assign(held_out_error=np.linspace(0.125, 0.142, len(DAMAGES)))
    axis = sensitivity.damage_scatter(close).figure.layout.xaxis
    assert (axis.type, axis.tickvals) == ("log", (0.125, 0.13, 0.135, 0.14, 0.145))
    assert axis.ticktext[1] == "0.13"
    assert sensitivity.damage_scatter(DAMAGES).figure.layout.xaxis.dtick == "D2"


def test_experts_are_one_series_of_units() -> None:
    kinds = [f"mlp.experts.{number}.up_proj" for number in range(len(DAMAGES))]
    drawn = sensitivity.damage_scatter(DAMAGES.assign(projection=kinds)).figure
    assert [trace.name for trace in drawn.data] == ["mlp.experts.*.up_proj"]
    assert not drawn.layout.showlegend


def test_damage_of_what_is_restored_is_what_it_gives_back() -> None:
    drawing = sensitivity.damage_scatter(DAMAGES, restore=True)
    assert "that restoring it alone gives back" in below(drawing)
    assert "0 · mlp.up_proj gives back most" in drawing.caption
    assert "one not lowering the loss" in drawing.caption


def test_decoder_blocks_that_were_not_measured_stay_empty() -> None:
    drawing = savings.head_map(HEADS.replace({"block_index": {0: 0, 1: 5, 2: 18}}), marked_block=5)
    (heat,), axis = drawing.figure.data, drawing.figure.layout.xaxis
    assert list(heat.x) == list(range(19))
    assert np.flatnonzero(~np.isnan(heat.z).any(0)).tolist() == [0, 5, 18]
    assert axis.dtick == 2
    (bars,) = sensitivity.damage_bars(BLOCK_DAMAGES.assign(block_index=[0, 5, 18])).figure.data
    assert bars.width == 0.8


# Drift


def test_without_drift_nothing_arises_and_nothing_is_cancelled() -> None:
    none = DRIFTS[DRIFTS["target"] == "dense"].assign(drift=0.0, passed_on=0.0, arisen=0.0, cancelled=0.0)
    assert title(drift.drift_shares(none)) == "No drift arises in any decoder block"
    assert title(drift.cancelled_shares(none)) == "No decoder block has received drift that it could cancel"
    apart = none.assign(passed_on=0.1, arisen=0.1, drift=0.2)
    assert title(drift.cancelled_shares(apart)).endswith("neither cancel what they receive nor add to it")


def test_shares_that_are_cancelled_have_digits_that_tell_them_apart() -> None:
    table = DRIFTS.assign(passed_on=1.0, cancelled=DRIFTS["target"].map({"layer": 0.0367, "dense": 0.0371}))
    drawing = drift.cancelled_shares(table)
    cancels = "target dense cancels the most: 3.71 % of the drift passed on; chance is not ruled out"
    assert title(drawing).endswith(cancels)
    assert "target layer 3.67 %; SparseGPT, 0.7, target dense 3.71 %" in drawing.caption
    alone = drift.cancelled_shares(table[table["target"] == "dense"])
    assert title(alone).endswith("target dense cancels: 3.71 % of the drift passed on")


def test_pictures_stand_in_rows_with_a_gap() -> None:
    pixels = np.zeros((2, 4, 4), np.float32)
    drawing = drift.pictures({"Dense": pixels, "Wanda": pixels + 0.5}, ["a", "b"], 4, drift=0.25)
    (sheet,) = drawing.figure.data
    assert sheet.z.shape == (10, 10)
    assert np.isnan(sheet.z[4:6]).all()
    assert (sheet.z[6:, :4] == 0.5).all()
    assert "25" in title(drawing)
    axis = drawing.figure.layout.xaxis
    assert (axis.ticktext, axis.ticklabeloverflow, min(axis.autotickangles)) == (("a", "b"), "allow", -45)


@pytest.mark.parametrize(
    ("values", "finding"),
    [
        ([0, 0.1, 0.4], "ROSE's pictures end 40.0 % away"),
        ([0, 0.5, 0.4], "ROSE's pictures end 40.0 % away; the drift was largest, 50.0 %, after one step"),
    ],
)
def test_drift_of_pictures_is_told_at_its_end_and_where_it_was_largest(values: list[float], finding: str) -> None:
    drawing = drift.drift_curve(values, [900, 400], method="rose")
    assert title(drawing) == finding
    assert list(drawing.data["drift"]) == values


def test_step_weights_that_favour_one_step_show_its_diagonal() -> None:
    assert set(drift.WEIGHTINGS) == set(STEP_WEIGHTS)
    diagonals = np.array([[1.0, 3.0], [3.0, 1.0]], np.float32)
    drawing = drift.step_weighting({"uniform": (1, 1), "linear": (3, 1)}, diagonals, "linear")
    assert list(drawing.data["diagonal_uniform"]) == [4, 4]
    assert list(drawing.data["diagonal_linear"]) == [6, 10]
    assert "25" in drawing.caption  # 6 and 10 against their mean 8


# What is saved


def test_each_error_stands_with_its_own_bits() -> None:
    assert savings.bits_and_zeros(OF_BITS).caption == (
        "Compared are half the weights at 4 bits, 0.0110 at 3.25 bits a weight, and all of them at 3 bits, 0.0100 at "
        "3.25 bits a weight. Beside them: half the weights unrounded, 0.00900 at 9.00 bits a weight; all of them at 4 "
        "bits, 0.00200 at 4.25 bits a weight."
    )


def test_channels_alone_are_added_up_only_where_there_are_several() -> None:
    table = pd.DataFrame({"channel": [3, 1], "alone": [0.1, 0.2], "together": [0.1, 0.5]})
    assert savings.channel_curve(table, 1, block=0).caption == "At the line the error is 0.100."
    both = savings.channel_curve(table, 2, block=0).caption
    why = "because channels that are removed together cannot compensate for one another."
    assert both.endswith(f"add up to 0.300, {why}")


# Nothing to show


@pytest.mark.parametrize(
    ("draw", "problem"),
    [
        (lambda layers, _: maps.model_map(layers.drop(columns="condition"), "condition"), "no condition number of H"),
        (lambda layers, _: maps.range_bars(layers.head(0)), "measure layers on the start page"),
        (lambda layers, _: maps.gain_scatter(layers.head(0)), "use fewer filters"),
        (lambda _, records: methods.layer_map(records, "wanda"), "No error has been measured yet"),
        (
            lambda _, records: methods.method_errors(
                records[records["projection"] == "mlp.down_proj"], column="held_out_error"
            ),
            "No error",
        ),
        (
            lambda _, records: methods.layer_differences(records[records["projection"] == "mlp.down_proj"]),
            "no differences",
        ),
        (
            lambda *_: sensitivity.damage_scatter(BLOCK_DAMAGES),
            "takes five units that each cost the model something; three measured so far do",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    draw: object, problem: str, layers: pd.DataFrame, records: pd.DataFrame
) -> None:
    with pytest.raises(rose.RoseError, match=problem):
        draw(layers, records)
