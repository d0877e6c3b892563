"""Several checkpoints of one dense model beside each other: what they remove in common, and which is better where."""

from __future__ import annotations

from typing import Any

import pandas as pd
from torch import nn

from rose.layer.change import same_removed
from rose.model.check.check import CheckpointCheck, pair_layers
from rose.model.check.inputs import walk_both
from rose.model.check.verdicts import CLEARLY
from rose.model.network.network import Network

EVEN = "no clear difference"
ERRORS = ("held_out_error", "error")  # what layers are ranked by, the first of them that both have


def common_masks(first: nn.Module, second: nn.Module) -> pd.DataFrame:
    """How far two checkpoints of one model remove the same weights: layer, jaccard, and chance of two random masks.

    Raises:
        RoseError: models of different shapes.
    """
    rows, networks = [], (Network(first), Network(second))
    for block in walk_both(networks, pair_layers(*networks), {}):
        for layer, other in block.pairs:
            shared = same_removed(layer.weight == 0, other.weight.to(layer.weight.device) == 0)
            rows.append({"layer": layer.name, "jaccard": shared.jaccard, "chance": shared.chance})
    return pd.DataFrame(rows)


def better_by_layer(first: CheckpointCheck, second: CheckpointCheck, names: tuple[str, str]) -> pd.DataFrame:
    """Which of two checks of one dense model has the lower error where, each on the inputs of its own checkpoint.

    Returns:
        layer, error (in the first), other_error, and better: one of `names`, or "no clear difference" where the errors
        are within a tenth; no rows where either has no errors. On held-out tokens where both have them.
    """
    tables = first.layers.set_index("layer"), second.layers.set_index("layer")
    by = next((name for name in ERRORS if all(name in table and table[name].notna().any() for table in tables)), None)
    rows: list[dict[str, Any]] = []
    for layer in tables[0].index.intersection(tables[1].index) if by else ():
        error, other = (float(table.loc[layer, by]) for table in tables)
        if error == error and other == other:  # neither is NaN
            better = EVEN if max(error, other) <= CLEARLY * min(error, other) else names[int(other < error)]
            rows.append({"layer": layer, "error": error, "other_error": other, "better": better})
    return pd.DataFrame(rows, columns=["layer", "error", "other_error", "better"])
