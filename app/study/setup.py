"""The choices of the start page: the model, its layers, and how a study measures them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

import rose
from rose.environment import versions
from rose.layer.pattern import BLOCK_SIZE, DAMPING, SPARSITY, THRESHOLD
from rose.model.defaults import OFFLINE, STORED, STUDY
from rose.model.estimate import Cost, check_free
from rose.model.load.models import parse_dtype
from rose.model.load.tokens import Warn, load_calibration
from rose.recipe.parts import as_sparsity
from rose.recipe.steps import Analyze, Prune

# What measures every layer: name in the table -> arguments of `rose.prune_layer`. Two-level order is measured on all
# layers, columnar or not, so that the threshold can move without pruning anything again.
MEASURED: dict[str, dict[str, Any]] = {
    "sparsegpt": {"method": "sparsegpt"},
    "two_level": {"method": "rose", "threshold": 0.0},
    "rose_global": {"method": "rose_global"},
}

# What is foretold of these before any sweep: name in the table -> order and budget.
FORETOLD = {"sparsegpt": ("natural", "block"), "two_level": ("two_level", "block"), "rose_global": ("global", "layer")}

NUMBERS = ("samples", "length", "seed", "held_out", "block_size", "damping")  # with the limits of recipes
FIELDS = Analyze.fields()
LARGEST = 2**53 - 1  # that a browser takes for a whole number


@dataclass(frozen=True)
class Setup:
    """A user's choices on the start page; their limits are those of the recipe `Analyze`."""

    model: str = OFFLINE
    dtype: str = "float32"
    text: str = "packaged"
    samples: int = STUDY.samples
    length: int = STUDY.length
    seed: int = 0
    held_out: int = STUDY.held_out  # further samples on which errors are measured but nothing is fitted
    layers: str = "*"  # names separated by spaces, `*` allowed
    sparsity: str = str(SPARSITY)  # a ratio or N:M
    block_size: int = BLOCK_SIZE
    damping: float = DAMPING
    stream: bool = False  # leave the weights on disk and read one decoder block at a time; the numbers are the same

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", one_spelling(self.sparsity))

    @property
    def calibration_key(self) -> tuple[Any, ...]:
        return (self.model, self.dtype, self.text, self.samples, self.length, self.seed, self.held_out, self.layers)

    @property
    def layer_patterns(self) -> list[str] | None:
        return patterns_of(self.layers)

    @classmethod
    def read(cls, texts: dict[str, str], base: Setup | None = None) -> tuple[Setup, list[str]]:
        """Reads what a URL carries, and a sentence for each value that no run could use, which stays as in `base`."""
        setup = base or cls()
        problems: list[str] = []
        for name in filter(texts.__contains__, asdict(setup)):
            try:
                edited: dict[str, Any] = asdict(setup) | {name: texts[name]}
                setup = cls.of(cls(**edited).recipe())  # which also reads numbers
            except rose.RoseError as problem:
                problems.append(f"{problem} {getattr(setup, name)} is used instead.")
        return setup, problems

    def to_texts(self, base: Setup | None = None) -> dict[str, str]:
        """The differences from another set-up, or from the defaults, as texts for a URL."""
        former = asdict(base or Setup())
        return {name: str(value) for name, value in asdict(self).items() if value != former[name]}

    @property
    def drawn(self) -> dict[str, Any]:
        """The calibration text, as reports name it."""
        sizes = {"samples": self.samples, "length": self.length, "seed": self.seed}
        return {"calibration": self.text, **sizes, "held_out_samples": self.held_out}

    @property
    def origin(self) -> dict[str, Any]:
        """The origin of a report: model, text, and versions of programs."""
        facts = {"model": self.model, "dtype": self.dtype, "calibration": self.text, "seed": self.seed}
        return facts | {"made_with": versions()}

    def draw(self, tokenizer: PreTrainedTokenizerBase, warn: Warn | None = None) -> tuple[Tensor, Tensor | None]:
        sizes: dict[str, Any] = {name: getattr(self, name) for name in ("samples", "held_out", "length", "seed")}
        return load_calibration(self.text, tokenizer, **sizes, warn=warn)

    def recipe(self, methods: Sequence[str] = ("sparsegpt", "rose"), threshold: float = THRESHOLD) -> Analyze:
        """The recipe for the same numbers on the command line; raises RoseError for values that no run can use."""
        parse_dtype(self.dtype)
        options = asdict(self) | {"layers": self.layer_patterns, "compute": "float32"}  # as a study's forward passes
        return Analyze.of(calibration=options.pop("text"), **options, methods=tuple(methods), threshold=threshold)

    @classmethod
    def of(cls, recipe: Analyze | Prune) -> Setup:
        """The set-up of a recipe; its dtype is float32 where the recipe leaves it open."""
        values = {field.name: getattr(recipe, field.name) for field in fields(cls) if field.name in recipe.fields()}
        values |= {"text": recipe.calibration, "layers": " ".join(recipe.layers or "*")}
        return cls(**values | {"dtype": "float32" if recipe.dtype == STORED else recipe.dtype})

    def check(self) -> None:
        """Raises RoseError for values that no run could use, before any work."""
        self.recipe()


def one_spelling(sparsity: str) -> str:
    """ "0.7" for "0.70" too, see `as_sparsity`; what is no sparsity stays as it is."""
    try:
        return as_sparsity(sparsity)
    except rose.RoseError:
        return sparsity


def patterns_of(layers: str) -> list[str] | None:
    """Names with `*`, separated by spaces; None where they mean every layer."""
    return None if layers.strip() in ("", "*") else layers.split()


def check_memory(cost: Cost, dtype: str) -> None:
    """Raises RoseError where a copy of the model, and what a run takes besides, do not fit into memory now."""
    needed = weights_size(cost, dtype) + cost.memory
    advice = "wait for other runs to end, or choose fewer samples or a smaller model"
    check_free("A copy of the model and its calibration take", needed, advice)


def weights_size(cost: Cost, dtype: str) -> int:
    """Bytes of the model's weights in this type; a cost counts them in float32."""
    return cost.model_memory // 4 * parse_dtype(dtype).itemsize
