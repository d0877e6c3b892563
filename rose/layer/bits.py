"""The bits of kept weights, and the input columns that share a scale; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rose.errors import RoseError
from rose.layer.defaults import BITS, GROUP, GROUPS


@dataclass(frozen=True)
class Grid:
    """Bits of a code, and input columns that share a scale: a number, or "row" for all of them.

    Raises:
        RoseError: other bits or groups than `BITS` and `GROUPS`.
    """

    bits: int
    group: int | str = GROUP

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise RoseError(f"Weights are rounded to {_listed(BITS)} bits, not to {self.bits!r}.")
        if self.group not in GROUPS:
            raise RoseError(f"The group must be {_listed(GROUPS)} columns that share a scale, not {self.group!r}.")

    @property
    def most(self) -> int:
        """The highest code."""
        return 2 ** (self.bits - 1) - 1

    @property
    def least(self) -> int:
        """The lowest code."""
        return -self.most if self.bits == 8 else -self.most - 1

    def width(self, columns: int) -> int:
        """Columns of a group in a layer with this number; raises RoseError where groups do not fill its rows."""
        width = columns if self.group == "row" else int(self.group)
        if columns % width:
            fitting = [str(group) for group in GROUPS if group == "row" or columns % int(group) == 0]
            raise RoseError(
                f"Groups of {width} columns do not divide the {columns} input columns of this layer; "
                f"choose the group {_listed(fitting)}, or leave the layer out."
            )
        return width

    def __str__(self) -> str:
        return f"{self.bits} bits, " + ("a scale a row" if self.group == "row" else f"groups of {self.group}")


def parse_grid(bits: int | str | None, group: int | str | None = None) -> Grid | None:
    """The grid of these words, such as 4 and "64"; None without bits. Raises RoseError: unknown bits or groups, or a
    group without bits."""
    if bits is None:
        if group is not None:
            raise RoseError("A group shares the scale of rounded weights; give bits too, or leave the group out.")
        return None
    numbers = {str(one): one for one in (*BITS, *GROUPS)}
    words = [numbers.get(str(one), one) for one in (bits, Grid.group if group is None else group)]
    return Grid(words[0], words[1])  # type: ignore[arg-type]  # which it checks


def _listed(names: tuple[int | str, ...] | list[str]) -> str:
    *first, last = map(str, names)
    return f"{', '.join(first)} or {last}" if first else last
