"""Step weights are the paper's, and bad ones are refused."""

import math

import numpy as np
import pytest

import rose
from rose.diffusion.trajectory import Batch, _generators


def test_log_decrease_is_the_papers_formula() -> None:
    weights = rose.step_weights("log_decrease", 10)
    assert weights == pytest.approx([0.8 + 0.4 * math.log(10 - i) / math.log(10) for i in range(10)])
    assert (weights[0], weights[-1]) == (pytest.approx(1.2), pytest.approx(0.8))


def test_the_others() -> None:
    assert rose.step_weights("log_increase", 7) == rose.step_weights("log_decrease", 7)[::-1]
    assert rose.step_weights("uniform", 3) == (1.0, 1.0, 1.0)
    assert rose.step_weights("uniform", np.int64(3)) == (1.0, 1.0, 1.0)  # type: ignore[arg-type]
    assert rose.step_weights("linear", 5) == pytest.approx([1.2, 1.1, 1.0, 0.9, 0.8])
    assert rose.step_weights([1, 2, 3], 3) == (1.0, 2.0, 3.0)
    assert all(rose.step_weights(kind, 1) == (1.0,) for kind in ("log_decrease", "linear", "uniform"))


def test_any_seed_makes_noise() -> None:
    largest = 2**63 - 1
    batch = Batch({}, 0, 2)
    first, second = _generators(batch, largest)  # type: ignore[misc]
    assert first.initial_seed() != second.initial_seed()
