"""How to make a model smaller: each setting declared once, and its defaults; imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator

from rose.errors import RoseError
from rose.layer.pattern import DAMPING
from rose.layer.settings import Damping
from rose.model.settings import Target, TargetDamping, check_target_damping
from rose.spec import Real, Spec, Whole, one_or_several, setting

WHOLE_BLOCKS = "depth"  # the method that drops decoder blocks as they are
RATIO = 0.2
MULTIPLE = 32  # kept channels are a multiple of this, the blocks of q4_0 and q8_0 in GGUF files
PARTS = ("heads", "channels")
ALLOCATIONS = {
    "uniform": "the same shape in every decoder block; heads and channels share by cost per parameter",
    "similarity": "decoder blocks whose output is like their input give more (SlimLLM); heads and channels alike",
    "cost": "wherever a parameter costs least",
}


class SlimSettings(Spec):
    """Keywords of `rose.prune_structured`."""

    method: Annotated[
        Literal["obs", "slimllm", "wanda", "magnitude", "depth"], setting("a structured method, see `rose models`")
    ] = "obs"
    ratio: Annotated[Real, setting("share of their parameters to take out", gt=0, lt=1)] = RATIO
    parts: Annotated[
        tuple[Literal["heads", "channels"], ...] | None,
        BeforeValidator(one_or_several),
        setting("what may be taken out (default: all that the model offers)", form="words"),
    ] = None
    recovery: Annotated[
        Literal["none", "bias", "linear", "exact"] | None, setting("override how the method repairs what stays")
    ] = None
    damping: Annotated[Damping, setting("added to the inputs' covariance, as a share of its mean diagonal")] = DAMPING
    multiple: Annotated[Whole, setting("kept channels are a multiple of this", ge=1)] = MULTIPLE
    allocation: Annotated[
        Literal["uniform", "similarity", "cost"], setting("uniform shapes load everywhere; the others only with rose")
    ] = "uniform"
    target: Target | None = "layer"
    target_damping: TargetDamping | None = None

    @model_validator(mode="after")
    def _check_slimming(self) -> Self:
        check_target_damping(self.target_damping, self.target or "dense")
        if self.method == WHOLE_BLOCKS and (self.parts or self.allocation != "uniform" or self.recovery):
            raise RoseError(
                f"{self.method} drops whole decoder blocks as they are; leave out parts, allocation and recovery."
            )
        return self
