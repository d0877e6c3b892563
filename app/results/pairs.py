"""Two finished runs side by side: their layers, their totals, and the settings that differ. No Streamlit here."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from app import words
from app.figures import style
from app.results.naming import settings_of
from rose import RunReport, verdicts
from rose.rows import ERRORS
from rose.verdicts import EvaluationSetup, Result

MEASURES = {  # column of the layers -> in words, as they follow "the"
    "held_out_error": "held-out error",
    "relative_error": "error on calibration",
    "held_out_target_error": "held-out error against the dense model",
    "target_error": "error against the dense model on calibration",
    "relative_range": "relative range",
    "sparsity": "sparsity",
    "change": "change by tuning",
}
SHOWN = 6  # runs that are shown if nobody chooses; more lines cannot be told apart
MOST = 12  # that somebody can choose: from then on marks of lines repeat, and names below bars overlap
PLACE = ["layer", "block_index", "projection"]


@dataclass(frozen=True)
class Pair:
    """Two runs, with names that differ, beside each other."""

    first: RunReport
    second: RunReport
    layers: pd.DataFrame  # that both have: layer, block_index, projection, and `COLUMN_first` and `COLUMN_second`
    left_out: int = 0  # layers that only one of them has
    problem: str = ""  # why no layer of one is compared with one of the other
    elsewhere: str = ""  # the problem where it is that of their environments: each has numbers, and none is subtracted

    @property
    def measures(self) -> dict[str, str]:
        """Those of `MEASURES` that both runs know: for some layer of both, or, where none corresponds, of their own."""
        known = self.apart if self.problem else lambda name: [self.rows(name)]
        return {name: label for name, label in MEASURES.items() if all(len(rows) for rows in known(name))}

    def rows(self, measure: str) -> pd.DataFrame:
        """The layers for which both know this number, as layer, block_index, projection, first, second."""
        if self.layers.empty:
            return pd.DataFrame(columns=[*PLACE, "first", "second"])
        count = [self.layers["layer"].isin(_counting(run, measure)["layer"]) for run in (self.first, self.second)]
        table = self.layers.loc[count[0] & count[1], [*PLACE, f"{measure}_first", f"{measure}_second"]]
        return table.set_axis([*PLACE, "first", "second"], axis=1).dropna().reset_index(drop=True)

    @property
    def told_apart_by(self) -> str | None:
        """The first error that both know, which is none where one was tuned: other measures are no better or worse."""
        return next((name for name in self.measures if name in ERRORS), None)

    def apart(self, measure: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        known = [_counting(run, measure)[[*PLACE, measure]].dropna() for run in (self.first, self.second)]
        one, two = (rows.set_axis([*PLACE, "value"], axis=1).reset_index(drop=True) for rows in known)
        return one, two


def _counting(run: RunReport, measure: str) -> pd.DataFrame:
    """The layers that count in means of this number: errors are those of pruned ones."""
    return run.pruned if measure in ERRORS else run.by_layer


def usual_choice(runs: Sequence[RunReport]) -> list[RunReport]:
    """Those that stand side by side if nobody chooses: the first that agree in what decides who loses more.

    That is the sparsity, the layers pruned and their shapes, whether each was pruned by itself, and the environment.
    The baseline comes first, and last what was tuned, which has no errors of layers; where no two agree, the first run
    stands alone.
    """
    groups: dict[object, list[RunReport]] = {}
    for run in runs:
        shapes = run.pruned[["layer", "rows", "columns"]].sort_values("layer").fillna(0)
        whole = tuple(shapes.itertuples(index=False, name=None))
        groups.setdefault((run.kind, run.start, run.asked, run.setup.environment, whole), []).append(run)
    alike = next((group for group in groups.values() if len(group) > 1), runs[:1])
    return sorted(alike[:SHOWN], key=lambda run: (run.is_tuned, run.method != style.BASELINE, run.target != "layer"))


def goes_on(run: RunReport, other: RunReport) -> bool:
    """Whether a run has pruned what the other had left of a model."""
    return run.start == "slimmed" and (other.place, other.kind) == (run.place, "slim")


def pair(first: RunReport, second: RunReport) -> Pair:
    one, two = first.by_layer, second.by_layer
    if one.empty or two.empty:
        return Pair(first, second, pd.DataFrame())
    both = one.merge(two, on="layer", suffixes=("_first", "_second"), sort=False)
    left_out, elsewhere = len(one) + len(two) - 2 * len(both), in_environments(first, second)
    if problem := elsewhere or _problem(first, second, both, left_out):
        return Pair(first, second, pd.DataFrame(), problem=problem, elsewhere=elsewhere)
    kept = [f"{name}_{which}" for name in MEASURES for which in ("first", "second")]
    where = {f"{name}_first": name for name in PLACE[1:]}
    return Pair(first, second, both[["layer", *where, *kept]].rename(columns=where), left_out)


def in_environments(first: RunReport, second: RunReport) -> str:
    """Why no number of one is compared with the other's, as a sentence: they were computed in different
    environments; "" where that is not known."""
    one, two = (EvaluationSetup(environment=run.setup.environment) for run in (first, second))
    if not (reason := one.differs(two)):
        return ""
    return (
        f"{first.name} and {second.name} differ in {reason}, so they are neither ranked nor subtracted; choose runs "
        "of one environment."
    )


def _problem(first: RunReport, second: RunReport, both: pd.DataFrame, left_out: int) -> str:
    """Why the layers of two runs do not correspond, as a sentence; `both`: those of the same name."""
    for name in ("rows", "columns"):
        known = both.dropna(subset=[f"{name}_first", f"{name}_second"])
        wrong = known[known[f"{name}_first"] != known[f"{name}_second"]]
        if len(wrong):
            at = wrong.iloc[0]
            sizes = [f"{at[f'rows_{which}']:.0f} × {at[f'columns_{which}']:.0f}" for which in ("first", "second")]
            return (
                f"These are models of different shapes: {at['layer']} is {sizes[0]} in one and {sizes[1]} in the "
                "other; choose runs on models of the same shape."
            )
    if both.empty:
        return "These runs have no layer in common; choose runs on models of the same shape."
    is_other = first.summary.get("model") != second.summary.get("model")
    if is_other and left_out and "slim" not in (first.kind, second.kind):
        return (
            f"These are different models, {len(first.by_layer)} layers in one and {len(second.by_layer)} in the other; "
            "choose runs on models of the same shape."
        )
    return ""


def _mean(run: RunReport, column: str) -> float:
    return run.pruned[column].mean()


COUNT, REMOVED, ACCURACY = "Columnar layers", "Weights removed", "Zero-shot accuracy, mean"
SHARES = (REMOVED, ACCURACY)
NUMBERS: dict[str, Callable[[RunReport], float | None]] = {
    "Perplexity": lambda run: run.number("perplexity_after"),
    "Perplexity of the dense model": lambda run: run.number("perplexity_before"),
    ACCURACY: lambda run: None if run.zero_shot is None else run.zero_shot["accuracy"].mean(),
    "Drift after the last decoder block": lambda run: run.drift[-1]["drift"] if run.drift else None,
    "Mean held-out error": lambda run: _mean(run, "held_out_error"),
    "Mean error on calibration": lambda run: _mean(run, "relative_error"),
    "Mean held-out error against the dense model": lambda run: _mean(run, "held_out_target_error"),
    "Mean error that pruning adds": lambda run: run.number("mean_pruning_error"),
    "Mean error that rounding adds": lambda run: run.number("mean_rounding_error"),
    REMOVED: lambda run: run.number("removed_fraction"),
    COUNT: lambda run: run.number("columnar_layers"),
    "Seconds, with any tuning": lambda run: run.number("seconds") and run.seconds,
}


def numbers(runs: Sequence[RunReport]) -> pd.DataFrame:
    """Totals of runs with different names: number, and a column for each run; without those that none has. Accuracies
    are of the tasks that all have which answered any."""
    answered = [run.zero_shot for run in runs if run.zero_shot is not None]
    tasks = verdicts.shared_tasks(answered)
    shared = [run if run.zero_shot is None else run.with_summary(zero_shot=_rows(run.zero_shot, tasks)) for run in runs]
    rows = [[name, *(read(run) for run in shared)] for name, read in NUMBERS.items()]
    table = pd.DataFrame(rows, columns=["number", *(run.name for run in runs)])
    return table.astype({run.name: float for run in runs}).dropna(thresh=2).reset_index(drop=True)


def _rows(table: pd.DataFrame, tasks: Sequence[str]) -> list[dict[str, Any]]:
    return table[table["task"].isin(tasks)].to_dict("records")


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """The same table with texts in place of numbers."""
    rows = [[name, *_said(name, *values)] for name, *values in table.itertuples(index=False)]
    return pd.DataFrame(rows, columns=table.columns)


def _said(name: str, *values: float) -> list[str]:
    """A total of each run in words: counts are whole, and other numbers that differ read differently, but for a share
    that is off by a few weights."""
    if name == REMOVED:
        return [words.percent(one, 2) for one in values]
    if name == COUNT:
        return [words.whole(int(one)) if one.is_integer() else words.number(one) for one in values]
    return words.apart(*values)


def result_of(run: RunReport) -> Result | None:
    """Its perplexity as `rose.verdicts` compares it; None where it has none, or no finite one."""
    return None if run.number("perplexity_after") is None else run.result


def results_of(runs: Iterable[RunReport]) -> list[Result]:
    return [one for run in runs if (one := result_of(run)) is not None]


def against_dense(run: RunReport) -> verdicts.Verdict | None:
    """The verdict on the dense model's perplexity and that of the run; None where one of them is not known."""
    before, after = run.number("perplexity_before"), result_of(run)
    if before is None or after is None:
        return None
    dense = replace(after, name="the dense model", value=before, losses=run.losses("before"))
    return verdicts.compare(dense, after)


def cautions_of(runs: Sequence[RunReport]) -> list[str]:
    """What `RunReport.remarks` says of them, each once, with the names of those that share it unless all do."""
    whose: dict[str, list[str]] = {}
    for run in runs:
        for caution in run.remarks:
            whose.setdefault(caution, []).append(run.name)
    every = len(runs)
    return [said if len(names) == every else f"{words.listing(names)}: {said}" for said, names in whose.items()]


def says_perplexities(runs: Sequence[RunReport]) -> str:
    """The verdict on their perplexities in sentences, on two whatever each has removed, and which have lost theirs; ""
    where there is nothing to say."""
    found = results_of(runs)
    said = [says_lost(run) for run in runs]
    if len(found) > 1:
        rankings = verdicts.rank([replace(one, amount="") for one in found] if len(found) == 2 else found)
        said = [f"{verdicts.says_ranking(rankings)}.", *(one.caption for one in rankings), *said]
    return " ".join(filter(None, said))


def says_lost(run: RunReport) -> str:
    """A sentence where it was evaluated and its perplexity is no finite number, which a file does not hold; else ""."""
    known, before = run.summary, run.number("perplexity_before")
    if before is None or not known.get("evaluated_on") or "perplexity_after" not in known or result_of(run) is not None:
        return ""
    return f"{run.name} takes perplexity {verdicts.says_lost(before)}."


def accuracies(first: RunReport, second: RunReport) -> pd.DataFrame | None:
    """Zero-shot accuracy by task where both have some: task, questions, first, second, and of one environment the
    change in points."""
    if first.zero_shot is None or second.zero_shot is None:
        return None
    both = first.zero_shot.merge(second.zero_shot, on=["task", "questions"], suffixes=("_first", "_second"))
    if both.empty:
        return None
    table = both[["task", "questions", "accuracy_first", "accuracy_second"]]
    table = table.set_axis(["task", "questions", "first", "second"], axis=1)
    return table if in_environments(first, second) else table.assign(points=100 * (table["second"] - table["first"]))


def settings(runs: Sequence[RunReport], *, only_different: bool = False) -> pd.DataFrame:
    """Settings of runs with different names: setting, and a column for each run; "–" where a run does not have it."""
    known = [settings_of(run) for run in runs]
    rows = [
        [name, *(one.get(name, "–") for one in known)] for name in dict.fromkeys(key for one in known for key in one)
    ]
    rows = [row for row in rows if not only_different or len(set(row[1:])) > 1]
    return pd.DataFrame(rows, columns=["setting", *(run.name for run in runs)])
