"""The settings of a run over a whole model, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from rose.errors import RoseError
from rose.layer.methods import Settings, SettingsOptions, make_settings
from rose.layer.pattern import Grid
from rose.model.network.layers import PrunableLayer
from rose.model.network.network import Network
from rose.model.rules import Allocation, parse_allocation
from rose.recipe.parts import MethodPart, PruneSettings, RoundingPart

# Keywords of `make_settings` besides the sparsity.
LAYER_SETTINGS = (MethodPart.fields().keys() | RoundingPart.fields().keys()) - {"sparsity", "layers"}


class RunOptions(SettingsOptions, total=False):
    """Keywords of `rose.prune_model`; `PruneSettings` has the defaults."""

    allocation: str
    target: str
    target_damping: float | None
    true_sequential: bool
    min_expert_tokens: int
    compute: str


@dataclass(frozen=True)
class RunSettings:
    """How to prune a model; see `rose.prune_model`.

    `sequential`: each layer is calibrated on the pruned layers before it in its own decoder block.
    """

    layer: Settings
    allocation: Allocation
    target: str
    target_damping: float | None
    sequential: bool
    min_expert_tokens: int
    compute: str

    def select(self, network: Network, layers: Sequence[str] | None) -> list[PrunableLayer]:
        """The layers to prune; raises RoseError for those that cannot be, and for experts to spare without experts."""
        selected = network.to_prune(layers, self.layer.pattern, self.layer.block_size, self.layer.grid)
        if self.min_expert_tokens > 1 and not any(layer.is_expert for layer in selected):
            raise RoseError("min_expert_tokens says which experts stay dense, and no layer here is one; leave it out.")
        return selected

    def describe(self) -> dict[str, Any]:
        return {
            "allocation": self.allocation.text,
            "target": self.target,
            "target_damping": self.target_damping,
            "true_sequential": self.sequential,
        }


def run_settings(**options: Unpack[RunOptions]) -> RunSettings:
    """Complete settings of a run, checked as far as possible without a model."""
    asked_for = PruneSettings.of(**options)
    allocation = parse_allocation(asked_for.allocation)
    layer = make_settings(sparsity=asked_for.pattern, **{name: getattr(asked_for, name) for name in LAYER_SETTINGS})
    allocation.check(layer.pattern)
    return RunSettings(
        layer, allocation, asked_for.target, asked_for.target_damping,
        asked_for.true_sequential or asked_for.target == "dense", asked_for.min_expert_tokens, asked_for.compute,
    )  # fmt: skip


def describe_grid(grid: Grid | None) -> dict[str, Any]:
    """Bits and group as JSON values; nothing where weights are not rounded."""
    return {"bits": grid.bits, "group": grid.group} if grid else {}


def describe_layer(settings: Settings) -> dict[str, Any]:
    names = ("block_size", "damping", "threshold")
    return {
        "method": settings.method,
        "sparsity": str(settings.pattern),
        "options": dict(settings.options),
        **{name: getattr(settings, name) for name in names},
        **describe_grid(settings.grid),
    }
