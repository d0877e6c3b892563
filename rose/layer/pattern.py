"""Sparsity patterns, grids of few bits, and the defaults of all settings; imports no torch."""

import math
from dataclasses import dataclass

from rose.errors import RoseError, is_number, is_whole

METHOD = "rose_admm"
"""The default method of whatever prunes a whole model. Among methods that take at most twice SparseGPT's time, it has
the lowest perplexity. `python -m rose compare` measures it; see docs/results.md."""
SPARSITY = 0.7
BLOCK_SIZE = 128  # columns, as in SparseGPT's and ROSE's programs
DAMPING = 0.01  # relative to the mean of diag(H), as in theirs
THRESHOLD = 0.5  # a layer is columnar if its relative range is above this
BUDGETS = ("block", "layer")
BITS = (3, 4, 8)
GROUPS = (32, 64, 128, "row")  # input columns that share a scale
GROUP = 64


@dataclass(frozen=True)
class Pattern:
    """The share of weights to remove, `ratio`. Under N:M `keep` of every `of` columns stay; both are 0 otherwise.
    Raises RoseError for a ratio outside 0..1, or N and M that contradict it."""

    ratio: float
    keep: int = 0
    of: int = 0

    def __post_init__(self) -> None:
        numbers = is_number(self.ratio) and is_whole(self.keep) and is_whole(self.of)
        grouped = (
            numbers and 0 <= self.keep <= self.of and self.of > 0 and math.isclose(self.ratio, 1 - self.keep / self.of)
        )
        if not (numbers and 0 <= self.ratio <= 1 and (grouped or self.keep == self.of == 0)):  # also catches NaN
            raise RoseError(f"{self!r} is no sparsity; give a ratio from 0 to 1, or N:M as rose.prune_layer takes it.")

    @property
    def is_grouped(self) -> bool:
        """True for N:M."""
        return self.of > 0

    def count(self, size: int) -> int:
        """The number of weights to remove from `size`: round(ratio · size)."""
        return round(self.ratio * size)

    def check(self, columns: int, block_size: int) -> None:
        """Raises RoseError where this pattern does not fit the columns and blocks."""
        if not is_whole(block_size) or block_size < 1:
            raise RoseError(f"The block size must be a whole number of columns, at least 1, not {block_size!r}.")
        if not self.is_grouped:
            return
        if columns % self.of:
            raise RoseError(
                f"{self} needs a number of input columns divisible by {self.of}, but this layer has {columns}; "
                "prune it with a ratio, or leave it out."
            )
        if block_size % self.of:
            raise RoseError(
                f"{self} needs a block size divisible by {self.of}, not {block_size}; "
                f"try {max(1, block_size // self.of) * self.of}."
            )

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}" if self.is_grouped else f"{self.ratio:g}"


def parse_sparsity(sparsity: float | str | Pattern) -> Pattern:
    """Reads 0.7, "0.7", "70%" or "2:4". Raises RoseError: anything else, a ratio outside 0..1, or N:M with N > M or M <
    1."""
    if isinstance(sparsity, Pattern):
        return sparsity
    wrong = f"Sparsity must be a ratio from 0 to 1 such as 0.7, or N:M such as 2:4, not {sparsity!r}."
    if isinstance(sparsity, str) and ":" in sparsity:
        keep_text, _, of_text = sparsity.partition(":")
        if not (keep_text.strip().isdecimal() and of_text.strip().isdecimal()):
            raise RoseError(wrong)
        keep, of = int(keep_text), int(of_text)
        if of < 1 or keep > of:
            raise RoseError(wrong)
        return Pattern(ratio=1 - keep / of, keep=keep, of=of)
    if not isinstance(sparsity, str) and not is_number(sparsity):
        raise RoseError(wrong)
    try:
        text = sparsity.strip() if isinstance(sparsity, str) else sparsity
        ratio = float(text[:-1]) / 100 if isinstance(text, str) and text.endswith("%") else float(text)
    except ValueError:
        raise RoseError(wrong) from None
    if not 0 <= ratio <= 1:  # also catches NaN
        raise RoseError(wrong)
    return Pattern(ratio=ratio)


@dataclass(frozen=True)
class Grid:
    """Bits of a code, and input columns that share a scale: a number, or "row" for all of them. Raises RoseError: other
    bits or groups than `BITS` and `GROUPS`."""

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
        """Columns of a group in a layer of `columns`; raises RoseError if groups do not fill its rows."""
        width = columns if self.group == "row" else int(self.group)
        if columns % width:
            fitting = [str(group) for group in GROUPS if group == "row" or columns % int(group) == 0]
            raise RoseError(
                f"Groups of {width} columns do not divide the {columns} input columns of this layer; "
                f"choose the group {_listed(fitting)}, or leave the layer out."
            )
        return width

    @property
    def brief(self) -> str:
        """ "4 bits", for names of runs that share a group."""
        return f"{self.bits} bits"

    def __str__(self) -> str:
        return f"{self.brief}, " + ("a scale a row" if self.group == "row" else f"groups of {self.group}")


def parse_grid(bits: int | str | None, group: int | str | None = None) -> Grid | None:
    """Reads a grid, such as 4 and "64"; None without bits. Raises RoseError: unknown bits or groups, or a
    group without bits."""
    if bits is None:
        if group is not None:
            raise RoseError("A group shares the scale of rounded weights; give bits too, or leave the group out.")
        return None
    numbers = {str(value): value for value in (*BITS, *GROUPS)}
    words = [numbers.get(str(value), value) for value in (bits, Grid.group if group is None else group)]
    return Grid(words[0], words[1])  # type: ignore[arg-type]  # which it checks


def _listed(names: tuple[int | str, ...] | list[str]) -> str:
    *first, last = map(str, names)
    return f"{', '.join(first)} or {last}" if first else last
