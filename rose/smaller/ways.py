"""What can be made of a model to make it smaller: each way is a recipe of slimming, pruning, tuning and rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from rose.errors import RoseError
from rose.layer.bits import parse_grid
from rose.layer.pattern import parse_sparsity
from rose.model.network.network import Network
from rose.recipe.file import BETWEEN, PREVIOUS, Recipe
from rose.recipe.parts import SlimSettings
from rose.recipe.spec import Spec
from rose.recipe.steps import Prune, Slim, Smaller
from rose.structured.slimming import check_slimming

AS_IS = "as-is"
NARROW = 32  # input columns that share a scale in a slimmed copy: few heads may be left
FRACTIONS = {"fifth": 0.2, "third": 0.33}
TUNED = "-tuned"


@dataclass(frozen=True)
class Way:
    """A way to make a model smaller.

    Attributes:
        key: name on a command line, "slim-fifth-bits-4"; `name` is for people.
        slim: share of the decoder blocks' parameters to take out, 0 for none.
        bits: of kept weights; None without rounding.
        recipe: the steps that make the copy; None for the model as it is.
        times: lowest and highest perplexity over the dense model's in docs/results, for estimates.
    """

    key: str
    name: str
    slim: float
    sparsity: str
    bits: int | None
    is_tuned: bool
    recipe: Recipe | None
    times: tuple[float, float]


# Key, and the range of perplexity over the dense model's: docs/results/{bits,bits-budget,structured,
# qwen2.5-coder-0.5b-structured}.csv and docs/tuning.md; of slimmed and rounded copies the product of both.
RULES: dict[str, tuple[float, float]] = {
    AS_IS: (1.0, 1.0),
    "bits-8": (1.0, 1.01),
    "bits-4": (1.05, 1.06),
    "bits-3": (1.2, 1.25),
    "slim-fifth": (1.12, 1.5),
    "slim-fifth-tuned": (1.1, 1.2),
    "slim-third": (1.2, 1.81),
    "slim-third-tuned": (1.2, 1.35),
    "half": (1.2, 1.33),
    "half-tuned": (1.1, 1.13),
    "2:4": (1.55, 1.7),
    "2:4-tuned": (1.21, 1.25),
    "half-bits-4": (1.24, 1.37),
    "half-tuned-bits-4": (1.13, 1.2),
    "slim-fifth-bits-8": (1.12, 1.52),
    "slim-fifth-bits-4": (1.18, 1.59),
    "slim-fifth-tuned-bits-4": (1.15, 1.27),
}


def ways_of(spec: Smaller, model: nn.Module) -> list[Way]:
    """The ways that this model allows, the model as it is first."""
    ways = [_way(key, times, spec) for key, times in RULES.items()]
    return [way for way in ways if not problem_of(way, model)]


def problem_of(way: Way, model: nn.Module) -> str:
    """Why this way cannot be gone with this model, a sentence; "" where it can. Shapes alone are read."""
    network = Network(model)
    try:
        if way.slim:
            check_slimming(model, SlimSettings(ratio=way.slim))
        pattern = parse_sparsity(way.sparsity)
        if not way.slim and (pattern.ratio or way.bits):
            network.to_prune(None, pattern, Prune.fields()["block_size"].default, parse_grid(way.bits, None))
    except RoseError as problem:
        return str(problem)
    return ""


def _way(key: str, times: tuple[float, float], spec: Smaller) -> Way:
    words = key.replace("2:4", "pattern").split("-")
    slim = next((FRACTIONS[word] for word in words if word in FRACTIONS), 0.0)
    sparsity = "0.5" if "half" in words else "2:4" if "pattern" in words else "0"
    bits = int(words[-1]) if words[-1].isdecimal() else None
    is_tuned = "tuned" in words
    parts = [f"a {word} slimmed" for word in words if word in FRACTIONS]
    parts += ["half zero"] if sparsity == "0.5" else ["2:4"] if sparsity == "2:4" else []
    parts += ["tuned"] if is_tuned else []
    parts += [f"{bits} bits"] if bits else []
    steps = _steps(slim, sparsity, bits, is_tuned, spec)
    return Way(
        key, ", ".join(parts) or "as it is", slim, sparsity, bits, is_tuned, Recipe(tuple(steps)) if steps else None,
        times,
    )  # fmt: skip


def _steps(slim: float, sparsity: str, bits: int | None, is_tuned: bool, spec: Smaller) -> list[Spec]:
    """Tuning trains kept weights, so that rounding is a step of its own behind it."""
    text = {name: getattr(spec, name) for name in ("calibration", "samples", "length", "seed", "held_out", "bos")}
    shared: dict[str, Any] = text | {"dtype": spec.dtype, "output": BETWEEN}
    grid = {"bits": bits} | ({"group": NARROW} if bits and slim else {})
    tuning = {"tune": spec.tune} if is_tuned else {}
    steps: list[Spec] = []
    model = spec.model
    if slim:
        steps.append(Slim.of(model=model, ratio=slim, **shared, **tuning))
        model = PREVIOUS
    if sparsity != "0":
        at_once = {} if is_tuned else grid
        steps.append(Prune.of(model=model, sparsity=sparsity, **shared, **({} if slim else tuning), **at_once))
        model = PREVIOUS
    if bits and (sparsity == "0" or is_tuned):
        steps.append(Prune.of(model=model, sparsity="0", **grid, **shared))
    return steps


def programs(bits: int | None) -> str:
    """Which programs load such a copy, by file."""
    exact = {None: "f16", 8: "f16 or q8_0"}.get(bits, "f16, q8_0 or q4_0")
    return f"transformers, vLLM: safetensors; rose: packed; llama.cpp: {exact}"
