"""Cuts a model to other shapes, and what its configuration can express: numbers of heads, channels and decoder blocks.

Families derive further sizes from these numbers, and properties from a block's place. A changed configuration is
therefore tried without weights, and compared with the whole model. Shapes that a configuration cannot express are
written into it as a record, `rose_shapes`, which `rose.load_model` reads.
"""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from rose.errors import RoseError
from rose.model.load.models import BUILDERS
from rose.model.network.layers import LOW_RANK, PrunableLayer, decoder_blocks, head_width, text_config
from rose.structured.parts import CHANNELS, HEADS, Part, Shape, cuttable_layers, find_parts
from rose.structured.settings import PARTS

RECORD = "rose_shapes"  # of a configuration; see `record_of`
CHANNEL_FIELDS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
BIAS_FIELDS = {HEADS: "attention_bias", CHANNELS: "mlp_bias"}
BIASED_EVERYWHERE = ("llama",)  # families whose output projections may have biases in llama.cpp and vLLM too
PLACE_FIELDS = ("layer_idx", "layer_id", "layer_number")  # of modules that know which decoder block they are in

Sizes = dict[str, torch.Size]
# Programs that should read a model: all (transformers, llama.cpp and vLLM), transformers, or rose alone.
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
    _set_known(text, {BIAS_FIELDS[kind]: True for kind in biased})
    record = vars(config).pop(RECORD, None)
    if blocks is None:
        return config
    path, dense_blocks = decoder_blocks(model)
    text.num_hidden_layers = len(blocks)
    for name, value in list(vars(text).items()):
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == len(dense_blocks):
            setattr(text, name, [value[index] for index in blocks])
    if record:
        new = {f"{path}.{index}.": f"{path}.{number}." for number, index in enumerate(blocks)}
        names = [
            name.replace(old, start, 1)
            for name in record["biased"]
            for old, start in new.items()
            if name.startswith(old)
        ]
        setattr(config, RECORD, {"blocks": [record["blocks"][index] for index in blocks], "biased": names})
    return config


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
    return {name: tensor.shape for name, tensor in model.state_dict().items()} if model else {}


def can_say(
    model: nn.Module, parts: Sequence[Sequence[Part]], shapes: Mapping[str, Shape], biased: Sequence[str] = ()
) -> bool:
    """Whether the configuration can express these shapes in every decoder block, with output biases in kinds
    `biased`; parts: [block][part]."""
    described_tensors = described_sizes(reshaped_config(model, shapes, biased))
    needed = {name: tensor.shape for name, tensor in model.state_dict().items()}
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
        with suppress(RoseError):
            parts += chain.from_iterable(find_parts(model, (kind,)))
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
        with suppress(RoseError):
            check_cuttable(model, find_parts(model, (kind,)))
            kinds.append(kind)
    return tuple(kinds)


def check_cuttable(model: nn.Module, parts: Sequence[Sequence[Part]]) -> None:
    """Raises RoseError where other tensors also depend on the units, such as a norm over all heads. They are found by a
    configuration with fewer units, and by their length (a vector with an entry per column) in the part's module."""
    before = described_sizes(reshaped_config(model, {}))
    layers = [layer for of_block in parts for part in of_block for layer in part.layers]
    tensors = {f"{layer.name}.{tensor}" for layer in layers for tensor in ("weight", "bias")}
    for part in parts[0]:
        # One group fewer, and one unit per group fewer.
        fewer = Shape(part.shape.groups - 1, part.shape.per_group), Shape(part.shape.groups, part.shape.per_group - 1)
        after = [described_sizes(reshaped_config(model, {part.kind: shape})) for shape in fewer if shape.units]
        both = [(sizes, sizes.keys() | before.keys()) for sizes in after if before and sizes]
        changed = {name for sizes, names in both for name in names if sizes.get(name) != before.get(name)}
        if part.owner:  # else the whole decoder block, whose norms may be as long by chance
            path = f"{decoder_blocks(model)[0]}.{part.block_index}.{part.owner}"
            inside, columns = model.get_submodule(path).named_parameters(), part.output.weight.shape[1]
            changed |= {f"{path}.{name}" for name, vector in inside if vector.shape == (columns,)}
        if foreign := sorted(changed - tensors):
            left = [kind for kind in dict.fromkeys(sizes.kind for sizes in parts[0]) if kind != part.kind]
            advice = f"choose {left[0]} alone" if left else "choose the method depth"
            raise RoseError(
                f"The {part.kind} of {type(model).__name__} cannot be taken out, as {foreign[0]} belongs to them; "
                f"{advice}."
            )


def droppable_blocks(model: nn.Module) -> list[int]:
    """The decoder blocks that the configuration can omit; raises RoseError if it can omit none. A configuration may
    describe blocks by their place: dense and sparse ones, or a scale. Omitting a block must leave every later block as
    it is."""
    described_blocks = _described_blocks(model.config)
    if len(described_blocks) != len(decoder_blocks(model)[1]):
        raise RoseError(f"The configuration of {type(model).__name__} does not describe its decoder blocks.")
    # If the first block of a kind can be omitted, all later ones can: omitting it moves the most blocks.
    first = {block: index for index, block in reversed(list(enumerate(described_blocks)))}
    every = range(len(described_blocks))
    free = {
        block
        for block, at in first.items()
        if can_keep_blocks(model, [number for number in every if number != at], described_blocks)
    }
    if not free:
        raise RoseError(
            f"The configuration of {type(model).__name__} cannot say another number of decoder blocks, or says by "
            "their place what they are."
        )
    return [index for index, block in enumerate(described_blocks) if block in free]


def can_keep_blocks(model: nn.Module, keep: Sequence[int], described_blocks: Sequence[object] = ()) -> bool:
    """Whether the configuration can express that only these decoder blocks remain; `described_blocks`: of the whole
    model, if at hand."""
    whole = described_blocks or _described_blocks(model.config)
    return _described_blocks(reshaped_config(model, {}, blocks=keep)) == [whole[index] for index in keep]


def _described_blocks(config: Any) -> list[object]:
    """Modules, sizes and settings of each decoder block of a configuration, without its place; empty for an invalid
    configuration."""
    if (model := described(config)) is None:
        return []
    try:
        _, blocks = decoder_blocks(model)
    except RoseError:
        return []

    def settings(module: nn.Module) -> object:
        plain = {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, (bool, int, float, str)) and not name.startswith("_") and name not in PLACE_FIELDS
        }
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        sizes = tuple((name, tensor.shape) for name, tensor in tensors)
        return type(module).__name__, tuple(sorted(plain.items())), sizes

    return [tuple((path, settings(module)) for path, module in block.named_modules()) for block in blocks]


# Cuts


@dataclass(frozen=True)
class Cut:
    """The remaining units of one part, `kept` (units,) bool, and their `shape`."""

    part: Part
    kept: Tensor
    shape: Shape


def cut_parts(cuts: Sequence[Cut]) -> None:
    """Removes the rows and columns of all other units, in place."""
    for cut in cuts:
        part = cut.part
        if cut.shape == part.shape:
            continue
        columns = cut.kept.repeat_interleave(part.width).nonzero().flatten()
        for layer in part.makers:
            of_layer = [rows for rows in part.rows if rows.layer is layer]
            stay = torch.cat([rows.chosen(cut.kept, part.shape) for rows in of_layer]).to(layer.weight.device)
            module: Any = layer.module
            _replace(module, layer.weight[stay])
            if layer.bias is not None:
                module.bias = _parameter(layer.bias.detach()[stay])
        _replace(part.output.module, part.output.weight[:, columns.to(part.output.weight.device)])


def cut_to(part: Part, shape: Shape) -> Cut:
    """Keeps the first units, for weights that are read later."""
    stay = torch.zeros(part.shape.groups, part.shape.per_group, dtype=torch.bool, device="cpu")
    stay[: shape.groups, : shape.per_group] = True
    return Cut(part, stay.flatten(), shape)


def _replace(module: Any, weight: Tensor) -> None:
    """Gives a layer a weight, (out, in), of another size."""
    stored = weight.T if isinstance(module, Conv1D) else weight
    module.weight = _parameter(stored)
    vars(module).pop(LOW_RANK, None)  # of the shape that it had
    if isinstance(module, Conv1D):
        module.nx, module.nf = stored.shape
    else:
        module.out_features, module.in_features = stored.shape


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous().clone(), requires_grad=False)


def add_bias(layer: PrunableLayer, bias: Tensor | None = None) -> None:
    """Adds to a layer's bias, which is created as zeros if absent."""
    module: Any = layer.module
    if layer.bias is None:
        rows = layer.weight.shape[0]
        module.bias = nn.Parameter(torch.zeros(rows, dtype=module.weight.dtype, device=module.weight.device), False)
    if bias is not None:
        total = module.bias.detach().float() + bias.to(module.bias.device)
        module.bias = nn.Parameter(total.to(module.weight.dtype), False)


def tell_modules(model: nn.Module, parts: Sequence[Part], shapes: Sequence[Shape], own_config: bool) -> None:
    """Updates sizes stored in modules. If `own_config`, attention gets its own configuration, which some families
    read at run time."""
    prefix, _ = decoder_blocks(model)
    for part, shape in zip(parts, shapes, strict=True):
        path = f"{prefix}.{part.block_index}" + (f".{part.owner}" if part.owner else "")
        owner: Any = model.get_submodule(path)
        if part.kind == CHANNELS:
            _set_known(owner, {"intermediate_size": shape.units})
            continue
        sizes = {"num_heads": shape.units, "num_key_value_heads": shape.groups, "num_key_value_groups": shape.per_group}
        _set_known(owner, sizes)
        if hasattr(owner, "config"):
            owner.config = copy.copy(owner.config) if own_config else text_config(model)
            if own_config:
                _set_known(owner.config, {"num_attention_heads": shape.units, "num_key_value_heads": shape.groups})


def _set_known(module: Any, values: Mapping[str, int]) -> None:
    for name, value in values.items():
        if hasattr(module, name):
            setattr(module, name, value)


def apply_config(model: Any, config: Any) -> None:
    """Gives a model and its modules a new configuration, and adds the zero biases that it implies."""
    old, old_text = model.config, text_config(model)
    text = config.get_text_config()
    for module in model.modules():
        if getattr(module, "config", None) is old:
            module.config = config
        elif getattr(module, "config", None) is old_text:
            module.config = text
    model.config = config
    sizes = described_sizes(config)
    for part in parts_of_any(model):
        for layer in part.layers:
            if f"{layer.name}.bias" in sizes and layer.bias is None:
                add_bias(layer)


def drop_blocks(model: Any, keep: Sequence[int]) -> None:
    """Leaves only these decoder blocks, renumbered, and updates the configuration."""
    if not can_keep_blocks(model, keep):
        raise RoseError(f"The configuration of {type(model).__name__} cannot say that these decoder blocks are left.")
    config = reshaped_config(model, {}, blocks=keep)
    path, blocks = decoder_blocks(model)
    blocks_left = nn.ModuleList([blocks[index] for index in keep])
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, blocks_left)
    for number, block in enumerate(blocks_left):
        for module in block.modules():
            for field in PLACE_FIELDS:
                if hasattr(module, field):
                    setattr(module, field, number)
    apply_config(model, config)
    _set_known(model.base_model, {"n_layer": len(keep)})


# Shapes that a configuration cannot express


def record_of(model: nn.Module) -> dict[str, Any]:
    """Shapes by decoder block as plain data: {"blocks": [{"heads": [groups, per group], "channels": [1, count]}],
    "biased": [output projections with a bias]}."""
    parts = parts_of_any(model)
    blocks: list[dict[str, list[int]]] = [{} for _ in decoder_blocks(model)[1]]
    for part in parts:
        blocks[part.block_index][part.kind] = [part.shape.groups, part.shape.per_group]
    biased = [part.output.name for part in parts if part.output.bias is not None]
    return {"blocks": blocks, "biased": biased}


def apply_record(model: Any, record: Mapping[str, Any]) -> None:
    """Gives a model the shapes of a record, whatever its weights; raises RoseError where the record does not fit."""
    try:
        kinds = list(record["blocks"][0])
        parts_found = find_parts(model, kinds)
        shapes_wanted = [
            [Shape(*block[part.kind]) for part in parts]
            for block, parts in zip(record["blocks"], parts_found, strict=True)
        ]
        biased = set(record["biased"])
    except (KeyError, IndexError, TypeError, ValueError) as problem:
        raise RoseError(f"The shapes in the configuration cannot be read ({problem}); save the model again.") from None
    for parts, shapes in zip(parts_found, shapes_wanted, strict=True):
        for part in parts:
            if part.output.name in biased:
                add_bias(part.output)
        cut_parts([cut_to(part, shape) for part, shape in zip(parts, shapes, strict=True)])
        tell_modules(model, parts, shapes, own_config=True)


def with_shapes(family: Any, apply: Callable[[Any], None]) -> Any:
    """A subclass of a family whose constructor reshapes the model, before weights are read, and makes it the
    family's."""

    @functools.wraps(family.__init__)  # what reads files looks at the signature
    def build(self: Any, *args: Any, **options: Any) -> None:
        family.__init__(self, *args, **options)
        apply(self)
        self.__class__ = family

    return type(family.__name__, (family,), {"__init__": build, "__module__": family.__module__})


BUILDERS[RECORD] = lambda family, record: with_shapes(family, partial(apply_record, record=record))
