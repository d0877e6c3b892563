"""Attention heads between their values and the output projection, found by experiment and not by names.

A token that is alone attends to itself, so an output projection then reads, head by head, what some layer of its
decoder block has put out: the values. Where each head that it reads points in the direction of such rows, whatever the
token, their layer and place are known, in fused layers too. A norm with weights, a gate or a mixture of heads between
them changes the direction. With several tokens, which attention mixes, a random rotation of values and projection
must then leave their output and the decoder block's as they were; that also finds values that something else reads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rose.layer.basis import HeadLayout, rotate_columns
from rose.model.network.layers import PrunableLayer
from rose.model.network.stand_ins import hooked

ROTATED = "rose_rotated_heads"  # of a model whose heads were rotated: the basis, and which layers
ALIKE = 1 - 1e-3  # cosine of what is the same but for rounding in 16 bits
ROUNDING = 8.0  # units in the last place that a rotation may change an output by, relative to its norm
LEAST_ROUNDING = 1e-4
# How the names of attention's output projections end in the families we know.
ATTENTION_OUTPUTS = (".o_proj", "attn.out_proj", "attention.out_proj", "attn.c_proj", "attn.dense", "attention.dense")

Run = Callable[[nn.Module], Tensor]


def head_width(config: Any) -> int | None:
    """Columns of a head in the output projection by the language model's configuration; None where it cannot say."""
    try:
        of_values = getattr(config, "v_head_dim", None) or getattr(config, "head_dim", None)
        return of_values or config.hidden_size // config.num_attention_heads
    except (RuntimeError, AttributeError):  # of transformers, where decoder blocks have different ones
        return None


def rotated_heads(model: nn.Module) -> dict[str, Any] | None:
    """The "basis" and the output projections, "layers", of a model whose heads were rotated; None of others."""
    return getattr(model, ROTATED, None)


@dataclass(frozen=True)
class ValueHeads:
    """The heads that an output projection reads, and the rows that make them.

    Attributes:
        output: the output projection; head h is its columns from h · width on.
        values: the layer that puts out the values.
        width: of a head.
        rows: first of the rows of `values` that make each head; heads of a group have the same.
    """

    output: PrunableLayer
    values: PrunableLayer
    width: int
    rows: tuple[int, ...]

    @property
    def layout(self) -> HeadLayout:
        starts = sorted(set(self.rows))
        return HeadLayout(self.width, tuple(starts.index(row) for row in self.rows))

    def rotate(self, rotations: Tensor) -> None:
        """Rotates values, their biases and output projection in place, by (groups, width, width) float64."""
        self.output.write(rotate_columns(self.output.weight, self.layout, rotations))
        weight, bias = self.rotated_values(rotations)
        self.values.write(weight)
        if bias is not None:
            stored: Any = self.values.module.bias
            stored.detach().copy_(bias)

    def rotate_in(self, twin: nn.Module, rotations: Tensor) -> None:
        """Rotates the same in a twin of the decoder block, which gets parameters of its own for that."""
        output, values = (
            replace(layer, module=twin.get_submodule(layer.projection)) for layer in (self.output, self.values)
        )
        for layer in (output, values):
            for leaf, parameter in list(layer.module.named_parameters(recurse=False)):
                setattr(layer.module, leaf, nn.Parameter(parameter.detach().clone(), requires_grad=False))
        replace(self, output=output, values=values).rotate(rotations)

    def rotated_values(self, rotations: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight, (out, in) float64, and bias, where there is one, of the layer of values, rotated."""
        stored = self.values.bias
        weight = self.values.weight.to(torch.double, copy=True)
        bias = None if stored is None else stored.detach().to(torch.double, copy=True)
        for start, rotation in zip(sorted(set(self.rows)), rotations.to(weight.device), strict=True):
            rows = slice(start, start + self.width)
            weight[rows] = rotation.mT @ weight[rows]
            if bias is not None:
                bias[rows] = rotation.mT @ bias[rows]
        return weight, bias


def twin_of(block: nn.Module) -> nn.Module:
    """A copy that shares parameters and buffers, and so costs no memory; hooks are its own, so that other threads do
    not see them."""
    return copy.deepcopy(block, {id(one): one for one in (*block.parameters(), *block.buffers())})


def find_value_heads(
    block: nn.Module, layers: Sequence[PrunableLayer], width: int, run_alone: Run, run_along: Run
) -> list[ValueHeads]:
    """The heads of one decoder block that can be rotated; the block is not changed.

    Args:
        block: present, in evaluation mode.
        layers: all linear layers of the block.
        width: of a head.
        run_alone: calls a block on several samples of one token each.
        run_along: calls it on several tokens that attend to each other.
    """
    layers = [layer for layer in layers if not layer.is_expert]
    twin = twin_of(block)
    read, made = _watch(twin, layers, run_alone)
    mixed, unmixed = _watch(twin, layers, run_along)
    found = []
    for output in layers:
        for values in layers:
            if output is values or output.projection not in read or values.projection not in made:
                continue
            rows = _rows(read[output.projection], made[values.projection], width)
            # Without attention between them they would be a product of two matrices, such as those of latent queries.
            if rows is not None and _rows(mixed[output.projection], unmixed[values.projection], width) is None:
                found.append(ValueHeads(output, values, width, rows))
    return [heads for heads in found if _is_free(twin, heads, layers, run_along, unmixed)]


def _watch(block: nn.Module, layers: Sequence[PrunableLayer], run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What each layer reads and puts out, (tokens, channels) float32 by projection; as "" the block's own output."""
    read: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}

    def seen(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple, output: Any) -> None:
            if args and isinstance(output, Tensor):
                read[name], made[name] = args[0].flatten(0, -2).float(), output.flatten(0, -2).float()

        return hook

    hooks = [block.get_submodule(one.projection).register_forward_hook(seen(one.projection)) for one in layers]
    with hooked(hooks), torch.no_grad():
        made[""] = run(block).float()
    return read, made


def _rows(read: Tensor, made: Tensor, width: int) -> tuple[int, ...] | None:
    """First rows of `made`, (tokens, rows), that point in the direction of each head of `read`, (tokens, columns)."""
    if read.shape[1] % width or made.shape[1] < width or len(read) != len(made):
        return None
    heads, windows = read.view(len(read), -1, width), made.unfold(1, width, 1)
    for some in (1, len(read)):  # one token and head show for most layers that it is not them
        of_some = normalize(heads[:some, : None if some > 1 else 1], dim=-1)
        alike = torch.einsum("thd,trd->thr", of_some, normalize(windows[:some], dim=-1)).abs().amin(0)
        best, starts = alike.max(1)
        if not bool((best > ALIKE).all()):
            return None
    rows = starts.tolist()
    own = sorted(set(rows))
    return tuple(rows) if all(after - before >= width for before, after in pairwise(own)) else None


@torch.no_grad()
def _is_free(
    twin: nn.Module, heads: ValueHeads, layers: Sequence[PrunableLayer], run: Run, before: dict[str, Tensor]
) -> bool:
    """Whether a random rotation leaves what the output projection and the block put out, but for rounding; `before`:
    what layers put out without it."""
    modules = [twin.get_submodule(layer.projection) for layer in (heads.output, heads.values)]
    shared = [dict(module._parameters) for module in modules]
    drawn = torch.randn(
        heads.layout.groups, heads.width, heads.width, generator=torch.Generator().manual_seed(0), dtype=torch.double
    )
    heads.rotate_in(twin, torch.linalg.qr(drawn).Q)
    _, after = _watch(twin, layers, run)
    for module, parameters in zip(modules, shared, strict=True):
        module._parameters.update(parameters)
    allowed = max(LEAST_ROUNDING, ROUNDING * torch.finfo(heads.output.weight.dtype).eps)
    return all(bool((after[x] - before[x]).norm() <= allowed * before[x].norm()) for x in (heads.output.projection, ""))
