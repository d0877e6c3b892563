"""Verdicts: which of several results is better, whether they may be compared, and how far a layer's numbers can be
trusted. One rule each, for every page, table, report and command.

Two models are compared on the same windows, and where there are several calibration draws on the same draws: better is
only what a paired interval says. Nothing here measures anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from rose.layer.checks import OVERFIT
from rose.layer.methods import label_of
from rose.wording import apart, count, fine_percent, listing, number, out_of, percent, sentence, word

CONFIDENCE = 0.95  # of every interval
FINEST = 6  # decimals of its bounds, by which an interval is judged
WIDE = 2.0  # ratio of the bounds from which on two digits are enough
SAME = 1e-9  # relative difference up to which two numbers are the same: a model measured twice
SAME_MODEL = 1e-3  # relative difference of norms of the embeddings; number formats move them by 1e-4
SAME_WINDOWS = 1e-3  # relative difference of the dense model's perplexity, above which it was another model or text
SAME_TIME = 1.5  # ratio of two times up to which a pause of the machine may be all the difference
SPARSE = 0.05  # share of zeros from which on a layer was pruned before
SOME = 0.01  # share of zeros that is more than a few weights that happen to be 0, as in models read from 4 bits
WINDOWS = ("calibration", "samples", "length", "seed", "held_out_samples")  # of a run, by which text was drawn
BOS = "bos_token"  # that every window begins with, None where they begin with the text: what the option bos came to
SHORT = 0.01  # share of the weights that may be missing, besides a weight a row, from what was asked for
FEW_METHODS = 4  # that a caution names
STRONG, WEAK = 0.7, 0.3  # rank correlations from which on one number tells the other, or partly


def on_other_windows(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the tokens of two runs are known to be different ones, by their summaries."""
    first, second = (
        {name: known[name] for name in (*WINDOWS, BOS) if name in known and (name == BOS or known[name] is not None)}
        for known in (one, other)
    )
    return any(first[name] != second[name] for name in first.keys() & second.keys())


Kind = Literal["better", "no clear difference", "identical", "undecided", "not comparable"]


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; `neutral` is its value where there is no difference."""

    value: float
    low: float
    high: float
    neutral: float = 1.0

    @property
    def is_clear(self) -> bool:
        """Whether chance is an unlikely explanation: the interval does not hold `neutral`, nor touches it by what is
        printed."""
        return round(self.low, FINEST) > self.neutral or round(self.high, FINEST) < self.neutral  # not of NaN

    @property
    def bounds(self) -> str:
        """ "1.020 to 1.062", of a wide ratio "0.39 to 8.1"; with as many digits as tell a bound from `neutral`, so
        that what is printed never contradicts `is_clear`."""
        return f"{self._text(self.low)} to {self._text(self.high)}"

    @property
    def value_text(self) -> str:
        return self._text(self.value)

    def __str__(self) -> str:
        return f"{self.value_text} ({self.bounds})"

    def _text(self, value: float) -> str:
        value = round(value, FINEST)
        if not self.neutral:
            decimals = next((most for most in range(2, FINEST + 1) if round(value, most)), 2)
            return f"{value:z.{decimals}f}".replace("-", "−")
        fewest = 2 if self.high > WIDE * self.low else 4 if value >= 1 else 3
        rounded = {digits: float(f"{value:.{digits - 1}e}") for digits in range(fewest, FINEST + 2)}
        return number(value, next((digits for digits, one in rounded.items() if one != self.neutral), fewest))


def paired_ratio(logs: Sequence[float], others: Sequence[float]) -> Interval:
    """How many times one is the other: exp of the mean difference of paired logarithms and of its t interval.

    Of losses a token of each window, the ratio of two perplexities (Student 1908). A single pair says nothing of
    chance: 0 to infinity.
    """
    with np.errstate(invalid="ignore"):  # infinity less infinity
        gaps = np.asarray(logs, np.float64) - np.asarray(others, np.float64)
    middle = float(gaps.mean())
    found = mean_interval(gaps) if np.isfinite(gaps).all() else None
    ends = [middle, -math.inf, math.inf] if found is None else [found.value, found.low, found.high]
    with np.errstate(over="ignore"):
        return Interval(*(float(one) for one in np.exp(ends)))


def mean_ratio(first: pd.Series, second: pd.Series) -> Interval | None:
    """Geometric mean of second / first over layers, the same back and forth, with its interval; None where a number is
    not above 0, or none is there. Layers in which one is not known, or both are 0, have no ratio."""
    both = pd.DataFrame({"first": first, "second": second}).astype(float).dropna()
    both = both[both.any(axis=1)]
    if both.empty or (both <= 0).any(axis=None):
        return None
    return paired_ratio(*np.log(both[["second", "first"]].to_numpy().T))


def difference(one: float, error: float, other: float, other_error: float) -> Interval:
    """other − one, of two independent means with standard errors, such as two accuracies."""
    reach = float(ndtri((1 + CONFIDENCE) / 2)) * math.hypot(error, other_error)
    return Interval(other - one, other - one - reach, other - one + reach, 0.0)


def shared_tasks(tables: Sequence[pd.DataFrame]) -> list[str]:
    """Tasks with an accuracy in all of these tables (task, questions, accuracy), of as many questions: the only ones
    whose means compare."""
    known = [table.dropna(subset="accuracy") for table in tables]
    asked = [set(zip(table["task"], table["questions"], strict=True)) for table in known]
    return sorted(task for task, _ in set.intersection(*asked)) if asked else []


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval | None:
    """The mean of what is finite with its t interval; None for fewer than 2 values."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    if len(known) < 2:
        return None
    middle = float(known.mean())
    error = float(known.std(ddof=1)) / math.sqrt(len(known))
    reach = float(stdtrit(len(known) - 1, (1 + CONFIDENCE) / 2)) * error
    return Interval(middle, middle - reach, middle + reach, 0.0)


def rank_correlation(one: pd.Series, other: pd.Series) -> Interval | None:
    """Spearman's ρ of the pairs that are known, with its interval by Fisher's z and the standard error of Bonett and
    Wright (2000); None for fewer than 3 pairs, or where one of the two is constant. Of 3 or 4, anything from −1 to 1,
    as chance alone ranks 4 alike in one of 24 cases; around a ρ of 1 as around one half a step below, the smallest
    change of ranks."""
    known = pd.DataFrame({"one": one, "other": other}).dropna()
    if len(known) < 3 or (known.nunique() < 2).any():
        return None
    rho = float(known["one"].rank().corr(known["other"].rank()))
    if (size := len(known)) < 5:
        return Interval(rho, -1.0, 1.0, 0.0)
    reach = float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt((1 + rho**2 / 2) / (size - 3))
    most = 1 - 6 / (size * (size**2 - 1))
    middle = math.atanh(min(max(rho, -most), most))
    return Interval(rho, math.tanh(middle - reach), math.tanh(middle + reach), 0.0)


def says_correlation(who: str, what: str, found: Interval | None) -> str:
    """Whether one number tells another over layers or blocks: "Held-out error partly tells which layers the loss
    depends on: rank correlation 0.45 (0.10 to 0.70)". `what`: that which follows "tells"."""
    if found is None:
        return f"{who}: too few different values to say whether it tells {what}"
    how = "clearly tells" if found.value >= STRONG else "partly tells" if found.value >= WEAK else "hardly tells"
    if not found.is_clear:
        how = "does not clearly tell"
    elif found.value < 0:
        how = "tells the wrong way round"
    return f"{who} {how} {what}: rank correlation {found}"


# Which of two results is better


@dataclass(frozen=True)
class Setup:
    """What must be the same before two results are compared; None and () where it is not known.

    Attributes:
        model: of which it is a copy, by name.
        norms: `embedding_norms` of it, which tell models apart whatever they are called.
        windows: text, number and length of the windows, in words.
        dense: the dense model's perplexity on them.
        layers: names of those that were changed.
        environment: processor, versions and number format, in words.
    """

    model: str | None = None
    norms: tuple[float, ...] = ()
    windows: str | None = None
    dense: float | None = None
    layers: frozenset[str] | None = None
    environment: str | None = None

    def differs(self, other: Setup) -> str:
        """In what, for a sentence: "pruned layers (21 and 4)"; "" where they may be compared."""
        found = []
        if self.norms and other.norms:
            if not is_same_model(self.norms, other.norms):
                found.append("dense model")
        elif _unlike(self.model, other.model):
            found.append(f"dense model ({self.model} and {other.model})")
        if _unlike(self.windows, other.windows):
            found.append(f"evaluation windows ({self.windows} and {other.windows})")
        elif self.dense and other.dense and abs(self.dense - other.dense) > SAME_WINDOWS * self.dense and not found:
            found.append("evaluation windows, or dense model")
        if _unlike(self.layers, other.layers):
            assert self.layers is not None
            assert other.layers is not None
            one, two = len(self.layers), len(other.layers)
            found.append(f"pruned layers ({one} and {two})" if one != two else "pruned layers")
        if _unlike(self.environment, other.environment):
            found.append(f"environment ({self.environment}; {other.environment})")
        return listing(found)


def is_same_model(norms: Sequence[float], others: Sequence[float]) -> bool:
    """Whether these `embedding_norms` are of one model."""
    return len(norms) == len(others) and np.allclose(norms, others, rtol=SAME_MODEL)


def _unlike(one: object, other: object) -> bool:
    return one is not None and other is not None and one != other


@dataclass(frozen=True)
class Result:
    """A result to be compared: a perplexity or an error, so less is better.

    Attributes:
        name: of the run, for people.
        method: that made it.
        value: NaN where it was not measured; the mean over draws, where there are several.
        losses: of each window in nats a token, as from `window_losses`; () where they were not kept.
        draws: value by calibration seed.
        drawn_losses: those losses by calibration seed, of which `losses` are the means; {} where they were not kept.
        setup: see there.
        amount: what was asked for, such as the sparsity: results of different amounts are not ranked.
        seconds: of pruning, and of tuning where `is_tuned`; NaN where it is not known.
        target: "dense" or "layer".
    """

    name: str
    method: str
    value: float
    losses: tuple[float, ...] = ()
    draws: Mapping[Any, float] = field(default_factory=dict)
    setup: Setup = Setup()
    amount: str = ""
    seconds: float = math.nan
    target: str = ""
    is_tuned: bool = False
    drawn_losses: Mapping[Any, tuple[float, ...]] = field(default_factory=dict)

    def over(self, draws: Sequence[Any]) -> Result:
        """The same over some of its draws; as it is without any, and over all of them."""
        if not self.draws or len(draws) == len(self.draws):
            return self
        values = {seed: self.draws[seed] for seed in draws}
        losses = {seed: self.drawn_losses[seed] for seed in draws if seed in self.drawn_losses}
        value, mean = float(np.mean([*values.values()])), mean_losses(losses)
        return replace(self, value=value, losses=mean, draws=values, drawn_losses=losses)

    def is_same(self, other: Result) -> bool:
        """Whether both are the same model by all that was measured, such as ROSE and SparseGPT where no layer is
        columnar."""
        if self.losses and len(self.losses) == len(other.losses):
            return np.allclose(self.losses, other.losses, rtol=SAME, atol=0)
        mine, others = [self.value], [other.value]
        if self.draws or other.draws:
            if self.draws.keys() != other.draws.keys():
                return False
            mine, others = [*self.draws.values()], [other.draws[seed] for seed in self.draws]
        return np.allclose(mine, others, rtol=SAME, atol=0)


def mean_losses(drawn: Mapping[Any, Sequence[float]]) -> tuple[float, ...]:
    """The mean loss of each window over draws; () of none."""
    return tuple(np.mean([*drawn.values()], axis=0).tolist()) if drawn else ()


def _over_shared_draws(results: Sequence[Result]) -> list[Result]:
    """Each over the calibration draws that all have, for means over others are of other texts; [] where none is shared.
    Results without draws are as they are."""
    drawn = [one.draws for one in results if one.draws]
    shared = [seed for seed in drawn[0] if all(seed in draws for draws in drawn)] if drawn else []
    return [one.over(shared) for one in results] if shared or not drawn else []


@dataclass(frozen=True)
class Verdict:
    """What is known of two results.

    Attributes:
        kind: "better" names the better one in `better`; "undecided" where nothing tells a difference from chance.
        better: name of the better one; of the lower one where that is undecided; else "".
        ratio: of the second to the first, None where nothing was paired.
        reason: what the verdict rests on, or why there is none.
    """

    kind: Kind
    better: str = ""
    ratio: Interval | None = None
    reason: str = ""


def compare(one: Result, other: Result) -> Verdict:
    """Which of two results is better: that of all paired intervals there are, over windows and over draws, both of the
    calibration draws that the two share."""
    if reason := one.setup.differs(other.setup):
        return Verdict("not comparable", reason=f"they differ in {reason}")
    if math.isnan(one.value) or math.isnan(other.value):
        return Verdict("not comparable", reason="one of them has no number")
    if math.isinf(one.value) != math.isinf(other.value):
        times = math.inf if math.isinf(other.value) else 0.0
        finite = other if math.isinf(one.value) else one
        return Verdict("better", finite.name, Interval(times, times, times), "the other is infinite")
    shared = _over_shared_draws([one, other])
    if not shared:
        return Verdict("not comparable", reason="they have no calibration draw in common")
    one, other = shared
    if one.is_same(other):
        return Verdict("identical", reason="the same to the last digit")
    found: list[tuple[Interval, str]] = []
    if one.losses and len(one.losses) == len(other.losses):
        found.append((paired_ratio(other.losses, one.losses), count(len(one.losses), "window")))
    seeds = list(one.draws) if other.draws else []
    if len(seeds) > 1 and min(*one.draws.values(), *other.draws.values()) > 0:
        logs = ([math.log(result.draws[seed]) for seed in seeds] for result in (other, one))
        found.append((paired_ratio(*logs), count(len(seeds), "calibration draw")))
    lower = one if one.value < other.value else other
    if not found:
        return Verdict("undecided", lower.name, reason="neither losses by window nor several draws were kept")
    ratio, over = next((pair for pair in found if not pair[0].is_clear), found[-1])
    agree = len({pair[0].value > 1 for pair in found}) == 1
    better = one if ratio.value > 1 else other
    # Means over draws may say otherwise than their ratios, where a draw is far from the others.
    is_clear = agree and all(pair[0].is_clear for pair in found) and better is lower
    reason = f"95 % interval over {over}, paired"
    return Verdict("better" if is_clear else "no clear difference", better.name if is_clear else "", ratio, reason)


@dataclass(frozen=True)
class Ranking:
    """Results of one amount, the lowest first, and the verdict on each of the others beside the lowest.

    Attributes:
        results: each over the calibration draws that all of them have.
        problem: why they are not ranked, "" where they are.
        left_out: a sentence where some have further draws, else "".
    """

    noun: str
    results: tuple[Result, ...]
    verdicts: tuple[Verdict, ...]
    problem: str = ""
    left_out: str = ""

    def names(self, *kinds: Kind) -> list[str]:
        """Of those with such a verdict."""
        pairs = zip(self.results[1:], self.verdicts, strict=True)
        return [result.name for result, verdict in pairs if verdict.kind in kinds]

    @property
    def best(self) -> str | None:
        """The name of the one that is better than all others; None where there is none."""
        only = self.verdicts and not self.problem and all(one.kind == "better" for one in self.verdicts)
        return self.results[0].name if only else None

    @property
    def finding(self) -> str:
        """The conclusion as a title, without a full stop."""
        first, value = self.results[0].name, apart(*(one.value for one in self.results))[0]
        if self.problem:
            return f"Not ranked: {self.problem}"
        if not self.verdicts:
            return f"{first}: {self.noun} {value}"
        same = [first, *self.names("identical")]
        if unclear := self.names("no clear difference"):
            return f"No clear difference between {listing([*same, *unclear])}: {self.noun} {value}"
        if self.names("undecided"):
            return f"{listing(same)} {_has(same)} the lowest {self.noun}, {value}; chance is not ruled out"
        if len(same) == len(self.results):
            return f"{listing(same)} are identical by construction: {self.noun} {value}"
        if len(same) > 1:
            return f"{listing(same)}, identical by construction, share the lowest {self.noun}, {value}"
        return f"{first} has the lowest {self.noun}, {value}"

    @property
    def caption(self) -> str:
        """How the others compare with the lowest, with intervals, as a sentence; "" where nothing is compared."""
        if self.problem or not self.verdicts:
            return ""
        said = []
        for result, verdict in zip(self.results[1:], self.verdicts, strict=True):
            ratio = "identical" if verdict.kind == "identical" else f"{result.value / self.results[0].value:.3f}"
            said.append(f"{result.name}: {verdict.ratio or ratio}")
        known = next((one.reason for one in self.verdicts if one.ratio), "")
        how = f", with {known.replace('interval', 'intervals')}" if known else ""
        why = next((one.reason for one in self.verdicts if one.kind == "undecided"), "")
        end = f" Chance cannot be ruled out: {why}." if why else ""
        if known.endswith("one window, paired"):
            end = " A single window cannot tell a difference from chance; evaluate on more of them."
        if self.left_out:
            end += f" {self.left_out}"
        return f"Times the {self.noun} of {self.results[0].name}{how}: {'; '.join(said)}.{end}"


def _has(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def rank(results: Sequence[Result], noun: str = "perplexity") -> list[Ranking]:
    """Ranks the results that have a number, those of each amount by themselves, in the order of the amounts."""
    found = []
    known = [result for result in results if not math.isnan(result.value)]
    for amount in dict.fromkeys(result.amount for result in known):
        some = [one for one in known if one.amount == amount]
        shared = _over_shared_draws(some)
        pairs = sorted(zip(shared or some, some, strict=True), key=lambda pair: pair[0].value)
        ranked, whole = zip(*pairs, strict=True)
        verdicts = tuple(_confirmed(compare(ranked[0], cut), compare(whole[0], full)) for cut, full in pairs[1:])
        wrong = _differ(ranked) or ("" if shared else "have no calibration draw in common")
        problem = f"{listing([one.name for one in ranked])} {wrong}" if wrong else ""
        draws = max(len(one.draws) for one in ranked)
        is_cut = bool(shared) and draws < max(len(one.draws) for one in some)
        left_out = f"Compared over {count(draws, 'shared calibration draw')} only." if is_cut else ""
        found.append(Ranking(noun, ranked, verdicts, problem, left_out))
    return found


def _confirmed(verdict: Verdict, further: Verdict) -> Verdict:
    """The verdict on two, which that over all draws that the two share may take back."""
    if verdict.kind != "better" or (further.kind, further.better) == ("better", verdict.better):
        return verdict
    return replace(further, kind="no clear difference", better="")


def _differ(results: Sequence[Result]) -> str:
    """In what some of them differ that may not be compared, "differ in environment"; each with each, as one may not
    say what two others differ in."""
    reasons = (one.setup.differs(two.setup) for one in results for two in results)
    return next((f"differ in {why}" for why in reasons if why), "")


def says_ranking(rankings: Sequence[Ranking]) -> str:
    """The finding of all of them as one title; of more than three amounts, those of the first."""
    several = [one for one in rankings if len(one.results) > 1] or rankings
    if not several:
        return "Nothing has been measured yet"
    noun, results = several[0].noun, [one.results[0] for one in several]
    if len(several) > 1 and not any(one.verdicts for one in several):
        if differ := _differ(results):
            return f"Not ranked: {listing([one.name for one in results])} {differ}"
        low, high = (pick(results, key=lambda one: one.value) for pick in (min, max))
        return f"{sentence(noun)} from {number(low.value)} ({low.name}) to {number(high.value)} ({high.name})"
    left = len(several) - 3
    more = f"; {word(left)} more below" if left > 0 else ""
    return "; ".join(one.finding for one in several[:3]) + more


@dataclass(frozen=True)
class Front:
    """Which results are worth their time: no other is as good in clearly less time, or better in no more.

    Attributes:
        is_on: of each result.
        steps: places of those that are each clearly better than the one before, the fastest first: where a line may
            be drawn; () or a single one where no trade-off is clear.
    """

    is_on: tuple[bool, ...]
    steps: tuple[int, ...]


def front(results: Sequence[Result], same_time: float = SAME_TIME) -> Front:
    """The Pareto front of time and value, beyond noise: identical models have the least time of them, and times are
    apart from a factor of `same_time` on, which is less where they were measured in turn, many times."""
    kinds = {(a, b): compare(one, two) for a, one in enumerate(results) for b, two in enumerate(results) if a != b}
    seconds = [
        min(two.seconds for b, two in enumerate(results) if a == b or kinds[a, b].kind == "identical")
        for a in range(len(results))
    ]

    def is_better(a: int, b: int) -> bool:
        return kinds[a, b].kind == "better" and kinds[a, b].better == results[a].name

    def beats(a: int, b: int) -> bool:
        if kinds[a, b].kind == "not comparable":
            return False
        if is_better(a, b):
            return seconds[a] <= same_time * seconds[b]
        return not is_better(b, a) and same_time * seconds[a] < seconds[b]

    places = range(len(results))
    is_on = tuple(not any(beats(a, b) for a in places if a != b) for b in places)
    steps: list[int] = []
    for place in sorted((at for at in places if is_on[at]), key=lambda at: (seconds[at], results[at].seconds)):
        if not steps or is_better(place, steps[-1]):
            steps.append(place)
    return Front(is_on, tuple(steps))


def is_same(one: float, other: float) -> bool:
    """Whether two measured numbers are one, up to rounding."""
    return math.isclose(one, other, rel_tol=SAME)


# Of two runs or methods, layer by layer


def differing(rows: pd.DataFrame) -> pd.DataFrame:
    """The layers in which the second has less or more than the first; the others are identical by construction."""
    gap = (rows["second"] - rows["first"]).abs()
    return rows[gap > SAME * rows[["first", "second"]].abs().max(axis=1)]


def sides(rows: pd.DataFrame) -> tuple[int, int]:
    """In how many layers the second has less, and in how many more."""
    found = differing(rows)
    less = int((found["second"] < found["first"]).sum())
    return less, len(found) - less


def says_layers(rows: pd.DataFrame, names: tuple[str, str], measure: str) -> str:
    """ "ROSE at 0.7 has the lower held-out error in 180 of 210 layers; on average it is 14 % lower".

    `rows` have a number of two runs or methods, first and second, in each layer. The average is over the layers that
    differ: "… in four of 210 layers, and the same in 206; over the four that differ, on average it is 7.6 % lower".
    """
    less, more = sides(rows)
    total = count(len(rows), "layer")
    if not less and not more:
        return f"{listing(names)} have the same {measure} in {out_of(len(rows), len(rows), 'layer')}"
    way, some = ("lower", less) if less >= more else ("higher", more)
    finding = f"{names[1]} has the {way} {measure} in {word(some)} of {total}"
    over = "on average"
    if same := len(rows) - less - more:
        finding += f", and the same in {word(same)}"
        left = less + more
        over = f"over the {word(left)} that differ, on average" if left > 1 else "there"
    found = differing(rows)
    ratio = mean_ratio(found["first"], found["second"])
    if ratio is None:
        return finding
    if not ratio.is_clear and len(found) > 1:
        return f"{finding}; {over} no clear difference"
    moved = ratio.value - 1
    on_average = "lower" if moved < 0 else "higher"
    share = percent(abs(moved), 0) if abs(moved) >= 0.095 else fine_percent(abs(moved))
    return f"{finding}; {'' if on_average == way else 'yet '}{over} it is {share} {on_average}"


# Changes in per cent: always of the reference, which the sentence names


def change(value: float, reference: float) -> float:
    """(value − reference) / reference; NaN where the reference is 0."""
    return value / reference - 1 if reference else math.nan


def says_change(value: float, reference: float, whose: str, what: str = "error") -> str:
    """ "16.9 % less error than SparseGPT", "the same error as SparseGPT"; per cent of the reference's number.

    The shorter "16.9 % less than SparseGPT" without a `what`.
    """
    moved = change(value, reference)
    what = what and f"{what} "
    if math.isnan(moved) and value > 0:
        return f"more {what}than {whose}, which has none"
    if math.isnan(moved) or abs(moved) <= SAME:
        return f"the same {what}as {whose}"
    return f"{fine_percent(abs(moved))} {'less' if moved < 0 else 'more'} {what}than {whose}"


def says_move(before: float, after: float, whose: str, verdict: Verdict) -> str:
    """ "from 12.98 to 13.04, 1.005 times the dense model's (95 % interval 1.001 to 1.009)", and where that is not clear
    over how many windows it is.

    `verdict` on the two, the one before first; `whose` is of the one before.
    """
    if verdict.kind == "identical":
        return f"from {number(before)} to the same, to the last digit"
    (one, two), ratio = apart(before, after), verdict.ratio
    times = number(after / before, 3 if abs(after / before - 1) > 0.05 else 4)
    if ratio is not None and ratio.is_clear and float(times) == 1:
        times = ratio.value_text
    said = f"from {one} to {two}, {times} times {whose}"
    if ratio is None:
        return said
    if ratio.is_clear:
        return f"{said} (95 % interval {ratio.bounds})"
    rests_on = verdict.reason.removesuffix(", paired")
    return f"{said} ({rests_on} {ratio.bounds}, no clear difference; more windows may tell)"


def says_perplexity(summary: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[str]:
    """How perplexity has moved from the dense model's, by the summary of a report: "from 12.98 to 13.04, …", and what
    windows that stand out have to do with it.

    Args:
        before: a summary whose `perplexity_before` is that before tuning, where a tuned model is told by that.
    """
    one, two = _perplexity(before or summary, "before"), _perplexity(summary, "after")
    if math.isnan(two.value):
        return [f"from {number(one.value)} to no finite number: weights or outputs are NaN or infinite"]
    whose = "the dense model's" if before is None else "that before tuning"
    odd = "" if before else says_odd_windows(one.losses, two.losses)
    return [says_move(one.value, two.value, whose, compare(one, two)), *filter(None, [odd])]


def _perplexity(summary: Mapping[str, Any], stage: str) -> Result:
    return Result(stage, "", summary[f"perplexity_{stage}"], tuple(summary[f"losses_{stage}"] or ()))


# In 69 of 72 runs of docs/results/headline.csv no window rises by more than 0.41 above the median one; in each of the
# other three one does by 1.04 to 2.49.
ODD = 0.75  # nats a token
SPREADS = 5  # and so many times the median distance from the median: at high sparsity, all windows differ more


def says_odd_windows(before: Sequence[float], after: Sequence[float]) -> str:
    """A sentence on the windows whose loss rose far more than the median one's; "" where there are none.

    What has happened to them is in docs/lab-notes/models.md. Losses are by window, in nats a token.
    """
    if not before or len(before) != len(after):
        return ""
    rise = np.subtract(after, before)
    above = rise - np.median(rise)
    odd = above > max(ODD, SPREADS * float(np.median(np.abs(above))))
    if not odd.any():
        return ""
    times = number(math.exp(above[odd].sum() / len(above)))
    most = ("up to " if odd.sum() > 1 else "") + number(above.max(), 2)
    return (
        f"In {out_of(int(odd.sum()), len(odd), 'window')} the loss rose by {most} nats a token more than in the median "
        f"one, which alone makes perplexity {times} times as high. In smaller models, pruning had removed the "
        "attention sink of such windows; this can happen where a text begins without a BOS."
    )


# How far the numbers of layers can be trusted


@dataclass(frozen=True)
class Caution:
    """A reason to doubt the numbers of a layer: what a table says of one, what a sentence says of several, and the
    columns of a table that it looks at."""

    brief: str
    says: str  # after "In three of 210 layers ", or by itself of a single layer
    needs: tuple[str, ...]
    holds: Callable[[pd.DataFrame], pd.Series]


CAUTIONS = (
    Caution(
        "fewer tokens than columns",
        "calibration tokens are fewer than columns: the error on them is far smaller than on other text",
        ("tokens", "columns"),
        lambda table: table["tokens"] < table["columns"],
    ),
    Caution(
        "dead columns",
        "some input columns were 0 on every token",
        ("dead_columns",),
        lambda table: table["dead_columns"] > 0,
    ),
    Caution(
        "damping raised",
        "damping had to be raised to factorize the Hessian",
        ("is_damping_raised",),
        lambda table: table["is_damping_raised"] == True,  # noqa: E712  a mask, also of None
    ),
    Caution(
        "over-fitted",
        f"the held-out error is more than {OVERFIT:g} times the calibration error",
        ("held_out_error", "relative_error"),
        lambda table: table["held_out_error"] > OVERFIT * table["relative_error"],
    ),
    Caution(
        "nothing held out",
        "nothing was held out, so errors are those on what pruning was fitted to",
        ("held_out_error", "relative_error"),
        lambda table: table["held_out_error"].isna() & table["relative_error"].notna(),
    ),
    Caution(
        "zeros before",
        f"more than {percent(SPARSE, 0)} of the weights were zero before pruning: the numbers describe pruning a "
        "pruned model, and zeros gathered in some blocks can alone make a layer columnar",
        ("zeros_before",),
        lambda table: table["zeros_before"] > SPARSE,
    ),
    Caution(
        "nothing removed",
        "no more weights are zero than before: the model was pruned already",
        ("zeros_before", "sparsity"),
        lambda table: (table["zeros_before"] > SOME) & (table["sparsity"] <= table["zeros_before"]),
    ),
    Caution(
        "less removed than asked",
        "clearly less was removed than asked for: do not rank these numbers with those of methods that removed it all",
        ("sparsity", "asked_sparsity", "columns"),
        lambda table: table["asked_sparsity"] - table["sparsity"] > SHORT + 1 / table["columns"],
    ),
)


def caution_column(table: pd.DataFrame) -> pd.Series:
    """The cautions of every row in brief, "" where there is none: a column for tables and CSV files.

    The table has a row per layer, or layer and method, with what is known of: tokens, columns, dead_columns,
    is_damping_raised, relative_error, held_out_error, zeros_before, sparsity and asked_sparsity (shares).
    """
    found = pd.Series("", index=table.index, dtype=object)
    for caution in CAUTIONS:
        if (is_so := _holds(caution, table)) is not None:
            found = found.where(~is_so, found.where(found == "", found + "; ") + caution.brief)
    return found


def _holds(caution: Caution, table: pd.DataFrame) -> pd.Series | None:
    """In which rows; None where the table cannot tell. Rows that sum up others have their cautions in brief."""
    if "cautions" in table:
        return table["cautions"].str.split("; ").map(lambda briefs: caution.brief in briefs)
    return caution.holds(table) if set(caution.needs) <= set(table.columns) else None


def in_brief(table: pd.DataFrame) -> str:
    """All cautions of a table as of `caution_column`, each once: for the row that sums it up."""
    of_rows = "; ".join(caution_column(table))
    return "; ".join(caution.brief for caution in CAUTIONS if caution.brief in of_rows.split("; "))


def cautions(table: pd.DataFrame, noun: str = "layer") -> list[str]:
    """The cautions of a table as of `caution_column`, with the column layer: "In three of 210 layers …", one each.

    Rows may also be of another noun, its names in the column of that name, with `in_brief` as their column cautions.
    """
    said, every = [], table[noun].nunique() if noun in table else 0
    for caution in CAUTIONS:
        if every and (holds := _holds(caution, table)) is not None:
            some = table.loc[holds, noun].unique()
            if len(some):
                where = f"in {out_of(len(some), every, noun)} " if every > 1 else ""
                is_shared = not (table[noun].isin(some) & ~holds).any()
                said.append(f"{sentence(where + caution.says + ('' if is_shared else _by_whom(table[holds], noun)))}.")
    return said


def _by_whom(rows: pd.DataFrame, noun: str) -> str:
    """By which methods of a study, which has a row for each, and in how many layers: ": by SparseGPT in nine"."""
    found = rows.groupby("method", sort=False)[noun].nunique() if "method" in rows else pd.Series(dtype=int)
    if not 0 < len(found) <= FEW_METHODS:
        return ", by at least one method"
    return f": by {listing([f'{label_of(str(name))} in {word(layers)}' for name, layers in found.items()])}"


VERBS = {"fail": ("fails", "fail"), "look": ("needs review", "need review"), "pass": ("passes", "pass")}


def says_statuses(statuses: Sequence[str], noun: str) -> str:
    """Of checks, or of layers by their worst check: "12 checks: none fails, one needs review, eleven pass"."""
    parts = []
    for status, (one, several) in VERBS.items():
        found = sum(each == status for each in statuses)
        parts.append(f"{word(found)} {one if found == 1 else several}" if found else f"none {one}")
    return f"{sentence(count(len(statuses), noun))}: {', '.join(parts)}"
