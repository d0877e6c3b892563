"""Numbers in the figures of whole models: maps of layers, methods, sensitivity, drift, what is saved, and verdicts."""

import numpy as np
import pandas as pd
import pytest

import rose
from app.figures import drift, methods, palette, savings, sensitivity, trust
from rose.diffusion.steps import STEP_WEIGHTS
from rose.verdicts import Result
from tests.app.figures.test_contract import BLOCK_DAMAGES, DAMAGES, DRIFTS, HEADS, below, title


def cells(trace: object) -> list[tuple[int, str]]:
    return list(zip(trace.x, trace.y, strict=True))


# Checks


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
    assert "; ".join(legend) in drawing.alt


# Methods


def test_layer_map_shows_what_a_method_saves_in_every_layer(records: pd.DataFrame) -> None:
    drawing = methods.layer_map(records, "rose")
    assert title(drawing).startswith("ROSE gains on two of twelve layers")
    saved = drawing.data.set_index("layer")["saved_rose"]
    assert saved["model.layers.3.self_attn.o_proj"] == pytest.approx(1 - 0.12 / 0.13)
    assert saved["model.layers.0.self_attn.q_proj"] == 0
    alone = methods.layer_map(records, "sparsegpt", column="held_out_error")
    assert title(alone).startswith("Held-out error of SparseGPT is highest in 3 · self_attn.")


def test_method_errors_name_the_saving(records: pd.DataFrame) -> None:
    drawing = methods.method_errors(records[records["layer"] == "model.layers.1.self_attn.o_proj"])
    assert title(drawing) == "ROSE has 9.1 % less error than SparseGPT"
    colours = [bar.marker.color for bar in drawing.figure.data]
    assert colours == [palette.METHOD_COLOURS[method] for method in ("sparsegpt", "rose")]
    several = methods.method_errors(records.assign(relative_error=np.where(records["method"] == "rose", 0.3, 0.2)))
    assert title(several).startswith("Against SparseGPT: ROSE has the higher error in")
    assert title(several).endswith("on average it is 50 % higher")


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
    assert "an infinite perplexity has no bar" in below(drawing)
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


@pytest.mark.parametrize(("steps", "start"), [(5, "No step is better"), (40, "No step so far is better")])
def test_tuning_that_gains_nothing_is_told_as_ended_or_going_on(steps: int, start: str) -> None:
    curve = pd.DataFrame([(0, 1.0, 0.9), (5, 9.0, 1.2)], columns=["step", "seconds", "held_out"])
    assert title(methods.tuning_curve(curve, steps, dense=None)).startswith(f"{start} than the start")


# Sensitivity


def test_whiskers_are_told_of_only_where_there_are_any() -> None:
    assert "Whiskers" in sensitivity.damage_bars(BLOCK_DAMAGES).caption
    assert "Whiskers" not in sensitivity.damage_bars(BLOCK_DAMAGES.assign(standard_error=np.nan)).caption


def test_experts_are_one_series_of_units() -> None:
    kinds = [f"mlp.experts.{number}.up_proj" for number in range(len(DAMAGES))]
    drawn = sensitivity.damage_scatter(DAMAGES.assign(projection=kinds)).figure
    assert [trace.name for trace in drawn.data] == ["mlp.experts.*.up_proj"]
    assert not drawn.layout.showlegend


def test_damage_of_what_is_restored_is_what_it_gives_back() -> None:
    drawing = sensitivity.damage_scatter(DAMAGES, restore=True)
    assert "restored alone" in below(drawing)
    assert drawing.caption == "Not shown: one unit without a fall in the loss."


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
    assert "25" in title(drawing)  # 6 and 10 against their mean 8


# Nothing to show


@pytest.mark.parametrize(
    ("draw", "problem"),
    [
        (lambda _, records: methods.layer_map(records, "wanda"), "No error has been measured yet"),
        (
            lambda _, records: methods.method_errors(
                records[records["projection"] == "mlp.down_proj"], column="held_out_error"
            ),
            "No error",
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
