"""An order and shares of one's own: what people paste, what a link carries, and what was before. No Streamlit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

import rose
from rose.layer.loss import block_widths

LONGEST_LINK = 400  # characters of an order in a link
NUMBERS = re.compile(r"[\s,;\[\]]+")


@dataclass(frozen=True)
class OwnOrder:
    """The columns as visited, and the budget: "block", "layer", or the part of the layer's weights by visited block."""

    columns: tuple[int, ...]
    budget: str | tuple[float, ...] = "block"
    past: tuple[OwnOrder, ...] = ()

    def to(self, **changes: object) -> OwnOrder:
        """A changed state; its `undone` leads back here."""
        other = replace(self, **changes)  # type: ignore[arg-type]
        if (other.columns, other.budget) == (self.columns, self.budget):
            return self
        return replace(other, past=(*self.past[-50:], replace(self, past=())))

    def undone(self) -> OwnOrder:
        return replace(self.past[-1], past=self.past[:-1]) if self.past else self

    def order(self, plan: rose.OrderPlan) -> rose.Order:
        """For a sweep; raises RoseError as `rose.layer.order.make_order`."""
        if list(self.columns) == list(range(len(self.columns))):
            return rose.make_order(plan, "natural")
        widths = block_widths(len(self.columns), plan.block_size)
        return rose.make_order(plan, rose.Order(torch.tensor(self.columns), widths, "custom"))


def sorted_by(plan: rose.OrderPlan, name: str) -> tuple[int, ...]:
    return tuple(rose.make_order(plan, name).permutation.tolist())


def read_columns(text: str, columns: int) -> tuple[int, ...]:
    """Column numbers, or ranges such as 128-255, separated by spaces or commas.

    Raises:
        RoseError: a word that is no number, a number that is no column, a repeated or a missing column.
    """
    order: list[int] = []
    for part in filter(None, NUMBERS.split(text)):
        ends = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        if ends is None:
            raise rose.RoseError(f"{part[:40]!r} is no column number and no range such as 0-127; correct it.")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if max(first, last) >= columns:
            raise rose.RoseError(f"{part} is beyond the last column, {columns - 1}; columns are counted from 0.")
        order += range(first, last + 1) if last >= first else range(first, last - 1, -1)
        if len(order) > 2 * columns:
            break
    if len(set(order)) < len(order):
        twice = next(column for column in order if order.count(column) > 1)
        raise rose.RoseError(f"Column {twice} is there twice; name each column once.")
    if missing := sorted(set(range(columns)) - set(order)):
        raise rose.RoseError(f"{len(missing)} of {columns} columns are missing, such as {missing[0]}; name each once.")
    return tuple(order)


def write_columns(columns: Sequence[int]) -> str:
    """The text that `read_columns` reads, neighbours as ranges."""
    parts: list[list[int]] = []
    for column in columns:
        if parts and column == parts[-1][1] + 1:
            parts[-1][1] = column
        else:
            parts.append([column, column])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in parts)


def read_shares(text: str, widths: Sequence[int], ratio: float) -> tuple[float, ...]:
    """The part of its own weights that each visited block gives up, as 0.7 or 70 %; as parts of the layer's weights.

    Raises:
        RoseError: another number of blocks, a share that is none, or a mean that is not the sparsity.
    """
    parts = [part for part in NUMBERS.split(text.replace(" %", "%")) if part]
    if len(parts) != len(widths):
        raise rose.RoseError(f"There are {len(parts)} shares for {len(widths)} blocks; give one for each.")
    try:
        parts_of_blocks = [float(part.removesuffix("%")) / (100 if part.endswith("%") else 1) for part in parts]
    except ValueError:
        raise rose.RoseError("A share is a number from 0 to 1 or a percentage, such as 0.7 or 70 %.") from None
    if not all(0 <= share <= 1 for share in parts_of_blocks):
        raise rose.RoseError("A block can give up between 0 and all of its weights: shares lie between 0 and 1.")
    shares = tuple(share * width / sum(widths) for share, width in zip(parts_of_blocks, widths, strict=True))
    if abs(sum(shares) - ratio) > 0.005:
        raise rose.RoseError(f"Together these shares remove {sum(shares):.3f} of the layer, but sparsity is {ratio:g}.")
    return tuple(share * ratio / sum(shares) for share in shares)


def write_shares(shares: Sequence[float], widths: Sequence[int]) -> str:
    """The text that `read_shares` reads."""
    return ", ".join(f"{share * sum(widths) / width:.4f}" for share, width in zip(shares, widths, strict=True))
