"""Finished runs that come with the app, so that no page opens empty; no Streamlit here.

`python -m tests.benchmarks.example_runs [PARTS]` makes example.json.gz anew: numbers and texts, no weights.
"""

import gzip
import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import rose
from app.figures.trust import MaskExcerpt
from app.runs import damage as damages
from app.runs import slimming as slims
from app.runs.checked import CheckpointRun, request_of
from app.runs.copies import as_before, dense_record
from app.runs.damage import DamageRun
from app.runs.pruning import PROMPT, PruneRequest, PruningRun
from app.runs.reading import SAMPLE, TextReading
from app.runs.slimming import Slimming, SmallerRun, Speedup
from app.study.setup import Setup
from rose.layer.pattern import METHOD
from rose.model.check.result import CheckpointCheck
from rose.model.measure.perplexity import EncodedText, Reading
from rose.recipe.steps import Smaller
from rose.rows import DamageRecord
from rose.smaller import Row
from rose.verdicts import Interval

SETUP = Setup(samples=8, length=256, held_out=8)  # a quarter of a study's tokens; one held-out text for all
FILE = Path(__file__).with_name("example.json.gz")
REQUEST = PruneRequest(
    ("sparsegpt", "rose", METHOD), ("0.5", "0.7"), window_length=SETUP.length, prompt=PROMPT, keep="all"
)
SLIM = slims.recipe_of(SETUP, method="slimllm", ratio=0.2)
DAMAGE = damages.recipe_of(SETUP, units="layers", method="sparsegpt")
SMALLER = Smaller(
    model=SETUP.model,
    samples=SETUP.samples,
    length=SETUP.length,
    held_out=SETUP.held_out,
    minutes=15.0,
    output=Path("smaller"),
)

CHECKS = {
    part: request_of(SETUP, "", "two-of-four", with_tokens=part == "check", stream=False)
    for part in ("check", "check weights")
}


@cache
def parts() -> dict[str, Any]:
    """The content of the file, by part."""
    return json.loads(gzip.decompress(FILE.read_bytes()))


def made_with() -> str:
    return str(parts()["made_with"])


def _no_model() -> Any:
    raise rose.RoseError("This is the packaged example, which has numbers and no model; start a run of your own.")


def _finished(run: Any, stored: dict[str, Any] | None = None) -> Any:
    """The run with its status, and with the records of `stored`."""
    if stored is not None:
        run.dense = dense_record(stored["dense"])
        run.copies = [
            replace(
                rose.RunReport.from_json(json.dumps(copy["record"]), "The example"), called=copy["called"]
            ).with_summary(**as_before(run.dense))
            for copy in stored["copies"]
        ]
    run.job.status, run.fraction = "done", 1.0
    return run


@cache
def pruning() -> PruningRun:
    """Six copies: three methods at 50 and at 70 %."""
    return _finished(PruningRun(SETUP, REQUEST, _no_model), parts()["pruning"])


@cache
def slimming() -> Slimming:
    """A copy without a fifth of the decoder blocks' parameters."""
    run, speedup = Slimming(SETUP, SLIM, _no_model, prompt=PROMPT), parts()["slimming"]["speedup"]
    run.speedup = Speedup(Interval(**speedup["ratio"]), speedup["turns"], speedup["bound"])
    return _finished(run, parts()["slimming"])


@cache
def damage() -> DamageRun:
    """Every layer pruned alone by SparseGPT at 70 %."""
    part: dict[str, Any] = parts()["damage"]
    rows: list[dict[str, Any]] = [
        {name: math.nan if value is None else value for name, value in row.items()} for row in part["records"]
    ]
    run = DamageRun(DAMAGE, _no_model, [DamageRecord(**row) for row in rows])
    run.facts = part["told"]
    return _finished(run)


@cache
def reading() -> TextReading:
    """The sample text, read by the dense model and by four copies."""
    part = parts()["reading"]
    run = TextReading(SETUP, SAMPLE, {}, _no_model)
    run.encoded = EncodedText(torch.tensor([part["tokens"]]), tuple(part["pieces"]))
    for name, reading in part["readings"].items():
        losses, chances = (torch.tensor(reading[key], dtype=torch.float64) for key in ("losses", "chances"))
        run.readings[name] = Reading(losses, torch.tensor(reading["likely"]), chances)
    run.vocabulary = {int(number): text for number, text in part["vocabulary"].items()}
    return _finished(run)


@cache
def smaller() -> SmallerRun:
    """Ways to make the model smaller, as `rose smaller` has measured them."""
    run = SmallerRun(SMALLER, _no_model)
    run.rows = [Row(**row) for row in parts()["smaller"]]
    return _finished(run)


@cache
def check(*, with_tokens: bool = True) -> CheckpointRun:
    """A copy at 2:4 by SparseGPT, one group of which keeps three weights."""
    name = "check" if with_tokens else "check weights"
    part, run = parts()[name], CheckpointRun(CHECKS[name], _no_model)
    layers, parameters = (pd.DataFrame(part[name]) for name in ("layers", "others"))
    run.check = CheckpointCheck(layers, parameters.reindex(columns=part["columns_of_others"]), part["summary"])
    run.cautions, run.seconds = part["cautions"], part["seconds"]
    for layer, excerpt in part["excerpts"].items():
        broken = [tuple(place) for place in excerpt["broken"]]
        run.excerpts[layer] = MaskExcerpt(**excerpt | {"removed": np.array(excerpt["removed"]), "broken": broken})
    return _finished(run)


def head_costs() -> pd.DataFrame:
    """As `app.study.structures.Structures.head_costs`."""
    return pd.DataFrame(parts()["heads"])


def channel_costs() -> pd.DataFrame:
    """As `app.study.structures.Structures.channel_costs`, of decoder block 0."""
    return pd.DataFrame(parts()["channels"])
