"""Targets: the dense model's output that a layer should reproduce, and the weight that does.

One-shot programs make a layer keep its own output on the pruned inputs X_p, so the errors of the layers below remain.
The corrected target T is the dense model's output X_d Wᵀ. A layer that writes into the residual stream has X_d Wᵀ + R,
and so repairs the earlier loss R of the stream. (Quantization: GPTAQ, arXiv 2504.02692; Qronos, arXiv 2505.11695.)

Let G = T − X_p Wᵀ be the gap, tokens as rows, and H = X_pᵀX_p. Then W* = W + Gᵀ X_p (H + λI)⁻¹ solves min ‖T − X_p Ŵᵀ‖²
without a mask. For λ = 0, ‖T − X_p Ŵᵀ‖² = constant + tr((W* − Ŵ) H (W* − Ŵ)ᵀ). So any method prunes W* in place of W.

The correction fits noise if tokens are few, and later corrections read this noise. So λ is larger than in a sweep.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rose.layer.error import difference, quadratic_form, ratio
from rose.layer.hessian import damp
from rose.layer.statistics import InputStatistics, add_product

# λ = μ · mean of diag(H), with μ = LEAST + z + CUBIC · z³ for z = LINEAR · channels · blocks / tokens.
LEAST, LINEAR, CUBIC = 0.03, 0.273, 0.1


def correction_damping(channels: int, tokens: int, blocks: int = 1, requested: float | None = None) -> float:
    """μ of the correction, relative to the mean of diag(H): as requested, else fitted to perplexities of the packaged
    model (docs/targets.md). The best μ falls as 1/tokens, and grows with `blocks`, the decoder blocks corrected one
    after another, because each correction reads the noise of earlier ones. `channels` are the residual stream's."""
    noise = LINEAR * channels * blocks / tokens
    return LEAST + noise + CUBIC * noise**3 if requested is None else requested


@dataclass(frozen=True)
class Gap:
    """The gap G between a layer's target and the output of its dense weight W on the pruned inputs."""

    cross: Tensor  # GᵀX_p, (out, in) float32
    square: float  # ‖G‖²
    total: Tensor  # the sum of G over tokens, (out,)


def input_difference(dense: Tensor, pruned: Tensor, dtype: torch.dtype) -> Tensor:
    """D = X_d − X_p, (..., in), of the same tokens, rounded once to a format."""
    wide = torch.promote_types(pruned.dtype, dtype)
    return (dense.to(pruned.device, wide) - pruned.to(wide)).to(dtype)


class InputGap:
    """The difference of a layer's inputs in the dense and the pruned model, D = X_d − X_p, streamed. Layers that read
    the same tensor share one object, because G = D Wᵀ. Products are in `dtype`, see `add_product`."""

    def __init__(self, columns: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.cross = torch.zeros(columns, columns, dtype=torch.float32, device=device)  # DᵀX_p
        self.difference = InputStatistics(columns, device, dtype)
        self._correction: tuple[float, Tensor, float] | None = None  # the last damping asked for, and what came of it

    def update(self, pruned: Tensor, dense: Tensor) -> None:
        """Adds X_p and X_d, (..., in) each, of the same tokens."""
        x = pruned.detach().reshape(-1, self.difference.columns).to(self.cross.device)
        change = input_difference(dense.detach().reshape(x.shape), x, self.dtype)
        self.difference.update(change)
        add_product(self.cross, change, x.to(self.dtype))
        self._correction = None

    def sum_over(self, add: Callable[[Tensor], Any]) -> None:
        """Lets `add` replace every accumulator by its sum over processes, in place."""
        add(self.cross)
        self.difference.sum_over(add)
        self._correction = None

    def of(self, weight: Tensor) -> Gap:
        """The gap of a layer W, (out, in)."""
        weight = weight.float()
        total = weight @ (self.difference.mean * self.difference.tokens)
        return Gap(self._product(weight, self.cross), quadratic_form(weight, self.difference.hessian), total)

    def correction(self, weight: Tensor, hessian: Tensor, damping: float) -> tuple[Tensor, float]:
        """GᵀX_p (H + λI)⁻¹, (out, in), and the damping used. The part that layers share is computed once."""
        if self._correction is None or self._correction[0] != damping:
            self._correction = damping, *_times_inverse(self.cross, hessian, damping)
        _, product, used = self._correction
        return self._product(weight, product), used

    def _product(self, weight: Tensor, square: Tensor) -> Tensor:
        return (weight.to(self.dtype) @ square.to(self.dtype)).float()


class OutputGap:
    """The gap of one layer that writes into the residual stream, G = D Wᵀ + R, streamed; arguments as of `InputGap`."""

    def __init__(
        self, rows: int, columns: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.dtype = dtype
        self.cross = torch.zeros(rows, columns, dtype=torch.float32, device=device)
        self.square = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros(rows, dtype=torch.float32, device=device)

    def update(self, pruned: Tensor, gap: Tensor) -> None:
        """Adds X_p, (..., in), and G, (..., out), of the same tokens."""
        x = pruned.detach().reshape(-1, self.cross.shape[1]).to(self.cross.device, self.dtype)
        g = gap.detach().reshape(-1, self.cross.shape[0]).to(self.cross)
        add_product(self.cross, g.to(self.dtype), x)
        self.square += g.square().sum(dtype=torch.float64)
        self.total += g.sum(0)

    def sum_over(self, add: Callable[[Tensor], Any]) -> None:
        """Lets `add` replace every accumulator by its sum over processes, in place."""
        add(self.cross)
        add(self.square)
        add(self.total)

    def of(self, _weight: Tensor) -> Gap:
        """The gap; it was measured with the layer's own dense weight."""
        return Gap(self.cross, float(self.square), self.total)

    def correction(self, _weight: Tensor, hessian: Tensor, damping: float) -> tuple[Tensor, float]:
        """GᵀX_p (H + λI)⁻¹, (out, in), and the damping used."""
        return _times_inverse(self.cross, hessian, damping)


def _times_inverse(cross: Tensor, hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """C (H + λI)⁻¹ for C (rows, in), and the damping used. Dead columns of H come out as 0, as they are 0 in C."""
    damped = damp(hessian, damping)
    lower = damped.lower  # the factor of H with its columns reversed
    # Two solves from the right take two thirds of the time of `torch.cholesky_solve`, which needs Cᵀ.
    half = torch.linalg.solve_triangular(lower.T, cross.flip(1), upper=True, left=False)
    return torch.linalg.solve_triangular(lower, half, upper=False, left=False).flip(1), damped.damping


def corrected_weight(
    weight: Tensor, statistics: InputStatistics, gap: InputGap | OutputGap, damping: float
) -> tuple[Tensor, float]:
    """W*, (out, in) float32, whose outputs on the pruned inputs are nearest to the target, and the μ used, which is
    raised where H cannot be factorized. `gap` is of the same tokens as `statistics`. Raises RoseError as
    `rose.layer.hessian.damp`."""
    correction, used = gap.correction(weight, statistics.hessian, damping)
    return weight.float() + correction, used


def target_error(weight: Tensor, pruned: Tensor, gap: Gap, *, change_energy: float, dense_energy: float) -> float:
    """‖T − X_p Ŵᵀ‖² / ‖T‖² for W, Ŵ (out, in), from tr((W − Ŵ) H (W − Ŵ)ᵀ) and tr(W H Wᵀ), H of the pruned inputs; 0
    where target and output are 0."""
    both = (difference(weight, pruned), weight.float())
    missed, whole = (gap.square + 2 * float((gap.cross * part).sum(dtype=torch.float64)) for part in both)
    return ratio(missed + change_energy, whole + dense_energy)


def target_error_with_bias(
    weight: Tensor, pruned: Tensor, bias: Tensor | None, gap: Gap, statistics: InputStatistics
) -> float:
    """‖T − X_p Ŵᵀ − 1bᵀ‖² / ‖T‖² of a layer that has gained a bias b, (out,), or None; others as of `target_error`."""
    change, hessian = difference(weight, pruned), statistics.hessian
    energy = quadratic_form(change, hessian)
    if bias is not None:
        missed = gap.total + change @ (statistics.mean * statistics.tokens)  # the sum of T − X_p Ŵᵀ over tokens
        energy += float((bias * (statistics.tokens * bias - 2 * missed)).sum(dtype=torch.float64))
    return target_error(weight, pruned, gap, change_energy=energy, dense_energy=quadratic_form(weight, hessian))
