"""What a layer should put out where that is the dense model's output: gaps, and the weight that closes them.

Every published one-shot program prunes a layer to keep its own output on the pruned inputs X_p, and so takes the errors
of the layers below for the truth. The corrected target T is what the *dense* model puts out there: X_d Wᵀ, where X_d is
what the layer reads in the dense model. A layer that writes into the residual stream can also make good what the stream
itself has lost before it: T = X_d Wᵀ + R. (Quantization: GPTAQ, arXiv 2504.02692; Qronos, arXiv 2505.11695.)

With the gap G = T − X_p Wᵀ, tokens as rows, and H = X_pᵀX_p,

    min ‖T − X_p Ŵᵀ‖²  is solved without a mask by  W* = W + Gᵀ X_p (H + λI)⁻¹,

and ‖T − X_p Ŵᵀ‖² = constant + tr((W* − Ŵ) H (W* − Ŵ)ᵀ) for λ = 0: any method prunes W* in place of W. What the tokens
say of GᵀX_p is noisy, and the correction has hundreds of inputs to fit the noise with, so λ matters; see `choose_damping`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rose.layer.error import quadratic_form
from rose.layer.statistics import InputStatistics


@dataclass(frozen=True)
class Gap:
    """The gap G between a layer's target and what its dense weight W puts out on the pruned inputs.

    Attributes:
        cross: GᵀX_p, (out, in) float32.
        square: ‖G‖².
    """

    cross: Tensor
    square: float


class InputGap:
    """How the inputs of a layer differ between the dense and the pruned model: D = X_d − X_p, streamed.

    Layers that read the same tensor share one object: G = D Wᵀ for each of them.
    """

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.cross = torch.zeros(columns, columns, device=device)  # DᵀX_p
        self.difference = InputStatistics(columns, device)

    def update(self, pruned: Tensor, dense: Tensor) -> None:
        """Adds X_p and X_d, (..., in) each, of the same tokens."""
        x = pruned.detach().reshape(-1, self.difference.columns).to(self.cross)
        difference = dense.detach().reshape(x.shape).to(x) - x
        self.difference.update(difference)
        self.cross.addmm_(difference.T, x)

    def sum_over(self, add: Callable[[Tensor], Any]) -> None:
        """Lets `add` replace every accumulator by its sum over processes, in place."""
        add(self.cross)
        self.difference.sum_over(add)

    def of(self, weight: Tensor) -> Gap:
        """The gap of one of the layers, W (out, in)."""
        weight = weight.float()
        return Gap(weight @ self.cross, quadratic_form(weight, self.difference.hessian))


class OutputGap:
    """The gap of one layer that writes into the residual stream: G = D Wᵀ + R, streamed."""

    def __init__(self, rows: int, columns: int, device: torch.device | str = "cpu") -> None:
        self.cross = torch.zeros(rows, columns, device=device)
        self.square = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, pruned: Tensor, gap: Tensor) -> None:
        """Adds X_p, (..., in), and G, (..., out), of the same tokens."""
        x = pruned.detach().reshape(-1, self.cross.shape[1]).to(self.cross)
        g = gap.detach().reshape(-1, self.cross.shape[0]).to(self.cross)
        self.cross.addmm_(g.T, x)
        self.square += g.square().sum(dtype=torch.float64)

    def sum_over(self, add: Callable[[Tensor], Any]) -> None:
        """Lets `add` replace every accumulator by its sum over processes, in place."""
        add(self.cross)
        add(self.square)

    def of(self, weight: Tensor) -> Gap:
        """The gap; it was measured with this very W, (out, in)."""
        return Gap(self.cross, float(self.square))
