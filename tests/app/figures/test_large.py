"""Figures of a 4096 × 11008 layer stay below 2 MB."""

from collections.abc import Callable

import pytest
import torch

from app.figures import hessian, losses, maps, order_picture
from app.figures.style import Drawing
from rose import OrderPlan
from rose.layer.pattern import Pattern

ROWS, COLUMNS, BLOCK = 4096, 11008, 128


@pytest.fixture(scope="module")
def plan() -> OrderPlan:
    """As pre-pruning would leave it; put together by hand, as only drawing is tested here."""
    score = torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    lost = score * (score < 0.7)
    column_loss = lost.sum(0)
    widths = (BLOCK,) * (COLUMNS // BLOCK)
    return OrderPlan(
        importance=score,
        potential_loss=lost,
        column_loss=column_loss,
        block_loss=column_loss.view(-1, BLOCK).sum(1),
        block_width=widths,
        hessian_diagonal=score[0],
        relative_range=0.1,
        threshold=0.5,
        pattern=Pattern(0.7),
        block_size=BLOCK,
    )


DRAW: dict[str, Callable[[OrderPlan], Drawing]] = {
    "weight_map": lambda p: maps.weight_map(p.importance, widths=p.block_width, marked_block=3),
    "weight_surface": lambda p: maps.weight_surface(p.importance, widths=p.block_width, marked_block=3),
    "hessian_diagonal": lambda p: hessian.hessian_diagonal(p.hessian_diagonal, added=0.01),
    "importance_map": lambda p: maps.importance_map(p, marked_block=3),
    "potential_loss_map": lambda p: maps.potential_loss_map(p, marked_block=3),
    "prepruning_mask": lambda p: maps.prepruning_mask(p, marked_block=3),
    "column_loss_map": lambda p: losses.column_loss_map(p, marked_block=3),
    "block_loss_bars": lambda p: losses.block_loss_bars(p, marked_block=3),
    "order_picture": lambda p: order_picture.order_picture(p, "two_level", marked_column=500),
    "order_picture_mixed": lambda p: order_picture.order_picture(p, "hessian", marked_column=500),
}


@pytest.mark.parametrize("name", DRAW)
def test_large_layer(name: str, plan: OrderPlan) -> None:
    assert len(DRAW[name](plan).figure.to_json()) < 2_000_000
