"""Tensors as arrays, and matrices of any size as a screen can show them: fewer cells, and nothing strong lost."""

from __future__ import annotations

import base64
import math
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from app import words

How = Literal["max", "sum"]

MAX_WIRE = 1_800_000  # bytes of one matrix, of 2 MB for the whole figure
MAX_CELLS = 512  # a side: more is slow in the browser, and no screen shows it


def to_numpy(values: Any) -> np.ndarray:
    """A tensor of any dtype and device, or anything array-like, as a NumPy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # NumPy has no bfloat16
        return values.numpy()
    return np.asarray(values)


def ceiling(shown: np.ndarray) -> tuple[float, str]:
    """The end of a magnitude's colour scale, and a note if larger values are shown.

    A few outliers would otherwise leave all other cells in one dark colour.
    """
    finite = shown[np.isfinite(shown)]
    largest = float(finite.max(initial=0.0))
    usual = float(np.quantile(finite, 0.998)) if finite.size else 0.0
    if 0 < usual < 0.67 * largest:
        return usual, f"; colours end at {words.number(usual)}, the largest is {words.number(largest)}"
    return largest or 1.0, ""


class Shrunk(NamedTuple):
    """A matrix small enough to show."""

    array: np.ndarray  # (cells down, cells across); dtype kept
    rows: int  # that one cell stands for
    columns: int
    note: str  # the same in words


def shrink(array: Any, limit: int = MAX_CELLS, how: How = "max", entries: str = "weights") -> Shrunk:
    """At most `limit` cells a side, by the maximum or the sum of each rectangle; `what` names the entries in the note.

    Never the mean: it would hide a single strong column, which is what people look for here.
    """
    values = to_numpy(array)
    steps = [math.ceil(side / limit) for side in values.shape]
    while True:
        small = values
        for axis, step in enumerate(steps):  # rows first: whole rows are contiguous, so this is the fast direction
            small = _reduce(small, axis, step, how)
        if small.dtype.kind != "f" or _wire_size(small) <= MAX_WIRE:
            break
        steps[0] *= 2
    if steps == [1, 1]:
        return Shrunk(small, 1, 1, f"each cell is one {entries.removesuffix('s')}")
    kind = {"max": "the maximum", "sum": "the sum"}[how]
    return Shrunk(small, steps[0], steps[1], f"each cell is {kind} of {steps[0]} × {steps[1]} {entries}")


def _reduce(values: np.ndarray, axis: int, step: int, how: How) -> np.ndarray:
    """Every `step` rows (or columns) to one; the last may stand for fewer."""
    if axis == 1:
        return _reduce(values.T, 0, step, how).T
    reduce: Any = {"max": np.max, "sum": np.sum}[how]
    groups, rest = divmod(len(values), step)
    # Much faster than ufunc.reduceat on large matrices.
    parts = [reduce(values[: groups * step].reshape(groups, step, -1), axis=1)] if groups else []
    if rest:
        parts.append(reduce(values[groups * step :], axis=0, keepdims=True))
    return np.concatenate(parts)


def _wire_size(values: np.ndarray) -> int:
    """Bytes of an array of float32 in a figure's JSON, where plotly writes every "/" of the base64 as six
    characters."""
    text = base64.b64encode(np.ascontiguousarray(values, np.float32).tobytes())
    return len(text) + 5 * text.count(b"/")


def frame(shrunk: Shrunk) -> pd.DataFrame:
    """The shrunk matrix as a table: first channels of each cell as names, and in the first heading what a cell is."""
    rows, columns = shrunk.array.shape
    whole = shrunk.rows == shrunk.columns == 1
    first = "output channel" if whole else f"output channel ({shrunk.note})"
    table = pd.DataFrame(shrunk.array, columns=[str(c) for c in range(0, columns * shrunk.columns, shrunk.columns)])
    table.insert(0, first, np.arange(rows) * shrunk.rows)
    return table
