"""The factor of a Hessian that a sweep reads: dead columns, damping, and U with H⁻¹ = UᵀU. Its rows come from the
inverse Hessians of ever fewer columns (GPTQ, Frantar et al. 2022, section 3.3; SparseGPT, section 3.2).

Let L be the lower Cholesky factor of H with its columns reversed, and A be L reversed again, rows and columns. Then H =
AAᵀ, A is upper triangular, and U = A⁻¹: the inverse of L, reversed. `panels` computes both steps in little time.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rose.errors import RoseError, is_number
from rose.layer.panels import cholesky, reversed_inverse
from rose.layer.pattern import DAMPING
from rose.layer.statistics import InputStatistics

logger = logging.getLogger(__name__)

MAX_DAMPING = 1.0  # relative to the mean diagonal; beyond it the damping outweighs H
FIRST_RESCUE = 1e-4  # the least raised damping: because ten times 0 is 0


@dataclass(frozen=True)
class DampedHessian:
    """A Hessian ready to be factorized in any column order."""

    matrix: Tensor  # float32 (in, in), dead columns set to 1 on the diagonal, damping added
    dead: Tensor  # True where H_jj = 0, (in,) bool; the weights of these columns are set to zero
    # λ relative to the mean of diag(H), and absolute; above the request where H was not definite
    damping: float
    added: float
    mean: float  # of diag(H), all columns
    lower: Tensor  # L, (in, in), for the columns from right to left

    @cached_property
    def natural_factor(self) -> Tensor:
        """U for the columns from left to right, upper triangular, (in, in), computed once."""
        return reversed_inverse(self.lower)

    def inverse_factor(self, permutation: Tensor) -> Tensor:
        """U for the columns in this order, upper triangular, (in, in) float32. Raises RoseError for a barely definite H
        that rounding makes indefinite in this order."""
        backwards = permutation.flip(0)
        lower = _definite_factor(self.matrix[backwards][:, backwards], self.dead[backwards], self.mean)
        if lower is None:
            raise RoseError("H is too close to singular for this column order; raise the damping.")
        return reversed_inverse(lower)


def damp(hessian: Tensor, damping: float = DAMPING) -> DampedHessian:
    """Adds λ = damping · mean(diag H) to the diagonal, tenfold more each time the factorization fails. Raises
    RoseError: negative damping, or H stays indefinite at `MAX_DAMPING`."""
    if not is_number(damping) or not 0 <= damping < float("inf"):
        raise RoseError(f"Damping must be a number of at least 0, such as 0.01, not {damping!r}.")
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    mean = diagonal.mean().item()
    matrix = hessian.float().clone()
    # A dead column has no off-diagonal entries, so its 1 does not affect other columns. The mean leaves this 1 out.
    matrix.diagonal()[dead] = 1.0
    relative, added = damping, 0.0
    while True:
        matrix.diagonal().add_(relative * mean - added)
        added = relative * mean
        lower = _definite_factor(matrix.flip(0, 1), dead.flip(0), mean)
        if lower is not None:
            return DampedHessian(matrix, dead, relative, added, mean, lower)
        if relative >= MAX_DAMPING:
            raise RoseError(
                f"H cannot be factorized even with a damping of {relative:g} times its mean diagonal; "
                "check the calibration inputs, or calibrate on more tokens."
            )
        relative = min(MAX_DAMPING, max(relative * 10, FIRST_RESCUE))
        logger.warning("H is not positive definite; damping raised to %g of its mean diagonal", relative)


def _definite_factor(matrix: Tensor, dead: Tensor, mean: float) -> Tensor | None:
    """The lower Cholesky factor, (in, in), of a damped H, which is overwritten; None if the pivot of a live column is
    rounding noise beside `mean`, the mean of diag(H)."""
    lower, is_definite = cholesky(matrix)
    pivots = lower.diagonal()[~dead] ** 2
    return lower if is_definite and bool((pivots > torch.finfo(torch.float32).eps * mean).all()) else None


def factorize(statistics: InputStatistics, damping: float, permutation: Tensor) -> tuple[DampedHessian, Tensor]:
    """The damped Hessian, and U for this column order; the damping is raised where H is not definite in it."""
    is_natural = torch.equal(permutation, torch.arange(len(permutation), device=permutation.device))
    damped = damped_hessian(statistics, damping)
    while True:
        try:
            return damped, damped.natural_factor if is_natural else damped.inverse_factor(permutation)
        except RoseError:  # rounding depends on the order, so a barely definite H may fail in only some orders
            if damped.damping >= MAX_DAMPING:
                raise
            damped = damped_hessian(statistics, min(MAX_DAMPING, max(10 * damped.damping, FIRST_RESCUE)))


# The last two statistics, with their tokens and damping. Entries are large, and are freed with their statistics.
_remembered: WeakKeyDictionary[InputStatistics, tuple[tuple[int, float], DampedHessian]] = WeakKeyDictionary()
_lock = Lock()  # the app's sessions prune in threads of their own


def damped_hessian(statistics: InputStatistics, damping: float) -> DampedHessian:
    """The damped Hessian of these inputs, remembered: layers and methods that share inputs come one after another."""
    key = (statistics.tokens, damping)  # the number of tokens shows whether the statistics have grown
    with _lock:
        remembered = _remembered.get(statistics)
    if remembered is None or remembered[0] != key:
        remembered = key, damp(statistics.hessian, damping)
        with _lock:
            _remembered.pop(statistics, None)
            for older in list(_remembered)[:-1]:
                del _remembered[older]
            _remembered[statistics] = remembered
    return remembered[1]


def spectrum(hessian: Tensor) -> Tensor:
    """Eigenvalues of H, descending, (in,). Cubic in the number of columns."""
    return torch.linalg.eigvalsh(hessian).flip(0)


def condition_number(hessian: Tensor, damping: float = DAMPING) -> float:
    """Largest over smallest eigenvalue of the damped Hessian's live columns; 1 if all are dead. Raises RoseError as
    `damp`."""
    damped = damp(hessian, damping)
    live = ~damped.dead
    values = spectrum(damped.matrix[live][:, live])
    return float(values[0] / values[-1].clamp_min(torch.finfo(torch.float32).tiny)) if len(values) else 1.0


def sampling_damping(columns: int, tokens: int) -> float:
    """The damping for an H from few tokens, relative to the mean of diag(H): columns/tokens, at most `MAX_DAMPING`.
    It is the ridge n·σ²/‖β‖² (Hoerl, Kennard and Baldwin 1975) if the other inputs explain half of an input."""
    return min(MAX_DAMPING, columns / max(tokens, 1))
