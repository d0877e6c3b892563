"""The settings of a run over a whole model, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

from pydantic import model_validator

from rose.errors import RoseError
from rose.layer.methods import Settings, SettingsOptions, make_settings
from rose.layer.pattern import Grid
from rose.model.network.layers import PrunableLayer
from rose.model.network.network import Network
from rose.model.rules import Allocation, parse_allocation
from rose.recipe.parts import PruneSettings


class RunSettings(PruneSettings):
    """How to prune a model, checked as far as possible without one; see `rose.prune_model`."""

    @cached_property
    def layer(self) -> Settings:
        options = {name: getattr(self, name) for name in SettingsOptions.__optional_keys__}
        return make_settings(**options | {"sparsity": self.pattern})

    @cached_property
    def sharing(self) -> Allocation:
        return parse_allocation(self.allocation)

    @property
    def sequential(self) -> bool:
        """Whether each layer is calibrated on the pruned layers before it in its own decoder block."""
        return self.true_sequential or self.target == "dense"

    @model_validator(mode="after")
    def _check_sharing(self) -> Self:
        self.sharing.check(self.layer.pattern)
        return self

    def select(self, network: Network, layers: Sequence[str] | None) -> list[PrunableLayer]:
        """The layers to prune; raises RoseError for those that cannot be, and for experts to spare without experts."""
        selected = network.to_prune(layers, self.layer.pattern, self.layer.block_size, self.layer.grid)
        if self.min_expert_tokens > 1 and not any(layer.is_expert for layer in selected):
            raise RoseError("min_expert_tokens says which experts stay dense, and no layer here is one; leave it out.")
        return selected

    def describe(self) -> dict[str, Any]:
        """The settings of the walk, for the report."""
        walk = self.model_dump(include={"allocation", "target", "target_damping"})
        return {**walk, "true_sequential": self.sequential}


def describe_grid(grid: Grid | None) -> dict[str, Any]:
    """Bits and group as JSON values; nothing where weights are not rounded."""
    return {"bits": grid.bits, "group": grid.group} if grid else {}


def describe_layer(settings: Settings) -> dict[str, Any]:
    described = {name: getattr(settings, name) for name in ("block_size", "damping", "threshold")}
    head = {"method": settings.method, "sparsity": str(settings.pattern), "options": dict(settings.options)}
    return head | described | describe_grid(settings.grid)
