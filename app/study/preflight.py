"""Before a run: which layers a choice means, whether they can be pruned as asked, and what it will take.

No Streamlit here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import psutil
from torch import nn

import rose
from app.study.setup import MEASURED, Setup, check_sparsity, weights_size
from rose.model.cost import Cost, estimate_cost
from rose.model.structure import decoder_blocks

LayerChoice = Literal["all", "attention", "block", "own"]

# How the output projection of attention is called in the families we know.
ATTENTION_OUTPUTS = ("*.o_proj", "*.out_proj", "*attn.c_proj", "*attention.dense")


@dataclass(frozen=True)
class Preflight:
    """What a run will take.

    Attributes:
        cost: see `rose.model.cost.estimate_cost`.
        needed: bytes of weights, statistics and hidden states.
        available: bytes of memory free now.
    """

    cost: Cost
    needed: int
    available: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.available


def preflight(setup: Setup, skeleton: nn.Module) -> Preflight:
    """Checks a set-up against a model's structure and estimates its cost.

    Raises:
        RoseError: values out of range, layers that do not exist, a sparsity that does not fit a layer.
    """
    setup.check()
    check_sparsity(setup.sparsity, setup.block_size, skeleton, setup.layer_patterns)
    cost = estimate_cost(
        skeleton,
        samples=setup.samples + setup.held_out,
        length=setup.length,
        layers=setup.layer_patterns,
        sweeps=len(MEASURED),
        keep_statistics=True,
    )
    return Preflight(cost, weights_size(cost, setup.dtype) + cost.memory, psutil.virtual_memory().available)


def layer_choice(patterns: str) -> tuple[LayerChoice, int]:
    """Which choice these patterns came from, and the decoder block where it is one."""
    if patterns.strip() in ("", "*"):
        return "all", 0
    if set(patterns.split()) <= set(ATTENTION_OUTPUTS):
        return "attention", 0
    block = re.fullmatch(r"[^*\s]+\.(\d+)\.\*", patterns.strip())
    return ("block", int(block[1])) if block else ("own", 0)


def attention_outputs(skeleton: nn.Module) -> str:
    """Patterns for the attention output projections of this model; all known names where it has none of them."""
    names = [layer.name for layer in rose.prunable_layers(skeleton)]
    found = [pattern for pattern in ATTENTION_OUTPUTS if any(name.endswith(pattern[1:]) for name in names)]
    return " ".join(found or ATTENTION_OUTPUTS)


def block_pattern(skeleton: nn.Module, index: int) -> str:
    """The pattern for all layers of one decoder block."""
    return f"{decoder_blocks(skeleton)[0]}.{index}.*"


def block_count(skeleton: nn.Module) -> int:
    return len(decoder_blocks(skeleton)[1])
