"""Heads and channels: the numbers are the engine's, and a smaller copy is made, compared and handed out."""

import re
import threading
from dataclasses import replace

import pytest
import torch

import rose
from app import words
from app.jobs import Job
from app.runs.slimming import Slimming, Speedup
from app.study.setup import Setup
from app.study.structures import Structures
from app.study.study import LoadedModel
from rose.recipe.parts import SlimSettings
from rose.structured.parts import CHANNELS, HEADS
from rose.structured.problem import set_cost
from tests.app.tiny_study import begun, figures, finish, measured_study, open_page, texts, tiny_model
from tests.tiny import byte_tokenizer

PAGE, COPY = "views/structures.py", "A smaller copy"


def test_costs_match_the_engine(study):
    structures = Structures(study)
    part = structures.parts[HEADS, 1]
    problem = structures.problem(part)
    row = structures.head_costs().query("block_index == 1 and head == 2").iloc[0]
    kept = torch.tensor([True, True, False, True])
    assert row["cost"] == pytest.approx(set_cost(problem, kept) / problem.energy, rel=1e-3)
    channels = structures.channel_costs(1)
    assert sorted(channels["channel"]) == list(range(96))
    assert channels["together"].is_monotonic_increasing
    gone = torch.ones(96, dtype=torch.bool)
    gone[channels["channel"].iloc[:20].tolist()] = False
    mlp = structures.problem(structures.parts[CHANNELS, 1])
    assert channels["together"].iloc[19] == pytest.approx(set_cost(mlp, gone) / mlp.energy, rel=1e-2)


def test_channel_order_is_read_once(study, monkeypatch):
    """Once for each channel would take minutes where there are tens of thousands."""
    structures, reads = Structures(study), []
    priced = structures.priced(structures.parts[CHANNELS, 1])

    class Order:
        def __len__(self) -> int:
            return len(priced.order)

        def tolist(self) -> list[int]:
            reads.append(1)
            return priced.order.tolist()

    monkeypatch.setattr(structures, "priced", lambda _part: replace(priced, order=Order()))
    assert len(structures.channel_costs(1)) == 96
    assert len(reads) == 1


@pytest.mark.parametrize("view", ["Heads", "Channels", COPY])
def test_page_opens_on_the_example(view):
    app = open_page(PAGE, structures_view=view)
    assert "Example:" in texts(app)
    assert len(figures(app)) == (view != COPY)
    if view == COPY:
        assert app.table[0].value["Model"].tolist() == ["Dense", "slimllm, 20\u202f% out"]
        assert re.search(r"About \d+ (s|min), [\d.]+ (kB|MB|GB) besides the model", texts(app))


@pytest.mark.usefixtures("placed", "patient")
@pytest.mark.parametrize("view", ["Heads", "Channels"])
def test_costs_are_computed_on_request(study, view):
    study = measured_study(samples=9 if view == "Heads" else 10)
    app = open_page(PAGE, study, structures_view=view)
    assert "Example:" in texts(app)
    app.button(key="structures-begin").click().run()
    assert "Example:" not in texts(app)
    assert len(figures(app)) == 1


@pytest.mark.parametrize("status", ["kept", "running"])
def test_nothing_is_computed_unasked(study, status, monkeypatch):
    """A study from disk is not begun by this page, and what another page has begun shows no progress on it."""
    unmeasured = begun(study)
    unmeasured.job.status = status
    monkeypatch.setattr(type(unmeasured), "is_restored", True, raising=False)
    monkeypatch.setattr(Job, "start", lambda _job: pytest.fail("The page has started work."))
    for view in ("Heads", "Channels", COPY):
        app = open_page(PAGE, unmeasured, structures_view=view)
        assert "Example:" in texts(app)
        assert "waiting-cancel" not in [button.key for button in app.main.button]
    assert unmeasured.job.status == status


@pytest.mark.usefixtures("placed")
def test_smaller_copy_is_compared_and_written(monkeypatch, study):
    model = tiny_model()
    before = [parameter.clone() for parameter in model.parameters()]
    tokens = (study.calibration.tokens, study.calibration.held_out)
    monkeypatch.setattr(Setup, "draw", lambda *_: tokens)
    english = torch.arange(40).reshape(2, 20)  # as the tokenizer has more tokens than the model
    monkeypatch.setattr("app.runs.copies.plain_english", lambda *_: english)
    loaded = LoadedModel(model, byte_tokenizer(), threading.Lock())
    run = finish(Slimming(study.setup, SlimSettings(ratio=0.3), lambda: loaded))
    _, slim = run.models
    parameters, speed = (
        [model.summary[name] for model in run.models] for name in ("kept_parameters", "tokens_per_second")
    )
    assert parameters[1] < parameters[0] == sum(weights.numel() for weights in before)
    held_out, summary = tokens[1], slim.summary
    assert held_out is not None
    assert (summary["windows"], summary["window_length"], summary["evaluated_on"]) == (2, 32, "held out")
    assert summary["perplexity_before"] == pytest.approx(rose.perplexity(model, held_out))
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    folder = run.checkpoints[slim.name]

    app = open_page(PAGE, study, structures_view=COPY)
    run.copies[0] = slim.with_summary(remarks=["It has taken another share than asked."])
    app.session_state["slimming"] = run
    app.run()
    assert "It has taken another share than asked." in texts(app)
    assert speed[1] / speed[0] == pytest.approx(run.speedup.ratio.value)  # the table says what the sentence does
    for seconds, is_clear in (
        ([0.01] * 3, True),
        ([0.01, 0.03, 0.02], False),
    ):  # other work here decides a measured one
        run.speedup = Speedup.of([0.012, 0.0121, 0.0122], seconds, bound=1.3)
        assert run.speedup.ratio.is_clear is is_clear
        assert run.speedup.says().replace("\u202f", " ") in texts(app.run())
    assert app.table[0].value["Model"].tolist() == [words.held(model.name) for model in run.models]
    run.discard()
    assert not folder.exists()


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
