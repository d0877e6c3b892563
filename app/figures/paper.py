"""The ROSE paper's figures of one layer: the figures of the order lab, from numbers that an analysis keeps."""

from __future__ import annotations

import numpy as np
import pandas as pd

from app import words
from app.figures.losses import losses_in_order
from app.figures.order_lab import error_curve, order_bars, position_curve
from app.figures.style import Drawing
from rose.layer.paper import PaperFigures


def drawings(paper: PaperFigures) -> list[Drawing]:
    """Figure 1a with the losses of blocks before and after reordering, Figure 1c, where there are positions to choose
    from, and the bars of orders."""
    layer = words.short_layer(paper.layer)
    curves = {order: np.array(curve) for order, curve in paper.curves.items()}
    found = [error_curve(curves, layer=layer)]
    if len(paper.losses) > 1:
        errors = {order: np.diff(curves[order]) for order in ("natural", "two_level")}
        found.append(losses_in_order(np.array(paper.losses), paper.visited, errors, layer=layer))
    if len(paper.positions) > 1:
        table = pd.DataFrame(paper.positions, columns=["position", "relative_error"])
        found.append(position_curve(table, block=paper.block, base="natural", place=paper.place, layer=layer))
    bars = pd.DataFrame(paper.bars, columns=["order", "sparsity", "relative_error"])
    return [*found, order_bars(bars, layer=layer)]
