"""Tables that pages show beside their figures, made from results; no Streamlit here, and nothing is measured."""

import pandas as pd

import rose
from rose.layer.order import rank

SHOWN_METHODS = ("sparsegpt", "rose", "rose_global")


def column_table(plan: rose.OrderPlan, order: rose.Order, block: int) -> pd.DataFrame:
    """Exact values of the columns of one block, in natural order.

    Columns: `column` (original), `position` within the block, `step` at which the order visits it, `column_loss`,
    `rank` by column loss in the whole layer (1 is the costliest), `hessian_diagonal`.
    """
    start = sum(plan.block_width[:block])
    inside = slice(start, start + plan.block_width[block])
    ranks = rank(plan.column_loss).argsort() + 1
    return pd.DataFrame(
        {
            "column": range(inside.start, inside.stop),
            "position": range(plan.block_width[block]),
            "step": order.inverse[inside].tolist(),
            "column_loss": plan.column_loss[inside].tolist(),
            "rank": ranks[inside].tolist(),
            "hessian_diagonal": plan.hessian_diagonal[inside].tolist(),
        }
    )


def error_records(overview: pd.DataFrame) -> pd.DataFrame:
    """One row per layer and method with `relative_error` and `held_out_error`, from `Study.overview`."""
    keys = ["layer", "block_index", "projection", "relative_range", "is_columnar"]
    parts = [
        overview[keys].assign(
            method=method, relative_error=overview[f"error_{method}"], held_out_error=overview[f"held_out_{method}"]
        )
        for method in SHOWN_METHODS
    ]
    table = pd.concat(parts, ignore_index=True)
    place = {layer: at for at, layer in enumerate(overview["layer"])}
    return table.sort_values("layer", key=lambda names: names.map(place), kind="stable", ignore_index=True)
