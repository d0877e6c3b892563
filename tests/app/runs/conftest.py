"""A loaded model, for runs of the background."""

import threading

import pytest

import rose
from app.study.setup import Setup
from app.study.study import LoadedModel


@pytest.fixture(scope="module")
def loaded(setup: Setup) -> LoadedModel:
    return LoadedModel(*rose.load_model(setup.model), threading.Lock())
