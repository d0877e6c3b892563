"""What a configuration can express: other numbers of heads, channels and decoder blocks, tried without weights.

Families derive further sizes from these numbers, and properties from a block's place. A changed configuration is
therefore compared with the whole model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from rose.errors import RoseError
from rose.model.network.heads import head_width
from rose.model.network.layers import PrunableLayer, decoder_blocks, text_config
from rose.structured.defaults import PARTS
from rose.structured.parts import CHANNELS, HEADS, Part, Shape, cuttable_layers, find_parts

RECORD = "rose_shapes"  # of a configuration; see `rose.structured.surgery.record_of`
CHANNEL_FIELDS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
BIAS_FIELDS = {HEADS: "attention_bias", CHANNELS: "mlp_bias"}
BIASED_EVERYWHERE = ("llama",)  # families whose output projections may have biases in llama.cpp and vLLM too
PLACE_FIELDS = ("layer_idx", "layer_id", "layer_number")  # of modules that know which decoder block they are in

Sizes = dict[str, torch.Size]
# Programs that shall read a model: all (transformers, llama.cpp and vLLM), transformers, or rose alone.
Readers = Literal["all", "transformers", "rose"]


def reshaped_config(
    model: Any, shapes: Mapping[str, Shape], biased: Sequence[str] = (), blocks: Sequence[int] | None = None
) -> Any:
    """The model's configuration with other numbers of heads and channels (`shapes` by kind), output biases in kinds
    `biased`, and only these decoder `blocks`."""
    config = copy.deepcopy(model.config)
    text: Any = config.get_text_config()
    if HEADS in shapes:
        width = head_width(text)
        text.num_attention_heads, text.num_key_value_heads = shapes[HEADS].units, shapes[HEADS].groups
        text.head_dim = width
    if CHANNELS in shapes:
        for name in [name for name in CHANNEL_FIELDS if hasattr(text, name)][:1]:
            setattr(text, name, shapes[CHANNELS].units)
    for kind in biased:
        if hasattr(text, BIAS_FIELDS[kind]):
            setattr(text, BIAS_FIELDS[kind], True)
    if blocks is not None:
        _keep_blocks(model, config, text, blocks)
    elif hasattr(config, RECORD):
        delattr(config, RECORD)
    return config


def _keep_blocks(model: nn.Module, config: Any, text: Any, keep: Sequence[int]) -> None:
    """Leaves these decoder blocks in a configuration and in its lists by block."""
    path, blocks = decoder_blocks(model)
    text.num_hidden_layers = len(keep)
    for name, value in list(vars(text).items()):
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == len(blocks):
            setattr(text, name, [value[index] for index in keep])
    if record := getattr(config, RECORD, None):
        new = {f"{path}.{index}.": f"{path}.{number}." for number, index in enumerate(keep)}
        biased = [
            name.replace(old, start, 1)
            for name in record["biased"]
            for old, start in new.items()
            if name.startswith(old)
        ]
        setattr(config, RECORD, {"blocks": [record["blocks"][index] for index in keep], "biased": biased})


def described(config: Any) -> nn.Module | None:
    """The model of a configuration, without weights; None for an invalid configuration."""
    try:
        read = type(config).from_dict(config.to_dict())
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(read)
    except Exception:  # every family checks itself in its own way; what it refuses cannot be expressed
        return None


def described_sizes(config: Any) -> Sizes:
    """Sizes of all tensors of a configuration's model; empty for an invalid configuration."""
    model = described(config)
    return {} if model is None else _sizes_of(model)


def _sizes_of(model: nn.Module) -> Sizes:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


# Heads and channels


def can_say(
    model: nn.Module, parts: Sequence[Sequence[Part]], shapes: Mapping[str, Shape], biased: Sequence[str] = ()
) -> bool:
    """Whether the configuration can express these shapes in every decoder block, with output biases in kinds
    `biased`; parts: [block][part]."""
    described_tensors = described_sizes(reshaped_config(model, shapes, biased))
    needed = _sizes_of(model)
    for part in (part for of_block in parts for part in of_block):
        needed |= _sizes_for(part, shapes.get(part.kind, part.shape), part.kind in biased)
    added = described_tensors.keys() - needed.keys()  # `apply_config` adds such biases, of zeros
    possible = {f"{layer.name}.bias" for part in parts_of_any(model) for layer in part.layers}
    return all(described_tensors.get(name) == size for name, size in needed.items()) and added <= possible


def _sizes_for(part: Part, shape: Shape, biased: bool) -> Sizes:
    """Sizes of a part's tensors at this shape."""
    rows = part.output.weight.shape[0]
    sizes = {f"{part.output.name}.weight": _stored(part.output, rows, shape.units * part.width)}
    if biased:
        sizes[f"{part.output.name}.bias"] = torch.Size([rows])
    for layer in part.makers:
        rows_left = sum(rows.count(shape) for rows in part.rows if rows.layer is layer)
        sizes[f"{layer.name}.weight"] = _stored(layer, rows_left, layer.weight.shape[1])
        if layer.bias is not None:
            sizes[f"{layer.name}.bias"] = torch.Size([rows_left])
    return sizes


def _stored(layer: PrunableLayer, rows: int, columns: int) -> torch.Size:
    return torch.Size([columns, rows] if isinstance(layer.module, Conv1D) else [rows, columns])


def parts_of_any(model: nn.Module) -> list[Part]:
    """All parts that can be found, kind by kind."""
    parts: list[Part] = []
    for kind in PARTS:
        try:
            parts += chain.from_iterable(find_parts(model, (kind,)))
        except RoseError:
            continue
    return parts


def can_bias(model: nn.Module, parts: Sequence[Sequence[Part]], kind: str, readers: Readers = "all") -> bool:
    """Whether the output projections of a kind have biases, or may get biases that these programs read."""
    of_kind = [[part for part in of_block if part.kind == kind] for of_block in parts]
    if readers == "rose" or all(part.output.bias is not None for of_block in of_kind for part in of_block):
        return True
    text = text_config(model)
    if not hasattr(text, BIAS_FIELDS[kind]) or (readers == "all" and text.model_type not in BIASED_EVERYWHERE):
        return False
    return can_say(model, of_kind, {}, [kind])


def is_cut_everywhere(model: nn.Module, kind: str) -> bool:
    """Whether llama.cpp and vLLM read another number of these units. Without a configured head width, they take it
    to be the hidden size over the number of heads."""
    return kind == CHANNELS or hasattr(type(text_config(model)), "head_dim")


def kinds_of(model: nn.Module) -> tuple[str, ...]:
    """The kinds of parts that can be removed from every decoder block, such as ("heads", "channels")."""
    cuttable_layers(model)
    kinds = []
    for kind in PARTS:
        try:
            check_cuttable(model, find_parts(model, (kind,)))
        except RoseError:
            continue
        kinds.append(kind)
    return tuple(kinds)


def check_cuttable(model: nn.Module, parts: Sequence[Sequence[Part]]) -> None:
    """Raises RoseError where other tensors also depend on the units, such as a norm over all heads.

    They are found by a configuration with fewer units, and by their length in the part's module.
    """
    before = described_sizes(reshaped_config(model, {}))
    layers = [layer for of_block in parts for part in of_block for layer in part.layers]
    tensors = {f"{layer.name}.{tensor}" for layer in layers for tensor in ("weight", "bias")}
    for part in parts[0]:
        after = [described_sizes(reshaped_config(model, {part.kind: shape})) for shape in _smaller(part.shape)]
        both = [(sizes, sizes.keys() | before.keys()) for sizes in after if before and sizes]
        changed = {name for sizes, names in both for name in names if sizes.get(name) != before.get(name)}
        if foreign := sorted((changed | _as_long(model, part)) - tensors):
            left = [kind for kind in dict.fromkeys(sizes.kind for sizes in parts[0]) if kind != part.kind]
            advice = f"choose {left[0]} alone" if left else "choose the method depth"
            raise RoseError(
                f"The {part.kind} of {type(model).__name__} cannot be taken out, as {foreign[0]} belongs to them; "
                f"{advice}."
            )


def _as_long(model: nn.Module, part: Part) -> set[str]:
    """Vectors beside a part's layers with one entry per column."""
    if not part.owner:
        return set()  # the whole decoder block, whose norms may be as long by chance
    path = f"{decoder_blocks(model)[0]}.{part.block_index}.{part.owner}"
    inside = model.get_submodule(path).named_parameters()
    return {f"{path}.{name}" for name, vector in inside if vector.shape == (part.output.weight.shape[1],)}


def _smaller(shape: Shape) -> list[Shape]:
    """One group fewer, and one unit per group fewer, where possible."""
    tried = [Shape(shape.groups - 1, shape.per_group), Shape(shape.groups, shape.per_group - 1)]
    return [smaller for smaller in tried if smaller.groups and smaller.per_group]


# Decoder blocks


def droppable_blocks(model: nn.Module) -> list[int]:
    """The decoder blocks that the configuration can omit; raises RoseError if it can omit none.

    A configuration may describe blocks by their place: dense and sparse ones, or a scale. Omitting a block must leave
    every later block as it is.
    """
    described_blocks = _blocks_said(described(model.config))
    if len(described_blocks) != len(decoder_blocks(model)[1]):
        raise RoseError(f"The configuration of {type(model).__name__} does not describe its decoder blocks.")
    # If the first block of a kind can be omitted, all later ones can: omitting it moves the most blocks.
    first = {block: index for index, block in reversed(list(enumerate(described_blocks)))}
    every = range(len(described_blocks))
    free = {
        block
        for block, at in first.items()
        if _says_blocks(model, described_blocks, [number for number in every if number != at])
    }
    if not free:
        raise RoseError(
            f"The configuration of {type(model).__name__} cannot say another number of decoder blocks, or says by "
            "their place what they are."
        )
    return [index for index, block in enumerate(described_blocks) if block in free]


def can_keep_blocks(model: nn.Module, keep: Sequence[int]) -> bool:
    """Whether the configuration can express that only these decoder blocks remain."""
    return _says_blocks(model, _blocks_said(described(model.config)), keep)


def _says_blocks(model: nn.Module, dense_blocks: Sequence[object], keep: Sequence[int]) -> bool:
    reduced = described(reshaped_config(model, {}, blocks=keep))
    return reduced is not None and _blocks_said(reduced) == [dense_blocks[index] for index in keep]


def _blocks_said(model: nn.Module | None) -> list[object]:
    """For each decoder block its modules, sizes and settings, without its place."""
    if model is None:
        return []
    try:
        _, blocks = decoder_blocks(model)
    except RoseError:
        return []
    return [tuple(_settings(path, module) for path, module in block.named_modules()) for block in blocks]


def _settings(path: str, module: nn.Module) -> tuple[object, ...]:
    plain = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and not name.startswith("_") and name not in PLACE_FIELDS
    }
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    sizes = tuple((name, tensor.shape) for name, tensor in tensors)
    return path, type(module).__name__, tuple(sorted(plain.items())), sizes
