"""Removable parts of a decoder block, attention heads and MLP channels, with their rows and columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rose.errors import RoseError
from rose.model.network.layers import (
    PrunableLayer,
    by_block,
    count_parameters,
    decoder_blocks,
    head_width,
    prunable_layers,
    text_config,
)
from rose.structured.settings import PARTS

HEADS, CHANNELS = PARTS

# Output projection, and the layers whose rows make what it reads, within one module. Heads only where a configuration
# can name their number apart from their size; a fused layer holds its parts one after another.
_ATTENTION = (("o_proj", ("q_proj", "k_proj", "v_proj")), ("o_proj", ("qkv_proj",)))
_MLP = (
    ("down_proj", ("gate_proj", "up_proj")),
    ("down_proj", ("gate_up_proj",)),
    ("down_proj", ("up_proj",)),
    ("c_proj", ("c_fc",)),
    ("fc2", ("fc1",)),
    ("dense_4h_to_h", ("dense_h_to_4h",)),
)
_PAIRED = ("diffllama",)  # each head is subtracted from another one: none can go alone
_SHARED = (False, True, True)  # queries are each head's own; keys and values are a group's


@dataclass(frozen=True)
class Shape:
    """The units of a part: `groups` of `per_group` each. MLP channels are one group; query heads with a common
    key-value head are a group."""

    groups: int
    per_group: int

    @property
    def units(self) -> int:
        return self.groups * self.per_group


@dataclass(frozen=True)
class Rows:
    """Rows of one layer, from `start`, that make inputs of an output projection: `width` rows per unit, or per group
    where a group shares them, like keys and values."""

    layer: PrunableLayer
    start: int
    width: int
    shared: bool

    def count(self, shape: Shape) -> int:
        return self.width * (shape.groups if self.shared else shape.units)

    def chosen(self, stay: Tensor, shape: Shape) -> Tensor:
        """Indices of the rows that stay; `stay`: (units,) bool."""
        if self.shared:
            stay = stay.view(shape.groups, shape.per_group).any(1)
        return self.start + stay.repeat_interleave(self.width).nonzero().flatten()


@dataclass(frozen=True)
class Part:
    """The heads of one attention, or the channels of one MLP."""

    kind: str
    block_index: int
    output: PrunableLayer  # the projection that reads the units, `width` columns each
    rows: tuple[Rows, ...]  # the rows that make the units
    shape: Shape
    width: int
    owner: str  # the module of the part, "" for the decoder block itself

    @property
    def makers(self) -> list[PrunableLayer]:
        """The layers of the rows, each once."""
        return list({rows.layer.name: rows.layer for rows in self.rows}.values())

    @property
    def layers(self) -> list[PrunableLayer]:
        """All layers that are cut with this part."""
        return [*self.makers, self.output]

    def parameters(self, shape: Shape) -> int:
        """Weights and biases of this part at a shape."""
        total = shape.units * self.width * self.output.weight.shape[0]
        for rows in self.rows:
            columns = rows.layer.weight.shape[1] + (rows.layer.bias is not None)
            total += rows.count(shape) * columns
        return total

    def saved(self, shape: Shape) -> int:
        """Parameters that this shape removes."""
        return self.parameters(self.shape) - self.parameters(shape)


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises RoseError unless these are one or more of `PARTS`."""
    unknown = [kind for kind in kinds if kind not in PARTS]
    if unknown or not kinds:
        raise RoseError(f"Parts are {' and '.join(PARTS)}, not {', '.join(unknown) or 'nothing'}.")


def find_parts(model: nn.Module, kinds: Sequence[str] = PARTS) -> list[list[Part]]:
    """The parts of every decoder block, attention first, [block][part]; raises RoseError for a block without."""
    check_kinds(kinds)
    kinds_in_order = [kind for kind in PARTS if kind in kinds]
    parts = []
    for index, layers in by_block(cuttable_layers(model)).items():
        parts_by_kind = {kind: part for kind in kinds_in_order if (part := _find(model, kind, layers)) is not None}
        missing = [kind for kind in kinds_in_order if kind not in parts_by_kind]
        if missing:
            advice = (
                f"choose {next(iter(parts_by_kind))} alone"
                if parts_by_kind
                else "choose the method depth, which drops decoder blocks"
            )
            raise RoseError(
                f"The {missing[0]} of {type(model).__name__} cannot be taken out (decoder block {index}): its "
                f"configuration has no number for them, or its layers are not known; {advice}."
            )
        parts.append(list(parts_by_kind.values()))
    return parts


def cuttable_layers(model: nn.Module) -> list[PrunableLayer]:
    """The layers that could be cut; raises RoseError for a mixture of experts."""
    layers = prunable_layers(model)
    if any(layer.is_expert for layer in layers):
        raise RoseError(
            f"{type(model).__name__} is a mixture of experts, which cannot be made smaller yet; choose a dense model, "
            "or remove single weights by prune."
        )
    return layers


def _find(model: nn.Module, kind: str, layers: Sequence[PrunableLayer]) -> Part | None:
    by_name = {layer.projection: layer for layer in layers}
    for output_name, row_names in _ATTENTION if kind == HEADS else _MLP:
        for projection, output in by_name.items():
            owner, _, last = projection.rpartition(".")
            rows = [by_name.get(f"{owner}.{name}" if owner else name) for name in row_names]
            if last == output_name and all(rows):
                make = _heads if kind == HEADS else _channels
                return make(model, output, [row for row in rows if row is not None], owner)
    return None


def _channels(model: nn.Module, output: PrunableLayer, layers: list[PrunableLayer], owner: str) -> Part | None:
    count = output.weight.shape[1]
    rows = []
    for layer in layers:
        if layer.weight.shape[0] % count:
            return None
        rows += [Rows(layer, start, 1, False) for start in range(0, layer.weight.shape[0], count)]
    return Part(CHANNELS, output.block_index, output, tuple(rows), Shape(1, count), 1, owner)


def _heads(model: nn.Module, output: PrunableLayer, layers: list[PrunableLayer], owner: str) -> Part | None:
    config: Any = text_config(model)
    if config.model_type in _PAIRED:
        return None
    width = output.weight.shape[1]
    dimension = head_width(config)
    if dimension is None:
        return None
    queries = width // dimension
    rows_made = sum(layer.weight.shape[0] for layer in layers)
    groups = (rows_made - width) // (2 * dimension)
    fused = len(layers) == 1
    if not fused and layers[0].weight.shape[0] != width:
        return None  # a gate for each head beside its query
    if queries * dimension != width or groups < 1 or rows_made != width + 2 * groups * dimension or queries % groups:
        return None  # heads of unlike sizes, such as latent attention
    shape = Shape(groups, queries // groups)
    starts = (0, width, width + groups * dimension) if fused else (0, 0, 0)
    made_by = zip(layers * 3 if fused else layers, starts, _SHARED, strict=True)
    rows = tuple(Rows(layer, start, dimension, shared) for layer, start, shared in made_by)
    return Part(HEADS, output.block_index, output, rows, shape, dimension, owner)


def block_parameters(model: nn.Module) -> int:
    """Parameters of all decoder blocks."""
    return count_parameters(decoder_blocks(model)[1])
