"""Heads rotated between values and output projection: an exact transformation that changes columns.

See `rose.layer.basis` for the effect of a basis on a layer, and `rose.model.network.heads` for finding heads.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Unpack

import pandas as pd
import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer import error
from rose.layer.basis import BASES, find_rotations, rotate_columns, rotate_statistics
from rose.layer.methods import Settings, make_settings, prune_with
from rose.layer.order import plan_order
from rose.layer.pattern import SettingsOptions
from rose.layer.registry import check_name_or_seed
from rose.layer.statistics import InputStatistics
from rose.model.network.heads import ROTATED, ValueHeads, find_value_heads, head_width
from rose.model.network.layers import check_not_shared, naming
from rose.model.network.network import Network
from rose.model.network.residence import leave
from rose.model.progress import ProgressCallback
from rose.model.walk.forward import check_blocks, record_inputs, run_block
from rose.model.walk.walk import BlockStatistics, check_streams, start_walk
from rose.model.workers import Workers
from rose.rows import records_table
from rose.tensor_files import digest
from rose.wording import several

PROBED = 8  # tokens for finding heads
PRUNED = 0.2  # a larger share of zeros comes from pruning; a quantized model has fewer
JUDGES = 4  # without held-out tokens, every fourth calibration sample judges


@dataclass(frozen=True)
class RotationRecord:
    """One output projection whose heads could be rotated."""

    layer: str
    block_index: int
    # heads, groups, width: heads, groups of heads that share values and a rotation, columns of a head
    heads: int
    groups: int
    width: int
    basis: str
    rotated: bool  # whether its heads were rotated: always without a judging method, otherwise if the error fell
    # relative_range, rotated_range: without and with the rotation, on calibration inputs
    relative_range: float
    rotated_range: float
    # error, rotated_error: of the judging method, or the geometric mean of several, without and with the rotation; None
    # without a judging method
    error: float | None
    rotated_error: float | None
    seconds: float


def rotate_heads(
    model: nn.Module,
    tokens: Tensor,
    *,
    layers: Sequence[str] | None = None,
    basis: str = "learned",
    held_out: Tensor | None = None,
    compute: str = "float32",
    progress: ProgressCallback | None = None,
    **judge: Unpack[SettingsOptions],
) -> pd.DataFrame:
    """Rotates heads between values and output projections, in place and exactly: W_v' = RᵀW_v and W_o' = W_o R.

    The model's output stays the same except for rounding, and no weight is added. Heads that share their values share
    R. A basis that gathers importance in few columns lowers the error of pruned output projections.

    Args: as for `rose.prune_model`, and
        model: not pruned yet. A run that its callback stops leaves the finished layers rotated.
        basis: "learned", "gathered", "random" or "random:SEED", see `rose.layer.basis`.
        held_out: further tokens to judge by. By default a quarter of the samples judges and does not calibrate.
        judge: `method`, one or several, and settings, as for `rose.prune_model`: a layer is rotated only if the mean
            error of these methods falls on `held_out`. Without a method all are rotated.

    Returns:
        One row per output projection whose heads can be rotated, columns as in `RotationRecord`.

    Raises:
        RoseError: bad input, unknown layers, or nothing that can be rotated, because a norm, a gate or a mixture of
            heads lies between values and output projection.
    """
    network = Network(model)
    judges = [make_settings(**judge | {"method": name}) for name in several(judge.pop("method", ()))]
    settings = judges[0] if judges else make_settings(**judge)
    check_name_or_seed("basis", basis, BASES)
    network.check_tokens(tokens)
    network.residence.overlay(leave, (), None)  # refuses a streamed model that was pruned
    workers = Workers.here()
    if judges and held_out is None:
        check_samples(len(tokens))
        judging = max(len(tokens) // JUDGES, workers.count)
        tokens, held_out = tokens[:-judging], tokens[-judging:]
    streams = check_streams(network, tokens, held_out if judges else None)
    every = value_heads(network, layers)
    precision = workers.precision(compute, network)
    run = _Rotation(network, judges, settings, basis)
    of_output = {heads.output.name: heads for heads in every}
    walk = start_walk(network, streams, [heads.output for heads in every], progress, precision=precision)
    for block in walk.visit_dense():
        for layer in block.layers:
            run.visit(of_output[layer.name], block)
        block.let_go()
    run.end(every)
    return records_table(run.records, RotationRecord)


def check_samples(samples: int) -> None:
    """Raises RoseError unless every process has one sample to calibrate and one to judge."""
    least = 2 * Workers.here().count
    if samples < least:
        raise RoseError(
            f"Rotations are judged on samples that are kept back; give at least {least} calibration samples, not "
            f"{samples}."
        )


@torch.no_grad()
def value_heads(network: Network, layers: Sequence[str] | None = None) -> list[ValueHeads]:
    """The heads of all output projections among `layers` that can be rotated; the model is not changed.

    Raises RoseError if there are none, and for weights that are shared with other layers or pruned.
    """
    selected, width = {layer.name for layer in network.select(layers)}, head_width(network.config)
    few = torch.arange(PROBED)[None] % network.config.vocab_size
    outputs = check_blocks(network, few)
    hidden: list[Tensor] = []
    along = record_inputs(network, few, outputs, lambda _batch, states: hidden.append(states))
    alone = record_inputs(network, few.T, outputs)
    # Any hidden states will do except zeros, which padding tokens have.
    states = torch.randn(hidden[0].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    states = states.to(hidden[0].dtype)
    every: list[ValueHeads] = []
    for index, block in enumerate(network.blocks):
        inside = [layer for layer in network.layers if layer.block_index == index]
        if width is None or selected.isdisjoint(layer.name for layer in inside):
            continue
        with network.residence.visit(index, network.device):
            run = partial(run_block, device=network.device)
            run_alone = partial(run, hidden=states.transpose(0, 1), arguments=alone[index][0])
            run_along = partial(run, hidden=states, arguments=along[index][0])
            for heads in find_value_heads(block, inside, width, run_alone, run_along):
                output = heads.output
                if output.name not in selected:
                    continue
                has = "zeros" if float(output.weight.eq(0).float().mean()) > PRUNED else ""
                if any(layer.low_rank is not None for layer in (output, heads.values)):
                    has = "a sparse and a low-rank part"  # only their sum would be rotated
                if has:
                    spoils = "which a rotation would spoil; rotate heads before a model is pruned"
                    raise RoseError(f"{output.name} has {has} already, {spoils}.")
                every.append(heads)
    if not every:
        chosen = "" if layers is None else "that were chosen "
        raise RoseError(
            f"In the layers of {network.family} {chosen}no output projection reads values unchanged, so no heads can "
            "be rotated: a norm, a gate or another operation lies between, or no output projection was chosen; leave "
            "rotation out."
        )
    check_not_shared([layer for heads in every for layer in (heads.output, heads.values)], network.layers)
    return every


class _Rotation:
    """Decides and rotates layer by layer. The first of several processes decides for all."""

    def __init__(self, network: Network, judges: Sequence[Settings], settings: Settings, basis: str) -> None:
        self.network, self.judges, self.settings, self.basis = network, judges, settings, basis
        self.records: list[RotationRecord] = []
        self.rotations: dict[str, Tensor] = {}  # by output projection

    def visit(self, heads: ValueHeads, block: BlockStatistics) -> None:
        with naming(heads.output):
            record, rotations = Workers.here().from_first(partial(self._decide, heads, block))
        self.records.append(record)
        if record.rotated:
            self.rotations[heads.output.name] = rotations
            heads.rotate(rotations)

    def end(self, every: Sequence[ValueHeads]) -> None:
        """Marks the model; a streamed model's decoder blocks are rotated whenever they are read."""
        if not self.rotations:
            return

        def revise(index: int) -> None:
            for heads in every:
                if heads.output.block_index == index and heads.output.name in self.rotations:
                    heads.rotate(self.rotations[heads.output.name])

        self.network.residence.settle(revise, digest(self.rotations))
        setattr(self.network.model, ROTATED, {"basis": self.basis, "layers": [*self.rotations]})

    def _decide(self, heads: ValueHeads, block: BlockStatistics) -> tuple[RotationRecord, Tensor]:
        start, weight, statistics = time.perf_counter(), heads.output.weight, block.calibration[heads.output.name]
        pattern, size = self.settings.pattern, self.settings.block_size
        rotations = find_rotations(
            weight, statistics.hessian, heads.layout, self.basis, pattern=pattern, block_size=size
        )
        turned = rotate_columns(weight, heads.layout, rotations).to(weight.dtype)
        judge = block.held_out.get(heads.output.name, statistics)
        turn = partial(rotate_statistics, layout=heads.layout, rotations=rotations)
        old_range, old_error = self._figures(weight, statistics, judge)
        new_range, new_error = self._figures(turned, turn(statistics), turn(judge))
        record = RotationRecord(
            layer=heads.output.name, block_index=block.block_index, heads=len(heads.rows),
            groups=heads.layout.groups, width=heads.width, basis=self.basis,
            rotated=old_error is None or new_error is None or new_error < old_error,
            relative_range=old_range, rotated_range=new_range, error=old_error, rotated_error=new_error,
            seconds=time.perf_counter() - start,
        )  # fmt: skip
        return record, rotations.cpu()

    def _figures(self, weight: Tensor, by: InputStatistics, on: InputStatistics) -> tuple[float, float | None]:
        """The relative range on `by`, and the relative error of W pruned on `by` and measured on `on`: a geometric mean
        over judging methods, None without any."""
        plan = plan_order(weight, by, sparsity=self.settings.pattern, block_size=self.settings.block_size)
        logs = []
        for settings in self.judges:
            pruned = prune_with(weight, by, replace(settings, measures=False)).weight
            logs.append(math.log(max(error.relative_error(weight, pruned, on.hessian), 1e-30)))
        return plan.relative_range, math.exp(sum(logs) / len(logs)) if logs else None
