"""What to ship: the recommendation follows perplexity, and the verdicts say how sure it is."""

import math
from dataclasses import replace

from app.results import shipping
from app.runs.checkpoints import worth_keeping
from rose.verdicts import EvaluationSetup, Result

WINDOWS = (2.0, 3.0, 2.5, 2.8)


def copy(name: str, more: float, noise: float, seconds: float, amount: str = "0.7", **setup: str) -> Result:
    """A copy that loses so many nats more than the windows' own, give or take the noise."""
    losses = tuple(loss + more + noise * sign for loss, sign in zip(WINDOWS, (1, -1, -1, 1), strict=True))
    value = math.exp(sum(losses) / len(losses))
    return Result(name, name, value, losses, {}, EvaluationSetup(**setup), amount, seconds)


CLEAR, BEST = copy("slow and bad", 0.5, 0.01, 90), copy("best", 0.0, 0.01, 60)
CLOSE, FAST = copy("close", 0.01, 0.03, 50), copy("fast", 0.02, 0.04, 10)


def test_the_lowest_perplexity_is_recommended_however_long_it_took() -> None:
    for some in ([CLEAR, BEST], [BEST, CLOSE, CLEAR], [CLEAR, FAST, BEST, CLOSE]):
        assert worth_keeping(some) == ["best"]


def test_each_sparsity_has_its_own_reasons() -> None:
    half = copy("half", -0.5, 0.01, 20, "0.5")
    first, second = shipping.advise([CLEAR, FAST, BEST, half])
    better, unclear = first.reasons()
    assert better.startswith("Better than slow and bad: its perplexity is 1.6")
    assert unclear.startswith("No clear difference from fast: its perplexity is 1.02")
    assert unclear.endswith(shipping.OF_EQUALS)
    assert "four windows, paired" in first.sure()
    assert (second.copy, second.reasons(), second.sure()) == (half, ["No other copy at 0.5 is finished."], "")
    assert shipping.cost(second, 12.0, 0.25, 21) == (
        "Perplexity 7.96, 0.664 times the dense model's 12.0; held-out error 0.250 on average over 21 layers; "
        "pruned in 20 s."
    )


def test_seconds_of_a_tuned_copy_are_not_called_those_of_pruning() -> None:
    (advice,) = shipping.advise([replace(BEST, is_tuned=True), CLEAR])
    assert shipping.cost(advice, None, None, 2).endswith("; pruned and tuned in 60 s.")


def test_a_copy_and_another_that_is_worse_do_not_read_alike() -> None:
    (advice,) = shipping.advise([copy("worse", 0.001, 0.0, 5), copy("best", 0.0, 0.0, 5)])
    assert advice.reasons()[0].startswith("Better than worse")
    assert shipping.cost(advice, None, None, 2) == "Perplexity 13.13; pruned in 5 s."  # the other has 13.14
    assert shipping.cost(advice, 13.129, None, 2).startswith("Perplexity 13.131, 1.00 times the dense model's 13.129")


def test_copies_that_cannot_be_compared_get_no_recommendation() -> None:
    one, other = (copy(windows, 0.0, 0.01, 5, windows=windows) for windows in ("four windows", "eight windows"))
    assert not shipping.advise([one, other])


def test_windows_of_the_calibration_text_promise_little() -> None:
    assert "Python's reference" in shipping.where("held out", "packaged")
    assert shipping.where("mine.txt", "mine.txt") == shipping.where("held out", "mine.txt") != ""
    for evaluated, calibration in (("test.txt", "train.txt"), ("wikitext2", "wikitext2"), ("wikitext2", "packaged")):
        assert shipping.where(evaluated, calibration) == ""
