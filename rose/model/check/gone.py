"""Attention heads and experts of which no weight is left, and heads in which misfits lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rose.layer.agreement import COLUMN, ROW
from rose.layer.change import WeightChange
from rose.model.network.heads import head_width
from rose.model.network.layers import PrunableLayer
from rose.wording import count, listing

Changes = Mapping[str, tuple[PrunableLayer, WeightChange]]  # by name of the layer


@dataclass(frozen=True)
class Gone:
    """What has no weight left, though the dense model had some."""

    heads: dict[str, list[int]]  # numbers of attention heads by output projection
    experts: list[str]  # names, such as "model.layers.0.mlp.experts.3"
    outputs: dict[str, int]  # columns of a head by output projection

    @classmethod
    def find(cls, changes: Changes, config: Any) -> Gone:
        """`config` belongs to the language model."""
        outputs, heads = _output_projections(changes, config), {}
        for name, width in outputs.items():
            change = changes[name][1]
            sizes = Counter(column // width for column in change.empty_columns)
            numbers = [number for number, size in sizes.items() if size == width]
            if numbers and change.zeros < change.size:
                heads[name] = numbers
        return cls(heads, _experts(changes), outputs)

    def row(self, changes: Iterable[WeightChange]) -> dict[str, Any]:
        """For a summary; rows and columns of layers that have weights."""
        live = [change for change in changes if change.zeros < change.size]
        return {
            "rows": sum(len(change.empty_rows) for change in live),
            "columns": sum(len(change.empty_columns) for change in live),
            "heads": [f"{layer}: {number}" for layer, numbers in self.heads.items() for number in numbers],
            "experts": self.experts,
        }

    def says(self, layer: str, change: WeightChange) -> str:
        """Sentences on one layer: in which heads its misfits lie, and what is gone; "" without either."""
        parts = []
        if change.zeros < change.size:
            sizes = {"row": len(change.empty_rows), "column": len(change.empty_columns)}
            parts += [count(size, noun) for noun, size in sizes.items() if size]
        parts += [_heads(numbers) for numbers in [self.heads.get(layer)] if numbers]
        parts += ["this expert"] if any(layer.startswith(f"{expert}.") for expert in self.experts) else []
        return self._says_misfits(layer, change) + (f" Nothing is left of {', '.join(parts)}." if parts else "")

    def _says_misfits(self, layer: str, change: WeightChange) -> str:
        """Of an output projection its columns are of heads, of the layers beside it the rows."""
        module = layer.rpartition(".")[0]
        beside = next((width for name, width in self.outputs.items() if name.rpartition(".")[0] == module), 0)
        axis, width = (COLUMN, self.outputs[layer]) if layer in self.outputs else (ROW, beside)
        numbers: set[int] = set()
        for part in change.misfits:
            first, last = part.columns if axis == COLUMN else part.rows
            if width and part.axis == axis and not part.may_be_lawful:
                numbers |= {*range(-(-first // width), (last + 1) // width)}  # whole heads
        return f" {axis.capitalize()}s of {_heads(numbers)}." if numbers else ""


def _heads(numbers: Iterable[int]) -> str:
    names = [*map(str, sorted(numbers))]
    return f"head{'s' if len(names) > 1 else ''} {listing(names)}"


def _output_projections(changes: Changes, config: Any) -> dict[str, int]:
    """Columns of a head, by name of the layers that read all heads: the last layer of a module that has others."""
    try:
        heads, width = config.num_attention_heads, head_width(config)
    except (AttributeError, RuntimeError):  # of transformers, where decoder blocks have different ones
        return {}
    modules: dict[str, list[str]] = {}
    for name in changes:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    last = [names[-1] for names in modules.values() if len(names) > 1]
    return {name: width for name in last if width and changes[name][1].shape[1] == width * heads}


def _experts(changes: Changes) -> list[str]:
    """Names of experts, up to their number, of which all layers are zero."""
    left: dict[str, bool] = {}
    for name, (layer, change) in changes.items():
        parts = layer.projection.split(".")
        place = next((place for place, part in enumerate(parts) if part.isdigit()), None)
        if place is not None:
            expert = name.removesuffix("." + ".".join(parts[place + 1 :]))
            left[expert] = left.get(expert, False) or change.zeros < change.size or change.zeros_before == change.size
    return [expert for expert, is_left in left.items() if not is_left]
