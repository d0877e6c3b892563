"""Statistics of a layer's input: the Hessian XᵀX of the squared error ‖(W − Ŵ)Xᵀ‖² (Hassibi and Stork 1992), the
mean, and the number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from rose.errors import RoseError, is_number, is_whole

# H is symmetric: only the panels on and above the diagonal are accumulated. Narrow panels skip more of
# the lower half but make slimmer matrix products; 256 was the fastest of 128..576 on a two-core machine.
PANEL = 256
GROUPS = 8  # of windows, whose parts of diag(H) are kept apart
SERIAL = 2**15 - 1  # numbers; torch divides larger sums over threads, which on a busy machine wait for each other
_symmetrizing = Lock()  # one for all, because an object with a lock could not be copied
NOT_FINITE = "H holds NaN or infinity; check the calibration inputs, or load the model in float32."


class InputStatistics:
    """Streaming second moments of one layer's input, in float32. Layers that read the same tensor share one object.
    Threads may read it at once while no thread updates it.

    `columns` counts input channels; products x xᵀ are computed in `dtype`, see `add_product`. `tokens` counts the input
    vectors seen, and `total_weight` sums their weights; means divide by it. Raises RoseError: fewer than 1 column.
    """

    def __init__(self, columns: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        if not is_whole(columns) or columns < 1:
            raise RoseError(f"Inputs must have a whole number of channels, at least 1, not {columns!r}.")
        self.columns, self.dtype = int(columns), dtype
        self.tokens = 0
        self.total_weight = 0.0
        # Valid on and above the panel diagonal.
        self._upper = torch.zeros(columns, columns, dtype=torch.float32, device=device)
        # The mean, and Σ α (x − mean)², which is not the small difference of two large sums.
        self._mean = torch.zeros(columns, dtype=torch.float64, device=device)
        self._spread = torch.zeros(columns, dtype=torch.float64, device=device)
        self._first = torch.zeros(columns, dtype=torch.float32, device=device)  # of diag(H), the first positions' part
        self._by_group = torch.zeros(GROUPS, columns, dtype=torch.float32, device=device)
        self._windows = 0  # which go to the groups of diag(H) in turn
        self._hessian: Tensor | None = None

    def __repr__(self) -> str:
        return f"<InputStatistics of {self.columns} channels, {self.tokens} tokens>"

    @classmethod
    def from_hessian(cls, hessian: Tensor, tokens: int = 1) -> InputStatistics:
        """Wraps a ready (in, in) Hessian. With the default `tokens=1` it counts as the mean of x xᵀ. Raises RoseError
        unless it is a square symmetric matrix of finite numbers, and tokens a whole number above 0."""
        check_tensor("H", hessian)
        if not is_whole(tokens) or tokens < 1:
            raise RoseError(f"A Hessian sums over a whole number of tokens, at least 1, not {tokens!r}.")
        if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1] or hessian.numel() == 0:
            raise RoseError(f"The Hessian must be a square matrix, but its shape is {tuple(hessian.shape)}.")
        if not is_finite(hessian):
            raise RoseError(NOT_FINITE)
        if (hessian - hessian.T).abs().max() > 1e-3 * hessian.abs().max():
            raise RoseError("The Hessian must be symmetric; give all of XᵀX, not one triangle of it.")
        statistics = cls(hessian.shape[0], hessian.device)
        statistics._upper = hessian.detach().float()
        statistics._hessian = statistics._upper
        for unknown in (statistics._mean, statistics._spread, statistics._first, statistics._by_group):
            unknown.fill_(float("nan"))
        statistics.tokens, statistics.total_weight = int(tokens), float(tokens)
        return statistics

    def update(self, inputs: Tensor, weight: float = 1.0) -> None:
        """Adds inputs of shape (..., in) to H = Σ α xᵀx with weight α, such as a denoising step's (arXiv 2510.06751).
        Raises RoseError if the last dimension is not `columns`, or the weight is not a positive number."""
        check_tensor("Inputs", inputs)
        if not is_number(weight) or not 0 < weight < float("inf"):
            raise RoseError(f"The weight of inputs must be a positive number, not {weight!r}.")
        if self._upper is self._hessian:
            self._upper = self._upper.clone()  # a given Hessian belongs to the caller
        if inputs.shape[-1] != self.columns:
            raise RoseError(f"Expected inputs with {self.columns} channels, got {inputs.shape[-1]}.")
        x = inputs.detach().reshape(-1, self.columns).to(self._upper.device, self.dtype)
        for start in range(0, self.columns, PANEL):
            end = min(start + PANEL, self.columns)
            add_product(self._upper[start:end, start:], x[:, start:end], x[:, start:], weight)
        self._add_deviations(x, weight)
        if inputs.ndim == 3:  # (windows, positions, in); experts read tokens from anywhere
            first = inputs.detach()[:, 0].to(self._first)
            self._first.add_(first.square().sum(0), alpha=weight)
            squares = torch.linalg.vector_norm(inputs.detach(), dim=1, dtype=torch.float32).square()
            groups = torch.arange(self._windows, self._windows + len(squares), device=self._by_group.device) % GROUPS
            self._by_group.index_add_(0, groups, squares.to(self._by_group), alpha=weight)
            self._windows += len(inputs)
        else:
            self._first.fill_(float("nan"))
            self._by_group.fill_(float("nan"))
        self.tokens += x.shape[0]
        self.total_weight += weight * x.shape[0]
        self._hessian = None

    def _add_deviations(self, x: Tensor, weight: float) -> None:
        """Adds x, (tokens, in), to mean and spread (Chan, Golub and LeVeque 1983). Deviations are float32, from a
        mean near theirs."""
        if not len(x):
            return
        near = (self._mean if self.tokens else x.mean(0, dtype=torch.float32)).float()
        total, squares = torch.zeros_like(self._mean), torch.zeros_like(self._mean)
        for rows in x.split(len(x) if x.is_cuda else max(1, SERIAL // self.columns)):
            deviations = rows - near
            total += deviations.sum(0)
            squares += deviations.square_().sum(0)
        gap = near - self._mean + total / len(x)
        share = weight * len(x) / (self.total_weight + weight * len(x))
        self._spread += weight * (squares - total.square() / len(x)) + share * self.total_weight * gap.square()
        self._mean += share * gap

    def to(self, device: torch.device | str) -> InputStatistics:
        """The statistics on a device; this object itself if it is there already."""
        upper = self._upper.to(device)
        if upper is self._upper:
            return self
        moved = InputStatistics(self.columns, upper.device, self.dtype)
        moved.tokens, moved.total_weight = self.tokens, self.total_weight
        moved._upper, moved._first = upper, self._first.to(device)
        moved._by_group, moved._windows = self._by_group.to(device), self._windows
        moved._mean, moved._spread = self._mean.to(device), self._spread.to(device)
        return moved

    def sum_over(self, add: Callable[[Tensor], Any]) -> None:
        """Lets `add` replace every accumulator by its sum over processes, in place; half of a symmetric H is sent."""
        counts = self._counts
        if self._upper is self._hessian:
            self._upper = self._upper.clone()  # a caller may hold this Hessian
        for start in range(0, self.columns, PANEL):
            panel = self._upper[start : start + PANEL, start:].contiguous()
            add(panel)
            self._upper[start : start + PANEL, start:] = panel
        weight, total = self.total_weight, self._mean * self.total_weight
        for sums in (self._first, self._by_group, counts, total):
            add(sums)
        self._count(counts)
        mean = total / (self.total_weight or 1)
        self._spread += weight * (self._mean - mean).square()
        add(self._spread)
        self._mean = mean
        self._hessian = None

    @property
    def _counts(self) -> Tensor:
        """Tokens and their total weight, as one tensor to send or to keep; float64 counts exactly up to 2⁵³."""
        return torch.tensor([self.tokens, self.total_weight], dtype=torch.float64, device=self._mean.device)

    def _count(self, counts: Tensor) -> None:
        tokens, weight = counts.tolist()
        self.tokens, self.total_weight = int(tokens), weight

    def pack(self) -> dict[str, Tensor]:
        """All contents as flat tensors for a file, with half of the symmetric H. `unpack` reads them."""
        panels = [self._upper[start : start + PANEL, start:].flatten() for start in range(0, self.columns, PANEL)]
        moments = {"mean": self._mean, "spread": self._spread, "first": self._first, "groups": self._by_group}
        moments = {name: tensor.clone() for name, tensor in moments.items()}
        return {"panels": torch.cat(panels), **moments, "tokens": self._counts.cpu()}

    @classmethod
    def unpack(cls, packed: Mapping[str, Tensor]) -> InputStatistics:
        """The statistics that `pack` stored, to the bit, on their device; further products are float32."""
        statistics = cls(packed["first"].numel(), packed["first"].device)
        starts = range(0, statistics.columns, PANEL)
        sizes = [min(PANEL, statistics.columns - start) * (statistics.columns - start) for start in starts]
        for start, panel in zip(starts, packed["panels"].split(sizes), strict=True):
            statistics._upper[start : start + PANEL, start:] = panel.view(-1, statistics.columns - start)
        statistics._first = packed["first"].clone()  # the caller's stays as it is
        statistics._count(packed["tokens"])
        if "groups" in packed:
            statistics._by_group = packed["groups"].clone()
        else:  # as earlier versions have packed statistics
            statistics._by_group.fill_(float("nan"))
        if "sum" in packed:  # as earlier versions have packed the app's example
            statistics.set_mean(packed["sum"] / statistics.total_weight)
        else:
            statistics._mean, statistics._spread = packed["mean"].clone(), packed["spread"].clone()
        return statistics

    def set_mean(self, mean: Tensor) -> None:
        """Gives the mean of x_j, (in,), to statistics that know H alone. Their variance is then the difference of two
        float32 numbers, which may cancel."""
        self._mean = mean.double()
        self._spread = (self.mean_square - mean.square()).clamp_min(0).double() * self.total_weight

    @property
    def hessian(self) -> Tensor:
        """H = XᵀX, float32 (in, in), the weighted sum over tokens. Do not change it."""
        with _symmetrizing:  # another thread may have just done it
            if self._hessian is None:
                self._hessian = _symmetrize(self._upper)
            return self._hessian

    @property
    def diagonal(self) -> Tensor:
        """diag(H), the sum of squares of each input channel, (in,)."""
        return self._upper.diagonal()

    @property
    def by_group(self) -> Tensor | None:
        """diag(H) by group of windows, (groups, in), for the spread over draws of text; None where inputs came without
        windows, or in one."""
        seen = self._by_group[self._by_group.ne(0).any(1)]
        return None if len(seen) < 2 or bool(seen.isnan().any()) else seen

    @property
    def mean_square(self) -> Tensor:
        """Mean of x_j² over tokens, (in,); its root is the activation norm of Wanda and of the importance S."""
        return self.diagonal / (self.total_weight or 1)

    @property
    def mean(self) -> Tensor:
        """Mean of x_j over tokens, (in,); NaN for a bare Hessian."""
        return self._mean.float()

    @property
    def variance(self) -> Tensor:
        """Variance of x_j over tokens, (in,), at least 0; NaN for a bare Hessian."""
        return (self._spread / (self.total_weight or 1)).clamp_min(0).float()

    def first_share(self, channels: Sequence[int]) -> float:
        """The share of these channels' squares at the first position of windows; NaN where inputs came without
        positions, not as (windows, positions, in)."""
        chosen = list(channels)
        return float(self._first[chosen].sum() / self.diagonal[chosen].sum())

    @property
    def dead(self) -> Tensor:
        """True where an input channel was zero on every token, (in,) bool."""
        return self.diagonal == 0


def _symmetrize(upper: Tensor) -> Tensor:
    """Mirrors the panels on and above the diagonal of (in, in), in place, because a model's statistics fill most of the
    memory. The triangle above the diagonal keeps its numbers, so other threads may read it meanwhile. Panel by panel,
    so that rows and columns stay in the cache: a tenth of the time of `upper.T`."""
    for start in range(0, len(upper), PANEL):
        end = min(start + PANEL, len(upper))
        square = upper[start:end, start:end]
        square.copy_(square.triu() + square.triu(1).T)
        upper[end:, start:end] = upper[start:end, end:].T
    return upper


def add_product(total: Tensor, left: Tensor, right: Tensor, weight: float = 1.0) -> None:
    """Adds the weighted leftᵀ right, tokens as rows, to a float32 `total`. bfloat16 factors take half the time. Their
    rounding averages out over tokens, below the sampling noise."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right, alpha=weight)
    else:
        total.add_(left.T @ right, alpha=weight)


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinity. One quick pass: `torch.isfinite` would write a mask as large."""
    return bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def check_tensor(name: str, value: object) -> None:
    """Raises RoseError unless the value is a dense tensor with data."""
    if not isinstance(value, Tensor):
        raise RoseError(
            f"{name} must be a torch tensor, not a {type(value).__name__}; torch.from_numpy makes one of an array."
        )
    if value.layout != torch.strided or value.is_meta:
        raise RoseError(f"{name} must be an ordinary tensor that holds its numbers, neither sparse nor on meta.")


def as_statistics(hessian: Tensor | InputStatistics, weight: Tensor) -> InputStatistics:
    """Statistics from a Hessian or statistics for W, (out, in). Raises RoseError unless it is a tensor of W's columns
    on W's device, without NaN, infinity or a negative diagonal."""
    check_tensor("W", weight)
    columns = weight.shape[-1] if weight.ndim else 0
    statistics = hessian if isinstance(hessian, InputStatistics) else InputStatistics.from_hessian(hessian)
    if statistics.tokens == 0:
        raise RoseError("These statistics have not seen any token; update them with calibration inputs first.")
    if statistics.columns != columns:
        raise RoseError(f"W has {columns} input columns but H has {statistics.columns}; they must be the same layer's.")
    device = statistics.diagonal.device
    if device != weight.device:
        raise RoseError(f"W is on {weight.device} and H on {device}; bring both to one, such as by statistics.to(...).")
    if not is_finite(statistics.hessian):
        raise RoseError(NOT_FINITE)
    if (statistics.diagonal < 0).any():
        raise RoseError("H has a negative diagonal entry, so it is not XᵀX of any inputs.")
    return statistics
