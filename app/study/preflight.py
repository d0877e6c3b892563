"""Before a run: which layers a choice means, whether they can be pruned as asked, and what it will take."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import psutil
from huggingface_hub import constants
from torch import nn

import rose
from app import words
from app.study.setup import MEASURED, Setup, weights_size
from rose.files import reachable
from rose.layer.pattern import parse_sparsity
from rose.model.estimate import Cost, estimate_cost, estimate_memory, statistics_groups
from rose.model.load.models import is_hub_id, parse_dtype
from rose.model.load.tokens import DATASETS, check_text, is_downloaded
from rose.model.network.layers import ATTENTION_OUTPUTS, check_widths
from rose.model.network.network import Network
from rose.model.packaged import PACKAGED

LayerChoice = Literal["all", "attention", "block", "own"]

ATTENTION = tuple(f"*{ending}" for ending in ATTENTION_OUTPUTS)  # patterns


@dataclass(frozen=True)
class Preflight:
    """What a run will take."""

    cost: Cost
    needed: int  # bytes of weights, statistics and hidden states
    available: int  # bytes free now
    warnings: tuple[str, ...] = ()  # what makes the results of little use, a sentence each

    @property
    def fits(self) -> bool:
        return self.needed <= self.available


def preflight(setup: Setup, skeleton: nn.Module, *, has_inputs: bool = False) -> Preflight:
    """Checks a set-up and estimates its cost, of sweeps alone if it `has_inputs`; RoseError if no run is possible."""
    setup.check()
    check_text(setup.calibration, setup.held_out, setup.length)
    network = Network(skeleton)
    network.check_length(setup.length)
    layers = network.select(setup.layers)
    check_widths(layers, parse_sparsity(setup.sparsity), setup.block_columns)
    windows: dict[str, Any] = setup.extent | {"layers": setup.layers}
    cost = estimate_cost(skeleton, sweeps=len(MEASURED), keep_statistics=True, **windows)
    if has_inputs:
        before = estimate_cost(skeleton, sweeps=0, keep_statistics=True, **windows)
        return Preflight(replace(cost, seconds=cost.seconds - before.seconds), 0, psutil.virtual_memory().available)
    needed = weights_size(cost, setup.dtype) + cost.memory
    if setup.stream:  # one decoder block at a time, and the statistics of all layers
        if not can_stream(setup.model):
            raise rose.RoseError(
                f"{setup.model} is no safetensors checkpoint, so its weights cannot stay on disk. Turn off 'Leave the "
                "weights on disk' under More, or save the model as safetensors."
            )
        dtype, has_held_out = parse_dtype(setup.dtype), setup.held_out > 0
        statistics_bytes = sum(4 * columns**2 for columns in statistics_groups(layers))
        at_once = estimate_memory(skeleton, dtype=dtype, held_out=has_held_out, **windows)
        needed = at_once.peak + statistics_bytes * (2 if has_held_out else 1)
    texts = warnings(setup, [layer.weight.shape[1] for layer in layers])
    return Preflight(cost, needed, psutil.virtual_memory().available, tuple(texts))


def collecting(setup: Setup, skeleton: nn.Module, layers: Sequence[str] | None) -> float:
    """Estimated seconds until the inputs of these layers, by name or pattern, are collected."""
    samples = setup.samples + setup.held_out
    return estimate_cost(skeleton, samples=samples, length=setup.length, layers=layers, sweeps=0).seconds


def can_stream(model: str) -> bool:
    """Whether a model may be in safetensors files; a Hub id's files are not listed yet."""
    path = reachable(model)
    return model not in PACKAGED and (
        any(path.glob("*.safetensors")) if path.is_dir() else path.suffix.lower() != ".gguf"
    )


def warnings(setup: Setup, widths: Sequence[int]) -> list[str]:
    """Reasons that the results of a run are of little use, a sentence each; `widths`: columns of each layer."""
    texts = []
    share = parse_sparsity(setup.sparsity).ratio
    if share in (0, 1):
        effect = ("nothing, so every error", "every weight, so every relative error")[int(share)]
        texts.append(f"Sparsity {share:g} removes {effect} will be {share:g}. Choose a sparsity between 0 and 1.")
    if narrow := sum(width <= setup.block_columns for width in widths):
        texts.append(
            f"With a block size of {setup.block_size}, {words.count(narrow, 'layer has', 'layers have')} a single "
            "block and cannot be columnar: relative range compares blocks. Choose a block size below "
            f"{min(widths)}."
        )
    tokens = setup.samples * setup.length
    if tokens < max(widths):
        texts.append(
            f"{words.whole(tokens)} calibration tokens are fewer than the {words.whole(max(widths))} columns of the "
            "widest layer: errors on them look far smaller than on other text. Choose more samples or longer ones."
        )
    if setup.calibration in DATASETS and constants.is_offline_mode() and not is_downloaded(setup.calibration):
        texts.append(
            f"{setup.calibration} is not on this machine and HF_HUB_OFFLINE is set, so the run would end once the "
            "model is loaded. Choose the packaged text or a file."
        )
    return texts


def asked_of_hub(setup: Setup) -> list[str]:
    """Names that a run asks the Hub for, at least for their latest version."""
    names = [setup.model] if is_hub_id(setup.model) else []
    return [] if constants.is_offline_mode() else names + ([setup.calibration] if setup.calibration in DATASETS else [])


def layer_choice(patterns: Sequence[str] | None) -> tuple[LayerChoice, int]:
    """Which choice these patterns came from, and the decoder block where it is one."""
    if patterns is None:
        return "all", 0
    if set(patterns) <= set(ATTENTION):
        return "attention", 0
    block = re.fullmatch(r"[^*\s]+\.(\d+)\.\*", " ".join(patterns))
    return ("block", int(block[1])) if block else ("own", 0)


def attention_outputs(skeleton: nn.Module | None) -> str:
    """Patterns for the attention output projections of this model; all patterns if none fits."""
    if skeleton is None:  # a model that could not be found
        return ATTENTION[0]
    names = [layer.name for layer in rose.prunable_layers(skeleton)]
    patterns = [pattern for pattern in ATTENTION if any(name.endswith(pattern[1:]) for name in names)]
    return " ".join(patterns or ATTENTION)
