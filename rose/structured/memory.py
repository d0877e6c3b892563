"""Peak memory of making a streamed model smaller, by the formula in docs/memory.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from rose.model.estimate.memory import Memory, estimate_memory
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
    model: nn.Module,
    *,
    samples: int,
    length: int,
    method: str = "obs",
    parts: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    on_disk: bool = False,
    dense_targets: bool = False,
    held_out: bool = False,
) -> Memory:
    """What `prune_structured` takes for a streamed model, besides the interpreter and its libraries.

    Args:
        model: streamed, or a skeleton; only shapes are read.
        samples, length: calibration tokens, held-out ones included.
        method: a structured method; "depth" only measures similarity.
        parts: kinds of parts that may go, as from `check_parts`.
        dtype: of the weights and hidden states.
        on_disk: hidden states are kept on disk, as with a checkpoint.
        dense_targets: output projections are corrected towards the dense model.
        held_out: some of the samples are held out, and have statistics of their own.

    Raises:
        RoseError: parts that the model lacks.
    """
    chosen = structured_method(method)
    estimate = partial(estimate_memory, model, samples=samples, length=length, dtype=dtype, held_out=held_out)
    if chosen.select is None:
        names = [layer.name for layer in visited_layers(model, [])]
        return estimate(layers=names)
    found = [part for of_block in find_parts(model, parts or ()) for part in of_block]
    names = [layer.name for layer in layers_read(chosen, found)]
    base = estimate(layers=names, on_disk=on_disk, sequential=True, dense_targets=dense_targets)
    squares = SQUARES_AT_WORK + held_out
    work = [
        4 * (squares * part.output.weight.shape[1] ** 2 + WEIGHTS_AT_WORK * part.output.weight.numel())
        for part in found
    ]
    return dataclasses.replace(base, work=max(work))
