"""Two models of one shape walked side by side: what each layer reads in the one and in the other, and how far apart
their hidden states are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from rose.layer.statistics import InputStatistics
from rose.layer.target import InputGap
from rose.model.network.experts import experts_apart
from rose.model.network.layers import PrunableLayer
from rose.model.network.network import Network
from rose.model.network.precision import FLOAT32, Precision
from rose.model.walk.dense_states import token_drift
from rose.model.walk.forward import check_blocks, record_inputs, run_block

Pair = tuple[PrunableLayer, PrunableLayer]  # of the dense model and of the other one


@dataclass
class LayerInputs:
    """What a layer reads; layers that read the same tensors share one.

    Attributes:
        statistics: of the inputs in the other model, X_p.
        gap: how far they are from those in the dense model.
    """

    statistics: InputStatistics
    gap: InputGap

    @cached_property
    def dense_hessian(self) -> Tensor:
        """X_dᵀX_d = (X_p + D)ᵀ(X_p + D), (in, in)."""
        cross = self.gap.cross
        return self.statistics.hessian + cross + cross.T + self.gap.difference.hessian


@dataclass
class BlockInputs:
    """One decoder block of both models, present while it is handed out.

    Attributes:
        index: which.
        modules: of the dense model and of the other one.
        pairs: its layers.
        inputs: by stream ("calibration", "held_out") and layer; without experts, whose tokens differ by model.
        drift: mean over held-out tokens, or those of calibration where there are none; None without tokens.
    """

    index: int
    modules: tuple[nn.Module, nn.Module]
    pairs: list[Pair]
    inputs: dict[str, dict[str, LayerInputs]] = field(default_factory=dict)
    drift: float | None = None


def walk_both(
    networks: tuple[Network, Network],
    pairs: Sequence[Pair],
    streams: Mapping[str, Tensor],
    precision: Precision = FLOAT32,
    tick: Callable[[int, float], None] = lambda _index, _share: None,
) -> Iterator[BlockInputs]:
    """Decoder block by decoder block, both models' weights at hand; without streams nothing is run.

    Args:
        networks: the dense model and the other one.
        pairs: layers of the same name.
        streams: tokens, (samples, length), by name.
        precision: of forward passes, and of the products that gaps are made of.
        tick: told the decoder block and the share of its work that is done.
    """
    device = networks[0].device
    states: dict[str, list[list[Tensor]]] = {stream: [[], []] for stream in streams}  # of dense and other, by batch
    arguments: dict[str, list] = {stream: [] for stream in streams}
    for number, network in enumerate(networks if streams else ()):
        outputs = check_blocks(network, next(iter(streams.values())))
        for stream, tokens in streams.items():
            arguments[stream].append(record_inputs(network, tokens, outputs, partial(_append, states[stream][number])))
    by_block: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_block.setdefault(pair[0].block_index, []).append(pair)
    for index in range(max(by_block) + 1):
        with networks[0].residence.visit(index, device) as one, networks[1].residence.visit(index, device) as two:
            found = BlockInputs(index, (one, two), by_block.get(index, []))
            for stream in streams:
                reading = _Reading(found.pairs, device, precision.products)
                with experts_apart(one), experts_apart(two), torch.no_grad(), reading:
                    drifts = []
                    for batch, (before, after) in enumerate(zip(*states[stream], strict=True)):
                        outputs = [
                            run_block(block, hidden, arguments[stream][number][index][batch], device, precision)
                            for number, (block, hidden) in enumerate(((one, before), (two, after)))
                        ]
                        reading.end_batch()
                        for known, output in zip(states[stream], outputs, strict=True):
                            known[batch] = output.to(before.device)
                        drifts.append(token_drift(outputs[1] - outputs[0], outputs[0]).flatten())
                        tick(index, (batch + 1) / len(states[stream][0]))
                    found.inputs[stream] = reading.known
                    found.drift = float(torch.cat(drifts).mean())  # of the last stream, which is held out if any is
            yield found


def _append(into: list[Tensor], _batch: int, hidden: Tensor) -> None:
    into.append(hidden)


class _Reading:
    """Watches the layers of one decoder block in both models."""

    def __init__(self, pairs: Sequence[Pair], device: torch.device, products: torch.dtype) -> None:
        self.pairs = [pair for pair in pairs if not pair[0].is_expert]
        self.device, self.products = device, products
        self.known: dict[str, LayerInputs] = {}
        self._read: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        self._hooks: list = []

    def __enter__(self) -> _Reading:
        for pair in self.pairs:
            for layer, read in zip(pair, self._read, strict=True):
                self._hooks.append(layer.module.register_forward_pre_hook(_keep(read, layer.name)))
        return self

    def __exit__(self, *_problem: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def end_batch(self) -> None:
        """Counts what was read in the batch; layers that read one tensor share what is known of it."""
        shared: dict[int, LayerInputs] = {}
        was, now = self._read
        for layer, _ in self.pairs:
            if layer.name not in was or layer.name not in now or was[layer.name].shape != now[layer.name].shape:
                continue
            before, after = was[layer.name], now[layer.name]
            if id(after) not in shared:
                columns = after.shape[-1]
                found = self.known.get(layer.name) or LayerInputs(
                    InputStatistics(columns, self.device), InputGap(columns, self.device, self.products)
                )
                found.statistics.update(after)
                found.gap.update(after, before)
                shared[id(after)] = found
            self.known[layer.name] = shared[id(after)]
        was.clear()
        now.clear()


def _keep(read: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(_module: nn.Module, args: tuple) -> None:
        read[name] = args[0].detach()

    return keep
