"""Colours that everybody can tell apart, numbers in words, and shrinking that hides no column."""

import itertools
import tomllib
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import app
import rose
from app import words
from app.figures import palette, shrinking, style
from rose.layer.order import order_names

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


def contrast(one: str, other: str) -> float:
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(channels: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ channels / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", palette.INKS)
def test_every_colour_stands_out_from_both_pages(theme: palette.Theme) -> None:
    ink = palette.INKS[theme]
    for colour in (*palette.PALETTE, palette.MARK):
        assert contrast(colour, ink.page) >= 3, colour
    assert contrast(ink.text, ink.page) >= 7
    assert contrast(ink.muted, ink.page) >= 4.5


@pytest.mark.parametrize("theme", palette.INKS)
def test_a_downloaded_figure_has_the_colour_of_its_page(theme: palette.Theme) -> None:
    config = tomllib.loads((Path(app.__file__).parent / ".streamlit/config.toml").read_text())
    figure = style.base(go.Figure(), theme, "A finding", "what")
    assert figure.layout.template.layout.paper_bgcolor == config["theme"][theme]["backgroundColor"].lower()


@pytest.mark.parametrize("vision", VISION)
def test_no_two_colours_look_alike(vision: str) -> None:
    seen = {colour: lab(np.clip(VISION[vision] @ linear(colour), 0, 1)) for colour in palette.PALETTE}
    for one, other in itertools.combinations(palette.PALETTE, 2):
        assert np.linalg.norm(seen[one] - seen[other]) >= 15, (one, other)


def test_known_orders_and_methods_have_a_colour_of_their_own() -> None:
    bases = {name.removesuffix("_ascending") for name in order_names()} | {"custom"}
    assert set(palette.ORDER_COLOURS) <= bases
    assert len(set(palette.ORDER_COLOURS.values())) == len(palette.ORDER_COLOURS)
    assert set(palette.METHOD_COLOURS) <= set(rose.METHODS)
    assert len(set(palette.METHOD_COLOURS.values())) == len(palette.METHOD_COLOURS)


def test_a_method_that_is_an_order_has_its_colour() -> None:
    for method, order in (
        ("sparsegpt", "natural"),
        ("rose", "two_level"),
        ("rose_global", "global"),
        ("rose_dealt", "dealt"),
    ):
        assert palette.METHOD_COLOURS[method] == palette.ORDER_COLOURS[order]


def test_an_order_among_methods_is_drawn_as_that_order() -> None:
    assert palette.method_style("two_level") == palette.order_style("two_level")


def test_labels_are_for_people() -> None:
    assert palette.order_style("natural").label == "Natural"
    assert palette.order_style("two_level").label == "Two-level"
    assert palette.order_style("global").label == "Global"
    assert palette.order_style("random:7").label == "Random, seed 7"
    ascending = palette.order_style("two_level_ascending")
    assert ascending.label == "Two-level, ascending"
    assert ascending.colour == palette.ORDER_COLOURS["two_level"]
    assert ascending.dash != palette.order_style("two_level").dash


def test_an_unknown_name_keeps_one_colour() -> None:
    assert palette.method_style("my_method") == palette.method_style("my_method")
    assert palette.method_style("my_method").colour in palette.PALETTE
    assert palette.method_style("my_method").label == "my method"
    assert palette.order_style("my_order").colour in palette.PALETTE


def test_what_a_plugin_adds_is_not_drawn_like_anything_built_in() -> None:
    drawn = {palette.method_style(name)[2::2] for name in palette.METHOD_COLOURS}  # dash and pattern
    assert palette.method_style("my_method")[2::2] not in drawn
    drawn = {palette.order_style(name)[2::2] for name in order_names()}
    assert palette.order_style("my_order")[2::2] not in drawn


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.12345, "0.123"),
        (1.6, "1.60"),
        (99.96, "100"),
        (123.4, "123"),
        (12345.6, "12 346"),
        (-0.5, "−0.500"),
        (0.00002784, "2.78 × 10⁻⁵"),
        (3.31e8, "3.31 × 10⁸"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert words.number(value) == text


def test_words() -> None:
    assert words.count(4, "layer") == "four layers"
    assert words.count(1, "layer") == "one layer"
    assert words.count(0, "layer") == "no layers"
    assert words.count(2100, "layer") == "2 100 layers"
    assert words.percent(0.1234) == "12.3 %"


def test_no_two_layers_of_a_model_have_one_short_name() -> None:
    assert words.short_layer("model.layers.18.self_attn.o_proj") == "18 · self_attn.o_proj"
    assert words.short_layer("transformer.h.0.attn.c_proj") != words.short_layer("transformer.h.0.mlp.c_proj")
    assert words.short_layer("lm_head") == "lm_head"


@given(
    arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.floats(0, 100, width=32)),
    st.integers(1, 12),
)
def test_shrinking_keeps_maximum_and_sum(values: np.ndarray, limit: int) -> None:
    largest = shrinking.shrink(values, limit)
    assert max(largest.array.shape) <= limit
    for row, column in np.ndindex(*largest.array.shape):
        cell = values[
            row * largest.rows : (row + 1) * largest.rows, column * largest.columns : (column + 1) * largest.columns
        ]
        assert largest.array[row, column] == cell.max()
    assert shrinking.shrink(values.astype(np.float64), limit, "sum").array.sum() == pytest.approx(
        values.sum(dtype=np.float64)
    )


def test_one_strong_column_survives() -> None:
    weight = torch.zeros(1200, 1100, dtype=torch.bfloat16)
    weight[:, 777] = 3
    shrunk = shrinking.shrink(weight)
    assert shrunk.array.shape == (400, 367)
    assert (shrunk.array.max(0) == 3).nonzero()[0].tolist() == [777 // 3]
    assert shrunk.note == "each cell is the maximum of 3 × 3 weights"


def test_a_matrix_that_fits_is_not_shrunk() -> None:
    values = np.arange(6.0).reshape(2, 3)
    shrunk = shrinking.shrink(values)
    assert shrunk.array.tolist() == values.tolist()
    assert shrunk.note == "each cell is one weight"


def test_cells_whose_text_would_be_too_long_are_shrunk_further() -> None:
    # Plotly escapes every slash of the base64; these floats are full of them.
    slashes = np.frombuffer(b"\xff\xff\x7f\x3f" * 512 * 512, np.float32).reshape(512, 512)
    shrunk = shrinking.shrink(slashes)
    assert len(go.Figure(style.heatmap(shrunk, "x")).to_json()) < 2_000_000
    assert shrunk.note == f"each cell is the maximum of {shrunk.rows} × 1 weights"
    assert shrunk.rows > 1


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 3)), np.zeros((2, 2, 2))])
def test_only_a_matrix_can_be_drawn(bad: np.ndarray) -> None:
    with pytest.raises(rose.RoseError, match="matrix"):
        shrinking.shrink(bad)


def test_the_table_says_what_a_cell_is() -> None:
    table = shrinking.frame(shrinking.shrink(np.ones((4, 6)), 2))
    assert table.columns.tolist() == ["output channel (each cell is the maximum of 2 × 3 weights)", "0", "3"]
    assert table.iloc[:, 0].tolist() == [0, 2]


def test_outliers_do_not_darken_everything_else() -> None:
    values = np.ones((100, 100))
    values[0, 0] = 50
    top, note = shrinking.ceiling(values)
    assert top == 1
    assert note == "; colours end at 1.00, the largest is 50.0"
    assert shrinking.ceiling(np.linspace(0, 1, 100)) == (1, "")
    assert shrinking.ceiling(np.zeros(4)) == (1, "")


def test_titles_wrap_but_numbers_stay_whole() -> None:
    figure = style.base(go.Figure(), "light", "This title is as long as it takes to put a break at 2.78 × 10⁻⁵", "what")
    assert "2.78 × 10⁻⁵" in figure.layout.title.text
    assert figure.layout.title.text.count("<br>") == 2
    assert figure.layout.title.text.startswith("<b>This title")


def test_unknown_theme_and_block() -> None:
    with pytest.raises(rose.RoseError, match="light or dark"):
        style.base(go.Figure(), "sepia", "a", "b")  # type: ignore[arg-type]
    with pytest.raises(rose.RoseError, match="blocks 0 to 2"):
        style.block_span((16, 16, 8), 3)


def test_columns_of_a_block() -> None:
    assert style.block_span((16, 16, 8), 2) == (32, 40)


@pytest.mark.parametrize(
    ("some", "every", "text"),
    [(4, 4, "all four methods"), (3, 4, "three of four methods"), (0, 4, "none of four methods"),
     (1, 1, "the one method"), (0, 1, "none of one method")],
)  # fmt: skip
def test_how_many_agree(some: int, every: int, text: str) -> None:
    assert words.out_of(some, every, "method") == text
