"""Damage, the change of the model's loss by one unit, measured by intervention.

A unit is a layer or a whole decoder block. Either the model is dense and a unit is pruned, or the model is pruned and a
unit gets its dense weights back; everything else stays. The loss is the mean cross-entropy of next tokens on held-out
windows, in nats. Windows are paired: differences vary far less than the losses, and so does
their standard error. A pass begins at the unit's decoder block, on the output of the block before it; see `Boundaries`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from rose import verdicts
from rose.errors import RoseError, check_choice
from rose.layer.error import MassiveActivation, difference, quadratic_form, ratio
from rose.layer.pattern import BLOCK_SIZE, DAMPING, METHOD, SPARSITY, THRESHOLD, Pattern
from rose.layer.registry import Value
from rose.layer.settings import LayerSettings, describe_grid
from rose.layer.statistics import InputStatistics
from rose.model.defaults import UNITS
from rose.model.estimate import pass_work
from rose.model.measure.folder import SETTINGS, MeasurementFolder
from rose.model.measure.perplexity import perplexity_of, window_losses
from rose.model.network.layers import PrunableLayer, by_block, check_not_shared
from rose.model.network.network import Network, check_same_model, read_norms
from rose.model.network.residence import evaluating
from rose.model.progress import Meter, Progress, ProgressCallback
from rose.model.rules import WHOLE
from rose.model.run.one_layer import damping_of, is_left_dense, prune_one
from rose.model.walk.forward import Boundaries
from rose.model.walk.storage import HELD_OUT, token_drift
from rose.model.walk.walk import TOKENS, BlockStatistics, check_streams, start_walk, statistics_of
from rose.rows import DamageRecord, finite, records_table
from rose.verdicts import Interval
from rose.wording import whole

PREDICTORS = ("relative_error", "held_out_error", "output_error", "drift")  # columns that could predict damage
CLEAR = 2.0  # standard errors above 0 of a clear damage
GAP = 0.3  # an outlier's rank of damage is above its rank of error by this share of all


@dataclass(frozen=True, eq=False)
class DamageReport:
    """The outcome of a measurement of damage.

    Attributes:
        units: one row per unit, columns as in `DamageRecord`.
        summary: settings; the loss without a change; the sum of all damages, and the damage of all units together;
            how well errors predict damage; limits of trust.
    """

    units: pd.DataFrame
    summary: dict[str, Any]

    @classmethod
    def from_records(cls, records: Sequence[DamageRecord], **settings: Any) -> DamageReport:
        table = records_table([record for record in records if record.unit != WHOLE], DamageRecord)
        whole = next((record for record in records if record.unit == WHOLE), None)
        error = math.nan if whole is None else whole.standard_error
        base = None if table.empty else float(table["loss"].iloc[0] - table["delta_loss"].iloc[0])
        ranks = {name: rank_correlation(table, name) for name in PREDICTORS}
        results: dict[str, Any] = {
            "base_loss": base,
            "base_perplexity": None if base is None else perplexity_of(torch.tensor([base], dtype=torch.float32)),
            "units_measured": len(table),
            "sum_of_damages": float(table["damage"].sum()),
            "together": None if whole is None else whole.damage,
            "together_standard_error": error if math.isfinite(error) else None,
            "correlation": {name: rank and rank.value for name, rank in ranks.items()},
            "correlation_interval": {name: rank and [rank.low, rank.high] for name, rank in ranks.items()},
            "outliers": list(outliers(table)["unit"]),
            "cautions": verdicts.cautions(table, "unit"),
        }
        return cls(table, {**settings, **results})


def rank_correlation(table: pd.DataFrame, predictor: str = "held_out_error") -> Interval | None:
    """Spearman's ρ between a predictor and damage over the units of a table; see `rose.verdicts.rank_correlation`."""
    return verdicts.rank_correlation(table[predictor], table["damage"])


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's ρ of each of `PREDICTORS` with damage, with its interval, or None.

    A row for all units, each projection, each third of the depth, and the mean within decoder blocks; `group` and
    `name` say which.
    """
    groups: list[tuple[str, str, pd.DataFrame]] = [("all", "", table)]
    if table["projection"].ne("").any():
        groups += [("projection", str(name), rows) for name, rows in table.groupby("projection", sort=False)]
    depth = int(table["block_index"].max()) + 1
    for part in range(3):
        low, high = part * depth // 3, (part + 1) * depth // 3
        rows = table[table["block_index"].between(low, high - 1)]
        name = f"decoder blocks {low} to {high - 1}" if high - low > 1 else f"decoder block {low}"
        groups.append(("depth", name, rows))
    result = [
        {"group": group, "name": name, "units": len(rows), **{p: rank_correlation(rows, p) for p in PREDICTORS}}
        for group, name, rows in groups
        if len(rows)
    ]
    within = [rows for _, rows in table.groupby("block_index") if len(rows) > 2]
    if within:
        means: dict[str, Interval | None] = {}
        for predictor in PREDICTORS:
            ranks = filter(None, (rank_correlation(rows, predictor) for rows in within))
            mean = verdicts.mean_interval([rank.value for rank in ranks])  # correlations end at ±1
            means[predictor] = mean and replace(mean, low=max(mean.low, -1.0), high=min(mean.high, 1.0))
        result.append({"group": "within a decoder block", "name": "mean", "units": len(within), **means})
    return pd.DataFrame(result)


def outliers(table: pd.DataFrame, predictor: str = "held_out_error", count: int = 5) -> pd.DataFrame:
    """Units with a small error and a large damage, the widest `gap` first.

    Their damage ranks above their error by at least `GAP` of all ranks, and is above 0 by
    `CLEAR` standard errors, which a single window does not have.
    """
    damage = table["damage"]
    clear = damage > CLEAR * table["standard_error"]
    gap = (damage.rank() - table[predictor].rank()) / max(len(table) - 1, 1)
    rows = table.assign(gap=gap)[clear & (gap >= GAP)]
    return rows.sort_values("gap", ascending=False, kind="stable").head(count).reset_index(drop=True)


class DamageFolder(MeasurementFolder[DamageRecord]):
    """The folder of a measurement of damage: a row per unit, and at the end one for all units at once."""

    kind = DamageRecord
    key = ("unit",)
    holds = "measurement of damage", "damages"
    summaries = ("summary.json",)

    def summarize(self, settings: dict[str, Any]) -> dict[str, str]:
        norms = read_norms(self.folder / SETTINGS)  # none where the measured model is not known
        summary = DamageReport.from_records(self.rows, **settings, embedding_norms=norms).summary
        return {"summary.json": json.dumps(finite(summary), indent=1)}


def damage(
    model: nn.Module,
    tokens: Tensor,
    *,
    held_out: Tensor | None = None,
    units: str = "layers",
    layers: Sequence[str] | None = None,
    restore: Mapping[str, Tensor] | None = None,
    done: Collection[str] = (),
    record: Callable[[DamageRecord], Any] = lambda _record: None,
    progress: ProgressCallback | None = None,
    method: str = METHOD,
    sparsity: float | str | Pattern = SPARSITY,
    block_size: int | str = BLOCK_SIZE,
    damping: float = DAMPING,
    threshold: float = THRESHOLD,
    order: str | None = None,
    budget: str | None = None,
    options: Mapping[str, Value] | None = None,
    bits: int | None = None,
    group: int | str | None = None,
) -> DamageReport:
    """The change of the model's loss by each layer or decoder block alone, when only it is pruned.

    Args:
        model: a transformers causal language model; moved to the device and back. Its weights are changed one unit at a
            time and restored, to the bit, also after an error or a cancel.
        tokens: calibration tokens, (samples, length) int64. Layers are calibrated on the model as it is.
        held_out: windows to measure loss and errors on, (windows, length); by default the last quarter of `tokens`.
        units: "layers", each alone; "blocks", all chosen layers of a decoder block together.
        layers: names, `*` allowed; None means every prunable layer.
        restore: weights by layer name, (out, in), put back into the pruned `model`, one unit at a time; nothing is
            pruned then. Errors compare the pruned layers with these.
        done: units that are not measured again; they are pruned again for the last record.
        record: called with every unit's record as it comes, and at the end with one for all units, "*"; meanwhile
            the weights are restored. May raise to stop.
        progress: called with a `Progress` of stage "damage", whose layers are units; may raise to stop.
        method and all after it: see `rose.prune_layer`.

    Returns:
        A `DamageReport`; its `units` is a DataFrame with one row per unit, losses in nats per token.

    Raises:
        RoseError: bad input, before any work; or a layer that cannot be pruned, by name.
    """
    settings = LayerSettings.among(locals())
    check_choice("The units", units, UNITS)
    network = Network(model)
    settings = settings.in_columns(network.head_width)
    network.check_in_memory()
    network.check_tokens(tokens)
    if held_out is None:
        windows = max(1, len(tokens) // 4)
        if len(tokens) - windows < 1:
            raise RoseError("One sample cannot both calibrate and measure; give more, or held-out tokens.")
        tokens, held_out = tokens[:-windows], tokens[-windows:]
    if restore is None:
        selected = network.to_prune(layers, settings.pattern, settings.block_columns, settings.grid)
    else:
        selected = network.select(layers)
        check_not_shared(selected, network.layers)
        _check_restored(restore, selected)
    streams = check_streams(network, tokens, held_out)
    network.check_tokens(held_out, "Loss", TOKENS[HELD_OUT])
    sign = 1.0 if restore is None else -1.0
    run = _Run(network, held_out, units_of(network, selected, units), set(done), progress, sign)
    records = []
    for unit_record in run.visit(streams, selected, partial(_change, settings, restore)):
        record(unit_record)
        records.append(unit_record)
    pruning = {"method": settings.method, "sparsity": str(settings.pattern)} if restore is None else {}
    return DamageReport.from_records(
        records,
        intervention="restore" if restore else "prune",
        units=units,
        **pruning,
        samples=tokens.shape[0],
        length=tokens.shape[1],
        windows=held_out.shape[0],
        window_length=held_out.shape[1],
        bos_token=network.bos_in_front(tokens),
        embedding_norms=network.embedding_norms(),
        environment=network.environment(),
        **describe_grid(settings.grid),
    )


def dense_weights(dense: nn.Module, pruned: nn.Module, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The weights to restore in a pruned model, by layer name.

    Raises RoseError for a model pruned from another one, with fewer decoder blocks, or with nothing pruned in these
    layers, as `Network.select` takes them.
    """
    full, left = Network(dense), Network(pruned)
    check_same_model(left, full.embedding_norms(), "The model to restore was not pruned from the dense one")
    before, after = len(full.blocks), len(left.blocks)
    if before != after:
        raise RoseError(
            f"The model to restore has {after} decoder blocks and the dense one {before}, so their layers do not "
            "correspond; give the model as it was when blocks were taken out and nothing was pruned yet."
        )
    weights = {layer.name: layer.weight for layer in full.layers}
    _check_restored(weights, left.select(layers))
    return weights


def _check_restored(restore: Mapping[str, Tensor], selected: Sequence[PrunableLayer]) -> None:
    for layer in selected:
        if layer.name not in restore or restore[layer.name].shape != layer.weight.shape:
            raise RoseError(f"There is no dense weight of this shape for {layer.name}; give the same model, dense.")
    pairs = [(layer.weight, restore[layer.name].to(layer.weight)) for layer in selected]
    if all(torch.equal(now, before) for now, before in pairs):
        raise RoseError(
            "The layers to restore equal the dense model's, so nothing can be restored; give a pruned model."
        )
    zeros, before = (sum(int((pair[place] == 0).sum()) for pair in pairs) for place in (0, 1))
    if before > zeros:
        raise RoseError(
            f"The dense model has {whole(before)} zeros and the one to restore {whole(zeros)}: they are the wrong way "
            "round; exchange them."
        )


@dataclass(frozen=True)
class Unit:
    """A layer, or a decoder block with its chosen layers, which has no `projection`."""

    name: str
    block_index: int
    projection: str
    layers: list[PrunableLayer]


def units_of(network: Network, selected: Sequence[PrunableLayer], units: str) -> list[Unit]:
    if units == "layers":
        return [Unit(layer.name, layer.block_index, layer.projection, [layer]) for layer in selected]
    return [Unit(f"{network.prefix}.{index}", index, "", inside) for index, inside in by_block(selected).items()]


@dataclass(frozen=True)
class _Change:
    """The new weight of one layer, ‖ΔW x‖² of pruned against dense as a mean over tokens, and a row for
    `rose.verdicts.caution_column`."""

    layer: PrunableLayer
    weight: Tensor
    output_error: float
    row: dict[str, Any]


def _change(
    settings: LayerSettings, restore: Mapping[str, Tensor] | None, layer: PrunableLayer, block: BlockStatistics
) -> _Change:
    """Prunes or restores a layer on paper, with the errors of its pruned against its dense weight."""
    calibration, held_out = (statistics_of(layer, each) for each in (block.calibration, block.held_out))
    row: dict[str, Any] = {"tokens": calibration.tokens, "columns": calibration.columns}
    row["dead_columns"] = int(calibration.dead.sum())
    if restore is None:
        # Without the held-out inputs: a method that chooses by measuring would choose on the windows of the loss.
        result = prune_one(layer, block.calibration, settings)
        dense, pruned, sparsity = layer.weight, result.weight.to(layer.weight.dtype), result.sparsity
        row["is_damping_raised"] = result.damping > damping_of(layer, calibration, settings.damping)
        row |= {"asked_sparsity": settings.pattern.ratio, "zeros_before": float(dense.eq(0).double().mean())}
    else:
        dense, pruned = restore[layer.name], layer.weight
        sparsity = float((pruned.eq(0) & dense.to(pruned.device).ne(0)).float().mean())
    error, _ = _errors(dense, pruned, calibration)
    held_out_error, output_error = _errors(dense, pruned, held_out)
    row |= {"sparsity": sparsity, "relative_error": error, "held_out_error": held_out_error}
    massive = MassiveActivation.find(dense, pruned, calibration)
    row["massive"] = verdicts.massive_text(massive, error) if massive else ""
    return _Change(layer, pruned if restore is None else dense, output_error, row)


def _errors(dense: Tensor, pruned: Tensor, inputs: InputStatistics) -> tuple[float, float]:
    """‖ΔW Xᵀ‖²/‖W Xᵀ‖², and ‖ΔW x‖² as a mean over tokens."""
    hessian = inputs.hessian
    weight = dense.to(hessian.device)
    change = max(quadratic_form(difference(weight, pruned.to(hessian.device)), hessian), 0.0)
    return ratio(change, quadratic_form(weight, hessian)), change / inputs.tokens


@contextmanager
def _written(changes: Sequence[_Change]) -> Iterator[None]:
    before = [change.layer.weight.clone() for change in changes]
    try:
        for change in changes:
            change.layer.write(change.weight)
        yield
    finally:
        for change, weight in zip(changes, before, strict=True):
            change.layer.write(weight)


class _Run:
    """One measurement; `sign` of damage relative to the change of loss."""

    def __init__(
        self,
        network: Network,
        windows: Tensor,
        units: Sequence[Unit],
        done: set[str],
        progress: ProgressCallback | None,
        sign: float,
    ) -> None:
        self.network, self.windows, self.units, self.done, self.sign = network, windows, units, done, sign
        self.blocks = len(network.blocks)
        self.work = pass_work(network, windows.numel())
        # A pass for every unit, one without any change, one with all of them.
        self.total = 2 * self.work[0] + sum(self.work[unit.block_index] for unit in units if unit.name not in done)
        self.finished = 0.0
        self.meter = Meter(progress, self.blocks, len(units))
        self.meter.layers_done = sum(unit.name in done for unit in units)
        needed = {index for unit in units for index in (unit.block_index - 1, unit.block_index) if index >= 0}
        self.boundaries = Boundaries(network, needed)

    def visit(
        self, streams: Mapping[str, Tensor], selected: Sequence[PrunableLayer], change: Callable[..., _Change]
    ) -> Iterator[DamageRecord]:
        with evaluating(self.network.model, self.network.device):
            with self.boundaries.record():
                base = self._losses(0, "")
            every: list[_Change] = []

            def walked(progress: Progress) -> None:
                """The walk that gathers statistics is a small part of the work; it only shows that it is alive."""
                self._tell("calibrate", min(progress.block_index, self.blocks - 1), "", 0.0)

            for block in start_walk(self.network, streams, selected, walked).visit_dense():
                for unit in (unit for unit in self.units if unit.block_index == block.block_index):
                    start = time.perf_counter()
                    changes = [
                        change(layer, block)
                        for layer in unit.layers
                        if not any(is_left_dense(layer, each) for each in (block.calibration, block.held_out))
                    ]
                    every += changes
                    if not changes:  # no token was routed to these experts
                        self.meter.layers_done += 1
                        self.total -= self.work[unit.block_index]
                    elif unit.name not in self.done:
                        yield self._measure(unit, changes, base, start)
                block.clear()
            if not every:
                raise RoseError("No token was routed to any of the chosen experts; give more tokens.")
            yield self._measure(Unit(WHOLE, -1, "", []), every, base, time.perf_counter())
            self._tell("done", self.blocks - 1, "", 0.0)

    def _measure(self, unit: Unit, changes: list[_Change], base: Tensor, start: float) -> DamageRecord:
        index = max(unit.block_index, 0)
        drifts: list[Tensor] = []

        def watch(batch: int, hidden: Tensor) -> None:
            drifts.append(token_drift(hidden, self.boundaries.outputs[index][batch].to(hidden.device)).cpu())

        with _written(changes):
            if unit.name == WHOLE:
                losses = self._losses(0, unit.name)
            else:
                with self.boundaries.resume(index, watch):
                    losses = self._losses(index, unit.name)
        self.meter.layers_done += unit.name != WHOLE
        differences = losses - base
        delta, windows = float(differences.mean()), len(losses)
        sizes = [change.weight.numel() for change in changes]
        rows = [change.row for change in changes]
        texts = [(change.layer.projection, change.row["massive"]) for change in changes]
        return DamageRecord(
            unit=unit.name, block_index=unit.block_index, projection=unit.projection, weights=sum(sizes),
            sparsity=sum(row["sparsity"] * size for row, size in zip(rows, sizes, strict=True)) / sum(sizes),
            relative_error=sum(row["relative_error"] for row in rows) / len(rows),
            held_out_error=sum(row["held_out_error"] for row in rows) / len(rows),
            output_error=sum(change.output_error for change in changes),
            drift=float(torch.cat(drifts).mean()) if drifts else math.nan,
            loss=float(losses.mean()), delta_loss=delta, damage=self.sign * delta,
            standard_error=float(differences.std(correction=1)) / windows**0.5 if windows > 1 else math.nan,
            perplexity_ratio=perplexity_of(differences), seconds=time.perf_counter() - start,
            cautions=verdicts.in_brief(pd.DataFrame(rows)),
            massive=". ".join(text if unit.projection else f"{name}, {text}" for name, text in texts if text),
        )  # fmt: skip

    def _losses(self, index: int, unit: str) -> Tensor:
        tell = partial(self._tell, "damage", index, unit)
        losses = window_losses(self.network, self.windows, progress=lambda share: tell(self.work[index] * share))
        self.finished += self.work[index]
        return losses

    def _tell(self, stage: str, index: int, unit: str, work: float) -> None:
        share = 1.0 if stage == "done" else min(0.999, (self.finished + work) / self.total)
        self.meter.tell_share(stage, index, share, unit or None)
