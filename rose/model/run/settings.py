"""The settings of a run over a whole model, checked in one place before any work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Unpack

from rose.errors import RoseError
from rose.layer.bits import Grid
from rose.layer.methods import Settings, SettingsOptions, make_settings
from rose.model.network.layers import PrunableLayer
from rose.model.rules import Allocation, parse_allocation
from rose.recipe.parts import MethodPart, PruneSettings, RoundingPart

# Keywords of `make_settings` besides the sparsity.
LAYER_SETTINGS = (MethodPart.fields().keys() | RoundingPart.fields().keys()) - {"sparsity", "layers"}


class RunOptions(SettingsOptions, total=False):
    """Keywords of `rose.prune_model`, which says what they mean; `run_settings` has their defaults."""

    allocation: str
    target: str
    target_damping: float | None
    true_sequential: bool
    min_expert_tokens: int
    compute: str


@dataclass(frozen=True)
class RunSettings:
    """How to prune a model; see `rose.prune_model`, and `Settings` for each layer.

    `sequential`: whether each layer is calibrated on the pruned ones before it in its own decoder block.
    """

    layer: Settings
    allocation: Allocation
    target: str
    target_damping: float | None
    sequential: bool
    min_expert_tokens: int
    compute: str

    def check_experts(self, layers: Iterable[PrunableLayer]) -> None:
        """Raises RoseError where experts are to be left dense and none of these layers is one."""
        if self.min_expert_tokens > 1 and not any(layer.is_expert for layer in layers):
            raise RoseError("min_expert_tokens says which experts stay dense, and no layer here is one; leave it out.")

    def describe(self) -> dict[str, Any]:
        """What concerns the run as a whole, as JSON values."""
        return {
            "allocation": self.allocation.text,
            "target": self.target,
            "target_damping": self.target_damping,
            "true_sequential": self.sequential,
        }


def run_settings(**options: Unpack[RunOptions]) -> RunSettings:
    """Settings of a run, as for `rose.prune_model`, complete, and checked as far as can be without a model."""
    asked = PruneSettings.of(**options)
    layer = {name: getattr(asked, name) for name in LAYER_SETTINGS}
    settings = make_settings(sparsity=asked.pattern, **layer)
    rule = parse_allocation(asked.allocation)
    rule.check(settings.pattern)
    sequential = asked.true_sequential or asked.target == "dense"
    return RunSettings(
        settings, rule, asked.target, asked.target_damping, sequential, asked.min_expert_tokens, asked.compute
    )


def describe_grid(grid: Grid | None) -> dict[str, Any]:
    """Bits and group as JSON values; nothing where weights are not rounded."""
    return {"bits": grid.bits, "group": grid.group} if grid else {}


def describe_layer(settings: Settings) -> dict[str, Any]:
    """How each layer was pruned, as JSON values."""
    return {
        "method": settings.method,
        "sparsity": str(settings.pattern),
        "options": dict(settings.options),
        "block_size": settings.block_size,
        "damping": settings.damping,
        "threshold": settings.threshold,
        **describe_grid(settings.grid),
    }
