"""What a layer should put out where that is the dense model's output: gaps, and the weight that closes them.

Every published one-shot program prunes a layer to keep its own output on the pruned inputs X_p, and so takes the errors
of the layers below for the truth. The corrected target T is what the *dense* model puts out there: X_d Wᵀ, where X_d is
what the layer reads in the dense model. A layer that writes into the residual stream can also make good what the stream
itself has lost before it: T = X_d Wᵀ + R. (Quantization: GPTAQ, arXiv 2504.02692; Qronos, arXiv 2505.11695.)

With the gap G = T − X_p Wᵀ, tokens as rows, and H = X_pᵀX_p,

    min ‖T − X_p Ŵᵀ‖²  is solved without a mask by  W* = W + Gᵀ X_p (H + λI)⁻¹,

and ‖T − X_p Ŵᵀ‖² = constant + tr((W* − Ŵ) H (W* − Ŵ)ᵀ) for λ = 0: any method prunes W* in place of W.

The correction is a regression on all input columns. What it fits of the noise in few tokens becomes the input of the
corrections above it, so λ is decisive, and much larger than that of the sweep; see `target_damping`.
"""

from __future__ import annotations

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


def target_damping(channels: int, tokens: int, blocks: int = 1) -> float:
    """μ of the correction, relative to the mean of diag(H).

    In one layer the noise of a least-squares fit falls as 1/tokens, and so does the best μ. In a model the noise of one
    correction is read by all corrections above it: the best μ grows with the number of decoder blocks, and with few
    tokens faster than 1/tokens. With any number of tokens some is left: what the correction puts into directions that
    the inputs hardly have costs the most once weights are removed.

    The three numbers were fitted to perplexities of the packaged model with 1 to 64 × 512 tokens, and tried on 1 to 10
    of its decoder blocks and on a wider model; see docs/targets.md. Generalized cross-validation looks at the squared
    error of one layer, damps the first layers too little and the last ones too much, and ends worse.

    Args:
        channels: of the residual stream.
        tokens: of calibration.
        blocks: decoder blocks whose layers are corrected, one after another.
    """
    noise = LINEAR * channels * blocks / tokens
    return LEAST + noise + CUBIC * noise**3


def damping_or_rule(asked: float | None, channels: int, tokens: int, blocks: int) -> float:
    """μ as it was asked for, else by `target_damping`."""
    return target_damping(channels, tokens, blocks) if asked is None else asked


@dataclass(frozen=True)
class Gap:
    """The gap G between a layer's target and what its dense weight W puts out on the pruned inputs.

    Attributes:
        cross: GᵀX_p, (out, in) float32.
        square: ‖G‖².
        total: the sum of G over tokens, (out,).
    """

    cross: Tensor
    square: float
    total: Tensor


def input_difference(dense: Tensor, pruned: Tensor, dtype: torch.dtype) -> Tensor:
    """D = X_d − X_p in a format, rounded once.

    Inputs that are no wider than it lose nothing by a difference in their own format.

    Args:
        dense, pruned: X_d and X_p, (..., in) each, of the same tokens.
    """
    wide = torch.promote_types(pruned.dtype, dtype)
    return (dense.to(pruned.device, wide) - pruned.to(wide)).to(dtype)


class InputGap:
    """How the inputs of a layer differ between the dense and the pruned model: D = X_d − X_p, streamed.

    Layers that read the same tensor share one object: G = D Wᵀ for each of them.

    Args:
        columns: of the layers.
        device: where they are.
        dtype: in which DᵀX_p and DᵀD, and W with what comes of DᵀX_p, are multiplied, see `add_product`; sums are
            float32.
    """

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
        """The gap of one of the layers, W (out, in)."""
        weight = weight.float()
        total = weight @ (self.difference.mean * self.difference.tokens)
        return Gap(self._product(weight, self.cross), quadratic_form(weight, self.difference.hessian), total)

    def correction(self, weight: Tensor, hessian: Tensor, damping: float) -> tuple[Tensor, float]:
        """GᵀX_p (H + λI)⁻¹, (out, in), and the damping used; what does not depend on the layer is computed once."""
        if self._correction is None or self._correction[0] != damping:
            self._correction = damping, *_times_inverse(self.cross, hessian, damping)
        _, product, used = self._correction
        return self._product(weight, product), used

    def _product(self, weight: Tensor, square: Tensor) -> Tensor:
        return (weight.to(self.dtype) @ square.to(self.dtype)).float()


class OutputGap:
    """The gap of one layer that writes into the residual stream: G = D Wᵀ + R, streamed.

    Args:
        rows, columns: of the layer.
        device: where it is.
        dtype: in which GᵀX_p is multiplied, see `add_product`; sums are float32.
    """

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
    lower = damped.lower  # of H with its columns reversed
    # Two solves from the right: two thirds of the time of `torch.cholesky_solve`, which wants Cᵀ.
    half = torch.linalg.solve_triangular(lower.T, cross.flip(1), upper=True, left=False)
    return torch.linalg.solve_triangular(lower, half, upper=False, left=False).flip(1), damped.damping


def corrected_weight(
    weight: Tensor, statistics: InputStatistics, gap: InputGap | OutputGap, damping: float
) -> tuple[Tensor, float]:
    """W*, the weight whose outputs on the pruned inputs are nearest to the target, and the μ that was used.

    Args:
        weight: W, (out, in), dense.
        statistics: of the pruned inputs X_p.
        gap: streamed over the same tokens.
        damping: μ relative to the mean of diag(H); see `target_damping`.

    Returns:
        W* in float32, (out, in), and μ, which is larger than asked for where H could not be factorized with that.

    Raises:
        RoseError: a negative or infinite damping, or as `rose.layer.hessian.damp`.
    """
    correction, used = gap.correction(weight, statistics.hessian, damping)
    return weight.float() + correction, used


def target_error(weight: Tensor, pruned: Tensor, gap: Gap, *, change_energy: float, dense_energy: float) -> float:
    """‖T − X_p Ŵᵀ‖² / ‖T‖², from the gap and two quadratic forms; 0 where the target and the output are 0.

    Args:
        weight: W, (out, in), the dense weight that the gap belongs to.
        pruned: Ŵ, (out, in).
        gap: of the same tokens.
        change_energy: tr((W − Ŵ) H (W − Ŵ)ᵀ), H of the pruned inputs; any error of the layer needs it.
        dense_energy: tr(W H Wᵀ).
    """
    missed = gap.square + 2 * _inner(gap.cross, difference(weight, pruned)) + change_energy
    return ratio(missed, gap.square + 2 * _inner(gap.cross, weight) + dense_energy)


def target_error_with_bias(
    weight: Tensor, pruned: Tensor, bias: Tensor | None, gap: Gap, statistics: InputStatistics
) -> float:
    """‖T − X_p Ŵᵀ − 1bᵀ‖² / ‖T‖² of a layer that has gained a bias.

    Args:
        weight, pruned, gap: as for `target_error`.
        bias: b, (out,), beside the layer's own; None where there is none.
        statistics: of the pruned inputs X_p.
    """
    change, hessian = difference(weight, pruned), statistics.hessian
    energy = quadratic_form(change, hessian)
    if bias is not None:
        missed = gap.total + change @ (statistics.mean * statistics.tokens)  # the sum of T − X_p Ŵᵀ over tokens
        energy += float((bias * (statistics.tokens * bias - 2 * missed)).sum(dtype=torch.float64))
    return target_error(weight, pruned, gap, change_energy=energy, dense_energy=quadratic_form(weight, hessian))


def _inner(one: Tensor, other: Tensor) -> float:
    return float((one * other.float()).sum(dtype=torch.float64))
