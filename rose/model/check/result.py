"""The results of a check, and the answer that they give."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Any

import pandas as pd

from rose.model.check.verdicts import Verdict
from rose.rows import finite, json_rows
from rose.verdicts import Interval, cautions, paired_ratio, says_perplexity
from rose.verdicts.smaller import MUCH_WORSE
from rose.wording import count, out_of, sentence, word

WRONG, WORSE, UNDECIDED, PARTIAL, SOUND = "wrong", "worse", "undecided", "partial", "sound"
CLOSE = 1.05  # ratio of the bounds of an interval that is narrow enough


@dataclass(frozen=True, eq=False)
class CheckpointCheck:
    """The results of a check.

    Attributes:
        layers: a row a layer: name and place, `verdict`, `reason`, `is_wrong`, numbers of `WeightChange`, and with
            tokens errors (see `Costs`) and the method with the nearest mask.
        others: a row for each other tensor that differs, see `rose.model.check.others.table_of`.
        summary: totals; `gone`, see `Gone`; `rotated_heads`, output projections that are compared in another basis (see
            `rose.model.check.inputs`); with tokens drift by decoder block, perplexities, the method that masks are
            `nearest` to, and as `method` the method that has made nearly all of them.
    """

    layers: pd.DataFrame
    others: pd.DataFrame
    summary: dict[str, Any]

    @property
    def is_sane(self) -> bool:
        """Whether no tensor is wrong; `headline` says what was measured."""
        return not (self.layers["is_wrong"].any() or self.others["is_wrong"].any())

    @property
    def wrong(self) -> pd.DataFrame:
        """Name, verdict and reason of all wrong tensors, the worst first."""
        tables = [self.layers.rename(columns={"layer": "name"}), self.others]
        table = pd.concat([part.loc[part["is_wrong"].astype(bool), ["name", "verdict", "reason"]] for part in tables])
        rank = table["verdict"].map(list(Verdict).index)
        return table.iloc[rank.argsort(kind="stable")].reset_index(drop=True)

    @property
    def by_error(self) -> pd.DataFrame:
        """Rows of the layers with a measured error: the wrong ones first, then the highest error."""
        table = self.layers if "error" in self.layers else self.layers.assign(error=nan)
        return table.dropna(subset=["error"]).sort_values(["is_wrong", "error"], ascending=False)

    @property
    def cautions(self) -> list[str]:
        """Sentences on how far the numbers can be trusted, see `rose.verdicts.cautions`."""
        table = self.layers[["layer", "columns"]].copy()
        table["zeros_before"] = self.layers["zeros_before"] / (self.layers["rows"] * self.layers["columns"])
        if self.summary["tokens"] and "error" in self.layers:
            table["tokens"] = self.layers["error"].notna().map({True: self.summary["tokens"], False: nan})
            table["massive"] = self.layers["massive"]
            table["relative_error"] = self.layers["dense_input_error"]
            table["error_without_massive"] = self.layers["error_without_massive"]
        return cautions(table)

    def to_dict(self) -> dict[str, Any]:
        """Headline, cautions, summary, layers and others as JSON values."""
        tables = {name: json_rows(getattr(self, name)) for name in ("layers", "others")}
        text = {"is_sane": self.is_sane, **vars(headline(self)), "cautions": self.cautions}
        return text | {"summary": finite(self.summary), **tables}

    def to_json(self) -> str:
        """As JSON; see `to_dict`."""
        return json.dumps(self.to_dict(), indent=1)


@dataclass(frozen=True)
class Headline:
    """The answer of a check: on faults, perplexity, and what was not measured."""

    # WRONG with a wrong tensor; else WORSE with a perplexity above `MUCH_WORSE` times the dense one, or none that
    # is finite; UNDECIDED where the windows do not tell whether it is; else PARTIAL where errors or perplexity were not
    # measured; else SOUND.
    status: str
    text: str


def headline(check: CheckpointCheck) -> Headline:
    """The answer to whether a checkpoint is what it should be."""
    layers, summary = check.layers, check.summary
    unmeasured = _unmeasured(layers, summary)
    perplexity, ratio = "", None
    if "perplexity_after" in summary:
        perplexity = f"The copy's perplexity on {summary['evaluated_on']} goes {says_perplexity(summary)[0]}."
        ratio = _ratio(summary)
    if not check.is_sane:
        wrong, number_wrong = check.wrong, int(layers["is_wrong"].sum())
        counts = [out_of(number_wrong, len(layers), "layer")] if number_wrong else []
        counts += [count(len(wrong) - number_wrong, "other part")] if len(wrong) > number_wrong else []
        sizes = wrong["verdict"].value_counts(sort=False)
        names = [f"{name} ({word(int(size))})" if len(sizes) > 1 else str(name) for name, size in sizes.items()]
        verb = "is" if len(wrong) == 1 else "are"
        faults = f"{sentence(' and '.join(counts))} {verb} wrong: {', '.join(names)}."
        return Headline(WRONG, " ".join(filter(None, [faults, perplexity, unmeasured])))
    if ratio is not None and not ratio.high <= MUCH_WORSE:
        tests = f"The tests of single layers find no fault in {count(len(layers), 'layer')}."
        if ratio.low <= MUCH_WORSE:
            perplexity += " More windows would tell whether it is above twice the dense model's."
        status = UNDECIDED if ratio.low <= MUCH_WORSE else WORSE
        return Headline(status, " ".join(filter(None, [perplexity, tests, unmeasured])))
    by = "" if summary["tokens"] else " by the weights alone"
    pruned = int((layers["verdict"] != Verdict.NOT_PRUNED).sum())
    part = f" ({word(pruned)} pruned)" if 0 < pruned < len(layers) else ""
    faults = f"No fault was found in {count(len(layers), 'layer')}{part}{by}."
    return Headline(PARTIAL if unmeasured else SOUND, " ".join(filter(None, [faults, perplexity, unmeasured])))


def so_far(check: CheckpointCheck) -> str:
    """The answer of a stage of a check that goes on."""
    return f"So far: {headline(check).text.replace(' not measured', ' not measured yet')}"


def is_decided(summary: Mapping[str, Any]) -> bool:
    """Whether the windows tell if perplexity is above `MUCH_WORSE` times the dense one, and its ratio well enough."""
    ratio = _ratio(summary)
    is_narrow = ratio.is_clear or ratio.high <= CLOSE * ratio.low
    return ratio.low > MUCH_WORSE or (ratio.high <= MUCH_WORSE and is_narrow)


def _ratio(summary: Mapping[str, Any]) -> Interval:
    """The copy's perplexity by the dense model's, with its interval over windows; infinite where it is not finite."""
    before, after = summary["losses_before"], summary["losses_after"]
    point = summary["perplexity_after"] / summary["perplexity_before"]
    if not math.isfinite(point):
        point = math.inf
    if point == math.inf or before == after or not before or len(before) != len(after):
        return Interval(point, point, point)
    return paired_ratio(after, before)


def _unmeasured(layers: pd.DataFrame, summary: Mapping[str, Any]) -> str:
    """A sentence that names missing measurements; "" without any."""
    if not summary["tokens"]:
        return "Errors and perplexity were not measured."
    changed = layers[(layers["moved"] > 0) | (layers["zeros"] != layers["zeros_before"])]
    missing = int(changed["error"].isna().sum()) if "error" in layers else len(changed)
    parts = [f"errors of {count(missing, 'layer')}"] if missing else []
    parts += [] if "perplexity_after" in summary else ["perplexity"]
    if not parts:
        return ""
    return f"{sentence(' and '.join(parts))} {'was' if parts == ['perplexity'] else 'were'} not measured."
