"""`rose analyze`, `compare`, `damage`, `evaluate` and `check`: commands that measure a model and do not change it.

`compare` and `damage` write each row as soon as it is measured.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from torch import Tensor

import rose
from rose import verdicts
from rose.commands import shared, terminal
from rose.environment import launched_place
from rose.files import expand, reachable
from rose.layer.columnar import WIDEST, paper_figures
from rose.layer.settings import LayerSettings, SharedSettings
from rose.model.check.check import EVEN, better_by_layer, check_in_stages, common_masks
from rose.model.check.findings import FEW, findings, lines
from rose.model.check.result import UNDECIDED, WORSE, WRONG, CheckpointCheck, headline, so_far
from rose.model.estimate import (
    estimate_cost,
    estimate_damage,
    estimate_evaluation,
    estimate_memory,
    pruning_cost,
    sweeps_of,
)
from rose.model.load.models import parse_dtype
from rose.model.measure import comparison, zero_shot
from rose.model.measure.comparison import ComparisonFolder, ComparisonRow
from rose.model.measure.damage import (
    WHOLE,
    DamageFolder,
    DamageRecord,
    DamageReport,
    dense_weights,
    outliers,
    rank_correlation,
)
from rose.model.measure.perplexity import perplexity_of
from rose.model.network.layers import PrunableLayer, count_parameters, keep_low_rank
from rose.model.network.network import Network
from rose.model.network.precision import Precision
from rose.model.network.residence import pick_device
from rose.model.settings import ChosenLayers, NamedSettings, WalkSettings
from rose.model.workers import Workers
from rose.output import check_file, check_output, write_file
from rose.recipe.file import Recipe
from rose.recipe.steps import Analyze, CheckCopies, Compare, Damage, Evaluate
from rose.rows import csv_text, finite, json_rows, pruned_rows, records_table
from rose.wording import count, number, percent

MOST = f"the most columnar layer of at most {WIDEST} columns"
ANSWERED = 2  # stages of a check that have a line each: weights, and perplexity
UNSOUND = 3  # exit status
SHOWN = 10  # layers in the table of errors of a check
ERRORS = {"held_out_error": "held-out error", "error": "error", "mask_error": "mask alone", "possible_error": "refit"}
ADDED = ("methods", "sparsity", "seeds", "seed")  # may be added to a folder later; all its rows share the others


def analyze(spec: Analyze, console: Console) -> None:
    """Prunes every layer by several methods, on the dense model's inputs."""
    methods, shared_settings = list(spec.methods), spec.pick(SharedSettings.fields())
    for method in methods:
        LayerSettings(method=method, **shared_settings)  # refuses what does not fit, before a model is loaded
    if spec.output:
        check_output(spec.output)
    spec = shared.settle_dtype(spec, spec.model)
    model, tokenizer = shared.load(spec, console)
    sizes = spec.extent | spec.pick(("layers", "compute"))
    seconds = estimate_cost(model, sweeps=sweeps_of(methods), **sizes).seconds
    estimates = [partial(estimate_memory, method=method, layers=spec.layers) for method in methods]
    shared.tell_cost(spec, "Analyzing", seconds, estimates, model, console)
    tokens, held_out, cautions = shared.calibration(spec, tokenizer)
    most = _MostColumnar()
    with terminal.bar(console, "Analyzing") as follow:
        chosen = shared_settings | {"methods": methods, "layers": spec.layers}
        seen = {"seen": most.see} if spec.output and Workers.here().count == 1 else {}
        how: dict[str, Any] = {**chosen, **seen, "compute": spec.compute, "split": spec.split}
        records = list(rose.analyze_model(model, tokens, held_out=held_out, progress=follow, **how))
    network = Network(model)
    columns = spec.in_columns(network.head_width)
    facts: dict[str, Any] = {"samples": spec.samples, "length": spec.length, "held_out_samples": spec.held_out}
    facts["bos_token"] = network.bos_in_front(tokens)
    # The settings that were used, which may differ from the requested ones.
    precision = network.precision(spec.compute)
    facts |= {"compute": precision.describe()["compute"], "environment": precision.environment(network.device)}
    if most.layer is not None:
        with console.status("Trying orders on the most columnar layer"):
            facts["paper"] = asdict(paper_figures(*most.layer, columns))
    report = rose.RunReport.from_records(records, chosen, **facts).signed(spec, text_cautions=cautions)
    if spec.output:
        Workers.here().from_first(lambda: _save(report, spec))
    _print_analysis(report, spec, "relative_error" if held_out is None else "held_out_error")
    if spec.output:
        terminal.say(f"Orders were tried on {most.layer[0]}, {MOST}." if most.layer else most.why_none)


class _MostColumnar:
    """The most columnar layer so far among layers that are narrow enough to try orders on."""

    def __init__(self) -> None:
        self.layer: tuple[str, Tensor, rose.InputStatistics] | None = None
        self.range = 0.0
        self.why_none = f"No orders were tried: that takes a single process, and a layer of at most {WIDEST} columns."

    def see(self, layer: PrunableLayer, statistics: rose.InputStatistics, record: rose.LayerRecord) -> None:
        if statistics.columns <= WIDEST:
            alike = "blocks of columns lose alike in every layer"
            self.why_none = f"No orders were tried: {alike} of at most {WIDEST} columns."
        if statistics.columns <= WIDEST and record.relative_range > self.range:
            self.layer = layer.name, layer.weight.detach().clone(), statistics
            self.range = record.relative_range


def _save(report: rose.RunReport, spec: Analyze) -> None:
    folder = spec.output
    assert folder is not None
    try:
        report.save(folder)
        Recipe(spec).write(folder)
    except OSError as problem:
        raise rose.RoseError(f"The report cannot be written to {folder} ({problem.strerror}); make room.") from problem


def _print_analysis(report: rose.RunReport, spec: Analyze, error: str) -> None:
    """Prints every layer, the largest relative range first, and means."""
    name, methods = error.replace("_", " "), list(spec.methods)
    pruned = pruned_rows(report.layers)
    table = report.layers if pruned.empty else pruned  # experts may be left dense
    wide = table.pivot(index="layer", columns="method", values=error)[methods]
    places = table.drop_duplicates("layer").set_index("layer")
    is_undecided = places["range_low"].le(spec.threshold) & places["range_high"].ge(spec.threshold)
    verdict = places["is_columnar"].map({True: "columnar", False: "no"}).mask(is_undecided, "undecided")
    facts = places[["relative_range"]].assign(columnar=verdict)
    shares = table.assign(share=table["mask_error"] / table["relative_error"])
    shares = shares.pivot(index="layer", columns="method", values="share")[methods].dropna(axis=1, how="all")
    numbers = wide.add_suffix(f" {name}").join(shares.add_suffix(" mask's share"))
    ranked = facts.join(numbers).sort_values("relative_range", ascending=False).reset_index()
    columnar, undecided = int(places["is_columnar"].sum()), int(is_undecided.sum())
    title = f"{columnar} of {len(places)} layers are columnar (relative range above {spec.threshold:g})"
    if undecided:
        title += f", and other windows of text may call {undecided} otherwise"
    terminal.print_table(ranked, f"{title}\n{spec.conditions}")
    terminal.say(*report.remarks)
    if len(shares.columns):
        terminal.say("Mask's share: what an exact refit leaves of the calibration error; the sequence costs the rest.")
    means = [f"{method} {wide[method].mean():.4f}" for method in methods]
    terminal.say(f"Mean {name} over layers: {', '.join(means)}")
    first, *rest = methods
    relative = {method: verdicts.mean_ratio(wide[first], wide[method]) for method in rest}
    if ratios := [f"{method} {ratio.value:.3f}" for method, ratio in relative.items() if ratio]:
        terminal.say(f"Mean over layers of the error relative to {first}'s: {', '.join(ratios)}")


def compare(spec: Compare, console: Console) -> None:
    """Compares methods over sparsities and calibration draws."""
    methods, sparsities, seeds = spec.methods, spec.sparsity, spec.seeds
    names = {*WalkSettings.fields(), *ChosenLayers.fields(), *SharedSettings.fields()} - {"sparsity"}
    plan = comparison.plan_comparison(methods, sparsities, **spec.pick(names))
    runs = [run for _, run in plan]
    reachable(spec.output)  # before the model's format is read
    spec = shared.settle_dtype(spec, spec.model)
    folder = ComparisonFolder(
        spec.output, {name: value for name, value in spec.to_dict("changes").items() if name not in ADDED}
    )
    model, tokenizer = shared.load(spec, console)
    windows = shared.windows(spec, spec.evaluate, tokenizer)

    @lru_cache(maxsize=1)
    def draw(seed: int) -> tuple[Tensor, Tensor | None]:
        return shared.calibration(spec, tokenizer, seed=seed)[:2]

    first, _ = draw(seeds[0])
    Recipe(spec).write(spec.output)
    folder.know(model, {"evaluation": windows, f"calibration (seed {seeds[0]})": first})
    once = sum(pruning_cost(spec, model, run.method, run.target).seconds for run in runs)
    passes = (1 + len(runs) * len(seeds)) * estimate_evaluation(model, tokens=windows.numel())
    kinds = {(run.method, run.target == "dense") for run in runs}
    memory = partial(estimate_memory, layers=spec.layers, sequential=spec.true_sequential)
    estimates = [partial(memory, method=name, dense_targets=dense) for name, dense in kinds]
    copied = count_parameters(model) * parse_dtype(spec.dtype).itemsize  # a copy of the dense weights, to restore them
    shared.tell_cost(spec, "Comparing", len(seeds) * once + passes, estimates, model, console, besides=copied)
    with terminal.bar(console, "Comparing") as follow:

        def begin(doing: str) -> Any:
            follow(0.0, doing)
            return partial(follow, doing=doing)

        for row in comparison.compare_methods(
            model, draw, windows, plan, seeds=seeds, done=folder.rows, progress=begin
        ):
            folder.add(row)
            console.print(f"{row.method} {row.sparsity} seed {row.seed}: perplexity {row.perplexity:.2f}")
    if not folder.rows:  # this process had no run
        return
    for where in dict.fromkeys(row.environment for row in folder.rows):  # rows of different ones are not compared
        rows = [row for row in folder.rows if row.environment == where]
        dense = rows[0].dense_perplexity
        rounded = f", kept weights in {spec.grid.brief}" if spec.grid else ""
        title = f"Perplexity on {spec.evaluate}, {count(len(windows), 'window')}; dense {dense:.2f}{rounded}"
        _print_comparison(rows, title)
        terminal.say(f"Computed with {where or 'an earlier version, which did not say where'}")
    terminal.say(f"Rows and summaries are in {spec.output}")


def _print_comparison(rows: Sequence[ComparisonRow], title: str) -> None:
    """Perplexity, error and time of every method, in 80 columns; the files have the rest."""
    summary = comparison.summarize(rows)
    held_out, drift = summary["mean_held_out_error"], summary["drift"]
    columns = {
        "method": summary["method"],
        "sparsity": summary["sparsity"],
        "perplexity": list(map(comparison.mean_and_spread, summary["perplexity"], summary["spread"], summary["seeds"])),
        "error": summary["mean_relative_error"].map("{:.4f}".format),
        "held-out": held_out.map("{:.4f}".format).where(held_out.notna(), "–"),
        "drift": drift.map("{:.3f}".format).where(drift.notna(), "–"),
        "time": summary["seconds"].map("{:.0f} s".format),
    }
    terminal.print_table(pd.DataFrame(columns), title)
    table = records_table(rows, ComparisonRow)
    terminal.say(*comparison.conclusions(table), *comparison.cautions_of(table))


def damage(spec: Damage, console: Console) -> None:
    """Measures what the model loses by each layer or decoder block alone."""
    if launched_place()[1] > 1:
        raise rose.RoseError("damage measures in one process; start it without torchrun.")
    reachable(spec.output)  # before the model's format is read
    spec = shared.settle_dtype(spec, spec.model)
    pruning = {} if spec.restore is None else dict.fromkeys(("method", "sparsity"))  # of who restores: nobody's
    device = pick_device()
    environment = Precision.of("float32", parse_dtype(spec.dtype), device).environment(device)
    settings = spec.to_dict("changes") | pruning | {"environment": environment}
    folder = DamageFolder(spec.output, settings)
    if not any(row.unit == WHOLE for row in folder.rows):
        _measure_damage(spec, folder, console)
    _print_damage(DamageReport.from_records(folder.rows, restore=spec.restore))
    terminal.say(f"Rows and summary are in {spec.output}")


def _measure_damage(spec: Damage, folder: DamageFolder, console: Console) -> None:
    """Adds the rows that are missing to the folder."""
    model, tokenizer = shared.load(spec, console)
    restore = None
    if spec.restore is not None:
        dense = model
        model, _ = shared.load(spec, console, spec.restore, tokenizer=spec.model)
        restore = dense_weights(dense, model, spec.layers)
    tokens, windows, _ = shared.calibration(spec, tokenizer)
    if spec.evaluate is not None:
        windows = shared.windows(spec, spec.evaluate, tokenizer)
    assert windows is not None
    Recipe(spec).write(spec.output)
    folder.know(model, {"calibration": tokens, "evaluation": windows})
    (samples, length), (many, window_length) = tokens.shape, windows.shape
    sizes = {"samples": samples, "length": length, "windows": many, "window_length": window_length}
    chosen: dict[str, Any] = spec.pick([*NamedSettings.fields(), "units"])
    sweeps = 0 if restore else sweeps_of([spec.method])
    cost = estimate_damage(model, **sizes, layers=spec.layers, units=spec.units, sweeps=sweeps)
    shared.tell_cost(spec, "Measuring", cost.seconds, [], model, console)

    def keep(row: DamageRecord) -> None:
        folder.add(row)
        if row.unit != WHOLE:
            loss = f"{row.delta_loss:+.4f}".replace("-", "−")
            facts = f"loss {loss} ± {row.standard_error:.4f}, error {row.held_out_error:.4f}"
            console.print(f"{row.unit}: {facts}")

    done = {row.unit for row in folder.rows}
    with terminal.bar(console, "Measuring") as follow:
        rose.damage(model, tokens, held_out=windows, restore=restore, done=done, record=keep, progress=follow, **chosen)


def _print_damage(report: DamageReport) -> None:
    """Prints the damage of each unit, and how well the error predicts it."""
    table, summary = report.units, report.summary
    ranked = table.sort_values("damage", ascending=False)
    shown = ranked[["unit", "held_out_error", "drift", "damage", "standard_error"]]
    terminal.print_table(shown, "Damage, nats per token")
    terminal.say(*summary["cautions"])
    if len(table) > 2:
        depends = "which units the loss depends on"
        terminal.say(f"{verdicts.says_correlation('Held-out error', depends, rank_correlation(table))}.")
    if len(small := outliers(table)):
        terminal.say(f"Small error, large damage: {', '.join(small['unit'])}")
    if summary["together"] is not None:
        verb = "give back" if summary.get("restore") else "cost"
        terminal.say(
            f"All at once {verb} {number(summary['together'])} nats per token, the sum of each alone is "
            f"{number(summary['sum_of_damages'])}; loss without a change {number(summary['base_loss'])}"
        )


def evaluate(spec: Evaluate, console: Console) -> None:
    """Measures perplexity and zero-shot accuracy."""
    for file in filter(None, (spec.json_file, spec.output)):
        check_file(file)
    if spec.tasks is not None:
        zero_shot.check_installed()
        tasks = spec.tasks or zero_shot.TASKS
        zero_shot.task_manager(tasks, spec.task_folder, trust_remote_code=spec.trust_remote_code)
    spec = shared.settle_dtype(spec, spec.model)
    model, tokenizer = shared.load(spec, console)
    written = shared.origin(spec)
    if spec.evaluate is not None:
        windows = shared.windows(spec, spec.evaluate, tokenizer)
        losses = shared.losses(model, windows, console, "Perplexity", spec.compute)
        perplexity = perplexity_of(losses)
        written |= {
            "text": spec.to_dict()["evaluate"],
            "length": spec.length,
            "compute": spec.compute,
        }
        written |= {"perplexity": perplexity, "losses": losses.tolist()}
        of = f"{spec.model} on {spec.evaluate}, {count(len(windows), 'window')} of {spec.length}"
        terminal.say(f"Perplexity of {of}: {perplexity:.3f}")
    if spec.tasks is not None:
        chosen = spec.pick(("task_folder", "trust_remote_code", "limit", "bos"))
        table = zero_shot.zero_shot(model, tokenizer, tasks=tasks, **chosen)
        terminal.print_table(table, f"Zero-shot accuracy of {spec.model}")
        if spec.output:
            write_file(spec.output, csv_text(table))
        terminal.say(f"Mean accuracy {table['accuracy'].mean():.4f} over {len(table)} tasks")
        written |= {"limit": spec.limit, "accuracies": table.to_dict("records")}
    if spec.json_file:
        write_file(spec.json_file, json.dumps(finite(written), indent=1))


def check(spec: CheckCopies, console: Console) -> int:
    """Looks for faults in a checkpoint that was pruned from a dense model; returns 1 where something is wrong, and
    `UNSOUND` where a perplexity is above twice the dense model's, or may be."""
    if spec.json_file:
        check_file(spec.json_file)
    dense, tokenizer = shared.load(spec, console, spec.dense)
    tokens, held_out = shared.calibration(spec, tokenizer)[:2] if spec.calibration else (None, None)
    models: dict[str, Any] = {}
    checks: dict[str, CheckpointCheck] = {}
    for name in spec.pruned:
        models[name], _ = shared.load(spec, console, name, finite=False, tokenizer=spec.dense)
        keep_low_rank(models[name], expand(name))
        windows = None if tokens is None else spec.windows(tokenizer, tokens, held_out)
        with terminal.bar(console, "Checking") as follow:
            chosen = {"held_out": held_out, "windows": windows, **spec.pick(("methods", "compute"))}
            stages = check_in_stages(dense, models[name], tokens, progress=follow, **chosen)
            for number, checks[name] in enumerate(stages):
                if number < ANSWERED and tokens is not None:
                    console.print(so_far(checks[name]), soft_wrap=True, markup=False, highlight=False)
        if len(spec.pruned) > 1:
            terminal.say(f"{name}:")
        terminal.say(*(f"{about}: {text}" for about, text in lines(checks[name])))
        text = spec.drawn | {"bos_token": checks[name].summary["bos_token"]}
        terminal.say(*findings(checks[name], expand(name), text if spec.calibration else None))
        _print_errors(checks[name].by_error)
    tables = {pair: _print_pair(pair, models, checks) for pair in combinations(models, 2)}
    if spec.json_file:
        _write_checks(spec.json_file, checks, tables)
    for name, check in checks.items():
        wrong = list(check.wrong["name"])
        names = f" Wrong: {', '.join(wrong)}." if wrong else ""
        if spec.json_file and len(wrong) > FEW:
            names = f" {spec.json_file} names all {len(wrong)}."
        terminal.say(f"{name}: {headline(check).text}{names}")
    statuses = {headline(check).status for check in checks.values()}
    return 1 if WRONG in statuses else UNSOUND if statuses & {WORSE, UNDECIDED} else 0


def _print_errors(layers: pd.DataFrame) -> None:
    """Prints how much compensation recovered in the first `SHOWN` layers, if errors were measured."""
    if layers.empty:
        return
    table = layers.head(SHOWN)[["layer", *ERRORS, "recovered"]].dropna(axis=1, how="all").rename(columns=ERRORS)
    table["recovered"] = [percent(share, 0) for share in table["recovered"].astype(float)]
    terminal.print_table(table, "Errors of layers, those that are wrong first, then the highest")
    if len(layers) > SHOWN:
        terminal.say(f"… and {len(layers) - SHOWN} more, which --json FILE.json has")


def _print_pair(pair: tuple[str, str], models: dict[str, Any], checks: dict[str, CheckpointCheck]) -> pd.DataFrame:
    """Prints how two checkpoints differ, and returns it by layer."""
    first, second = pair
    masks = common_masks(models[first], models[second])
    common, chance = map(percent, masks[["jaccard", "chance"]].mean())
    terminal.say(f"{first} and {second} both remove {common} of the weights that either removes, {chance} by chance")
    better = better_by_layer(checks[first], checks[second], pair)
    counts = better["better"].value_counts()
    if len(counts):
        wins = [f"{name} has the lower error in {counts.get(name, 0)} layers" for name in pair]
        terminal.say(f"{wins[0]}, {wins[1]}; no clear difference in {counts.get(EVEN, 0)}")
    return masks.merge(better, on="layer", how="left")


def _write_checks(path: Path, checks: dict[str, CheckpointCheck], tables: dict[tuple[str, str], pd.DataFrame]) -> None:
    """Writes one check, or a list of several with their comparisons."""
    if len(checks) == 1:
        return write_file(path, next(iter(checks.values())).to_json())
    between = [{"checkpoints": pair, "layers": json_rows(table)} for pair, table in tables.items()]
    each = [{"checkpoint": name} | check.to_dict() for name, check in checks.items()]
    return write_file(path, json.dumps({"checkpoints": each, "between": between}, indent=1))
