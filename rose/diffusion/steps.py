"""How much each denoising step counts in a layer's Hessian, H = Σ_t α_t X_tᵀX_t (OBS-Diff, arXiv 2510.06751)."""

import math
from collections.abc import Sequence

from rose.errors import RoseError, check_choice, is_whole

STEP_WEIGHTS = ("log_decrease", "uniform", "log_increase", "linear")
# Unless told: denoising steps, how much each counts, and groups of layers, pruned one after another.
STEPS, WEIGHTS, PACKAGES = 20, STEP_WEIGHTS[0], 4
LOW, HIGH = 0.8, 1.2  # of the paper
MAX_STEPS = 1000

StepWeights = str | Sequence[float]


def step_weights(kind: StepWeights, steps: int) -> tuple[float, ...]:
    """α of each step, from the noisiest to the last.

    "log_decrease", the paper's, is 0.8 + 0.4·ln(N − i)/ln N for i = 0 … N − 1. "log_increase" is its mirror image,
    "linear" falls from 1.2 to 0.8, "uniform" is 1. Raises RoseError for an unknown name, a wrong number of weights,
    weights that are not positive, or a bad number of steps.
    """
    check_steps(steps)
    if not isinstance(kind, str):
        try:
            weights = tuple(float(weight) for weight in kind)
        except (TypeError, ValueError):
            weights = ()
        if len(weights) != steps or not all(0 < weight < math.inf for weight in weights):
            raise RoseError(f"Step weights are a name or {steps} positive numbers, one for each step, not {kind!r}.")
        return weights
    check_choice("The step weights", kind, STEP_WEIGHTS)
    if kind == "uniform" or steps == 1:
        return (1.0,) * steps
    if kind == "linear":
        return tuple(HIGH - (HIGH - LOW) * i / (steps - 1) for i in range(steps))
    falling = tuple(LOW + (HIGH - LOW) * math.log(steps - i) / math.log(steps) for i in range(steps))
    return falling if kind == "log_decrease" else falling[::-1]


def check_steps(steps: int) -> None:
    """Raises RoseError unless this is a number of denoising steps, from 1 to 1000."""
    if not is_whole(steps) or not 1 <= steps <= MAX_STEPS:
        raise RoseError(f"The number of denoising steps must be a whole number from 1 to {MAX_STEPS}, not {steps!r}.")
