"""Means over seeds are drawn with their range, and the title says whether a lead is larger than it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import rose
from app.figures import palette, shapes
from app.figures.methods import method_errors, over_seeds_bars, time_and_perplexity
from app.figures.style import Drawing
from rose.model.measure.comparison import results_of
from rose.verdicts import Result
from tests.app.figures.test_contract import title


def results(perplexities: dict[str, list[float]]) -> pd.DataFrame:
    rows = [(method, seed, value) for method, values in perplexities.items() for seed, value in enumerate(values)]
    table = pd.DataFrame(rows, columns=["method", "seed", "perplexity"])
    return table.assign(sparsity="0.7", mean_held_out_error=table["perplexity"] / 100, seconds=1.0)


def test_mean_range_and_single_seeds() -> None:
    drawing = over_seeds_bars(results({"sparsegpt": [30, 40], "rose": [20, 23, 29]}), "0.7")
    mean, marks = drawing.figure.data[:2]
    assert (mean.x[0], mean.y[0], mean.error_y.array[0], mean.error_y.arrayminus[0]) == ("ROSE", 24, 5, 4)
    np.testing.assert_array_equal(marks.y, [20, 23, 29])
    assert list(marks.customdata) == [0, 1, 2]
    means = "Mean ± half the range over up to three seeds: ROSE 24.0 ± 4.50, SparseGPT 35.0 ± 5.00."
    assert drawing.caption.startswith(means)
    assert list(drawing.data["method"]) == ["rose", "sparsegpt"]


def test_title_says_whether_seeds_could_have_made_the_difference() -> None:
    apart = over_seeds_bars(results({"sparsegpt": [30, 31, 33], "rose": [20, 21, 22]}), "0.7")
    assert title(apart) == "ROSE has the lowest mean perplexity, 21.0"
    assert "with 95 % intervals over three calibration draws, paired: SparseGPT: 1.492 (1.4" in apart.caption
    near = title(over_seeds_bars(results({"sparsegpt": [25, 40], "rose": [20, 29]}), "0.7"))
    assert near == "No clear difference between ROSE and SparseGPT: mean perplexity 24.5 to 32.5"


def test_numbers_that_differ_are_printed_differently() -> None:
    drawing = over_seeds_bars(results({"rose": [23.11, 23.13], "wanda": [23.12, 23.14]}), "0.7")
    assert [trace.text[0].strip() for trace in drawing.figure.data[::2]] == ["23.12", "23.13"]
    assert "23.12" in title(drawing)
    assert "ROSE 23.12 ± 0.0100, Wanda 23.13 ± 0.0100" in drawing.caption
    errors = pd.DataFrame({"layer": "a", "method": ["rose", "wanda"], "relative_error": [0.12341, 0.12344]})
    bars = method_errors(errors).figure.data
    assert [bar.text[0] for bar in bars] == ["0.12341", "0.12344"]


def test_an_axis_is_logarithmic_only_where_it_must() -> None:
    near = over_seeds_bars(results({"rose": [20, 30]}), "0.7").figure.layout
    assert near.yaxis.type is None
    far = over_seeds_bars(results({"rose": [20, 30], "magnitude": [5000, 6000]}), "0.7").figure.layout
    assert far.yaxis.type == "log"
    assert "log scale" in far.title.text


def test_what_is_not_there_is_refused() -> None:
    table = results({"rose": [20, 30]}).assign(mean_held_out_error=np.nan)
    with pytest.raises(rose.RoseError, match=r"No run at sparsity 0\.5"):
        over_seeds_bars(table, "0.5")
    with pytest.raises(rose.RoseError, match="held-out"):
        over_seeds_bars(table, "0.7", column="mean_held_out_error")


def costs(*rows: tuple[str, float, float], **more: object) -> list[Result]:
    """Runs by method, seconds and perplexity, each clearly apart from the others."""
    wobble = np.array([0.001, -0.001, 0.0])
    return [
        Result(rose.METHODS[name].label, name, value, tuple(np.log(value) + wobble * at), seconds=time, **more)
        for at, (name, time, value) in enumerate(rows)
    ]


def names(drawing: Drawing) -> list[str]:
    return [note.text for note in drawing.figure.layout.annotations]


def test_pareto_front_is_of_the_runs_that_no_other_beats_on_both() -> None:
    table = costs(("alps", 20, 55), ("wanda", 1, 80), ("rose", 4.5, 66), ("sparsegpt", 2, 60), ("rose_admm", 4, 55))
    drawing = time_and_perplexity(table, dense=20)
    assert list(drawing.data["method"]) == ["wanda", "sparsegpt", "rose_admm", "rose", "alps"]
    # ROSE is slower and worse than SparseGPT; ALPS is no better than ROSE ADMM, for more time.
    assert list(drawing.data["on_front"]) == [True, True, True, False, False]
    assert title(drawing) == "Pareto front: Wanda, SparseGPT and ROSE ADMM"
    front = drawing.figure.data[0]
    assert list(front.y) == [80, 80, 60, 60, 55, 55]
    assert front.x[-1] > 20
    assert not drawing.figure.layout.showlegend
    assert {"Wanda", "ALPS", "dense, 20.0"} <= set(names(drawing))


def test_no_front_is_drawn_through_identical_work_timed_twice() -> None:
    table = costs(("rose", 80, 50), ("sparsegpt", 40, 50))
    table[1] = replace(table[1], losses=table[0].losses)
    drawing = time_and_perplexity(table)
    assert title(drawing) == (
        "SparseGPT and ROSE are identical by construction: perplexity 50.0; no trade-off with time is clear"
    )
    assert len(drawing.figure.data) == 2  # the marks alone
    assert drawing.figure.layout.xaxis.range[0] > 20
    assert "; axes do not begin at 0" in drawing.figure.layout.title.text.replace("<br>", " ")


def test_a_long_front_is_counted_not_listed() -> None:
    methods = ("wanda", "sparsegpt", "rose", "rose_global", "rose_dealt", "magnitude")
    table = costs(*((name, 2.0**i, 50 - i) for i, name in enumerate(methods[:5])), (methods[5], 99, 400))
    drawing = time_and_perplexity(table)
    assert title(drawing) == "Pareto front: Wanda, SparseGPT, ROSE and two others"
    assert drawing.figure.layout.yaxis.type is None  # less than a factor of ten
    assert "log scale of time; the other does not begin at 0" in drawing.figure.layout.title.text.replace("<br>", " ")
    assert (drawing.figure.layout.xaxis.type, time_and_perplexity(table, dense=20).figure.layout.yaxis.type) == (
        "log",
        "log",
    )


def test_ranges_and_targets_of_timed_runs() -> None:
    dense = Result("ROSE", "rose", 20, draws={0: 18.0, 1: 21.0}, seconds=1, target="dense")
    layer = Result("ROSE, target layer", "rose", 30, draws={0: 29.0, 1: 34.0}, seconds=2, target="layer")
    drawing = time_and_perplexity([dense, layer])
    first, second = (trace for trace in drawing.figure.data if trace.mode == "markers")
    assert (first.error_y.array[0], first.error_y.arrayminus[0]) == (1, 2)
    assert second.marker.symbol == f"{first.marker.symbol}-open"
    assert first.marker.color == palette.METHOD_COLOURS["rose"]
    assert second.marker.color == palette.INKS["light"].muted
    with pytest.raises(rose.RoseError, match="both a time and a perplexity"):
        time_and_perplexity(costs(("rose", np.nan, 20.0)))


def test_names_cover_neither_marks_nor_one_another() -> None:
    table = costs(*((name, 1 + 0.01 * at, 50 + 0.1 * at) for at, name in enumerate(list(rose.METHODS)[:10])))
    notes = time_and_perplexity(table).figure.layout.annotations
    places = {(note.ax, note.ay, round(note.x, 2), round(note.y, 1)) for note in notes}
    assert len(places) == len(notes) == 10
    spans = np.array([[0.99, 1.10], [49.9, 51.0]])
    figure = go.Figure(layout={"height": 480, "margin": {"t": 60, "b": 56}})
    shapes.name_points(figure, np.array([1.0, 1.0]), np.array([50.0, 50.0]), ["one", "two"], spans, ["black", "grey"])
    one, two = figure.layout.annotations
    assert (one.ax, one.ay) != (two.ax, two.ay)


def test_the_front_strikes_no_name_through() -> None:
    figure = go.Figure(layout={"height": 616, "margin": {"t": 60, "b": 56}})  # 700 × 500 pixels for the marks
    spans, steps = np.array([[0, 700], [0, 500]]), [(100, 300), (300, 300), (300, 200), (699, 200)]
    places = (np.array([100, 300]), np.array([300, 200]))
    shapes.name_points(figure, *places, ["first", "second"], spans, ["black"] * 2, steps)
    first, second = figure.layout.annotations
    assert (first.xanchor, first.ay) == ("right", 0)  # the front leaves to the right
    assert (second.xanchor, second.ay) == ("right", 0)  # and comes from above


def test_runs_over_seeds_take_the_median_time() -> None:
    table = results({"rose": [20, 23, 29], "wanda": [90]}).assign(seconds=[1.0, 100.0, 2.0, 1.0])
    first = results_of(table, "0.7")[0]
    assert (first.method, first.value, first.seconds, first.draws) == ("rose", 24, 2, {0: 20, 1: 23, 2: 29})
