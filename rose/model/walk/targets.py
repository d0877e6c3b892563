"""Gaps to the dense targets in one decoder block.

The dense hidden states run through the block first, while its weights are dense, and each layer's inputs are kept. When
pruned batches stop at a layer, its pruned and dense inputs are in memory. So is the loss of the stream, if the layer
writes into the residual stream. `rose.layer.target` corrects weights by these gaps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
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
Read = tuple[Tensor, Tensor | None]  # a layer's inputs, and for an expert the numbers of their tokens in the batch
UNKNOWN = None, None  # stands for an unknown `Read`
Pairs = Mapping[BatchKey, tuple[Tensor, Tensor]]  # a layer's inputs in the pruned and in the dense model
LEAST_SLOPE = 0.1  # of a norm's mean squared slope: channels that it nearly mutes do not repair the stream


@dataclass
class _Pass:
    """One batch's pass through the block: its input, layers' inputs with their versions, outputs by module."""

    hidden: Tensor
    inputs: dict[str, Read | tuple[None, None]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def read(self, name: str, _module: nn.Module, args: tuple) -> None:
        """Records a layer's inputs; inputs of a second call have no unique counterpart in the pruned model."""
        tokens = args[1] if len(args) > 1 else None
        self.inputs[name] = UNKNOWN if name in self.inputs else (args[0], tokens)
        self.versions[name] = version_of(args[0])

    def drop_overwritten(self) -> None:
        """Forgets inputs that the block has overwritten since, because it may reuse a buffer."""
        for name, (inputs, _) in self.inputs.items():
            if inputs is not None and version_of(inputs) != self.versions[name]:
                self.inputs[name] = UNKNOWN


class BlockTargets:
    """The dense targets of one decoder block's layers; `products` is the number format of products in gaps."""

    def __init__(
        self, block: nn.Module, layers: Sequence[PrunableLayer], writers: Mapping[str, Writer], products: torch.dtype
    ) -> None:
        self.layers, self.products = layers, products
        self.writers = {layer.name: writers[layer.projection] for layer in layers if layer.projection in writers}
        self.dense: dict[BatchKey, _Pass] = {}
        self.pruned: dict[BatchKey, _Pass] = {}
        projections = {layer.name: layer.projection for layer in layers}
        # Layers whose outputs pass a norm before the stream.
        self._normed = {name for name, writer in self.writers.items() if writer.term.module != projections[name]}
        modules = {self.writers[name].term.module for name in self._normed}
        for writer in self.writers.values():  # modules whose outputs sum to the stream before the layer
            modules |= {term.module for term in writer.before} | ({writer.base} if writer.base else set())
        modules_by_name = dict(block.named_modules())
        self._modules = {name: modules_by_name[name] for name in sorted(modules)}
        self._hooks: list[Any] = []

    @contextmanager
    def watch_dense(self, stream: str, batch: int, hidden: Tensor) -> Iterator[None]:
        """Keeps layers' inputs, and outputs into the stream, while a dense batch runs."""
        dense = self.dense[stream, batch] = _Pass(hidden)
        normed = {layer.name: layer.module for layer in self.layers if layer.name in self._normed}
        hooks = [layer.module.register_forward_pre_hook(partial(dense.read, layer.name)) for layer in self.layers]
        with hooked(hooks + self._output_hooks(lambda: dense, self._modules | normed)):
            yield
            dense.drop_overwritten()

    def watch_pruned(self, current: Callable[[], BatchKey]) -> None:
        """Keeps outputs into the stream in the pruned passes, until `close`; `current` gives the running batch."""
        self._hooks = self._output_hooks(lambda: self.pruned[current()], self._modules)

    def enter(self, key: BatchKey, hidden: Tensor) -> None:
        self.pruned[key] = _Pass(hidden)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self.dense.clear()
        self.pruned.clear()

    def _output_hooks(self, current: Callable[[], _Pass], modules: Mapping[str, nn.Module]) -> list[Any]:
        def keep(name: str, _module: nn.Module, _args: tuple, output: Any) -> None:
            # A copy, because some families add to it in place.
            current().outputs[name] = hidden_of(output).clone()

        return [module.register_forward_hook(partial(keep, name)) for name, module in modules.items()]

    def writes(self, layer: PrunableLayer) -> bool:
        return layer.name in self.writers

    def alike(self, layer: PrunableLayer) -> list[PrunableLayer]:
        """The layer and all layers that read the same tensors, which can be pruned together.

        Experts stay alone, because their tokens differ by batch. Layers that write into the stream stay alone, because
        their targets need the outputs of the layers before.
        """
        inputs = [dense.inputs for dense in self.dense.values()]
        is_known = all(of_pass.get(layer.name, UNKNOWN)[0] is not None for of_pass in inputs)
        if layer.is_expert or self.writes(layer) or not is_known:
            return [layer]
        return [
            other
            for other in self.layers
            if not (other.is_expert or self.writes(other))
            and all(of_pass.get(other.name, UNKNOWN)[0] is of_pass[layer.name][0] for of_pass in inputs)
        ]

    def forget(self, layer: PrunableLayer) -> None:
        for dense in self.dense.values():
            dense.inputs.pop(layer.name, None)

    def _pairs(self, layer: PrunableLayer, batches: Mapping[BatchKey, Read]) -> Pairs | None:
        """Pruned and dense inputs of the same tokens; None if tokens cannot be matched.

        An expert has the tokens that both models send there.
        """
        pairs = {}
        for key, (inputs, tokens) in batches.items():
            total = self.dense[key].hidden.shape[:-1].numel()
            dense, dense_tokens = self.dense[key].inputs.get(layer.name, UNKNOWN)
            if tokens is not None:
                if dense is not None and dense_tokens is not None:
                    rows = torch.full((total,), -1, device=dense_tokens.device)  # of `dense`, by token
                    rows[dense_tokens] = torch.arange(len(dense_tokens), device=dense_tokens.device)
                    rows = rows[tokens]
                    pairs[key] = inputs[rows >= 0], dense[rows[rows >= 0]]
            elif dense is None or dense.shape != inputs.shape or inputs.shape[:-1].numel() != total:
                return None
            else:
                pairs[key] = inputs, dense
        return pairs

    def gap(self, layer: PrunableLayer, batches: Mapping[BatchKey, Read]) -> InputGap | OutputGap | None:
        """The distance of the layer's dense weight from its target on these pruned inputs; None if not known.

        The gap of a layer that writes into the stream includes the loss of the stream.
        """
        pairs = self._pairs(layer, batches)
        if pairs is None:
            return None
        if not self.writes(layer):
            gap = InputGap(layer.weight.shape[1], layer.weight.device, self.products)
            for pruned, dense in pairs.values():
                gap.update(pruned, dense)
            return gap
        weight = layer.weight if layer.weight.dtype != torch.float32 else layer.weight.to(self.products)
        output_gap = OutputGap(weight.shape[0], weight.shape[1], weight.device, self.products)
        for key, (pruned, dense) in pairs.items():
            change = nn.functional.linear(input_difference(dense, pruned, weight.dtype), weight).float()
            lost = self._lost(layer.name, key, weight.device)
            output_gap.update(pruned, change.add_(lost.view(change.shape)))
        return output_gap

    def _lost(self, name: str, key: BatchKey, device: torch.device) -> Tensor:
        """R, the dense minus the pruned stream before the layer, float32, in units of the layer's output."""
        writer, dense, pruned = self.writers[name], self.dense[key], self.pruned[key]
        base = (each.outputs[writer.base] if writer.base else each.hidden for each in (dense, pruned))
        lost = torch.sub(*(value.to(device).float() for value in base))
        for term in writer.before:
            change = torch.sub(*(each.outputs[term.module].float() for each in (dense, pruned)))
            lost.add_(change, alpha=term.scale)
        if writer.term.scale != 1:
            lost.div_(writer.term.scale)
        if name in self._normed:
            lost = lost * _inverse_slope(dense.outputs[name].float(), dense.outputs[writer.term.module].float())
        return lost


def _inverse_slope(inputs: Tensor, outputs: Tensor) -> Tensor:
    """The factor from a change behind an RMS norm to the change in front of it, (..., hidden).

    The norm multiplies each channel by a slope, outputs/inputs; a regularized inverse, as some slopes are near zero.
    """
    slope = torch.where(inputs == 0, 0, outputs / inputs)
    weight = slope.square() + LEAST_SLOPE * slope.square().mean(-1, keepdim=True)
    return torch.where(weight == 0, 0, slope / weight)  # a token of zeros has no slope
