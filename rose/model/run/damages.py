"""Damages that `rose damage` has measured: a record for each unit, read back from its folder.

How they are measured is in `rose.model.measure.damage`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rose.model.network.identity import WEIGHTS, read_norms
from rose.rows import Measured, NotNegative, NotNegativeOrNan, Share, Within, read_records

WHOLE = "*"  # the unit of the record in which all units are changed at once


@dataclass(frozen=True)
class DamageRecord:
    """What the model loses by one unit.

    Attributes:
        unit: name of the layer, or of the decoder block; `WHOLE` for all units at once.
        block_index: its decoder block, −1 for the whole.
        projection: the layer's name within the block; "" for a block and the whole.
        weights, sparsity: how many weights the unit has, and the fraction of them that is removed (or comes back).
        relative_error, held_out_error: ‖ΔW Xᵀ‖²/‖W Xᵀ‖² on calibration tokens and on those of the windows; the mean
            over a unit's layers.
        output_error: ‖ΔW x‖², mean over the windows' tokens, in the units of the layer's output; summed over layers.
        drift: ‖Δh‖²/‖h‖² of the residual stream after the decoder block, mean over the windows' tokens; NaN for the
            whole.
        loss: nats per token with the change.
        delta_loss: its change by the intervention: below 0 where restoring pays.
        damage: what the unit costs: `delta_loss` where it was pruned, −`delta_loss` where it was restored.
        standard_error: of both, over windows; NaN where there is one.
        perplexity_ratio: exp(delta_loss).
        seconds: pruning and measuring.
        cautions: those on its layers in brief, see `rose.verdicts.in_brief`.
        massive: of its layers with massive activations, which channels, and the error with and without them.
    """

    unit: str
    block_index: Annotated[int, Within(-1, 10**6)]
    projection: str
    weights: Annotated[int, Within(1, 10**15)]
    sparsity: Share
    relative_error: NotNegative
    held_out_error: NotNegative
    output_error: NotNegative
    drift: NotNegativeOrNan
    loss: NotNegativeOrNan
    delta_loss: Measured
    damage: Measured
    standard_error: NotNegativeOrNan
    perplexity_ratio: NotNegativeOrNan
    seconds: NotNegative
    cautions: str = ""
    massive: str = ""


def read_damages(path: str | Path) -> list[DamageRecord]:
    """Reads a rows.csv that `python -m rose damage` has written, complete or not; raises RoseError for another file."""
    return read_records(path, DamageRecord, "damages")


def model_of_damages(folder: Path) -> list[float]:
    """`embedding_norms` of the model whose damages a folder holds; none where it does not say."""
    return read_norms(folder / "summary.json")


def weights_of_damages(folder: Path) -> list[float]:
    """`weight_norms` of that model; none where the folder does not say."""
    return read_norms(folder / "settings.json", WEIGHTS)


def are_restored(folder: Path) -> bool:
    """Whether a folder holds what restoring layers of a pruned model changed."""
    try:
        known = json.loads((folder / "settings.json").read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(known, dict) and bool(known.get("restore"))
