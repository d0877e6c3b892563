"""Coloured tokens: readable on every colour, with their numbers, and escaped."""

import numpy as np
import pytest

from app.figures import tokens as coloured
from app.figures.palette import INKS
from tests.app.figures.test_palette import contrast


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("change", [True, False])
def test_ink_can_be_read_on_every_colour(theme, change):
    colours = [coloured.background(value, 2.0, theme, change=change) for value in np.linspace(-3, 3, 61)]
    assert min(contrast(colour, INKS[theme].text) for colour in colours) >= 4.5
    assert coloured.background(np.nan, 2.0, theme, change=change) == INKS[theme].page
    assert contrast(colours[-1], INKS[theme].page) > 1.5  # and the colour be seen
    assert colours[-1] == colours[-5]  # beyond the end


def test_text_is_escaped_and_numbers_are_formatted():
    html = coloured.coloured_text(
        ["<script>", "a\n", "", "'\"&"], np.array([np.nan, 1.5, 9.0, -0.25]), end=2.0, theme="light", marked=1
    )
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "↵" in html
    assert "+1.50 nats" in html
    assert "−0.250 nats" in html
    assert "&#x27;&quot;&amp;" in html
    assert html.count("outline:2px") == 1
    assert "9.00" not in html  # a token without text of its own


def test_outlier_token_does_not_set_the_scale():
    values = np.concatenate([np.linspace(-1, 1, 99), [100.0]])
    assert coloured.scale_end(values) < 5
    assert coloured.scale_end(np.array([0.01, np.nan])) == coloured.LEAST
