"""An order of one's own: the columns as visited, cut into blocks, and how many weights each block gives up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

import rose
from rose.layer.loss import block_widths
from rose.layer.order import visited_blocks

NUMBERS = re.compile(r"[\s,;\[\]]+")
NATURAL = "natural"


@dataclass(frozen=True)
class OwnOrder:
    """An order in the making.

    Attributes:
        columns: as visited.
        widths: of the blocks, as visited.
        budget: "block", "layer", or the part of the layer's weights that each visited block gives up.
        rule: that has sorted the columns; empty once a block was moved, or the columns were given by hand.
    """

    columns: tuple[int, ...]
    widths: tuple[int, ...]
    budget: str | tuple[float, ...] = "block"
    rule: str = NATURAL
    past: tuple[OwnOrder, ...] = ()

    @classmethod
    def natural(cls, plan: rose.OrderPlan) -> OwnOrder:
        return cls(tuple(range(len(plan.column_loss))), tuple(plan.block_width))

    def to(self, **changes: object) -> OwnOrder:
        """A changed order; its `undone` leads back here."""
        other = replace(self, **changes)  # type: ignore[arg-type]
        if not isinstance(other.budget, str) and other.widths != self.widths and "budget" not in changes:
            other = replace(other, budget="block")  # the shares were those of other blocks
        if (other.columns, other.widths, other.budget) == (self.columns, self.widths, self.budget):
            return replace(self, rule=other.rule)
        return replace(other, past=(*self.past[-50:], replace(self, past=())))

    def moved(self, places: Sequence[int]) -> OwnOrder:
        """The blocks in this order; each keeps its columns, its width and, where it has its own, its share."""
        ends = list(accumulate(self.widths))
        parts = [self.columns[end - width : end] for end, width in zip(ends, self.widths, strict=True)]
        columns = tuple(column for place in places for column in parts[place])
        widths = tuple(self.widths[place] for place in places)
        budget = self.budget if isinstance(self.budget, str) else tuple(self.budget[place] for place in places)
        return self.to(columns=columns, widths=widths, budget=budget, rule="")

    def sorted(self, plan: rose.OrderPlan, rule: str) -> OwnOrder:
        order = rose.make_order(plan, rule)
        return self.to(columns=tuple(order.permutation.tolist()), widths=tuple(order.widths), rule=rule)

    def undone(self) -> OwnOrder:
        return replace(self.past[-1], past=self.past[:-1]) if self.past else self

    def order(self, plan: rose.OrderPlan) -> rose.Order:
        """For a sweep; raises RoseError as `rose.layer.order.make_order`."""
        if self.is_natural:
            return rose.make_order(plan, NATURAL)
        return rose.make_order(plan, rose.Order(torch.tensor(self.columns), self.widths, "custom"))

    @property
    def is_natural(self) -> bool:
        return self.columns == tuple(range(len(self.columns)))

    def says(self, plan: rose.OrderPlan, names: dict[str, str]) -> str:
        """The order in a few words; `names`: of rules."""
        if self.is_natural:
            return "natural order"
        if self.rule:
            return f"{names[self.rule]} order"
        visited = visited_blocks(plan, self.order(plan))
        blocks = [block for block in visited if block is not None]
        if len(blocks) < len(visited):
            return "mixed by hand"
        for block in sorted(blocks):
            rest = [other for other in blocks if other != block]
            if rest == sorted(rest):
                place = blocks.index(block)
                turns = {len(rest): "last", 0: "first", 1: "second"}
                return f"block {block} {turns.get(place, f'as number {place + 1}')}"
        return "blocks moved"


def read_order(text: str, plan: rose.OrderPlan) -> OwnOrder:
    """The order in a link: columns as in `read_columns`, with "/" between the blocks; RoseError if it does not fit."""
    parts = [part for part in text.split("/") if part]
    columns = read_columns(" ".join(parts), len(plan.column_loss))
    widths = tuple(len(_columns(part)) for part in parts)
    if len(parts) == 1:
        widths = block_widths(len(columns), plan.block_size)
    draft = OwnOrder(columns, widths, rule="")
    draft.order(plan)
    return draft


def write_order(draft: OwnOrder) -> str:
    """The text that `read_order` reads."""
    ends = accumulate(draft.widths)
    return "/".join(write_columns(draft.columns[e - w : e]) for e, w in zip(ends, draft.widths, strict=True))


def read_columns(text: str, columns: int) -> tuple[int, ...]:
    """Columns as numbers, or ranges such as 128-255, by spaces or commas; RoseError unless each is there once."""
    order = _columns(text, columns)
    if len(set(order)) < len(order):
        twice = next(column for column in order if order.count(column) > 1)
        raise rose.RoseError(f"Column {twice} is there twice; name each column once.")
    if missing := sorted(set(range(columns)) - set(order)):
        raise rose.RoseError(f"{len(missing)} of {columns} columns are missing, such as {missing[0]}; name each once.")
    return tuple(order)


def _columns(text: str, count: int = 10**9) -> list[int]:
    order: list[int] = []
    for part in filter(None, NUMBERS.split(text)):
        ends = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        if ends is None:
            raise rose.RoseError(f"{part[:40]!r} is no column number and no range such as 0-127; correct it.")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if max(first, last) >= count:
            raise rose.RoseError(f"{part} is beyond the last column, {count - 1}; columns are counted from 0.")
        order += range(first, last + 1) if last >= first else range(first, last - 1, -1)
        if len(order) > 2 * count:
            break
    return order


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
    """Shares of visited blocks, 0.7 or 70 % of their own weights, as parts of the layer's weights; or RoseError."""
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
