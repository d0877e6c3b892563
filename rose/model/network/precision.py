"""The number formats of a run: one choice, `Precision`, for forward passes, gaps to dense targets, and ADMM.

Processors with bfloat16 instructions multiply matrices in it about twice as fast as in float32. Weights and the
residual stream stay float32 there; only the matrix products inside the decoder blocks are rounded (`torch.autocast`).
Gaps to dense targets, and ADMM, whose later steps correct the rounding of earlier ones, multiply in the same format.
H, sweeps and errors against a layer's own output are always float32; errors against a dense target are made of gaps.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from rose.environment import environment
from rose.errors import RoseError
from rose.given import check_choice
from rose.model.defaults import COMPUTE
from rose.model.network.residence import pick_device

DEFAULT = "auto"  # perplexities after pruning are alike, see docs/speed.md
VARIABLE = "ROSE_COMPUTE"  # what "auto" means, where it is set
SIZE, REPEATS = 1024, 5  # of a matrix product that is timed


@cache
def has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products: AVX512-BF16, AMX, or Arm's BF16.

    Asked, not timed: a busy machine may be slower in either format, and a run must come out the same whatever the load.
    """
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    features = Path("/proc/cpuinfo")  # of Linux; Arm lists what it has there
    return any(getattr(torch.cpu, name, bool)() for name in asked) or (
        features.exists() and re.search(r"^Features.*\bbf16\b", features.read_text(), re.MULTILINE) is not None
    )


@cache
def bfloat16_gain() -> float:
    """How many times as fast this processor multiplies matrices in bfloat16, for estimates; measured once, in under a
    second. Emulated, as on processors without the instructions, it is several times slower.
    """
    device = torch.device("cpu")
    return seconds_of_product(torch.float32, device) / seconds_of_product(torch.bfloat16, device)


def seconds_of_product(dtype: torch.dtype, device: torch.device) -> float:
    """What a product of two matrices of `SIZE` takes on a device."""
    matrix = torch.rand(SIZE, SIZE, dtype=torch.float32, device=device).to(dtype)
    taken = []
    for _ in range(REPEATS):  # the first run pays for start-up
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        taken.append(time.perf_counter() - start)
    return min(taken)


def check_compute(compute: str) -> None:
    """Raises RoseError unless it is one of `COMPUTE`."""
    if compute not in COMPUTE:
        raise RoseError(f"Forward passes are computed in one of {', '.join(COMPUTE)}, not in {compute!r}.")


@dataclass(frozen=True)
class Precision:
    """The number formats of one run; H and sweeps stay float32.

    Attributes:
        passes: format of forward passes.
        products: format of gap and ADMM products.
        rounds: whether passes round float32 weights; else they compute in the format that weights are stored in.
    """

    passes: torch.dtype = torch.float32
    products: torch.dtype = torch.float32
    rounds: bool = False

    @classmethod
    def of(cls, compute: str, stored: torch.dtype, device: torch.device) -> Precision:
        """What a choice comes to for these weights on this device; raises RoseError for another word, or bfloat16 for
        float16.

        Several processes must not decide each for itself, as their processors may differ.

        Args:
            compute: "bfloat16", "float32", or "auto": bfloat16 on a processor that has instructions for it, else
                float32, and on GPUs, which have a switch of their own. Passes over weights that are not float32
                themselves compute with them as they are.
            stored: the format of the decoder blocks' weights.
        """
        check_compute(compute)
        if compute == "bfloat16" and stored not in (torch.float32, torch.bfloat16):
            raise RoseError(f"The weights are {stored}; load the model in bfloat16 to compute in it.")
        if compute == "auto" and stored in (torch.float32, torch.bfloat16):
            compute = _chosen(device)
        products = torch.bfloat16 if compute == "bfloat16" else torch.float32
        if stored != torch.float32:
            return cls(stored, products)
        return cls(products, products, rounds=products != stored)

    def describe(self) -> dict[str, str]:
        """As a report and a checkpoint keep it."""
        return {"compute": name_of(self.passes), "products": name_of(self.products)}

    def environment(self, device: torch.device) -> str:
        """What such passes on this device are computed with, in words; see `rose.environment`."""
        return environment(name_of(self.passes), device)

    @contextmanager
    def computing(self, device: torch.device) -> Iterator[None]:
        """Rounds matrix products of float32 tensors where passes round.

        Without the cache of cast weights: it does not see that a weight is pruned.
        """
        with torch.autocast(device.type, torch.bfloat16, enabled=self.rounds, cache_enabled=False):
            yield


FLOAT32 = Precision()


def name_of(dtype: torch.dtype) -> str:
    """ "float32", as options, reports and messages have it."""
    return str(dtype).removeprefix("torch.")


def _chosen(device: torch.device) -> str:
    """What "auto" means here."""
    chosen = os.environ.get(VARIABLE) or ("bfloat16" if device.type == "cpu" and has_bfloat16() else "float32")
    check_choice(VARIABLE, chosen, COMPUTE[1:])
    return chosen


def computes_bfloat16() -> bool:
    """Whether a model in bfloat16 runs here without a loss of speed: on a GPU, or where "auto" means bfloat16."""
    device = pick_device()
    return device.type == "cuda" or _chosen(device) == "bfloat16"


def plainly(device: torch.device) -> torch.autocast:
    """For what a hook starts from within a forward pass, and is no part of it."""
    return torch.autocast(device.type, enabled=False)
