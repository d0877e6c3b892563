"""Three sizes of what is removed: the formula of the lesson, and what must hold whatever the layer."""

import pytest
import torch

from app.lessons import sizes
from app.lessons.subjects import BLOCK_SIZE, generate


def test_a_head_costs_what_the_formula_says() -> None:
    """tr(W_R (P_RR)⁻¹ W_Rᵀ) over tr(W H Wᵀ), with the lesson's damping, for the best single head."""
    weight, statistics = generate(sizes.DESIGN)
    weight, hessian = weight.double(), statistics.hessian.double()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    inverse = torch.linalg.inv(damped)
    costs = []
    for head in range(sizes.HEADS):
        part = slice(head * BLOCK_SIZE, (head + 1) * BLOCK_SIZE)
        costs.append(float(((weight[:, part] @ torch.linalg.inv(inverse[part, part])) * weight[:, part]).sum()))
    expected = min(costs) / float(((weight @ hessian) * weight).sum())
    table = sizes.errors(1).set_index("size")
    assert 0.9 * expected < table.loc["heads", "compensated"] <= expected  # which holds λ‖ΔW‖² too


@pytest.mark.parametrize("heads", range(1, sizes.HEADS))
def test_compensation_helps_and_small_pieces_cost_less(heads: int) -> None:
    table = sizes.errors(heads).set_index("size")
    assert (table["compensated"] < table["dropped"]).all()
    assert table["compensated"].is_monotonic_increasing  # weights, columns, heads
    shares = table["removed"] / table["units"]
    assert shares.tolist() == pytest.approx([heads / sizes.HEADS] * 3, abs=1e-3)
