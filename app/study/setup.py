"""The choices of the dialog: the model, its layers, and how a study measures them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

import rose
from rose.environment import versions
from rose.layer.pattern import THRESHOLD
from rose.model.defaults import STORED, STUDY
from rose.model.estimate import Cost, check_free
from rose.model.load.models import parse_dtype
from rose.model.settings import Compute, Layers
from rose.recipe import parts as part
from rose.recipe.steps import Analyze

# What measures every layer: name in the table -> arguments of `rose.prune_layer`. Two-level order is measured on all
# layers, columnar or not, so that the threshold can move without pruning anything again.
MEASURED: dict[str, dict[str, Any]] = {
    "sparsegpt": {"method": "sparsegpt"},
    "two_level": {"method": "rose", "threshold": 0.0},
    "rose_global": {"method": "rose_global"},
}

# What is foretold of these before any sweep: name in the table -> order and budget.
FORETOLD = {"sparsegpt": ("natural", "block"), "two_level": ("two_level", "block"), "rose_global": ("global", "layer")}

NUMBERS = ("samples", "length", "seed", "held_out", "block_size", "damping")
TOKENS = ("calibration", "samples", "length", "seed", "held_out")
INPUTS = ("model", "dtype", *TOKENS, "layers")  # fields that inputs of layers depend on
CHOSEN = (*INPUTS, "sparsity", "block_size", "damping", "stream")  # that the dialog offers and a link carries
LARGEST = 2**53 - 1  # that a browser takes for a whole number


def patterns_of(layers: Any) -> Any:
    """Names with `*`, separated by spaces, as a tuple; None where they mean every layer."""
    return (None if layers.strip() in ("", "*") else tuple(layers.split())) if isinstance(layers, str) else layers


class Setup(Analyze):
    """A user's choices in the dialog: the recipe `Analyze`, in the number formats of a study."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    compute: Compute = "float32"
    samples: part.Samples = STUDY.samples
    length: part.Length = STUDY.length
    held_out: part.HeldOut = STUDY.held_out
    layers: Annotated[Layers | None, BeforeValidator(patterns_of)] = None

    @property
    def calibration_key(self) -> tuple[Any, ...]:
        """The choices that inputs of layers depend on."""
        return tuple(self.pick(INPUTS).values())

    @property
    def layers_text(self) -> str:
        """The layers as a form has them."""
        return " ".join(self.layers or "*")

    @classmethod
    def edited(cls, **values: Any) -> Setup:
        """A set-up as typed, which only `check` refuses."""
        try:
            return cls(**values)
        except rose.RoseError:
            return cls.model_construct(**values)

    @classmethod
    def read(cls, texts: dict[str, str], base: Setup | None = None) -> tuple[Setup, list[str]]:
        """Reads what a URL carries, and a sentence for each value that no run could use, which stays as in `base`."""
        setup = base or cls()
        problems: list[str] = []
        for name in filter(texts.__contains__, CHOSEN):
            try:
                setup = setup.changed(**{name: texts[name]})
            except rose.RoseError as problem:
                problems.append(f"{problem} {getattr(setup, name)} is used instead.")
        return setup, problems

    def to_texts(self, base: Setup | None = None) -> dict[str, str]:
        """The differences from another set-up, or from the defaults, as texts for a URL."""
        former = base or Setup()
        names = [name for name in CHOSEN if getattr(self, name) != getattr(former, name)]
        return {name: self.layers_text if name == "layers" else str(getattr(self, name)) for name in names}

    @property
    def origin(self) -> dict[str, Any]:
        """The origin of a report: model, text, and versions of programs."""
        return self.pick(("model", "dtype", "calibration", "seed")) | {"made_with": versions()}

    def recipe(self, methods: Sequence[str] = ("sparsegpt", "rose"), threshold: float = THRESHOLD) -> Analyze:
        """The recipe for the same numbers on the command line."""
        return Analyze.of(**self.pick(Analyze.fields()) | {"methods": tuple(methods), "threshold": threshold})

    @classmethod
    def of(cls, recipe: Any) -> Setup:  # type: ignore[override]
        """The set-up of a recipe for a language model; its dtype is float32 where the recipe leaves it open."""
        return cls(**recipe.pick(CHOSEN) | {"dtype": "float32" if recipe.dtype == STORED else recipe.dtype})

    def check(self) -> None:
        """Raises RoseError for values that no run could use, before any work."""
        type(self)(**self.pick(self.fields()))


def check_memory(cost: Cost, dtype: str) -> None:
    """Raises RoseError where a copy of the model, and what a run takes besides, do not fit into memory now."""
    needed = weights_size(cost, dtype) + cost.memory
    advice = "wait for other runs to end, or choose fewer samples or a smaller model"
    check_free("A copy of the model and its calibration take", needed, advice)


def weights_size(cost: Cost, dtype: str) -> int:
    """Bytes of the model's weights in this type; a cost counts them in float32."""
    return cost.model_memory // 4 * parse_dtype(dtype).itemsize
