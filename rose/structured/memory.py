"""Peak memory of making a streamed model smaller, by the formula in docs/memory.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from rose.model.estimate.memory import Memory, estimate_memory
from rose.model.network.network import Network
from rose.structured.methods import structured_method
from rose.structured.parts import find_parts
from rose.structured.reduction import layers_read
from rose.structured.survey import visited_layers

# Matrices of the size of A that are alive at once while one output projection is reduced: H, its mean S, A, A damped,
# its inverse, and three parts of A with their Cholesky factor (least squares), or two copies of the inverse (greedy).
SQUARES_AT_WORK = 8
# Float32 matrices of the weight's size: W, its target and its gap, W compensated, reduced, and only masked.
WEIGHTS_AT_WORK = 6


def estimate_slim_memory(
    model: nn.Module, *, method: str = "obs", parts: Sequence[str] | None = None, held_out: bool = False, **sizes: Any
) -> Memory:
    """What `prune_structured` takes for a streamed model, besides the interpreter and its libraries.

    Args:
        model: streamed, or a skeleton; only shapes are read.
        method: a structured method; "depth" only measures similarity.
        parts: kinds of parts that may go, as from `check_parts`.
        held_out: some of the samples are held out, and have statistics of their own.
        sizes: `samples`, `length`, `dtype`, `on_disk` and `dense_targets`, see `estimate_memory`.

    Raises:
        RoseError: parts that the model lacks.
    """
    chosen = structured_method(method)
    if chosen.select is None:
        names = [layer.name for layer in visited_layers(Network(model), [])]
        plain = sizes | {"on_disk": False, "dense_targets": False}
        return estimate_memory(model, layers=names, held_out=held_out, **plain)
    found = [part for of_block in find_parts(model, parts or ()) for part in of_block]
    names = [layer.name for layer in layers_read(chosen, found)]
    base = estimate_memory(model, layers=names, held_out=held_out, sequential=True, **sizes)
    squares = SQUARES_AT_WORK + held_out
    work = [
        4 * (squares * part.output.weight.shape[1] ** 2 + WEIGHTS_AT_WORK * part.output.weight.numel())
        for part in found
    ]
    return dataclasses.replace(base, work=max(work))
