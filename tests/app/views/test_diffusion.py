"""The page Diffusion opens on finished pictures, and every view shows the same run."""

import pytest
from streamlit.testing.v1 import AppTest

from app import shared, words
from app.jobs import Job, Run
from app.runs import example
from app.runs.diffusion import STEPS, DiffusionRun, recipe
from rose.diffusion.loading import load_diffusion
from tests.app.tiny_study import ended, figures, finish, open_page, run_in, texts, titles

PAGE = "views/diffusion.py"


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """Imports, loads and draws before a page's clock runs."""
    shared.dense_diffusion().trajectory(0)


@pytest.fixture(scope="module")
def finished() -> DiffusionRun:
    """A run without the app around it."""
    return finish(DiffusionRun(recipe(method="wanda", samples=10), shared.dense_diffusion))


def view(run: DiffusionRun, name: str) -> AppTest:
    """The page in this view, after the run."""
    app = open_page(PAGE)
    shared.registry.put(Run, (app.session_state["viewer"], "diffusion"), run)
    app.run()
    app.segmented_control(key="diffusion_view").set_value(name).run()
    return app


@pytest.mark.parametrize("view", ["Pictures", "Drift by step", "Columnar layers"])
def test_page_opens_on_a_finished_comparison_without_a_model(view, monkeypatch):
    monkeypatch.setattr(shared, "dense_diffusion", lambda: pytest.fail("The model was read."))
    app = open_page(PAGE, None, diffusion_view=view)
    assert "Example: ROSE, 0.5, log decrease" in texts(app)
    assert len(figures(app)) == 1
    if view == "Pictures":
        drift = words.percent(float(example.diffusion().drift[-1])).replace("\u202f", " ")
        assert f"{drift} away from the dense model" in titles(app)[0]


def test_views_show_the_finished_run(finished):
    app = view(finished, "Pictures")
    assert "Wanda 0.5" in figures(app)[0]
    app.slider(key="diffusion_step").set_value(0).run()
    assert "Both models start from the same noise" in figures(app)[0]
    assert (finished.drift[0], len(finished.drift)) == (0, STEPS + 1)
    assert "pictures end" in figures(view(finished, "Drift by step"))[0]
    assert "Log decrease" in figures(view(finished, "Step weights"))[0]
    shown = view(finished, "Columnar layers")
    columnar = int(finished.report.layers["is_columnar"].sum())
    assert f"{words.sentence(words.out_of(columnar, 24, 'layer'))} " in titles(shown)[0]
    assert "of 1 795 585 weights" in texts(shown)


def test_dense_model_is_unchanged(finished):
    weights = shared.dense_diffusion().pipeline.transformer.state_dict()
    fresh = load_diffusion().transformer.state_dict()
    assert all((weights[name] == fresh[name]).all() for name in fresh)


def test_run_can_be_cancelled():
    run = DiffusionRun(recipe(), shared.dense_diffusion)
    run.job.leave("test")
    run.job.start()
    assert ended(run, "cancelled").report is None


def test_button_starts_the_chosen_request(monkeypatch):
    monkeypatch.setattr(Job, "start", lambda self: self)
    app = open_page(PAGE, None, diffusion_weights="Uniform")
    app.selectbox(key="diffusion_method").set_value("sparsegpt").run()
    app.button(key="diffusion-start").click().run()
    request = run_in(app, "diffusion").request
    assert (request.method, request.step_weights, request.sparsity) == ("sparsegpt", "uniform", "0.5")
