"""Structured methods: which units are removed, and their scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rose.errors import check_named
from rose.structured.parts import Shape
from rose.structured.problem import Problem, greedy, set_cost, swaps

UNTOUCHED = 0.01  # share of channels that SlimLLM's program keeps although their scores are the lowest

# The units that stay, (units,) bool, and how many of them returned in place of others.
Choice = tuple[Tensor, int]
# (problem, how many go out of each pool, pools of units, units already gone) -> choice
Select = Callable[[Problem, int, Sequence[Tensor], Tensor], Choice]


@dataclass(frozen=True)
class StructuredMethod:
    """A way to choose units."""

    name: str
    summary: str
    select: Select | None  # chooses; None for a method that removes whole decoder blocks
    recovery: str = "exact"  # default repair, see `rose.structured.problem.recover`
    looks_at_inputs: bool = False  # whether scores need the inputs of the layers that make the units


def structured_method(name: str) -> StructuredMethod:
    """The method with this name; raises RoseError for an unknown one."""
    check_named("structured method", name, STRUCTURED)
    return STRUCTURED[name]


def choose(method: StructuredMethod, problem: Problem, shape: Shape) -> Choice:
    """The units to keep for this shape: whole groups go first, then equally many units from each remaining group."""
    assert method.select is not None
    have = problem.shape
    stay, swapped = torch.ones(have.units, dtype=torch.bool), 0
    if shape.groups < have.groups:
        none = torch.zeros(have.groups, dtype=torch.bool)
        groups, swapped = method.select(problem.coarse(), have.groups - shape.groups, [torch.arange(have.groups)], none)
        stay, swapped = groups.repeat_interleave(have.per_group), swapped * have.per_group
    if shape.per_group < have.per_group:
        units = torch.arange(have.units).view(have.groups, have.per_group)
        pools = [row for row in units if stay[row].any()]
        stay, swapped_units = method.select(problem, have.per_group - shape.per_group, pools, ~stay)
        swapped += swapped_units
    return stay, swapped


def _lowest(score: Tensor, remove: int, pools: Sequence[Tensor], away: Tensor, skip: int = 0) -> Tensor:
    """Removes the lowest scores of each pool, except its `skip` lowest; the units that stay, (units,) bool."""
    stay = ~away
    for pool in pools:
        stay[pool[score[pool].argsort(stable=True)[skip : skip + remove]]] = False
    return stay


def _magnitude(problem: Problem, remove: int, pools: Sequence[Tensor], away: Tensor) -> Choice:
    """By ‖W‖² of the columns of each unit."""
    score = problem.weight.square().sum(0).view(-1, problem.width).sum(1)
    return _lowest(score.cpu(), remove, pools, away), 0


def _wanda(problem: Problem, remove: int, pools: Sequence[Tensor], away: Tensor) -> Choice:
    """By Σ_j A_jj ‖w_j‖² over the columns of each unit: FLAP's fluctuation (An et al. 2024, arXiv 2312.11983, equation
    5) with a bias, otherwise Wanda's mean square."""
    score = (problem.moment.diagonal() * problem.weight.square().sum(0)).view(-1, problem.width).sum(1)
    return _lowest(score.cpu(), remove, pools, away), 0


# SlimLLM: Guo et al. 2025, arXiv 2505.22689


def unit_covariances(problem: Problem) -> Tensor:
    """Covariances of any two units' contributions to each output channel, (out, units, units). Since y_j = Σ_u y_ju,
    they give all Pearson correlations between sums of units."""
    covariance = problem.second - torch.outer(problem.mean, problem.mean)
    units = problem.columns
    rows_of_units = []
    for columns in units:
        image = problem.weight[:, columns] @ covariance[columns]  # (out, in)
        rows_of_units.append((image * problem.weight).view(len(image), *units.shape).sum(2))
    return torch.stack(rows_of_units, 1)


def correlation(covariances: Tensor, stay: Tensor) -> float:
    """Σ_j |Pearson correlation| between y_j and the sum of the remaining units (section 3.2)."""
    rows = covariances[:, stay]
    shared, variance, whole = rows.sum((1, 2)), rows[:, :, stay].sum((1, 2)), covariances.sum((1, 2))
    return float((shared / (variance * whole).clamp_min(1e-30).sqrt()).abs().sum(dtype=torch.float64))


def head_scores(problem: Problem, away: Tensor) -> Tensor:
    """−Σ_j |correlation| between y_j and y_j without one unit, (units,)."""
    covariances = unit_covariances(problem)
    scores = []
    for unit in range(problem.shape.units):
        stay = ~away
        stay[unit] = False
        scores.append(-correlation(covariances, stay))
    return torch.tensor(scores, dtype=torch.float64)


def channel_scores(problem: Problem) -> Tensor:
    """‖gate row ⊙ ℓ2(x)‖ + ‖up row ⊙ ℓ2(x)‖ + ‖(|W_downᵀV| ⊙ σ(λ/λ̄)) row‖ · ℓ2(h), (channels,) (section 3.3). V and λ
    are eigenvectors and eigenvalues of the covariance of the MLP's output, λ̄ is their mean, σ the logistic function.
    ℓ2 is a root mean square here and a root of the sum there, which is a common factor."""
    covariance = problem.second - torch.outer(problem.mean, problem.mean)
    output = problem.weight @ covariance @ problem.weight.T
    values, vectors = torch.linalg.eigh(output)
    share = (values.abs() / values.abs().mean().clamp_min(1e-30)).sigmoid()
    directions = (problem.weight.T @ vectors).abs() * share
    scores = directions.norm(dim=1) * problem.second.diagonal().clamp_min(0).sqrt()
    for weight, root in problem.sources:
        scores = scores + (weight * root).norm(dim=1)
    return scores


def _slimllm(problem: Problem, remove: int, pools: Sequence[Tensor], away: Tensor) -> Choice:
    if problem.sources:  # an MLP
        scores = channel_scores(problem).cpu()
        skip = min(round(UNTOUCHED * problem.shape.units), problem.shape.units - remove)
        return _lowest(scores, remove, pools, away, skip), 0
    covariances = unit_covariances(problem)
    scores = head_scores(problem, away)
    first = _lowest(scores, remove, pools, away)
    # Those that went first come back first, as in their program; the outcome of one round depends on it.
    ordered = [pool[scores[pool].argsort(stable=True)] for pool in pools]
    stay = swaps(lambda units: -correlation(covariances, units), first, ordered)
    return stay, int((first & ~stay).sum())


def _obs(problem: Problem, remove: int, pools: Sequence[Tensor], away: Tensor) -> Choice:
    order, _ = greedy(problem, remove, pools, away)
    first = ~away
    first[order] = False
    if problem.width == 1:  # thousands of channels: swaps would cost far more than they bring
        return first, 0
    stay = swaps(lambda units: set_cost(problem, units), first, pools)
    return stay, int((first & ~stay).sum())


STRUCTURED: dict[str, StructuredMethod] = {
    method.name: method
    for method in (
        StructuredMethod(
            "obs", "Exact cost of a set of columns, greedy with the inverse renewed, least-squares compensation.", _obs
        ),
        StructuredMethod(
            "slimllm", "SlimLLM: heads by correlation with greedy swaps, channels by direction, linear recovery.",
            _slimllm, recovery="linear", looks_at_inputs=True,
        ),
        StructuredMethod(
            "wanda", "Mean square or variance × norm, the mean put back as a bias (FLAP).", _wanda, recovery="bias"
        ),
        StructuredMethod("magnitude", "Norm of the columns; looks at no tokens.", _magnitude, recovery="none"),
        StructuredMethod(
            "depth", "Whole decoder blocks, those whose output is most like their input.", None, recovery="none"
        ),
    )
}  # fmt: skip
"""The methods that make a model smaller, by name."""
