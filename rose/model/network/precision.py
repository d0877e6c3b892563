"""In which number format forward passes are computed.

Processors with bfloat16 instructions multiply matrices in it about twice as fast as in float32. Weights and the
residual stream stay float32 there; only the matrix products inside the decoder blocks are rounded (`torch.autocast`).
Products that bear the same rounding, those of gaps to dense targets and of a search that makes good its own, follow.
H, sweeps and errors against a layer's own output are always float32: what the forward passes give them is all that
changes. Errors against a dense target are made of the gaps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.model.network.layers import decoder_blocks

COMPUTE = ("auto", "float32", "bfloat16")
DEFAULT = "auto"  # perplexities after pruning are alike, see docs/speed.md
VARIABLE = "ROSE_COMPUTE"  # what "auto" means, where it is set
ENOUGH = 1.3  # times as fast in bfloat16: less is not worth another rounding
SIZE, REPEATS = 1024, 5


@cache
def bfloat16_gain() -> float:
    """How many times as fast this processor multiplies matrices in bfloat16, measured once, in under a second.

    Emulated, as on processors without the instructions, it is several times slower.
    """
    a, b = torch.rand(SIZE, SIZE), torch.rand(SIZE, SIZE)
    return _seconds(a, b) / _seconds(a.bfloat16(), b.bfloat16())


def _seconds(a: Tensor, b: Tensor) -> float:
    taken = []
    for _ in range(REPEATS):  # the first run pays for start-up
        start = time.perf_counter()
        float((a @ b)[0, 0])
        taken.append(time.perf_counter() - start)
    return min(taken)


def check_compute(compute: str) -> None:
    """Raises RoseError unless it is one of `COMPUTE`."""
    if compute not in COMPUTE:
        raise RoseError(f"Forward passes are computed in one of {', '.join(COMPUTE)}, not in {compute!r}.")


def compute_dtype(compute: str, model: nn.Module, device: torch.device) -> torch.dtype:
    """The format in which a model's forward passes are computed.

    Args:
        compute: "bfloat16", "float32", or "auto": bfloat16 on a processor that gains from it, else float32. Weights
            that are not float32 themselves are computed with as they are.
        model: whose weights say what there is to choose.
        device: "auto" leaves float32 to GPUs, which have a switch of their own for it.

    Raises:
        RoseError: another word, or bfloat16 for float16 weights.
    """
    check_compute(compute)
    _, blocks = decoder_blocks(model)
    stored = next(blocks.parameters()).dtype
    if stored != torch.float32:
        if compute == "bfloat16" and stored != torch.bfloat16:
            raise RoseError(f"The weights are {stored}; load the model in bfloat16 to compute in it.")
        return stored
    if compute == "auto":
        compute = os.environ.get(VARIABLE) or _faster(device)
        if compute not in COMPUTE[1:]:
            raise RoseError(f"{VARIABLE} must be one of {', '.join(COMPUTE[1:])}, not {compute!r}.")
    return torch.bfloat16 if compute == "bfloat16" else torch.float32


def rounding(compute: str, model: nn.Module, device: torch.device) -> torch.dtype | None:
    """The format to which products of float32 weights are rounded; None where weights compute as they are.

    Raises:
        RoseError: as `compute_dtype`.
    """
    if compute == "float32":
        return None
    dtype = compute_dtype(compute, model, device)
    _, blocks = decoder_blocks(model)
    return None if dtype == next(blocks.parameters()).dtype else dtype


def decided(compute: str, model: nn.Module, device: torch.device) -> str:
    """What "auto" comes to, "float32" or "bfloat16"; other words as they are.

    Several processes must not decide each for itself, because what is measured differs from one to the next.

    Raises:
        RoseError: as `compute_dtype`.
    """
    dtype = compute_dtype(compute, model, device)
    if compute != "auto":
        return compute
    _, blocks = decoder_blocks(model)
    if next(blocks.parameters()).dtype == torch.bfloat16:  # as passes are anyway, but the rest only where it pays
        return os.environ.get(VARIABLE) or _faster(device)
    return "bfloat16" if dtype == torch.bfloat16 else "float32"


def _faster(device: torch.device) -> str:
    return "bfloat16" if device.type == "cpu" and bfloat16_gain() > ENOUGH else "float32"


@contextmanager
def computing(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Computes matrix products of float32 tensors in `dtype`, where that is not float32, or not at all otherwise.

    Without the cache of cast weights: it does not see that a weight is pruned.
    """
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False):
        yield


def plainly(device: torch.device) -> torch.autocast:
    """For what a hook starts from within a forward pass, and is no part of it."""
    return torch.autocast(device.type, enabled=False)
