"""What a check has found of the whole, in sentences, for the command line, the app and its reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rose.errors import RoseError
from rose.layer.registry import METHODS
from rose.model.check.check import CheckpointCheck
from rose.model.check.costs import ERROR_OF
from rose.model.check.verdicts import MOVED, says_pattern
from rose.model.check.whose import says_alike
from rose.report import report_beside
from rose.verdicts import BOS, SPARSE, WINDOWS, on_other_windows, says_perplexity
from rose.wording import count, listing, number, out_of, percent, sentence, whole, word

SHOWN = 4  # names of what is gone
SINGLE, HIGH = 0.05, 0.5  # share of a layer's columns, and sparsity, up to and from which empty columns are usual


def findings(found: CheckpointCheck) -> list[str]:
    """A sentence each, without verdicts and cautions."""
    layers, summary = found.layers, found.summary
    said = [_zeros(summary), *_emptied(layers, summary["gone"]), *_gone(summary["gone"])]
    moved = int((layers["moved"] > MOVED).sum())
    said.append(
        f"Kept weights differ from the dense model's in {out_of(moved, len(layers), 'layer')}."
        if moved
        else "Kept weights are those of the dense model in every layer."
    )
    if rotated := len(summary["rotated_heads"]):
        said.append(
            f"Heads of {count(rotated, 'output projection')} were rotated before pruning, which changes no output; "
            "they are compared with dense heads rotated the same way."
        )
    if kinds := [f"{size} of kind {kind}" for kind, size in found.others.groupby("kind", sort=False).size().items()]:
        said.append(f"Other tensors that differ: {', '.join(kinds)}.")
    said += _errors(layers) + _whose(summary)
    if "perplexity_after" in summary:
        moved_to, *odd = says_perplexity(summary)
        said += [f"Perplexity on {summary['evaluated_on']} goes {moved_to}.", *odd]
    if summary["drift"]:
        said.append(f"Drift after the last decoder block: {number(summary['drift'][-1]['drift'])}.")
    return said


def says_other_draw(folder: Path, drawn: Mapping[str, Any]) -> str:
    """A caution where our report beside a checkpoint tells of other calibration windows than those of a check, or is
    damaged; else "".

    Args:
        drawn: calibration, samples, length, seed, held_out_samples and bos_token of the check.
    """
    try:
        report = report_beside(folder)
    except RoseError as problem:
        return str(problem)
    known = {} if report is None else report.summary
    if any(known.get(name) is None for name in WINDOWS) or not on_other_windows(known, drawn):
        return ""
    first = ""
    if known.get(BOS, drawn[BOS]) != drawn[BOS]:
        first = f", {'without' if known[BOS] is None else 'with'} a beginning-of-sequence token in front"
    text, (samples, length) = Path(str(known["calibration"])).name, (known["samples"], known["length"])
    return (
        f"The report beside this checkpoint names other calibration windows: {samples} × {length} tokens of {text}, "
        f"seed {known['seed']}, {known['held_out_samples']} held out{first}. Methods compared with it are fitted to "
        "the tokens of this check, so the checkpoint's errors look higher than theirs and its masks less like theirs."
    )


def method_of(column: str) -> str:
    """The label of the method that a column of errors is about."""
    return METHODS[column.removeprefix(ERROR_OF)].label


def _zeros(summary: dict[str, Any]) -> str:
    zeros, weights = whole(summary["zeros"]), whole(summary["weights"])
    said = f"{percent(summary['sparsity'], 2)} of the layers' weights are zero ({zeros} of {weights})"
    if before := summary["zeros_before"]:
        said += f", {percent(before / summary['weights'], 2)} were in the dense model"
    turned = summary["sparsity"] < SPARSE <= before / summary["weights"]
    doubt = " Were the two given the other way round? The dense model comes first." if turned else ""
    return f"{said}; pattern of most layers: {says_pattern(summary['pattern'])}.{doubt}"


def _emptied(layers: pd.DataFrame, gone: dict[str, Any]) -> list[str]:
    """Rows and columns without a weight, in which layers, and whether that is usual."""
    some_left, said = layers[layers["zeros"] < layers["rows"] * layers["columns"]], []
    for what, noun in (("rows", "output row"), ("columns", "input column")):
        found = some_left[some_left[f"empty_{what}"] > 0].sort_values(f"empty_{what}", ascending=False, kind="stable")
        if found.empty:
            continue
        sizes = found[f"empty_{what}"]
        where = [f"{word(size)} of {name}" for size, name in zip(sizes, found["layer"], strict=True)]
        total = count(int(sizes.sum()), noun)
        text = f"{sentence(total)} {'has' if sizes.sum() == 1 else 'have'} no weight left: {listing(where, SHOWN)}."
        is_single = (sizes <= SINGLE * found[what]).all() and (found["sparsity"] >= HIGH).all() and not gone["heads"]
        if what == "columns" and is_single:
            text += " At high sparsity this is usual for single columns whose inputs are weak."
        said.append(text)
    return said


def _gone(gone: dict[str, Any]) -> list[str]:
    said = []
    for what in ("head", "expert"):
        if names := gone[f"{what}s"]:
            said.append(f"Nothing is left of {count(len(names), what)}: {listing(names, SHOWN)}.")
    return said


def _errors(layers: pd.DataFrame) -> list[str]:
    """The mean error, what it could have been, and how much of the error that masks make was taken back."""
    if "error" not in layers or layers["error"].isna().all():
        return []
    known = layers.dropna(subset=["error"])
    reached = {method_of(name): float(known[name].mean()) for name in known if str(name).startswith(ERROR_OF)}
    beside = ", ".join(f"{label} {number(mean)}" for label, mean in reached.items())
    where = "" if len(known) == len(layers) else f" over {out_of(len(known), len(layers), 'layer')}"
    said = f"Mean error{where} {number(float(known['error'].mean()))}"
    said += f"; at the same sparsity, fitted to these very tokens, {beside}." if beside else "."
    recovered = known["recovered"].dropna()
    if recovered.empty:
        return [said]
    share = percent(float(recovered.median()), 0)
    median = f", the median of {count(len(recovered), 'layer')}" if len(recovered) > 1 else ""
    return [said, f"Compensation recovered {share} of what it could{median}."]


def _whose(summary: dict[str, Any]) -> list[str]:
    """Which method made the masks, or comes nearest to them."""
    near = summary["nearest"]
    if near is None:
        return []
    whose = METHODS[near["name"]].label + (", towards the dense model's outputs" if near["target"] == "dense" else "")
    shares = f"both remove {percent(near['agreement'])} of the weights that either removes, "
    shares += f"{percent(near['chance'])} by chance"
    if summary["method"] is None:
        nearest = f"the nearest is {whose}: over {count(near['layers'], 'layer')} {shares}"
        return [f"The masks match no method that was tried; {nearest}."]
    where = out_of(near["layers"], summary["layers"], "layer")
    return [f"Masks of {where} are those of {whose}: {shares}. {says_alike(near)}".rstrip()]
