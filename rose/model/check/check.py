"""Checks a checkpoint against the dense model that it comes from, whoever made it.

The weights show what was removed, what was changed, and which layers are unlike their peers. Tokens give errors, too:
on its inputs X_p in the checkpoint a layer should put out X_d Wᵀ, as in the dense model (see `rose.layer.target`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.pattern import BLOCK_SIZE
from rose.layer.target import correction_damping
from rose.model.check.change import UNLIKE, WeightChange, same_removed, weight_change
from rose.model.check.costs import Costs, Recognized, Yardsticks, maker_of, with_inputs
from rose.model.check.inputs import BlockInputs, Pair, sample, walk_both
from rose.model.check.others import Gone, Row, others_in_block, others_outside, table_of
from rose.model.check.result import CheckpointCheck, is_decided
from rose.model.check.verdicts import (
    CLEARLY,
    MOVED,
    LayerVerdict,
    Peers,
    Verdict,
    judge_costs,
    judge_weights,
    says_part,
)
from rose.model.defaults import CHECKED_AGAINST
from rose.model.measure.perplexity import perplexity_of, window_losses
from rose.model.network.layers import PrunableLayer
from rose.model.network.network import Network
from rose.model.network.precision import DEFAULT, Precision
from rose.model.progress import Meter, ProgressCallback
from rose.model.walk.walk import check_streams
from rose.wording import number, several

EVEN = "no clear difference"
ERRORS = ("held_out_error", "error")  # layers are ranked by the first of these that both have
FIRST_READ = 4  # windows that perplexity is read on at first
WEIGHED, EVALUATED = 0.03, 0.15  # shares of the work that are done with the weights, and with perplexity, roughly
MISFITS = 100  # most parts of a layer that the table names
ROTATED = " Its heads fit those of the dense model after a rotation that changes no output, and are compared after it."


@dataclass
class _Measured:
    """The measurements of one layer, before it is judged."""

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
    windows: Tensor | None = None,
    methods: Sequence[str] = CHECKED_AGAINST,
    block_size: int = BLOCK_SIZE,
    compute: str = DEFAULT,
    progress: ProgressCallback | None = None,
) -> CheckpointCheck:
    """Looks for faults in every layer of a checkpoint that was made from the dense model by pruning.

    Args:
        dense, pruned: the models before and after, of one shape; neither is changed, and both may be streamed.
        tokens: calibration tokens, (samples, length). None judges the weights only, in seconds.
        held_out: further tokens for errors and drift.
        windows: tokens for perplexity, read until they tell whether it is above twice the dense model's; `held_out` by
            default, or `tokens` without these.
        methods: names in the registry; each is tried at each layer's sparsity, and its errors and masks are compared.
        block_size: columns per block of these methods.
        compute: number format of forward passes, gaps and ADMM, as for `prune_model`; perplexity is float32.
        progress: called with a `Progress` after every batch and layer; may raise to stop.

    Raises:
        RoseError: models of different shapes, or bad tokens.
    """
    options: Any = {"held_out": held_out, "windows": windows, "methods": methods, "block_size": block_size}
    *_, check = check_in_stages(dense, pruned, tokens, **options, compute=compute, progress=progress)
    return check


def check_in_stages(
    dense: nn.Module,
    pruned: nn.Module,
    tokens: Tensor | None = None,
    *,
    held_out: Tensor | None = None,
    windows: Tensor | None = None,
    methods: Sequence[str] = CHECKED_AGAINST,
    block_size: int = BLOCK_SIZE,
    compute: str = DEFAULT,
    progress: ProgressCallback | None = None,
) -> Iterator[CheckpointCheck]:
    """What is known so far: the verdicts of the weights, then with perplexity, then with errors after each decoder
    block. The last check is that of `check_checkpoint`, which has the same arguments and errors."""
    if tokens is not None and dense is pruned:  # the two passes could not be distinguished
        raise RoseError("A model is checked against another one; load the checkpoint and the dense model apart.")
    networks, methods = (Network(dense), Network(pruned)), several(methods)
    pairs = pair_layers(*networks)
    streams: dict[str, Tensor] = {}
    if tokens is not None:
        check_streams(networks[1], tokens, held_out)
        streams = check_streams(networks[0], tokens, held_out)
    blocks = 1 + max(layer.block_index for layer, _ in pairs)
    mu = correction_damping(networks[0].config.hidden_size, 1 if tokens is None else tokens.numel(), blocks)
    precision = networks[0].precision(compute)
    yardsticks = Yardsticks(methods, block_size, mu, precision.products)
    meter, state = Meter(progress, blocks, len(pairs)), _Checking(networks, pairs)
    state.compare_weights(meter, 1.0 if tokens is None else WEIGHED)
    yield state.result()
    if tokens is None:
        return
    state.facts = {"methods": methods, "tokens": tokens.numel(), "bos_token": networks[0].bos_in_front(tokens)}
    state.facts["environment"] = precision.environment(networks[0].device)
    if not any(network.is_streamed for network in networks):
        which = "calibration" if held_out is None and windows is None else "held-out"
        read = next(each for each in (windows, held_out, tokens) if each is not None)
        for perplexities, number_read in _perplexities(dense, pruned, read):
            meter.tell_share("evaluate", 0, WEIGHED + (EVALUATED - WEIGHED) * number_read / len(read))
            state.facts |= perplexities | {"evaluated_on": f"{number_read} × {read.shape[1]} {which} tokens"}
        yield state.result()
    for index in state.measure_errors(streams, precision, yardsticks, meter):
        if index < blocks - 1:
            yield state.result()
    meter.tell("done", blocks - 1, 1.0)
    yield state.result()


class _Checking:
    """What is known of a checkpoint so far."""

    def __init__(self, networks: tuple[Network, Network], pairs: Sequence[Pair]) -> None:
        self.networks, self.pairs = networks, pairs
        self.measured: dict[str, _Measured] = {}  # by layer
        self.tensors: list[Row] = []  # of other tensors
        self.drifts: list[dict[str, Any]] = []
        self.rotated: list[str] = []  # output projections
        self.in_basis: set[str] = set()  # and their values
        self.facts: dict[str, Any] = {"methods": [], "tokens": 0, "bos_token": None}  # for the summary

    def compare_weights(self, meter: Meter, share: float) -> None:
        """Compares all weights of both models, which is `share` of the work."""
        for block in walk_both(self.networks, self.pairs, {}):
            for pair in block.pairs:
                weight, after = pair[0].weight, pair[1].weight.to(pair[0].weight.device)
                rank = pair[1].low_rank[0].shape[1] if pair[1].low_rank else 0
                measured = _Measured(pair[0], weight_change(weight, after), sample(weight), sample(after), rank)
                self.measured[pair[0].name] = measured
                meter.layers_done += share == 1.0
            if block.aligned is not None:
                self.rotated += block.aligned.outputs
                self.in_basis |= {*block.aligned.layers}
            self.tensors += others_in_block(f"{self.networks[0].prefix}.{block.index}", block.modules, block.pairs)
            meter.tell_share("check", block.index, share * (block.index + 1) / meter.blocks, block.pairs[-1][0].name)
        self.tensors += others_outside(*self.networks)

    def measure_errors(
        self, streams: Mapping[str, Tensor], precision: Precision, yardsticks: Yardsticks, meter: Meter
    ) -> Iterator[int]:
        """Measures errors, and yields the index of each decoder block that is done."""

        def tell(stage: str, index: int, within: float, name: str | None = None) -> None:
            share = EVALUATED + (1 - EVALUATED) * (index + within) / meter.blocks
            meter.tell_share(stage, index, share, name)

        for block in walk_both(self.networks, self.pairs, streams, precision, partial(tell, "calibrate")):
            for place, pair in enumerate(block.pairs):
                name = pair[0].name
                self.measured[name] = _with_errors(self.measured[name], pair, block, yardsticks)
                meter.layers_done += 1
                tell("check", block.index, 0.5 + 0.5 * (place + 1) / len(block.pairs), name)
            self.drifts.append({"block_index": block.index, "drift": block.drift})
            yield block.index

    def result(self) -> CheckpointCheck:
        """The verdicts on what was measured."""
        changes = {name: (layer.layer, layer.change) for name, layer in self.measured.items()}
        missing = Gone.find(changes, self.networks[0].config)
        by_weights = _judge_weights(self.measured)
        maker, measured = _maker(self.measured, by_weights)  # before errors are judged: reasons name the method
        judged = _judge(measured, by_weights)
        for name, verdict in judged.items():
            suffix = ROTATED * (name in self.in_basis) + missing.says(name, measured[name].change)
            judged[name] = replace(verdict, reason=verdict.reason + suffix)
        summary = _summary(measured, judged) | maker | {"drift": [*self.drifts], "rotated_heads": self.rotated}
        summary |= {"gone": missing.row(layer.change for layer in measured.values())} | self.facts
        return CheckpointCheck(_table(measured, judged), table_of(self.tensors), summary)


def _perplexities(dense: nn.Module, pruned: nn.Module, windows: Tensor) -> Iterator[tuple[dict[str, Any], int]]:
    """Perplexity and losses by window of both models, and the number of windows, until these decide; each time twice
    as many."""
    losses: dict[str, Tensor] = {stage: torch.empty(0, dtype=torch.float64) for stage in ("before", "after")}
    number_read = 0
    while number_read < len(windows):
        more = windows[number_read : max(FIRST_READ, 2 * number_read)]
        number_read += len(more)
        perplexities: dict[str, Any] = {}
        for stage, model in (("before", dense), ("after", pruned)):
            losses[stage] = torch.cat([losses[stage], window_losses(model, more)])
            perplexities[f"perplexity_{stage}"] = perplexity_of(losses[stage])
            perplexities[f"losses_{stage}"] = [] if losses[stage].isnan().any() else losses[stage].tolist()
        yield perplexities, number_read
        if is_decided(perplexities):
            return


def pair_layers(dense: Network, pruned: Network) -> list[Pair]:
    """The layers of both models by name.

    Raises:
        RoseError: other layers, other shapes, or weights that are not in memory.
    """
    dense.check_weights()
    pruned.check_weights()
    dense_layers, pruned_layers = ({layer.name: layer for layer in network.layers} for network in (dense, pruned))
    names = (name for name in (*dense_layers, *pruned_layers) if (name in dense_layers) != (name in pruned_layers))
    if name := next(names, None):
        raise RoseError(
            f"The checkpoint has {len(pruned_layers)} layers and the dense model {len(dense_layers)}; {name} is only "
            f"in the {'dense model' if name in dense_layers else 'checkpoint'}. Give its own dense model."
        )
    for name, layer in dense_layers.items():
        shape, pruned_shape = (tuple(each.weight.shape) for each in (layer, pruned_layers[name]))
        if shape != pruned_shape:
            raise RoseError(
                f"{name} is of shape {pruned_shape} in the checkpoint and of {shape} in the dense model; a model that "
                "was made smaller has no counterpart layer by layer, so give the dense model of that shape."
            )
    return [(layer, pruned_layers[name]) for name, layer in dense_layers.items()]


def _with_errors(measured: _Measured, pair: Pair, block: BlockInputs, yardsticks: Yardsticks) -> _Measured:
    """A layer whose decoder block is present, with its errors."""
    layer, weight, change = pair[0], pair[0].weight, measured.change
    after = pair[1].weight.to(weight.device)
    inputs, held_out = (block.inputs.get(name, {}).get(layer.name) for name in ("calibration", "held_out"))
    # None if an earlier layer has put out NaN or infinity.
    inputs, held_out = (
        each if each is not None and each.statistics.diagonal.isfinite().all() else None for each in (inputs, held_out)
    )
    if inputs is None:
        return measured
    if change.misfits:
        streams = [inputs, held_out] if held_out is not None else [inputs]
        change = replace(change, misfits=with_inputs(change.misfits, weight, after, streams))
    if change.not_finite or change.is_untouched:
        return replace(measured, change=change)
    costs, nearest = yardsticks.measure(weight, after, change, inputs, held_out)
    return replace(measured, change=change, costs=costs, nearest=nearest)


def _judge(measured: Mapping[str, _Measured], judged_by_weights: Mapping[str, LayerVerdict]) -> dict[str, LayerVerdict]:
    """A verdict for each layer, by weights and errors. Errors accuse no layer behind a layer with wrong weights:
    nothing was compensated for the outputs of such a layer."""
    judged: dict[str, LayerVerdict] = {}
    wrong_before = ""
    for name, layer in measured.items():
        by_weights = verdict = judged_by_weights[name]
        if verdict.verdict == Verdict.OTHER_MODEL and not layer.change.fate:
            verdict = _other_layer(name, measured, verdict)
        elif layer.costs is not None and not verdict.is_wrong:
            verdict = judge_costs(verdict, layer.costs, layer.change, layer.nearest)
            if wrong_before and verdict.is_wrong:
                behind = f"It reads outputs of {wrong_before}, which is wrong: mend that layer, and check again."
                verdict = replace(by_weights, reason=f"{verdict.reason} {behind}")
        judged[name] = verdict
        wrong_before = wrong_before or (name if by_weights.is_wrong else "")
    return judged


def _judge_weights(measured: Mapping[str, _Measured]) -> dict[str, LayerVerdict]:
    """A verdict for each layer from the weights alone.

    A method that only masks moves weights, too, towards the dense model, once pruning has changed what a layer reads.
    If the first pruned layer has not moved, layers of its decoder block may stay as well.
    """
    peers = Peers.of([layer.change for layer in measured.values()])
    first = next((each for each in measured.values() if each.change.zeros > each.change.zeros_before), None)
    begins = first.layer.block_index if first and first.change.moved <= MOVED else None
    judged = {}
    for name, layer in measured.items():
        may_stay = layer.layer.block_index == begins
        judged[name] = judge_weights(layer.change, replace(peers, are_moved=False) if may_stay else peers)
        if layer.rank and judged[name].verdict == Verdict.NOT_PRUNED:
            reason = f"The layer is the sum of a sparse part and a part of rank {layer.rank}, so it has no zeros."
            judged[name] = LayerVerdict(Verdict.NO_FAULT, reason, False)
    return judged


def _other_layer(name: str, measured: Mapping[str, _Measured], verdict: LayerVerdict) -> LayerVerdict:
    """The verdict on a layer unlike its dense weights, with the dense layer that it is like, if there is one."""
    layer = measured[name]
    highest, nearest = 0.0, ""
    for other, candidate in measured.items():
        if other != name and candidate.change.shape == layer.change.shape:
            dense_sample = torch.where(layer.sample != 0, candidate.dense_sample, 0)
            cosine = torch.cosine_similarity(layer.sample, dense_sample, dim=0).item()
            highest, nearest = max((highest, nearest), (cosine, other))
    if highest < UNLIKE:
        return verdict
    itself = number(layer.change.cosine, 2)
    reason = f"Kept weights are like those of {nearest} (cosine {highest:.2f}; {itself} with its own dense ones)."
    return LayerVerdict(Verdict.OTHER_MODEL, reason, True)


def _maker(
    measured: Mapping[str, _Measured], by_weights: Mapping[str, LayerVerdict]
) -> tuple[dict[str, Any], Mapping[str, _Measured]]:
    """`nearest`: the method with the nearest masks, None without masks or methods; `method`: the same, None where it
    has not made nearly all of them. Layers in which another method does the same get its name."""
    sane = [layer for name, layer in measured.items() if not by_weights[name].is_wrong] or [*measured.values()]
    maker = maker_of([layer.nearest for layer in sane if layer.nearest])  # broken layers say nothing about the method
    if (method := maker["nearest"]) is None:
        return maker, measured
    called = dict(measured)
    for name, layer in measured.items():
        for target in (method["target"], "layer"):
            if (nearest := layer.nearest) and nearest.tried.get((method["name"], target)) == nearest.shared:
                called[name] = replace(layer, nearest=replace(nearest, method=method["name"], target=target))
                break
    return maker, called


def _table(measured: Mapping[str, _Measured], judged: Mapping[str, LayerVerdict]) -> pd.DataFrame:
    rows = []
    for name, layer in measured.items():
        change = layer.change
        row: dict[str, Any] = {
            "layer": name,
            "block_index": layer.layer.block_index,
            "projection": layer.layer.projection,
            **vars(judged[name]),
            "rows": change.shape[0],
            "columns": change.shape[1],
            **{name: getattr(change, name) for name in ("sparsity", "zeros", "zeros_before")},
            "pattern": str(change.pattern),
            "broken_groups": change.pattern.broken,
            **{name: getattr(change, name) for name in ("moved", "change", "cosine", "rounded")},
            "levels": change.grid.levels if change.grid else None,
            "empty_rows": len(change.empty_rows),
            "empty_columns": len(change.empty_columns),
            "misfits": " ".join(says_part(part) for part in change.misfits[:MISFITS]),
        }
        if layer.costs is not None:
            row |= layer.costs.row()
        if nearest := layer.nearest:
            row |= {"nearest_method": nearest.method, "nearest_target": nearest.target}
            row |= {"agreement": nearest.shared.jaccard, "agreement_by_chance": nearest.shared.chance}
        rows.append(row)
    return pd.DataFrame(rows)


def _summary(measured: Mapping[str, _Measured], judged: Mapping[str, LayerVerdict]) -> dict[str, Any]:
    changes = [layer.change for layer in measured.values()]
    size, zeros = sum(change.size for change in changes), sum(change.zeros for change in changes)
    patterns = Counter(str(change.pattern) for change in changes if change.zeros > change.zeros_before)
    return {
        "layers": len(changes),
        "weights": size,
        "zeros": zeros,
        "zeros_before": sum(change.zeros_before for change in changes),
        "sparsity": zeros / size,
        "pattern": patterns.most_common(1)[0][0] if patterns else "none",
        "verdicts": dict(Counter(verdict.verdict for verdict in judged.values()).most_common()),
    }


def common_masks(first: nn.Module, second: nn.Module) -> pd.DataFrame:
    """How far two checkpoints of one model remove the same weights: layer, jaccard, and chance of two random masks.

    Raises:
        RoseError: models of different shapes.
    """
    rows, networks = [], (Network(first), Network(second))
    for block in walk_both(networks, pair_layers(*networks), {}):
        for layer, other in block.pairs:
            shared = same_removed(layer.weight == 0, other.weight.to(layer.weight.device) == 0)
            rows.append({"layer": layer.name, "jaccard": shared.jaccard, "chance": shared.chance})
    return pd.DataFrame(rows)


def better_by_layer(first: CheckpointCheck, second: CheckpointCheck, names: tuple[str, str]) -> pd.DataFrame:
    """Which of two checks has the lower error in each layer, each on the inputs of its own checkpoint.

    Returns:
        layer, error (in the first), other_error, and better: one of `names`, or "no clear difference" if errors are
        within a tenth. Layers without both errors have no row. Errors are held out if both checks have these.
    """
    tables = first.layers.set_index("layer"), second.layers.set_index("layer")
    by = next((name for name in ERRORS if all(name in table and table[name].notna().any() for table in tables)), None)
    rows: list[dict[str, Any]] = []
    for layer in tables[0].index.intersection(tables[1].index) if by else ():
        error, other = (float(table.loc[layer, by]) for table in tables)
        if error == error and other == other:  # neither is NaN
            better = EVEN if max(error, other) <= CLEARLY * min(error, other) else names[int(other < error)]
            rows.append({"layer": layer, "error": error, "other_error": other, "better": better})
    return pd.DataFrame(rows, columns=["layer", "error", "other_error", "better"])
