"""How to prune and to tune a model: each setting declared once, for Python, command lines, recipes and forms; imports
no torch."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from rose.errors import RoseError
from rose.layer.registry import check_order_name
from rose.layer.settings import BUDGET_HELP, ORDER_HELP, LayerSettings
from rose.model.defaults import RATE
from rose.model.rules import Allocation, parse_allocation
from rose.spec import Real, Spec, Whole, one_or_several, setting

MAX_SEED = 2**63 - 1


def _order(name: str) -> str:
    if name != "rose":  # two-level or natural, as the layer is columnar or not
        check_order_name(name)
    return name


Compute = Annotated[
    Literal["auto", "float32", "bfloat16"],
    setting("number format of matrix products in forward passes; auto: bfloat16 where this processor can"),
]
Seed = Annotated[Whole, setting("seed of the random choice of windows", label="Seed", ge=0, le=MAX_SEED)]
Target = Annotated[
    Literal["dense", "layer"],
    setting(
        "what each layer is fitted to: dense, the dense model's output at that place; layer, as in the papers, its own "
        "dense output on the pruned inputs"
    ),
]
TargetDamping = Annotated[
    Real,
    setting(
        "damping of the correction towards the dense model, as a share of the mean Hessian diagonal (default: by the "
        "numbers of tokens and of decoder blocks to prune)",
        metavar="MU",
        ge=0,
    ),
]
Minutes = Annotated[Real, setting("how long tuning may take", unit="minutes", metavar="MINUTES", gt=0)]
Layers = Annotated[
    tuple[str, ...],
    BeforeValidator(one_or_several),
    setting("only these layers, last of all options; * matches any part, in quotes", form="words", metavar="NAME"),
]


class ChosenLayers(Spec):
    """Which layers of a model."""

    layers: Layers | None = None


class WalkSettings(Spec):
    """The walk over a model, and the target of each layer."""

    allocation: Annotated[
        str,
        AfterValidator(lambda text: parse_allocation(text).text),
        setting(
            "how layers share the sparsity: uniform, owl, sensitivity; sensitivity:ALPHA sets how far layers may "
            "differ; damage:FOLDER uses the rows of `rose damage`",
            metavar="RULE",
        ),
    ] = "uniform"
    target: Target = "dense"
    target_damping: TargetDamping | None = None
    true_sequential: Annotated[
        bool,
        setting(
            "with target layer, calibrate each layer once those before it in its decoder block are pruned, as target "
            "dense always does; faster, but needs more memory"
        ),
    ] = False
    min_expert_tokens: Annotated[
        Whole,
        setting(
            "leave an expert dense if fewer calibration tokens than this are routed to it",
            unit="tokens",
            metavar="N",
            ge=1,
        ),
    ] = 1
    compute: Compute = "auto"

    @cached_property
    def sharing(self) -> Allocation:
        """The allocation, parsed; its damages are read when they are needed."""
        return parse_allocation(self.allocation)

    @property
    def is_sequential(self) -> bool:
        """Whether each layer is calibrated on the pruned layers before it in its own decoder block."""
        return self.true_sequential or self.target == "dense"

    def towards(self, target: str) -> dict[str, Any]:
        """The target with its fields: only dense has a correction, and only layer can walk in one pass or two."""
        damping, sequential = (self.target_damping, False) if target == "dense" else (None, self.true_sequential)
        return {"target": target, "target_damping": damping, "true_sequential": sequential}

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        check_target_damping(self.target_damping, self.target)
        return self


def check_target_damping(damping: float | None, target: str) -> None:
    """Raises RoseError for the damping of a correction that the target does not need."""
    if damping is not None and target != "dense":
        raise RoseError("Only target dense has a correction to damp; leave the target's damping out.")


class NamedSettings(ChosenLayers, LayerSettings):
    """How to prune layers of a model, by orders and budgets that have names."""

    order: Annotated[str | None, AfterValidator(lambda name: name and _order(name)), setting(ORDER_HELP)] = None
    budget: Annotated[Literal["block", "layer"] | None, setting(BUDGET_HELP)] = None


class PruneSettings(WalkSettings, NamedSettings):
    """Keywords of `rose.prune_model`."""

    @cached_property
    def layer(self) -> LayerSettings:
        """The settings of every layer."""
        return LayerSettings(**self.pick(LayerSettings.fields()))

    def check(self) -> None:
        """Raises RoseError for damages that are missing or of another sparsity, and for an allocation under N:M."""
        self.sharing.check(self.pattern)

    def describe(self) -> dict[str, Any]:
        """The settings of the layers and of the walk, for a report."""
        walk = self.pick(("allocation", "target", "target_damping"))
        return super().describe() | walk | {"true_sequential": self.is_sequential}


class TuneSettings(Spec):
    """Keywords of `rose.tune_model`."""

    minutes: Annotated[Minutes, setting("how long it may take")] | None = None
    epochs: Annotated[Real, setting("or: passes over the windows (default: 1)", gt=0)] | None = None
    loss: Annotated[Literal["kl", "ce"], setting("kl: towards the dense model; ce: by the text's own next tokens")] = (
        "kl"
    )
    rate: Annotated[
        Real | None, setting(f"highest learning rate (default: at most {RATE:g}, by steps and weights)", gt=0)
    ] = None
    batch: Annotated[Whole, setting("windows per step", ge=1)] = 2
    seed: Seed = 0
    compute: Compute = "auto"

    @model_validator(mode="after")
    def _check_end(self) -> Self:
        if self.minutes is not None and self.epochs is not None:
            raise RoseError("Give minutes or epochs, not both: each says when tuning ends.")
        return self
