"""The number formats of a run: one `Precision` for forward passes, gaps to dense targets, and ADMM.

Processors with bfloat16 instructions multiply matrices about twice as fast in it. Weights and residual stream stay
float32; matrix products inside decoder blocks (`torch.autocast`), of gaps and of ADMM are rounded. H,
sweeps and errors against a layer's own output are always float32.
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
from rose.errors import RoseError, check_choice
from rose.model.defaults import COMPUTE
from rose.model.network.residence import pick_device

DEFAULT = "auto"  # perplexities after pruning are alike, see docs/speed.md
VARIABLE = "ROSE_COMPUTE"  # what "auto" means, where it is set
SIZE, REPEATS = 1024, 5  # of a matrix product that is timed


@cache
def has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products: AVX512-BF16, AMX, or Arm's BF16. Timings would
    depend on load."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    features = Path("/proc/cpuinfo")  # of Linux; Arm lists what it has there
    return any(getattr(torch.cpu, name, bool)() for name in checks) or (
        features.exists() and re.search(r"^Features.*\bbf16\b", features.read_text(), re.MULTILINE) is not None
    )


@cache
def bfloat16_gain() -> float:
    """Speed of bfloat16 products relative to float32 on this processor, for estimates; measured once, in under a
    second."""
    device = torch.device("cpu")
    return seconds_of_product(torch.float32, device) / seconds_of_product(torch.bfloat16, device)


def seconds_of_product(dtype: torch.dtype, device: torch.device) -> float:
    """Duration of a product of two matrices of `SIZE`."""
    matrix = torch.rand(SIZE, SIZE, dtype=torch.float32, device=device).to(dtype)
    seconds = []
    for _ in range(REPEATS):  # the first run pays for start-up
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@dataclass(frozen=True)
class Precision:
    """The number formats of one run: of forward `passes`, and of `products` for gaps and ADMM; `rounds`: whether passes
    round float32 weights."""

    passes: torch.dtype = torch.float32
    products: torch.dtype = torch.float32
    rounds: bool = False

    @classmethod
    def of(cls, compute: str, stored: torch.dtype, device: torch.device) -> Precision:
        """The formats for these weights on this device; raises RoseError for an unknown word, or bfloat16 with float16
        weights.

        Only the first of several processes should decide, because processors differ. "auto" means bfloat16 on a
        processor with instructions for it, otherwise float32, as on GPUs. Passes over other weights than float32
        compute in the weights' format, `stored`.
        """
        if compute not in COMPUTE:
            raise RoseError(f"Forward passes are computed in {', '.join(COMPUTE)}, not in {compute!r}.")
        if compute == "bfloat16" and stored not in (torch.float32, torch.bfloat16):
            raise RoseError(f"The weights are {stored}; load the model in bfloat16 to compute in it.")
        if compute == "auto" and stored in (torch.float32, torch.bfloat16):
            compute = _chosen(device)
        products = torch.bfloat16 if compute == "bfloat16" else torch.float32
        if stored != torch.float32:
            return cls(stored, products)
        return cls(products, products, rounds=products != stored)

    def describe(self) -> dict[str, str]:
        """Entries of reports and checkpoints."""
        return {"compute": name_of(self.passes), "products": name_of(self.products)}

    def environment(self, device: torch.device) -> str:
        """The environment of such passes in words; see `rose.environment`."""
        return environment(name_of(self.passes), device)

    @contextmanager
    def computing(self, device: torch.device) -> Iterator[None]:
        """Rounds products of float32 tensors where passes round; without autocast's cache, which would miss pruned
        weights."""
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
    """Whether bfloat16 models run here without loss of speed."""
    device = pick_device()
    return device.type == "cuda" or _chosen(device) == "bfloat16"
