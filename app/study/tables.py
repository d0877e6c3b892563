"""Tables of layers that pages show beside their figures, and the reader of a user's file. Nothing is measured here."""

import io
from collections.abc import Collection
from typing import Any

import pandas as pd

from rose import Order, OrderPlan, RoseError, RunReport
from rose.files import LARGEST, check_small, expand
from rose.layer.order import rank
from rose.rows import FLOAT32_MAX
from rose.wording import size

SHOWN_METHODS = ("sparsegpt", "rose", "rose_global")
COLUMNS = ["layer", "value"]


def read_numbers(source: str | bytes, layers: Collection[str]) -> tuple[pd.Series, list[str]]:
    """Reads numbers of layers: a CSV file with the columns layer and value, or a tuned model's report.json, ‖ΔW‖/‖W‖.

    `source` is a path or content. Returns the numbers of these layers, and the other names in the file.
    Raises RoseError for another file, or a row that is none.
    """
    try:
        if isinstance(source, str):
            check_small(source)
            source = expand(source).read_bytes()
        if len(source) > LARGEST:
            raise RoseError(f"The file is larger than {size(LARGEST)}, so it is no table of layers.")
        content = source.decode("utf-8-sig")
        if content.lstrip().startswith("{"):
            report = RunReport.from_json(content, "The file")
            if not report.is_tuned:
                raise RoseError("The file is no report of a tuned model; give its report.json, or a CSV file.")
            table = pd.DataFrame(report.tuned["change"].items(), columns=COLUMNS)
        else:
            options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "skipinitialspace": True}
            table = pd.read_csv(io.StringIO(content), **options).rename(columns=str.strip)[COLUMNS]
        if not isinstance(table.index, pd.RangeIndex):  # else pandas takes the first fields for names
            raise RoseError("The lines of the file have more fields than its first line; correct the file.")
    except RoseError:
        raise
    except KeyError:
        raise RoseError(f"The file has no columns {' and '.join(COLUMNS)} in its first line; add them.") from None
    except (OSError, ValueError) as problem:
        raise RoseError(
            f"The file cannot be read as CSV ({str(problem).strip()}); correct it, or choose another."
        ) from problem
    names = table["layer"].str.strip()
    if names.duplicated().any():
        raise RoseError(f"The layer {names[names.duplicated()].iloc[0][:80]} is there twice; correct the file.")
    numbers = pd.to_numeric(table["value"], errors="coerce")
    for row in table.index[~numbers.between(-FLOAT32_MAX, FLOAT32_MAX)][:1]:
        text = str(table["value"][row])[:40]
        raise RoseError(f"Row {row + 1}, column value: {text!r} is no finite number; correct the file.")
    numbers.index = names
    is_here = names.isin(list(layers)).to_numpy()
    if not is_here.any():
        example = f", such as {names[0][:80]}" if len(names) else ""
        raise RoseError(f"The file names no layer of this model{example}; its layers are called {next(iter(layers))}.")
    return numbers[is_here].astype(float), list(names[~is_here])


def column_table(plan: OrderPlan, order: Order, block: int) -> pd.DataFrame:
    """Exact values of the columns of a block: place, `step` of the order, losses, `rank` in the layer from 1, most."""
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
