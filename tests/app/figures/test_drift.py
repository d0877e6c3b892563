"""Figures of the page Diffusion say what the numbers say, and refuse what does not fit."""

import numpy as np

from app.figures import drift
from rose.diffusion.steps import STEP_WEIGHTS

PIXELS = np.zeros((2, 4, 4), np.float32)


def test_every_step_weighting_has_a_style() -> None:
    assert set(drift.WEIGHTINGS) == set(STEP_WEIGHTS)


def test_pictures_stand_in_rows_with_a_gap() -> None:
    drawing = drift.pictures({"Dense": PIXELS, "Wanda": PIXELS + 0.5}, ["a", "b"], 4, drift=0.25)
    (sheet,) = drawing.figure.data
    assert sheet.z.shape == (10, 10)
    assert np.isnan(sheet.z[4:6]).all()
    assert (sheet.z[6:, :4] == 0.5).all()
    assert "25" in drawing.figure.layout.title.text
    axis = drawing.figure.layout.xaxis
    assert (axis.ticktext, axis.ticklabeloverflow, min(axis.autotickangles)) == (("a", "b"), "allow", -45)


def test_titles_say_where_the_drift_ends_and_where_it_was_largest() -> None:
    rising = drift.drift_curve([0, 0.1, 0.4], [900, 400], method="rose")
    assert "end 40" in rising.figure.layout.title.text
    assert "largest" not in rising.figure.layout.title.text
    assert list(rising.data["drift"]) == [0, 0.1, 0.4]
    falling = drift.drift_curve([0, 0.5, 0.4], [900, 400], method="rose")
    assert "largest" in falling.figure.layout.title.text
    assert "50" in falling.figure.layout.title.text


def test_weights_that_favour_one_step_show_its_diagonal() -> None:
    diagonals = np.array([[1.0, 3.0], [3.0, 1.0]], np.float32)
    drawing = drift.step_weighting({"uniform": (1, 1), "linear": (3, 1)}, diagonals, "linear")
    assert list(drawing.data["diagonal_uniform"]) == [4, 4]
    assert list(drawing.data["diagonal_linear"]) == [6, 10]
    assert "25" in drawing.caption  # 6 and 10 against their mean 8
