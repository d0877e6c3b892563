"""Columns as a matter of basis: rotations of the heads that an output projection reads.

Each head may be rotated between values and output projection, W_v' = Rᵀ W_v and W_o' = W_o R, without changing the
model. Columns of W_o and H' = Rᵀ H R change: a basis decides how much importance few columns hold. Heads that share
values share R. (DenoiseRotator, arXiv 2505.23049, learns rotations; SliceGPT, arXiv 2401.15024, takes eigenvectors.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rose.errors import RoseError
from rose.interrupt import stop_point
from rose.layer.loss import block_widths, potential_loss
from rose.layer.pattern import BLOCK_SIZE, Pattern
from rose.layer.registry import check_name_or_seed
from rose.layer.statistics import InputStatistics, is_finite

# Of the learned basis. 200 steps or a rate of 0.05 change it by 0.015 (docs/lab-notes/orders.md); 30 lose 0.03.
STEPS, RATE = 60, 0.02


@dataclass(frozen=True)
class HeadLayout:
    """Heads side by side in the columns of an output projection."""

    width: int  # columns of a head; head h begins at h · width
    group: tuple[int, ...]  # the rotation of each head; heads that share values share it

    @property
    def groups(self) -> int:
        return max(self.group) + 1


@dataclass(frozen=True)
class Heads:
    """An output projection and its inputs by heads."""

    weight: Tensor  # W, (out, heads, width) float64
    hessian: Tensor  # H within each head, (heads, width, width) float64
    layout: HeadLayout
    # pattern, block_size: of the pruning to come
    pattern: Pattern
    block_size: int

    def sums(self, of_heads: Tensor) -> Tensor:
        """Sums a tensor, (heads, ...), over the heads of each group: (groups, ...)."""
        total = of_heads.new_zeros(self.layout.groups, *of_heads.shape[1:])
        return total.index_add_(0, torch.tensor(self.layout.group, device=of_heads.device), of_heads)


def find_rotations(
    weight: Tensor,
    hessian: Tensor,
    layout: HeadLayout,
    basis: str = "learned",
    *,
    pattern: Pattern,
    block_size: int = BLOCK_SIZE,
) -> Tensor:
    """The rotations of one output projection W, (out, in), with H, (in, in): (groups, width, width) float64,
    orthogonal. `basis` is a name of `BASES` or "random:SEED"; pattern and block size are of the pruning to come.
    Raises RoseError for an unknown basis, NaN or infinity."""
    check_name_or_seed("basis", basis, BASES)
    if not is_finite(weight) or not is_finite(hessian):
        raise RoseError("W or H holds NaN or infinity; reload the checkpoint, or load it in float32.")
    kind, _, seed = basis.partition(":")
    count, width = len(layout.group), layout.width
    blocks = hessian.view(count, width, count, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1).double()
    heads = Heads(weight.view(len(weight), count, width).double(), blocks, layout, pattern, block_size)
    rotations = random_basis(heads, int(seed or 0)) if kind == "random" else BASES[kind](heads)
    rotations[..., -1] *= torch.linalg.det(rotations).sign()[:, None]  # a proper rotation, of determinant 1
    return rotations


def gathered(heads: Heads) -> Tensor:
    """Eigenvectors of Σ_h H_hh + (tr H_hh / ‖W_h‖²) W_hᵀW_h over the heads of a group, so that inputs and weights count
    alike; the largest first."""
    gram = torch.einsum("ohd,ohe->hde", heads.weight, heads.weight)
    size = gram.diagonal(dim1=1, dim2=2).sum(1)
    energy = heads.hessian.diagonal(dim1=1, dim2=2).sum(1)
    balance = torch.where(size > 0, energy / size, 0)[:, None, None]
    return torch.linalg.eigh(heads.sums(heads.hessian + balance * gram)).eigenvectors.flip(-1)


def random_basis(heads: Heads, seed: int = 0) -> Tensor:
    """Rotations drawn at random, uniformly."""
    width = heads.layout.width
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.linalg.qr(
        torch.randn(heads.layout.groups, width, width, generator=generator, dtype=torch.double)
    )
    return (first * second.diagonal(dim1=1, dim2=2).sign()[:, None]).to(heads.weight.device)


@torch.inference_mode(False)  # gradients are needed, also in a caller's inference mode
def learned(heads: Heads) -> Tensor:
    """Steps of Adam from the gathered basis towards less potential loss of S², S = |W'|·sqrt(H'_jj), which adds up
    to the layer's error where inputs are uncorrelated."""
    start = gathered(heads)
    group = torch.tensor(heads.layout.group, device=start.device)
    widths = block_widths(heads.weight[0].numel(), heads.block_size)
    weight, hessian = heads.weight.float(), heads.hessian.float()  # only rotations need float64
    turn = torch.zeros_like(start).requires_grad_()
    optimizer = torch.optim.Adam([turn], RATE)
    best, least = start, float("inf")
    with torch.enable_grad():
        for _ in range(STEPS):
            stop_point()
            rotation = start @ torch.matrix_exp(turn - turn.mT)
            of_head = rotation.float()[group]
            energy = ((hessian @ of_head) * of_head).sum(1)  # H'_jj
            score = torch.einsum("ohd,hde->ohe", weight, of_head).square() * energy
            lost = potential_loss(score.flatten(1), heads.pattern, widths).sum()
            if float(lost.detach()) < least:
                best, least = rotation.detach(), float(lost.detach())
            optimizer.zero_grad()
            (lost / least).backward()
            optimizer.step()
    return best


BASES: dict[str, Callable[[Heads], Tensor]] = {"gathered": gathered, "learned": learned, "random": random_basis}


def rotate_columns(matrix: Tensor, layout: HeadLayout, rotations: Tensor) -> Tensor:
    """M R for M, (rows, in), with R of every head in its place; float64."""
    of_head = rotations[torch.tensor(layout.group, device=rotations.device)].to(matrix.device)
    heads = matrix.view(len(matrix), -1, layout.width).double()
    return torch.einsum("ohd,hde->ohe", heads, of_head).flatten(1)


def rotate_statistics(statistics: InputStatistics, layout: HeadLayout, rotations: Tensor) -> InputStatistics:
    """Statistics of the rotated output projection's inputs: Rᵀ H R, and Rᵀ times the mean, if any."""
    half = rotate_columns(statistics.hessian, layout, rotations)
    hessian = rotate_columns(half.mT.contiguous(), layout, rotations)
    hessian = (hessian + hessian.mT) / 2
    hessian.diagonal().clamp_min_(0)  # rounding may leave less than 0 for a direction that no input has
    rotated = InputStatistics.from_hessian(hessian.float(), statistics.tokens)
    rotated.total_weight = statistics.total_weight
    rotated.set_mean(rotate_columns(statistics.mean[None], layout, rotations)[0].float())
    return rotated
