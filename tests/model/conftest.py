"""Tiny models: one thread, and batches of two samples, so that the five samples leave a remainder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.model.families import LENGTH


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rose.model.walk.forward.BATCH_TOKENS", 2 * LENGTH + 5)
