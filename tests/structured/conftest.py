"""Tiny models: one thread."""

from tests.model.conftest import one_thread, small_batches

__all__ = ["one_thread", "small_batches"]
