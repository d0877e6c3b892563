"""What was taken out of a model altogether: rows, columns, attention heads and experts that are nothing but zeros."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rose.layer.agreement import COLUMN, ROW
from rose.layer.change import WeightChange
from rose.model.network.heads import head_width
from rose.model.network.layers import PrunableLayer
from rose.wording import listing, whole


@dataclass(frozen=True)
class Gone:
    """Of all layers; what was zero in the dense model is not counted.

    Attributes:
        rows, columns: how many, by name of the layers that lost some.
        heads: numbers of attention heads whose columns of the output projection are zero, by name of that layer.
        experts: names of experts, such as "model.layers.0.mlp.experts.3".
    """

    rows: dict[str, int]
    columns: dict[str, int]
    heads: dict[str, list[int]]
    experts: list[str]

    def of(self, layer: str) -> str:
        """A sentence on one layer; "" where it lost nothing whole."""
        parts = [
            f"{whole(count)} {what}{'s' if count > 1 else ''}"
            for what, count in (("row", self.rows.get(layer, 0)), ("column", self.columns.get(layer, 0)))
            if count
        ]
        heads = self.heads.get(layer, [])
        parts += [f"head{'s' if len(heads) > 1 else ''} {', '.join(map(str, heads))}"] if heads else []
        parts += ["this expert"] if any(layer.startswith(f"{expert}.") for expert in self.experts) else []
        return f" Nothing is left of {', '.join(parts)}." if parts else ""

    def row(self) -> dict[str, Any]:
        """For a summary."""
        rows, columns = sum(self.rows.values()), sum(self.columns.values())
        heads = [f"{layer}: {number}" for layer, numbers in self.heads.items() for number in numbers]
        return {"rows": rows, "columns": columns, "heads": heads, "experts": self.experts}


def find_gone(changes: Mapping[str, tuple[PrunableLayer, WeightChange]], config: Any) -> Gone:
    """What was taken out of a model; `config` is that of its language model."""
    whole = {name: change for name, (_, change) in changes.items() if change.zeros < change.size}
    outputs = output_projections(changes, config)
    heads = {
        name: numbers
        for name, change in whole.items()
        if name in outputs and (numbers := _whole_runs(change.empty_columns, outputs[name]))
    }
    return Gone(
        rows={name: len(change.empty_rows) for name, change in whole.items() if change.empty_rows},
        columns={name: len(change.empty_columns) for name, change in whole.items() if change.empty_columns},
        heads=heads,
        experts=_experts(changes),
    )


def output_projections(changes: Mapping[str, tuple[PrunableLayer, WeightChange]], config: Any) -> dict[str, int]:
    """Columns of a head, by name of the layers that read all heads: the last layer of a module that has others."""
    try:
        heads, width = config.num_attention_heads, head_width(config)
    except (AttributeError, RuntimeError):  # of transformers, where decoder blocks have different ones
        return {}
    last: dict[str, str] = {}
    several: set[str] = set()
    for name in changes:
        owner = name.rpartition(".")[0]
        several |= {owner} & last.keys()
        last[owner] = name
    names = (last[owner] for owner in several)
    return {name: width for name in names if width and changes[name][1].shape[1] == width * heads}


def says_heads(layer: str, change: WeightChange, outputs: Mapping[str, int]) -> str:
    """Which heads' rows or columns the misfits of a layer are, as a sentence; "" where they are not of whole heads.

    Args:
        outputs: columns of a head by output projection, see `output_projections`.
    """
    own = outputs.get(layer)
    beside = next((width for name, width in outputs.items() if name.rpartition(".")[0] == layer.rpartition(".")[0]), 0)
    axis, width = (COLUMN, own) if own else (ROW, beside)
    numbers: set[int] = set()
    for part in change.misfits:
        first, last = part.columns if axis == COLUMN else part.rows
        if width and part.axis == axis and not part.may_be_lawful:
            numbers |= {*range(-(-first // width), (last + 1) // width)}
    if not numbers:
        return ""
    return (
        f" {axis.capitalize()}s of {'heads' if len(numbers) > 1 else 'head'} {listing([*map(str, sorted(numbers))])}."
    )


def _whole_runs(columns: tuple[int, ...], width: int) -> list[int]:
    """Numbers of the runs of `width` columns that are all among these."""
    counts: dict[int, int] = {}
    for column in columns:
        counts[column // width] = counts.get(column // width, 0) + 1
    return [number for number, count in counts.items() if count == width]


def _experts(changes: Mapping[str, tuple[PrunableLayer, WeightChange]]) -> list[str]:
    """Names up to their number of experts of which no weight is left, though there were some."""
    left: dict[str, bool] = {}
    for name, (layer, change) in changes.items():
        parts = layer.projection.split(".")
        number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
        if number is not None:
            expert = name.removesuffix("." + ".".join(parts[number + 1 :]))
            left[expert] = left.get(expert, False) or change.zeros < change.size or change.zeros_before == change.size
    return [expert for expert, is_left in left.items() if not is_left]
