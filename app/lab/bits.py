"""One layer with zeros, with fewer bits, and with both: what each leaves of its outputs. No Streamlit here."""

from __future__ import annotations

from typing import Any

import pandas as pd

import rose
from app.study.study import Study, error_on
from rose.layer.bits import Grid
from rose.layer.grid import bits_a_weight
from rose.layer.pattern import parse_sparsity
from rose.model.estimate.duration import ROUNDING_WORK, SWEEP_EFFICIENCY, matmul_rate, sweeps_of

WAYS = (
    *(("0", 8), ("0", 4), ("0", 3), ("0.5", None), ("0.5", 8), ("0.5", 4), ("0.5", 3)),
    *(("2:4", None), ("2:4", 8), ("2:4", 4), ("2:4", 3), ("0.7", None), ("0.7", 8), ("0.7", 4), ("0.7", 3)),
)


def group_of(columns: int) -> int | str:
    """64 columns share a scale where that fills the rows."""
    return 64 if columns % 64 == 0 else "row"


def ways(study: Study, layer: str) -> list[tuple[str, int | None]]:
    """Those that this layer can be pruned and rounded by."""
    columns, size = study.weight(layer).shape[1], study.setup.block_size
    return [one for one in WAYS if ":" not in one[0] or columns % 4 == size % 4 == 0]


def measure(study: Study, layer: str, sparsity: str, bits: int | None) -> dict[str, float]:
    """bits_a_weight, relative_error and held_out_error (NaN where there is none) by the recommended method; measured
    unless it has been before."""
    shelf = study.remember(("bits", layer), dict)
    if (sparsity, bits) not in shelf:
        weight = study.weight(layer)
        words: dict[str, Any] = {"method": rose.RECOMMENDED, "sparsity": sparsity}
        grid = None if bits is None else Grid(bits, group_of(weight.shape[1]))
        words |= {} if grid is None else {"bits": grid.bits, "group": grid.group}
        result = rose.prune_layer(weight, study.statistics(layer), **study.layer_options() | words)
        shelf[sparsity, bits] = {
            "bits_a_weight": bits_a_weight(result.weight, grid),
            "relative_error": result.relative_error,
            "held_out_error": error_on(study.held_out_statistics(layer), weight, result.weight),
        }
    return shelf[sparsity, bits]


def missing(study: Study, layer: str) -> list[tuple[str, int | None]]:
    """The ways that have not been measured yet."""
    shelf: dict[tuple[str, int | None], Any] = study.remember(("bits", layer), dict)
    return [one for one in ways(study, layer) if one not in shelf]


def seconds(study: Study, layer: str) -> float:
    """Estimated seconds to measure what is missing."""
    weight, left = study.weight(layer), missing(study, layer)
    sweeps = sum(parse_sparsity(sparsity).ratio > 0 for sparsity, _ in left) * sweeps_of([rose.RECOMMENDED])
    sweeps += ROUNDING_WORK[rose.METHODS[rose.RECOMMENDED].sweeps] * sum(bits is not None for _, bits in left)
    return sweeps * weight.numel() * weight.shape[1] / SWEEP_EFFICIENCY / matmul_rate()


def table(study: Study, layer: str) -> pd.DataFrame:
    """A row for every way, sparsity and bits (0 where weights are not rounded), and what `measure` says."""
    rows = [
        {"sparsity": sparsity, "bits": bits or 0, **measure(study, layer, sparsity, bits)}
        for sparsity, bits in ways(study, layer)
    ]
    return pd.DataFrame(rows)
