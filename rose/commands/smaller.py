"""`rose smaller`: measures smaller copies on this machine, prints their table, and writes the best."""

import math
import shutil
import time
from collections.abc import Sequence

import pandas as pd
from rich.console import Console

import rose
from rose.commands import shared, terminal
from rose.environment import launched_place
from rose.files import reachable
from rose.interrupt import CANCELLED
from rose.model.load.models import parse_dtype
from rose.model.network.precision import Precision
from rose.model.network.residence import pick_device
from rose.recipe.file import Recipe
from rose.recipe.steps import Smaller
from rose.smaller.measure import Bench, SmallerFolder
from rose.smaller.table import Row, runtimes, says_llama
from rose.verdicts.smaller import GOALS, ZEROS, Recommendation, recommend, says_stored
from rose.wording import number, size

KEYS = {goal.replace(" ", "-"): goal for goal in GOALS}  # of --write


def smaller(spec: Smaller, console: Console) -> int:
    """Returns 130 if Ctrl-C has ended measuring; the table and the best copy so far are still written."""
    if launched_place()[1] > 1:
        raise rose.RoseError("smaller measures in one process; start it without torchrun.")
    start = time.perf_counter()
    reachable(spec.output)
    spec = shared.settle_dtype(spec, spec.model)
    device = pick_device()
    environment = Precision.of("float32", parse_dtype(spec.dtype), device).environment(device)
    settings = {name: value for name, value in spec.to_dict("changes").items() if name != "minutes"}
    folder = SmallerFolder(spec.output, settings | {"environment": environment})
    model, tokenizer = shared.load(spec, console)
    Recipe(spec).write(spec.output)
    with console.status("Estimating"):
        bench = Bench(spec, model, tokenizer, spec.output)
    bench.know(folder.rows)
    if spec.write and spec.write not in KEYS:
        bench.way(spec.write)
    folder.know(
        model, {"calibration": bench.tokens, **{f"evaluation {name}".strip(): t for name, t in bench.texts.items()}}
    )
    folder.bench = bench
    folder.add()  # writes the estimates
    status = 0
    try:
        _measure(bench, folder, 60 * spec.minutes - (time.perf_counter() - start), console)
    except KeyboardInterrupt:
        status = CANCELLED
        console.print("rose: cancelled; rows so far are kept")
    folder.add()
    _print(bench.rows)
    recommendations = recommend(bench.rows)
    advice = [recommendation.text for recommendation in recommendations]
    terminal.say(ZEROS, *bench.left_out, says_stored(bench.rows[0]), says_llama(bench.rows), *advice)
    _write(spec, bench, recommendations, console)
    programs = runtimes()
    usable = [f"{row.name} ({row.uses}): {row.gain}" for row in programs[programs["here"] == "yes"].itertuples()]
    terminal.say(f"Programs on this machine that use zeros or N:M: {'; '.join(usable) or 'none'}.")
    terminal.say(f"Table, record and copies are in {spec.output}; the same command measures further rows.")
    return status


def _measure(bench: Bench, folder: SmallerFolder, seconds: float, console: Console) -> None:
    """Measures rows, the most promising first, until no further row fits into the time."""
    with terminal.bar(console, "Measuring") as bar:
        follow = lambda name, share, doing: bar(share, f"{name}: {doing}")  # noqa: E731
        for row in bench.measured_rows(seconds, follow):
            folder.add(row)
            perplexities = f"perplexity {row.perplexity:.2f}, and {row.second_perplexity:.2f} on the second text"
            console.print(f"{row.name}: {size(row.bytes)} as {row.smallest}, {perplexities}", soft_wrap=True)


def _write(spec: Smaller, bench: Bench, recommendations: Sequence[Recommendation], console: Console) -> None:
    """Writes the chosen copy and removes the others."""
    goals = {recommendation.goal: recommendation.key for recommendation in recommendations}
    key = goals.get(KEYS[spec.write], "") if spec.write in KEYS else spec.write
    if spec.write is None:
        key = next(filter(None, goals.values()), "")
    if not key or not bench.way(key).steps:
        terminal.say("Nothing was written." if recommendations else "")
        return
    way = bench.way(key)
    if not (bench.folder / key).exists():
        with terminal.bar(console, f"Making {way.name}") as follow:
            bench.save(way, *bench.make(way, lambda share, doing: follow(share, f"{way.name}: {doing}")))
    for other in bench.ways:
        if other.key != key:
            shutil.rmtree(bench.folder / other.key, ignore_errors=True)
    terminal.say(f"Written: {way.name}, in {bench.folder / key}; its recipe.yaml makes it again.")


def _print(rows: Sequence[Row]) -> None:
    """Prints the columns that fit into 80 characters; table.csv has intervals and all other columns."""
    table = pd.DataFrame(
        {
            "way": [row.name for row in rows],
            "file": [row.smallest for row in rows],
            "bytes": [_cell(row, size(row.bytes)) for row in rows],
            "perplexity": [_cell(row, number(row.times or math.nan, 4)) for row in rows],
            "other text": [number(row.second_times or math.nan, 4) for row in rows],
            "reads": [_cell(row, number(row.prefill_gain or 1.0)) for row in rows],
            "writes": [number(row.decoding_gain or 1.0) if row.is_measured else "–" for row in rows],
            "min": [_cell(row, f"{row.minutes:.1f}") for row in rows],
        }
    )
    terminal.print_table(table, "Perplexity and speed are times the dense model's; ~ is an estimate")


def _cell(row: Row, text: str) -> str:
    return text if row.is_measured else f"~{text}"
