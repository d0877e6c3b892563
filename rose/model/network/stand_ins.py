"""Temporarily replaces or watches calls of modules."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def replaced_forwards(modules: Iterable[nn.Module], forwards: Iterable[Callable[..., Any]]) -> Iterator[None]:
    """Context: each module runs the given forward function; accelerate's own functions on modules are restored."""
    modules = list(modules)
    originals = [vars(module).get("forward") for module in modules]
    for module, forward in zip(modules, forwards, strict=True):
        module.forward = forward
    try:
        yield
    finally:
        for module, before in zip(modules, originals, strict=True):
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
