"""Decoder blocks and prunable layers of any decoder family, found by structure."""

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

from rose.errors import RoseError
from rose.layer.pattern import Grid, Pattern
from rose.layer.rounding import coarsest_grid
from rose.model.network.experts import ExpertLinear, expert_layers, is_experts, routers

LowRank = tuple[Tensor, Tensor]
LOW_RANK = "rose_low_rank"  # of a module
GRIDS_TRIED = 3  # layers in which a grid is looked for
LEFT, RIGHT = ".low_rank.left", ".low_rank.right"
LOW_RANK_FILE = "low_rank.safetensors"  # holds `low_rank_tensors`
MASKED = (
    "holds weights and their masks apart, as torch.nn.utils.prune keeps them; call "
    'torch.nn.utils.prune.remove(layer, "weight") for every pruned layer'
)

# Endings of the names of attention's output projections in known families.
ATTENTION_OUTPUTS = (".o_proj", "attn.out_proj", "attention.out_proj", "attn.c_proj", "attn.dense", "attention.dense")


def head_width(config: Any) -> int | None:
    """Columns of a head in the output projection, by the configuration; None if it does not say."""
    try:
        of_values = getattr(config, "v_head_dim", None) or getattr(config, "head_dim", None)
        return of_values or config.hidden_size // config.num_attention_heads
    except (RuntimeError, AttributeError):  # transformers raises these if decoder blocks have different widths
        return None


@dataclass(frozen=True)
class PrunableLayer:
    """A linear layer inside a decoder block."""

    name: str  # in the model, such as "model.layers.0.mlp.experts.3.gate_proj" for a matrix of an expert
    block_index: int
    projection: str  # the name within the block, such as "self_attn.o_proj"
    module: nn.Module  # `nn.Linear`, a subclass, GPT-2's Conv1D, or an `ExpertLinear`
    head_width: int | None = None  # columns of an attention head, in an output projection

    @property
    def weight(self) -> Tensor:
        """W as (out, in), whichever way the module stores it; a view, not a copy."""
        return self.part_of(self.parameter.detach())

    def part_of(self, stored: Tensor) -> Tensor:
        """The share of this layer in a tensor of the shape of `parameter`, as (out, in); a view."""
        if isinstance(self.module, ExpertLinear):
            return self.module.part_of(stored)
        return stored.T if isinstance(self.module, Conv1D) else stored

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that stores W, perhaps transposed, or together with all experts of the block."""
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
        """Whether it is a matrix of a fused expert, which perhaps no token reaches."""
        return isinstance(self.module, ExpertLinear)

    @property
    def low_rank(self) -> LowRank | None:
        """Factors (out, rank) and (rank, in) of the low-rank part of W, from the last pruning; None without one."""
        return getattr(self.module, LOW_RANK, None)

    def keep_low_rank(self, factors: LowRank | None) -> None:
        """Notes the factors as a plain attribute, so that the module's state and output stay unchanged."""
        if factors is not None:
            setattr(self.module, LOW_RANK, factors)
        elif self.low_rank is not None:
            delattr(self.module, LOW_RANK)


@contextmanager
def naming(layer: PrunableLayer) -> Iterator[None]:
    """Adds the layer's name to errors."""
    try:
        yield
    except RoseError as problem:
        raise RoseError(f"{layer.name}: {problem}") from problem


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by name, with the matrices of fused experts."""
    for name, module in model.named_modules():
        yield name, module
        for expert in expert_layers(module) if is_experts(module) else ():
            yield f"{name}.{expert.name}", expert


def low_rank_tensors(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, Tensor]:
    """The low-rank factors of modules as NAME + `LEFT` and NAME + `RIGHT`, for a file."""
    tensors = {}
    for name, module in modules:
        factors: LowRank | None = getattr(module, LOW_RANK, None)
        if factors is not None:
            tensors[name + LEFT], tensors[name + RIGHT] = factors
    return tensors


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder blocks and their dotted name: the outermost module list with most linear weights. Raises RoseError
    without one."""
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
    """The configuration of the language model, which multimodal models keep inside their own."""
    config: Any = getattr(model, "config", None)
    if config is None:
        raise RoseError(f"A transformers model is needed, with its configuration, not a {type(model).__name__}.")
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def check_plain(model: nn.Module) -> None:
    """Raises RoseError for adapters, masks, parametrized or one-byte weights, which pruning would lose or undo."""
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
                dtype = str(module.weight.dtype).removeprefix("torch.")
                raise RoseError(f"{name} has weights in {dtype}, which cannot be pruned; load the model dequantized.")
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
    """Every linear layer inside the decoder blocks, in registration order, with each matrix of an expert. Embeddings,
    output head and routers of fused experts stay dense, as in the papers. Raises RoseError for fused experts of an
    unknown layout, or as `check_plain`."""
    (prefix, blocks), family = decoder_blocks(model), type(model).__name__
    check_plain(model)
    layers, width = [], head_width(text_config(model)) if hasattr(model, "config") else None
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
                layer = PrunableLayer(f"{prefix}.{index}.{name}", index, name, module)
                is_output = width and layer.name.endswith(ATTENTION_OUTPUTS) and layer.weight.shape[1] % width == 0
                layers.append(replace(layer, head_width=width) if is_output else layer)
            for expert in expert_layers(module) if name in experts else ():
                part = f"{name}.{expert.name}"
                layers.append(PrunableLayer(f"{prefix}.{index}.{part}", index, part, expert))
    return layers


def matching(every: Sequence[PrunableLayer], layers: Sequence[str | PrunableLayer] | None) -> list[PrunableLayer]:
    """The layers with these names; `*` and `?` match as in a shell; None means all. Raises RoseError for a name that
    matches nothing, no name, or other objects."""
    if layers is None:
        return list(every)
    is_single = isinstance(layers, (str, PrunableLayer)) or not isinstance(layers, Iterable)
    chosen_layers: Any = [layers] if is_single else layers
    names = [layer.name if isinstance(layer, PrunableLayer) else layer for layer in chosen_layers]
    if not all(isinstance(name, str) for name in names):
        raise RoseError(f"Layers are chosen by their names, not by {layers!r:.100}; rose.prunable_layers has them.")
    if not names:
        raise RoseError("No layer is chosen; give at least one name, or leave the choice out for all.")
    chosen = set()
    for pattern in names:
        matched = {layer.name for layer in every if fnmatch.fnmatchcase(layer.name, pattern)}
        if not matched:
            raise RoseError(
                f"No prunable layer is named {pattern!r}; names look like {every[0].name}, * matches any part, and "
                "[01] either digit."
            )
        chosen |= matched
    return [layer for layer in every if layer.name in chosen]


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module; tied ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_zeros(layers: Iterable[PrunableLayer]) -> tuple[int, int]:
    """Zeros and weights of these layers; not for streamed models."""
    weights = [layer.weight for layer in layers]
    return sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)


def by_block(layers: Iterable[PrunableLayer]) -> dict[int, list[PrunableLayer]]:
    """The layers by decoder block, in order."""
    blocks: dict[int, list[PrunableLayer]] = {}
    for layer in layers:
        blocks.setdefault(layer.block_index, []).append(layer)
    return dict(sorted(blocks.items()))


def check_prunable(
    chosen: Sequence[PrunableLayer],
    every: Sequence[PrunableLayer],
    pattern: Pattern,
    block_size: int,
    grid: Grid | None = None,
) -> None:
    """Raises RoseError where chosen layers cannot be pruned, or are on a grid that this one would not make coarser."""
    check_not_shared(chosen, every)
    check_widths(chosen, pattern, block_size, grid)
    if grid is None:
        return
    for layer in chosen[:GRIDS_TRIED]:
        weight = layer.weight
        coded = coarsest_grid(weight) if not weight.is_meta and weight.any() else None
        if coded and (coded.grid.bits < grid.bits or (coded.grid.bits == grid.bits and pattern.ratio == 0)):
            raise RoseError(
                f"The weights of {layer.name} are rounded to {coded.grid} already, so {grid.bits} bits would save "
                "nothing; give fewer bits, or begin with the model as it was before."
            )


def check_widths(layers: Iterable[PrunableLayer], pattern: Pattern, block_size: int, grid: Grid | None = None) -> None:
    """Raises RoseError where a layer's number of columns does not suit the pattern or the grid."""
    for layer in layers:
        with naming(layer):
            pattern.check(layer.weight.shape[1], block_size)
            if grid:
                grid.width(layer.weight.shape[1])


def check_not_shared(layers: Sequence[PrunableLayer], every: Sequence[PrunableLayer]) -> None:
    """Raises RoseError where several layers share weights, which would be pruned twice or unseen."""
    owners: dict[Any, str] = {}
    chosen = {layer.name for layer in layers}
    for layer in every:
        if layer.is_expert:
            continue
        parameter, place = layer.parameter, None  # in memory, which parameters may share; skeletons have none
        if not parameter.is_meta:
            place = parameter.untyped_storage().data_ptr(), parameter.storage_offset(), parameter.shape
        first = owners.setdefault(place or id(parameter), layer.name)
        if first != layer.name and chosen & {first, layer.name}:
            raise RoseError(
                f"{first} and {layer.name} are the same weights, which several decoder blocks share; such layers "
                "cannot be pruned one decoder block at a time, so choose others."
            )


def write_low_rank(model: nn.Module, folder: Path) -> None:
    """Writes the factors of a model or denoiser, if any; raises OSError."""
    factors = low_rank_tensors(named_layers(model))
    if factors:
        plain = {name: factor.detach().cpu().contiguous() for name, factor in factors.items()}
        save_file(plain, folder / LOW_RANK_FILE)


def keep_low_rank(model: nn.Module, folder: Path) -> None:
    """Attaches the low-rank parts in a folder to the layers of the model that was read from it."""
    if not (folder / LOW_RANK_FILE).is_file():
        return
    try:
        factors = load_file(folder / LOW_RANK_FILE)
    except (OSError, SafetensorError) as problem:
        raise RoseError(f"{folder / LOW_RANK_FILE} cannot be read ({problem}); copy the checkpoint again.") from problem
    for layer in prunable_layers(model):
        left, right = factors.get(layer.name + LEFT), factors.get(layer.name + RIGHT)
        if left is not None and right is not None and (len(left), right.shape[1]) == layer.weight.shape:
            layer.keep_low_rank((left, right))
