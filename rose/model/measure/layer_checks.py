"""The checks of all layers of a run, as one table."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from rose.layer.checks import Check, check_inputs, check_overfitting, judge_damping, worst
from rose.layer.pattern import Pattern, parse_sparsity
from rose.layer.registry import label_of
from rose.layer.statistics import InputStatistics
from rose.model.run.one_layer import damping_of, is_left_dense
from rose.model.walk.walk import BlockStatistics
from rose.wording import sentence

CHECKS = ("Finite inputs", "Live columns", "Enough tokens", "Damping as asked", "Sparsity as asked", "Over-fitting")
NOT_MEASURED = "not measured"


def check_layers(
    records: pd.DataFrame,
    blocks: Sequence[BlockStatistics],
    *,
    sparsity: float | str | Pattern,
    block_size: int,
    damping: float,
) -> pd.DataFrame:
    """One row per layer that calibration has reached, also if it could not be pruned.

    Args:
        records: as from `records_table`, any number of methods per layer, none with factors; the worst of them counts.
        blocks: as from `visit_blocks`.

    Returns:
        Columns layer, status ("pass", "look" or "fail", the worst of the row), and a column for each of `CHECKS` with
            its status or "not measured". Column found has sentences for the checks that did not pass.
    """
    pattern = parse_sparsity(sparsity)
    by_layer = dict(iter(records.groupby("layer", sort=False)))
    judged: dict[int, list[Check]] = {}  # layers that read one tensor share its checks
    rows = []
    for block in blocks:
        for layer in block.layers:
            if is_left_dense(layer, block.calibration):
                continue
            statistics = block.calibration.get(layer.name)
            least = damping if statistics is None else damping_of(layer, statistics, damping)
            checks = _check_layer(statistics, by_layer.get(layer.name), judged, pattern, block_size, least)
            row = {"layer": layer.name, "status": worst(checks), **dict.fromkeys(CHECKS, NOT_MEASURED)}
            row |= {check.name: check.status for check in checks}
            row["found"] = "; ".join(check.finding for check in checks if check.status != "pass")
            rows.append(row)
    return pd.DataFrame(rows, columns=["layer", "status", *CHECKS, "found"])


def _check_layer(
    statistics: InputStatistics | None,
    records: pd.DataFrame | None,
    judged: dict[int, list[Check]],
    pattern: Pattern,
    block_size: int,
    damping: float,
) -> list[Check]:
    if statistics is None:
        return [Check("Finite inputs", "fail", "no input during calibration", "at least one token")]
    if id(statistics) not in judged:
        judged[id(statistics)] = check_inputs(statistics, None if records is not None else damping)
    checks = list(judged[id(statistics)])
    if records is None:
        return checks
    checks.append(judge_damping(float(records["damping"].max()), damping, bool(records["is_damping_raised"].any())))
    checks.append(_check_sparsity(records, pattern, block_size))
    ratios = records["held_out_error"] / records["relative_error"]
    if ratios.notna().any():
        row = records.loc[ratios.idxmax()]
        check = check_overfitting(float(row["relative_error"]), float(row["held_out_error"]))
        if check is not None:  # with the name of its method
            checks.append(replace(check, finding=f"{sentence(label_of(row['method']))}: {check.finding}"))
    return checks


def _check_sparsity(records: pd.DataFrame, pattern: Pattern, block_size: int) -> Check:
    """By the realised fractions; `realised_sparsity` counts in the method's own units. Zeros in dead columns, and those
    before pruning, may come on top of the sparsity in the settings."""
    sizes = records["rows"] * records["columns"]
    on_top = sizes * (records["dead_columns"] / records["columns"] + records["zeros_before"])
    off = (records["sparsity"] - pattern.ratio) * sizes
    deviation = off.where(off < 0, (off - on_top).clip(lower=0)).abs()
    blocks = math.ceil(int(records["columns"].iloc[0]) / block_size)
    # Each unit of the budget is rounded to a whole weight; the fractions of older reports are float32.
    units = records["budget"].map({"block": blocks, "row": records["rows"].iloc[0], "layer": 1})
    allowed = 1e-6 * sizes + (0 if pattern.is_grouped else units / 2)
    return Check(
        "Sparsity as asked",
        "pass" if (deviation <= allowed).all() else "fail",
        f"{deviation.max():.1f} weights off {100 * pattern.ratio:g} %",
        "at most half a weight per block, row or layer, whichever the method counts over",
    )
