"""Gaps to the dense targets in one decoder block: what the dense model puts out, kept until pruned batches get there.

The dense hidden states run through the block first, while its weights are dense. What each layer reads there is kept;
when the pruned batches stop at a layer, both inputs are at hand, and for a layer that writes into the residual stream
also what the stream has lost so far. See `rose.layer.target` for what is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rose.layer.target import InputGap, OutputGap, input_difference
from rose.model.network.layers import PrunableLayer
from rose.model.network.residual import Writer
from rose.model.network.stand_ins import hooked
from rose.model.walk.forward import hidden_of, version_of

BatchKey = tuple[str, int]  # stream, number
Gaps = dict[str, InputGap | OutputGap]  # of one layer, by stream
Read = tuple[Tensor, Tensor | None]  # what a layer reads, and, for an expert, which tokens of the batch these are
UNKNOWN = None, None  # in place of a `Read`
Pairs = Mapping[BatchKey, tuple[Tensor, Tensor]]  # what a layer reads in the pruned and in the dense model
LEAST_SLOPE = 0.1  # of a norm's mean squared slope: channels that it nearly mutes are not asked to repair the stream


@dataclass
class _Seen:
    """What one batch has shown of one pass through the block: its input, layers' inputs, outputs by module.

    `versions`: of the inputs when they were read.
    """

    hidden: Tensor
    inputs: dict[str, Read | tuple[None, None]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def read(self, name: str, inputs: Tensor, tokens: Tensor | None) -> None:
        """A layer reads; what it reads in a second call has no one counterpart in the pruned model."""
        self.inputs[name] = UNKNOWN if name in self.inputs else (inputs, tokens)
        self.versions[name] = version_of(inputs)

    def drop_overwritten(self) -> None:
        """Forgets inputs that the block has overwritten since they were read, as it may reuse a buffer."""
        for name, (inputs, _) in self.inputs.items():
            if inputs is not None and version_of(inputs) != self.versions[name]:
                self.inputs[name] = UNKNOWN


class BlockTargets:
    """The dense targets of one decoder block's layers; `products` is the format in which gaps are multiplied."""

    def __init__(
        self,
        block: nn.Module,
        layers: Sequence[PrunableLayer],
        writers: Mapping[str, Writer],
        products: torch.dtype,
    ) -> None:
        self.block, self.layers, self.products = block, layers, products
        self.writers = {layer.name: writers[layer.projection] for layer in layers if layer.projection in writers}
        self.dense: dict[BatchKey, _Seen] = {}
        self.pruned: dict[BatchKey, _Seen] = {}
        projections = {layer.name: layer.projection for layer in layers}
        self._normed = {name for name, writer in self.writers.items() if writer.term.module != projections[name]}
        modules = {name for writer in self.writers.values() for name in _modules_before(writer)}
        self._modules = sorted(modules | {self.writers[name].term.module for name in self._normed})
        self._hooks: list[Any] = []

    @contextmanager
    def watch_dense(self, stream: str, batch: int, hidden: Tensor) -> Iterator[None]:
        """Keeps what the layers read, and what goes into the stream, while a dense batch runs."""
        seen = self.dense[stream, batch] = _Seen(hidden)
        hooks = [layer.module.register_forward_pre_hook(_keep_input(seen, layer.name)) for layer in self.layers]
        hooks += self._output_hooks(lambda: seen)
        hooks += [
            layer.module.register_forward_hook(_keep_output(lambda: seen, layer.name))
            for layer in self.layers
            if layer.name in self._normed
        ]
        with hooked(hooks):
            yield
            seen.drop_overwritten()

    def watch_pruned(self, current: Callable[[], BatchKey]) -> None:
        """Keeps what goes into the stream in the pruned passes, until `close`; `current` tells whose pass it is."""
        self._hooks = self._output_hooks(lambda: self.pruned[current()])

    def enter(self, key: BatchKey, hidden: Tensor) -> None:
        """A pruned batch begins its pass."""
        self.pruned[key] = _Seen(hidden)

    def close(self) -> None:
        """Releases everything."""
        for hook in self._hooks:
            hook.remove()
        self.dense.clear()
        self.pruned.clear()

    def _output_hooks(self, seen: Callable[[], _Seen]) -> list[Any]:
        modules = dict(self.block.named_modules())
        return [modules[name].register_forward_hook(_keep_output(seen, name)) for name in self._modules]

    def writes(self, layer: PrunableLayer) -> bool:
        """Whether the layer writes into the residual stream."""
        return layer.name in self.writers

    def alike(self, layer: PrunableLayer) -> list[PrunableLayer]:
        """The layer and the others that read the very same tensors: they can be pruned together.

        Alone stay experts, whose tokens differ by batch, and layers that write into the stream, whose targets need
        what was added to it before.
        """
        read = [seen.inputs for seen in self.dense.values()]
        known = all(inputs.get(layer.name, UNKNOWN)[0] is not None for inputs in read)
        if layer.is_expert or self.writes(layer) or not known:
            return [layer]
        others = [other for other in self.layers if not (other.is_expert or self.writes(other))]
        return [
            other
            for other in others
            if all(inputs.get(other.name, UNKNOWN)[0] is inputs[layer.name][0] for inputs in read)
        ]

    def forget(self, layer: PrunableLayer) -> None:
        """Releases what the layer read in the dense model."""
        for seen in self.dense.values():
            seen.inputs.pop(layer.name, None)

    def _pairs(self, layer: PrunableLayer, batches: Mapping[BatchKey, Read]) -> Pairs | None:
        """Pruned and dense inputs of the same tokens; None where it cannot be told which tokens they are of.

        Of an expert, those that both models send there; what only the pruned model sends has no gap.
        """
        found = {}
        for key, (inputs, tokens) in batches.items():
            seen = self.dense[key]
            dense, known = seen.inputs.get(layer.name, UNKNOWN)
            total = seen.hidden.shape[:-1].numel()
            if tokens is not None:
                if dense is not None and known is not None:
                    found[key] = _both(inputs, tokens, dense, known, total)
            elif dense is None or dense.shape != inputs.shape or inputs.shape[:-1].numel() != total:
                return None
            else:
                found[key] = (inputs, dense)
        return found

    def gap(self, layer: PrunableLayer, batches: Mapping[BatchKey, Read]) -> InputGap | OutputGap | None:
        """How far the layer's dense weight is from its target on these pruned inputs; None where that is not known."""
        pairs = self._pairs(layer, batches)
        if pairs is None:
            return None
        if self.writes(layer):
            return self._output_gap(layer, pairs)
        gap = InputGap(layer.weight.shape[1], layer.weight.device, self.products)
        for pruned, dense in pairs.values():
            gap.update(pruned, dense)
        return gap

    def _output_gap(self, layer: PrunableLayer, pairs: Pairs) -> OutputGap:
        """The gap of a layer that writes into the stream: what its inputs lack, and what the stream has lost."""
        weight = layer.weight if layer.weight.dtype != torch.float32 else layer.weight.to(self.products)
        gap = OutputGap(weight.shape[0], weight.shape[1], weight.device, self.products)
        for key, (pruned, dense) in pairs.items():
            own = nn.functional.linear(input_difference(dense, pruned, weight.dtype), weight).float()
            lost = self._lost(layer.name, key, weight.device)
            gap.update(pruned, own.add_(lost.view(own.shape)))
        return gap

    def _lost(self, name: str, key: BatchKey, device: torch.device) -> Tensor:
        """R, in units of the layer's own output: what the stream before it lacks in the pruned model; float32."""
        writer, dense, pruned = self.writers[name], self.dense[key], self.pruned[key]
        base = (seen.outputs[writer.base] if writer.base else seen.hidden for seen in (dense, pruned))
        lost = torch.sub(*(value.to(device).float() for value in base))
        for term in writer.before:
            change = torch.sub(*(seen.outputs[term.module].float() for seen in (dense, pruned)))
            lost.add_(change, alpha=term.scale)
        if writer.term.scale != 1:
            lost.div_(writer.term.scale)
        if name in self._normed:  # a norm stands between the layer and the stream
            lost = lost * _inverse_slope(dense.outputs[name].float(), dense.outputs[writer.term.module].float())
        return lost


def _both(inputs: Tensor, tokens: Tensor, dense: Tensor, known: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """The rows of `inputs` and `dense` that belong to the same of `total` tokens; `tokens` and `known` number them."""
    rows = torch.full((total,), -1, device=known.device)
    rows[known] = torch.arange(len(known), device=known.device)
    rows = rows[tokens]
    return inputs[rows >= 0], dense[rows[rows >= 0]]


def _modules_before(writer: Writer) -> set[str]:
    """Modules whose outputs make up the stream that the layer adds to."""
    return {term.module for term in writer.before} | ({writer.base} if writer.base else set())


def _inverse_slope(inputs: Tensor, outputs: Tensor) -> Tensor:
    """By which factor a wanted change behind an RMS norm is larger in front of it, (..., hidden).

    The norm multiplies each channel by a slope, outputs/inputs; a regularized inverse, as some slopes are near zero.
    """
    slope = torch.where(inputs == 0, 0, outputs / inputs)
    weight = slope.square() + LEAST_SLOPE * slope.square().mean(-1, keepdim=True)
    return torch.where(weight == 0, 0, slope / weight)  # a token of zeros has no slope


def _keep_input(seen: _Seen, name: str) -> Callable[..., None]:
    def keep(_module: nn.Module, args: tuple) -> None:
        seen.read(name, args[0], args[1] if len(args) > 1 else None)

    return keep


def _keep_output(seen: Callable[[], _Seen], name: str) -> Callable[..., None]:
    def keep(_module: nn.Module, _args: tuple, output: Any) -> None:
        # A copy, because some families go on to add to it in place.
        seen().outputs[name] = hidden_of(output).clone()

    return keep
