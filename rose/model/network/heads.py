"""Attention heads between values and output projection, found by experiment.

A single token attends only to itself, so each head of its output projection reads rows of some layer's output: the
values. If a head points in the direction of certain rows for every token, these rows are its values, in fused layers
too. A norm with weights, a gate or a mixture of heads changes the direction. A random rotation of values and projection
must then leave the outputs of several tokens unchanged, which also detects other readers of the values.
"""

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

ALIKE = 1 - 1e-3  # cosine of equal vectors after rounding to 16 bits
ROUNDING = 8.0  # units in the last place that a rotation may change an output by, relative to its norm
LEAST_ROUNDING = 1e-4
Run = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class ValueHeads:
    """The heads that an output projection reads, and the rows that make them.

    Head h has the columns of `output` from h · width on. `rows` has the first row of `values` of each head; heads of a
    group share rows.
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
        """Rotates a twin of the decoder block, and gives it its own parameters first."""
        output, values = (
            replace(layer, module=twin.get_submodule(layer.projection)) for layer in (self.output, self.values)
        )
        for layer in (output, values):
            for leaf, parameter in list(layer.module.named_parameters(recurse=False)):
                setattr(layer.module, leaf, nn.Parameter(parameter.detach().clone(), requires_grad=False))
        replace(self, output=output, values=values).rotate(rotations)

    def rotated_values(self, rotations: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rotated weight, (out, in) float64, and bias, if any, of the layer of values."""
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
    """A copy that shares parameters and buffers but has its own hooks, which other threads do not see."""
    return copy.deepcopy(block, {id(tensor): tensor for tensor in (*block.parameters(), *block.buffers())})


def find_value_heads(
    block: nn.Module, layers: Sequence[PrunableLayer], width: int, run_alone: Run, run_along: Run
) -> list[ValueHeads]:
    """The heads of one decoder block that can be rotated; the block, present and in evaluation mode, is not changed.

    `layers`: all linear layers of the block; `width`: of a head. `run_alone` runs a block on several samples of one
    token, `run_along` on several tokens that attend to each other.
    """
    layers = [layer for layer in layers if not layer.is_expert]
    twin = twin_of(block)
    read, outputs = _watch(twin, layers, run_alone)
    mixed, unmixed = _watch(twin, layers, run_along)
    candidates = []
    for output in layers:
        for values in layers:
            if output is values or output.projection not in read or values.projection not in outputs:
                continue
            rows = _rows(read[output.projection], outputs[values.projection], width)
            # Without attention between them the two layers are one matrix product, as for latent queries.
            if rows is not None and _rows(mixed[output.projection], unmixed[values.projection], width) is None:
                candidates.append(ValueHeads(output, values, width, rows))
    return [heads for heads in candidates if _is_free(twin, heads, layers, run_along, unmixed)]


def _watch(block: nn.Module, layers: Sequence[PrunableLayer], run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and outputs of each layer, (tokens, channels) float32 by projection; "" is the block's own output."""
    read: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def seen(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple, output: Any) -> None:
            if args and isinstance(output, Tensor):
                read[name], outputs[name] = args[0].flatten(0, -2).float(), output.flatten(0, -2).float()

        return hook

    hooks = [block.get_submodule(layer.projection).register_forward_hook(seen(layer.projection)) for layer in layers]
    with hooked(hooks), torch.no_grad():
        outputs[""] = run(block).float()
    return read, outputs


def _rows(read: Tensor, outputs: Tensor, width: int) -> tuple[int, ...] | None:
    """First rows of `made`, (tokens, rows), that point in the direction of each head of `read`, (tokens, columns)."""
    if read.shape[1] % width or outputs.shape[1] < width or len(read) != len(outputs):
        return None
    heads, windows = read.view(len(read), -1, width), outputs.unfold(1, width, 1)
    for some in (1, len(read)):  # one token and one head rule out most layers
        of_some = normalize(heads[:some, : None if some > 1 else 1], dim=-1)
        alike = torch.einsum("thd,trd->thr", of_some, normalize(windows[:some], dim=-1)).abs().amin(0)
        best, starts = alike.max(1)
        if not bool((best > ALIKE).all()):
            return None
    rows = starts.tolist()
    distinct = sorted(set(rows))
    return tuple(rows) if all(after - before >= width for before, after in pairwise(distinct)) else None


@torch.no_grad()
def _is_free(
    twin: nn.Module, heads: ValueHeads, layers: Sequence[PrunableLayer], run: Run, before: dict[str, Tensor]
) -> bool:
    """Whether a random rotation leaves outputs of projection and block unchanged within rounding; `before`: outputs
    without it."""
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
