"""Two models of one shape walked side by side: what each layer reads in the one and in the other, and how far apart
their hidden states are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rose.layer.statistics import InputStatistics
from rose.layer.target import InputGap, OutputGap
from rose.model.check.rotated import Aligned, Pair, align
from rose.model.network.experts import experts_apart
from rose.model.network.heads import head_width
from rose.model.network.network import Network
from rose.model.network.precision import FLOAT32, Precision
from rose.model.network.residual import Writer
from rose.model.network.stand_ins import hooked
from rose.model.walk.dense_states import token_drift
from rose.model.walk.forward import Arguments, WriterTrace, check_blocks, record_inputs, run_block
from rose.model.walk.targets import BatchKey, BlockTargets

CALIBRATION = "calibration"  # the stream on which methods are tried


@dataclass
class LayerInputs:
    """What a layer reads; layers that read the same tensors share one, except where they write into the stream.

    Attributes:
        statistics: of the inputs in the other model, X_p.
        gap: how far they are from those in the dense model.
        stream: of a layer that writes into the residual stream, with what the stream lacks before it; else None.
        unpruned: of the inputs in the other model while the layer's own decoder block is still dense, which is what
            published programs calibrate on; None where they are no others, or not asked for.
    """

    statistics: InputStatistics
    gap: InputGap
    stream: OutputGap | None = None
    unpruned: InputStatistics | None = None

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
        drift: of the residual stream after it, the mean of ‖h_p − h_d‖²/‖h_d‖² over held-out tokens, or those of
            calibration where there are none, a share; None without tokens.
        aligned: where heads were rotated before pruning; the dense block and its layers are then its own copies.
    """

    index: int
    modules: tuple[nn.Module, nn.Module]
    pairs: list[Pair]
    inputs: dict[str, dict[str, LayerInputs]] = field(default_factory=dict)
    drift: float | None = None
    aligned: Aligned | None = None


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
    passes = _Passes(networks, streams, precision, tick) if streams else None
    for index in range(max(layer.block_index for layer, _ in pairs) + 1):
        with networks[0].residence.visit(index, device) as one, networks[1].residence.visit(index, device) as two:
            found = BlockInputs(index, (one, two), [pair for pair in pairs if pair[0].block_index == index])
            if aligned := align(one, found.pairs, head_width(networks[0].config)):
                found = BlockInputs(index, (aligned.module, two), aligned.pairs, aligned=aligned)
            if passes:
                passes.run(found)
            yield found


class _Passes:
    """The hidden states of both models, which go from decoder block to decoder block."""

    def __init__(
        self,
        networks: tuple[Network, Network],
        streams: Mapping[str, Tensor],
        precision: Precision,
        tick: Callable[[int, float], None],
    ) -> None:
        self.device, self.precision, self.tick = networks[0].device, precision, tick
        # By stream, of the dense model and the other one: by batch, and by decoder block and batch.
        self.states: dict[str, list[list[Tensor]]] = {stream: [[], []] for stream in streams}
        self.arguments: dict[str, list[list[list[Arguments]]]] = {}
        first = next(iter(streams.values()))
        outputs = [check_blocks(network, first) for network in networks]
        self.trace = WriterTrace(networks[0], first, outputs[0])
        for stream, tokens in streams.items():
            each = zip(networks, outputs, self.states[stream], strict=True)
            self.arguments[stream] = [record_inputs(one, tokens, put, partial(_append, to)) for one, put, to in each]

    @torch.no_grad()
    def run(self, found: BlockInputs) -> None:
        """Runs one decoder block of both models on all batches, and notes what its layers read."""
        one, two = found.modules
        with experts_apart(one), experts_apart(two):
            writers = self.trace.of(found.index, one)
            for stream in self.states:
                lost = _Lost(found.modules, found.pairs, writers, self.precision.products)
                reading = _Reading(found.pairs, self.device, self.precision.products, lost)
                with closing(lost), hooked(reading.hooks()):
                    drifts = self._run_stream(found, stream, reading, lost)
                found.inputs[stream] = reading.result()
                found.drift = float(torch.cat(drifts).mean())  # of the last stream, which is held out if any is

    def _run_stream(self, found: BlockInputs, stream: str, reading: _Reading, lost: _Lost) -> list[Tensor]:
        """The drift of each token, by batch."""
        one, two = found.modules
        states, drifts = self.states[stream], []
        for batch, (before, after) in enumerate(zip(*states, strict=True)):
            was_given, is_given = (own[found.index][batch] for own in self.arguments[stream])
            if stream == CALIBRATION:
                run_block(one, after, is_given, self.device, self.precision)
                reading.end_unpruned()
            with lost.before(before, after):
                was = run_block(one, before, was_given, self.device, self.precision)
            now = run_block(two, after, is_given, self.device, self.precision)
            reading.end_batch()
            for known, output in zip(states, (was, now), strict=True):
                known[batch] = output.to(before.device)
            drifts.append(token_drift(now, was))
            self.tick(found.index, (batch + 1) / len(states[0]))
        return drifts


class _Lost:
    """What layers that write into the residual stream of one decoder block would have to add to make it the dense
    one's, gathered batch by batch: a run towards the dense model has pruned them to do so."""

    KEY: BatchKey = ("", 0)

    def __init__(
        self,
        modules: tuple[nn.Module, nn.Module],
        pairs: Sequence[Pair],
        writers: Mapping[str, Writer],
        products: torch.dtype,
    ) -> None:
        writing = [pair for pair in pairs if pair[0].projection in writers and not pair[0].is_expert]
        self.layers = [layer for layer, _ in writing]
        self.dense, self.other = (
            BlockTargets(module, [pair[number] for pair in writing], writers, products)
            for number, module in enumerate(modules)
        )
        self.dense.pruned = self.other.pruned
        self.other.watch_pruned(lambda: self.KEY)
        self.gaps: dict[str, OutputGap] = {}

    @contextmanager
    def before(self, dense: Tensor, other: Tensor) -> Iterator[None]:
        """While the dense block runs on a batch of its hidden states; the other one, on its own, comes next."""
        self.other.enter(self.KEY, other)
        with self.dense.watch_dense(*self.KEY, dense):
            yield
        self.other.enter(self.KEY, other)

    def end_batch(self, read: Mapping[str, Tensor]) -> Mapping[str, OutputGap]:
        """Adds a batch, of which `read` has the inputs in the other model; all gaps so far, by layer."""
        for layer in self.layers:
            found = self.dense.gap(layer, {self.KEY: (read[layer.name], None)}) if layer.name in read else None
            if isinstance(found, OutputGap):
                known = self.gaps.setdefault(layer.name, found)
                if known is not found:
                    for sums in ("cross", "square", "total"):
                        getattr(known, sums).add_(getattr(found, sums))
        self.dense.dense.clear()
        return self.gaps

    def close(self) -> None:
        self.dense.close()
        self.other.close()


def _append(into: list[Tensor], _batch: int, hidden: Tensor) -> None:
    into.append(hidden)


class _Reading:
    """Watches the layers of one decoder block in both models."""

    def __init__(self, pairs: Sequence[Pair], device: torch.device, products: torch.dtype, lost: _Lost) -> None:
        self.pairs = [pair for pair in pairs if not pair[0].is_expert]
        self.device, self.products, self.lost = device, products, lost
        self.known: dict[str, LayerInputs] = {}
        self._unpruned: dict[str, InputStatistics] = {}
        self._read: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})

    def hooks(self) -> list[RemovableHandle]:
        """Of both layers of each pair, which note what they read."""
        return [
            layer.module.register_forward_pre_hook(_keep(read, layer.name))
            for pair in self.pairs
            for layer, read in zip(pair, self._read, strict=True)
        ]

    def end_unpruned(self) -> None:
        """Counts what the layers of the dense block have read of the other model's hidden states."""
        shared: dict[int, InputStatistics] = {}
        read = self._read[0]
        for name, inputs in read.items():
            if id(inputs) not in shared:
                found = self._unpruned.get(name) or InputStatistics(inputs.shape[-1], self.device)
                found.update(inputs)
                shared[id(inputs)] = found
            self._unpruned[name] = shared[id(inputs)]
        read.clear()

    def result(self) -> dict[str, LayerInputs]:
        """What is known of each layer; once all batches are through."""
        for name, found in self.known.items():
            other = self._unpruned.get(name)
            is_other = other is not None and not torch.equal(other.hessian, found.statistics.hessian)
            found.unpruned = other if is_other else None
        return self.known

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
        for name, gap in self.lost.end_batch(now).items():
            if name in self.known:
                self.known[name] = replace(self.known[name], stream=gap)
        was.clear()
        now.clear()


def _keep(read: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(_module: nn.Module, args: tuple) -> None:
        read[name] = args[0].detach()

    return keep
