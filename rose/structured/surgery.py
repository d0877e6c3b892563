"""Cuts a model and its configuration to other shapes.

Shapes that a configuration cannot express are written into it as a record, `rose_shapes`, which `rose.load_model`
reads; see `rose.structured.configuration`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D

from rose.errors import RoseError
from rose.model.load.models import BUILDERS
from rose.model.load.stored import for_transformers
from rose.model.network.layers import LOW_RANK, PrunableLayer, decoder_blocks, text_config
from rose.structured.configuration import (
    PLACE_FIELDS,
    RECORD,
    can_keep_blocks,
    described_sizes,
    parts_of_any,
    reshaped_config,
)
from rose.structured.parts import CHANNELS, Part, Shape, find_parts


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
    """Updates sizes stored in modules. With `own_config` attention gets its own configuration, which some families
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


# Configurations


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


def read_recorded(config: Any, folder: Path | None, dtype: torch.dtype) -> Any:
    """The model of a configuration with a record, with weights from a folder if given."""
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    # transformers reads the weights, as it knows how each family names them in files; it only builds the model by us.
    recorded = with_shapes(family, lambda model: apply_record(model, getattr(config, RECORD)))
    if folder is None:
        model = recorded._from_config(config, dtype=dtype)
    else:
        source = for_transformers(folder)
        model, loaded = recorded.from_pretrained(**source, config=config, dtype=dtype, output_loading_info=True)
        wrong = [*loaded["missing_keys"], *loaded["mismatched_keys"], *loaded["unexpected_keys"]]
        if wrong:
            raise RoseError(f"The weights in {folder} do not fit the shapes in its configuration ({wrong[0]}).")
    model.__class__ = family
    return model


def with_shapes(family: Any, apply: Callable[[Any], None]) -> Any:
    """A subclass of a family that reshapes its models in the constructor, before weights are read."""

    @functools.wraps(family.__init__)  # what reads files looks at the signature
    def build(self: Any, *args: Any, **options: Any) -> None:
        family.__init__(self, *args, **options)
        apply(self)

    return type(family.__name__, (family,), {"__init__": build, "__module__": family.__module__})


BUILDERS[RECORD] = read_recorded
