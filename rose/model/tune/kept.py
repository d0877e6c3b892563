"""What tuning may change of a pruned model, and what stays to the bit: its zeros."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.facts import FoundGrid, apparent_grid
from rose.layer.grid import coarsest_grid
from rose.model.defaults import PRUNED
from rose.model.network.layers import GRIDS_TRIED, count_parameters
from rose.model.network.network import Network

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # of mallopt(3)


@dataclass(frozen=True)
class Trained:
    """A parameter to train: of one layer, or of all experts of a decoder block.

    Attributes:
        name: of the first layer that it belongs to.
        parameter: as the model stores it, which may be W transposed.
        frozen: of its shape, True = stays as it is: weights that were removed, those of a sparse part beside a low-rank
            one too.
    """

    name: str
    parameter: nn.Parameter
    frozen: Tensor


def find_trained(network: Network, layers: Sequence[str] | None) -> list[Trained]:
    """The parameters of these prunable layers, each once, with what was removed of them; see `Network.select`."""
    found: dict[int, Trained] = {}
    for layer in network.select(layers):
        parameter = layer.parameter
        if id(parameter) not in found:
            found[id(parameter)] = Trained(layer.name, parameter, parameter.detach() == 0)
    for layer in network.layers:  # all of them, as those of experts that were not chosen are trained with the others
        if layer.low_rank is not None and id(layer.parameter) in found:
            layer.part_of(found[id(layer.parameter)].frozen).copy_(_beside(layer.weight, *layer.low_rank))
    return list(found.values())


def _beside(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Where the sparse part of W = sparse + left @ right is zero, all of them (out, in) or factors of it."""
    limits, size = torch.finfo(weight.dtype), weight.float().abs()
    gap = (weight.float() - (left.float() @ right.float()).to(weight.device)).abs()
    # The first of each entry's own rounding, below the smallest normal number too; the second of the product's sums.
    return gap <= limits.eps * size.clamp_min(limits.smallest_normal) + 4 * torch.finfo(torch.float32).eps * size.max()


def check_pruned(trained: Sequence[Trained], network: Network, dense: Network, unpruned: bool) -> None:
    """Raises RoseError for weights on a grid where the dense model's are on none, and, unless `unpruned`, for a model
    that nothing was taken from."""
    names, before = {one.name for one in trained}, {layer.name: layer for layer in dense.layers}
    for layer in [layer for layer in network.layers if layer.name in names and not layer.is_expert][:GRIDS_TRIED]:
        was = before.get(layer.name)
        if grid := _grid_to_leave(layer.weight.float(), was.weight.float() if was else None):
            raise RoseError(
                f"The weights of {layer.name} lie on a grid of {grid.levels} values, which tuning would leave; tune "
                "the model first and round it then (prune with sparsity 0 and bits 4), which keeps its zeros."
            )
    if unpruned or count_parameters(network.model) < count_parameters(dense.model):
        return
    if not any(float(one.frozen.float().mean()) >= PRUNED for one in trained):
        raise RoseError(
            "The model has neither zeros nor fewer weights than the dense one, so there is nothing to recover; give a "
            "pruned one, or choose unpruned."
        )


def _grid_to_leave(weight: Tensor, dense: Tensor | None) -> FoundGrid | None:
    """The grid that weights lie on, (out, in), if the dense ones lie on none, or on one that is not `--bits`' or finer:
    those of a GGUF file lie on a grid themselves, and pruned weights that nothing has compensated still do."""
    grid = apparent_grid(weight)
    if grid is None or dense is None or apparent_grid(dense) is None:
        return grid
    own, was = coarsest_grid(weight), coarsest_grid(dense)
    return grid if own and (was is None or own.grid.bits < was.grid.bits) else None


def frozen_matrices(network: Network, trained: Sequence[Trained]) -> list[nn.Parameter]:
    """Weights of the prunable layers that are not trained."""
    own = {id(one.parameter) for one in trained}
    return [layer.parameter for layer in network.layers if id(layer.parameter) not in own]


@contextmanager
def in_float32(model: nn.Module, but: Sequence[nn.Parameter]) -> Iterator[None]:
    """While this lasts, all parameters but these are float32, as small steps are lost in bfloat16; rounded back at the
    end. Those of float64 are float32 too, as autocast rounds none of them; they are what they were at the end."""
    left = {id(one) for one in but if one.dtype != torch.float64}
    stored = {one: one.dtype for one in model.parameters() if one.is_floating_point() and id(one) not in left}
    kept = {one: one.data for one in stored if one.dtype == torch.float64}
    for parameter in stored:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in stored.items():
            parameter.data = kept.get(parameter, parameter.data).to(dtype)


def rounded(network: Network) -> nn.Module:
    """A copy for forward passes whose matrices are bfloat16; it shares all else with the model, but for float16 and
    float64."""
    shared: dict[int, Any] = {id(one): _mixing(one) for one in network.model.parameters()}
    for layer in network.layers:
        shared[id(layer.parameter)] = nn.Parameter(layer.parameter.detach().bfloat16(), requires_grad=False)
    return copy.deepcopy(network.model, shared)


def _mixing(parameter: nn.Parameter) -> nn.Parameter:
    # Some operations refuse these beside bfloat16, such as layer norms on processors.
    if parameter.dtype not in (torch.float16, torch.float64):
        return parameter
    return nn.Parameter(parameter.detach().float(), requires_grad=False)


@contextmanager
def reusing_memory() -> Iterator[None]:
    """While this lasts, glibc hands freed memory out again and gives none back to the system, which would have to make
    every large tensor's pages anew; no effect with other C libraries."""
    try:
        library = ctypes.CDLL(None)
        tell, give_back = library.mallopt, library.malloc_trim
    except (OSError, AttributeError, TypeError):
        yield
        return
    tell(MMAP_MAX, 0)
    tell(TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        tell(MMAP_MAX, 2**16)
        tell(TRIM_THRESHOLD, 2**17)
        give_back(0)


def settle(one: Trained, weight: Tensor) -> None:
    """Gives a parameter this weight, float32 or as it was, with exactly its zeros also once it is rounded to the
    parameter's dtype; what is frozen stays as it is there.

    Raises:
        AssertionError: what was removed has changed, which no training step can do.
    """
    own = one.parameter.detach()
    stays = torch.equal(weight[one.frozen].float(), own[one.frozen].float())
    assert stays, f"tuning has changed removed weights of {one.name}"
    weight = weight.to(own.dtype)
    smallest = torch.full_like(weight, torch.finfo(own.dtype).smallest_normal).copysign(weight)
    own.copy_(torch.where(one.frozen, own, torch.where(weight == 0, smallest, weight)))
