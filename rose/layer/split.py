"""What an error is made of: its mask, and the sequence of the sweep.

The mask's part is what an exact refit of the kept weights leaves. No order of compensation does better with these
zeros. The sequence's part is the rest: columns already passed could not help. A mask without compensation has such a
rest too; there it is what compensation would repair.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rose.errors import RoseError
from rose.layer.error import difference, quadratic_form, ratio
from rose.layer.hessian import damped_hessian
from rose.layer.least_squares import solve_on_support
from rose.layer.result import LayerResult
from rose.layer.statistics import InputStatistics, as_statistics
from rose.layer.target import InputGap, OutputGap, target_error

# After 40 steps the mask's part is at most 1.0001 of that after 400 in layers of two models (docs/lab-notes/orders.md).
STEPS = 40
Gap = InputGap | OutputGap


@dataclass(frozen=True, eq=False)
class ErrorSplit:
    """The two parts of a result's error, relative to the energy of the dense output, on calibration inputs. On held-out
    inputs there are no parts, because a refit may leave more there than the sweep."""

    error: float  # of the result
    mask: float  # after the refit
    refitted: Tensor = field(repr=False)  # Ŵ, (out, in) float32
    # whole errors on held-out inputs, of the result and of the refit; None without such inputs
    held_out_error: float | None = None
    held_out_refit: float | None = None

    @property
    def sequence(self) -> float:
        """What columns already passed could not repair: `error` − `mask`."""
        return self.error - self.mask


@torch.no_grad()
def split_error(
    weight: Tensor,
    hessian: Tensor | InputStatistics,
    result: LayerResult,
    *,
    held_out: Tensor | InputStatistics | None = None,
    target: Tensor | None = None,
    gap: Gap | None = None,
    held_out_gap: Gap | None = None,
    steps: int = STEPS,
) -> ErrorSplit:
    """Splits the error of a pruned layer into the mask's part and the sequence's.

    The refit solves least squares for the kept weights under the result's damped H, from Ŵ on, by conjugate gradients.
    Errors are reported under H itself.

    Args:
        weight: W, (out, in).
        hessian: H, (in, in), or the `InputStatistics` that the result was pruned with.
        held_out: H of other inputs, for whole errors there.
        target: W*, (out, in), where the result approximates corrected weights (`rose.layer.target`); W otherwise.
        gap, held_out_gap: to the dense target; errors are then those against the target.
        steps: of conjugate gradients, at most.

    Raises RoseError: rounded or low-rank results, and another H than the result's.
    """
    statistics = as_statistics(hessian, weight)
    if result.rounding_error is not None:
        raise RoseError("Rounded weights have no such parts, because no refit stays on the grid; prune without bits.")
    if result.low_rank is not None:
        raise RoseError("A sparse and a low-rank part share this error, so it cannot be split; choose another method.")
    if not torch.equal(statistics.diagonal, result.plan.hessian_diagonal.to(statistics.diagonal.device)):
        raise RoseError("This result was pruned with another H, or came without it; give the H that pruned it.")
    damped = damped_hessian(statistics, result.damping)
    live = (weight if target is None else target).detach().float().masked_fill(damped.dead, 0)
    refitted = solve_on_support(live, result.mask | damped.dead, damped.matrix, result.weight.float(), steps)
    weight = weight.detach()
    other = None if held_out is None else as_statistics(held_out, weight)
    before, after = (_error(weight, pruned, statistics, gap) for pruned in (result.weight, refitted))
    if other is None:
        return ErrorSplit(before, after, refitted)
    there = (_error(weight, pruned, other, held_out_gap) for pruned in (result.weight, refitted))
    return ErrorSplit(before, after, refitted, *there)


def _error(weight: Tensor, pruned: Tensor, inputs: InputStatistics, gap: Gap | None) -> float:
    """Relative error of Ŵ, (out, in), against the layer's own output, or against its dense target."""
    change = quadratic_form(difference(weight, pruned), inputs.hessian)
    dense = quadratic_form(weight, inputs.hessian)
    if gap is None:
        return ratio(change, dense)
    return target_error(weight, pruned, gap.of(weight), change_energy=change, dense_energy=dense)
