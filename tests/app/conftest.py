"""A measured study of a tiny model, for the pages that show one."""

from __future__ import annotations

import pytest

from app import shared
from app.study.study import Study
from tests.app.tiny_study import measured_study


@pytest.fixture(scope="module")
def study() -> Study:
    return measured_study()


@pytest.fixture
def placed(study: Study) -> None:
    """The study where the app looks for it, whatever a test before has started in its place."""
    shared.studies()[study.setup] = study
