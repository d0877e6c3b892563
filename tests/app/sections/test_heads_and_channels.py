"""Heads and channels: numbers of the engine, and a smaller copy that is made, compared and downloaded."""

import re
import threading
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch

import rose
from app import shared, words
from app.jobs import Job, Run
from app.runs.slimming import Slimming, Speedup
from app.study.setup import Setup
from app.study.structures import Structures
from app.study.study import Calibration, LoadedModel, Study
from rose.structured.parts import CHANNELS, HEADS
from rose.structured.problem import set_cost
from tests.app.tiny_study import ended, figures, measured_study, open_page, place, run_in, texts, tiny_model
from tests.tiny import byte_tokenizer

PAGE, COPY = "views/smaller.py", "A smaller copy"
PARTS = {"smaller_section": "Heads and channels"}


def test_costs_match_the_engine(study):
    structures = Structures(study)
    part = structures.parts[HEADS, 1]
    problem = structures.problem(part)
    row = structures.head_costs().query("block_index == 1 and head == 2").iloc[0]
    survives = torch.tensor([True, True, False, True])
    assert row["cost"] == pytest.approx(set_cost(problem, survives) / problem.energy, rel=1e-3)
    channels = structures.channel_costs(1)
    assert sorted(channels["channel"]) == list(range(96))
    assert channels["together"].is_monotonic_increasing
    gone = torch.ones(96, dtype=torch.bool)
    gone[channels["channel"].iloc[:20].tolist()] = False
    mlp = structures.problem(structures.parts[CHANNELS, 1])
    assert channels["together"].iloc[19] == pytest.approx(set_cost(mlp, gone) / mlp.energy, rel=1e-2)


def test_channel_order_is_read_once(study, monkeypatch):
    structures = Structures(study)
    priced, order = structures.priced(structures.parts[CHANNELS, 1]), MagicMock()
    order.__len__.return_value, order.tolist.side_effect = len(priced.order), priced.order.tolist
    monkeypatch.setattr(structures, "priced", lambda _part: replace(priced, order=order))
    assert len(structures.channel_costs(1)) == 96
    assert order.tolist.call_count == 1  # once for each of tens of thousands of channels would take minutes


@pytest.mark.parametrize("view", ["Heads", "Channels", COPY])
def test_page_opens_on_the_example(view):
    app = open_page(PAGE, **PARTS, structures_view=view)
    assert "Example:" in texts(app)
    assert len(figures(app)) == (view != COPY)
    if view == COPY:
        assert app.table[0].value["Model"].tolist() == ["Dense", "slimllm, 20\u202f% out"]
        assert re.search(r"About \d+ (s|min), [\d.]+ (kB|MB|GB) besides the model", texts(app))


@pytest.mark.usefixtures("placed", "patient")
@pytest.mark.parametrize("view", ["Heads", "Channels"])
def test_costs_are_computed_on_request(study, view):
    study = measured_study(samples=9 if view == "Heads" else 10)
    app = open_page(PAGE, study, **PARTS, structures_view=view)
    assert "Example:" in texts(app)
    app.button(key="structures-begin").click().run()
    assert "Example:" not in texts(app)
    assert len(figures(app)) == 1


@pytest.mark.parametrize("status", ["kept", "running"])
def test_nothing_is_computed_unasked(study, status, monkeypatch):
    unmeasured = Study(study.setup.changed(seed=97), study._load, Calibration())
    unmeasured.layer_names, unmeasured.job.status = study.layer_names, status
    place(unmeasured)
    monkeypatch.setattr(type(unmeasured), "is_restored", True, raising=False)
    monkeypatch.setattr(Job, "start", lambda _job: pytest.fail("The page has started work."))
    for view in ("Heads", "Channels", COPY):
        app = open_page(PAGE, unmeasured, **PARTS, structures_view=view)
        assert "Example:" in texts(app)
        assert "waiting-cancel" not in [button.key for button in app.main.button]
    assert unmeasured.job.status == status


@pytest.mark.usefixtures("placed")
def test_button_makes_a_smaller_copy(monkeypatch, study):
    model = tiny_model()
    before = [parameter.clone() for parameter in model.parameters()]
    tokens, held_out = study.calibration.tokens, study.calibration.held_out
    monkeypatch.setattr(Setup, "draw", lambda *_: (tokens, held_out))
    english = torch.arange(40).reshape(2, 20)  # as the tokenizer has more tokens than the model
    monkeypatch.setattr("app.runs.copies.plain_english", lambda *_: english)
    monkeypatch.setattr(shared, "skeleton", lambda _name: model)
    monkeypatch.setattr(shared, "load", lambda *_: LoadedModel(model, byte_tokenizer(), threading.Lock()))
    app = open_page(PAGE, study, **PARTS, structures_view=COPY, slim_ratio="0.3", slim_prompt="Hello")
    app.button(key="slim-start").click().run()
    run: Slimming = ended(run_in(app, "slimming"))
    _, slim = run.models
    parameters, speed = (
        [model.summary[name] for model in run.models] for name in ("kept_parameters", "tokens_per_second")
    )
    assert parameters[1] < parameters[0] == sum(weights.numel() for weights in before)
    assert slim.asked == "30 % out"
    assert slim.summary["perplexity_before"] == pytest.approx(rose.perplexity(model, held_out))
    assert all(torch.equal(parameter, other) for parameter, other in zip(before, model.parameters(), strict=True))
    assert speed[1] / speed[0] == pytest.approx(run.speedup.ratio.value)  # the table says what the sentence does
    run.copies[0] = slim.with_summary(remarks=["It has taken another share than asked."])
    assert "It has taken another share than asked." in texts(app.run())
    # Other work on this machine decides a measured speed.
    for seconds, is_clear in (([0.01] * 3, True), ([0.01, 0.03, 0.02], False)):
        run.speedup = Speedup.of([0.012, 0.0121, 0.0122], seconds, bound=1.3)
        assert run.speedup.ratio.is_clear is is_clear
        assert run.speedup.says().replace("\u202f", " ") in texts(app.run())
    assert app.table[0].value["Model"].tolist() == [words.held(model.name) for model in run.models]
    shared.registry.put(Run, (app.session_state["viewer"], "slimming"), Run())
    assert not run.checkpoints[slim.name].exists()


@pytest.mark.parametrize(
    ("slim", "text"),
    [
        ([0.10, 0.09, 0.095, 0.1, 0.09], "It reads a prompt of 128 tokens 1.05"),
        ([0.01, 0.011, 0.01, 0.012, 0.01], "is unclear"),  # ten times as fast, with a fifth taken out
        ([0.09, 0.12, 0.08, 0.11, 0.09], "is unclear"),  # the pairs disagree
    ],
)
def test_speedup_is_reported_only_if_clear_and_possible(slim, text):
    assert text in Speedup.of([0.105, 0.095, 0.1, 0.104, 0.095], slim, bound=1.25).says()
