"""What all sessions share: which studies are kept."""

from __future__ import annotations

from app import shared
from app.study.setup import Setup
from app.study.study import Calibration, LoadedModel, Study


def unfinished(model: str, seed: int, status: str = "done") -> Study:
    def load() -> LoadedModel:
        raise AssertionError("never started")

    study = Study(Setup(model=model, seed=seed), load, Calibration())
    study.job.status = status  # type: ignore[assignment]
    return study


def kept(*studies: Study) -> list[Study]:
    by_setup = {study.setup: study for study in studies}
    shared._forget(by_setup)
    return list(by_setup.values())


def test_the_studies_started_longest_ago_are_dropped() -> None:
    studies = [unfinished("a", seed) for seed in range(6)]
    assert kept(*studies) == studies[-shared.KEPT_STUDIES :]


def test_no_more_than_two_models_are_held() -> None:
    a, b, c = (unfinished(model, 0) for model in "abc")
    assert kept(a, b, c) == [b, c]


def test_a_running_study_is_never_dropped() -> None:
    running = unfinished("a", 0, "running")
    others = [unfinished("b", seed) for seed in range(5)]
    assert kept(running, *others)[0] is running
