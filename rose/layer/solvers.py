"""Solvers of the layer problem, step by step: the result if a solver stopped now, and its work until then.

Work is counted in products W·H, out · in² multiplications each, so that it is the same on every machine.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rose.errors import RoseError
from rose.layer.hessian import DampedHessian, damped_hessian
from rose.layer.least_squares import solve_on_support
from rose.layer.methods import prune_with
from rose.layer.methods.rose_admm import FINAL_STEPS, find_mask, penalties, shrunk_correlations
from rose.layer.methods.sparsegpt import REFIT_STEPS
from rose.layer.methods.toolkit import mask_by_score
from rose.layer.pattern import BLOCK_SIZE, DAMPING, SPARSITY, parse_sparsity
from rose.layer.settings import LayerSettings
from rose.layer.statistics import InputStatistics, as_statistics

STAGES = (0.4, 0.65, 0.85, 0.95, 1.0)  # of the weights that are removed at the end


@dataclass(frozen=True)
class State:
    """What a solver would return if it stopped here: Ŵ, (out, in) float32, and its mask, True = removed. `step`
    names the last step, `work` counts products W·H. Errors cannot be compared before `is_complete`."""

    step: str
    work: float
    weight: Tensor
    mask: Tensor
    is_complete: bool = True


def watch_solver(
    name: str,
    weight: Tensor,
    statistics: InputStatistics,
    *,
    sparsity: str | float = SPARSITY,
    order: str = "dealt",
    block_size: int = BLOCK_SIZE,
    damping: float = DAMPING,
) -> Iterator[State]:
    """The states of a solver in `SOLVERS`, in turn; `order` is for sweeps. Raises RoseError for stages under N:M."""
    if name not in SOLVERS:
        raise RoseError(f"There is no solver {name!r}. Choose one of {', '.join(SOLVERS)}.")
    if name == "stages" and parse_sparsity(sparsity).is_grouped:
        raise RoseError("N:M cannot be reached in stages, because every group must give up the same whole number.")
    method = "rose_admm" if name == "admm" else "sparsegpt"
    settings = LayerSettings.of(
        method=method,
        sparsity=sparsity,
        block_size=block_size,
        damping=damping,
        order=None if name == "admm" else order,
    )
    with torch.no_grad():
        inputs = as_statistics(statistics, weight)
        damped = damped_hessian(inputs, damping)
        live = weight.detach().float().masked_fill(damped.dead, 0)
        yield from SOLVERS[name](live, inputs, damped, settings)


def _factorization(weight: Tensor) -> float:
    """Cholesky factor of H and its inverse: in³/6 multiplications each."""
    return weight.shape[1] / (3 * weight.shape[0])


def _sweep(weight: Tensor, inputs: InputStatistics, damped: DampedHessian, settings: LayerSettings) -> Iterator[State]:
    """A sweep adds every column's error to all later ones: half a product."""
    result = prune_with(weight, inputs, settings)
    yield State("swept", _factorization(weight) + 0.5, result.weight, result.mask)


def _refit(weight: Tensor, inputs: InputStatistics, damped: DampedHessian, settings: LayerSettings) -> Iterator[State]:
    for swept in _sweep(weight, inputs, damped, settings):
        yield swept
        # Each number of steps starts anew, because conjugate gradients cannot be resumed.
        for steps in range(1, REFIT_STEPS + 1):
            solved = solve_on_support(weight, swept.mask, damped.matrix, swept.weight, steps)
            yield State(f"refit, step {steps}", swept.work + 1 + steps, solved, swept.mask)


def _stages(weight: Tensor, inputs: InputStatistics, damped: DampedHessian, settings: LayerSettings) -> Iterator[State]:
    """Each sweep starts from the refitted weights of the last. Pruned weights are 0 there, so nearly all are pruned
    again."""
    current, work = weight, 0.0
    for number, share in enumerate(STAGES, 1):
        stage = settings.changed(sparsity=settings.pattern.ratio * share)
        result = prune_with(current, inputs, stage)
        current = solve_on_support(weight, result.mask, damped.matrix, result.weight, REFIT_STEPS)
        work += _factorization(weight) + 0.5 + 1 + REFIT_STEPS
        yield State(f"stage {number} of {len(STAGES)}", work, current, result.mask, share == 1)


def _admm(weight: Tensor, inputs: InputStatistics, damped: DampedHessian, settings: LayerSettings) -> Iterator[State]:
    """Iterations of `rose_admm`; each state is refitted as the last state would be, and this work is counted."""
    scale = damped.matrix.diagonal().sqrt()
    correlations = shrunk_correlations(damped.matrix, inputs.tokens)
    schedule = penalties(int(settings.method_options["effort"]))
    states: list[Tensor] = []
    find_mask(weight * scale, correlations, settings.pattern, schedule, seen=states.append)
    runs = 0
    for number, (state, penalty) in enumerate(zip(states, schedule, strict=True), 1):
        runs += number == 1 or penalty != schedule[number - 2]
        mask = mask_by_score(state.abs(), settings.pattern, "layer")
        solved = solve_on_support(weight * scale, mask, correlations, state, FINAL_STEPS) / scale
        inverses = runs * 1.5 * _factorization(weight)  # a Cholesky factor, in³/6, and H⁻¹ from it, in³/3
        yield State(f"iteration {number}", inverses + number + 1 + FINAL_STEPS, solved, mask)


SOLVERS: dict[str, Callable[[Tensor, InputStatistics, DampedHessian, LayerSettings], Iterator[State]]] = {
    "sweep": _sweep,
    "refit": _refit,
    "stages": _stages,
    "admm": _admm,
}
