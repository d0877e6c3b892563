"""Which of several results is better, and whether they may be compared.

Two models are compared on the same windows, and where there are several calibration draws on the same draws: better is
only what a paired interval says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from rose.verdicts.interval import Interval, paired_ratio
from rose.wording import apart, count, listing, number, sentence, word

SAME = 1e-9  # relative difference up to which two numbers are the same: a model measured twice
SAME_MODEL = 1e-3  # relative difference of norms of the embeddings; number formats move them by 1e-4
SAME_WINDOWS = 1e-3  # relative difference of the dense model's perplexity, above which it was another model or text
SAME_TIME = 1.5  # ratio of two times up to which a pause of the machine may be all the difference
WINDOWS = ("calibration", "samples", "length", "seed", "held_out_samples")  # of a run, by which text was drawn
BOS = "bos_token"  # that every window begins with, None where they begin with the text: what the option bos came to


def on_other_windows(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the tokens of two runs are known to be different ones, by their summaries."""
    first, second = (
        {name: known[name] for name in (*WINDOWS, BOS) if name in known and (name == BOS or known[name] is not None)}
        for known in (one, other)
    )
    return any(first[name] != second[name] for name in first.keys() & second.keys())


Kind = Literal["better", "no clear difference", "identical", "undecided", "not comparable"]


@dataclass(frozen=True)
class EvaluationSetup:
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

    def differs(self, other: EvaluationSetup) -> str:
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
    setup: EvaluationSetup = EvaluationSetup()
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


def is_same(one: float, other: float) -> bool:
    """Whether two measured numbers are one, up to rounding."""
    return math.isclose(one, other, rel_tol=SAME)


def mean_losses(drawn: Mapping[Any, Sequence[float]]) -> tuple[float, ...]:
    """The mean loss of each window over draws; () of none."""
    return tuple(np.mean([*drawn.values()], axis=0).tolist()) if drawn else ()


def _over_shared_draws(results: Sequence[Result]) -> list[Result]:
    """Each over the calibration draws that all have, for means over others are of other texts; [] where none is shared.
    Results without draws are as they are."""
    drawn = [one.draws for one in results if one.draws]
    shared = [seed for seed in drawn[0] if all(seed in draws for draws in drawn)] if drawn else []
    return [one.over(shared) for one in results] if shared or not drawn else []


def shared_tasks(tables: Sequence[pd.DataFrame]) -> list[str]:
    """Tasks with an accuracy in all of these tables (task, questions, accuracy), of as many questions: the only ones
    whose means compare."""
    known = [table.dropna(subset="accuracy") for table in tables]
    asked = [set(zip(table["task"], table["questions"], strict=True)) for table in known]
    return sorted(task for task, _ in set.intersection(*asked)) if asked else []


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
    if math.isinf(one.value) and not (one.losses and other.losses):
        return Verdict("not comparable", reason="both are infinite")
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
        values = apart(*(one.value for one in self.results))
        first, value = self.results[0].name, values[0]
        if self.problem:
            return f"Not ranked: {self.problem}"
        if not self.verdicts:
            return f"{first}: {self.noun} {value}"
        same = [first, *self.names("identical")]
        if unclear := self.names("no clear difference"):
            alike = [*same, *unclear]
            highest = [said for said, one in zip(values, self.results, strict=True) if one.name in alike][-1]
            span = value if highest == value else f"{value} to {highest}"
            return f"No clear difference between {listing(alike)}: {self.noun} {span}"
        if self.names("undecided"):
            have = "has" if len(same) == 1 else "have"
            return f"{listing(same)} {have} the lowest {self.noun}, {value}; chance is not ruled out"
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
