"""Choices in links, and which studies are kept."""

import contextlib
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from streamlit.web.server.starlette.starlette_app_utils import generate_xsrf_token_string

from app import session
from app.jobs import Job, Run
from app.runs.pruning import PruneRequest, PruningRun
from app.study.setup import Setup
from tests.app.tiny_study import COLUMNAR, open_page, texts


def test_url_holds_edits_after_a_study(placed, study):
    app = open_page("views/start.py", study)
    app.number_input(key="start_samples").set_value(5).run()
    assert (app.query_params["samples"], app.query_params["draft_samples"]) == ("8", "5")
    again = open_page("views/start.py", study, draft_samples="5")
    assert again.number_input(key="start_samples").value == 5
    assert again.session_state["setup"] == study.setup
    again.number_input(key="start_samples").set_value(8).run()
    assert "draft_samples" not in again.query_params


def test_link_to_a_missing_layer_is_explained(placed, study):
    missing = "model.layers.99.self_attn.o_proj"
    app = open_page("views/layers.py", study, layer=missing)
    assert f"The link asks for the layer {missing}, which was not measured here" in texts(app)
    assert app.session_state["chosen_layer"] == COLUMNAR
    app.sidebar.selectbox(key="layer_widget").set_value("model.layers.0.self_attn.q_proj").run()
    assert missing not in texts(app)


@pytest.mark.parametrize(("text", "value"), [("0.3", 0.3), ("7", 1.0), ("high", 0.5)])
def test_threshold_of_a_link_is_clamped(text, value):
    app = open_page("views/start.py", threshold=text)
    assert app.session_state["chosen_threshold"] == value


def test_link_parameters_have_a_fixed_order(monkeypatch):
    query: dict[str, str] = {}
    setup = Setup(model="a", samples=3, seed=2, sparsity="2:4", block_size=16)
    state = {"setup": setup, "draft": setup.changed(dtype="bfloat16", damping=0.1), "chosen_layer": "b"}
    streamlit = SimpleNamespace(query_params=query, session_state=State(state | {"chosen_threshold": 0.3}))
    monkeypatch.setattr(session, "st", streamlit)
    session.publish()
    first_names = ["model", "samples", "seed", "sparsity", "block_size"]
    assert list(query) == [*first_names, "layer", "threshold", "draft_dtype", "draft_damping"]


class State(dict):
    """As `st.session_state`: keys are attributes too."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # type: ignore[assignment]


def test_unused_edits_can_be_applied_without_measuring():
    app = open_page("views/start.py", draft_samples="6", draft_sparsity="0.6")
    app.switch_page("views/prune.py").run()
    assert "Edited on the start page, and not in use yet: Samples 6, Sparsity 0.6." in texts(app)
    app.button(key="use-draft").click().run()
    assert "not in use yet" not in texts(app)
    assert app.session_state.setup == Setup(samples=6, sparsity="0.6")
    assert "The layers of **smollm2-135m** are not measured with the chosen set-up." in texts(app)
    app.switch_page("views/start.py").run()
    app.button(key="recent-0").click().run()  # the example is still there
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
    app = open_page("views/layers.py", **study.setup.to_texts())
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
