"""Makes the finished runs that come with the app: python -m tests.benchmarks.example_runs [PARTS].

It works on the packaged model with few tokens, takes about half an hour on two cores, and writes
app/runs/example.json.gz.
"""

import gzip
import json
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import rose
from app.jobs import Run, run_to_end
from app.runs.checked import CheckpointRun
from app.runs.copies import CopyRun
from app.runs.damage import DamageRun
from app.runs.example import CHECKS, DAMAGE, FILE, PROMPT, REQUEST, SETUP, SLIM, SMALLER, parts
from app.runs.pruning import PruningRun
from app.runs.reading import SAMPLE, TextReading
from app.runs.slimming import Slimming, SmallerRun
from app.study.cache import Files
from app.study.structures import Structures
from app.study.study import Calibration, LoadedModel, Study
from rose.environment import says_versions
from rose.files import write_atomically
from rose.layer.pattern import METHOD
from rose.rows import finite, json_rows

BROKEN = ("model.layers.18.mlp.up_proj", 7, 16)  # the group of the checked copy that keeps three weights
READ = ("sparsegpt", METHOD)  # methods whose copies read the sample
DIGITS = 5  # of losses and chances


def follow(run: Run) -> None:
    run_to_end(run.job, lambda: f"{run.job.message}, {100 * run.fraction:.0f} %")


def records(run: CopyRun) -> dict[str, Any]:
    """Runs it; the records of the dense model and of the copies."""
    follow(run)
    assert run.dense is not None
    copies = [{"record": json.loads(copy.to_json()), "called": copy.called} for copy in run.copies]
    return {"dense": finite(dict(run.dense.results)), "copies": copies}


def rounded(values: torch.Tensor) -> list[Any]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def make_pruning(load: Any) -> dict[str, Any]:
    run = PruningRun(SETUP, REQUEST, load)
    part = records(run)
    places = [(copy.name, run.kept(copy)) for copy in run.copies if copy.method in READ]
    return {"pruning": part, "reading": make_reading(load, places)}


def make_reading(load: Any, places: Sequence[tuple[str, Path | None]]) -> dict[str, Any]:
    run = TextReading(SETUP, SAMPLE, {name: place for name, place in places if place}, load)
    follow(run)
    assert run.encoded is not None
    likely = {int(number) for reading in run.readings.values() for number in reading.likely.flatten()}
    return {
        "tokens": run.encoded.tokens[0].tolist(),
        "pieces": run.encoded.pieces,
        "readings": {
            name: {
                "losses": rounded(reading.losses),
                "likely": reading.likely.tolist(),
                "chances": [rounded(row) for row in reading.chances],
            }
            for name, reading in run.readings.items()
        },
        "vocabulary": {number: run.token(number) for number in sorted(likely)},
    }


def make_slimming(load: Any) -> dict[str, Any]:
    run = Slimming(SETUP, SLIM, load, prompt=PROMPT)
    part = records(run)
    assert run.speedup is not None
    return {"slimming": part | {"speedup": asdict(run.speedup)}}


def make_damage(load: Any) -> dict[str, Any]:
    run = DamageRun(DAMAGE, load)
    follow(run)
    return {"damage": {"records": [finite(asdict(record)) for record in run.records], "told": finite(run.facts)}}


def make_heads(load: Any) -> dict[str, Any]:
    study = Study(SETUP, load, Calibration(), Files(None, None), recall=False)
    run_to_end(study.job, lambda: f"{len(study.records())} measurements")
    structures = Structures(study)
    heads, channels = structures.head_costs(), structures.channel_costs(0)
    return {"heads": heads.round(9).to_dict("list"), "channels": channels.round(9).to_dict("list")}


def make_smaller(load: Any) -> dict[str, Any]:
    run = SmallerRun(SMALLER, load)
    follow(run)
    return {"smaller": [finite(asdict(row)) for row in run.rows]}


def make_check(load: Any) -> dict[str, Any]:
    model, tokenizer = rose.load_model(SETUP.model, dtype=SETUP.dtype)
    rose.prune_model(model, SETUP.draw(tokenizer)[0], method="sparsegpt", sparsity="2:4")
    layer, row, column = BROKEN
    with torch.no_grad():
        model.get_parameter(f"{layer}.weight")[row, column : column + 4] = torch.tensor([0.1, 0.2, 0.3, 0.0])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "two-of-four")
        rose.save_model(model, tokenizer, place)
        runs = {name: CheckpointRun(check.changed(pruned=(str(place),)), load) for name, check in CHECKS.items()}
        for run in runs.values():
            follow(run)
    return {name: checked(run) for name, run in runs.items()}


def checked(run: CheckpointRun) -> dict[str, Any]:
    assert run.check is not None
    part: dict[str, Any] = {name: json_rows(getattr(run.check, name)) for name in ("layers", "others")}
    part |= {"columns_of_others": list(run.check.others), "summary": finite(run.check.summary)}
    excerpts = {name: asdict(part) | {"removed": part.removed.tolist()} for name, part in run.excerpts.items()}
    return part | {"cautions": run.cautions, "seconds": run.seconds, "excerpts": excerpts}


MAKERS = {
    "pruning": make_pruning,
    "slimming": make_slimming,
    "damage": make_damage,
    "heads": make_heads,
    "smaller": make_smaller,
    "check": make_check,
}


def main() -> None:
    model = LoadedModel(*rose.load_model(SETUP.model, dtype=SETUP.dtype), threading.Lock())
    content = parts() if FILE.exists() else {}
    for name in sys.argv[1:] or MAKERS:
        content |= MAKERS[name](lambda: model) | {"made_with": says_versions()}
        write_atomically(FILE, gzip.compress(json.dumps(content).encode(), mtime=0))
        print(f"{FILE}: {FILE.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
