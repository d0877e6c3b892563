"""Two models of one shape walked side by side: what each layer reads in the one and in the other, and how far apart
their hidden states are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from rose.layer.statistics import InputStatistics
from rose.layer.target import InputGap, OutputGap
from rose.model.check.rotated import Aligned, Pair, align
from rose.model.network.experts import experts_apart
from rose.model.network.heads import head_width
from rose.model.network.network import Network
from rose.model.network.precision import FLOAT32, Precision
from rose.model.network.residual import Writer, find_writers
from rose.model.walk.dense_states import token_drift
from rose.model.walk.forward import Arguments, check_blocks, record_inputs, run_block
from rose.model.walk.targets import BatchKey, BlockTargets
from rose.model.walk.walk import TRACED_TOKENS

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
    states: dict[str, list[list[Tensor]]] = {stream: [[], []] for stream in streams}  # of dense and other, by batch
    arguments: dict[str, list] = {stream: [] for stream in streams}
    traced: list[Tensor] = []
    few: list[list[Arguments]] = []  # of a pass over a few tokens, which shows what writes into the residual stream
    for number, network in enumerate(networks if streams else ()):
        tokens = next(iter(streams.values()))
        outputs = check_blocks(network, tokens)
        if number == 0:
            few = record_inputs(
                network, tokens[:1, :TRACED_TOKENS], outputs, lambda _batch, states: traced.append(states)
            )
        for stream, tokens in streams.items():
            arguments[stream].append(record_inputs(network, tokens, outputs, partial(_append, states[stream][number])))
    by_block: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_block.setdefault(pair[0].block_index, []).append(pair)
    for index in range(max(by_block) + 1):
        with networks[0].residence.visit(index, device) as one, networks[1].residence.visit(index, device) as two:
            found = BlockInputs(index, (one, two), by_block.get(index, []))
            if aligned := align(one, found.pairs, head_width(networks[0].config)):
                one = aligned.module
                found = BlockInputs(index, (one, two), aligned.pairs, aligned=aligned)
            for stream in streams:
                with experts_apart(one), experts_apart(two), torch.no_grad(), ExitStack() as watching:
                    every = [layer for layer in networks[0].layers if layer.block_index == index]
                    hidden = traced[0].clone().to(device)
                    trace = partial(run_block, one, hidden, few[index][0], device)
                    lost = _Lost((one, two), found.pairs, find_writers(one, every, trace, hidden), precision.products)
                    reading = watching.enter_context(_Reading(found.pairs, device, precision.products, lost))
                    watching.callback(lost.close)
                    drifts = []
                    for batch, (before, after) in enumerate(zip(*states[stream], strict=True)):
                        both = [own[index][batch] for own in arguments[stream]]
                        if stream == CALIBRATION:
                            run_block(one, after, both[1], device, precision)
                            reading.end_unpruned()
                        with lost.before(before, after):
                            was = run_block(one, before, both[0], device, precision)
                        outputs = [was, run_block(two, after, both[1], device, precision)]
                        reading.end_batch()
                        for known, output in zip(states[stream], outputs, strict=True):
                            known[batch] = output.to(before.device)
                        drifts.append(token_drift(outputs[1], outputs[0]))
                        tick(index, (batch + 1) / len(states[stream][0]))
                    found.inputs[stream] = reading.result()
                    found.drift = float(torch.cat(drifts).mean())  # of the last stream, which is held out if any is
            yield found


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
                    for mine, more in (
                        (known.cross, found.cross),
                        (known.square, found.square),
                        (known.total, found.total),
                    ):
                        mine += more
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
        self._hooks: list = []

    def __enter__(self) -> _Reading:
        for pair in self.pairs:
            for layer, read in zip(pair, self._read, strict=True):
                self._hooks.append(layer.module.register_forward_pre_hook(_keep(read, layer.name)))
        return self

    def __exit__(self, *_problem: object) -> None:
        for hook in self._hooks:
            hook.remove()

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
