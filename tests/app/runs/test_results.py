"""Two models on the same windows: a difference is clear only where the windows agree on it."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from app.figures.prune import perplexity_bars
from app.runs.results import perplexity_ratio
from tests.app.figures.test_layer_and_overview import title

EASY_AND_HARD = np.array([2.0, 3.0, 4.0, 5.0, 6.0, 3.5])
WOBBLE = np.array([0.01, -0.02, 0.015, 0.0, -0.005, 0.02])


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    worse = EASY_AND_HARD + 0.05 + WOBBLE
    ratio = perplexity_ratio(worse, EASY_AND_HARD)
    expected = stats.ttest_rel(worse, EASY_AND_HARD).confidence_interval(0.95)
    assert ratio.value == pytest.approx(math.exp((worse - EASY_AND_HARD).mean()))
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    assert ratio.is_clear  # although the windows themselves lie far apart
    assert not perplexity_ratio(EASY_AND_HARD + WOBBLE, EASY_AND_HARD).is_clear


def test_one_window_says_nothing() -> None:
    assert not perplexity_ratio([3.0], [2.0]).is_clear


@pytest.mark.parametrize(("gap", "clear"), [(0.05, True), (0.0, False)])
def test_no_clear_difference_is_the_headline(gap: float, clear: bool) -> None:
    losses = [EASY_AND_HARD + gap + WOBBLE, EASY_AND_HARD]
    table = pd.DataFrame({"method": ["rose", "sparsegpt"], "perplexity": [math.exp(one.mean()) for one in losses]})
    drawing = perplexity_bars(table, losses=losses)
    assert title(drawing).startswith("SparseGPT has the lowest" if clear else "No clear difference between")
    assert "95 % intervals over 6 windows, paired" in drawing.caption
