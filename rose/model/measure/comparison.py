"""Comparison of methods on one model: a row for every method, sparsity and calibration seed.

Perplexities after pruning vary by several per cent from rounding alone. So every mean comes with its spread over seeds,
and rows of different environments are never compared: see `rose.environment`.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import nan
from typing import Annotated, Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn

from rose import verdicts
from rose.environment import launched_place
from rose.errors import RoseError
from rose.files import check_small, expand
from rose.layer.pattern import parse_sparsity
from rose.model.defaults import TARGETS
from rose.model.measure.folder import MeasurementFolder
from rose.model.measure.perplexity import perplexity_of, window_losses
from rose.model.network.network import Network
from rose.model.progress import ProgressCallback
from rose.model.run.prune import prune_by
from rose.model.settings import PruneSettings, WalkSettings
from rose.rows import NotNegative, NotNegativeOrNan, Share, Within, csv_text, read_records, records_table
from rose.verdicts import EvaluationSetup, Result
from rose.wording import several

SAMPLE_SECONDS = 0.1  # between two looks at memory


def parse_variant(text: str) -> dict[str, str | None]:
    """Reads METHOD[@ORDER[/BUDGET]][:TARGET], such as "sparsegpt@random:1/layer", "alps:layer", as fields of a recipe,
    which checks them."""
    before, _, target = text.strip().rpartition(":")
    if target not in TARGETS:  # an order may hold a colon of its own, as "random:1" does
        before, target = text.strip(), ""
    method, _, rest = before.partition("@")
    order, _, budget = rest.partition("/")
    fields = {"method": method, "order": order or None, "budget": budget or None}
    return fields | ({"target": target} if target else {})


def plan_comparison(
    methods: Sequence[str], sparsities: Sequence[str], **options: Any
) -> list[tuple[str, PruneSettings]]:
    """The runs of a comparison, with the method as it was asked for, each once: by sparsity, then by method.

    `methods` as for `parse_variant`; `options` are fields of `PruneSettings` that all runs share. Raises RoseError
    without any method or sparsity, and for a combination that cannot run.
    """
    if not methods or not sparsities:
        raise RoseError("Name at least one method and one sparsity to compare.")
    names = dict.fromkeys(method.strip() for method in several(methods))
    walk = WalkSettings.among(options)
    runs = []
    for pattern, name in product(dict.fromkeys(map(parse_sparsity, sparsities)), names):
        variant = parse_variant(name)
        target = walk.towards(variant.get("target") or walk.target)
        run = PruneSettings.of(**{**options, **target, "sparsity": pattern, **variant})
        run.check()
        runs.append((name, run))
    return runs


def _read_losses(text: str) -> list[float] | None:
    losses = [float(loss) for loss in text.split()]
    return losses if losses or not text else None


NAME = re.compile(r"[\w .:,/+()@×-]{1,200}")  # a method as typed, in characters that no page takes for a command
Perplexity = Annotated[float, Within(1, or_nan=True)]


@dataclass(frozen=True)
class ComparisonRow:
    """One finished run. Errors are relative, means over layers; `seconds` is pruning alone; memory in bytes.

    `drift` of the residual stream is after the last pruned decoder block, None without held-out samples. `losses`
    are nats a token of each window, as text; `cautions` on layers, see `rose.verdicts.in_brief`. Rows of earlier
    versions have an empty environment, losses and cautions.
    """

    method: Annotated[str, NAME.fullmatch]
    sparsity: Annotated[str, parse_sparsity]
    seed: Annotated[int, Within(0, 2**63)]
    perplexity: Perplexity
    dense_perplexity: Perplexity
    mean_relative_error: NotNegativeOrNan
    mean_held_out_error: Annotated[float | None, Within(0)]
    removed_fraction: Share
    seconds: NotNegative
    peak_memory: Annotated[int, Within(0, 10**15)]
    mean_target_error: float | None = None
    mean_held_out_target_error: float | None = None
    drift: float | None = None
    environment: str = ""
    losses: Annotated[str, _read_losses] = ""
    cautions: str = ""


FROM_SUMMARY = (
    *("mean_relative_error", "mean_held_out_error", "mean_target_error", "mean_held_out_target_error"),
    *("removed_fraction", "seconds"),
)


def read_comparison(source: str | bytes) -> pd.DataFrame:
    """A table of `ComparisonRow`s from a rows.csv, by its path or content, or from any CSV file with the columns
    method, sparsity, seed, perplexity, mean_held_out_error and seconds.

    Raises RoseError for a missing file, for no rows, and for a value that no run can have, with its row.
    """
    if isinstance(source, str):
        check_small(source)
        source = expand(source).read_bytes()
    absent = {"dense_perplexity": nan, "mean_relative_error": nan, "removed_fraction": nan, "peak_memory": 0}
    rows = read_records(source.rstrip(b"\n") + b"\n", ComparisonRow, "comparison runs", absent)
    if not rows:
        raise RoseError("The file holds no runs yet.")
    return records_table(rows, ComparisonRow)


def compare_methods(
    model: nn.Module,
    calibration: Callable[[int], tuple[Tensor, Tensor | None]],
    windows: Tensor,
    plan: Sequence[tuple[str, PruneSettings]],
    *,
    seeds: Sequence[int],
    done: Sequence[ComparisonRow] = (),
    progress: Callable[[str], ProgressCallback | None] = lambda _run: None,
) -> Iterator[ComparisonRow]:
    """Prunes the model by every run and seed that is not done yet in this environment, and yields a row for each.

    While the caller has a row, the model is pruned; then its weights are restored, also after a stopped run.

    Args:
        calibration: seed -> (calibration tokens, held-out tokens or None), each (samples, length).
        plan: from `plan_comparison`.
        done: rows of an earlier, interrupted comparison.
        progress: run's name -> callback for `prune_model`.
    """
    network = Network(model)
    plan = [(name, run.in_columns(network.head_width)) for name, run in plan]
    for _, run in plan:
        network.to_prune(run.layers, run.pattern, run.block_columns, run.grid)
    environment = network.environment(plan[0][1].compute)
    draw = lru_cache(maxsize=1)(calibration)  # all runs of a seed come one after another
    done = [row for row in done if row.environment == environment]
    finished = {(row.method, row.sparsity, row.seed) for row in done}
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = done[0].dense_perplexity if done else perplexity_of(window_losses(network, windows))
    # Seeds outermost: an interrupted comparison has all methods on the first seeds.
    runs = list(product(dict.fromkeys(seeds), plan))
    place, processes = launched_place()  # of a launcher, which share a folder and divide the runs
    for seed, (name, run) in runs[place::processes]:
        pattern = str(run.pattern)
        if (name, pattern, seed) in finished:
            continue
        try:
            tokens, held_out = draw(seed)
            follow = progress(f"{name} {pattern} seed {seed}")
            with _peak_memory() as peak:
                report = prune_by(network, tokens, run, held_out=held_out, progress=follow)
                memory = peak()
            losses = window_losses(network, windows)
            yield ComparisonRow(
                method=name, sparsity=pattern, seed=seed, perplexity=perplexity_of(losses),
                dense_perplexity=before, environment=environment, losses=write_losses(losses),
                cautions=verdicts.in_brief(report.layers), peak_memory=memory, drift=report.last_drift,
                **{total: report.summary[total] for total in FROM_SUMMARY},
            )  # fmt: skip
        finally:
            model.load_state_dict(dense)
            for layer in network.layers:
                layer.keep_low_rank(None)


def write_losses(losses: Tensor) -> str:
    """Losses by window as text, exact enough to show that models are identical."""
    return " ".join(f"{loss:.12g}" for loss in losses.tolist())


@contextmanager
def _peak_memory() -> Iterator[Callable[[], int]]:
    """Largest memory of this process (on CUDA: of the device) so far, in bytes."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield torch.cuda.max_memory_allocated
        return
    process, peak, stop = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], process.memory_info().rss)
            if stop.wait(SAMPLE_SECONDS):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        stop.set()
        thread.join()


def over_seeds(table: pd.DataFrame, numbers: Sequence[str]) -> pd.DataFrame:
    """One row per method and sparsity: seeds, the mean of each number, and half its range as NUMBER_spread.

    Rows of several environments have a further column, environment. Half the range of three values shows their
    distance better than a standard deviation. A number that is missing for a seed makes both NaN: the others alone
    would flatter the method.
    """
    groups = table.groupby(keys_of(table), sort=False)
    complete = groups[[*numbers]].count().eq(groups.size(), axis=0)
    spreads = (groups[[*numbers]].max() - groups[[*numbers]].min()).where(complete) / 2
    means = pd.concat([groups["seed"].nunique().rename("seeds"), groups[[*numbers]].mean().where(complete)], axis=1)
    return means.join(spreads.add_suffix("_spread")).reset_index()


def keys_of(table: pd.DataFrame) -> list[str]:
    """The columns by which rows are averaged: method and sparsity, and the environment if there are several."""
    keys = ["method", "sparsity"]
    return [*keys, "environment"] if "environment" in table and table["environment"].nunique() > 1 else keys


def summarize(rows: Sequence[ComparisonRow]) -> pd.DataFrame:
    """Means per method and sparsity, `spread` of the perplexity, and the largest peak memory; see `over_seeds`."""
    table = records_table(rows, ComparisonRow)
    summary = over_seeds(table, ["perplexity", *FROM_SUMMARY, "drift"]).rename(columns={"perplexity_spread": "spread"})
    keys = keys_of(table)
    groups = table.groupby(keys, sort=False)
    summary["peak_memory"] = groups["peak_memory"].max().values
    summary["cautions"] = [verdicts.in_brief(group) for _, group in groups]
    further = table.columns[table.columns.get_loc("mean_relative_error") :].drop(["environment", "losses"])
    return summary[[*keys, "seeds", "perplexity", "spread", *further]]


def results_at(table: pd.DataFrame, sparsity: str, column: str = "perplexity") -> list[Result]:
    """A result per method and environment at one sparsity, with its value for every seed, if all values are finite.

    Perplexities have the losses by window if they were stored. `seconds` is the median, as a pause of the machine makes
    single times too long.
    """
    rows = table[table["sparsity"] == sparsity]
    results = []
    for _, group in rows.groupby([key for key in keys_of(table) if key != "sparsity"], sort=False):
        if not np.isfinite(group[column]).all():
            continue
        name, environment = str(group["method"].iloc[0]), group["environment"].iloc[0] if "environment" in group else ""
        losses = [tuple(map(float, str(text).split())) for text in group.get("losses", [])]
        is_complete = column == "perplexity" and len(set(map(len, losses))) == 1 and losses[0]
        drawn: dict[Any, tuple[float, ...]] = dict(zip(group["seed"], losses, strict=True)) if is_complete else {}
        results.append(
            Result(
                name=name,
                method=name,
                value=float(group[column].mean()),
                losses=verdicts.mean_losses(drawn),
                drawn_losses=drawn,
                draws=dict(zip(group["seed"], group[column].astype(float), strict=True)),
                setup=EvaluationSetup(environment=str(environment) or None),
                amount=sparsity,
                seconds=float(group["seconds"].median()),
            )
        )
    return results


def conclusions(table: pd.DataFrame) -> list[str]:
    """The verdict on a comparison, a sentence or two for each sparsity, see `rose.verdicts.rank`."""
    ranked = [verdicts.rank(results_at(table, sparsity)) for sparsity in table["sparsity"].unique()]
    return [f"At {each.results[0].amount}: {each.finding}. {each.caption}".strip() for (each,) in filter(None, ranked)]


def cautions_of(table: pd.DataFrame) -> list[str]:
    """Limits of trust in a comparison: "In all three draws …: by OATS in three", a sentence each."""
    if "cautions" not in table:
        return []
    return verdicts.cautions(table.assign(draw=table["sparsity"] + " " + table["seed"].astype(str)), "draw")


def to_markdown(rows: Sequence[ComparisonRow]) -> str:
    """Perplexity as mean ± spread: a line per method, a column per sparsity, a table per environment."""
    by_environment = {row.environment: [each for each in rows if each.environment == row.environment] for row in rows}
    tables = []
    for environment, group in by_environment.items():
        summary = summarize(group)
        columns = summary[["perplexity", "spread", "seeds"]].itertuples(index=False)
        summary["cell"] = [mean_and_spread(*values) for values in columns]
        cells = summary.set_index(["method", "sparsity"])["cell"].to_dict()
        sparsities = list(summary["sparsity"].unique())
        lines = [f"{environment}:\n"] if len(by_environment) > 1 else []
        lines += ["| method | " + " | ".join(sparsities) + " |", "|---" * (len(sparsities) + 1) + "|"]
        for method in summary["method"].unique():
            lines.append(f"| {method} | " + " | ".join(cells.get((method, s), "–") for s in sparsities) + " |")
        cautions = cautions_of(records_table(group, ComparisonRow))
        tables.append("\n".join([*lines, *(f"\n{caution}" for caution in cautions)]) + "\n")
    return "\n".join(tables)


def mean_and_spread(mean: float, spread: float, seeds: int) -> str:
    """A perplexity over seeds in words: "137.0 ± 14.6"; without the spread for one seed."""
    digits = 0 if mean >= 1000 else 1
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if seeds > 1 else "")


class ComparisonFolder(MeasurementFolder[ComparisonRow]):
    kind = ComparisonRow
    key = "method", "sparsity", "seed", "environment"
    holds = "comparison", "comparison runs"
    summaries = "summary.csv", "summary.json", "summary.md"

    def summarize(self, settings: dict[str, Any]) -> dict[str, str]:
        summary = summarize(self.rows)
        json_text = summary.to_json(orient="records", indent=1)
        return dict(zip(self.summaries, (csv_text(summary), json_text, to_markdown(self.rows)), strict=True))
