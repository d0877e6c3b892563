"""The settings of a run over a whole model, checked before any work."""

from dataclasses import asdict
from functools import cached_property
from typing import Any, Self

from pydantic import model_validator

from rose.layer.methods import Settings
from rose.layer.pattern import Grid
from rose.model.rules import Allocation, parse_allocation
from rose.recipe.parts import PruneSettings, WalkPart

KEYWORDS = tuple(name for name in PruneSettings.fields() if name != "layers")  # of `rose.prune_model`
SHARED = ("block_size", "damping", "threshold")  # fields that a recipe and a layer's settings name alike


class RunSettings(PruneSettings):
    """How to prune a model, checked as far as possible without one; see `rose.prune_model`."""

    @cached_property
    def layer(self) -> Settings:
        """The settings of every layer."""
        same = self.pick(("method", *SHARED, "order", "budget"))
        return Settings(**same, pattern=self.pattern, options=self.method_options, grid=self.grid)

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

    def describe(self) -> dict[str, Any]:
        """The settings of the layers and of the walk, for the report."""
        walk = self.model_dump(include={*WalkPart.fields()} - {"min_expert_tokens", "compute"})
        return describe_layer(self.layer) | walk | {"true_sequential": self.sequential}


def describe_grid(grid: Grid | None) -> dict[str, Any]:
    """The grid's fields as JSON values; nothing where weights are not rounded."""
    return asdict(grid) if grid else {}


def describe_layer(settings: Settings) -> dict[str, Any]:
    described = {name: getattr(settings, name) for name in SHARED}
    head = {"method": settings.method, "sparsity": str(settings.pattern), "options": dict(settings.options)}
    return head | described | describe_grid(settings.grid)
