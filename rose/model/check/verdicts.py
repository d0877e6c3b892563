"""Verdicts on the layers of a checkpoint, with reasons, by one rule.

A layer is judged by itself and beside its peers: a layer that differs from nearly all others in what should be the same
everywhere has probably met with an accident.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from rose.layer.agreement import ABSURD, EMPTY
from rose.layer.change import UNLIKE, WeightChange
from rose.layer.error import ratio
from rose.layer.registry import METHODS
from rose.model.check.costs import Costs, Recognized, Rival
from rose.model.check.within import LAWFUL, says_part, says_parts, wrong_parts
from rose.wording import listing, number, percent, whole

NO_FAULT = "no fault found"
NOT_PRUNED = "not pruned"
MASK_ALONE = "mask without compensation"
WORSE_THAN_WANDA = "worse than Wanda"
BACKWARDS = "compensated backwards"
ZEROS_LOST = "zeros lost"
PATTERN_BROKEN = "pattern broken"
OTHER_SPARSITY = "other sparsity"
OTHER_MODEL = "unlike the dense model"
NUMBERS_BROKEN = "numbers broken"
PART_BROKEN = "part broken"
TIE_TORN = "tie torn"
VERDICTS = (
    *(NUMBERS_BROKEN, OTHER_MODEL, PART_BROKEN, PATTERN_BROKEN, ZEROS_LOST, TIE_TORN, OTHER_SPARSITY, BACKWARDS),
    *(WORSE_THAN_WANDA, MASK_ALONE, NOT_PRUNED, NO_FAULT),
)  # the worst first
MOVED = 1e-3  # share of kept weights that differ, above which they were moved and not only masked
FEW_ZEROS = 0.1  # of the peers' share of zeros: a layer with less has lost them
ROUNDED = 0.01  # of a layer's norm: no more is changed by rounding, such as after a rotation; removed weights are more
PEERS = 0.8  # share of the pruned layers that must agree before another layer is remarkable
NEAR, FAR = 0.005, 0.02  # sparsities that agree, and those that do not
CLEARLY = 1.1  # ratio of two errors that are not the same
OTHER_TEXT = 1.5  # ratio to Wanda's error that compensation for another text does not come to where tokens agree
MATTERS = 0.002  # of the layer's output: an error that is not so much larger than Wanda's is no fault
COMPARED = ("sparsegpt", "rose")  # methods that a reason names
SMALL, LARGE = 0.7, 1.8  # slopes of kept weights on dense ones outside of which no sane layer lies, at 0.998 to 1.43
EXACTLY = 0.02  # the same where all weights have one factor, which compensation does not leave
CUT = 0.25  # share of the pruned layers that have lost whole rows, above which that was meant
COMMON = 0.3  # share of 32 columns at one value other than 0, which says that zeros were moved there


@dataclass(frozen=True)
class LayerVerdict:
    """The verdict on one layer, or on another tensor."""

    verdict: str  # of `VERDICTS`
    reason: str  # sentences with the numbers behind it
    is_wrong: bool  # a mask without compensation, for example, can be meant


@dataclass(frozen=True)
class Peers:
    """What the pruned layers of a checkpoint have in common."""

    sparsity: float | None = None  # share of zeros, the median
    agree: bool = False  # whether `PEERS` of them have that sparsity
    pattern: str | None = None  # N:M of nearly all
    are_moved: bool = False  # whether kept weights of nearly all have moved
    are_cut: bool = False  # whether many have lost whole rows

    @classmethod
    def of(cls, changes: Sequence[WeightChange]) -> Peers:
        pruned = [change for change in changes if change.zeros_before < change.zeros < change.size]
        if len(pruned) < 2:
            return cls()
        sparsity = median(change.sparsity for change in pruned)

        def most(holds: Sequence[bool]) -> bool:
            return sum(holds) >= PEERS * len(pruned)

        grouped = [str(change.pattern) for change in pruned if change.pattern.name == "N:M"]
        usual = max(set(grouped), key=grouped.count, default=None)
        return cls(
            sparsity,
            most([abs(change.sparsity - sparsity) <= NEAR for change in pruned]),
            usual if usual and most([str(change.pattern) == usual for change in pruned]) else None,
            most([change.moved > MOVED for change in pruned]),
            sum(any(part.kind == EMPTY for part in change.misfits) for change in pruned) >= CUT * len(pruned),
        )


def judge_weights(change: WeightChange, peers: Peers) -> LayerVerdict:
    """The verdict on one layer from the weights alone."""
    rules = (_numbers, _likeness, _pattern, _zeros, _parts, _scale, _sparsity, _mask_alone, _nothing)
    verdict = next(verdict for rule in rules if (verdict := rule(change, peers)))
    lawful = [part for part in change.misfits if part.may_be_lawful]
    if not lawful or verdict.is_wrong:
        return verdict
    return replace(verdict, reason=" ".join([verdict.reason, *map(says_part, lawful), LAWFUL]))


def _nothing(change: WeightChange, _peers: Peers) -> LayerVerdict:
    if change.zeros > change.zeros_before:
        return LayerVerdict(NO_FAULT, _says_kept(change), False)
    is_same = change.is_untouched and not change.rounded
    return LayerVerdict(
        NOT_PRUNED, "All weights are those of the dense model." if is_same else _says_moved(change), False
    )


def _says_kept(change: WeightChange) -> str:
    return f"{percent(change.sparsity)} zeros, {says_pattern(change.pattern)}. {_says_moved(change)}"


def says_pattern(pattern: object) -> str:
    """The pattern of a layer, or its name, for people."""
    how = {"row": "the same number in every row", "block": "the same number in every block of 128 columns"}
    return {**how, "layer": "unstructured", "none": "no pattern"}.get(str(pattern), str(pattern))


def _says_moved(change: WeightChange) -> str:
    if change.moved == 0:
        rounded = f", rounded to {change.rounded}" if change.rounded else ""
        return f"Kept weights are those of the dense model{rounded}."
    if change.moved <= MOVED:
        share = f"{percent(change.moved)} of the kept weights differ from the dense model's"
        return f"{share}, by {percent(change.change)} of the norm of all."
    moved = f"Kept weights moved by {percent(change.change)} of their norm"
    if change.grid is None:
        return f"{moved}."
    where = "row" if change.grid.group is None else f"{change.grid.group} columns of a row"
    return f"{moved} and lie on a grid of {change.grid.levels} values for each {where}."


def _numbers(change: WeightChange, _peers: Peers) -> LayerVerdict | None:
    if change.not_finite:
        reason = f"{whole(change.not_finite)} of {whole(change.size)} weights are NaN or infinite."
        return LayerVerdict(NUMBERS_BROKEN, reason, True)
    absurd = [part for part in change.misfits if part.kind == ABSURD]
    if absurd:
        return LayerVerdict(NUMBERS_BROKEN, says_parts(absurd), True)
    if change.zeros == change.size and change.zeros_before < change.size:
        return LayerVerdict(NUMBERS_BROKEN, f"All {whole(change.size)} weights are zero.", True)
    return None


def _likeness(change: WeightChange, _peers: Peers) -> LayerVerdict | None:
    if change.zeros == change.size or change.cosine >= UNLIKE:
        return None
    reason = f"Kept weights have a cosine of {number(change.cosine, 2)} with the dense ones; {UNLIKE} is the least."
    if change.fate:
        reason = f"It {change.fate}."
    return LayerVerdict(OTHER_MODEL, reason, True)


def _pattern(change: WeightChange, peers: Peers) -> LayerVerdict | None:
    pattern = change.pattern
    if pattern.broken and pattern.first_broken:
        row, column = pattern.first_broken
        groups = change.size // pattern.of
        reason = (
            f"{whole(pattern.broken)} of {whole(groups)} groups keep more than {pattern.keep} of {pattern.of} weights; "
            f"the first is in row {row}, columns {column} to {column + pattern.of - 1}."
        )
        return LayerVerdict(PATTERN_BROKEN, reason, True)
    has_zeros = change.zeros > change.zeros_before and change.sparsity > FEW_ZEROS * (peers.sparsity or 0)
    if peers.pattern and has_zeros and str(pattern) != peers.pattern:
        reason = f"It is not {peers.pattern}, as other layers are: {percent(change.sparsity)} zeros"
        return LayerVerdict(PATTERN_BROKEN, f"{reason}, {says_pattern(pattern)}.", True)
    return None


def _zeros(change: WeightChange, peers: Peers) -> LayerVerdict | None:
    if change.common >= COMMON:
        reason = (
            f"{percent(change.common, 0)} of the weights stand at one value other than zero and "
            f"{percent(change.sparsity)} at zero, as a grid with an offset leaves them."
        )
        return LayerVerdict(ZEROS_LOST, reason, True)
    if peers.sparsity and change.change > ROUNDED and change.sparsity < FEW_ZEROS * peers.sparsity:
        zeros = f"{percent(change.sparsity)} zeros, where other pruned layers have {percent(peers.sparsity)}"
        return LayerVerdict(ZEROS_LOST, f"{zeros}; its weights differ by {percent(change.change)} of their norm.", True)
    if change.refilled > MOVED * change.size and change.zeros < change.zeros_before:  # else it was pruned once more
        return LayerVerdict(
            ZEROS_LOST, f"{whole(change.refilled)} zeros of the dense model are no zeros any more.", True
        )
    return None


def _parts(change: WeightChange, peers: Peers) -> LayerVerdict | None:
    wrong = [part for part in wrong_parts(change.misfits) if part.kind != EMPTY or not peers.are_cut]
    return LayerVerdict(PART_BROKEN, says_parts(wrong), True) if wrong else None


def _scale(change: WeightChange, _peers: Peers) -> LayerVerdict | None:
    is_multiple = change.cosine > 1 - EXACTLY**2 / 8 and abs(change.slope - 1) > EXACTLY
    if change.zeros == change.size or (SMALL < change.slope < LARGE and not is_multiple):
        return None
    return LayerVerdict(OTHER_MODEL, f"Kept weights are {number(change.slope)} times as large as the dense ones.", True)


def _sparsity(change: WeightChange, peers: Peers) -> LayerVerdict | None:
    if not (peers.agree and peers.sparsity and change.zeros > change.zeros_before):
        return None
    if abs(change.sparsity - peers.sparsity) <= FAR:
        return None
    reason = f"{percent(change.sparsity)} zeros, where nearly all other layers have {percent(peers.sparsity)}."
    return LayerVerdict(OTHER_SPARSITY, reason, True)


def _mask_alone(change: WeightChange, peers: Peers) -> LayerVerdict | None:
    if change.zeros <= change.zeros_before or change.moved > MOVED:
        return None
    return LayerVerdict(MASK_ALONE, _says_kept(change), peers.are_moved)


def judge_costs(
    verdict: LayerVerdict, costs: Costs, change: WeightChange, nearest: Recognized | None = None
) -> LayerVerdict:
    """The verdict on a layer whose weights alone show nothing wrong; `nearest`: the method of its mask."""
    error = f"Error on {'calibration' if costs.held_out_error is None else 'held-out'} tokens {_shown_error(costs)}"
    both = "" if costs.held_out_error is None else "; calibration tokens agree"
    if costs.opposite and _is_backwards(costs, costs.opposite):
        alone = f"mask alone {_shown_error(costs.mask)}"
        opposite = f"opposite compensation {_shown_error(costs.opposite)}"
        return LayerVerdict(BACKWARDS, f"{error}, {alone}, {opposite}{both}.", True)
    is_mask = verdict.verdict == MASK_ALONE
    # With fewer tokens than columns, two sets of tokens differ by more than two methods do.
    is_told_apart = is_mask or not costs.has_few_tokens
    if costs.wanda and is_told_apart and _is_worse(costs, costs.wanda, CLEARLY if is_mask else OTHER_TEXT):
        reason = f"{error}, Wanda's mask without compensation {_shown_error(costs.wanda)}{both}."
        if is_mask:
            return LayerVerdict(MASK_ALONE, f"{reason} {verdict.reason}", True)
        return LayerVerdict(WORSE_THAN_WANDA, reason, True)
    if change.zeros <= change.zeros_before:
        return verdict
    reached = [f"{METHODS[name].label} {number(costs.methods[name])}" for name in COMPARED if name in costs.methods]
    parts = [f"Error {number(costs.error)}{f' ({listing(reached)} at this sparsity)' if reached else ''}."]
    if costs.recovered is not None:
        parts.append(f"Compensation recovered {percent(costs.recovered, 0)} of what a least-squares refit would.")
    if nearest and nearest.is_same:
        target = " towards the dense model" if nearest.target == "dense" else ""
        shares = f"{percent(nearest.shared.jaccard)} in common, {percent(nearest.shared.chance)} by chance"
        parts.append(f"Its mask matches that of {METHODS[nearest.method].label}{target} ({shares}).")
    return replace(verdict, reason=" ".join([*parts, verdict.reason]))


def _shown_error(weights: Costs | Rival) -> str:
    """The error on held-out tokens, where there are any."""
    return number(weights.error if weights.held_out_error is None else weights.held_out_error)


def _errors(*weights: Costs | Rival) -> list[list[float]]:
    """Errors of each on calibration tokens; then on held-out ones, where there are any."""
    held_out = [each.held_out_error for each in weights if each.held_out_error is not None]
    return [[each.error for each in weights], *([held_out] if len(held_out) == len(weights) else [])]


def _is_backwards(costs: Costs, opposite: Rival) -> bool:
    """Whether compensation did clear harm where its opposite would help, in all measured errors. Compensation for
    another text may do harm as well, but then its opposite does not help."""
    errors = _errors(costs, costs.mask, opposite)
    # Where the target makes good what the stream lacks: the error by the mask's and by the opposite's.
    to_mask, to_opposite = costs.mask.stream_ratio, opposite.stream_ratio
    if to_mask is not None and to_opposite is not None:
        errors.append([to_mask, 1.0, ratio(to_mask, to_opposite)])
    harms = all(error > CLEARLY * mask and other < mask for error, mask, other in errors)
    return harms and min(error - mask for error, mask, _ in errors) > MATTERS


def _is_worse(costs: Costs, rival: Rival, limit: float) -> bool:
    """Whether a layer is worse than other weights in all measured errors: on calibration tokens, on held-out ones, and
    with the residual stream's lack in the target.

    Weights that were compensated for another text lose on these tokens. How far two sets of tokens disagree about an
    error says how far a third may lie from their mean, so the limit grows with their disagreement.
    """
    pairs = _errors(costs, rival)
    ratios = [ratio(*pair) for pair in pairs]
    ratios += [] if rival.stream_ratio is None else [rival.stream_ratio]
    disagreement = max(ratio(max(errors), min(errors)) for errors in zip(*pairs, strict=True)) or 1.0
    is_clear = min(ratios) > limit * disagreement**0.5
    return is_clear and min(error - other for error, other in pairs) > MATTERS
