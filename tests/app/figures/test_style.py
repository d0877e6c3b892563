"""Titles, blocks and pages: what all figures share."""

import tomllib
from pathlib import Path

import plotly.graph_objects as go
import pytest

import app
import rose
from app.figures import palette, shapes, style


@pytest.mark.parametrize("theme", palette.INKS)
def test_a_downloaded_figure_has_the_colour_of_its_page(theme: palette.Theme) -> None:
    config = tomllib.loads((Path(app.__file__).parent / ".streamlit/config.toml").read_text())
    figure = style.base(go.Figure(), theme, "A finding", "what")
    assert figure.layout.template.layout.yaxis.rangemode == "tozero"
    assert figure.layout.template.layout.paper_bgcolor == config["theme"][theme]["backgroundColor"].lower()


def test_titles_wrap_but_numbers_stay_whole() -> None:
    figure = style.base(go.Figure(), "light", "This title is as long as it takes to put a break at 2.78 × 10⁻⁵", "what")
    assert "2.78 × 10⁻⁵" in figure.layout.title.text
    assert figure.layout.title.text.count("<br>") == 2
    assert figure.layout.title.text.startswith("<b>This title")


def test_columns_of_a_block() -> None:
    assert shapes.block_span((16, 16, 8), 2) == (32, 40)
    with pytest.raises(rose.RoseError, match="blocks 0 to 2"):
        shapes.block_span((16, 16, 8), 3)
