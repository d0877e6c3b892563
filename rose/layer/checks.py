"""Checks of a layer's numbers: independent measurements of one error, and guarantees of a run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from rose.errors import RoseError
from rose.layer import error
from rose.layer.hessian import damp
from rose.layer.methods import LayerResult, prune_layer
from rose.layer.pattern import DAMPING, Pattern, parse_sparsity
from rose.layer.statistics import InputStatistics

Status = Literal["pass", "look", "fail"]

# float32 sums over a layer are exact to about five digits, so three sound measurements agree to 1e-3 with room to
# spare. Weights stored in half precision are rounded after the sweep has counted its error, which adds about 1e-2.
AGREE, AGREE_ROUGHLY = 1e-3, 1e-2
# Held-out over calibration error. Above it the fit is to the calibration tokens as much as to the language; that is
# a reason to calibrate on more of them, not a mistake.
OVERFIT = 1.5


@dataclass(frozen=True)
class Check:
    """One judgement."""

    name: str
    status: Status  # "look" needs a person to look; it is no failure
    finding: str
    limit: str  # the condition for "pass", in words


def worst(checks: Sequence[Check]) -> Status:
    """The worst status; "pass" without checks."""
    return max((check.status for check in checks), key=("pass", "look", "fail").index, default="pass")


@dataclass(frozen=True)
class ErrorMeasures:
    """One layer's error, measured three times: squared, and summed over tokens and output channels."""

    method: str
    quadratic_form: float  # tr(ΔW H ΔWᵀ)
    sweep_sum: float  # Σe² − λ‖ΔW‖²
    direct: float | None  # ‖(W − Ŵ)Xᵀ‖² on the calibration tokens, None without tokens
    dense: float  # tr(W H Wᵀ), to which errors are relative

    @property
    def disagreement(self) -> float:
        """(largest − smallest) / largest; 0 where all are 0, infinite where a measure is infinite or NaN."""
        values = [self.quadratic_form, self.sweep_sum, *([] if self.direct is None else [self.direct])]
        if not all(map(math.isfinite, values)):
            return math.inf
        largest = max(abs(value) for value in values)
        return (max(values) - min(values)) / largest if largest > 0 else 0.0

    @property
    def relative_error(self) -> float:
        """The quadratic form relative to the dense output; infinite if only the dense output is zero."""
        return error.ratio(self.quadratic_form, self.dense)

    @property
    def check(self) -> Check:
        """Whether the measures agree."""
        gap = self.disagreement
        status: Status = "pass" if gap <= AGREE else "look" if gap <= AGREE_ROUGHLY else "fail"
        finding = f"{'Two' if self.direct is None else 'Three'} measures differ by {gap:.1e} of the largest"
        finding = finding if gap < math.inf else "a measure is not finite"
        return Check("Measures agree", status, finding, f"at most {AGREE:g}; fails above {AGREE_ROUGHLY:g}")


class DirectError:
    """‖(W − Ŵ)Xᵀ‖² of several Ŵ by name, and ‖WXᵀ‖² (`dense`), from batches of inputs; W and Ŵ (out, in)."""

    def __init__(self, weight: Tensor, pruned: Mapping[str, Tensor]) -> None:
        self._zero = torch.zeros_like(weight)
        self._weight, self._pruned = weight, dict(pruned)
        self.tokens, self.dense = 0, 0.0
        self.errors = dict.fromkeys(pruned, 0.0)

    def update(self, inputs: Tensor) -> None:
        """Adds inputs, (tokens, in)."""
        inputs = inputs.to(self._weight.device)
        self.tokens += inputs.shape[0]
        self.dense += error.direct_error(self._weight, self._zero, inputs)
        for name, pruned in self._pruned.items():
            self.errors[name] += error.direct_error(self._weight, pruned, inputs)


def measure_error(
    weight: Tensor, statistics: InputStatistics, result: LayerResult, direct: float | None = None
) -> ErrorMeasures:
    """Measures of a result; `weight` is W, (out, in), before pruning, and `direct` the error of `DirectError` on the
    tokens of the `statistics`."""
    hessian = statistics.hessian
    change = error.difference(weight, result.weight)
    # Dead columns are cleared before the sweep begins, so the sweep does not count them.
    live = change.masked_fill(statistics.dead, 0)
    return ErrorMeasures(
        method=result.method,
        quadratic_form=error.quadratic_form(change, hessian),
        sweep_sum=error.sweep_error(result.column_error, live, result.added_damping),
        direct=direct,
        dense=error.quadratic_form(weight, hessian),
    )


@dataclass(frozen=True)
class CurvePoint:
    """Relative errors of pruning on the first `tokens` tokens."""

    tokens: int
    calibration_error: float  # on these
    held_out_error: float | None  # on inputs that no calibration has used
    damping: float
    is_damping_raised: bool = False  # above the requested one


class CalibrationCurve:
    """Prunes a layer each time the calibration inputs reach a length.

    The gap between the two errors is over-fitting. Once the held-out error stops falling, more tokens do not help.
    """

    def __init__(
        self, weight: Tensor, held_out: InputStatistics | None, lengths: Sequence[int], **options: Any
    ) -> None:
        """`held_out`: statistics of inputs that are not fed here; `lengths` in tokens; `options` of `prune_layer`."""
        self._lengths = sorted(set(lengths))
        if not self._lengths or self._lengths[0] < 1:
            raise RoseError("Give at least one calibration length of at least 1 token.")
        self._weight, self._held_out, self._options = weight, held_out, options
        self._statistics = InputStatistics(weight.shape[1], weight.device)
        self.points: list[CurvePoint] = []

    def update(self, inputs: Tensor) -> None:
        """Adds inputs, (tokens, in), and prunes at every length reached; inputs past the last length are ignored."""
        while len(inputs) and len(self.points) < len(self._lengths):
            part = inputs[: self._lengths[len(self.points)] - self._statistics.tokens]
            inputs = inputs[len(part) :]
            self._statistics.update(part)
            if self._statistics.tokens == self._lengths[len(self.points)]:
                self.points.append(self._measure())

    def _measure(self) -> CurvePoint:
        result = prune_layer(self._weight, self._statistics, **self._options)
        held_out = None
        if self._held_out is not None:
            held_out = error.relative_error(self._weight, result.weight, self._held_out.hessian)
        is_raised = result.damping > self._options.get("damping", DAMPING)
        return CurvePoint(self._statistics.tokens, result.relative_error, held_out, result.damping, is_raised)


def prefix_lengths(samples: int, length: int) -> list[int]:
    """1, 2, 4, … and all samples, in tokens."""
    counts = [2**power for power in range(samples.bit_length()) if 2**power < samples]
    return [count * length for count in [*counts, samples]]


def check_overfitting(calibration_error: float, held_out_error: float | None) -> Check | None:
    """Compares the held-out with the calibration error; None if nothing was held out."""
    if held_out_error is None or held_out_error != held_out_error:
        return None
    name = "Over-fitting"
    limit = f"held-out error at most {OVERFIT:g} times the calibration error; fails where it is above 1"
    if calibration_error <= 0:
        return Check(name, "pass" if held_out_error <= 0 else "look", "no calibration error to compare with", limit)
    ratio = held_out_error / calibration_error
    # Above 1 a layer that puts out 0 would be better.
    status: Status = "fail" if held_out_error > 1 else "look" if ratio > OVERFIT else "pass"
    return Check(name, status, f"held-out error {held_out_error:.4f} is {ratio:.2f} times the calibration error", limit)


@dataclass(frozen=True)
class RealisedSparsity:
    """The requested and the realised sparsity of a result."""

    method: str
    unit: str  # of the promised count: "block", "row", "layer", "group" (N:M), or "parameters" (sparse plus low rank)
    units: int
    requested: float  # fraction of the layer's weights
    realised: float
    deviation: int  # largest difference from the promised count in any unit, in weights
    allowed: int  # the deviation that rounding of a rank may cause
    left: int  # removed weights that are not zero; always 0 beside a low-rank part
    of_unit: tuple[int, int]  # the promised count of the largest unit, and its weights

    @property
    def check(self) -> Check:
        """Whether every unit has exactly its promised count."""
        good = self.deviation <= self.allowed and self.left == 0
        per = {"group": "N:M group", "parameters": "layer, in parameters"}.get(self.unit, self.unit)
        finding = f"{100 * self.realised:.3f} % removed of {100 * self.requested:.3f} % asked; "
        finding += f"largest deviation {_weights(self.deviation)} per {per}, over {self.units}"
        if self.left:
            finding += f"; {_weights(self.left)} marked as removed but not zero"
        limit = "exact in every " + per if not self.allowed else f"at most {_weights(self.allowed)}, from rounding"
        return Check("Sparsity as asked", "pass" if good else "fail", finding, limit)


def _weights(count: int) -> str:
    return f"{count} weight" if count == 1 else f"{count} weights"


def realised_sparsity(result: LayerResult, sparsity: float | str | Pattern) -> RealisedSparsity:
    """Counts removed weights in the units of the method; `sparsity` as it was requested."""
    pattern = parse_sparsity(sparsity)
    unit, removed, promised, allowed = _promise(result, pattern)
    rows, columns = result.mask.shape
    sizes = {"group": pattern.of, "row": columns, "block": rows * max(result.order.widths)}
    return RealisedSparsity(
        method=result.method,
        unit=unit,
        units=removed.numel(),
        requested=pattern.ratio,
        realised=result.sparsity,
        deviation=int((removed - promised).abs().max()),
        allowed=allowed,
        left=0 if result.low_rank is not None else int((result.weight[result.mask] != 0).sum()),
        of_unit=(int(promised.max()), sizes.get(unit, rows * columns)),
    )


def _promise(result: LayerResult, pattern: Pattern) -> tuple[str, Tensor, Tensor, int]:
    """The unit, removed and promised weights per unit, and the deviation that rounding may cause."""
    mask, (rows, columns) = result.mask, result.mask.shape
    if pattern.is_grouped:
        groups = mask.view(rows, columns // pattern.of, pattern.of).sum(-1).flatten()
        return "group", groups, torch.full_like(groups, pattern.of - pattern.keep), 0
    if result.low_rank is not None:
        removed = torch.tensor([mask.numel() - result.parameters])
        # The rank is rounded down, and each row of the sparse part keeps a whole number of weights.
        return "parameters", removed, torch.tensor([pattern.count(mask.numel())]), rows + columns + rows
    if result.budget == "row":
        per_row = mask.sum(1)
        return "row", per_row, torch.full_like(per_row, pattern.count(columns)), 0
    if result.budget == "layer":
        return "layer", mask.sum().cpu().view(1), torch.tensor([pattern.count(mask.numel())]), 0
    visited = mask.sum(0).cpu()[result.order.permutation.cpu()].split(list(result.order.widths))
    per_block = torch.stack([block.sum() for block in visited])
    return "block", per_block, torch.tensor([pattern.count(rows * width) for width in result.order.widths]), 0


def check_inputs(statistics: InputStatistics, damping: float | None) -> list[Check]:
    """Checks that inputs are finite, live and enough, and that H can be factorized with the requested damping, relative
    to the mean of diag(H). None skips the factorization, which is most of the work."""
    # |H_ij|² ≤ H_ii H_jj, so the diagonal shows every NaN and infinity of the inputs.
    wrong = int((~torch.isfinite(statistics.diagonal)).sum())
    columns, dead, tokens = statistics.columns, int(statistics.dead.sum()), statistics.tokens
    seen = f"{wrong} of {columns} input columns saw NaN or infinity" if wrong else f"all {columns} columns are finite"
    zero = f"{dead} of {columns} input columns were zero on every token"
    least = "at least as many tokens as columns; with fewer, only damping makes H definite"
    enough: Status = "look" if tokens < columns else "pass"
    checks = [
        Check("Finite inputs", "fail" if wrong else "pass", seen, "no NaN, no infinity"),
        Check("Live columns", "look" if dead else "pass", zero, "none dead; a dead column's weights are removed first"),
        Check("Enough tokens", enough, f"{tokens} tokens for {columns} columns", least),
    ]
    if not wrong and damping is not None:
        try:
            used = damp(statistics.hessian, damping).damping
            checks.append(judge_damping(used, damping, used > damping))
        except RoseError as problem:
            checks.append(replace(judge_damping(damping, damping, False), status="fail", finding=str(problem)))
    return checks


def judge_damping(used: float, damping: float, is_raised: bool) -> Check:
    """Checks the damping of a run. An expert with few tokens may have more than requested without `is_raised`: see
    `LayerRecord.is_damping_raised`."""
    limit = f"{damping:g} of the mean diagonal, as asked"
    if is_raised:
        return Check("Damping as asked", "look", f"raised from {damping:g} to {used:g}", limit)
    return Check("Damping as asked", "pass", f"{used:g} was enough to factorize H", limit)
