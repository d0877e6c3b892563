"""Records of damage that `rose damage` has measured, one a unit; see `rose.model.measure.damage`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rose.rows import Measured, NotNegative, NotNegativeOrNan, Share, Within, read_records


@dataclass(frozen=True)
class DamageRecord:
    """The model's loss by one unit.

    Attributes:
        unit: name of the layer, or of the decoder block; "*" for all units at once, with block_index −1.
        projection: the layer's name within the block; "" for a block and the whole.
        sparsity: the fraction of the unit's weights that is removed (or restored).
        relative_error, held_out_error: ‖ΔW Xᵀ‖²/‖W Xᵀ‖² on calibration and on window tokens, mean over its layers.
        output_error: ‖ΔW x‖² in units of the layer's output, mean over window tokens, summed over layers.
        drift: ‖Δh‖²/‖h‖² of the residual stream after the block, mean over window tokens; NaN for the whole.
        loss: nats per token with the change.
        delta_loss: change of the loss, below 0 where restoring pays.
        damage: `delta_loss` of a pruned unit, −`delta_loss` of a restored one.
        standard_error: of both, over windows; NaN for one window.
        perplexity_ratio: exp(delta_loss).
        cautions: on its layers, see `rose.verdicts.in_brief`.
        massive: its layers' massive activations: channels, and the error with and without them.
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
    """Reads a rows.csv of `rose damage`, complete or not; raises RoseError for another file."""
    return read_records(path, DamageRecord, "damages")
