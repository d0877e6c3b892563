"""Means over seeds are drawn with their range, and the title says whether a lead is larger than it."""

import numpy as np
import pandas as pd
import pytest

import rose
from app.figures.methods import method_errors, over_seeds_bars
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
    with pytest.raises(rose.RoseError, match=r"No run at sparsity 0\.5"):
        over_seeds_bars(results({"rose": [20, 30]}), "0.5")
