"""Colours are distinguishable, titles wrap, blocks have the right columns, and shrinking hides no column."""

import itertools
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import app
import rose
from app.figures import palette, shapes, style
from rose.layer.registry import order_names

# Severe protanopia and deuteranopia, Machado, Oliveira and Fernandes 2009.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(first: str, second: str) -> float:
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (first, second))
    return (high + 0.05) / (low + 0.05)


def lab(channels: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ channels / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", palette.INKS)
def test_every_colour_stands_out_from_both_pages(theme):
    ink = palette.INKS[theme]
    for colour in (*palette.PALETTE, palette.MARK):
        assert contrast(colour, ink.page) >= 3, colour
    assert contrast(ink.text, ink.page) >= 7
    assert contrast(ink.muted, ink.page) >= 4.5


@pytest.mark.parametrize("vision", VISION)
def test_no_two_colours_look_alike(vision):
    seen = {colour: lab(np.clip(VISION[vision] @ linear(colour), 0, 1)) for colour in palette.PALETTE}
    for first, other in itertools.combinations(palette.PALETTE, 2):
        assert np.linalg.norm(seen[first] - seen[other]) >= 15, (first, other)


def test_known_orders_and_methods_have_a_colour_of_their_own():
    bases = {name.removesuffix("_ascending") for name in order_names()} | {"custom"}
    assert set(palette.ORDER_COLOURS) <= bases
    assert len(set(palette.ORDER_COLOURS.values())) == len(palette.ORDER_COLOURS)
    assert set(palette.METHOD_COLOURS) <= set(rose.METHODS)
    assert len(set(palette.METHOD_COLOURS.values())) == len(palette.METHOD_COLOURS)


def test_method_that_is_an_order_has_its_colour():
    orders = {"sparsegpt": "natural", "rose": "two_level", "rose_global": "global", "rose_dealt": "dealt"}
    for method, order in orders.items():
        assert palette.METHOD_COLOURS[method] == palette.ORDER_COLOURS[order]
    assert palette.method_style("two_level") == palette.order_style("two_level")


def test_plugins_have_a_style_of_their_own():
    drawn = {palette.method_style(name)[2::2] for name in palette.METHOD_COLOURS}  # dash and pattern
    assert palette.method_style("my_method")[2::2] not in drawn
    drawn = {palette.order_style(name)[2::2] for name in palette.ORDER_COLOURS}
    assert palette.order_style("my_order")[2::2] not in drawn


@pytest.mark.parametrize("theme", palette.INKS)
def test_downloaded_figure_has_the_colour_of_its_page(theme):
    config = tomllib.loads((Path(app.__file__).parent / ".streamlit/config.toml").read_text())
    figure = shapes.Chart(theme=theme).done("A finding", "what", "", "Nothing", pd.DataFrame()).figure
    assert figure.layout.template.layout.yaxis.rangemode == "tozero"
    assert figure.layout.template.layout.paper_bgcolor == config["theme"][theme]["backgroundColor"].lower()


def test_titles_wrap_but_numbers_stay_whole():
    text, lines = style.heading("This title is as long as it takes to put a break at 2.78 × 10⁻⁵", "what", "#555")
    assert "2.78 × 10⁻⁵" in text
    assert text.count("<br>") == 2 == lines - 1
    assert text.startswith("<b>This title")


def test_columns_of_a_block():
    assert shapes.block_span((16, 16, 8), 2) == (32, 40)
    with pytest.raises(rose.RoseError, match="blocks 0 to 2"):
        shapes.block_span((16, 16, 8), 3)


@given(
    arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.floats(0, 100, width=32)),
    st.integers(1, 12),
)
def test_shrinking_keeps_maximum_and_sum(values, limit):
    largest = shapes.shrink(values, limit)
    assert max(largest.array.shape) <= limit
    rows, columns = largest.rows, largest.columns
    for row, column in np.ndindex(*largest.array.shape):
        cell = values[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
        assert largest.array[row, column] == cell.max()
    summed = shapes.shrink(values.astype(np.float64), limit, "sum").array.sum()
    assert summed == pytest.approx(values.sum(dtype=np.float64))


def test_cells_whose_text_would_be_too_long_are_shrunk_further():
    # Plotly escapes every slash of the base64; these floats are full of them.
    slashes = np.frombuffer(b"\xff\xff\x7f\x3f" * 512 * 512, np.float32).reshape(512, 512)
    shrunk = shapes.shrink(slashes)
    chart = shapes.Chart()
    chart.cells(shrunk, "x")
    assert len(chart.figure.to_json()) < 2_000_000
    assert shrunk.note == f"each cell is the maximum of {shrunk.rows} × 1 weights"
    assert shrunk.rows > 1


def test_outliers_do_not_darken_the_other_cells():
    values = np.ones((100, 100))
    values[0, 0] = 50
    top, note = shapes.ceiling(values)
    assert top == 1
    assert note == "; colours end at 1.00, the largest is 50.0"
    assert shapes.ceiling(np.linspace(0, 1, 100)) == (1, "")
    assert shapes.ceiling(np.zeros(4)) == (1, "")
