"""Checks a checkpoint against the dense model that it comes from, whoever made it.

From the weights alone: what was removed, what was changed, and whether a layer is unlike its peers. With tokens also
what it costs: on the inputs X_p that a layer reads in the checkpoint it should put out X_d Wᵀ, what the dense layer
does on its own (see `rose.layer.target`). The error of what was found stands between that of the bare mask and the
least that the mask allows, and beside what methods reach at the same sparsity on the same inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.change import UNLIKE, WeightChange, weight_change
from rose.layer.defaults import BLOCK_SIZE
from rose.layer.target import target_damping
from rose.model.check import verdicts
from rose.model.check.costs import Costs, Recognized, Yardsticks
from rose.model.check.gone import find_gone
from rose.model.check.inputs import BlockInputs, LayerInputs, Pair, walk_both
from rose.model.check.others import OtherTensor, others_in_block, others_outside
from rose.model.check.rotated import sample
from rose.model.check.verdicts import Peers, Verdict, judge_costs, judge_weights
from rose.model.check.whose import maker_of
from rose.model.defaults import CHECKED_AGAINST
from rose.model.measure.perplexity import perplexity_of, window_losses
from rose.model.network.layers import PrunableLayer
from rose.model.network.network import Network
from rose.model.network.precision import DEFAULT, Precision
from rose.model.progress import Meter, ProgressCallback
from rose.model.walk.walk import check_streams
from rose.report import finite, json_rows
from rose.verdicts import cautions
from rose.wording import several

ROTATED = (
    " Its heads were rotated first (exact, function unchanged); it is compared with dense heads rotated the same way."
)


@dataclass(frozen=True, eq=False)
class CheckpointCheck:
    """What was found in a checkpoint.

    Attributes:
        layers: a row for each layer: its name and place, `verdict`, `reason`, `is_wrong`, what `WeightChange` says of
            it, and with tokens its errors (see `Costs`) and the method whose mask is nearest.
        others: a row for each other tensor that differs: see `OtherTensor`.
        summary: totals, what is gone altogether (see `Gone`), and as `rotated_heads` output projections that are
            compared with the dense ones in another basis (see `rose.model.check.rotated`); with tokens also drift by
            decoder block, perplexities, the method that masks are `nearest` to, and as `method` that which has made
            nearly all.
    """

    layers: pd.DataFrame
    others: pd.DataFrame
    summary: dict[str, Any]

    @property
    def is_sane(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.layers["is_wrong"].any() or self.others["is_wrong"].any())

    @property
    def wrong(self) -> pd.DataFrame:
        """Name, verdict and reason of all that is wrong, the worst first."""
        rows = [self.layers.rename(columns={"layer": "name"}), self.others]
        table = pd.concat([part[["name", "verdict", "reason", "is_wrong"]] for part in rows])
        table = table[table["is_wrong"].astype(bool)].drop(columns="is_wrong")
        rank = table["verdict"].map(verdicts.VERDICTS.index)
        return table.iloc[rank.argsort(kind="stable")].reset_index(drop=True)

    @property
    def by_error(self) -> pd.DataFrame:
        """Rows of the layers whose error is known: those that are wrong first, then the highest error."""
        table = self.layers if "error" in self.layers else self.layers.assign(error=nan)
        return table.dropna(subset=["error"]).sort_values(["is_wrong", "error"], ascending=False)

    @property
    def cautions(self) -> list[str]:
        """How far the numbers can be trusted, a sentence each; see `rose.verdicts.cautions`."""
        table = self.layers[["layer", "columns"]].copy()
        table["zeros_before"] = self.layers["zeros_before"] / (self.layers["rows"] * self.layers["columns"])
        if self.summary["tokens"] and "error" in self.layers:
            table["tokens"] = self.layers["error"].notna().map({True: self.summary["tokens"], False: nan})
        return cautions(table)

    def to_dict(self) -> dict[str, Any]:
        """Summary, layers, others, cautions, and whether the checkpoint is sane, of what JSON has."""
        tables = {name: json_rows(getattr(self, name)) for name in ("layers", "others")}
        return {"is_sane": self.is_sane, "cautions": self.cautions, "summary": finite(self.summary), **tables}

    def to_json(self) -> str:
        """As JSON; see `to_dict`."""
        return json.dumps(self.to_dict(), indent=1)


@dataclass
class _Layer:
    """What is gathered of one layer before it can be judged."""

    layer: PrunableLayer
    change: WeightChange
    dense_sample: Tensor
    sample: Tensor
    rank: int  # of a low-rank part that its sparse one stands beside, 0 without one
    costs: Costs | None = None
    nearest: Recognized | None = None


def check_checkpoint(
    dense: nn.Module,
    pruned: nn.Module,
    tokens: Tensor | None = None,
    *,
    held_out: Tensor | None = None,
    methods: Sequence[str] = CHECKED_AGAINST,
    block_size: int = BLOCK_SIZE,
    compute: str = DEFAULT,
    progress: ProgressCallback | None = None,
) -> CheckpointCheck:
    """Says of every layer of a checkpoint whether it is what a pruned copy of the dense model should be.

    Args:
        dense: the model before.
        pruned: the checkpoint, of the same shape; neither is changed, and both may be streamed.
        tokens: calibration tokens, (samples, length); None judges the weights alone, in seconds.
        held_out: further tokens, on which errors, drift and perplexity are measured too.
        methods: in the registry; what each reaches at a layer's sparsity is measured, and its mask compared.
        block_size: columns per block of these methods.
        compute: number format of forward passes, gaps and ADMM, as for `prune_model`; perplexity is float32.
        progress: called with a `Progress` after every batch and layer; may raise to stop.

    Raises:
        RoseError: models of different shapes, or bad tokens.
    """
    if tokens is not None and dense is pruned:  # one pass could not be told from the other
        raise RoseError("A model is checked against another one; load the checkpoint and the dense model apart.")
    networks, methods = (Network(dense), Network(pruned)), several(methods)
    pairs = pair_layers(*networks)
    streams: dict[str, Tensor] = {}
    if tokens is not None:
        check_streams(networks[1], tokens, held_out)
        streams = check_streams(networks[0], tokens, held_out)
    blocks = 1 + max(layer.block_index for layer, _ in pairs)
    mu = target_damping(networks[0].config.hidden_size, 1 if tokens is None else tokens.numel(), blocks)
    precision = Precision.of(compute, networks[0].dtype, networks[0].device)
    yardsticks = Yardsticks(methods, block_size, mu, precision.products)
    found: dict[str, _Layer] = {}
    others: list[OtherTensor] = []
    drifts: list[dict[str, Any]] = []
    rotated: list[str] = []  # output projections
    in_basis: set[str] = set()  # and their values
    meter = Meter(progress, blocks, len(pairs))

    def tick(index: int, share: float) -> None:
        meter.tell("calibrate", index, 0.5 * share)

    for block in walk_both(networks, pairs, streams, precision, tick):
        for number, pair in enumerate(block.pairs):
            name = pair[0].name
            found[name] = _look_at(pair, block, yardsticks)
            meter.layers_done += 1
            meter.tell("check", block.index, (number + 1) / len(block.pairs), name)
        if block.aligned is not None:
            rotated += block.aligned.outputs
            in_basis |= {*block.aligned.layers}
        others += others_in_block(f"{networks[0].prefix}.{block.index}", block.modules, block.pairs)
        if block.drift is not None:
            drifts.append({"block_index": block.index, "drift": block.drift})
    others += others_outside(*networks)
    gone = find_gone({name: (one.layer, one.change) for name, one in found.items()}, networks[0].config)
    by_weights = _judge_weights(found)
    whose = _method_of(found, by_weights)
    judged = {
        name: replace(verdict, reason=verdict.reason + ROTATED * (name in in_basis) + gone.of(name))
        for name, verdict in _judge(found, by_weights).items()
    }
    summary = _summary(found, judged) | {"gone": gone.row(), "drift": drifts, "rotated_heads": rotated}
    summary |= whose | {"methods": methods if streams else [], "tokens": 0 if tokens is None else tokens.numel()}
    summary["bos_token"] = None if tokens is None else networks[0].bos_in_front(tokens)
    windows, which = (tokens, "calibration") if held_out is None else (held_out, "held-out")
    if windows is not None:
        summary["environment"] = precision.environment(networks[0].device)
        if not any(network.is_streamed for network in networks):
            summary |= _perplexities(dense, pruned, windows)
            summary["evaluated_on"] = f"{len(windows)} × {windows.shape[1]} {which} tokens"
    meter.tell("done", blocks - 1, 1.0)
    return CheckpointCheck(_table(found, judged), _table_of(others), summary)


def _perplexities(dense: nn.Module, pruned: nn.Module, windows: Tensor) -> dict[str, Any]:
    """Perplexity and losses of windows by both models."""
    found: dict[str, Any] = {}
    for stage, model in (("before", dense), ("after", pruned)):
        losses = window_losses(model, windows)
        told = [] if losses.isnan().any() else losses.tolist()
        found |= {f"perplexity_{stage}": perplexity_of(losses), f"losses_{stage}": told}
    return found


def pair_layers(dense: Network, pruned: Network) -> list[Pair]:
    """The layers of both models by name.

    Raises:
        RoseError: other layers, other shapes, or weights that are not in memory.
    """
    dense.check_weights()
    pruned.check_weights()
    dense_layers, pruned_layers = ({layer.name: layer for layer in network.layers} for network in (dense, pruned))
    for layers, others, which in (
        (dense_layers, pruned_layers, "dense model"),
        (pruned_layers, dense_layers, "checkpoint"),
    ):
        if alone := next((name for name in layers if name not in others), None):
            raise RoseError(
                f"The checkpoint has {len(pruned_layers)} layers and the dense model {len(dense_layers)}; {alone} is "
                f"only in the {which}. Give the dense model that the checkpoint was made from."
            )
    for name, layer in dense_layers.items():
        shape, pruned_shape = (tuple(each.weight.shape) for each in (layer, pruned_layers[name]))
        if shape != pruned_shape:
            raise RoseError(
                f"{name} is of shape {pruned_shape} in the checkpoint and of {shape} in the dense model; a model that "
                "was made smaller has no counterpart layer by layer, so give the dense model of that shape."
            )
    return [(layer, pruned_layers[name]) for name, layer in dense_layers.items()]


def _look_at(pair: Pair, block: BlockInputs, yardsticks: Yardsticks) -> _Layer:
    """What the weights and, with tokens, the errors of one layer say; its decoder block is present."""
    layer, weight = pair[0], pair[0].weight
    after = pair[1].weight.to(weight.device)
    change = weight_change(weight, after)
    rank = pair[1].low_rank[0].shape[1] if pair[1].low_rank else 0
    found = _Layer(layer, change, sample(weight), sample(after), rank)
    inputs, held_out = (_finite(block.inputs.get(one, {}).get(layer.name)) for one in ("calibration", "held_out"))
    if inputs is not None and not change.not_finite and not change.is_untouched:
        found.costs, found.nearest = yardsticks.measure(weight, after, change, inputs, held_out)
    return found


def _finite(inputs: LayerInputs | None) -> LayerInputs | None:
    """None where an earlier layer has put out NaN or infinity, by which nothing can be measured."""
    return inputs if inputs is not None and inputs.statistics.diagonal.isfinite().all() else None


def _judge(found: Mapping[str, _Layer], judged_by_weights: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """A verdict for each layer; what holds another layer's weights is told whose.

    Errors accuse no layer behind one with wrong weights: it reads what nothing was compensated for.
    """
    judged: dict[str, Verdict] = {}
    before = ""
    for name, one in found.items():
        by_weights = verdict = judged_by_weights[name]
        if verdict.verdict == verdicts.OTHER_MODEL and not one.change.reordered:
            verdict = _whose(name, found, verdict)
        elif one.costs is not None and not verdict.is_wrong:
            verdict = judge_costs(verdict, one.costs, one.change, one.nearest)
            if before and verdict.is_wrong:
                behind = f"It reads what {before} has spoilt: mend that, and check again."
                verdict = replace(by_weights, reason=f"{verdict.reason} {behind}")
        judged[name] = verdict
        before = before or (name if by_weights.is_wrong else "")
    return judged


def _judge_weights(found: Mapping[str, _Layer]) -> dict[str, Verdict]:
    """A verdict for each layer from the weights alone.

    Methods that only mask move weights too, towards the dense model, once pruning has changed what a layer reads: in
    the decoder block where that begins it is no fault that a layer was not moved, if its first one was not.
    """
    peers = Peers.of([one.change for one in found.values()])
    first = next((one for one in found.values() if one.change.zeros > one.change.zeros_before), None)
    begins = first.layer.block_index if first and first.change.moved <= verdicts.MOVED else None
    there = replace(peers, are_moved=False)
    judged = {
        name: judge_weights(one.change, there if one.layer.block_index == begins else peers)
        for name, one in found.items()
    }
    for name, one in found.items():
        if one.rank and judged[name].verdict == verdicts.NOT_PRUNED:
            said = f"Its sparse part stands beside one of rank {one.rank}, so their sum has no zeros."
            judged[name] = Verdict(verdicts.AS_EXPECTED, said, False)
    return judged


def _whose(name: str, found: Mapping[str, _Layer], verdict: Verdict) -> Verdict:
    """Where a layer's weights are those of another dense layer, says of which."""
    one = found[name]
    kept = one.sample != 0
    best, nearest = 0.0, ""
    for other, candidate in found.items():
        if other != name and candidate.change.shape == one.change.shape:
            alike = torch.cosine_similarity(one.sample, torch.where(kept, candidate.dense_sample, 0), dim=0).item()
            best, nearest = max((best, nearest), (alike, other))
    if best < UNLIKE:
        return verdict
    said = f"It holds the weights of {nearest} (cosine {best:.2f}; with its own dense ones {one.change.cosine:.2f})."
    return Verdict(verdicts.OTHER_MODEL, said, True)


def _table_of(others: Sequence[OtherTensor]) -> pd.DataFrame:
    columns = ["name", "kind", "change", "verdict", "reason", "is_wrong"]
    return pd.DataFrame([one.row() for one in others], columns=columns).astype({"is_wrong": bool})


def _method_of(found: Mapping[str, _Layer], by_weights: Mapping[str, Verdict]) -> dict[str, Any]:
    """`nearest`: the method that the masks are nearest to (see `Maker`), None without masks or methods. `method`: that
    one where it has made nearly all of them, else None. Layers in which it and another are the same get its name."""
    sane = [one for name, one in found.items() if not by_weights[name].is_wrong] or [*found.values()]
    maker = maker_of([one.nearest for one in sane if one.nearest])  # an accident tells nothing of a method
    if maker is None:
        return {"method": None, "nearest": None}
    for one in found.values():
        for target in (maker.target, "layer"):
            if (near := one.nearest) and near.tried.get((maker.name, target)) == near.shared:
                one.nearest = replace(near, method=maker.name, target=target)
                break
    return {"method": maker.row() if maker.is_same else None, "nearest": maker.row()}


def _table(found: Mapping[str, _Layer], judged: Mapping[str, Verdict]) -> pd.DataFrame:
    rows = []
    for name, one in found.items():
        change, verdict = one.change, judged[name]
        row: dict[str, Any] = {
            "layer": name,
            "block_index": one.layer.block_index,
            "projection": one.layer.projection,
            "verdict": verdict.verdict,
            "reason": verdict.reason,
            "is_wrong": verdict.is_wrong,
            "rows": change.shape[0],
            "columns": change.shape[1],
            "sparsity": change.sparsity,
            "zeros": change.zeros,
            "zeros_before": change.zeros_before,
            "pattern": str(change.pattern),
            "broken_groups": change.pattern.broken,
            "moved": change.moved,
            "change": change.change,
            "cosine": change.cosine,
            "rounded": change.rounded,
            "levels": change.grid.levels if change.grid else None,
            "empty_rows": len(change.empty_rows),
            "empty_columns": len(change.empty_columns),
        }
        if one.costs is not None:
            row |= one.costs.row()
        if near := one.nearest:
            row |= {"nearest_method": near.method, "nearest_target": near.target}
            row |= {"agreement": near.shared.jaccard, "agreement_by_chance": near.shared.chance}
        rows.append(row)
    return pd.DataFrame(rows)


def _summary(found: Mapping[str, _Layer], judged: Mapping[str, Verdict]) -> dict[str, Any]:
    changes = [one.change for one in found.values()]
    size = sum(one.size for one in changes)
    patterns = [str(one.pattern) for one in changes if one.zeros > one.zeros_before]
    counts = pd.Series([verdict.verdict for verdict in judged.values()]).value_counts()
    return {
        "layers": len(changes),
        "weights": size,
        "zeros": sum(one.zeros for one in changes),
        "zeros_before": sum(one.zeros_before for one in changes),
        "sparsity": sum(one.zeros for one in changes) / size,
        "pattern": max(set(patterns), key=patterns.count) if patterns else "none",
        "verdicts": {str(name): int(count) for name, count in counts.items()},
    }
