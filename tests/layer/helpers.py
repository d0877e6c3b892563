"""Random layers, and a slow and obvious sweep to compare with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import rose
from rose.layer.pattern import Grid
from rose.layer.registry import order_names
from rose.layer.rounding import inverse_of, per_column, round_each

SWEEPERS = ["rose", "rose_global", "sparsegpt"]  # one sweep and nothing after it, masks by w²/U_jj²
ORDERS = [*order_names(), "random:3"]


def every_method(**exceptions: str) -> pytest.MarkDecorator:
    """Parametrizes over the whole registry, but for the methods named here, each with the reason why."""
    assert set(exceptions) <= set(rose.METHODS)
    return pytest.mark.parametrize("method", [method for method in rose.METHODS if method not in exceptions])


def statistics_of(inputs: Tensor, weight: float = 1.0) -> rose.InputStatistics:
    """Of inputs (tokens, in)."""
    statistics = rose.InputStatistics(inputs.shape[1])
    statistics.update(inputs, weight)
    return statistics


def round_to(weight: Tensor, scales: Tensor, grid: Grid) -> Tensor:
    """Every weight, (out, in), at the nearest multiple of its scale, (out, groups)."""
    every = per_column(scales, weight.shape[1])
    return round_each(weight, every, inverse_of(every), grid)


@dataclass(frozen=True)
class Layer:
    """W (out, in), calibration inputs X (tokens, in) and what the engine knows of them."""

    weight: Tensor
    inputs: Tensor

    @property
    def statistics(self) -> rose.InputStatistics:
        return statistics_of(self.inputs)

    @property
    def hessian(self) -> Tensor:
        return self.inputs.T @ self.inputs

    def prune(self, **options: Any) -> rose.LayerResult:
        return rose.prune_layer(self.weight, self.statistics, **{"method": "rose", "block_size": 8, **options})


def make_layer(
    rows: int = 6, columns: int = 32, tokens: int = 96, seed: int = 0, dead: Sequence[int] = (), loud: int = 0
) -> Layer:
    """Correlated inputs whose channels differ in size; `dead` ones are always zero. As many neighbouring columns at the
    end as `loud` says are much more important, which makes a layer columnar."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, columns, generator=generator) @ (
        torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=generator) / columns**0.5
    )
    inputs = mixed * torch.rand(columns, generator=generator).add(0.2)
    if loud:
        inputs[:, -loud:] *= 12
    inputs[:, list(dead)] = 0
    return Layer(torch.randn(rows, columns, generator=generator), inputs)


@st.composite
def layers(draw: st.DrawFn, unit: int = 1, max_dead: int = 4) -> Layer:
    """Layers of every small shape: one row, one column, fewer tokens than columns, dead columns."""
    columns = unit * draw(st.integers(1, 36 // unit))
    dead = draw(st.lists(st.integers(0, columns - 1), max_size=max_dead, unique=True))
    return make_layer(
        rows=draw(st.integers(1, 9)),
        columns=columns,
        tokens=draw(st.integers(1, 80)),
        seed=draw(st.integers(0, 2**20)),
        dead=dead,
        loud=draw(st.sampled_from([0, min(columns, 5)])),
    )


ratios = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
block_sizes = st.integers(1, 40)


@dataclass
class Reference:
    """What `reference_sweep` found, all float64 and in original column order."""

    weight: Tensor
    mask: Tensor
    column_error: Tensor


def damped_by_hand(layer: Layer, added: float) -> Tensor:
    """H + λI in float64, with 1 on the diagonal of dead columns."""
    x = layer.inputs.double()
    hessian = x.T @ x
    hessian.diagonal()[hessian.diagonal() == 0] = 1
    return hessian + added * torch.eye(len(hessian), dtype=torch.float64)


def reference_sweep(
    layer: Layer,
    result: rose.LayerResult,
    counts: Sequence[int] | None = None,
    keep_of: tuple[int, int] | None = None,
    force: bool = False,
) -> Reference:
    """Optimal Brain Surgeon, one column after another, each with an explicit inverse of what is left of H.

    Removing w_j costs w_j²/[H⁻¹]_jj and is repaired by w −= w_j/[H⁻¹]_jj · [H⁻¹]_j: (Hassibi and Stork 1992),
    with H⁻¹ over the columns not yet visited.

    Args:
        result: only its order and damping are read.
        counts: weights to remove per block, or None with `keep_of`.
        keep_of: (N, M), chosen per row and group just before its first column.
        force: use the mask of the result instead of choosing one; checks that the sweep would have chosen it.
    """
    permutation = result.order.permutation
    weight = layer.weight.double().clone()
    weight[:, (layer.inputs == 0).all(0)] = 0
    weight = weight[:, permutation]
    hessian = damped_by_hand(layer, result.added_damping)[permutation][:, permutation]
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(len(hessian))]
    cost = torch.stack([inverse[0, 0] for inverse in inverses])
    mask = result.mask[:, permutation].clone() if force else torch.zeros_like(weight, dtype=torch.bool)
    errors = torch.zeros(len(hessian), dtype=torch.float64)
    start = 0
    for number, width in enumerate(result.order.widths):
        end = start + width
        if keep_of is None:
            _choose(weight, cost, mask, slice(start, end), counts[number] if counts else 0, force)
        for j in range(start, end):
            if keep_of is not None and (j - start) % keep_of[1] == 0:
                keep, of = keep_of
                for row in range(len(weight)):
                    here = slice(row, row + 1)
                    _choose(weight[here], cost, mask[here], slice(j, j + of), of - keep, force)
            scaled = torch.where(mask[:, j], weight[:, j], 0) / cost[j]
            errors[j] = (scaled.square() * cost[j]).sum()
            weight[:, j:] -= torch.outer(scaled, inverses[j][0])
            weight[mask[:, j], j] = 0
        start = end
    back = permutation.argsort()
    return Reference(weight[:, back], mask[:, back], errors[back])


def _choose(weight: Tensor, cost: Tensor, mask: Tensor, columns: slice, count: int, forced: bool) -> None:
    """Marks the `count` weights that are cheapest to remove, or checks that the marked ones are these."""
    saliency = weight[:, columns].square() / cost[columns]
    part = mask[:, columns]
    if forced:
        assert int(part.sum()) == count
        if 0 < count < part.numel():  # float32 may swap two that cost the same
            assert saliency[part].max() <= saliency[~part].min() * (1 + 1e-3) + 1e-9
        return
    flat = torch.zeros(saliency.numel(), dtype=torch.bool)
    flat[saliency.flatten().argsort(stable=True)[:count]] = True
    mask[:, columns] = flat.view(saliency.shape)
