"""What to think of the layers of a checkpoint, given what became of each: a verdict with a reason, by one rule.

A layer is judged by itself, and by its peers: one that differs from nearly all others in what should be the same all
over the model has probably met with an accident.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from rose.layer.change import UNLIKE, WeightChange
from rose.layer.error import ratio
from rose.layer.registry import METHODS
from rose.model.check.costs import Costs, Recognized, Rival
from rose.wording import percent, whole

AS_EXPECTED = "as expected"
NOT_PRUNED = "not pruned"
MASK_ALONE = "mask without compensation"
WORSE_THAN_WANDA = "worse than Wanda"
BACKWARDS = "compensated backwards"
ZEROS_LOST = "zeros lost"
PATTERN_BROKEN = "pattern broken"
OTHER_SPARSITY = "other sparsity"
OTHER_MODEL = "not the same model"
NUMBERS_BROKEN = "numbers broken"
TIE_TORN = "tie torn"
VERDICTS = (
    *(NUMBERS_BROKEN, OTHER_MODEL, PATTERN_BROKEN, ZEROS_LOST, TIE_TORN, OTHER_SPARSITY, BACKWARDS, WORSE_THAN_WANDA),
    *(MASK_ALONE, NOT_PRUNED, AS_EXPECTED),
)  # the worst first
MOVED = 1e-3  # share of kept weights that differ, above which they were moved and not only masked
FEW_ZEROS = 0.1  # of the peers' share of zeros: a layer with less has lost them
ROUNDED = 0.01  # of a layer's norm: no more is changed by rounding, such as after a rotation; removed weights are more
PEERS = 0.8  # share of the pruned layers that must agree before one that does not is remarkable
NEAR, FAR = 0.005, 0.02  # sparsities that agree, and those that do not
CLEARLY = 1.1  # ratio of two errors that are not the same
OTHER_TEXT = 1.5  # ratio to Wanda's error that compensation for another text does not come to where tokens agree
MATTERS = 0.002  # of the layer's output: an error that is not so much larger than Wanda's is no fault
COMPARED = ("sparsegpt", "rose")  # methods that a reason names
COMMON = 0.3  # share of 32 columns at one value other than 0, which says that zeros were moved there


@dataclass(frozen=True)
class Verdict:
    """What to think of one layer, or of one other tensor.

    Attributes:
        verdict: one of `VERDICTS`.
        reason: a sentence with the number behind it.
        is_wrong: whether something is wrong; a mask without compensation can be what was meant.
    """

    verdict: str
    reason: str
    is_wrong: bool


@dataclass(frozen=True)
class Peers:
    """What the pruned layers of a checkpoint have in common; None where they have nothing.

    Attributes:
        sparsity: share of zeros, the median.
        agree: whether `PEERS` of them have that sparsity.
        pattern: N:M of nearly all.
        are_moved: whether kept weights of nearly all have moved.
    """

    sparsity: float | None
    agree: bool
    pattern: str | None
    are_moved: bool

    @classmethod
    def of(cls, changes: Sequence[WeightChange]) -> Peers:
        pruned = [one for one in changes if one.zeros > one.zeros_before and one.zeros < one.size]
        if len(pruned) < 2:
            return cls(None, False, None, False)
        middle = median(one.sparsity for one in pruned)

        def most(holds: Sequence[bool]) -> bool:
            return sum(holds) >= PEERS * len(pruned)

        grouped = [str(one.pattern) for one in pruned if one.pattern.name == "N:M"]
        usual = max(set(grouped), key=grouped.count, default=None)
        return cls(
            middle,
            most([abs(one.sparsity - middle) <= NEAR for one in pruned]),
            usual if usual and most([str(one.pattern) == usual for one in pruned]) else None,
            most([one.moved > MOVED for one in pruned]),
        )


def judge_weights(change: WeightChange, peers: Peers) -> Verdict:
    """The verdict on one layer from the weights alone."""
    for rule in (_numbers, _likeness, _pattern, _zeros, _sparsity, _mask_alone):
        found = rule(change, peers)
        if found:
            return found
    if change.zeros <= change.zeros_before:
        is_same = change.is_untouched and not change.rounded
        return Verdict(NOT_PRUNED, "It is as in the dense model." if is_same else _says_moved(change), False)
    return Verdict(AS_EXPECTED, _says_kept(change), False)


def _says_kept(change: WeightChange) -> str:
    return f"{percent(change.sparsity)} zeros, {says_pattern(change.pattern)}. {_says_moved(change)}"


def says_pattern(pattern: object) -> str:
    """The pattern of a layer, or its name, for people."""
    how = {"row": "the same number in every row", "block": "the same number in every block of 128 columns"}
    return {**how, "layer": "unstructured", "none": "no pattern"}.get(str(pattern), str(pattern))


def _says_moved(change: WeightChange) -> str:
    if change.moved <= MOVED:
        how = f", rounded to {change.rounded}" if change.rounded else ""
        return f"Kept weights are those of the dense model{how}."
    said = f"Kept weights moved by {percent(change.change)} of their norm"
    if change.grid is None:
        return f"{said}."
    where = "row" if change.grid.group is None else f"{change.grid.group} columns of a row"
    return f"{said} and lie on a grid of {change.grid.levels} values for each {where}."


def _numbers(change: WeightChange, _peers: Peers) -> Verdict | None:
    if change.not_finite:
        said = f"{whole(change.not_finite)} of {whole(change.size)} weights are NaN or infinite."
        return Verdict(NUMBERS_BROKEN, said, True)
    if change.zeros == change.size and change.zeros_before < change.size:
        return Verdict(NUMBERS_BROKEN, f"All {whole(change.size)} weights are zero.", True)
    return None


def _likeness(change: WeightChange, _peers: Peers) -> Verdict | None:
    if change.zeros == change.size or change.cosine >= UNLIKE:
        return None
    said = f"Its weights have nothing to do with the dense ones (cosine {change.cosine:.2f})."
    if change.reordered:
        said = f"Its {change.reordered} are those of the dense layer in another order."
    return Verdict(OTHER_MODEL, said, True)


def _pattern(change: WeightChange, peers: Peers) -> Verdict | None:
    found = change.pattern
    if found.broken and found.first_broken:
        row, column = found.first_broken
        groups = change.size // found.of
        said = (
            f"{whole(found.broken)} of {whole(groups)} groups keep more than {found.keep} of {found.of} weights; "
            f"the first is in row {row}, columns {column} to {column + found.of - 1}."
        )
        return Verdict(PATTERN_BROKEN, said, True)
    has_zeros = change.zeros > change.zeros_before and change.sparsity > FEW_ZEROS * (peers.sparsity or 0)
    if peers.pattern and has_zeros and str(found) != peers.pattern:
        said = f"It is not {peers.pattern}, as other layers are: {percent(change.sparsity)} zeros"
        return Verdict(PATTERN_BROKEN, f"{said}, {says_pattern(found)}.", True)
    return None


def _zeros(change: WeightChange, peers: Peers) -> Verdict | None:
    if change.common >= COMMON:
        said = (
            f"{percent(change.common, 0)} of the weights stand at one value other than zero and "
            f"{percent(change.sparsity)} at zero: a grid with an offset has moved the zeros."
        )
        return Verdict(ZEROS_LOST, said, True)
    if peers.sparsity and change.change > ROUNDED and change.sparsity < FEW_ZEROS * peers.sparsity:
        known = f"{percent(change.sparsity)} zeros, where other pruned layers have {percent(peers.sparsity)}"
        return Verdict(ZEROS_LOST, f"{known}; its weights were moved.", True)
    if change.refilled > MOVED * change.size and change.zeros < change.zeros_before:  # else it was pruned once more
        return Verdict(ZEROS_LOST, f"{whole(change.refilled)} zeros of the dense model are no zeros any more.", True)
    return None


def _sparsity(change: WeightChange, peers: Peers) -> Verdict | None:
    if not (peers.agree and peers.sparsity and change.zeros > change.zeros_before):
        return None
    if abs(change.sparsity - peers.sparsity) <= FAR:
        return None
    said = f"{percent(change.sparsity)} zeros, where nearly all other layers have {percent(peers.sparsity)}."
    return Verdict(OTHER_SPARSITY, said, True)


def _mask_alone(change: WeightChange, peers: Peers) -> Verdict | None:
    if change.zeros <= change.zeros_before or change.moved > MOVED:
        return None
    return Verdict(MASK_ALONE, _says_kept(change), peers.are_moved)


def judge_costs(verdict: Verdict, costs: Costs, change: WeightChange, nearest: Recognized | None = None) -> Verdict:
    """The verdict on a layer with which nothing is wrong by its weights alone; `nearest`: the method of its mask."""
    if costs.opposite and _is_backwards(costs, costs.opposite):
        alone, opposite = _error_of(costs.mask), _error_of(costs.opposite)
        said = f"{_says_errors(costs)}; its mask alone has {alone:.4f}, and the opposite compensation {opposite:.4f}."
        return Verdict(BACKWARDS, said, True)
    is_mask = verdict.verdict == MASK_ALONE
    if costs.wanda and _is_worse(costs, costs.wanda, CLEARLY if is_mask else OTHER_TEXT):
        wandas = "Wanda's mask, without compensation too," if is_mask else "Wanda's mask"
        said = f"{_says_errors(costs)}; {wandas} has {_error_of(costs.wanda):.4f}."
        if is_mask:
            return Verdict(MASK_ALONE, f"{said} {verdict.reason}", True)
        return Verdict(WORSE_THAN_WANDA, said, True)
    if change.zeros <= change.zeros_before:
        return verdict
    reached = [(METHODS[name].label, value) for name, value in costs.methods.items() if name in COMPARED]
    beside = ", ".join(f"{label} would be at {value:.4f}" for label, value in reached)
    said = f"Error {costs.error:.4f}"
    if costs.recovered is not None:
        said = f"Compensation recovered {percent(costs.recovered, 0)} of what it could: error {costs.error:.4f}"
    mask = ""
    if nearest and nearest.is_same:
        shared = nearest.shared
        whose = METHODS[nearest.method].label + (" towards the dense model" if nearest.target == "dense" else "")
        common, chance = percent(shared.jaccard), percent(shared.chance)
        mask = f" Its mask is that of {whose} ({common} in common; by chance {chance})."
    return replace(verdict, reason=f"{said}{'; ' + beside if beside else ''}.{mask} {verdict.reason}")


def _error_of(one: Costs | Rival) -> float:
    """What a reason names: the error on held-out tokens, where there are any."""
    return one.error if one.held_out_error is None else one.held_out_error


def _errors(*ones: Costs | Rival) -> list[list[float]]:
    """Errors of each on calibration tokens; then on held-out ones, where there are any."""
    held_out = [one.held_out_error for one in ones if one.held_out_error is not None]
    return [[one.error for one in ones], *([held_out] if len(held_out) == len(ones) else [])]


def _says_errors(costs: Costs) -> str:
    on = "calibration tokens" if costs.held_out_error is None else "held-out tokens, and no better on others"
    return f"Its error is {_error_of(costs):.4f} on {on}"


def _is_backwards(costs: Costs, opposite: Rival) -> bool:
    """Whether compensation did clear harm where its opposite would help, by all that is known.

    Compensation for another text may do harm too, and moving weights at random does, but then not their opposites.
    """
    errors = _errors(costs, costs.mask, opposite)
    # ratios of what was found to the two others, where the target makes good what the stream lacks
    found, other = costs.mask.stream_ratio, opposite.stream_ratio
    if found is not None and other is not None:
        errors.append([found, 1.0, ratio(found, other)])
    harms = all(one > CLEARLY * mask and other < mask for one, mask, other in errors)
    return harms and min(one - mask for one, mask, _ in errors) > MATTERS


def _is_worse(costs: Costs, rival: Rival, limit: float) -> bool:
    """Whether a layer is worse than other weights by all that is known: on calibration tokens, on held-out ones, and
    where the target makes good what the residual stream lacks.

    Weights compensated for another text lose on these tokens, the more so where few tokens make up most of a layer's
    output. How far two sets of tokens disagree about an error says how far a third may lie from their mean: so
    much wider is the limit.
    """
    pairs = _errors(costs, rival)
    ratios = [ratio(*pair) for pair in pairs]
    ratios += [] if rival.stream_ratio is None else [rival.stream_ratio]
    disagreement = max(ratio(max(errors), min(errors)) for errors in zip(*pairs, strict=True)) or 1.0
    return min(ratios) > limit * disagreement**0.5 and min(one - two for one, two in pairs) > MATTERS
