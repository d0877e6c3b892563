"""Means over seeds are drawn with their range, and the title says whether a lead is larger than it."""

import numpy as np
import pandas as pd
import pytest

import rose
from app.figures.comparison import over_seeds_bars, time_and_perplexity
from app.runs import results as runs
from tests.app.figures.test_layer_and_overview import title


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
    assert drawing.caption == "Mean ± half the range over up to three seeds: ROSE 24.0 ± 4.50, SparseGPT 35.0 ± 5.00."
    assert list(drawing.data["method"]) == ["rose", "sparsegpt"]


def test_title_says_whether_seeds_could_have_made_the_difference() -> None:
    apart = title(over_seeds_bars(results({"sparsegpt": [30, 40], "rose": [20, 29]}), "0.7"))
    assert apart == "ROSE has the lowest mean perplexity, 24.5; SparseGPT lies above every seed of it"
    near = title(over_seeds_bars(results({"sparsegpt": [25, 40], "rose": [20, 29]}), "0.7"))
    assert near.endswith("within the spread over seeds")


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


def costs(*rows: tuple[str, float, float], **more: object) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["method", "seconds", "perplexity"]).assign(**more)


def test_pareto_front_is_of_the_runs_that_no_other_beats_on_both() -> None:
    table = costs(("alps", 9, 55), ("wanda", 1, 80), ("rose", 2.5, 66), ("sparsegpt", 2, 60), ("rose_admm", 4, 55))
    drawing = time_and_perplexity(table, dense=20)
    assert list(drawing.data["method"]) == ["wanda", "sparsegpt", "rose", "rose_admm", "alps"]
    # ROSE is slower and worse than SparseGPT; ALPS is no better than ROSE + ADMM, for more time.
    assert list(drawing.data["on_front"]) == [True, True, False, True, False]
    labels = ", ".join(rose.METHODS[method].label for method in ("wanda", "sparsegpt", "rose_admm"))
    assert title(drawing) == f"Pareto front: {labels}"
    front = drawing.figure.data[0]
    assert list(front.y) == [80, 60, 55, 55]
    assert front.x[-1] > 9


def test_a_long_front_is_counted_not_listed() -> None:
    names = ("wanda", "sparsegpt", "rose", "rose_global", "rose_dealt", "magnitude")
    table = costs(*((name, 1 + i, 50 - i) for i, name in enumerate(names[:5])), (names[5], 9, 400))
    drawing = time_and_perplexity(table)
    assert title(drawing) == "ROSE dealt has the lowest perplexity, 46.0; five of six runs lie on the Pareto front"
    assert drawing.figure.layout.yaxis.type is None  # less than a factor of ten
    assert time_and_perplexity(table, dense=20).figure.layout.yaxis.type == "log"


def test_ranges_and_targets_of_timed_runs() -> None:
    table = costs(("rose", 1, 20), ("rose", 2, 30), target=["dense", "layer"], lowest=[18, 29], highest=[21, 34])
    first, second = time_and_perplexity(table).figure.data[1:]
    assert (first.error_y.array[0], first.error_y.arrayminus[0]) == (1, 2)
    assert second.marker.symbol == f"{first.marker.symbol}-open"
    with pytest.raises(rose.RoseError, match="both a time and a perplexity"):
        time_and_perplexity(costs(("rose", np.nan, 20.0)))


def test_runs_over_seeds_take_the_median_time() -> None:
    table = results({"rose": [20, 23, 29], "wanda": [90]}).assign(seconds=[1.0, 100.0, 2.0, 1.0])
    first = runs.time_and_perplexity(table, "0.7").iloc[0]
    assert tuple(first[["method", "perplexity", "seconds", "lowest", "highest"]]) == ("rose", 24, 2, 20, 29)
