"""Finished runs beside each other: layers, totals, verdicts, settings, drift, and a study. No Streamlit here."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import pandas as pd

from app import words
from app.figures import style
from app.results.naming import calibration_of
from app.runs.copies import CopyRun
from app.study.study import Study
from rose import RunReport, verdicts
from rose.layer.pattern import THRESHOLD
from rose.layer.registry import label_of
from rose.recipe.tools import settings_beside
from rose.rows import ERRORS
from rose.verdicts import EvaluationSetup, Result
from rose.verdicts.comparison import Ranking

MEASURES = {  # column of the layers -> in words, as they follow "the"
    "held_out_error": "held-out error",
    "relative_error": "error on calibration",
    "held_out_target_error": "held-out error against the dense model",
    "target_error": "error against the dense model on calibration",
    "relative_range": "relative range",
    "sparsity": "sparsity",
    "change": "change by tuning",
}
SHOWN = 4  # runs that are shown by default
MOST = 12  # runs that can be chosen: marks of further lines would repeat
PLACE = ["layer", "block_index", "projection"]
STUDIED = ("sparsegpt", "rose", "rose_global")  # methods whose errors a study has
DRIFT_SCALE = (
    "Drift 0: the hidden states are the dense model's. Drift 1: the difference is as large as these states. A run "
    "records the mean over tokens alone, so drift has no interval."
)
MISSING = "not recorded"
FACTS = {"environment": "Environment", "bos_token": "Beginning-of-sequence token", "minutes": "Minutes of tuning"}


@dataclass(frozen=True)
class Pair:
    """Two runs beside each other."""

    first: RunReport
    second: RunReport
    layers: pd.DataFrame  # of both runs: `PLACE`, and `COLUMN_first` and `COLUMN_second` for each of `MEASURES`
    left_out: int = 0  # number of layers that only one run has
    problem: str = ""  # why their layers do not correspond
    apart: str = ""  # the environments that differ, so that each has numbers and none is subtracted

    @property
    def measures(self) -> dict[str, str]:
        """Those of `MEASURES` that both runs have."""
        numbers = {name: self.rows(name)[["first", "second"]].notna().any() for name in MEASURES}
        return {name: label for name, label in MEASURES.items() if numbers[name].all()}

    def rows(self, measure: str) -> pd.DataFrame:
        """Layers for which both runs have this number: `PLACE`, first, second.

        If the runs are not compared, a row for each layer of each run, without the other run's number.
        """
        is_apart = bool(self.problem or self.apart)
        if self.layers.empty and not is_apart:
            return pd.DataFrame(columns=[*PLACE, "first", "second"])
        # Errors count for pruned layers only.
        tables = [run.pruned if measure in ERRORS else run.by_layer for run in (self.first, self.second)]
        if is_apart:
            runs = zip(tables, ("first", "second"), strict=True)
            parts = [table[[*PLACE, measure]].dropna().rename(columns={measure: which}) for table, which in runs]
            return pd.concat(parts, ignore_index=True)
        counts = [self.layers["layer"].isin(table["layer"]) for table in tables]
        table = self.layers.loc[counts[0] & counts[1], [*PLACE, f"{measure}_first", f"{measure}_second"]]
        return table.set_axis([*PLACE, "first", "second"], axis=1).dropna().reset_index(drop=True)

    @property
    def told_apart_by(self) -> str | None:
        """The first error that both runs have; None where a run was tuned."""
        return next((name for name in self.measures if name in ERRORS), None)


def usual_choice(runs: Sequence[RunReport]) -> list[RunReport]:
    """The runs shown by default: the first that agree in sparsity, layers, kind and environment.

    The baseline comes first and tuned runs last, as these have no errors of layers.
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
    tables = first.by_layer, second.by_layer
    if tables[0].empty or tables[1].empty:
        return Pair(first, second, pd.DataFrame())
    both = tables[0].merge(tables[1], on="layer", suffixes=("_first", "_second"), sort=False)
    left_out = len(tables[0]) + len(tables[1]) - 2 * len(both)
    apart = in_environments(first, second)
    if apart or (problem := _problem(first, second, both, left_out)):
        return Pair(first, second, pd.DataFrame(), problem="" if apart else problem, apart=apart)
    columns = [f"{name}_{which}" for name in MEASURES for which in ("first", "second")]
    places = {f"{name}_first": name for name in PLACE[1:]}
    return Pair(first, second, both[["layer", *places, *columns]].rename(columns=places), left_out)


def in_environments(first: RunReport, second: RunReport) -> str:
    """A sentence where the runs were computed in different environments, so that no number is compared; else ""."""
    ours, theirs = (EvaluationSetup(environment=run.setup.environment) for run in (first, second))
    reason = ours.differs(theirs)
    verdict = f"{first.name} and {second.name} differ in {reason}, so they are neither ranked nor subtracted"
    return f"{verdict}; choose runs of one environment." if reason else ""


def _problem(first: RunReport, second: RunReport, both: pd.DataFrame, left_out: int) -> str:
    """Why the layers of two runs do not correspond; `both` holds the layers of the same name."""
    problem, is_other = "", first.summary.get("model") != second.summary.get("model")
    for name in ("rows", "columns"):
        sizes = both.dropna(subset=[f"{name}_first", f"{name}_second"])
        wrong = sizes[sizes[f"{name}_first"] != sizes[f"{name}_second"]]
        if len(wrong) and not problem:
            row = wrong.iloc[0]
            ours, theirs = (f"{row[f'rows_{side}']:.0f} × {row[f'columns_{side}']:.0f}" for side in ("first", "second"))
            problem = f"These models have different shapes: {row['layer']} is {ours} in the first and {theirs} in the "
            problem += "second"
    if both.empty:
        problem = "These runs have no layer in common"
    elif not problem and is_other and left_out and "slim" not in (first.kind, second.kind):
        problem = f"These are different models with {len(first.by_layer)} and {len(second.by_layer)} layers"
    return f"{problem}; choose runs on models of the same shape." if problem else ""


def rounding_part(run: RunReport) -> float | None:
    """The share of rounding in what rounding and pruning add to the error on calibration tokens; None without it."""
    rounding, pruning = run.number("mean_rounding_error"), run.number("mean_pruning_error")
    return rounding / (rounding + pruning) if rounding and pruning is not None else None


PART = "Rounding's part"
COUNT, REMOVED, ACCURACY = "Columnar layers", "Weights removed", "Zero-shot accuracy, mean"
TIME = "Time, with any tuning"  # seconds; a duration on screen
NUMBERS: dict[str, Callable[[RunReport], float | None]] = {
    "Perplexity": lambda run: run.number("perplexity_after"),
    "Perplexity on plain English": lambda run: run.number("perplexity_second"),
    "Perplexity of the dense model": lambda run: run.number("perplexity_before"),
    "Perplexity of the dense model on plain English": lambda run: run.number("perplexity_second_before"),
    ACCURACY: lambda run: None if run.zero_shot is None else run.zero_shot["accuracy"].mean(),
    "Drift after the last decoder block": lambda run: run.drift[-1]["drift"] if run.drift else None,
    "Mean held-out error": lambda run: run.pruned["held_out_error"].mean(),
    "Mean error on calibration": lambda run: run.pruned["relative_error"].mean(),
    "Mean held-out error against the dense model": lambda run: run.pruned["held_out_target_error"].mean(),
    PART: rounding_part,
    REMOVED: lambda run: run.number("removed_fraction"),
    COUNT: lambda run: run.number("columnar_layers"),
    TIME: lambda run: run.number("seconds") and run.seconds,
}


def numbers(runs: Sequence[RunReport]) -> pd.DataFrame:
    """Totals: a column "number" and one for each run; accuracies are of the tasks that all runs answered."""
    answered = [table for run in runs if (table := run.zero_shot) is not None]
    tasks = verdicts.shared_tasks(answered)
    shared = [
        run if (table := run.zero_shot) is None
        else run.with_summary(zero_shot=table[table["task"].isin(tasks)].to_dict("records"))
        for run in runs
    ]  # fmt: skip
    rows = [[name, *(read(run) for run in shared)] for name, read in NUMBERS.items()]
    table = pd.DataFrame(rows, columns=["number", *(run.name for run in runs)])
    return table.astype({run.name: float for run in runs}).dropna(thresh=2).reset_index(drop=True)


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """The same table with texts in place of numbers; a missing number has a text that says so."""

    def texts(name: str, *values: float) -> list[str]:
        if name in (REMOVED, PART):
            return [words.percent(value) for value in values]
        if name == COUNT:
            return [words.whole(int(value)) if value.is_integer() else words.number(value) for value in values]
        if name == TIME:
            return ["–" if math.isnan(value) else words.duration(value) for value in values]
        return words.apart(*values) if name.startswith("Perplexity") else [words.number(value) for value in values]

    rows = [[name, *texts(name, *values)] for name, *values in table.itertuples(index=False)]
    return pd.DataFrame(rows, columns=table.columns).replace("–", MISSING)


def result_of(run: RunReport) -> Result | None:
    """Its perplexity as `rose.verdicts` compares it; None without a finite one."""
    return None if run.number("perplexity_after") is None else run.result


def results_of(runs: Iterable[RunReport]) -> list[Result]:
    return [result for run in runs if (result := result_of(run)) is not None]


def verdict_table(results: Sequence[Result]) -> list[dict[str, str]]:
    """The verdict on every pair at the same amount, a column each amount: the ratio of perplexities, with its interval.

    "≈" marks no clear difference; "=" the same model.
    """
    cells_by_pair: dict[str, dict[str, str]] = {}
    for first, second in combinations(results, 2):
        if first.amount == second.amount:
            names = [result.name.replace(f" at {result.amount}", "") for result in (second, first)]
            cells_by_pair.setdefault(" / ".join(names), {})[f"at {first.amount}"] = _cell(first, second)
    amounts = {amount: "" for cells in cells_by_pair.values() for amount in cells}
    return [{"Perplexity of": names, **amounts, **cells} for names, cells in cells_by_pair.items()]


def _cell(column: Result, row: Result) -> str:
    verdict = verdicts.compare(column, row)
    if verdict.kind == "identical":
        return "="
    if verdict.ratio is None:
        return "–" if verdict.kind == "not comparable" else f"≈ {words.number(row.value / column.value)}"
    return str(verdict.ratio) if verdict.kind == "better" else f"≈ {verdict.ratio}"


def cautions_of(runs: Sequence[RunReport]) -> list[str]:
    """Each caution once, with the names of the runs that have it unless all do, then runs with other numbers."""
    kinds: dict[str, dict[str, list[str]]] = {}  # names of runs, by caution
    for run in runs:
        for caution in run.remarks:
            kind = caution.partition(":")[0].partition(" layers ")[2] or caution
            kinds.setdefault(kind, {}).setdefault(caution, []).append(run.name)
    sentences = []
    for names_by_caution in kinds.values():
        (caution, names), *rest = names_by_caution.items()
        alike = words.listing([name for _, further in rest for name in further])
        sentence = caution if len(names) == len(runs) else f"{words.listing(names)}: {caution}"
        sentences.append(sentence + (f" The same, with other numbers: {alike}." if alike else ""))
    return sentences


def says_perplexities(runs: Sequence[RunReport]) -> str:
    """The verdict on their perplexities in a sentence; "" without a verdict.

    Of three or more runs it also names pairs behind the first that do not clearly differ.
    """
    results = results_of(runs)
    sentences = [says_lost(run) for run in runs]
    if len(results) < 2:
        return " ".join(filter(None, sentences))
    is_pair = len(results) == 2
    rankings = verdicts.rank([replace(result, amount="") for result in results] if is_pair else results)
    behind = sorted(results, key=lambda result: result.value)[1:]
    unclear = [
        f"No clear difference between {result.name} and {other.name}."
        for result, other in (() if is_pair else combinations(behind, 2))
        if result.amount == other.amount and verdicts.compare(result, other).kind == "no clear difference"
    ]
    return " ".join(filter(None, [f"{verdicts.says_ranking(rankings)}.", *unclear[:3], *sentences]))


def says_second(runs: Sequence[RunReport]) -> str:
    """The perplexity on plain English of the run with the lowest perplexity, after a space; "" where it has none."""
    best = min(runs, key=lambda run: run.number("perplexity_after") or math.inf)
    names = ("perplexity_second", "perplexity_second_before")
    second, dense = (words.number(best.number(name) or math.nan).replace("–", MISSING) for name in names)
    return f" On plain English {best.name} has {second}, the dense model {dense}." * (second != MISSING)


def says_lost(run: RunReport) -> str:
    """A sentence where the perplexity after the run is no finite number; else ""."""
    summary, before = run.summary, run.number("perplexity_before")
    was_evaluated = summary.get("evaluated_on") and "perplexity_after" in summary
    if before is None or not was_evaluated or result_of(run) is not None:
        return ""
    return f"{run.name} takes perplexity {verdicts.says_lost(before)}."


def settings(runs: Sequence[RunReport], *, only_different: bool = False) -> pd.DataFrame:
    """Settings of the recipes and facts of the runs: a column "setting" and one for each run."""
    rows = [[words.sentence(field.label), *texts] for field, texts in settings_beside([run.recipe for run in runs])]
    for name, label in FACTS.items():
        facts = [run.summary.get("tuned") or {} if name == "minutes" else run.summary for run in runs]
        texts = [str(summary.get(name, "–"))[:300] for summary in facts]
        if set(texts) != {"–"}:
            rows.append([label, *texts])
    rows = [row for row in rows if not only_different or len(set(row[1:])) > 1]
    return pd.DataFrame(rows, columns=["setting", *(run.name for run in runs)])


# ---- the copies of one run


def model_table(models: Sequence[RunReport]) -> pd.DataFrame:
    """One row per model, the dense one first: perplexity, its ratio to dense, mean errors, seconds."""
    totals = (
        *("mean_held_out_error", "mean_held_out_target_error", "columnar_layers"),
        *("mean_relative_error", "mean_target_error", "mean_pruning_error", "mean_rounding_error"),
    )
    rows = [
        {
            "method": model.method,
            "sparsity": model.asked,
            "perplexity": model.perplexity,
            "ratio_to_dense": model.perplexity / models[0].perplexity,
            **{name: model.summary.get(name) for name in totals},
            "drift": model.last_drift,
            "removed_fraction": model.summary.get("removed_fraction", 0.0),
            "seconds": model.seconds,
        }
        for model in models
    ]
    return pd.DataFrame(rows)


def accuracy_table(runs: Sequence[RunReport]) -> pd.DataFrame:
    """One row per run and task: task, questions, accuracy, accuracy_error (standard error), run, method."""
    columns = ["task", "questions", "accuracy", "accuracy_error"]
    answered = [(run, table[columns]) for run in runs if (table := run.zero_shot) is not None]
    tables = [table.assign(run=run.name, method=run.method) for run, table in answered]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def layer_table(copies: Sequence[RunReport]) -> pd.DataFrame:
    """The copies' layers, one under the other; `sparsity` is realised, `asked` as it was asked for.

    Tuning measures no errors, so tuned copies have no rows.
    """
    tables = [
        copy.layers.assign(asked=copy.summary["sparsity"], target=copy.target) for copy in copies if not copy.is_tuned
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


# ---- a study beside a copy


def differences(study: Study, table: pd.DataFrame, run: CopyRun | None) -> list[str]:
    """Why a study and the first copy of its model at the same sparsity differ; [] where they agree. `table` is of
    `Study.overview`."""
    if run is None or run.setup.model != study.setup.model:
        return []
    copies = [copy for copy in run.copies if copy.method in STUDIED and not copy.is_tuned]
    copies = [copy for copy in copies if copy.asked == study.setup.sparsity]
    return list(filter(None, (difference(study, table, copy) for copy in copies)))[:1]


def difference(study: Study, table: pd.DataFrame, copy: RunReport) -> str:
    """Mean error and columnar layers of the layers that both have, and what was done otherwise."""
    both = table.merge(copy.layers, on="layer", suffixes=("", "_there"))
    held = f"held_out_{copy.method}", "held_out_error"
    ours, there = held if both[list(held)].notna().all(axis=None) else (f"error_{copy.method}", "relative_error")
    if both.empty:
        return ""
    means = both[ours].mean(), both[there].mean()
    threshold = float(copy.summary.get("threshold", THRESHOLD))
    columnar = [int((both[name] > threshold).sum()) for name in ("relative_range", "relative_range_there")]
    if verdicts.is_same(*means) and columnar[0] == columnar[1]:
        return ""
    tokens = "held-out" if ours == held[0] else "calibration"
    first, second = words.apart(*means)
    in_study, in_copy = (words.count(number, "columnar layer") for number in columnar)
    return (
        f"{copy.name}: mean {tokens} error {second} and {in_copy}; in the study of layers {first} and {in_study}."
    ) + (f" Reasons: {', '.join(why)}." if (why := reasons(study, copy)) else "")


def reasons(study: Study, copy: RunReport) -> list[str]:
    """Differences of the copy's run from the study, most important first."""
    summary, setup = copy.summary, study.setup
    texts = [] if len(copy.layers) == 1 else ["inputs that are pruned already"]
    if copy.target == "dense":
        texts.append("the dense model's output as target")
    recipe = setup.recipe()
    names = ("compute", "sparsity", "block_size", "calibration", "samples", "length", "seed")
    differing = [name for name in names if name in summary and str(summary[name]) != str(getattr(recipe, name))]
    return texts + [f"other {words.listing([name.replace('_', ' ') for name in differing])}"] * bool(differing)


# ---- drift of the hidden states, see `rose.model.walk.storage.BlockDrift`


def drift_table(runs: Sequence[RunReport]) -> pd.DataFrame:
    """One row per run and decoder block: what is passed on to it, what arises in it, and the drift after it."""
    rows = [
        {"run": run.name, "method": run.method, "sparsity": run.asked, "target": run.target, **entry}
        for run in runs
        for entry in run.drift
    ]
    return pd.DataFrame(rows)


def drift_finding(runs: Sequence[RunReport]) -> str:
    """The effect of target dense where only the target differs; else the run of the least drift."""
    rankings = _drift_rankings(runs)
    for ranking in rankings:
        both = sorted(ranking.results, key=lambda result: result.target, reverse=True)
        is_pair = [result.target for result in both] == ["layer", "dense"] and both[0].method == both[1].method
        if is_pair and not ranking.problem:
            layer, dense = both
            before, after = words.apart(layer.value, dense.value)
            return (
                f"{label_of(dense.method)} at {dense.amount}: target dense brings the last decoder block's drift from "
                f"{before} to {after}"
            )
    return verdicts.says_ranking(rankings)


def _drift_rankings(runs: Sequence[RunReport]) -> list[Ranking]:
    """Of drifts after the last decoder block; only drifts on the same held-out tokens are compared."""
    setups = [replace(run.setup, windows=calibration_of(run), dense=None) for run in runs]
    results = [
        Result(run.name, run.method, run.drift[-1]["drift"], setup=setup, amount=run.asked, target=run.target)
        for run, setup in zip(runs, setups, strict=True)
    ]
    return verdicts.rank(results, "drift")
