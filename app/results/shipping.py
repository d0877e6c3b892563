"""What to ship: which of several pruned copies, why, at what cost, and how sure that is. No Streamlit here.

The Prune page and the HTML report both ask here; `app.runs.checkpoints.worth_keeping` keeps those that are recommended.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app import words
from app.runs.files import gguf_types
from app.runs.request import HELD_OUT
from rose.model.load.tokens import DATASETS
from rose.verdicts import Interval, Result, Verdict, rank

OF_EQUALS = "The lowest perplexity decides; more evaluation windows may tell them apart."


@dataclass(frozen=True)
class Advice:
    """A recommendation among the copies of one sparsity.

    Attributes:
        copy: the one to ship.
        others: the rest, the lowest perplexity first, and the verdict on `copy` and each of them.
    """

    copy: Result
    others: tuple[tuple[Result, Verdict], ...]

    def reasons(self) -> list[str]:
        """Why this copy, a sentence for each verdict."""
        if not self.others:
            return [f"No other copy at {self.copy.amount} is finished."]
        found: dict[str, list[tuple[Result, Verdict]]] = {}
        for pair in self.others:
            found.setdefault(pair[1].kind, []).append(pair)
        said = []
        if better := found.get("better"):
            said.append(f"Better than {_names(better)}: {_times(better)}.")
        if alike := found.get("identical"):
            said.append(f"Identical by construction to {_names(alike)}.")
        if unclear := found.get("no clear difference"):
            said.append(f"No clear difference from {_names(unclear)}: {_times(unclear)}. {OF_EQUALS}")
        if undecided := found.get("undecided"):
            said.append(f"Lower in perplexity than {_names(undecided)}; chance is not ruled out.")
        return said

    def sure(self) -> str:
        """What the verdicts rest on; "" without any."""
        known = next((verdict.reason for _, verdict in self.others if verdict.ratio), "")
        if not known:
            return ""
        return (
            f"How sure: by the {known}, each on one calibration draw. Another draw can change the order of close "
            "copies, and the lowest of several is a little better by luck."
        )


def says(advice: Advice, dense: float | None, error: float | None, layers: int, size: str = "") -> str:
    """All of it in one paragraph, for a report; `size` is what `takes` says."""
    said = [cost(advice, dense, error, layers), *advice.reasons(), advice.sure(), size]
    return f"What to ship: {advice.copy.name}. {' '.join(filter(None, said))}"


def advise(results: Sequence[Result]) -> list[Advice]:
    """A recommendation for every sparsity whose copies may be compared, in the order of the results: that which
    `rose.verdicts.rank` has first. The time of pruning is spent in all copies, and says nothing of what one is worth.
    """
    return [
        Advice(one.results[0], tuple(zip(one.results[1:], one.verdicts, strict=True)))
        for one in rank(results)
        if not one.problem
    ]


def what_loads(bits: int | None) -> str:
    """Which programs load a copy whose kept weights were rounded to so many bits, None where they were not."""
    said = f"transformers as it is; rose packed; llama.cpp as a GGUF of {' or '.join(gguf_types(bits))}"
    return said if bits is None else f"{said}, pruned layers exact"


def where(evaluated_on: str, calibration: str) -> str:
    """What a perplexity promises that was measured on the calibration text's own windows; "" for another text's."""
    if evaluated_on not in (HELD_OUT, calibration) or evaluated_on in DATASETS:  # which have a part to test on
        return ""
    kind = ", which is a single manual, Python's reference" if calibration == "packaged" else ""
    return (
        f"Perplexity is on windows of the calibration text{kind}; on other text a copy can lose several times as much, "
        "so read some with it before you ship."
    )


def takes(plain: float | None, packed: float | None) -> str:
    """ "538 MB as a checkpoint, 151 MB packed."; "" where it was not measured."""
    if not plain or not packed:
        return ""
    return f"It takes {words.size(plain)} as a checkpoint, {words.size(packed)} packed."


def _names(pairs: Sequence[tuple[Result, Verdict]]) -> str:
    return words.listing([other.name for other, _ in pairs])


def _times(pairs: Sequence[tuple[Result, Verdict]]) -> str:
    """ "its perplexity is 1.041 (1.020 to 1.062) times this one's"."""
    ratios = words.listing([_said(verdict.ratio) for _, verdict in pairs])
    return f"{'its' if len(pairs) == 1 else 'their'} perplexity is {ratios} times this one's"


def _said(ratio: Interval | None) -> str:
    if ratio is None or math.isfinite(ratio.high):
        return str(ratio)
    if math.isinf(ratio.value):
        return words.number(ratio.value)
    return f"{words.number(ratio.value)} (of a single window, which cannot tell it from chance)"


def cost(advice: Advice, dense: float | None, error: float | None, layers: int) -> str:
    """What the copy costs: perplexity against the dense model, error, and time."""
    copy = advice.copy
    one, two, *_ = words.apart(copy.value, dense or math.nan, *(other.value for other, _ in advice.others))
    said = f"Perplexity {one}"
    if dense:
        said += f", {words.number(copy.value / dense)} times the dense model's {two}"
    if error is not None:
        said += f"; held-out error {words.number(error)} on average over {words.count(layers, 'layer')}"
    how = "pruned and tuned" if copy.is_tuned else "pruned"
    return said + ("." if math.isnan(copy.seconds) else f"; {how} in {words.duration(copy.seconds)}.")
