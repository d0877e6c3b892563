"""Decoder blocks and prunable layers of any decoder family, found by structure and not by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

from rose.errors import RoseError
from rose.layer.bits import Grid
from rose.layer.grid import coarsest_grid
from rose.layer.pattern import Pattern
from rose.model.network.experts import ExpertLinear, expert_layers, is_experts, routers

LowRank = tuple[Tensor, Tensor]
LOW_RANK = "rose_low_rank"  # of a module
GRIDS_TRIED = 3  # layers in which a grid is looked for
LEFT, RIGHT = ".low_rank.left", ".low_rank.right"
MASKED = (
    "holds weights and their masks apart, as torch.nn.utils.prune keeps them; call "
    'torch.nn.utils.prune.remove(layer, "weight") for every pruned layer'
)


@dataclass(frozen=True)
class PrunableLayer:
    """A linear layer inside a decoder block.

    Attributes:
        name: dotted name in the model, such as "model.layers.0.self_attn.o_proj"; a matrix of an expert is
            "model.layers.0.mlp.experts.3.gate_proj", whether or not the model keeps it by itself.
        block_index: which decoder block it is in.
        projection: the name within the block, such as "self_attn.o_proj".
        module: `nn.Linear`, a subclass of it, GPT-2's Conv1D, or an `ExpertLinear`.
    """

    name: str
    block_index: int
    projection: str
    module: nn.Module

    @property
    def weight(self) -> Tensor:
        """W as (out, in), whichever way the module stores it; a view, not a copy."""
        return self.part_of(self.parameter.detach())

    def part_of(self, stored: Tensor) -> Tensor:
        """What belongs to this layer in a tensor of the shape of `parameter`, as (out, in); a view."""
        if isinstance(self.module, ExpertLinear):
            return self.module.part_of(stored)
        return stored.T if isinstance(self.module, Conv1D) else stored

    @property
    def parameter(self) -> nn.Parameter:
        """What the model stores W in: a parameter of its own, perhaps transposed, or that of all experts of a block."""
        stored = self.module.fused if isinstance(self.module, ExpertLinear) else self.module.weight
        assert isinstance(stored, nn.Parameter)
        return stored

    @property
    def bias(self) -> nn.Parameter | None:
        """(out,); None where the layer has none."""
        return getattr(self.module, "bias", None)

    def write(self, weight: Tensor) -> None:
        """Replaces W, given as (out, in), in the module's own dtype and storage; raises RoseError for another shape."""
        if weight.shape != self.weight.shape:  # which would be spread over the rows
            raise RoseError(f"{self.name} holds {tuple(self.weight.shape)} weights, not {tuple(weight.shape)}.")
        self.weight.copy_(weight)

    @property
    def is_expert(self) -> bool:
        """Whether it is a matrix of a fused expert, which only the tokens routed to it reach, perhaps none."""
        return isinstance(self.module, ExpertLinear)

    @property
    def low_rank(self) -> LowRank | None:
        """Factors (out, rank) and (rank, in) whose product W contains besides a sparse part, as the last pruning left
        it; None where it only removed weights."""
        return getattr(self.module, LOW_RANK, None)

    def keep_low_rank(self, factors: LowRank | None) -> None:
        """Notes the factors beside W; a plain attribute, so that the module's state and its output stay as they are."""
        if factors is not None:
            setattr(self.module, LOW_RANK, factors)
        elif self.low_rank is not None:
            delattr(self.module, LOW_RANK)


@contextmanager
def named(layer: PrunableLayer) -> Iterator[None]:
    """Puts the layer's name in front of what is wrong with it."""
    try:
        yield
    except RoseError as problem:
        raise RoseError(f"{layer.name}: {problem}") from problem


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by name, those that stand for matrices of fused experts among them."""
    for name, module in model.named_modules():
        yield name, module
        for expert in expert_layers(module) if is_experts(module) else ():
            yield f"{name}.{expert.name}", expert


def low_rank_tensors(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, Tensor]:
    """The factors of the modules that have them, as NAME + `LEFT` and NAME + `RIGHT`, for a file."""
    found = {}
    for name, module in modules:
        factors: LowRank | None = getattr(module, LOW_RANK, None)
        if factors is not None:
            found[name + LEFT], found[name + RIGHT] = factors
    return found


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder blocks and their dotted name: the outermost module list that holds most linear weights; raises
    RoseError where there is none."""
    if not isinstance(model, nn.Module):
        raise RoseError(f"A transformers model is needed, not a {type(model).__name__}.")
    best, best_size, outer = None, 0, ""
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or (outer and name.startswith(outer)):
            continue  # lists inside a list (experts of a block) are parts of its blocks
        outer = name + "."
        size = sum(m.weight.numel() for m in module.modules() if isinstance(m, (nn.Linear, Conv1D)))
        if size > best_size:
            best, best_size = (name, module), size
    if best is None:
        raise RoseError(
            f"{type(model).__name__} has no list of decoder blocks with linear layers, so nothing to prune; "
            "choose a decoder-only language model."
        )
    return best


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model, which a model that also sees or hears keeps inside its own."""
    config: Any = getattr(model, "config", None)
    if config is None:
        raise RoseError(f"A transformers model is needed, with its configuration, not a {type(model).__name__}.")
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def check_plain(model: nn.Module) -> None:
    """Raises RoseError where a linear layer computes with more than a weight of its own: an adapter beside it, a mask
    over it, or a weight made of other tensors, which would all be lost or undone."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "base_layer", None), nn.Module):  # as every kind of adapter in peft has it
            raise RoseError(
                f"{name} is a layer with an adapter beside it; merge the two first (in peft: "
                "model = model.merge_and_unload(); in diffusers: pipeline.fuse_lora(), then "
                "pipeline.unload_lora_weights())."
            )
        if not isinstance(module, (nn.Linear, Conv1D)):
            continue
        if "weight" in module._parameters:
            if module.weight.dtype.itemsize == 1:
                kept = str(module.weight.dtype).removeprefix("torch.")
                raise RoseError(f"{name} has weights in {kept}, which cannot be pruned; load the model dequantized.")
            continue
        if "weight_orig" in module._parameters and "weight_mask" in module._buffers:
            raise RoseError(f"{name} {MASKED}.")
        norm = "remove_weight_norm(layer)"
        call = 'parametrize.remove_parametrizations(layer, "weight")' if is_parametrized(module) else norm
        raise RoseError(
            f"{name} makes its weights of other tensors, as weight_norm does; give every such layer weights of its own "
            f"first (torch.nn.utils.{call})."
        )


def prunable_layers(model: nn.Module) -> list[PrunableLayer]:
    """Every linear layer inside the decoder blocks, in forward registration order; each matrix of an expert is one.

    Embeddings and the output head are outside the blocks and stay dense, as in the papers; so do the routers of fused
    experts.

    Raises:
        RoseError: the family keeps its experts in fused weights of another layout than `network.experts`, or as
            `check_plain`.
    """
    (prefix, blocks), family = decoder_blocks(model), type(model).__name__
    check_plain(model)
    layers = []
    for index, block in enumerate(blocks):
        left_out, experts = routers(block), {name for name, module in block.named_modules() if is_experts(module)}
        fused = [name for name, p in block.named_parameters() if p.squeeze().ndim == 3 and "conv" not in name]
        unknown = [name for name in fused if name.rpartition(".")[0] not in experts]
        if unknown:
            raise RoseError(
                f"{family} keeps fused three-dimensional weights ({unknown[0]}), as mixtures of experts "
                "do; this layout of them is not supported yet, so choose another model."
            )
        for name, module in block.named_modules():
            if isinstance(module, (nn.Linear, Conv1D)) and module not in left_out:
                layers.append(PrunableLayer(f"{prefix}.{index}.{name}", index, name, module))
            for expert in expert_layers(module) if name in experts else ():
                part = f"{name}.{expert.name}"
                layers.append(PrunableLayer(f"{prefix}.{index}.{part}", index, part, expert))
    return layers


def matching(every: Sequence[PrunableLayer], layers: Sequence[str | PrunableLayer] | None) -> list[PrunableLayer]:
    """Of these layers those with these names; `*` and `?` match as in a shell; a layer stands for its name; None means
    all.

    Raises RoseError for a name that matches nothing, no name at all, or what is no name.
    """
    if layers is None:
        return list(every)
    is_one = isinstance(layers, (str, PrunableLayer)) or not isinstance(layers, Iterable)
    given: Any = [layers] if is_one else layers
    names = [one.name if isinstance(one, PrunableLayer) else one for one in given]
    if not all(isinstance(name, str) for name in names):
        raise RoseError(f"Layers are chosen by their names, not by {layers!r:.100}; rose.prunable_layers has them.")
    if not names:
        raise RoseError("No layer is chosen; give at least one name, or leave the choice out for all.")
    chosen = set()
    for pattern in names:
        matched = {layer.name for layer in every if fnmatch.fnmatchcase(layer.name, pattern)}
        if not matched:
            raise RoseError(
                f"No prunable layer is named {pattern!r}; names look like {every[0].name}, and * matches any part."
            )
        chosen |= matched
    return [layer for layer in every if layer.name in chosen]


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, norms and biases included; tied ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_zeros(layers: Iterable[PrunableLayer]) -> tuple[int, int]:
    """How many weights of these layers are zero, and how many there are; not of a streamed model."""
    weights = [layer.weight for layer in layers]
    return sum(int((one == 0).sum()) for one in weights), sum(one.numel() for one in weights)


def by_block(layers: Iterable[PrunableLayer]) -> dict[int, list[PrunableLayer]]:
    """The layers by decoder block, in the order of the blocks."""
    found: dict[int, list[PrunableLayer]] = {}
    for layer in layers:
        found.setdefault(layer.block_index, []).append(layer)
    return dict(sorted(found.items()))


def check_prunable(
    chosen: Sequence[PrunableLayer],
    every: Sequence[PrunableLayer],
    pattern: Pattern,
    block_size: int,
    grid: Grid | None = None,
) -> None:
    """Raises RoseError where chosen layers, some or all of `every`, cannot be pruned, or rounded to a grid: see
    `check_not_shared`, `check_widths` and `check_no_coarser_grid`."""
    check_not_shared(chosen, every)
    check_widths(chosen, pattern, block_size, grid)
    if grid:
        check_no_coarser_grid(chosen, grid, pattern)


def check_widths(layers: Iterable[PrunableLayer], pattern: Pattern, block_size: int, grid: Grid | None = None) -> None:
    """Raises RoseError, naming the layer, where its number of columns does not suit the pattern or the grid."""
    for layer in layers:
        with named(layer):
            pattern.check(layer.weight.shape[1], block_size)
            if grid:
                grid.width(layer.weight.shape[1])


def check_no_coarser_grid(layers: Sequence[PrunableLayer], grid: Grid, pattern: Pattern) -> None:
    """Raises RoseError, naming the layer, where weights lie on a grid already that this one would not make coarser; a
    few layers tell. Weights that are still in files are not looked at."""
    for layer in layers[:GRIDS_TRIED]:
        weight = layer.weight
        found = coarsest_grid(weight) if not weight.is_meta and weight.any() else None
        if found and (found.grid.bits < grid.bits or (found.grid.bits == grid.bits and pattern.ratio == 0)):
            raise RoseError(
                f"The weights of {layer.name} are rounded to {found.grid} already, so {grid.bits} bits would save "
                "nothing; give fewer bits, or begin with the model as it was before."
            )


def check_not_shared(layers: Sequence[PrunableLayer], every: Sequence[PrunableLayer]) -> None:
    """Raises RoseError where a layer's weights are those of another one too: it would be pruned twice, or unseen."""
    owners: dict[Any, str] = {}
    chosen = {layer.name for layer in layers}
    for layer in every:
        first = owners.setdefault(_place(layer.parameter), layer.name) if not layer.is_expert else layer.name
        if first != layer.name and chosen & {first, layer.name}:
            raise RoseError(
                f"{first} and {layer.name} are the same weights, which several decoder blocks share; such layers "
                "cannot be pruned one decoder block at a time, so choose others."
            )


def _place(parameter: nn.Parameter) -> Any:
    """Where weights are in memory, which two parameters may share; of those in files only which parameter it is."""
    if parameter.is_meta:
        return id(parameter)
    return parameter.untyped_storage().data_ptr(), parameter.storage_offset(), parameter.shape
