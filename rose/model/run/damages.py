"""Records of damage that `rose damage` has measured, one a unit; see `rose.model.measure.damage`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rose.rows import Measured, NotNegative, NotNegativeOrNan, Share, Within, read_records


@dataclass(frozen=True)
class DamageRecord:
    """The model's loss by one unit."""

    unit: str  # name of the layer, or of the decoder block; "*" for all units at once, with block_index −1
    block_index: Annotated[int, Within(-1, 10**6)]
    projection: str  # the layer's name within the block; "" for a block and the whole
    weights: Annotated[int, Within(1, 10**15)]
    sparsity: Share  # the fraction of the unit's weights that is removed (or restored)
    # relative_error, held_out_error: ‖ΔW Xᵀ‖²/‖W Xᵀ‖² on calibration and on window tokens, mean over its layers
    relative_error: NotNegative
    held_out_error: NotNegative
    output_error: NotNegative  # ‖ΔW x‖² in units of the layer's output, mean over window tokens, summed over layers
    # ‖Δh‖²/‖h‖² of the residual stream after the block, mean over window tokens; NaN for the whole
    drift: NotNegativeOrNan
    loss: NotNegativeOrNan  # nats per token with the change
    delta_loss: Measured  # change of the loss, below 0 where restoring pays
    damage: Measured  # `delta_loss` of a pruned unit, −`delta_loss` of a restored one
    standard_error: NotNegativeOrNan  # of both, over windows; NaN for one window
    perplexity_ratio: NotNegativeOrNan  # exp(delta_loss)
    seconds: NotNegative
    cautions: str = ""  # on its layers, see `rose.verdicts.in_brief`
    massive: str = ""  # its layers' massive activations: channels, and the error with and without them


def read_damages(path: str | Path) -> list[DamageRecord]:
    """Reads a rows.csv of `rose damage`, complete or not; raises RoseError for another file."""
    return read_records(path, DamageRecord, "damages")
