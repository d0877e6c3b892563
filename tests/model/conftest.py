"""Tiny models: one thread, and batches of two samples, so that the five samples leave a remainder."""

import pytest

from tests.layer.conftest import one_thread
from tests.model.families import LENGTH

__all__ = ["one_thread", "small_batches"]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rose.model.walk.forward.BATCH_TOKENS", 2 * LENGTH + 5)
