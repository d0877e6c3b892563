"""Verdicts on the layers of a checkpoint, with reasons, by one rule.

A layer is judged by itself and beside its peers. Some properties should be the same everywhere; a layer that differs in
them from nearly all others was probably damaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import median

from rose.layer.error import ratio
from rose.layer.registry import METHODS
from rose.model.check import agreement
from rose.model.check.agreement import ABSURD, COLUMN, EMPTY, ROW, Misfit
from rose.model.check.change import UNLIKE, WeightChange
from rose.model.check.costs import Costs, Recognized, Rival
from rose.wording import count, listing, number, percent, sentence, whole

MOVED = 1e-3  # share of kept weights that differ, above which they were moved and not only masked
GRID_ZEROS = 0.3  # share of zeros that rounding alone leaves in a dense layer; a low-rank part or a merge fills them
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
SHOWN = 3  # parts of a layer that a reason names
LAWFUL = "This may be lawful, as compensation changes few rows and columns much; a check with tokens tells."
COMMON = 0.3  # share of 32 columns at one value other than 0, which says that zeros were moved there


class Verdict(StrEnum):
    """The verdicts on a layer or another tensor, the worst first; maps, legends, counts and tables have no others."""

    NUMBERS_BROKEN = "numbers broken"
    OTHER_MODEL = "unlike the dense model"
    PART_BROKEN = "part broken"
    PATTERN_BROKEN = "pattern broken"
    ZEROS_LOST = "zeros lost"
    TIE_TORN = "tie torn"
    OTHER_SPARSITY = "other sparsity"
    BACKWARDS = "compensated backwards"
    WORSE_THAN_WANDA = "worse than Wanda"
    MASK_ALONE = "mask without compensation"
    NOT_PRUNED = "not pruned"
    NO_FAULT = "no fault found"


@dataclass(frozen=True)
class LayerVerdict:
    """The verdict on one layer, or on another tensor."""

    verdict: Verdict
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
    if fault := next(_faults(change, peers), None):
        return LayerVerdict(*fault, True)
    if change.zeros > change.zeros_before:
        is_mask = change.moved <= MOVED
        reason = f"{percent(change.sparsity)} zeros, {says_pattern(change.pattern)}. {_says_moved(change)}"
        verdict = LayerVerdict(Verdict.MASK_ALONE if is_mask else Verdict.NO_FAULT, reason, is_mask and peers.are_moved)
    else:
        is_same = change.is_untouched and not change.rounded
        reason = "All weights are those of the dense model." if is_same else _says_moved(change)
        verdict = LayerVerdict(Verdict.NOT_PRUNED, reason, False)
    lawful = [part for part in change.misfits if part.may_be_lawful]
    if not lawful or verdict.is_wrong:
        return verdict
    return replace(verdict, reason=" ".join([verdict.reason, *map(says_part, lawful), LAWFUL]))


def _faults(change: WeightChange, peers: Peers) -> Iterator[tuple[Verdict, str]]:
    """Verdicts on wrong weights with their reasons, the worst first."""
    pattern, zeros = change.pattern, f"{percent(change.sparsity)} zeros"
    is_empty, is_pruned = change.zeros == change.size, change.zeros > change.zeros_before
    if change.not_finite:
        yield Verdict.NUMBERS_BROKEN, f"{whole(change.not_finite)} of {whole(change.size)} weights are NaN or infinite."
    if absurd := [part for part in change.misfits if part.kind == ABSURD]:
        yield Verdict.NUMBERS_BROKEN, says_parts(absurd)
    if is_empty and change.zeros_before < change.size:
        yield Verdict.NUMBERS_BROKEN, f"All {whole(change.size)} weights are zero."
    if not is_empty and not change.cosine >= UNLIKE:
        cosine = f"Kept weights have a cosine of {number(change.cosine, 2)} with the dense ones; {UNLIKE} is the least."
        yield Verdict.OTHER_MODEL, f"It {change.fate}." if change.fate else cosine
    if pattern.broken and pattern.first_broken:
        row, column = pattern.first_broken
        yield (
            Verdict.PATTERN_BROKEN,
            f"{whole(pattern.broken)} of {whole(change.size // pattern.of)} groups keep more than {pattern.keep} of "
            f"{pattern.of} weights; the first is in row {row}, columns {column} to {column + pattern.of - 1}.",
        )
    is_sparse = is_pruned and change.sparsity > FEW_ZEROS * (peers.sparsity or 0)
    if peers.pattern and is_sparse and str(pattern) != peers.pattern:
        yield (
            Verdict.PATTERN_BROKEN,
            f"It is not {peers.pattern}, as other layers are: {zeros}, {says_pattern(pattern)}.",
        )
    if change.common >= COMMON:
        yield (
            Verdict.ZEROS_LOST,
            f"{percent(change.common, 0)} of the weights stand at one value other than zero and "
            f"{percent(change.sparsity)} at zero, as a grid with an offset leaves them.",
        )
    if peers.sparsity and change.change > ROUNDED and change.sparsity < FEW_ZEROS * peers.sparsity:
        beside = f"{zeros}, where other pruned layers have {percent(peers.sparsity)}"
        yield Verdict.ZEROS_LOST, f"{beside}; its weights differ by {percent(change.change)} of their norm."
    was_sparse = change.zeros_before > GRID_ZEROS * change.size
    if was_sparse and change.refilled > MOVED * change.size and change.zeros < change.zeros_before:  # else pruned again
        yield Verdict.ZEROS_LOST, f"{whole(change.refilled)} zeros of the dense model are no zeros any more."
    # Compensation explains lawful parts.
    wrong = [part for part in change.misfits if not part.may_be_lawful and not (part.kind == EMPTY and peers.are_cut)]
    if wrong:
        yield Verdict.PART_BROKEN, says_parts(wrong)
    is_multiple = change.cosine > 1 - EXACTLY**2 / 8 and abs(change.slope - 1) > EXACTLY
    if not is_empty and (is_multiple or not SMALL < change.slope < LARGE):
        yield Verdict.OTHER_MODEL, f"Kept weights are {number(change.slope)} times as large as the dense ones."
    if is_pruned and peers.agree and peers.sparsity:
        excess = change.sparsity - peers.sparsity
        # A grid also rounds small weights to zero.
        if excess < -FAR or (excess > FAR and change.grid is None):
            yield Verdict.OTHER_SPARSITY, f"{zeros}, where nearly all other layers have {percent(peers.sparsity)}."


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


def judge_costs(
    verdict: LayerVerdict, costs: Costs, change: WeightChange, nearest: Recognized | None = None
) -> LayerVerdict:
    """The verdict on a layer whose weights alone show nothing wrong; `nearest`: the method of its mask."""
    error = f"Error on {'calibration' if costs.held_out_error is None else 'held-out'} tokens {_shown_error(costs)}"
    both = "" if costs.held_out_error is None else "; calibration tokens agree"
    if costs.opposite and _is_backwards(costs, costs.opposite):
        alone = f"mask alone {_shown_error(costs.mask)}"
        opposite = f"opposite compensation {_shown_error(costs.opposite)}"
        return LayerVerdict(Verdict.BACKWARDS, f"{error}, {alone}, {opposite}{both}.", True)
    is_mask = verdict.verdict == Verdict.MASK_ALONE
    # If tokens are fewer than columns, two sets of tokens differ more than two methods.
    is_told_apart = is_mask or not costs.has_few_tokens
    wanda = costs.methods.get("wanda")
    if wanda and is_told_apart and _is_worse(costs, wanda, CLEARLY if is_mask else OTHER_TEXT):
        reason = f"{error}, Wanda's mask without compensation {_shown_error(wanda)}{both}."
        if is_mask:
            return LayerVerdict(Verdict.MASK_ALONE, f"{reason} {verdict.reason}", True)
        return LayerVerdict(Verdict.WORSE_THAN_WANDA, reason, True)
    if change.zeros <= change.zeros_before:
        return verdict
    methods = costs.methods.items()
    reached = [f"{METHODS[name].label} {_shown_error(rival)}" for name, rival in methods if name in COMPARED]
    parts = [f"{error}{f' ({listing(reached)} at this sparsity)' if reached else ''}."]
    if costs.recovered is not None:
        share = percent(costs.recovered, 0)
        parts.append(f"On calibration tokens, compensation recovered {share} of what a least-squares refit would.")
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
    # Where the target corrects what the stream lacks: the error by the mask's and by the opposite's.
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


def says_parts(misfits: Sequence[Misfit]) -> str:
    """A sentence for each of the first parts, and how many there are besides."""
    texts = [says_part(part) for part in misfits[:SHOWN]]
    left = len(misfits) - len(texts)
    return " ".join([*texts, *([f"{whole(left)} more parts are wrong."] if left > 1 else [])])


def says_part(part: Misfit) -> str:
    """A sentence that names the fault of a part."""
    place = f"{_span('row', part.rows)}, {_span('column', part.columns)}"
    ends = part.rows if part.axis == ROW else part.columns
    place = _span(part.axis, ends) if part.axis in (ROW, COLUMN) else place
    return f"{sentence(place)}: {_event(part, *ends)}."


def _span(axis: str, ends: tuple[int, int]) -> str:
    return f"{axis} {ends[0]}" if ends[0] == ends[1] else f"{axis}s {ends[0]} to {ends[1]}"


def _event(part: Misfit, first: int, last: int) -> str:
    """What happened to a part; `first` and `last`: of its rows, or of its columns in another axis."""
    weights = "its only kept weight" if part.kept == 1 else f"all {whole(part.kept)} kept weights"
    if part.kind == agreement.NEGATED:
        some = f"{whole(part.opposite)} of {whole(part.kept)} kept weights"
        has = "has" if part.kept == 1 else "have"
        return f"{weights if part.opposite == part.kept else some} {has} the opposite sign"
    if part.kind in (agreement.OTHERS, agreement.OTHERS_NEGATED):
        assert part.source is not None
        backward = ", negated" if part.kind == agreement.OTHERS_NEGATED else ""
        return f"the weights are those of {_span(part.axis, (part.source, part.source + last - first))}{backward}"
    if part.kind == agreement.SHIFTED:
        across = ("right", "left", "column") if part.axis == ROW else ("down", "up", "row")
        return f"the weights are shifted {across[part.shift < 0]} by {count(abs(part.shift), across[2])}"
    if part.kind == agreement.COUNT:
        each = " each" if last > first else ""
        size = whole(part.kept // (last - first + 1))
        return f"{size} weights are kept{each}, and {whole(int(part.value))} in other rows"
    if part.kind == ABSURD:
        return f"the weight is {number(part.value)}, and no dense weight of this layer is above {number(part.dense)}"
    rows = "these rows are" if last > first else "the row is"
    texts = {
        agreement.REVERSED: "the weights stand in reverse order",
        agreement.CONSTANT: f"{weights} have the same value {number(part.value)}",
        agreement.SCALED: f"the weights are {number(part.factor)} times as large as those of the rest of the layer",
        EMPTY: f"no weight is left, though {rows} not small in the dense model",
        agreement.CHANGED: f"the weight is {number(part.value)}, and {number(part.dense)} in the dense model",
    }
    follow = "follow the dense ones less than the rest of the layer does"
    unlike = follow if part.cosine >= UNLIKE else "have nothing to do with the dense ones"
    return texts.get(part.kind, f"{weights} {unlike} (cosine {part.cosine:.2f})")
