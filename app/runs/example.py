"""Finished runs that come with the app, so that no page opens empty; no Streamlit here.

`python -m app.runs.example [PARTS]` makes them anew on the packaged model with few tokens (about half an
hour on two cores) and writes example.json.gz beside this file: numbers and texts, no weights.
"""

from __future__ import annotations

import gzip
import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import rose
from app.jobs import Run, run_to_end
from app.runs.copies import dense_record
from app.runs.damage import DamageRequest, DamageRun
from app.runs.pruning import PruningRun
from app.runs.reading import SAMPLE, TextReading
from app.runs.request import PROMPT, PruneRequest
from app.runs.slimming import Slimming, Speedup
from app.runs.smaller import SmallerRun
from app.study.setup import Setup
from app.study.study import LoadedModel
from rose.environment import says_versions
from rose.files import write_atomically
from rose.layer.pattern import RECOMMENDED
from rose.model.measure.text import EncodedText, Reading
from rose.model.run.damages import DamageRecord
from rose.recipe.parts import SlimSettings
from rose.recipe.steps import Smaller
from rose.rows import finite
from rose.smaller import Row
from rose.verdicts import Interval

SETUP = Setup(samples=8, length=256)  # a quarter of the start page's tokens
FILE = Path(__file__).with_name("example.json.gz")
REQUEST = PruneRequest(
    ("sparsegpt", "rose", RECOMMENDED), ("0.5", "0.7"), window_length=SETUP.length, prompt=PROMPT, keep="all"
)
SLIM = SlimSettings.of(method="slimllm", ratio=0.2)
DAMAGE = DamageRequest("layers")
SMALLER = Smaller(model=SETUP.model, samples=SETUP.samples, length=SETUP.length, minutes=12.0, output=Path("smaller"))
READ = ("sparsegpt", RECOMMENDED)  # methods whose copies have read the sample
DIGITS = 5  # of losses and chances


@cache
def _parts() -> dict[str, Any]:
    return json.loads(gzip.decompress(FILE.read_bytes()))


def made_with() -> str:
    return str(_parts()["made_with"])


def _no_model() -> LoadedModel:
    raise rose.RoseError("This is the packaged example, which has numbers and no model; start a run of your own.")


def _finished(run: Any) -> Any:
    run.job.status, run.fraction = "done", 1.0
    return run


@cache
def pruning() -> PruningRun:
    """Six copies: three methods at 50 and at 70 %."""
    run, part = PruningRun(SETUP, REQUEST, _no_model), _parts()["pruning"]
    run.dense, run.copies = dense_record(part["dense"]), [_record(copy) for copy in part["copies"]]
    return _finished(run)


@cache
def slimming() -> Slimming:
    """A copy without a fifth of the decoder blocks' parameters."""
    part = _parts()["slimming"]
    run = Slimming(SETUP, SLIM, _no_model, prompt=PROMPT)
    run.dense, run.copies = dense_record(part["dense"]), [_record(copy) for copy in part["copies"]]
    speedup = part["speedup"]
    run.speedup = Speedup(Interval(**speedup["ratio"]), speedup["turns"], speedup["bound"])
    return _finished(run)


@cache
def damage() -> DamageRun:
    """Every layer pruned alone by SparseGPT at 70 %."""
    part = _parts()["damage"]
    run = DamageRun(SETUP, DAMAGE, _no_model, [DamageRecord(**_numbers(record)) for record in part["records"]])
    run.told = part["told"]
    return _finished(run)


@cache
def reading() -> TextReading:
    """The sample text, read by the dense model and by four copies."""
    part = _parts()["reading"]
    run = TextReading(SETUP, SAMPLE, (), _no_model)
    run.encoded = EncodedText(torch.tensor([part["tokens"]]), tuple(part["pieces"]))
    for name, reading in part["readings"].items():
        numbers = (torch.tensor(reading[key], dtype=torch.float64) for key in ("losses", "chances"))
        losses, chances = numbers
        run.readings[name] = Reading(losses, torch.tensor(reading["likely"]), chances)
    run.vocabulary = {int(number): text for number, text in part["vocabulary"].items()}
    return _finished(run)


@cache
def smaller() -> SmallerRun:
    """Ways to make the model smaller, as `rose smaller` has measured them."""
    run = SmallerRun(SMALLER, _no_model)
    run.rows = [Row(**row) for row in _parts()["smaller"]]
    return _finished(run)


@cache
def head_costs() -> pd.DataFrame:
    """As `app.study.structures.Structures.head_costs`."""
    return pd.DataFrame(_parts()["heads"])


def channel_costs() -> pd.DataFrame:
    """As `app.study.structures.Structures.channel_costs`, of decoder block 0."""
    return pd.DataFrame(_parts()["channels"])


def _record(stored: dict[str, Any]) -> rose.RunReport:
    record = rose.RunReport.from_json(json.dumps(stored["record"]), "The example")
    return replace(record, called=stored["called"])


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    """A record with NaN in place of null."""
    return {name: float("nan") if value is None else value for name, value in record.items()}


# How it is made


def _follow(run: Run) -> None:
    run_to_end(run.job, lambda: f"{run.job.message}, {100 * run.fraction:.0f} %")


def _stored(copy: rose.RunReport) -> dict[str, Any]:
    return {"record": json.loads(copy.to_json()), "called": copy.called}


def _rounded(values: torch.Tensor) -> list[Any]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def _make_pruning(load: Any) -> dict[str, Any]:
    run = PruningRun(SETUP, REQUEST, load)
    _follow(run)
    assert run.dense is not None
    part = {"dense": finite(dict(run.dense.results)), "copies": [_stored(copy) for copy in run.copies]}
    places = [(copy.name, run.kept(copy)) for copy in run.copies if copy.method in READ]
    return {"pruning": part, "reading": _make_reading(load, places)}


def _make_reading(load: Any, places: Sequence[tuple[str, Path | None]]) -> dict[str, Any]:
    from app.runs.kept_copies import Checkpoint

    run = TextReading(SETUP, SAMPLE, [Checkpoint(name, place) for name, place in places if place], load)
    _follow(run)
    assert run.encoded is not None
    likely = {int(number) for reading in run.readings.values() for number in reading.likely.flatten()}
    return {
        "tokens": run.encoded.tokens[0].tolist(),
        "pieces": run.encoded.pieces,
        "readings": {
            name: {
                "losses": _rounded(reading.losses),
                "likely": reading.likely.tolist(),
                "chances": [_rounded(row) for row in reading.chances],
            }
            for name, reading in run.readings.items()
        },
        "vocabulary": {number: run.token(number) for number in sorted(likely)},
    }


def _make_slimming(load: Any) -> dict[str, Any]:
    run = Slimming(SETUP, SLIM, load, prompt=PROMPT)
    _follow(run)
    assert run.dense is not None
    assert run.speedup is not None
    copies = [_stored(copy) for copy in run.copies]
    return {"slimming": {"dense": finite(dict(run.dense.results)), "copies": copies, "speedup": asdict(run.speedup)}}


def _make_damage(load: Any) -> dict[str, Any]:
    run = DamageRun(SETUP, DAMAGE, load)
    _follow(run)
    return {"damage": {"records": [finite(asdict(record)) for record in run.records], "told": finite(run.told)}}


def _make_heads(load: Any) -> dict[str, Any]:
    from app.study.cache import Files
    from app.study.structures import Structures
    from app.study.study import Calibration, Study

    study = Study(SETUP, load, Calibration(), Files(None, None), recall=False)
    run_to_end(study.job, lambda: f"{len(study.records())} measurements")
    structures = Structures(study)
    heads, channels = structures.head_costs(), structures.channel_costs(0)
    return {"heads": heads.round(9).to_dict("list"), "channels": channels.round(9).to_dict("list")}


def _make_smaller(load: Any) -> dict[str, Any]:
    run = SmallerRun(SMALLER, load)
    _follow(run)
    return {"smaller": [finite(asdict(row)) for row in run.rows]}


MAKERS = {
    "pruning": _make_pruning,
    "slimming": _make_slimming,
    "damage": _make_damage,
    "heads": _make_heads,
    "smaller": _make_smaller,
}


def main() -> None:
    model = LoadedModel(*rose.load_model(SETUP.model, dtype=SETUP.dtype), threading.Lock())
    parts = _parts() if FILE.exists() else {}
    for name in sys.argv[1:] or MAKERS:
        parts |= MAKERS[name](lambda: model) | {"made_with": says_versions()}
        write_atomically(FILE, gzip.compress(json.dumps(parts).encode(), mtime=0))
        print(f"{FILE}: {FILE.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
