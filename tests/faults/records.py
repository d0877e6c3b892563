"""Readers of reports, recipes and CSV files, for `tests.faults.mutations`: what they read is written again."""

import csv
import io
import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd

from app.results import pairs
from app.results.html_report import run_findings
from app.results.naming import labelled, name_apart
from app.study.tables import read_numbers
from rose.model.measure import comparison
from rose.model.measure.comparison import ComparisonFolder, ComparisonRow, cautions_of, conclusions
from rose.model.measure.damage import DamageReport, correlations, outliers
from rose.recipe import Recipe
from rose.report import RunReport
from rose.rows import DamageRecord, LayerRecord, PartRecord, read_damages, read_records, records_table
from tests.faults.mutations import KINDS, NUMBERS, TEXTS, Change, Reader, change_bytes, change_json_file

MEASURES = ("perplexity", "mean_held_out_error", "seconds")
LAYERS = [f"model.layers.{number}.{name}" for number in range(2) for name in ("self_attn.o_proj", "mlp.down_proj")]
NUMBERED = pd.DataFrame({"layer": LAYERS, "value": [0.1, 2.0, -3.0, 1e9]})


def layer_record(number: int, method: str = "rose") -> LayerRecord:
    place = (LAYERS[number], number // 2, LAYERS[number].split(".", 3)[3], 8, 16, method)
    errors = (0.5, 0.6, number == 0, 0.1 + number, 0.2 + number)
    return LayerRecord(
        *(*place, *errors, 0.01, 0, 0.5, "natural", "block"), target_error=0.3, tokens=64, target="dense"
    )


def part_record(block: int) -> PartRecord:
    numbers = (4, 3, 2, 2, 512, 384, 0.1, 0.2, 0.15, 0, 0.5)
    more: dict[str, Any] = {"columns": 16, "tokens": 64, "dead_columns": 0, "damping": 0.01}
    return PartRecord(*(block, "heads", LAYERS[2 * block], "obs", "exact", *numbers), **more)


RECIPE: dict[str, Any] = {"model": "tiny", "method": "rose", "sparsity": "0.5", "target": "dense", "damping": 0.01}
RECIPE |= {"seed": 0, "calibration": "packaged", "samples": 4, "length": 16, "evaluated_on": "packaged"}
DRIFT = [{"block_index": block, "drift": 0.1, "passed_on": 0.05, "arisen": 0.05} for block in range(2)]
RESULTS: dict[str, Any] = {"perplexity_before": 20.0, "perplexity_after": 30.0, "windows": 2, "held_out_samples": 2}
RESULTS |= {"losses_before": [3.0, 2.9], "losses_after": [3.3, 3.4], "environment": {"processor": "A", "torch": "2.8"}}
RESULTS |= {"text_cautions": ["The text is short."], "padded_windows": 1, "seconds": 3.0, "bos_token": None}
RESULTS |= {"drift": DRIFT}
TUNED: dict[str, Any] = {"steps": 9, "steps_planned": 9, "kept_step": 9, "zeros": 256, "weights": 512, "samples": 4}
TUNED |= {"length": 16, "seconds": 60.0, "rate": 0.001, "minutes": 1.0, "held_out_dense": 3.0, "loss": "kl", "seed": 0}
TUNED |= {"perplexity_before": 40.0, "losses_before": [3.5, 3.6], "change": dict.fromkeys(LAYERS, 0.1)}
TUNED |= {"curve": [{"step": step, "seconds": 6.0 * step, "loss": 3.0, "held_out": 3.1} for step in (0, 9)]}
PRUNED = RunReport.from_records([layer_record(number) for number in range(4)], RECIPE, **RESULTS)


def write_slimmed(folder: Path) -> Path:
    """Heads were taken out, then weights were pruned and tuned twice."""
    parts = records_table([part_record(block) for block in range(2)], PartRecord)
    recipe = {**RECIPE, "run": "slim", "method": "obs", "ratio": 0.2, "target": "layer"}
    slimmed = {"block_parameters": 1024, "kept_block_parameters": 800, "remarks": ["Another share has gone."]}
    more = {"tuned": TUNED, "tuned_before": [TUNED], "perplexity_slimmed": 25.0}
    results = {**RESULTS, **slimmed, **more, "losses_slimmed": [3.1, 3.2]}
    return _saved(folder, RunReport(parts, results, recipe, then=PRUNED))


def write_study(folder: Path) -> Path:
    methods = ["rose", "wanda"]
    records = [layer_record(number, method) for method in methods for number in range(4)]
    recipe = {name: value for name, value in RECIPE.items() if name != "method"}
    recipe |= {"run": "analyze", "methods": methods}
    write_accuracies(folder)
    return _saved(folder, RunReport.from_records(records, recipe, **RESULTS))


def write_accuracies(folder: Path) -> Path:
    """Beside a report of one run, which is read faster than that of a study."""
    (folder / "zero_shot.csv").write_text("task,questions,accuracy,accuracy_error\npiqa,20,0.6,0.1\n")
    return _saved(folder, PRUNED).with_name("zero_shot.csv")


def _saved(folder: Path, report: RunReport) -> Path:
    report.save(folder)
    return folder / "report.json"


def read_report(path: Path) -> str:
    """What the commands and the pages say of a report, and the report that `rose tune` would write next."""
    report = RunReport.load(path)
    runs = list(name_apart(report.runs).values())
    labelled(runs)
    texts = [*(remark for run in runs for remark in run.remarks), *pairs.cautions_of(runs)]
    texts += [pairs.says_perplexities(runs), *map(pairs.says_lost, runs)]
    texts += [sentence for run in runs for sentence in run_findings(run)]
    texts += [str(table) for table in (pairs.numbers(runs), pairs.settings(runs))]
    texts += [str(pairs.pair(runs[0], run)) for run in runs[1:]]
    tuned = [*report.summary.get("tuned_before", []), TUNED]
    with tempfile.TemporaryDirectory() as folder:
        report.without_errors().with_summary(tuned=TUNED, tuned_before=tuned).save(folder)
        return "\n".join([report.to_json(), *texts, RunReport.load(folder).to_json()])


PRUNE = {"run": "prune", "model": "tiny", "sparsity": 0.5, "samples": 4, "length": 16, "layers": ["*.0.*"]}


def write_recipe(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"recipe": 1, **PRUNE}))  # which is YAML as well
    return path


def read_recipe(path: Path) -> str:
    recipe = Recipe.read(path, "output=copy")
    assert str(Recipe.parse(str(recipe), "output=copy")) == str(recipe)
    return str(recipe)


def change_csv(content: bytes, chance: Random) -> Change:
    """Changes the bytes, one cell, one line or one column."""
    kind = chance.choice(["bytes", "cell", "cell", "cell", "cell", "line twice", "line left out", "column", "header"])
    if kind == "bytes":
        return change_bytes(content, chance)
    rows = list(csv.reader(io.StringIO(content.decode())))
    at, column = chance.randrange(1, len(rows)), chance.randrange(len(rows[0]))
    if kind == "cell":
        other = chance.choice(chance.choice(rows))
        rows[at][column] = chance.choice([str(chance.choice(NUMBERS)), chance.choice(SPELLINGS), other])
    elif kind == "line twice":
        rows.insert(at, rows[chance.randrange(len(rows))])
    elif kind == "line left out":
        del rows[at]
    elif kind == "column":
        for row in rows:
            row[column : column + 1] = chance.choice([[], [row[column], row[column]]])
    else:
        rows[0][column] = chance.choice([*TEXTS, *rows[0]])
    written = io.StringIO()
    csv.writer(written, lineterminator=chance.choice(["\n", "\r\n"])).writerows(rows)
    return kind, written.getvalue().encode(errors="surrogatepass")


SPELLINGS = (*TEXTS, "Infinity", "-iNf", "1e999", "+nan", "1_0", "²", "0x10", " 1 ", "1,5", "inf\0", "9" * 400, "true")


def write_damages(folder: Path) -> Path:
    numbers = (0.5, 0.1, 0.2, 0.3, 0.04, 3.2, 0.1, 0.1, 0.01, 1.1, 0.5)
    records = [DamageRecord(name, at // 2, name[15:], 128, *numbers) for at, name in enumerate(LAYERS)]
    records.append(DamageRecord("*", -1, "", 512, *numbers))
    return _written(folder, records_table(records, DamageRecord))


def write_comparison(folder: Path) -> Path:
    rows = [
        ComparisonRow(method, "0.5", seed, 20.0 + seed, 10.0, 0.1, 0.2, 0.5, 2.0, 10**9, 0.1, 0.2, 0.1, "A", losses)
        for seed in range(3)
        for method, losses in (("rose", "3.0 2.9"), ("wanda", "3.1 3.0"))
    ]
    return _written(folder, records_table(rows, ComparisonRow))


def _written(folder: Path, table: pd.DataFrame) -> Path:
    table.to_csv(folder / "rows.csv", index=False)
    return folder / "rows.csv"


def read_damage_rows(path: Path) -> str:
    report = DamageReport.from_records(read_damages(path))
    tables = [correlations(report.units), outliers(report.units)] if len(report.units) else []
    return "\n".join([json.dumps(report.summary), *map(str, tables)])


def read_comparison_rows(path: Path) -> str:
    rows = read_records(path, ComparisonRow, "runs")
    table = records_table(rows, ComparisonRow)
    return "\n".join([comparison.to_markdown(rows), *conclusions(table), *cautions_of(table)]) if rows else ""


def read_seeds(path: Path) -> str:
    table = comparison.read_comparison(str(path))
    shown = [
        comparison.results_at(table, sparsity, name) for sparsity in table["sparsity"].unique() for name in MEASURES
    ]
    shown += [comparison.over_seeds(table, MEASURES), *conclusions(table), *cautions_of(table)]
    return "\n".join(map(str, shown))


def write_settings(folder: Path) -> Path:
    ComparisonFolder(folder, {"windows": 2})
    write_comparison(folder)
    return folder / "settings.json"


# Changes after which a file says something else.
LAWFUL = frozenset(("cell", "line twice", "line left out", "column", "header", *KINDS))
LAWFUL |= frozenset(("replaced", "scaled", "removed", "renamed", "exchanged", "nested"))
READERS = [
    Reader(name, write, read, change, LAWFUL)
    for name, write, read, change in (
        ("report", lambda folder: _saved(folder, PRUNED), read_report, change_json_file),
        ("report of two stages", write_slimmed, read_report, change_json_file),
        ("report of a study", write_study, read_report, change_json_file),
        ("accuracies", write_accuracies, lambda path: read_report(path.with_name("report.json")), change_csv),
        ("recipe", write_recipe, read_recipe, change_json_file),
        ("damages", write_damages, read_damage_rows, change_csv),
        ("comparison", write_comparison, read_comparison_rows, change_csv),
        ("seeds", write_comparison, read_seeds, change_csv),
        (
            "settings",
            write_settings,
            lambda path: str(ComparisonFolder(path.parent, {"windows": 2}).rows),
            change_json_file,
        ),
        (
            "numbers",
            lambda folder: _written(folder, NUMBERED),
            lambda path: str(read_numbers(str(path), LAYERS)),
            change_csv,
        ),
    )
]
