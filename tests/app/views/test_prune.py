"""The page Prune: choices, runs, results, and refusals."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from functools import partial
from html import escape
from typing import Any
from urllib.parse import parse_qsl

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

import rose
from app import session, shared, words
from app.registry import Registry
from app.results import pairs
from app.runs.pruning import PruningRun
from rose import verdicts
from rose.model.defaults import TUNING
from rose.recipe import Recipe
from tests.app.tiny_study import ended, figures, open_on, open_page, texts, titles, tune_one_epoch

PAGE = "views/prune.py"
QUICK = {"prune_layers": "model.layers.1.*.o_proj", "prune_windows": "1", "prune_prompt": ""}
Events = tuple[threading.Event, threading.Event]


open_on_page = partial(open_on, page=PAGE)


def pruned(app: AppTest, status: str = "done") -> tuple[AppTest, PruningRun]:
    app.button(key="prune-start").click().run()
    run = ended(shared.prunings()[app.session_state["pruning"]], status)
    app.run()
    return app, run


@pytest.fixture
def halt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Events]]:
    """Stops a run at the step of this message; gives what is set when it is there, and what makes it go on."""
    original, halted, go_on = PruningRun._say, threading.Event(), threading.Event()

    def stop_at(message: str) -> Events:
        def say(run: PruningRun, doing: str) -> None:
            original(run, doing)
            if doing == message:
                halted.set()
                assert go_on.wait(240)

        monkeypatch.setattr(PruningRun, "_say", say)
        return halted, go_on

    yield stop_at
    go_on.set()


def html(app: AppTest) -> str:
    return "\n".join(element.proto.body for element in app.get("html"))


def copies_of(app: AppTest) -> pd.DataFrame:
    return next(table.value for table in app.table if "Copy" in table.value)


def test_page_opens_on_the_example(setup, monkeypatch):
    monkeypatch.setattr(shared, "registry", Registry(math.inf))
    app = open_on_page(setup)
    assert "Example: pruned copies of smollm2-135m" in texts(app)
    assert len(copies_of(app)) == 7
    assert copies_of(app)["elsewhere"].str.contains("×").sum() == 6  # a second text beside every perplexity
    app.session_state["prune-take"], app.session_state["prune_take_of"] = True, "gone"
    assert "This is the example: prune your own." in texts(app.run())
    assert [name in title for title, name in zip(titles(app), ("lowest perplexity", "lower held-out"), strict=True)]
    assert "A text, read: what ROSE ADMM at 0.7 expects less" in html(app)


def test_url_restores_a_run(setup):
    query = {"prune_methods": "SparseGPT", "prune_layers": "*.0.self_attn.*", "prune_prompt": ""}
    app, run = pruned(open_on_page(setup, **query, prune_bits="4 bits", prune_group="row"))
    again = open_on_page(setup, run=app.query_params["run"])
    shown = copies_of(again)
    assert shown["Copy"].tolist() == ["Dense", "SparseGPT at 0.7, 4 bits"]
    summary = run.copies[0].summary
    rounding, pruning = summary["mean_rounding_error"], summary["mean_pruning_error"]
    assert shown[pairs.PART].tolist()[1] == words.percent(rounding / (rounding + pruning))
    elsewhere = open_on_page(setup)  # another browser
    elsewhere.selectbox(key="prune-other").set_value(app.query_params["run"]).run()
    assert len(copies_of(elsewhere)) == 2
    label = f"Below is a run of {setup.model} in float32, calibrated on 4 × 32 tokens of Python's reference, seed 0"
    assert not open_on_page(setup.changed(sparsity="0.5"), run=app.query_params["run"]).info
    assert label in open_on_page(setup.changed(seed=1), run=app.query_params["run"]).info[0].value


def test_reload_shows_the_run_of_the_browser(setup, monkeypatch):
    monkeypatch.setattr(session, "viewer", lambda: "browser/session")
    app, run = pruned(open_on_page(setup, **QUICK))
    again = open_on_page(setup)  # a new session, as after a reload
    assert again.session_state["pruning"] == app.session_state["pruning"]
    assert copies_of(again)["Copy"].tolist() == ["Dense", *(copy.name for copy in run.copies)]


def test_run_shows_results_of_chosen_settings(setup, tmp_path):
    app = open_on_page(setup)
    app.multiselect(key="prune_methods").set_value(["sparsegpt", "rose"]).run()
    app.text_input(key="prune_sparsities").set_value("0.5 2:4").run()
    app.number_input(key="prune_windows").set_value(3).run()
    app.selectbox(key="prune_keep").set_value("folder").run()
    assert "Give the path of a folder for the checkpoints." in texts(app)
    assert app.button(key="prune-start").disabled
    app.text_input(key="prune_folder").set_value(str(tmp_path / "out")).run()
    assert "Four copies" in texts(app)
    app, run = pruned(app)
    shown = copies_of(app)
    names = ["SparseGPT at 0.5", "ROSE at 0.5", "SparseGPT at 2:4", "ROSE at 2:4"]
    assert list(shown["Copy"]) == ["Dense", *names]
    for row, model in zip(shown.to_dict("records")[1:], run.copies, strict=True):
        ratio = words.times(model.perplexity / run.dense.perplexity)
        assert row["Perplexity"] == f"{words.number(model.perplexity)}, {ratio}"
        assert row["Error"] == words.number(model.summary["mean_held_out_error"])
    assert "3 × 32 tokens of held-out calibration text" in texts(app)
    verdict = verdicts.says_ranking(verdicts.rank([copy.result for copy in run.copies]))
    assert titles(app)[0].startswith(verdict)
    (ratios,) = (table.value for table in app.table if "Copy" not in table.value)
    assert ratios["Perplexity of"].tolist() == ["ROSE / SparseGPT"]
    assert ratios.columns[1:].tolist() == ["at 0.5", "at 2:4"]
    app.session_state["prune-take"] = True  # opens the part with files
    app.run().selectbox(key="prune_take_of").set_value(names[2]).run()
    links = {link.proto.label: dict(parse_qsl(link.proto.query_string)) for link in app.get("page_link")}
    reading = open_page("views/prune.py", **links["Read a text with it"])
    assert reading.multiselect(key="text_models").value == [names[2]]
    assert json.loads(figures(app)[1])["data"][0]["type"] == "heatmap"
    for model in run.copies:
        assert escape(" ".join(model.summary["continuation"].split())[:20]) in html(app)
    assert all(rose.load_model(str(run.kept(model))) for model in run.copies)


def test_shown_recipes_match_the_choices(setup):
    app = open_on_page(setup, prune_text="ptb", prune_windows="5")
    assert "prune_true_sequential" not in [toggle.key for toggle in app.toggle]  # as dense targets always are
    app.multiselect(key="prune_targets").set_value(["layer", "dense"]).run()
    app.toggle(key="prune_true_sequential").set_value(True).run()
    app.number_input(key="prune_target_damping").set_value(2.5).run()
    for place in range(2):
        app.selectbox(key="prune-recipe-of").select_index(place).run()
        asked: Any = Recipe.parse(app.code[0].value, "output=x").spec
        assert asked.true_sequential == (asked.target == "layer")
        assert asked.target_damping == (2.5 if asked.target == "dense" else None)
        assert (asked.evaluate, asked.windows) == ("ptb", 5)


def test_failed_run_shows_finished_copies(setup, monkeypatch):
    prune_model = rose.prune_model

    def failing(*arguments: Any, **options: Any) -> rose.RunReport:
        if options["method"] == "rose":
            raise rose.RoseError("No factor was found.")
        return prune_model(*arguments, **options)

    monkeypatch.setattr(rose, "prune_model", failing)
    app = open_on_page(setup, **QUICK)
    app.selectbox(key="prune_keep").set_value("all").run()
    app, run = pruned(app, "failed")
    assert "No factor was found." in app.error[0].value
    assert "One copy finished before that" in texts(app)
    assert list(copies_of(app)["Copy"]) == ["Dense", "SparseGPT at 0.7"]
    assert run.kept(run.copies[0]).exists()


def test_run_ending_during_drawing_enables_buttons(setup, monkeypatch, halt):
    halted, go_on = halt("Loading the model")
    original, seen = session.sees_at_work, []

    def ends_then(run: PruningRun | None) -> bool:
        seen.append(original(run))
        if seen[-1] and run is not None:
            go_on.set()
            run.job.wait(240)
        return seen[-1]

    monkeypatch.setattr(session, "sees_at_work", ends_then)
    app = open_on_page(setup, **QUICK)
    app.button(key="prune-start").click().run()
    assert halted.is_set()
    assert True in seen
    assert not app.button(key="prune-start").disabled


def test_other_viewers_cannot_stop_or_delete_a_run(setup, halt):
    query = QUICK | {"prune_methods": "Magnitude"}
    halted, go_on = halt("Perplexity and text of the dense model")
    app = open_on_page(setup, **query)
    app.button(key="prune-start").click().run()
    run = shared.prunings()[app.query_params["run"]]
    assert halted.wait(240)
    other = open_on_page(setup, **query, run=app.query_params["run"])
    other.button(key="prune-cancel").click().run()
    assert "it goes on for them" in other.toast[0].value
    assert not run.job.is_cancelled
    go_on.set()
    ended(run)
    pruned(other.run())
    copy_folder = run.kept(run.copies[0])
    assert copy_folder.exists()
    pruned(app.run())
    assert copy_folder.exists()  # others may look at it


def test_second_run_waits_for_the_first(setup):
    _, other = pruned(open_on_page(setup, **QUICK))
    app, own_run = pruned(open_on_page(setup, **QUICK))
    own_run.job.status = "running"
    name = next(name for name, run in shared.prunings().items() if run is other)
    app.selectbox(key="prune-other").set_value(name).run()
    assert app.button(key="prune-start").disabled
    assert "Your own run goes on" in texts(app)
    own_run.job.status = "done"


def test_pruned_copy_is_tuned(setup, text, monkeypatch):
    monkeypatch.setattr("rose.model.load.tokens.TUNING", TUNING._replace(samples=16))
    tune_one_epoch(monkeypatch, 1e-4)
    query = {"prune_methods": "SparseGPT", "prune_prompt": "", "prune_windows": "1", "tune_copy": "gone"}
    app, run = pruned(open_on_page(setup.changed(calibration=str(text)), **query))
    app.button(key="tune-start").click().run()
    ended(run.tuning)
    app.run()
    tuned = "SparseGPT at 0.7, tuned 8 steps"
    assert list(copies_of(app)["Copy"]) == ["Dense", "SparseGPT at 0.7", tuned]
    assert copies_of(app)["Error"].tolist()[2] == "–"
    assert "weights are zero, as before." in texts(app)
    assert any("Held-out perplexity is" in title for title in titles(app))
    assert [copy.name for copy in run.copies if run.kept(copy)] == ["SparseGPT at 0.7", tuned]
    run.tuning.job.abandoned, run.checkpoints = True, {}
    for caption in ("No page had been open", "There was too little room to keep its checkpoint."):
        assert caption in texts(app.run())
