"""Which of several results is better, and whether they may be compared.

Models are compared on the same windows and draws. Paired intervals decide.
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

SAME = 1e-9  # relative difference up to which two numbers count as one model measured twice
SAME_MODEL = 1e-3  # relative difference of norms of the embeddings; number formats move them by 1e-4
SAME_WINDOWS = 1e-3  # relative difference of dense perplexities; above it the model or the text was another
SAME_TIME = 1.5  # ratio of two times up to which a pause of the machine may explain the difference
WINDOWS = ("calibration", "samples", "length", "seed", "held_out_samples")  # settings of a run that select its text
BOS = "bos_token"  # token at the beginning of every window, None without: the result of the option bos


def on_other_windows(first_run: Mapping[str, Any], second_run: Mapping[str, Any]) -> bool:
    """Whether the summaries of two runs name different tokens."""
    shared = {*WINDOWS, BOS} & first_run.keys() & second_run.keys()
    differing = [name for name in shared if first_run[name] != second_run[name]]
    return any(name == BOS or None not in (first_run[name], second_run[name]) for name in differing)


Kind = Literal["better", "no clear difference", "identical", "undecided", "not comparable"]


@dataclass(frozen=True)
class EvaluationSetup:
    """Conditions that must agree before two results are compared; None and () where unknown."""

    model: str | None = None  # name of the dense model
    norms: tuple[float, ...] = ()  # its `embedding_norms`, which identify a model whatever its name
    windows: str | None = None  # text, number and length of the evaluation windows, in words
    dense: float | None = None  # the dense model's perplexity on them
    layers: frozenset[str] | None = None  # names of the pruned layers
    environment: str | None = None  # processor, versions and number format, in words

    def differs(self, other: EvaluationSetup) -> str:
        """The differing conditions, such as "pruned layers (21 and 4)"; "" if the results may be compared."""
        reasons = []
        if self.norms and other.norms:
            if not is_same_model(self.norms, other.norms):
                reasons.append("dense model")
        elif _unlike(self.model, other.model):
            reasons.append(f"dense model ({self.model} and {other.model})")
        if _unlike(self.windows, other.windows):
            reasons.append(f"evaluation windows ({self.windows} and {other.windows})")
        elif self.dense and other.dense and abs(self.dense - other.dense) > SAME_WINDOWS * self.dense and not reasons:
            reasons.append("evaluation windows, or dense model")
        if _unlike(self.layers, other.layers):
            assert self.layers is not None
            assert other.layers is not None
            sizes = len(self.layers), len(other.layers)
            reasons.append("pruned layers" + (f" ({sizes[0]} and {sizes[1]})" if sizes[0] != sizes[1] else ""))
        if _unlike(self.environment, other.environment):
            reasons.append(f"environment ({self.environment}; {other.environment})")
        return listing(reasons)


def is_same_model(norms: Sequence[float], other_norms: Sequence[float]) -> bool:
    """Whether two `embedding_norms` belong to the same model."""
    return len(norms) == len(other_norms) and np.allclose(norms, other_norms, rtol=SAME_MODEL)


def _unlike(first: object, second: object) -> bool:
    return first is not None and second is not None and first != second


@dataclass(frozen=True)
class Result:
    """A perplexity or an error to be compared; less is better."""

    name: str  # of the run
    method: str  # of the run
    value: float  # NaN where it was not measured; the mean over draws, where there are several
    losses: tuple[float, ...] = ()  # loss of each window in nats a token; () if not stored
    draws: Mapping[Any, float] = field(default_factory=dict)  # value by calibration seed
    setup: EvaluationSetup = EvaluationSetup()  # conditions of the evaluation
    amount: str = ""  # how much is pruned, such as the sparsity. Results of different amounts are not ranked
    seconds: float = math.nan  # of pruning, and of tuning if `is_tuned`; NaN where unknown
    target: str = ""  # "dense" or "layer"
    is_tuned: bool = False
    # losses by calibration seed; `losses` are their means. {} if not stored
    drawn_losses: Mapping[Any, tuple[float, ...]] = field(default_factory=dict)

    def over(self, draws: Sequence[Any]) -> Result:
        """The result over some of its draws."""
        if not self.draws or len(draws) == len(self.draws):
            return self
        values = {seed: self.draws[seed] for seed in draws}
        losses = {seed: self.drawn_losses[seed] for seed in draws if seed in self.drawn_losses}
        value, mean = float(np.mean([*values.values()])), mean_losses(losses)
        return replace(self, value=value, losses=mean, draws=values, drawn_losses=losses)

    def is_same(self, second: Result) -> bool:
        """Whether all measurements agree, as for ROSE and SparseGPT if no layer is columnar."""
        if self.losses and len(self.losses) == len(second.losses):
            return np.allclose(self.losses, second.losses, rtol=SAME, atol=0)
        mine, theirs = [self.value], [second.value]
        if self.draws.keys() != second.draws.keys():
            return False
        if self.draws:
            mine, theirs = [*self.draws.values()], [second.draws[seed] for seed in self.draws]
        return np.allclose(mine, theirs, rtol=SAME, atol=0)


def is_same(first: float, second: float) -> bool:
    """Whether two measured numbers are equal up to rounding."""
    return math.isclose(first, second, rel_tol=SAME)


def mean_losses(drawn: Mapping[Any, Sequence[float]]) -> tuple[float, ...]:
    """The mean loss of each window over draws; () without draws."""
    return tuple(np.mean([*drawn.values()], axis=0).tolist()) if drawn else ()


def _over_shared_draws(results: Sequence[Result]) -> list[Result]:
    """Each result over the calibration draws that all share; [] if they share none. Results without draws stay."""
    drawn = [result.draws for result in results if result.draws]
    shared = [seed for seed in drawn[0] if all(seed in draws for draws in drawn)] if drawn else []
    return [result.over(shared) for result in results] if shared or not drawn else []


def shared_tasks(tables: Sequence[pd.DataFrame]) -> list[str]:
    """Tasks that have an accuracy on the same number of questions in all tables, so that means can be compared."""
    answered = [table.dropna(subset="accuracy") for table in tables]
    tasks = [set(zip(table["task"], table["questions"], strict=True)) for table in answered]
    return sorted(task for task, _ in set.intersection(*tasks)) if tasks else []


@dataclass(frozen=True)
class Verdict:
    """The comparison of two results."""

    kind: Kind  # "undecided": the difference may be chance
    better: str = ""  # name of the better result, or of the lower one if undecided; else ""
    ratio: Interval | None = None  # second over first; None if nothing was paired
    reason: str = ""  # the basis of the verdict, or the reason for a missing verdict


def compare(first: Result, second: Result) -> Verdict:
    """Which of two results is better, by paired intervals over windows and over shared calibration draws."""
    if reason := first.setup.differs(second.setup):
        return Verdict("not comparable", reason=f"they differ in {reason}")
    if math.isnan(first.value) or math.isnan(second.value):
        return Verdict("not comparable", reason="one of them has no number")
    if math.isinf(first.value) != math.isinf(second.value):
        times = math.inf if math.isinf(second.value) else 0.0
        finite = second if math.isinf(first.value) else first
        return Verdict("better", finite.name, Interval(times, times, times), "the other is infinite")
    shared = _over_shared_draws([first, second])
    if not shared:
        return Verdict("not comparable", reason="they have no calibration draw in common")
    first, second = shared
    if math.isinf(first.value) and not (first.losses and second.losses):
        return Verdict("not comparable", reason="both are infinite")
    if first.is_same(second):
        return Verdict("identical", reason="the same to the last digit")
    intervals: list[tuple[Interval, str]] = []
    if first.losses and len(first.losses) == len(second.losses):
        intervals.append((paired_ratio(second.losses, first.losses), count(len(first.losses), "window")))
    seeds = list(first.draws) if second.draws else []
    if len(seeds) > 1 and min(*first.draws.values(), *second.draws.values()) > 0:
        logs = ([math.log(result.draws[seed]) for seed in seeds] for result in (second, first))
        intervals.append((paired_ratio(*logs), count(len(seeds), "calibration draw")))
    lower = first if first.value < second.value else second
    if not intervals:
        return Verdict("undecided", lower.name, reason="neither losses by window nor several draws were kept")
    ratio, over = next((pair for pair in intervals if not pair[0].is_clear), intervals[-1])
    agree = len({pair[0].value > 1 for pair in intervals}) == 1
    better = first if ratio.value > 1 else second
    # Means over draws can contradict the ratios if one draw is far from the others.
    is_clear = agree and all(pair[0].is_clear for pair in intervals) and better is lower
    reason = f"95 % interval over {over}, paired"
    return Verdict("better" if is_clear else "no clear difference", better.name if is_clear else "", ratio, reason)


@dataclass(frozen=True)
class Ranking:
    """Results of one amount, the lowest first, and the verdict on the lowest against each other result."""

    noun: str
    results: tuple[Result, ...]  # each over the shared calibration draws
    verdicts: tuple[Verdict, ...]
    problem: str = ""  # why the results are not ranked; else ""
    left_out: str = ""  # a sentence if some results have draws that are not shared; else ""

    def names(self, *kinds: Kind) -> list[str]:
        """Names of the results with such a verdict."""
        pairs = zip(self.results[1:], self.verdicts, strict=True)
        return [result.name for result, verdict in pairs if verdict.kind in kinds]

    @property
    def best(self) -> str | None:
        """The name of the result that is better than all others, if any."""
        only = self.verdicts and not self.problem and all(verdict.kind == "better" for verdict in self.verdicts)
        return self.results[0].name if only else None

    @property
    def finding(self) -> str:
        """The conclusion as a title without a full stop."""
        values = apart(*(result.value for result in self.results))
        first, value = self.results[0].name, values[0]
        if self.problem:
            return f"Not ranked: {self.problem}"
        if not self.verdicts:
            return f"{first}: {self.noun} {value}"
        same = [first, *self.names("identical")]
        if unclear := self.names("no clear difference"):
            alike = [*same, *unclear]
            highest = [text for text, result in zip(values, self.results, strict=True) if result.name in alike][-1]
            span = value if highest == value else f"{value} to {highest}"
            return f"No clear difference between {listing(alike)}: {self.noun} {span}"
        if self.names("undecided"):
            have = "has" if len(same) == 1 else "have"
            return f"{listing(same)} {have} the lowest {self.noun}, {value}; the difference may be chance"
        if len(same) == len(self.results):
            return f"{listing(same)} are identical by construction: {self.noun} {value}"
        if len(same) > 1:
            return f"{listing(same)}, identical by construction, share the lowest {self.noun}, {value}"
        return f"{first} has the lowest {self.noun}, {value}"

    @property
    def caption(self) -> str:
        """A sentence that compares the other results with the lowest, with intervals; "" without others."""
        if self.problem or not self.verdicts:
            return ""
        parts = []
        for result, verdict in zip(self.results[1:], self.verdicts, strict=True):
            ratio = "identical" if verdict.kind == "identical" else f"{result.value / self.results[0].value:.3f}"
            parts.append(f"{result.name}: {verdict.ratio or ratio}")
        reason = next((verdict.reason for verdict in self.verdicts if verdict.ratio), "")
        how = f", with {reason.replace('interval', 'intervals')}" if reason else ""
        undecided = next((verdict.reason for verdict in self.verdicts if verdict.kind == "undecided"), "")
        end = f" Chance cannot be ruled out: {undecided}." if undecided else ""
        if reason.endswith("one window, paired"):
            end = " A single window cannot tell a difference from chance; evaluate on more of them."
        if self.left_out:
            end += f" {self.left_out}"
        return f"Times the {self.noun} of {self.results[0].name}{how}: {'; '.join(parts)}.{end}"


def rank(results: Sequence[Result], noun: str = "perplexity") -> list[Ranking]:
    """Ranks the measured results of each amount, in the order of the amounts."""
    rankings = []
    measured = [result for result in results if not math.isnan(result.value)]
    for amount in dict.fromkeys(result.amount for result in measured):
        some = [result for result in measured if result.amount == amount]
        shared = _over_shared_draws(some)
        pairs = sorted(zip(shared or some, some, strict=True), key=lambda pair: pair[0].value)
        ranked, whole = zip(*pairs, strict=True)
        verdicts = []
        for cut, full in pairs[1:]:
            verdict, further = compare(ranked[0], cut), compare(whole[0], full)
            # All draws that the two share may contradict the verdict.
            if verdict.kind == "better" and (further.kind, further.better) != ("better", verdict.better):
                verdict = replace(further, kind="no clear difference", better="")
            verdicts.append(verdict)
        wrong = _differ(ranked) or ("" if shared else "have no calibration draw in common")
        problem = f"{listing([result.name for result in ranked])} {wrong}" if wrong else ""
        draws = max(len(result.draws) for result in ranked)
        is_cut = bool(shared) and draws < max(len(result.draws) for result in some)
        left_out = f"Compared over {count(draws, 'shared calibration draw')} only." if is_cut else ""
        rankings.append(Ranking(noun, ranked, tuple(verdicts), problem, left_out))
    return rankings


def _differ(results: Sequence[Result]) -> str:
    """Why some of the results may not be compared, such as "differ in environment"; every pair is compared."""
    reasons = (first.setup.differs(second.setup) for first in results for second in results)
    return next((f"differ in {why}" for why in reasons if why), "")


def says_ranking(rankings: Sequence[Ranking]) -> str:
    """The findings as one title; only the first three amounts."""
    comparing = [ranking for ranking in rankings if len(ranking.results) > 1] or rankings
    if not comparing:
        return "Nothing has been measured yet"
    noun, results = comparing[0].noun, [ranking.results[0] for ranking in comparing]
    if len(comparing) > 1 and not any(ranking.verdicts for ranking in comparing):
        if differ := _differ(results):
            return f"Not ranked: {listing([result.name for result in results])} {differ}"
        low, high = (pick(results, key=lambda result: result.value) for pick in (min, max))
        return f"{sentence(noun)} from {number(low.value)} ({low.name}) to {number(high.value)} ({high.name})"
    left, shown = len(comparing) - 3, comparing[:3]
    rest = f"; {word(left)} more below" if left > 0 else ""
    if len(shown) > 1 and all(ranking.best for ranking in shown):
        values = listing([apart(*(result.value for result in ranking.results))[0] for ranking in shown])
        amounts = [ranking.results[0].amount for ranking in shown]
        names = [str(ranking.best) for ranking in shown]
        methods = {name.removesuffix(f" at {amount}") for name, amount in zip(names, amounts, strict=True)}
        if len(methods) == 1:
            return f"{methods.pop()} has the lowest {noun} at {listing(amounts)}: {values}{rest}"
        return f"{listing(names)} have the lowest {noun}, {values}{rest}"
    return "; ".join(ranking.finding for ranking in shown) + rest


@dataclass(frozen=True)
class Front:
    """Results that are worth their time: no other result is as good in clearly less time, or better in equal time."""

    is_on: tuple[bool, ...]  # whether each result is on the front
    # indices of results on the front, the fastest first, each clearly better than the one before
    steps: tuple[int, ...]


def front(results: Sequence[Result], same_time: float = SAME_TIME) -> Front:
    """The Pareto front of time and value beyond noise. Identical models share their least time."""
    places = range(len(results))
    kinds = {(a, b): compare(results[a], results[b]) for a in places for b in places if a != b}
    seconds = [min(results[b].seconds for b in places if a == b or kinds[a, b].kind == "identical") for a in places]

    def is_better(a: int, b: int) -> bool:
        return kinds[a, b].kind == "better" and kinds[a, b].better == results[a].name

    def beats(a: int, b: int) -> bool:
        if kinds[a, b].kind == "not comparable":
            return False
        if is_better(a, b):
            return seconds[a] <= same_time * seconds[b]
        return not is_better(b, a) and same_time * seconds[a] < seconds[b]

    is_on = tuple(not any(beats(a, b) for a in places if a != b) for b in places)
    steps: list[int] = []
    for place in sorted((at for at in places if is_on[at]), key=lambda at: (seconds[at], results[at].seconds)):
        if not steps or is_better(place, steps[-1]):
            steps.append(place)
    return Front(is_on, tuple(steps))
