"""The packaged example study keeps its numbers while a run collects inputs, fails or is abandoned."""

import threading
from unittest.mock import Mock

import pytest
from streamlit.testing.v1 import AppTest

import rose
from app import shared
from app.components import needs, work
from app.study.setup import Setup
from app.study.study import InputsRun
from rose.layer.checks import OVERFIT
from tests.app.tiny_study import START, open_page, texts

OTHER = "model.layers.7.mlp.down_proj"
WHY = "The packaged model is not installed; run make model."


pytestmark = pytest.mark.usefixtures("empty_registry")


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages begin work by themselves however slow the machine is at the moment, by which they estimate its time."""
    monkeypatch.setattr(needs, "UNASKED", 1e6)
    monkeypatch.setattr(work, "UNASKED", 1e6)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "load", Mock(side_effect=rose.RoseError(WHY)))


def run_of(app: AppTest) -> InputsRun:
    return app.session_state["layer_inputs"]


def where(page: str = START) -> AppTest:
    """A page on a layer whose inputs the example does not have."""
    return open_page(page, shared.find(Setup()), layer=OTHER)


def ended(app: AppTest) -> AppTest:
    """The page once the run that it has begun is over."""
    run_of(app).job.wait(240)
    return app.run()


@pytest.mark.usefixtures("missing")
@pytest.mark.parametrize("page", [START, "views/order_lab.py"])
def test_page_without_inputs_offers_a_retry(page):
    app = ended(where(page))
    assert WHY in texts(app)
    before = run_of(app)
    app = ended(app.button(key="collect-again").click().run())
    assert run_of(app) is not before
    assert WHY in texts(app)


def test_numbers_are_shown_while_inputs_are_collected(monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(shared, "load", lambda *_args, **_more: go_on.wait(240))  # the model is being loaded
    app = open_page("views/order_lab.py")
    study, job = shared.find(Setup()), run_of(app).job
    assert "appear here as soon as its inputs are collected" in texts(app)
    assert app.button(key="waiting-cancel")
    assert study.job.status == "kept", "no other layer's inputs are collected"
    explore = open_page(START)  # which shows the layer at once, from its profile
    assert any(
        "18 · o_proj is" in element.proto.body and "0.76" in element.proto.body for element in explore.get("html")
    )
    runs = open_page("views/prune.py", prune_section="Compare runs").multiselect(key="runs")
    assert "smollm2-135m · SparseGPT (study) · 0.7 · 210 layers" in runs.options
    job.stop()
    go_on.set()
    job.wait(240)


@pytest.mark.usefixtures("missing")
def test_abandoned_run_is_restarted():
    app = ended(where())
    before = run_of(app)
    before.job.status, before.job.abandoned = "cancelled", True
    assert run_of(app.run()) is not before


@pytest.mark.usefixtures("missing")
def test_inputs_of_other_layers_are_collected_on_request(monkeypatch):
    monkeypatch.setattr(needs, "UNASKED", 0.0)
    monkeypatch.setattr(work, "UNASKED", 0.0)
    app = where()
    assert "layer_inputs" not in app.session_state
    assert "Pictures of 7 · down_proj need its inputs." in texts(app)
    app.button(key="collect-inputs-begin").click().run()
    assert run_of(app).layer == OTHER
    app = open_page(START, section="Data")
    assert "All other checks need the inputs of every layer." in texts(app)
    assert app.button(key="checks-collect").label.startswith("Collect the inputs of your set-up, about ")
    records = shared.find(Setup()).records()
    over = records[records["held_out_error"] > OVERFIT * records["relative_error"]]
    assert len(app.dataframe[1].value) == len(over) > 0
