"""Why a study and a pruned copy of the same model differ, with both numbers. No Streamlit here."""

from __future__ import annotations

import pandas as pd

from app import words
from app.runs.copies import CopyRun
from app.study.study import Study
from rose import RunReport, verdicts

METHODS = ("sparsegpt", "rose", "rose_global")  # of which a study knows the errors
LINES = 2


def differences(study: Study, table: pd.DataFrame, run: CopyRun | None) -> list[str]:
    """A sentence a copy, of the first few copies of the study's model; `table` is of `Study.overview`."""
    if run is None or run.setup.model != study.setup.model:
        return []
    lines = [difference(study, table, copy) for copy in run.copies if copy.method in METHODS and not copy.is_tuned]
    return [line for line in lines if line][:LINES]


def difference(study: Study, table: pd.DataFrame, copy: RunReport) -> str:
    """Mean error and columnar layers of the layers that both have, there and here, and what was done otherwise."""
    both = table.merge(copy.layers, on="layer", suffixes=("", "_there"))
    held = f"held_out_{copy.method}", "held_out_error"
    ours, there = held if both[list(held)].notna().all(axis=None) else (f"error_{copy.method}", "relative_error")
    if both.empty:
        return ""
    means = both[ours].mean(), both[there].mean()
    threshold = float(copy.summary.get("threshold", 0.5))
    columnar = [int((both[name] > threshold).sum()) for name in ("relative_range", "relative_range_there")]
    if verdicts.is_same(*means) and columnar[0] == columnar[1]:
        return ""
    tokens = "held-out" if ours == held[0] else "calibration"
    first, second = words.apart(*means)
    pruned = f"{copy.name} as a whole model: mean {tokens} error {second}, {words.word(columnar[1])} columnar"
    return f"{pruned}; here {first} and {words.word(columnar[0])}. There, {'; '.join(reasons(study, copy))}."


def reasons(study: Study, copy: RunReport) -> list[str]:
    """Differences of the copy's run from the study, most important first."""
    summary, setup = copy.summary, study.setup
    texts = ["each layer reads inputs that are pruned already"]
    if copy.target == "dense":
        texts.append("the target is the dense model's output, here the layer's own")
    pairs = {
        "compute": ("computed in", "float32"),
        "sparsity": ("sparsity", setup.sparsity),
        "block_size": ("block size", setup.block_size),
        "calibration": ("calibration on", setup.text),
        "samples": ("samples", setup.samples),
        "length": ("tokens a sample", setup.length),
        "seed": ("seed", setup.seed),
    }
    for name, (label, ours) in pairs.items():
        if name in summary and str(summary[name]) != str(ours):
            texts.append(f"{label} {summary[name]}, here {ours}")
    return texts
