"""Bytes of files without writing them; and estimates of a row before its copy is made: sizes by rule, time, memory, and
perplexity as in other models."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from rose.errors import RoseError
from rose.layer.pattern import parse_sparsity
from rose.model.estimate.duration import estimate_cost, estimate_evaluation, sweeps_of
from rose.model.estimate.memory import Memory, estimate_memory
from rose.model.formats.packed import encode
from rose.model.network.network import Network
from rose.model.ship.export import gguf_size
from rose.model.ship.packing import packed_size
from rose.recipe.parts import SlimSettings
from rose.recipe.steps import Prune, Smaller
from rose.smaller.table import ESTIMATE, Row
from rose.smaller.ways import Way, programs
from rose.structured.parts import block_parameters
from rose.structured.plan import estimate_slim_memory, estimate_slimming

KEPT_BITS = 10.1  # of a kept weight of 16 bits in a packed file, and
SCALES = 0.25  # bits a weight for scales of 16 bits over 64 columns (docs/results/packed.csv, docs/shipping.md)
TYPES = ("f16", "q8_0", "q4_0")


def file_sizes(model: Any, tokenizer: Any, name: str, title: str) -> dict[str, int | None]:
    """Bytes by file, None for those that cannot be written; of a model made from `name`, in a folder of this title."""
    gguf: Mapping[str, int | None] = dict.fromkeys(TYPES)
    with suppress(RoseError):  # a family or a tokenizer that GGUF export does not know
        gguf = {kind: gguf_size(name, model, tokenizer, kind, title) for kind in TYPES}
    return {"safetensors": safetensors_size(model), "packed": packed_size(model).stored, **gguf}


def safetensors_size(model: nn.Module) -> int:
    """Bytes of model.safetensors, as `save_pretrained` writes one file of it; tied weights count once."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, weight in sorted(model.named_parameters()):
        names = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}
        offsets = [end, end + weight.nbytes]
        header[key] = {"dtype": names[str(weight.dtype)], "shape": list(weight.shape), "data_offsets": offsets}
        end = offsets[1]
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


def estimated_rows(spec: Smaller, model: nn.Module, ways: Sequence[Way], dense: Mapping[str, int | None]) -> list[Row]:
    """A row for each way, without making a copy; `dense` are `file_sizes` of the model."""
    untouched = _packed_without_layers(model)
    return [_row(spec, model, way, dense, untouched) for way in ways]


def _row(spec: Smaller, model: nn.Module, way: Way, dense: Mapping[str, int | None], untouched: int) -> Row:
    seconds, memory = _cost(spec, model, way)
    low, high = way.times
    return Row(
        way.key,
        way.name,
        ESTIMATE,
        way.bits,
        **_sizes(model, way, dense, untouched),
        loads=programs(way.bits),
        minutes=seconds / 60,
        memory=0 if memory is None else memory.besides_weights,
        times=math.sqrt(low * high),
        times_low=low,
        times_high=high,
        prefill_gain=1 / (1 - way.slim) if way.slim else None,
    )


def _packed_without_layers(model: nn.Module) -> int:
    """Packed bytes of what no way changes: embeddings, norms and biases."""
    layers = {layer.weight.untyped_storage().data_ptr() for layer in Network(model).layers}
    every = [parameter.detach() for parameter in model.parameters()]
    rest = [tensor for tensor in every if tensor.untyped_storage().data_ptr() not in layers]
    return sum(tensor.nbytes if (packed := encode(tensor)) is None else packed.size for tensor in rest)


def _sizes(model: nn.Module, way: Way, dense: Mapping[str, int | None], untouched: int) -> dict[str, Any]:
    weights = sum(layer.weight.numel() for layer in Network(model).layers)
    every = sum(parameter.numel() for parameter in model.parameters())
    removed = way.slim * block_parameters(model)
    share = 1 - removed / every
    sizes = {name: None if size is None else round(size * share) for name, size in dense.items()}
    density = 1 - float(parse_sparsity(way.sparsity).ratio)
    if density < 1 or way.bits:
        item = next(model.parameters()).itemsize
        kept = way.bits + SCALES if way.bits else KEPT_BITS + 8 * (item - 2)  # longer mantissas have no pattern
        sizes["packed"] = round(untouched + (weights - removed) * ((density < 1) + density * kept) / 8)
    return sizes


def _cost(spec: Smaller, model: nn.Module, way: Way) -> tuple[float, Memory | None]:
    """Seconds to make a copy and to measure it, and the largest memory of its steps."""
    drawn: dict[str, Any] = {"samples": spec.samples + spec.held_out, "length": spec.length}
    seconds = 2 * estimate_evaluation(model, tokens=spec.held_out * spec.length)
    memories: list[Memory] = []
    if way.slim:
        settings = SlimSettings(ratio=way.slim)
        seconds += estimate_slimming(model, settings, **drawn)
        memories.append(estimate_slim_memory(model, settings, **drawn))
    for step in way.recipe.steps if way.recipe else ():
        if isinstance(step, Prune):
            sweeps = sweeps_of([step.method], step.bits)
            seconds += estimate_cost(model, sweeps=sweeps, passes=2, target=step.target, **drawn).seconds
            memories.append(estimate_memory(model, method=step.method, dense_targets=step.target == "dense", **drawn))
    if way.is_tuned:
        seconds += 60 * spec.tune
    return seconds, max(memories, key=lambda memory: memory.peak, default=None)
