"""What the timings share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import rose
from rose.model.network.network import Network
from rose.model.walk.forward import check_blocks, record_inputs, run_block

Row = tuple[str, float, str, float]  # what, seconds (NaN where it is no time), compared with, ratio


def timed(work: Callable[[], object], repeats: int = 1) -> float:
    """The least of some repetitions, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def processor_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that all threads together were at work, which other programs disturb little; and what came out."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


@torch.no_grad()
def forward_passes(model: nn.Module, tokens: Tensor, passes: int) -> None:
    """Bare forward passes through all decoder blocks, batched as the pipeline batches them."""
    network = Network(model)
    hidden: list[Tensor] = []
    outputs = check_blocks(network, tokens)
    arguments = record_inputs(network, tokens, outputs, lambda _batch, states: hidden.append(states))
    for block, others in zip(network.blocks, arguments, strict=True):
        for _ in range(passes):
            outputs = [
                run_block(block, states, other, torch.device("cpu"))
                for states, other in zip(hidden, others, strict=True)
            ]
        hidden = outputs


def packaged_model(tokens_per_run: tuple[int, int]) -> tuple[nn.Module, Tensor]:
    """The packaged model, warmed up, and calibration tokens, (samples, length)."""
    samples, length = tokens_per_run
    model, tokenizer = rose.load_model("smollm2-135m")
    tokens = rose.load_tokens("packaged", tokenizer, samples=samples, length=length)
    forward_passes(model, tokens[:1], 1)
    return model, tokens
