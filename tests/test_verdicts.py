"""Better is only what a paired interval says, of results that may be compared; cautions are told by one function."""

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


# Intervals


def test_the_interval_is_that_of_the_paired_t_test() -> None:
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
    ("bounds", "neutral", "said", "is_clear"),
    [
        ((1.062, 1.0004, 1.129), 1.0, "1.062 (1.0004 to 1.129)", True),
        ((1.062, 0.99996, 1.129), 1.0, "1.062 (0.99996 to 1.129)", False),
        ((1.062, 1.0000001, 1.129), 1.0, "1.062 (1.000 to 1.129)", False),
        ((0.95, 0.9, 0.99996), 1.0, "0.950 (0.900 to 0.99996)", True),
        ((1.79, 0.3927, 8.130), 1.0, "1.8 (0.39 to 8.1)", False),
        ((2.5, 1.0004, 6.2), 1.0, "2.5 (1.0004 to 6.2)", True),
        ((1.5, 0.0, math.inf), 1.0, "1.5 (0 to ∞)", False),
        ((0.4, 0.004, 0.8), 0.0, "0.40 (0.004 to 0.80)", True),
        ((-0.4, -0.8, -1e-9), 0.0, "−0.40 (−0.80 to 0.00)", False),
    ],
)
def test_what_is_printed_of_an_interval_never_contradicts_its_verdict(
    bounds: tuple[float, float, float], neutral: float, said: str, is_clear: bool
) -> None:
    found = verdicts.Interval(*bounds, neutral)
    assert (str(found), found.is_clear) == (said, is_clear)


def test_the_interval_of_a_mean_ratio_is_that_of_its_logarithm_and_the_same_back_and_forth() -> None:
    first, second = pd.Series([0.1, 0.4, 2.0, 0.0, np.nan]), pd.Series([0.2, 0.6, 2.5, 0.0, 1.0])
    expected = stats.ttest_1samp(np.log([2.0, 1.5, 1.25]), 0).confidence_interval(0.95)
    there, back = verdicts.mean_ratio(first, second), verdicts.mean_ratio(second, first)
    assert there is not None
    assert back is not None
    assert there.value == pytest.approx((2.0 * 1.5 * 1.25) ** (1 / 3))
    assert (there.low, there.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    assert (back.value, back.low, back.high) == pytest.approx((1 / there.value, 1 / there.high, 1 / there.low))
    assert verdicts.mean_ratio(first, second.replace(0.0, 1.0)) is None  # of nothing to something


def test_errors_of_two_independent_means_add_up_in_squares() -> None:
    found = verdicts.difference(0.5, 0.03, 0.6, 0.04)
    reach = stats.norm.ppf(0.975) * 0.05
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1 - reach, 0.1 + reach))
    assert found.is_clear
    assert not verdicts.difference(0.5, 0.03, 0.59, 0.04).is_clear


def test_the_interval_of_a_rank_correlation_holds_the_true_one_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(0), 0
    truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's of a bivariate normal with correlation 0.6
    for _ in range(400):
        x = rng.standard_normal(40)
        y = 0.6 * x + 0.8 * rng.standard_normal(40)
        found = verdicts.rank_correlation(pd.Series(x), pd.Series(y))
        assert found is not None
        held += found.low <= truth <= found.high
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert 0.92 <= held / 400 <= 0.98


@pytest.mark.parametrize(
    ("slope", "count", "said"),
    [
        (1.0, 40, "Error clearly tells the damage: rank correlation 1.00"),
        (-1.0, 40, "Error tells the wrong way round the damage"),
        (-0.3, 8, "Error does not clearly tell the damage: rank correlation −0.31 (−0.84 to 0.52)"),
    ],
)
def test_a_correlation_is_called_what_it_is(slope: float, count: int, said: str) -> None:
    x = pd.Series(np.arange(count, dtype=float))
    y = slope * x if abs(slope) == 1 else pd.Series([4, 5, 8, 3, 7, 1, 6, 2.0])
    assert verdicts.says_correlation("Error", "the damage", verdicts.rank_correlation(x, y)).startswith(said)


def test_what_has_no_correlation() -> None:
    constant = pd.Series([1.0] * 5)
    assert verdicts.rank_correlation(constant, pd.Series(range(5))) is None
    assert verdicts.rank_correlation(constant[:2], constant[:2]) is None
    assert "too few different values" in verdicts.says_correlation("Error", "the damage", None)


# Verdicts


def test_a_lead_within_the_interval_is_no_lead() -> None:
    better, worse = result("ROSE"), result("SparseGPT", EASY_AND_HARD + 0.05 + WOBBLE)
    assert compare(better, worse).better == compare(worse, better).better == "ROSE"
    near = result("SparseGPT", EASY_AND_HARD + WOBBLE)
    assert compare(better, near).kind == "no clear difference"
    (ranking,) = rank([near, better])
    assert ranking.finding == "No clear difference between ROSE and SparseGPT: perplexity 50.2 to 50.4"
    assert ranking.best is None
    assert "with 95 % intervals over six windows, paired: SparseGPT: 1.003 (0.988 to 1.019)." in ranking.caption
    (ranking,) = rank([worse, better])
    assert (ranking.best, ranking.finding) == ("ROSE", "ROSE has the lowest perplexity, 50.2")
    (ranking,) = rank([better, result("SparseGPT", EASY_AND_HARD + 0.0002)])
    assert ranking.finding == "ROSE has the lowest perplexity, 50.23"  # the other 50.24


def test_one_model_under_two_names_is_identical_by_construction() -> None:
    one, two, third = result("ROSE"), result("SparseGPT"), result("Wanda", EASY_AND_HARD + 0.5)
    assert compare(one, two).kind == "identical"
    assert says_ranking(rank([one, two])) == "ROSE and SparseGPT are identical by construction: perplexity 50.2"
    assert says_ranking(rank([third, one, two])).startswith("ROSE and SparseGPT, identical by construction, share the")
    # A mean may agree where nothing else does.
    assert compare(one, result("Other", EASY_AND_HARD[::-1])).kind == "no clear difference"


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


def test_draws_that_only_one_has_are_left_out() -> None:
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


def test_further_draws_of_two_can_take_a_lead_back() -> None:
    """A third method with one draw must not make a winner of what three draws leave open."""
    a, b = drawn("A", 20, 31, 22), drawn("B", 22, 26, 23)
    third = result("C", EASY_AND_HARD + 1, value=50.0, draws={0: 50.0})
    losses = {"A": EASY_AND_HARD, "B": EASY_AND_HARD + 0.095, "C": EASY_AND_HARD + 0.9}
    one, two, three = (replace(x, losses=(), drawn_losses={0: tuple(losses[x.name])}) for x in (a, b, third))
    assert rank([one, two])[0].finding.startswith("No clear difference")
    (ranking,) = rank([one, two, three])
    assert ranking.finding == "No clear difference between A and B: perplexity 20.0 to 22.0"
    assert ranking.left_out == "Compared over one shared calibration draw only."


def test_the_better_one_has_the_lower_mean() -> None:
    """One draw far from the others moves the mean, and not the ratios: then nothing is clear."""
    a, b = drawn("A", 40, 41, 39, 42, 900), drawn("B", 36, 37, 35, 38, 930)
    assert a.value < b.value
    assert compare(a, b).kind == "no clear difference"


def test_any_number_is_better_than_infinity() -> None:
    good, broken = result("good"), result("broken", [3.0] * 5 + [math.inf], value=math.inf)
    assert compare(good, broken).better == compare(broken, good).better == "good"
    assert (compare(good, broken).ratio.value, compare(broken, good).ratio.value) == (math.inf, 0)  # second to first
    (ranking,) = rank([broken, good])
    assert ranking.best == "good"
    told = replace(broken, losses=())
    assert compare(told, replace(told, name="other")).kind == "not comparable"  # they need not be the same model
    assert compare(broken, replace(broken, name="again")).kind == "identical"


def test_titles_do_not_compare_across_environments() -> None:
    one, other = (result(name, amount=name, setup=EvaluationSetup(environment=name)) for name in ("0.5", "0.7"))
    assert says_ranking(rank([one, other])) == "Not ranked: 0.5 and 0.7 differ in environment (0.5; 0.7)"


def test_few_units_that_rank_alike_may_do_so_by_chance() -> None:
    four, six = (verdicts.rank_correlation(pd.Series(range(n)), pd.Series(range(n))) for n in (4, 6))
    assert not four.is_clear
    assert six.is_clear
    assert six.value == 1
    assert math.atanh((six.low + six.high) / (1 + six.low * six.high)) / 2 == pytest.approx(math.atanh(1 - 6 / 210))


def test_without_windows_or_draws_nothing_is_decided() -> None:
    found = compare(result("A", losses=(), value=13.0), result("B", losses=(), value=14.0))
    assert (found.kind, found.better) == ("undecided", "A")
    (ranking,) = rank([result("A", losses=(), value=13.0), result("B", losses=(), value=14.0)])
    assert ranking.finding == "A has the lowest perplexity, 13.0; chance is not ruled out"
    assert "neither losses by window nor several draws were kept" in ranking.caption
    (one,) = rank([result("A", EASY_AND_HARD[:1]), result("B", EASY_AND_HARD[:1] + 1)])
    assert one.finding.startswith("No clear difference")
    assert "A single window cannot tell" in one.caption


LAYERS = frozenset({"a", "b"})


@pytest.mark.parametrize(
    ("one", "other", "said"),
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
def test_only_results_of_one_set_up_are_compared(one: dict, other: dict, said: str) -> None:
    setups = EvaluationSetup(**one), EvaluationSetup(**other)
    results = result("A", setup=setups[0]), result("B", EASY_AND_HARD + 1, setup=setups[1])
    assert setups[0].differs(setups[1]) == said
    assert compare(*results).kind == ("not comparable" if said else "better")
    (ranking,) = rank(results)
    assert (ranking.finding == f"Not ranked: A and B differ in {said}") == bool(said)


def test_amounts_are_ranked_by_themselves() -> None:
    half = [result("A at 0.5", amount="0.5"), result("B at 0.5", EASY_AND_HARD + WOBBLE, amount="0.5")]
    more = [result("A at 0.7", EASY_AND_HARD + 1, amount="0.7"), result("B at 0.7", EASY_AND_HARD + 2, amount="0.7")]
    assert says_ranking(rank([*half, *more])) == (
        "No clear difference between A at 0.5 and B at 0.5: perplexity 50.2 to 50.4; "
        "A at 0.7 has the lowest perplexity, 137"
    )
    alone = says_ranking(rank([half[0], more[0]]))
    assert alone == "Perplexity from 50.2 (A at 0.5) to 137 (A at 0.7)"
    assert says_ranking(rank([result("A", value=math.nan, losses=())])) == "Nothing has been measured yet"


# Time and value


def test_a_front_is_not_drawn_through_noise() -> None:
    # Identical work, timed twice: 80 and 40 s, 4 and 10 s.
    slow = [result("A", seconds=80.0), result("B", seconds=40.0)]
    fast = [result(name, EASY_AND_HARD + 0.5, seconds=time) for name, time in (("C", 4.0), ("D", 10.0))]
    found = front([*slow, *fast])
    assert found.is_on == (True, True, True, True)
    assert found.steps == (2, 1)
    near = front([result("A", seconds=10.0), result("B", EASY_AND_HARD + WOBBLE, seconds=9.0)])
    assert (near.is_on, len(near.steps)) == ((True, True), 1)
    beaten = front([result("A", seconds=10.0), result("B", EASY_AND_HARD + 0.5, seconds=9.0)])
    assert beaten.is_on == (True, False)
    slower = front([result("A", seconds=10.0), result("B", EASY_AND_HARD + WOBBLE, seconds=99.0)])
    assert slower.is_on == (True, False)


# Changes, and numbers that differ


def test_a_change_is_of_the_reference() -> None:
    assert verdicts.says_change(0.831, 1.0, "SparseGPT") == "16.9 % less error than SparseGPT"
    assert verdicts.says_change(1.2033, 1.0, "natural order") == "20.3 % more error than natural order"
    assert verdicts.says_change(0.3, 0.3, "SparseGPT") == "the same error as SparseGPT"
    assert verdicts.says_change(0.0, 0.0, "SparseGPT") == "the same error as SparseGPT"
    assert verdicts.says_change(0.831, 1.0, "SparseGPT", "") == "16.9 % less than SparseGPT"
    assert verdicts.says_change(0.1, 0.0, "SparseGPT") == "more error than SparseGPT, which has none"
    assert verdicts.says_change(1.0001, 1.0, "SparseGPT") == "0.010 % more error than SparseGPT"


def test_two_numbers_that_differ_are_shown_to_differ() -> None:
    assert wording.apart(12.98, 13.04) == ["12.98", "13.04"]
    assert wording.apart(20.0, 30.0) == ["20.0", "30.0"]
    assert wording.apart(13.0, 13.0) == ["13.0", "13.0"]
    assert wording.apart(1234.5, 1234.9) == ["1 234.5", "1 234.9"]
    assert wording.apart(519.51, 519.41) == ["519.5", "519.4"]  # not 520 and 519, ten times as far apart
    assert wording.apart(519.51, float("nan")) == ["520", "–"]
    whose = "the dense model's"
    unknown = compare(result("A", losses=(), value=12.98), result("B", losses=(), value=13.04))
    assert verdicts.says_move(12.98, 13.04, whose, unknown) == "from 12.98 to 13.04, 1.005 times the dense model's"
    same = compare(result("A"), result("B"))
    assert verdicts.says_move(13.0, 13.0, whose, same) == "from 13.0 to the same, to the last digit"
    near = compare(result("A"), result("B", EASY_AND_HARD + WOBBLE))
    assert verdicts.says_move(13.0, 13.04, whose, near).endswith(
        "(95 % interval over six windows 0.988 to 1.019, no clear difference; more windows may tell)"
    )


def test_windows_that_stand_out_are_told() -> None:
    before = [3.0, 3.5, 2.5, 4.0]
    assert verdicts.says_odd_windows(before, [4.0, 4.6, 3.4, 5.0]) == ""
    said = verdicts.says_odd_windows(before, [4.0, 4.6, 3.4, 7.05])  # rises of 1, 1.1, 0.9 and 3.05: 2 above the median
    assert said.startswith("In one of four windows the loss rose by 2.0 nats a token more than in the median one")
    assert f"makes perplexity {math.exp(2 / 4):.2f} times as high" in said
    wide = [4.0, 4.6, 2.9, 5.6]  # rises of 1, 1.1, 0.4 and 1.6: one is 0.55 above, and all of them differ
    assert verdicts.says_odd_windows(before, [4.0, 4.9, 2.6, 6.1]) == verdicts.says_odd_windows(before, wide) == ""
    assert verdicts.says_odd_windows([], [1.0]) == verdicts.says_odd_windows([1.0], []) == ""


# Cautions


def layers(**more: object) -> pd.DataFrame:
    table = {"layer": ["a", "b"], "tokens": 512, "columns": [256, 64], "dead_columns": 0, "is_damping_raised": False}
    return pd.DataFrame(table | {"relative_error": 0.1, "held_out_error": 0.12} | more)


@pytest.mark.parametrize(
    ("more", "brief", "said"),
    [
        ({"tokens": 128}, "fewer tokens than columns", "In one of two layers calibration tokens are fewer"),
        ({"dead_columns": [3, 0]}, "dead columns", "In one of two layers some input columns were 0"),
        ({"is_damping_raised": [True, None]}, "damping raised", "In one of two layers damping had to be raised"),
        ({"held_out_error": [0.16, 0.1]}, "over-fitted", "more than 1.5 times the calibration error"),
        (
            {"held_out_error": [np.inf, 0.1]},
            "held-out error infinite",
            "In one of two layers the held-out error is inf",
        ),
        ({"held_out_error": [np.nan, 0.1]}, "nothing held out", "In one of two layers nothing was held out"),
        ({"zeros_before": [0.5, 0.04]}, "zeros before", "more than 5 % of the weights were zero before pruning"),
        ({"sparsity": [1 / 3, 0.49], "asked_sparsity": 0.5}, "less removed than asked", "In one of two layers clearly"),
        ({"zeros_before": [0.04, 0.0003], "sparsity": [0.04, 0.0003]}, "nothing removed", "no more weights are zero"),
        (
            {"massive": ["channel 7", ""], "error_without_massive": [0.25, None]},
            "massive activations",
            "channel 7; error 0.100, without these channels 0.250",
        ),
    ],
)
def test_cautions_travel_with_a_result(more: dict, brief: str, said: str) -> None:
    assert list(verdicts.caution_column(layers(**more))) == [brief, ""]
    (sentence,) = verdicts.cautions(layers(**more))
    assert said in sentence
    (alone,) = verdicts.cautions(layers(**more).head(1))
    assert not alone.startswith("In ")


def test_a_caution_of_some_methods_of_a_layer_is_not_said_of_all() -> None:
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


def test_massive_activations_are_told_of_each_layer_by_its_worst_method() -> None:
    methods = [layers(massive=["channel 7", "channels 1 and 2"], error_without_massive=[x, x]) for x in (0.2, 0.3)]
    (sentence,) = verdicts.cautions(pd.concat(methods, ignore_index=True))
    assert sentence.endswith(
        ": a, channel 7; error 0.100, without these channels 0.300. "
        "b, channels 1 and 2; error 0.100, without these channels 0.300."
    )


def test_several_cautions_and_none() -> None:
    assert list(verdicts.caution_column(layers())) == ["", ""]
    assert list(verdicts.caution_column(layers(tokens=[256, 64]))) == ["", ""]  # as many tokens as columns
    both = layers(tokens=8, held_out_error=np.nan)
    assert list(verdicts.caution_column(both)) == ["fewer tokens than columns; nothing held out"] * 2
    assert len(verdicts.cautions(both)) == 2
    assert verdicts.cautions(layers()[["layer", "relative_error"]]) == []  # of what is not known, nothing is said


def test_rows_that_sum_up_layers_keep_their_cautions() -> None:
    assert verdicts.in_brief(layers(tokens=[128, 512], held_out_error=np.nan)) == (
        "fewer tokens than columns; nothing held out"
    )
    rows = pd.DataFrame({"draw": [0, 0, 1], "method": ["oats", "wanda", "oats"], "cautions": ["dead columns", "", ""]})
    assert verdicts.in_brief(rows) == "dead columns"
    (sentence,) = verdicts.cautions(rows, "draw")
    assert sentence == "In one of two draws some input columns were 0 on every token: by OATS in one."


def test_checks_are_counted_in_one_sentence() -> None:
    statuses = ["pass"] * 174 + ["look"] * 35 + ["fail"]
    assert verdicts.says_statuses(statuses, "layer") == "210 layers: one fails, 35 need review, 174 pass"
    assert verdicts.says_statuses(["pass"], "check") == "One check: none fails, none needs review, one passes"


def test_windows_are_known_to_be_other_ones_only_where_both_runs_say_so():
    one = {"calibration": "c4", "samples": 8, "seed": 0, "bos_token": None}
    assert not verdicts.on_other_windows(one, one | {"samples": None})
    assert not verdicts.on_other_windows(one, {"calibration": "c4", "length": 512})
    assert verdicts.on_other_windows(one, one | {"samples": 4})
    assert verdicts.on_other_windows(one, one | {"bos_token": 1})  # every window begins with another token


@pytest.mark.parametrize(
    ("ratios", "layers", "finding"),
    [
        ([0.9, 0.85, 0.94, 0.95], 10, "four of ten layers, and the same in six; over the four that differ, on average"),
        ([0.9, 1.1], 10, "one of ten layers, and the same in eight; over the two that differ, on average no clear"),
        ([0.9], 10, "one of ten layers, and the same in nine; there it is 10 % lower"),
        ([0.9] * 10, 10, "all ten layers; on average it is 10 % lower"),
        ([0.5], 1, "the one layer; there it is 50 % lower"),
    ],
)
def test_averages_are_over_layers_that_differ(ratios: list[float], layers: int, finding: str) -> None:
    rows = pd.DataFrame({"first": 1.0, "second": ratios + [1.0] * (layers - len(ratios))})
    assert verdicts.says_layers(rows, ("A", "B"), "error").startswith(f"B has the lower error in {finding}")
