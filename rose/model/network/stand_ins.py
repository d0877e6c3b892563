"""Replaces or watches what modules do when they are called, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def replaced_forwards(modules: Iterable[nn.Module], forwards: Iterable[Callable[..., Any]]) -> Iterator[None]:
    """While this lasts, each module runs the forward function given for it.

    A module may have a forward function of its own besides its class's, which comes back afterwards: accelerate puts
    its hooks there.
    """
    modules = list(modules)
    own = [vars(module).get("forward") for module in modules]
    for module, forward in zip(modules, forwards, strict=True):
        module.forward = forward
    try:
        yield
    finally:
        for module, before in zip(modules, own, strict=True):
            if before is None:
                vars(module).pop("forward", None)  # the class's own shows again
            else:
                module.forward = before


@contextmanager
def hooked(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes these hooks afterwards."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
