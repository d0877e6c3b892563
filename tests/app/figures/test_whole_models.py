"""Numbers in the figures of whole models: maps of layers, methods, sensitivity, drift, what is saved, and verdicts."""

import re

import numpy as np
import pandas as pd
import pytest

from app.figures import methods, palette, sensitivity, trust
from rose.model.check.verdicts import Verdict
from rose.verdicts import Result
from tests.app.figures.test_contract import DAMAGES, title
from tests.app.figures.test_maps import cells


def test_verdict_map_marks_what_is_wrong_and_shows_the_worst_of_experts():
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


@pytest.mark.parametrize("theme", palette.INKS)
@pytest.mark.parametrize("declared", [[*Verdict], [*trust.STATUSES.values()]])
def test_every_verdict_has_a_colour_on_the_map_and_a_place_in_the_legend(declared, theme):
    table = pd.DataFrame([(verdict, wrong) for verdict in declared for wrong in (False, True)])
    table = table.set_axis(["verdict", "is_wrong"], axis=1).assign(projection="up_proj", reason="Why")
    table = table.assign(block_index=table.index, layer="model.layers." + table.index.astype(str) + ".up_proj")
    heat, _, *drawn = trust.verdict_map(table, "All", theme=theme).figure.data
    shown = [trace for trace in drawn if trace.showlegend is not False]
    assert [trace.name for trace in shown] == [f"{verdict} 2, 1 of them marked" for verdict in declared]
    colours = [heat.colorscale[2 * int(z)][1] for z in heat.z[0]]  # each flat step has a lower and an upper edge
    assert colours[::2] == colours[1::2] == [trace.marker.color for trace in shown]
    assert set(colours) == {palette.ACCENT[theme][1]}, "in each of them something is wrong"
    symbols = [trace.marker.symbol for trace in shown]
    assert len(set(symbols)) >= len(declared) - 1
    calm, *_ = trust.verdict_map(table.assign(is_wrong=False), "None", theme=theme).figure.data
    assert {colour for _, colour in calm.colorscale} == set(palette.QUIET[theme])
    with pytest.raises(KeyError):
        trust.verdict_map(table.replace(declared[0], "unheard of"), "All")


def test_layer_map_shows_what_a_method_saves_in_every_layer(records):
    drawing = methods.layer_map(records, "rose")
    assert title(drawing).startswith("ROSE gains on two of twelve layers")
    saved = drawing.data.set_index("layer")["saved_rose"]
    assert saved["model.layers.3.self_attn.o_proj"] == pytest.approx(1 - 0.12 / 0.13)
    assert saved["model.layers.0.self_attn.q_proj"] == 0
    alone = methods.layer_map(records, "sparsegpt", column="held_out_error")
    assert title(alone).startswith("Held-out error of SparseGPT is highest in 3 · ")


def test_one_perplexity_does_not_flatten_the_others():
    def perplexities(**values: float) -> list[Result]:
        return [Result(name, name.lower(), value, amount="0.5") for name, value in values.items()]

    drawing = methods.perplexity_bars(perplexities(SparseGPT=32.2, ROSE=31.0), dense=20.7, elsewhere={"ROSE": 2.5})
    assert title(drawing) == "ROSE has the lowest perplexity, 31.0; the difference may be chance"
    assert list(drawing.figure.data[0].x) == [32.2, 31.0]
    assert drawing.figure.layout.shapes[0].x0 == 20.7
    assert {"× 2.5", "other text"} <= {re.sub("<.*?>", "", note.text) for note in drawing.figure.layout.annotations}
    drawing = methods.perplexity_bars(perplexities(SparseGPT=32.2, Magnitude=5e4, Wanda=np.inf), dense=20.7)
    assert drawing.figure.data[0].x.max() == pytest.approx(1.15 * 32.2)
    assert [text.endswith("→") for text in drawing.figure.data[0].text] == [False, True, True]


def test_runs_stand_below_their_sparsity():
    runs = [
        Result(f"{name} at {amount}", "rose", 9.0, amount=amount) for amount in ("0.5, 4 bits", "2:4") for name in "AB"
    ]
    drawing = methods.perplexity_bars(runs)
    assert list(drawing.figure.data[0].y) == [0, 1, 3, 4]
    texts = [re.sub("<.*?>", "", note.text) for note in drawing.figure.layout.annotations]
    assert texts == ["A", "B", "A", "B", "50\u202f% zero, 4 bits", "2:4"]


def test_accuracies_are_ranked_over_the_tasks_that_all_models_answered():
    rows = [("piqa", 100, 0.5, 0.05, "A", "rose"), ("boolq", 100, 0.9, 0.03, "A", "rose")]
    rows += [("piqa", 100, 0.8, 0.04, "B", "sparsegpt"), ("boolq", 200, 0.1, 0.02, "B", "sparsegpt")]
    table = pd.DataFrame(rows, columns=["task", "questions", "accuracy", "accuracy_error", "run", "method"])
    alt = methods.accuracy_bars(table).alt
    assert "B answers 80.0\u202f% correctly, mean over one task that all models answered" in alt
    assert "answered no task in common" in methods.accuracy_bars(table.drop(index=0)).alt


def over_seeds(perplexities: dict[str, list[float]]) -> pd.DataFrame:
    rows = [(method, seed, value) for method, values in perplexities.items() for seed, value in enumerate(values)]
    table = pd.DataFrame(rows, columns=["method", "seed", "perplexity"])
    return table.assign(sparsity="0.7", mean_held_out_error=table["perplexity"] / 100, seconds=1.0)


def test_mean_range_and_single_seeds():
    drawing = methods.over_seeds_bars(over_seeds({"sparsegpt": [30, 40], "rose": [20, 23, 29]}), "0.7")
    mean, marks = drawing.figure.data[:2]
    assert (mean.x[0], mean.y[0], mean.error_y.array[0], mean.error_y.arrayminus[0]) == ("ROSE", 24, 5, 4)
    np.testing.assert_array_equal(marks.y, [20, 23, 29])
    assert list(marks.customdata) == [0, 1, 2]
    assert list(drawing.data["method"]) == ["rose", "sparsegpt"]


def test_experts_are_one_series_of_units():
    kinds = [f"mlp.experts.{number}.up_proj" for number in range(len(DAMAGES))]
    drawn = sensitivity.damage_scatter(DAMAGES.assign(projection=kinds)).figure
    assert [trace.name for trace in drawn.data] == ["mlp"]
    assert not drawn.layout.showlegend
