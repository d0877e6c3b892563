"""The settings of a run over a whole model, checked in one place before any work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Unpack

from rose.errors import RoseError
from rose.given import check_choice, check_keywords, is_whole
from rose.layer.bits import Grid
from rose.layer.methods import Settings, SettingsOptions, make_settings
from rose.layer.registry import check_damping
from rose.model.defaults import TARGETS
from rose.model.network.layers import PrunableLayer
from rose.model.network.precision import DEFAULT, check_compute
from rose.model.rules import Allocation, parse_allocation


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


def run_settings(
    *,
    allocation: str = "uniform",
    target: str = "dense",
    target_damping: float | None = None,
    true_sequential: bool = False,
    min_expert_tokens: int = 1,
    compute: str = DEFAULT,
    **layer: Unpack[SettingsOptions],
) -> RunSettings:
    """Settings of a run, as for `rose.prune_model`, complete, and checked as far as can be without a model."""
    check_keywords(layer, RunOptions.__optional_keys__)  # no trace either: a run keeps none
    settings = make_settings(**layer)
    rule = parse_allocation(allocation)
    rule.check(settings.pattern)
    check_target(target, target_damping)
    if not is_whole(min_expert_tokens) or min_expert_tokens < 1:
        raise RoseError(
            f"Experts need at least 1 token to be pruned by, not {min_expert_tokens!r}; give a whole number."
        )
    check_compute(compute)
    target_damping = None if target_damping is None else float(target_damping)  # JSON does not know NumPy's
    sequential = true_sequential or target == "dense"
    return RunSettings(settings, rule, target, target_damping, sequential, int(min_expert_tokens), compute)


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


def check_target(target: str, damping: float | None) -> None:
    """Raises RoseError for an unknown target, or a damping that does not belong to it."""
    check_choice("The target", target, TARGETS)
    if damping is not None:
        if target != "dense":
            raise RoseError("Only target dense has a correction to damp; leave the target's damping out.")
        check_damping(damping)
