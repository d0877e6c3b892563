"""A paired interval decides which run is better; cautions have one source."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rose import verdicts, wording
from rose.verdicts import EvaluationSetup, Result, compare, front, rank, says_ranking

EASY_AND_HARD = np.array([2.0, 3.0, 4.0, 5.0, 6.0, 3.5])
WOBBLE = np.array([0.01, -0.02, 0.015, 0.0, -0.005, 0.02])


def result(name: str, losses: Sequence[float] | np.ndarray = EASY_AND_HARD, **more: object) -> Result:
    if "value" not in more:
        more["value"] = math.exp(np.mean(losses))
    return Result(name, method=name.lower(), losses=tuple(losses), **more)


def drawn(name: str, *values: float, **more: object) -> Result:
    return result(name, value=float(np.mean(values)), losses=(), draws=dict(enumerate(values)), **more)


def test_interval_equals_the_paired_t_test() -> None:
    worse = EASY_AND_HARD + 0.05 + WOBBLE
    ratio = verdicts.paired_ratio(worse, EASY_AND_HARD)
    expected = stats.ttest_rel(worse, EASY_AND_HARD).confidence_interval(0.95)
    assert ratio.value == pytest.approx(math.exp((worse - EASY_AND_HARD).mean()))
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    assert ratio.is_clear  # although the windows themselves lie far apart
    assert not verdicts.paired_ratio(EASY_AND_HARD + WOBBLE, EASY_AND_HARD).is_clear
    assert not verdicts.paired_ratio([3.0], [2.0]).is_clear  # one window says nothing
    assert not verdicts.paired_ratio([math.inf, 3.0], [math.inf, 2.0]).is_clear


@pytest.mark.parametrize(
    ("bounds", "neutral", "printed", "is_clear"),
    [
        ((1.062, 1.0004, 1.129), 1.0, "1.06 (1.0004 to 1.13)", True),
        ((1.062, 0.99996, 1.129), 1.0, "1.06 (0.99996 to 1.13)", False),
        ((1.062, 1.0000001, 1.129), 1.0, "1.06 (1.00 to 1.13)", False),
        ((0.95, 0.9, 0.99996), 1.0, "0.95 (0.90 to 0.99996)", True),
        ((1.79, 0.3927, 8.130), 1.0, "1.8 (0.39 to 8.1)", False),
        ((2.5, 1.0004, 6.2), 1.0, "2.5 (1.0004 to 6.2)", True),
        ((1.5, 0.0, math.inf), 1.0, "1.5 (0 to ∞)", False),
        ((0.4, 0.004, 0.8), 0.0, "0.40 (0.004 to 0.80)", True),
        ((-0.4, -0.8, -1e-9), 0.0, "−0.40 (−0.80 to 0.00)", False),
    ],
)
def test_printed_intervals_agree_with_verdicts(bounds, neutral, printed, is_clear):
    interval = verdicts.Interval(*bounds, neutral)
    assert (str(interval), interval.is_clear) == (printed, is_clear)


def test_mean_ratio_is_symmetric() -> None:
    first, second = pd.Series([0.1, 0.4, 2.0, 0.0, np.nan]), pd.Series([0.2, 0.6, 2.5, 0.0, 1.0])
    expected = stats.ttest_1samp(np.log([2.0, 1.5, 1.25]), 0).confidence_interval(0.95)
    there, back = verdicts.mean_ratio(first, second), verdicts.mean_ratio(second, first)
    assert there.value == pytest.approx((2.0 * 1.5 * 1.25) ** (1 / 3))
    assert (there.low, there.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    assert (back.value, back.low, back.high) == pytest.approx((1 / there.value, 1 / there.high, 1 / there.low))
    assert verdicts.mean_ratio(first, second.replace(0.0, 1.0)) is None  # of nothing to something


def test_rank_correlation_interval_has_its_coverage() -> None:
    rng, held = np.random.default_rng(0), 0
    truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's of a bivariate normal with correlation 0.6
    for _ in range(400):
        x = rng.standard_normal(40)
        y = 0.6 * x + 0.8 * rng.standard_normal(40)
        interval = verdicts.rank_correlation(pd.Series(x), pd.Series(y))
        held += interval.low <= truth <= interval.high
    assert interval.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert 0.92 <= held / 400 <= 0.98


def test_a_lead_within_the_interval_is_not_clear() -> None:
    better, worse = result("ROSE"), result("SparseGPT", EASY_AND_HARD + 0.05 + WOBBLE)
    assert compare(better, worse).better == compare(worse, better).better == "ROSE"
    near = result("SparseGPT", EASY_AND_HARD + WOBBLE)
    assert compare(better, near).kind == "no clear difference"
    (ranking,) = rank([near, better])
    assert ranking.finding == "No clear difference between ROSE and SparseGPT: perplexity 50.2 to 50.4"
    assert ranking.best is None
    assert "with 95 % intervals over six windows, paired: SparseGPT: 1.00 (0.99 to 1.02)." in ranking.caption
    (ranking,) = rank([worse, better])
    assert (ranking.best, ranking.finding) == ("ROSE", "ROSE has the lowest perplexity, 50.2")
    (ranking,) = rank([better, result("SparseGPT", EASY_AND_HARD + 0.0002)])
    assert ranking.finding == "ROSE has the lowest perplexity, 50.23"  # the other 50.24


def test_equal_losses_are_identical_by_construction() -> None:
    first, second, third = result("ROSE"), result("SparseGPT"), result("Wanda", EASY_AND_HARD + 0.5)
    assert compare(first, second).kind == "identical"
    assert says_ranking(rank([first, second])) == "ROSE and SparseGPT are identical by construction: perplexity 50.2"
    assert says_ranking(rank([third, first, second])).startswith(
        "ROSE and SparseGPT, identical by construction, share the"
    )
    # A mean may agree where nothing else does.
    assert compare(first, result("Other", EASY_AND_HARD[::-1])).kind == "no clear difference"


def test_draws_must_agree_with_windows() -> None:
    assert compare(drawn("A", 20, 21, 22), drawn("B", 30, 31, 33)).better == "A"
    unclear = compare(drawn("A", 20, 31, 22), drawn("B", 30, 21, 33))
    assert unclear.kind == "no clear difference"
    assert unclear.reason == "95 % interval over three calibration draws, paired"
    draws = {"draws": {0: 20.0, 1: 31.0, 2: 22.0}}
    both = compare(result("A", **draws), result("B", EASY_AND_HARD + 0.5, draws={0: 30.0, 1: 21.0, 2: 33.0}))
    assert both.kind == "no clear difference"
    against = compare(  # each clear, one for A and the other for B
        result("A", EASY_AND_HARD, value=31.0, draws={0: 30.0, 1: 31.0, 2: 32.0}),
        result("B", EASY_AND_HARD + 0.5, value=21.0, draws={0: 20.0, 1: 21.0, 2: 22.0}),
    )
    assert (against.kind, against.better) == ("no clear difference", "")


def test_only_shared_draws_are_compared() -> None:
    """A mean over draws of which the other knows one alone would decide by what the texts were."""

    def of(name: str, **losses: float) -> Result:
        drawn = {seed: tuple(loss + EASY_AND_HARD - EASY_AND_HARD.mean()) for seed, loss in losses.items()}
        draws = {seed: math.exp(loss) for seed, loss in losses.items()}
        mean = verdicts.mean_losses(drawn)
        return result(name, mean, value=float(np.mean([*draws.values()])), draws=draws, drawn_losses=drawn)

    a, b = of("A", one=math.log(10.0), two=math.log(12.0)), of("B", one=math.log(10.1))
    assert compare(a, b).better == compare(b, a).better == "A"
    assert compare(a, b).ratio.value == pytest.approx(1.01)
    (ranking,) = rank([b, a])
    assert (ranking.best, ranking.finding) == ("A", "A has the lowest perplexity, 10.0")
    assert ranking.caption.endswith("B: 1.010 (1.010 to 1.010). Compared over one shared calibration draw only.")
    (ranking,) = rank([a, of("C", one=math.log(11.0), two=math.log(13.0))])
    assert ranking.left_out == ""
    other = of("D", three=math.log(9.0))
    assert compare(a, other).reason == "they have no calibration draw in common"
    (ranking,) = rank([a, other])
    assert ranking.finding == "Not ranked: D and A have no calibration draw in common"
    assert front([a, other]).is_on == (True, True)


def test_draws_that_disagree_take_a_lead_back() -> None:
    """A third method with one draw must not make a winner of what three draws leave open."""
    a, b = drawn("A", 20, 31, 22), drawn("B", 22, 26, 23)
    third = result("C", EASY_AND_HARD + 1, value=50.0, draws={0: 50.0})
    losses = {"A": EASY_AND_HARD, "B": EASY_AND_HARD + 0.095, "C": EASY_AND_HARD + 0.9}
    first, second, three = (replace(x, losses=(), drawn_losses={0: tuple(losses[x.name])}) for x in (a, b, third))
    assert rank([first, second])[0].finding.startswith("No clear difference")
    (ranking,) = rank([first, second, three])
    assert ranking.finding == "No clear difference between A and B: perplexity 20.0 to 22.0"
    assert ranking.left_out == "Compared over one shared calibration draw only."


LAYERS = frozenset({"a", "b"})


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ({"model": "a"}, {"model": "b"}, "dense model (a and b)"),
        ({"model": "a", "norms": (1.0, 2.0)}, {"model": "b", "norms": (1.0, 2.0)}, ""),
        ({"norms": (1.0, 2.0)}, {"norms": (1.0, 2.1)}, "dense model"),
        ({"windows": "8 of c4"}, {"windows": "9 of c4"}, "evaluation windows (8 of c4 and 9 of c4)"),
        ({"dense": 20.0}, {"dense": 20.5}, "evaluation windows, or dense model"),
        ({"dense": 20.0}, {"dense": 20.001}, ""),
        ({"layers": LAYERS}, {"layers": frozenset("a")}, "pruned layers (2 and 1)"),
        ({"layers": LAYERS}, {"layers": frozenset("xy")}, "pruned layers"),
        ({"environment": "cpu"}, {"environment": "cuda"}, "environment (cpu; cuda)"),
        ({"environment": "cpu", "model": "a"}, {}, ""),
    ],
)
def test_results_of_different_setups_are_not_compared(one: dict, other: dict, reason: str) -> None:
    setups = EvaluationSetup(**one), EvaluationSetup(**other)
    results = result("A", setup=setups[0]), result("B", EASY_AND_HARD + 1, setup=setups[1])
    assert setups[0].differs(setups[1]) == reason
    assert compare(*results).kind == ("not comparable" if reason else "better")
    (ranking,) = rank(results)
    assert (ranking.finding == f"Not ranked: A and B differ in {reason}") == bool(reason)


def test_each_amount_is_ranked_alone() -> None:
    half = [result("A at 0.5", amount="0.5"), result("B at 0.5", EASY_AND_HARD + WOBBLE, amount="0.5")]
    more = [result("A at 0.7", EASY_AND_HARD + 1, amount="0.7"), result("B at 0.7", EASY_AND_HARD + 2, amount="0.7")]
    assert says_ranking(rank([*half, *more])) == (
        "No clear difference between A at 0.5 and B at 0.5: perplexity 50.2 to 50.4; "
        "A at 0.7 has the lowest perplexity, 137"
    )
    worse = result("C at 0.5", EASY_AND_HARD + 1, amount="0.5")
    both = says_ranking(rank([half[0], worse, *more]))
    assert both == "A has the lowest perplexity at 0.5 and 0.7: 50.2 and 137"
    alone = says_ranking(rank([half[0], more[0]]))
    assert alone == "Perplexity from 50.2 (A at 0.5) to 137 (A at 0.7)"
    assert says_ranking(rank([result("A", value=math.nan, losses=())])) == "Nothing has been measured yet"


def test_the_pareto_front_ignores_noise() -> None:
    # Identical work, timed twice: 80 and 40 s, 4 and 10 s.
    slow = [result("A", seconds=80.0), result("B", seconds=40.0)]
    fast = [result(name, EASY_AND_HARD + 0.5, seconds=time) for name, time in (("C", 4.0), ("D", 10.0))]
    on_front = front([*slow, *fast])
    assert on_front.is_on == (True, True, True, True)
    assert on_front.steps == (2, 1)
    near = front([result("A", seconds=10.0), result("B", EASY_AND_HARD + WOBBLE, seconds=9.0)])
    assert (near.is_on, len(near.steps)) == ((True, True), 1)
    beaten = front([result("A", seconds=10.0), result("B", EASY_AND_HARD + 0.5, seconds=9.0)])
    assert beaten.is_on == (True, False)
    slower = front([result("A", seconds=10.0), result("B", EASY_AND_HARD + WOBBLE, seconds=99.0)])
    assert slower.is_on == (True, False)


def test_different_numbers_print_differently() -> None:
    assert wording.apart(12.98, 13.04) == ["12.98", "13.04"]
    assert wording.apart(20.0, 30.0) == ["20.0", "30.0"]
    assert wording.apart(13.0, 13.0) == ["13.0", "13.0"]
    assert wording.apart(1234.5, 1234.9) == ["1 234.5", "1 234.9"]
    assert wording.apart(519.51, 519.41) == ["519.5", "519.4"]  # not 520 and 519, ten times as far apart
    assert wording.apart(519.51, float("nan")) == ["520", "–"]
    whose = "the dense model's"
    unknown = compare(result("A", losses=(), value=12.98), result("B", losses=(), value=13.04))
    assert verdicts.says_move(12.98, 13.04, whose, unknown) == "from 12.98 to 13.04, 1.005 times the dense model's"
    clear = compare(result("A"), result("B", EASY_AND_HARD - 40))
    assert "10⁻¹⁸ times" in verdicts.says_move(13.0, 13e-18, whose, clear)
    same = compare(result("A"), result("B"))
    assert verdicts.says_move(13.0, 13.0, whose, same) == "from 13.0 to the same, to the last digit"
    near = compare(result("A"), result("B", EASY_AND_HARD + WOBBLE))
    interval = "(95 % interval over six windows 0.99 to 1.02, no clear difference; more windows may tell)"
    assert verdicts.says_move(13.0, 13.04, whose, near).endswith(interval)


def test_odd_windows_are_named() -> None:
    before = [3.0, 3.5, 2.5, 4.0]
    assert verdicts.says_odd_windows(before, [4.0, 4.6, 3.4, 5.0]) == ""
    text = verdicts.says_odd_windows(before, [4.0, 4.6, 3.4, 7.05])  # rises of 1, 1.1, 0.9 and 3.05: 2 above the median
    assert text.startswith("In one of four windows the loss rose by 2.0 nats a token more than in the median one")
    assert f"makes perplexity {math.exp(2 / 4):.2f} times as high" in text
    wide = [4.0, 4.6, 2.9, 5.6]  # rises of 1, 1.1, 0.4 and 1.6: one is 0.55 above, and all of them differ
    assert verdicts.says_odd_windows(before, [4.0, 4.9, 2.6, 6.1]) == verdicts.says_odd_windows(before, wide) == ""
    assert verdicts.says_odd_windows([], [1.0]) == verdicts.says_odd_windows([1.0], []) == ""


def layers(**more: object) -> pd.DataFrame:
    table = {"layer": ["a", "b"], "tokens": 512, "columns": [256, 64], "dead_columns": 0, "is_damping_raised": False}
    return pd.DataFrame(table | {"relative_error": 0.1, "held_out_error": 0.12} | more)


MASSIVE = {"massive": ["channel 7", ""], "error_without_massive": [0.25, None]}


@pytest.mark.parametrize(
    ("more", "brief", "remark"),
    [
        ({"tokens": 128}, "fewer tokens than columns", "In one of two layers calibration tokens are fewer"),
        ({"dead_columns": [3, 0]}, "dead columns", "In one of two layers some input columns were 0"),
        ({"is_damping_raised": [True, None]}, "damping raised", "In one of two layers damping had to be raised"),
        ({"held_out_error": [0.16, 0.1]}, "over-fitted", "more than 1.5 times the calibration error"),
        ({"held_out_error": [np.inf, 0.1]}, "held-out error infinite", "one of two layers the held-out error is inf"),
        ({"held_out_error": [np.nan, 0.1]}, "nothing held out", "In one of two layers nothing was held out"),
        ({"zeros_before": [0.5, 0.04]}, "zeros before", "more than 5 % of the weights were zero before pruning"),
        ({"sparsity": [1 / 3, 0.49], "asked_sparsity": 0.5}, "less removed than asked", "In one of two layers clearly"),
        ({"zeros_before": [0.04, 0.0003], "sparsity": [0.04, 0.0003]}, "nothing removed", "no more weights are zero"),
        (MASSIVE, "massive activations", "channel 7; calibration error 0.100, without these channels 0.250"),
    ],
)
def test_cautions_of_layers(more: dict, brief: str, remark: str) -> None:
    assert list(verdicts.caution_column(layers(**more))) == [brief, ""]
    (sentence,) = verdicts.cautions(layers(**more))
    assert remark in sentence
    (alone,) = verdicts.cautions(layers(**more).head(1))
    assert not alone.startswith("In ")


def test_cautions_name_their_methods() -> None:
    two = pd.concat([layers(), layers(held_out_error=[0.16, 0.1])])
    (sentence,) = verdicts.cautions(two)
    assert sentence == (
        "In one of two layers the held-out error is more than 1.5 times the calibration error, by at least one method."
    )
    over = [0.16, 0.1]
    named = {"sparsegpt": over, "two_level": [0.16, 0.16], "wanda": [0.1, 0.1]}
    (sentence,) = verdicts.cautions(pd.concat(layers(method=name, held_out_error=held) for name, held in named.items()))
    assert sentence.endswith("calibration error: by SparseGPT in one and two-level order in two.")
    assert sentence.startswith("In all two layers")


def test_windows_differ_only_if_both_runs_name_them():
    windows = {"calibration": "c4", "samples": 8, "seed": 0, "bos_token": None}
    assert not verdicts.on_other_windows(windows, windows | {"samples": None})
    assert not verdicts.on_other_windows(windows, {"calibration": "c4", "length": 512})
    assert verdicts.on_other_windows(windows, windows | {"samples": 4})
    assert verdicts.on_other_windows(windows, windows | {"bos_token": 1})  # every window begins with another token
