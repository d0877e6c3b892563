"""Choices in links, and which studies are kept."""

from __future__ import annotations

from dataclasses import asdict, replace

import hypothesis.strategies as some
import pytest
from hypothesis import given

import rose
from app import session
from app.study import Calibration, LoadedModel, Setup, Study
from tests.app.tiny_study import measured_study, open_page, texts

SETUPS = some.builds(
    Setup,
    model=some.sampled_from(["smollm2-135m", "meta-llama/Llama-3.2-1B", "/models/my model", "a&b=ü"]),
    text=some.sampled_from(["packaged", "c4", "~/a b.txt"]),
    samples=some.integers(1, 10**4),
    held_out=some.integers(0, 99),
    layers=some.sampled_from(["*", "model.layers.3.* *.o_proj"]),
    sparsity=some.sampled_from(["0.7", "2:4", "50%"]),
    damping=some.floats(0, 1),
)


@given(SETUPS)
def test_a_link_restores_the_setup(setup: Setup) -> None:
    assert Setup.from_texts(setup.to_texts()) == setup


def test_a_link_holds_only_what_differs() -> None:
    assert Setup().to_texts() == {}
    assert Setup(samples=3, sparsity="2:4").to_texts() == {"samples": "3", "sparsity": "2:4"}


def test_other_parameters_of_a_link_are_left_alone() -> None:
    assert Setup.from_texts({"section": "Losses", "samples": "3"}) == Setup(samples=3)


@pytest.mark.parametrize(("name", "value"), [("samples", "many"), ("damping", "x"), ("seed", "1.5")])
def test_an_unreadable_value_is_named(name: str, value: str) -> None:
    with pytest.raises(rose.RoseError, match=f"{name}='{value}'"):
        Setup.from_texts({name: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"sparsity": "1.2"},
        {"sparsity": "5:4"},
        {"samples": 0},
        {"length": 1},
        {"held_out": -1},
        {"block_size": 0},
        {"damping": -0.1},
        {"damping": float("nan")},
        {"dtype": "int8"},
        {"model": " "},
        {"text": ""},
    ],
)
def test_values_that_no_run_could_use_are_refused(changes: dict) -> None:
    with pytest.raises(rose.RoseError):
        replace(Setup(), **changes).check()


def test_what_statistics_do_not_depend_on_is_not_in_their_key() -> None:
    base = Setup()
    free = {"sparsity": "0.5", "block_size": 64, "damping": 0.1}
    assert replace(base, **free).calibration_key == base.calibration_key
    for name in set(asdict(base)) - set(free):
        other = replace(base, **{name: 7 if isinstance(getattr(base, name), int) else "other"})
        assert other.calibration_key != base.calibration_key, name


def unfinished(model: str, seed: int, status: str = "done") -> Study:
    def load() -> LoadedModel:
        raise AssertionError("never started")

    study = Study(Setup(model=model, seed=seed), load, Calibration())
    study.job.status = status  # type: ignore[assignment]
    return study


def kept(*studies: Study) -> list[Study]:
    by_setup = {study.setup: study for study in studies}
    session._forget(by_setup)
    return list(by_setup.values())


def test_the_studies_started_longest_ago_are_dropped() -> None:
    studies = [unfinished("a", seed) for seed in range(6)]
    assert kept(*studies) == studies[-session.KEPT_STUDIES :]


def test_no_more_than_two_models_are_held() -> None:
    a, b, c = (unfinished(model, 0) for model in "abc")
    assert kept(a, b, c) == [b, c]


def test_a_running_study_is_never_dropped() -> None:
    running = unfinished("a", 0, "running")
    others = [unfinished("b", seed) for seed in range(5)]
    assert kept(running, *others)[0] is running


def test_a_bad_link_is_explained_and_the_defaults_are_shown() -> None:
    app = open_page("views/start.py", samples="many")
    assert "samples='many'" in texts(app)
    assert app.number_input(key="start_samples").value == Setup().samples


def test_edits_after_a_study_are_in_the_url_too() -> None:
    study = measured_study()
    app = open_page("views/start.py", study)
    app.number_input(key="start_samples").set_value(5).run()
    assert (app.query_params["samples"], app.query_params["draft_samples"]) == ("8", "5")
    again = open_page("views/start.py", study, draft_samples="5")
    assert again.number_input(key="start_samples").value == 5
    assert again.session_state["setup"] == study.setup
    again.number_input(key="start_samples").set_value(8).run()
    assert "draft_samples" not in again.query_params


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("block_size", "8192", "Block size, columns: choose from 1 to 4096, not 8192."),
        ("samples", "5000", "Samples: choose from 1 to 4096, not 5000."),
        ("length", "65536", "Tokens per sample: choose from 2 to 32768, not 65536."),
        ("damping", "2", "Damping: choose from 0.0 to 1.0, not 2.0."),
        ("seed", "-1", "Seed: choose from 0 to 1000000, not -1."),
    ],
)
def test_a_value_that_no_widget_takes_is_explained(name: str, value: str, words: str) -> None:
    app = open_page("views/start.py", **{name: value})
    assert words in texts(app)
    assert app.number_input(key=f"start_{name}").value == getattr(Setup(), name)


@pytest.mark.parametrize(("text", "value"), [("0.3", 0.3), ("7", 1.0), ("high", 0.5)])
def test_a_threshold_in_a_link_is_kept_within_bounds(text: str, value: float) -> None:
    app = open_page("views/start.py", threshold=text)
    assert app.session_state["chosen_threshold"] == value
