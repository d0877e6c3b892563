"""Checks a checkpoint against the dense model that it comes from, whoever made it.

From the weights alone: what was removed, what was changed, and whether a layer is unlike its peers. With tokens also
what it costs: on the inputs X_p that a layer reads in the checkpoint it should put out X_d Wᵀ, what the dense layer
does on its own (see `rose.layer.target`). The error of what was found stands between that of the bare mask and the
least that the mask allows, and beside what methods reach at the same sparsity on the same inputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.change import UNLIKE, Removal, WeightChange, same_removed, weight_change
from rose.layer.error import difference, quadratic_form
from rose.layer.hessian import damp
from rose.layer.least_squares import solve_on_support
from rose.layer.methods import RECOMMENDED, make_settings, prune_with
from rose.layer.pattern import Pattern
from rose.layer.target import corrected_weight, target_damping, target_error
from rose.model.check import verdicts
from rose.model.check.inputs import BlockInputs, LayerInputs, Pair, walk_both
from rose.model.check.verdicts import Costs, Peers, Verdict, judge_costs, judge_weights
from rose.model.measure.perplexity import perplexity
from rose.model.network.layers import PrunableLayer
from rose.model.network.network import Network
from rose.model.progress import Meter, ProgressCallback
from rose.model.walk.walk import check_streams
from rose.report import finite

METHODS = ("magnitude", "wanda", "sparsegpt", "rose", RECOMMENDED)
REFIT_STEPS = 24  # of conjugate gradients, after which the error of a fixed mask hardly falls
SAMPLE = 4096  # weights of each layer that tell whether it holds another one's
DAMPING = 0.01


@dataclass(frozen=True)
class CheckpointCheck:
    """What was found in a checkpoint.

    Attributes:
        layers: a row for each layer: its name and place, `verdict`, `reason`, `is_wrong`, what `WeightChange` says of
            it, and with tokens its errors (see `Costs`) and the method whose mask is nearest.
        others: a row for each other tensor that differs: name, change (relative norm), verdict, reason, is_wrong.
        summary: totals; with tokens also drift by decoder block and perplexities.
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

    def to_json(self) -> str:
        """As JSON: summary, layers, others, and whether the checkpoint is sane."""
        tables = {name: getattr(self, name).to_dict(orient="records") for name in ("layers", "others")}
        return json.dumps(finite({"is_sane": self.is_sane, "summary": self.summary, **tables}), indent=1)


@dataclass
class _Layer:
    """What is gathered of one layer before it can be judged."""

    layer: PrunableLayer
    change: WeightChange
    dense_sample: Tensor
    sample: Tensor
    costs: Costs | None = None
    agreement: Mapping[str, Removal] = field(default_factory=dict)


def check_checkpoint(
    dense: nn.Module,
    pruned: nn.Module,
    tokens: Tensor | None = None,
    *,
    held_out: Tensor | None = None,
    methods: Sequence[str] = METHODS,
    block_size: int = 128,
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
        progress: called with a `Progress` after every batch and layer; may raise to stop.

    Raises:
        RoseError: models of different shapes, or bad tokens.
    """
    networks = Network(dense), Network(pruned)
    pairs = _pairs(*networks)
    streams = {} if tokens is None else check_streams(networks[0], tokens, held_out)
    for method in methods if streams else ():
        make_settings(method, block_size=block_size)
    found: dict[str, _Layer] = {}
    drifts: list[dict[str, Any]] = []
    blocks = 1 + max(layer.block_index for layer, _ in pairs)
    meter = Meter(progress, blocks, len(pairs))
    mu = target_damping(networks[0].config.hidden_size, 1 if tokens is None else tokens.numel(), blocks)

    def tick(index: int, share: float) -> None:
        meter.tell("calibrate", index, 0.5 * share)

    for block in walk_both(networks, pairs, streams, tick):
        for number, pair in enumerate(block.pairs):
            name = pair[0].name
            found[name] = _look_at(pair, block, methods, block_size, mu)
            meter.layers_done += 1
            meter.tell("check", block.index, (number + 1) / len(block.pairs), name)
        if block.drift is not None:
            drifts.append({"block_index": block.index, "drift": block.drift})
    judged = _judge(found)
    others = _other_tensors(dense, pruned, pairs)
    summary = _summary(found, judged) | {"drift": drifts, "methods": list(methods) if streams else []}
    windows = held_out if held_out is not None else tokens
    if windows is not None and not any(network.is_streamed for network in networks):
        summary |= {"perplexity_dense": perplexity(dense, windows), "perplexity": perplexity(pruned, windows)}
    meter.tell("done", blocks - 1, 1.0)
    return CheckpointCheck(_table(found, judged), others, summary)


def _pairs(dense: Network, pruned: Network) -> list[Pair]:
    """The layers of both models by name.

    Raises:
        RoseError: other layers, or other shapes.
    """
    known = {layer.name: layer for layer in pruned.layers}
    layers = dense.layers
    missing = [layer.name for layer in layers if layer.name not in known]
    if missing or len(known) > len(layers):
        raise RoseError(
            f"The checkpoint has {len(known)} layers and the dense model {len(layers)}, such as "
            f"{missing[0] if missing else max(known)} in only one of them; give the dense model that it was made from."
        )
    for layer in layers:
        was, now = layer.weight.shape, known[layer.name].weight.shape
        if was != now:
            raise RoseError(
                f"{layer.name} is of shape {tuple(now)} in the checkpoint and of {tuple(was)} in the dense model; a "
                "model that was made smaller has no counterpart layer by layer, so give the dense model of that shape."
            )
    return [(layer, known[layer.name]) for layer in layers]


def _look_at(pair: Pair, block: BlockInputs, methods: Sequence[str], block_size: int, mu: float) -> _Layer:
    """What the weights and, with tokens, the errors of one layer say; its decoder block is present."""
    layer, weight = pair[0], pair[0].weight
    after = pair[1].weight.to(weight.device)
    change = weight_change(weight, after)
    found = _Layer(layer, change, _sample(weight), _sample(after))
    known = block.inputs.get("calibration", {}).get(layer.name)
    if known is None or change.not_finite or change.is_untouched:
        return found
    found.costs, found.agreement = _costs(weight, after, change, known, block, layer.name, methods, block_size, mu)
    return found


def _sample(weight: Tensor) -> Tensor:
    """Some weights, always from the same places of a shape; float32 on the CPU."""
    flat = weight.reshape(-1)
    places = torch.linspace(0, len(flat) - 1, min(SAMPLE, len(flat)), dtype=torch.float64).long()
    return torch.nan_to_num(flat[places.to(flat.device)].float().cpu())


def _costs(
    weight: Tensor,
    after: Tensor,
    change: WeightChange,
    known: LayerInputs,
    block: BlockInputs,
    name: str,
    methods: Sequence[str],
    block_size: int,
    mu: float,
) -> tuple[Costs, dict[str, Removal]]:
    """Errors of the layer as it is, and of what it is compared with; how far its mask agrees with methods' masks."""
    mask = after == 0
    wanted, _ = corrected_weight(weight, known.statistics, known.gap, mu)
    error = _error_by(weight, known)
    apart = block.inputs.get("held_out", {}).get(name)
    held_out = _error_by(weight, apart) if apart else None
    matrix = damp(known.statistics.hessian, DAMPING).matrix
    refit = solve_on_support(wanted, mask, matrix, wanted, REFIT_STEPS)
    found: dict[str, float] = {}
    agreement: dict[str, Removal] = {}
    wanda = None
    pattern = _pattern_of(change)
    for method in methods if mask.any() else ():
        aim = wanted if method == RECOMMENDED else weight
        settings = replace(make_settings(method, sparsity=pattern, block_size=block_size), measures=False)
        result = prune_with(aim.to(weight.dtype), known.statistics, settings)
        found[method] = error(result.weight)
        if held_out and method == "wanda":
            wanda = held_out(result.weight)
        agreement[method] = same_removed(mask, result.mask.to(mask.device))
    costs = Costs(
        error=error(after),
        held_out_error=held_out(after) if held_out else None,
        mask_error=error(weight.masked_fill(mask, 0)),
        possible_error=error(refit),
        methods=found,
        wanda_held_out=wanda,
    )
    return costs, agreement


def _error_by(weight: Tensor, known: LayerInputs) -> Callable[[Tensor], float]:
    """The error of a weight in place of W: ‖X_d Wᵀ − X_p Vᵀ‖² / ‖X_d Wᵀ‖²."""
    gap, energy = known.gap.of(weight), quadratic_form(weight, known.statistics.hessian)

    def error(other: Tensor) -> float:
        change = quadratic_form(difference(weight, other), known.statistics.hessian)
        return target_error(weight, other, gap, change_energy=change, dense_energy=energy)

    return error


def _pattern_of(change: WeightChange) -> Pattern:
    """The pattern to prune to for comparison: N:M where the mask is N:M, else its share of zeros."""
    found = change.pattern
    if found.name == "N:M" and not found.broken:
        return Pattern(1 - found.keep / found.of, found.keep, found.of)
    return Pattern(change.sparsity)


def _judge(found: Mapping[str, _Layer]) -> dict[str, Verdict]:
    """A verdict for each layer; what holds another layer's weights is told whose."""
    peers = Peers.of([one.change for one in found.values()])
    judged = {}
    for name, one in found.items():
        verdict = judge_weights(one.change, peers)
        if verdict.verdict == verdicts.OTHER_MODEL and not one.change.reordered:
            verdict = _whose(name, found, verdict)
        elif one.costs is not None and not verdict.is_wrong:
            verdict = judge_costs(verdict, one.costs, one.change, _nearest(one.agreement))
        judged[name] = verdict
    return judged


def _nearest(agreement: Mapping[str, Removal]) -> tuple[str, Removal] | None:
    """The method whose mask is nearest; None where masks were not compared."""
    name = max(agreement, key=lambda method: agreement[method].jaccard, default=None)
    return None if name is None else (name, agreement[name])


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


def _other_tensors(dense: nn.Module, pruned: nn.Module, pairs: Sequence[Pair]) -> pd.DataFrame:
    """Tensors outside the layers that differ: norms, biases, embeddings, the output head, and ties."""
    layers = {id(layer.module.weight) for pair in pairs for layer in pair if not layer.is_expert}
    before = {name: value for name, value in dense.named_parameters(remove_duplicate=False) if id(value) not in layers}
    after = {name: value for name, value in pruned.named_parameters(remove_duplicate=False) if id(value) not in layers}
    rows = []
    for name, value in after.items():
        was = before.get(name)
        if value.is_meta or was is None or was.is_meta or was.ndim == 3 or was.shape != value.shape:
            continue
        if not bool(torch.isfinite(value).all()):
            broken = int((~torch.isfinite(value)).sum())
            said = f"{broken:,} of {value.numel():,} numbers are NaN or infinite."
            rows.append((name, float("nan"), verdicts.NUMBERS_BROKEN, said, True))
        elif not torch.equal(was.to(value.dtype), value):
            gap = (value.float() - was.float()).norm().item() / max(was.float().norm().item(), 1e-30)
            rows.append((name, gap, verdicts.AS_EXPECTED, f"It moved by {gap:.1%} of its norm.", False))
    for name, twin in _ties(before):
        if name in after and twin in after and not torch.equal(after[name], after[twin]):
            said = f"It is one tensor with {twin} in the dense model, and another one here."
            rows = [row for row in rows if row[0] != name]
            rows.append((name, float("nan"), verdicts.TIE_TORN, said, True))
    return pd.DataFrame(rows, columns=["name", "change", "verdict", "reason", "is_wrong"]).astype({"is_wrong": bool})


def _ties(parameters: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Names of one and the same tensor, the later one first."""
    first: dict[int, str] = {}
    return [(name, first[id(value)]) for name, value in parameters.items() if first.setdefault(id(value), name) != name]


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
            "levels": change.grid.levels if change.grid else None,
            "empty_rows": len(change.empty_rows),
            "empty_columns": len(change.empty_columns),
        }
        if one.costs is not None:
            row |= one.costs.row()
        if nearest := _nearest(one.agreement):
            name, shared = nearest
            row |= {"nearest_method": name, "agreement": shared.jaccard, "agreement_by_chance": shared.chance}
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


def common_masks(one: nn.Module, other: nn.Module) -> pd.DataFrame:
    """How far two checkpoints of one model remove the same weights: layer, jaccard, and chance of two random masks.

    Raises:
        RoseError: models of different shapes.
    """
    rows, networks = [], (Network(one), Network(other))
    for block in walk_both(networks, _pairs(*networks), {}):
        for first, second in block.pairs:
            shared = same_removed(first.weight == 0, second.weight.to(first.weight.device) == 0)
            rows.append({"layer": first.name, "jaccard": shared.jaccard, "chance": shared.chance})
    return pd.DataFrame(rows)
