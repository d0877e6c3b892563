"""Choices in links, and which studies are kept."""

import contextlib
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.web.server.starlette.starlette_app_utils import generate_xsrf_token_string

from app import session
from app.jobs import Job, Run
from app.runs.pruning import PruneRequest, PruningRun
from app.study.setup import Setup
from tests.app.tiny_study import COLUMNAR, START, open_page, texts


def test_link_to_a_missing_layer_is_explained(placed, study):
    missing = "model.layers.99.self_attn.o_proj"
    app = open_page(START, study, layer=missing)
    assert f"The link asks for the layer {missing}, which was not measured here" in texts(app)
    assert app.session_state["chosen_layer"] == COLUMNAR
    app.selectbox(key="layer_widget").set_value("model.layers.0.self_attn.q_proj").run()
    assert missing not in texts(app)


@pytest.mark.parametrize(("text", "value"), [("0.3", 0.3), ("7", 1.0), ("high", 0.5)])
def test_threshold_of_a_link_is_clamped(text, value):
    app = open_page(START, threshold=text)
    assert app.session_state["chosen_threshold"] == value


def test_link_parameters_have_a_fixed_order(monkeypatch):
    query: dict[str, str] = {}
    setup = Setup(model="a", samples=3, seed=2, sparsity="2:4", block_size=16)
    state = {"setup": setup, "chosen_layer": "b"}
    streamlit = SimpleNamespace(query_params=query, session_state=State(state | {"chosen_threshold": 0.3}))
    monkeypatch.setattr(session, "st", streamlit)
    session.publish()
    assert list(query) == ["model", "samples", "seed", "sparsity", "block_size", "layer", "threshold"]


class State(dict):
    """As `st.session_state`: keys are attributes too."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # type: ignore[assignment]


def looked_at(app: AppTest) -> str:
    """The model and the text in a page's first row."""
    return next(part.proto.body for part in app.get("html") if "tokens, seed" in part.proto.body)


def test_a_model_is_chosen_without_measuring():
    app = open_page("views/prune.py")
    assert "SmolLM2-135M, Python&#x27;s reference, 16 × 512 tokens, seed 0" in looked_at(app)
    app.button(key="change-model").click().run()
    app.number_input(key="measure_samples").set_value(6).run()
    app.button(key="only-choose").click().run()
    assert app.session_state.setup == Setup(samples=6)
    assert "6 × 512 tokens" in looked_at(app)
    assert not [box for box in app.number_input if box.key == "measure_samples"], "the dialog is closed"
    app.switch_page("views/explore.py").run()
    assert "The layers of SmolLM2-135M are not measured" in texts(app)
    app.pills(key="study_chosen").set_value(Setup()).run()
    assert app.session_state.setup == Setup()


def test_sessions_of_one_browser_share_its_name(monkeypatch):
    def come(**cookies: str) -> str:
        streamlit = SimpleNamespace(session_state=State(), context=SimpleNamespace(cookies=cookies))
        monkeypatch.setattr(session, "st", streamlit)
        assert session.viewer() == session.viewer()
        return session.viewer()

    token = b"0123456789abcdef"
    first, again, other = (come(_streamlit_xsrf=generate_xsrf_token_string(cookie)) for cookie in (token, token, None))
    assert first != again
    assert first.partition("/")[0] == again.partition("/")[0] != other.partition("/")[0]
    assert come().partition("/")[0] != come().partition("/")[0]


def test_link_omits_the_default_layer(placed, study):
    app = open_page(START, **study.setup.to_texts())
    assert app.session_state["chosen_layer"] == COLUMNAR
    assert "layer" not in app.query_params


def test_deleted_copies_are_not_tuned(monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(session.st, "toast", lambda text, **_look: told.append(text))
    session.start_tuning(SimpleNamespace(is_tuning=False, tunable={}), "SparseGPT at 0.7", 3.0)
    assert "SparseGPT at 0.7 is not there any more" in told[0]


STARTS = [("Tuning", "tuning", lambda run: session.start_tuning(run, "ROSE at 0.5", 3.0))]
STARTS += [("FileRun", "file", lambda run: session.start_file(run, Path("copy"), "f16"))]


@pytest.mark.parametrize(("maker", "slot", "start"), STARTS)
def test_two_sessions_start_one_run(maker, slot, start, monkeypatch):
    both, made, started = threading.Barrier(2), [], []

    class Slow(Run):
        def __init__(self, *_what: object) -> None:
            super().__init__()
            made.append(self)
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.2)  # for the other session, which should not get here

    monkeypatch.setattr(session, maker, Slow)
    monkeypatch.setattr(session, "follow", lambda run, _what: started.append(run))
    monkeypatch.setattr(Job, "start", lambda job: job)
    run = PruningRun(Setup(), PruneRequest(("rose",), ("0.5",)), Mock())
    sessions = [threading.Thread(target=start, args=(run,)) for _ in range(2)]
    for each in sessions:
        each.start()
    for each in sessions:
        each.join()
    assert made == started == [getattr(run, slot)]
