"""The page Your text: a saved model reads the text, and colours and tables show its losses."""

import json
import math
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Selectbox

from app import shared
from app.registry import Registry
from app.runs.reading import DENSE, TextReading
from app.study.setup import Setup
from app.words import word
from tests.app.tiny_study import ended, open_on, run_in, texts

PAGE = "views/prune.py"
WRITTEN = "<b>A rose</b> is a rose."


@pytest.fixture(autouse=True)
def no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "registry", Registry(math.inf))


def opened(folder: Path, **query: str) -> AppTest:
    return open_on(Setup(model=str(folder)), PAGE, prune_section="Your text", **query)


def read(app: AppTest, status: str = "done") -> TextReading:
    app.button(key="text-read").click().run()
    run: TextReading = ended(run_in(app, "reading"), status)
    app.run()
    return run


def token_box(app: AppTest) -> Selectbox:
    """The list of tokens; a browser shows `default` until the server sends a value, so both are equal."""
    (box,) = (box for box in app.selectbox if box.label == "Token")
    assert box.proto.default == box.value - 1
    return box


def html(app: AppTest) -> str:
    return "\n".join(element.proto.body for element in app.get("html"))


def test_page_opens_on_the_example(folder):
    app = opened(folder)
    assert "ROSE ADMM at 0.7 is more surprised than the dense model at" in texts(app)
    assert len(app.dataframe[1].value) == 10
    app.multiselect(key="text_copies").set_value(["SparseGPT at 0.5", "SparseGPT at 0.7"]).run()
    assert html(app).count("white-space:pre-wrap") == 2
    assert app.button(key="text-read").disabled
    app.text_input(key="text_path").set_value("/nowhere").run()
    assert "There is no model in /nowhere" in app.error[0].value


def test_saved_model_reads_the_text(folder, pruned_folder):
    app = opened(folder, text_path=str(pruned_folder), text_written=WRITTEN)
    run = read(app)
    name = "Magnitude at 0.5"
    assert list(run.readings) == [DENSE, name]
    gap = run.readings[name].losses - run.readings[DENSE].losses
    assert f"more surprised than the dense model at {word(int((gap > 0).sum()))} of 23 tokens" in texts(app)
    assert "&lt;</span>" in html(app)
    assert "<b>" not in html(app).partition("white-space:pre-wrap")[2]
    tokens = app.dataframe[0].value
    assert tokens[f"{name} − dense"].abs().tolist() == pytest.approx(gap.abs().sort(descending=True)[0].tolist())
    assert token_box(app).value == int(gap.abs().argmax()) + 1
    headers = json.loads(app.dataframe[0].proto.columns)
    assert [headers[column]["label"] for column in (f"{name} − dense", name)] == ["Change", "Pruned"]
    token_box(app).set_value(5).run()
    best = float(run.readings[DENSE].chances[4, 0])
    assert app.dataframe[1].value[DENSE].iloc[0].endswith(f"” {100 * best:.1f}\u202f%")
    app.segmented_control(key="text_colour").set_value("surprise itself").run()
    assert html(app).count("white-space:pre-wrap") == 2
    app.text_area(key="text_written").set_value("Another text").run()
    assert "press Read again" in texts(app)
    app.text_area(key="text_written").set_value(WRITTEN).run()
    assert read(app) is not run
    token = token_box(app).value
    app.switch_page("views/learn.py").run()
    app.switch_page(PAGE).run()
    assert token_box(app).value == token
