"""What takes a folder: commands, pages, and plain transformers. Each proves by a number that it has read the folder.

A consumer raises `Refused` where it says why it does not take the folder, in one sentence; whatever else goes wrong
goes through.
"""

import base64
import contextlib
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from streamlit.testing.v1 import AppTest
from transformers import AutoModelForCausalLM

import rose
from app.runs.reading import DENSE, TextReading
from app.study.setup import Setup
from rose import cli
from rose.wording import apart
from tests.app.tiny_study import figures, open_on, run_in
from tests.seams.producers import BLOCKS, DAMAGE, DEPTH, DIFFUSE, HALF, LENGTH, RESTORE, SLIM, WINDOWS, Workshop


def unescaped(shown: str) -> str:
    """What a page shows as plain text, without what keeps it from being Markdown; see `app.words.plain`."""
    return re.sub(r"\\(?=[^\w\s])|\N{WORD JOINER}", "", shown)


class Refused(Exception):
    """One sentence said why the folder was not taken."""


def run(shop: Workshop, *arguments: str | Path) -> str:
    """What the command printed, as one line."""
    given = [str(shop.filled(str(argument))) for argument in arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = cli.main(given)
    if status > 1:  # 1: `check` has found something
        assert status == 2, err.getvalue()
        raise Refused(err.getvalue().partition("rose: ")[2].strip())
    return " ".join(out.getvalue().split())


def perplexity_of(model: Any, shop: Workshop) -> float:
    """By transformers' own loss."""
    with torch.no_grad():
        return math.exp(float(model(input_ids=shop.windows, labels=shop.windows, use_cache=False).loss))


def close(value: Any) -> Any:
    return pytest.approx(value, rel=1e-4)


def stages_of(shop: Workshop, name: str) -> list[dict[str, Any]]:
    """The summaries of a report: of slimming, and of the pruning after it."""
    return [record.summary for record in rose.RunReport.load(shop.folder(name)).stages]


def report(shop: Workshop, name: str) -> None:
    page = shop.new("report.html")
    printed = run(shop, "report", shop.folder(name), "--output", page)
    record, error = shop.report(name), stages_of(shop, name)[-1].get("mean_relative_error")
    if "perplexity_after" in record:
        perplexities = re.findall(r"takes perplexity on \S+ from ([\d.,]+) to ([\d.,]+), ", printed)
        afters = [record[f"perplexity_{when}"] for when in ("slimmed", "after") if f"perplexity_{when}" in record]
        expected = [tuple(map(as_number, apart(record["perplexity_before"], after))) for after in afters]
        assert [tuple(map(as_number, pair)) for pair in perplexities] == expected, printed
    elif error is not None:
        assert float(f"{error:.3g}") in map(as_number, re.findall(r"is ([\d.]+) on average over", printed)), printed
    assert f"Written to {page}" in printed


def as_number(text: str) -> float:
    return float(text.replace(",", "").strip("."))


def evaluate(shop: Workshop, name: str) -> None:
    text = shop.folder("text")
    out = run(
        shop, "evaluate", "--model", shop.folder(name), "--evaluate", text, "--length", LENGTH, "--windows", WINDOWS
    )
    assert float(out.rpartition(" ")[2]) == pytest.approx(shop.report(name)["perplexity_after"], abs=0.001)


def prune(shop: Workshop, name: str) -> None:
    out = shop.new("pruned")
    run(shop, *HALF, "--model", shop.folder(name), "--output", out)
    made = shop.report_in(out)
    assert made["perplexity_before"] == close(shop.report(name)["perplexity_after"])
    model, _ = rose.load_model(str(out))
    assert perplexity_of(model, shop) == close(made["perplexity_after"])
    layers = rose.prunable_layers(model)
    assert made["layers"] == len(layers)
    table = pd.read_csv(out / "layers.csv").set_index("layer")
    for layer in layers:  # also where more had been removed before
        assert float(layer.weight.eq(0).float().mean()) == pytest.approx(table.loc[layer.name, "sparsity"], abs=1e-6)
        assert table.loc[layer.name, "sparsity"] > 0.499


def slim(shop: Workshop, name: str, asked: tuple[str, ...] = SLIM) -> None:
    out = shop.new("slim")
    run(shop, *asked, "--model", shop.folder(name), "--output", out)
    made = shop.report_in(out)
    assert made["perplexity_before"] == close(shop.report(name)["perplexity_after"])
    model, _ = rose.load_model(str(out))
    assert sum(parameter.numel() for parameter in model.parameters()) == made["kept_parameters"]
    assert perplexity_of(model, shop) == close(made["perplexity_after"])


def drop(shop: Workshop, name: str) -> None:
    slim(shop, name, (*DEPTH, "--method", "depth"))


def check(shop: Workshop, name: str) -> None:
    """Against the dense model: the zeros of its layers are those that are there."""
    out = shop.new("found.json")
    run(shop, "check", "{dense}", shop.folder(name), "--json", out)
    made, model = json.loads(out.read_text()), rose.load_model(str(shop.folder(name)))[0]
    zeros = sum(int((layer.weight == 0).sum()) for layer in rose.prunable_layers(model))
    assert made["summary"]["zeros"] == zeros


def damage(shop: Workshop, name: str) -> None:
    """By decoder blocks; what is measured by layers is among the producers."""
    out = shop.new("damage")
    asked = ("--units", "blocks", "--evaluate", "{text}", "--windows", WINDOWS, "--model", shop.folder(name))
    run(shop, *DAMAGE, *asked, "--output", out)
    assert json.loads((out / "summary.json").read_text())["base_perplexity"] == close(
        shop.report(name)["perplexity_after"]
    )


def restore(shop: Workshop, name: str) -> None:
    """With all dense weights back, the loss is that of the dense model."""
    out = shop.new("restored")
    asked = ("--units", "blocks", "--evaluate", "{text}", "--windows", WINDOWS, "--restore", shop.folder(name))
    run(shop, *RESTORE, *asked, "--output", out)
    made, rows = json.loads((out / "summary.json").read_text()), pd.read_csv(out / "rows.csv").set_index("unit")
    assert made["base_perplexity"] == close(shop.report(name)["perplexity_after"])
    assert math.exp(rows.loc["*", "loss"]) == close(shop.report(name)["perplexity_before"])
    assert len(rows) == BLOCKS + 1


def share(shop: Workshop, name: str) -> None:
    """The higher its damage per weight, the more a layer keeps."""
    out = shop.new("shared")
    run(shop, *HALF, "--allocation", f"damage:{shop.folder(name)}", "--output", out)
    layers = pd.read_csv(out / "layers.csv").set_index("layer")
    rows = pd.read_csv(shop.folder(name) / "rows.csv").set_index("unit").drop("*")
    per_weight = rows[["damage", "standard_error"]].max(axis=1) / rows["weights"]
    layers["density"] = [
        next(per_weight[unit] for unit in per_weight.index if f"{layer}.".startswith(f"{unit}."))
        for layer in layers.index
    ]
    shared = layers.sort_values("density")["sparsity"]
    assert shared.iloc[0] > shared.iloc[-1] + 0.1
    assert shared.diff().max() < 0.002  # a whole number of weights
    assert shop.report_in(out)["removed_fraction"] == pytest.approx(0.5, abs=1e-3)


def plain(shop: Workshop, name: str) -> None:
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(shop.folder(name))
    except (OSError, ValueError, RuntimeError) as problem:
        raise Refused(str(problem)) from problem
    assert perplexity_of(model, shop) == close(shop.report(name)["perplexity_after"])


def diffuse(shop: Workshop, name: str) -> None:
    out = shop.new("pipeline")
    run(shop, "diffuse", "prune", *DIFFUSE, "--model", shop.folder(name), "--output", out)
    made, before = shop.report_in(out), shop.report(name)
    assert made["denoiser_weights"] == before.get("denoiser_weights", before.get("kept_parameters"))
    assert made["removed_fraction"] == pytest.approx(0.5, abs=1e-3)


# Pages


def opened(shop: Workshop, section: str, **query: str) -> AppTest:
    """A section of Prune, which shows no traceback; raises what it says in a red box."""
    app = open_on(Setup(model=str(shop.folder("dense"))), "views/prune.py", prune_section=section, **query)
    if app.error:
        raise Refused(unescaped(app.error[0].value))
    return app


def runs(shop: Workshop, name: str) -> None:
    """Beside a pruned model; an analysis is one run for each method."""
    beside = "prune, 2:4" if name == "prune, some layers" else "prune, some layers"
    paths = (shop.folder(beside), shop.folder(name))
    app = opened(shop, "Compare runs", runs_path="; ".join(map(str, paths)), runs_view="Numbers")
    chosen = app.multiselect(key="runs")
    chosen.set_value([chosen.options[0], chosen.options[-1]]).run()
    numbers = app.table[0].value.set_index("").iloc[:, 1].str.partition(" (")[0]
    summary = stages_of(shop, name)[-1] | {"perplexity_after": shop.report(name).get("perplexity_after")}
    for row, entry in {"Perplexity": "perplexity_after", "Mean error on calibration": "mean_relative_error"}.items():
        if summary.get(entry) is not None:
            digits = len(re.sub(r"\D", "", numbers[row].lstrip("0.")))  # more where runs are close
            assert as_number(numbers[row]) == float(f"{summary[entry]:.{digits}g}"), numbers


def drift(shop: Workshop, name: str) -> None:
    """A curve for each stage that has drift."""
    app = opened(shop, "Compare runs", runs_path=str(shop.folder(name)), runs_view="Drift")
    chosen = app.multiselect(key="runs")
    record = rose.RunReport.load(shop.folder(name))
    chosen.set_value(chosen.options[: len(record.runs)]).run()  # without the example's runs
    app.session_state["runs_view"] = "Drift"
    app.run()
    if "runs_view" not in app.session_state or app.session_state["runs_view"] != "Drift":
        raise Refused("Without drift the page has no tab for it.")
    curves = json.loads(figures(app)[0])["data"]
    drifts = [stage.drift for stage in record.stages if stage.drift]
    for curve, drift in zip(curves, drifts, strict=True):
        assert decoded(curve["y"]) == close([entry["drift"] for entry in drift])
        assert decoded(curve["x"]) == [entry["block_index"] for entry in drift]


def decoded(values: Any) -> list[float]:
    """Of a figure, which has them as a list or as base64."""
    if isinstance(values, list):
        return values
    return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist()


def text(shop: Workshop, name: str) -> None:
    """What the page has read is what transformers reads."""
    written = "A rose is a rose."
    app = opened(shop, "Your text", text_path=str(shop.folder(name)), text_written=written)
    app.button(key="text-read").click().run()
    reading: TextReading = run_in(app, "reading")
    while reading.job.status == "running":
        reading.job.watch("test")
        reading.job.wait(1)
    app.run()
    assert not app.exception, app.exception
    if app.error:
        raise Refused(unescaped(app.error[0].value))
    (reading_of_copy,) = (pruned_reading for label, pruned_reading in reading.readings.items() if label != DENSE)
    model, tokenizer = rose.load_model(str(shop.folder(name)))
    tokens = tokenizer(written, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = float(model(input_ids=tokens, labels=tokens, use_cache=False).loss)
    assert float(reading_of_copy.losses.mean()) == close(expected)
    assert len(app.dataframe[0].value) == len(written) - 1


CONSUMERS: dict[str, Callable[[Workshop, str], None]] = {
    "report": report,
    "evaluate": evaluate,
    "check": check,
    "prune": prune,
    "slim": slim,
    "drop": drop,  # slim --method depth
    "damage": damage,
    "restore": restore,  # damage --restore
    "share": share,  # prune --allocation damage:FOLDER
    "plain": plain,  # transformers alone
    "diffuse": diffuse,
    "Runs": runs,
    "Drift": drift,
    "Text": text,
}
