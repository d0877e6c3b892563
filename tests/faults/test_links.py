"""Texts of links, files and exceptions are shown as plain text and start no request."""

import ast
import json
import math
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from huggingface_hub import constants
from plotly.utils import PlotlyJSONEncoder
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Block, Element, ElementTree

import app
import rose
from app import shared, words
from app.figures import style
from app.figures.shapes import Chart
from app.registry import Registry
from app.runs.pruning import PruneRequest, PruningRun
from app.study.setup import CHOSEN
from app.study.study import Study
from tests.app.tiny_study import COLUMNAR, START, figures, finish, measured_study, open_page, place

HOME = Path(app.__file__).parent
PAGES = [f"views/{path.name}" for path in sorted((HOME / "views").glob("*.py")) if path.name != "__init__.py"]
OTHERS = ("glossary", "learn", "order_lab")  # which name no model, or one of their own
HOSTILE = (
    "![x](http://a.example/x.png)[Log in](http://a.example/)<b>$x$:material/check::red[x]"
    "<a href='http://a.example/'>x</a><span style='fill:url(http://a.example/)'>x</span>"
)
LIVE = re.compile(r"(?<!\\)\[|(?<!\\)<[ab]|http://|:material/check|:red")
LIVE_IN_FIGURE = re.compile(r"<[^<>]*a\.example")  # Plotly takes a tag only whole
TYPED = ("text_input", "text_area", "selectbox", "multiselect", "code", "html", "arrow_data_frame")  # no Markdown


def elements(block: Block | ElementTree) -> Iterator[Element]:
    for child in block.children.values():
        if isinstance(child, Block):
            yield from elements(child)
        else:
            yield child


def live(page: AppTest) -> list[str]:
    """What a browser would take for markup, of what came from outside."""
    shown = [str(element.proto) for element in elements(page._tree) if element.type not in (*TYPED, "plotly_chart")]
    texts = [text for text in shown if "a.example" in text and LIVE.search(text.replace("\\\\", "\\"))]
    return texts + [text for text in figures(page) if LIVE_IN_FIGURE.search(text)]


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "registry", Registry(math.inf))


@pytest.mark.parametrize("page", PAGES)
def test_values_of_a_link_are_shown_as_text(page: str) -> None:
    texts = dict.fromkeys((*CHOSEN, "layer", "threshold", "run"), HOSTILE)
    app = open_page(page, **texts)
    shown = "".join(str(element.proto) for element in elements(app._tree))
    assert "a.example" in shown
    assert not live(app)


@pytest.mark.parametrize("page", PAGES)
def test_names_and_failures_are_shown_as_text(page, monkeypatch, hostile):
    """A measured study of a model of such a name, a layer that failed, and a run that ended with such a sentence."""
    place(hostile)
    request, load = PruneRequest(methods=("magnitude",), sparsities=("0.5",)), Mock(side_effect=rose.RoseError(HOSTILE))
    run = finish(PruningRun(hostile.setup, request, load, lambda report: None), "failed")
    shared.registry.put(PruningRun, "one", run)
    app = open_page(page, hostile, run="one")
    says = "a.example" in "".join(str(element.proto) for element in elements(app._tree))
    assert says == (page.removeprefix("views/").removesuffix(".py") not in OTHERS)
    assert not live(app)


@pytest.fixture(scope="module")
def hostile() -> Study:
    study = measured_study()
    study.setup = study.setup.changed(model=HOSTILE, calibration=HOSTILE)
    study.failed["model.layers.2.mlp.up_proj"] = HOSTILE
    study.job.message = HOSTILE
    return study


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.layers.0.self_attn.o_proj at 2:4, 0.7, or N:M", None),
        ("a_b *c* `d` [e](f) <g> $h$ ~i~ #j", r"a_b \*c\* \`d\` \[e\](f) \<g\> \$h\$ \~i\~ \#j"),
        ("_a_ __b__", r"\_a\_ \_\_b\_\_"),
        ("http://a.b www.c.d e@f.g", "http:\u2060//a.b www\u2060.c.d e@\u2060f.g"),
        (":material/check: :red[x]", r":⁠material/check: :⁠red\[x\]"),
        ("- a\n\n# b", r"\- a \# b"),
        ("1. a", r"1\. a"),
        (rose.RoseError("no --text"), "no -\u2060-text"),
    ],
)
def test_plain_text_is_escaped_for_markdown(text: object, shown: str | None) -> None:
    assert words.plain(text) == (text if shown is None else shown)


def test_streamlit_boxes_show_constant_texts_only() -> None:
    """Streamlit's own boxes are for constant texts; `components.error` and its like show others."""
    boxes = {f"{place}.{kind}" for place in ("st", "left", "right") for kind in ("error", "warning", "info", "toast")}
    told: list[str] = []
    for path in HOME.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in boxes:
                told += [] if is_own(node.args[0]) else [f"{path.relative_to(HOME)}:{node.lineno}"]
    assert not told


def is_own(text: ast.expr) -> bool:
    """Whether an expression holds only constants and what functions of `words` have made."""
    if isinstance(text, ast.JoinedStr):
        return all(is_own(part.value if isinstance(part, ast.FormattedValue) else part) for part in text.values)
    if isinstance(text, ast.IfExp):
        return is_own(text.body) and is_own(text.orelse)
    return isinstance(text, ast.Constant) or ast.unparse(text).startswith("words.")


def test_names_in_a_figure_are_escaped() -> None:
    """Wherever they enter: titles, ticks, labels, hover."""
    tags = 'a<br><b>b</b> c<sub>d</sub> <span style="color:rgba(1, 2, 3, 0.5)">━</span> 0 < 1 > 0'
    texts = {"text": np.array([HOSTILE, tags], object), "customdata": [[HOSTILE, 1.0], [tags, 2.0]], "name": HOSTILE}
    trace = go.Scatter(x=[HOSTILE, "x"], y=[1, 2], hovertemplate=f"{HOSTILE}<br>%{{y}}<extra></extra>", **texts)
    figure = go.Figure(trace)
    figure.add_annotation(text=HOSTILE)
    figure.update_xaxes(ticktext=[HOSTILE], tickvals=[0], title_text=HOSTILE)
    chart = Chart(x=HOSTILE)
    chart.figure = figure
    drawn = style.untitled(chart.done(HOSTILE, HOSTILE, "", "", pd.DataFrame()).figure)
    shown = drawn.to_plotly_json()
    del shown["layout"]["meta"]  # what pages show of it as text
    text = json.dumps(shown, cls=PlotlyJSONEncoder)
    assert text.count("a.example") > 15
    assert not LIVE_IN_FIGURE.search(text)
    assert drawn.data[0].hovertemplate.endswith("<br>%{y}<extra></extra>")
    assert drawn.data[0].text[1] == tags.replace("0 < 1", "0 &lt; 1")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts that anything wants to reach."""
    hosts: list[str] = []

    def refuse(host: str, *_args: object, **_more: object) -> None:
        hosts.append(host)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # before the Hub's client tries again
    return hosts


@pytest.mark.parametrize("page", PAGES)
def test_a_link_starts_no_request(page: str, asked: list[str]) -> None:
    open_page(page, model="somebody/repo", calibration="c4", layers="model.layers.0.*", layer=COLUMNAR)
    assert asked == []


def test_only_a_button_asks_the_hub(asked: list[str]) -> None:
    app = open_page(START, model="somebody/repo")
    app.button(key="measure-open").click().run()
    assert "somebody/repo is not on this machine" in app.error[0].value
    assert any("sends the name to huggingface.co" in caption.value for caption in app.caption)
    next(button for button in app.button if button.label == "Ask the Hub").click().run()
    assert "huggingface.co" in asked
    assert "somebody/repo is not in the local cache" in app.error[0].value
