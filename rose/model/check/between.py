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


def common_masks(one: nn.Module, other: nn.Module) -> pd.DataFrame:
    """How far two checkpoints of one model remove the same weights: layer, jaccard, and chance of two random masks.

    Raises:
        RoseError: models of different shapes.
    """
    rows, networks = [], (Network(one), Network(other))
    for block in walk_both(networks, pair_layers(*networks), {}):
        for first, second in block.pairs:
            shared = same_removed(first.weight == 0, second.weight.to(first.weight.device) == 0)
            rows.append({"layer": first.name, "jaccard": shared.jaccard, "chance": shared.chance})
    return pd.DataFrame(rows)


def better_by_layer(one: CheckpointCheck, other: CheckpointCheck, names: tuple[str, str]) -> pd.DataFrame:
    """Which of two checks of one dense model has the lower error where, each on the inputs of its own checkpoint.

    Returns:
        layer, error (in the first), other_error, and better: one of `names`, or "no clear difference" where the errors
        are within a tenth; no rows where either has no errors. On held-out tokens where both have them.
    """
    tables = one.layers.set_index("layer"), other.layers.set_index("layer")
    by = next((name for name in ERRORS if all(name in table and table[name].notna().any() for table in tables)), None)
    rows: list[dict[str, Any]] = []
    for layer in tables[0].index.intersection(tables[1].index) if by else ():
        first, second = (float(table.loc[layer, by]) for table in tables)
        if first == first and second == second:  # neither is NaN
            better = EVEN if max(first, second) <= CLEARLY * min(first, second) else names[int(second < first)]
            rows.append({"layer": layer, "error": first, "other_error": second, "better": better})
    return pd.DataFrame(rows, columns=["layer", "error", "other_error", "better"])
