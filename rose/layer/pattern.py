"""Sparsity patterns: an unstructured ratio, or N:M (at most `keep` nonzeros in every `of` input columns)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rose.errors import RoseError
from rose.given import is_number, is_whole


@dataclass(frozen=True)
class Pattern:
    """The share of weights to remove, `ratio`; under N:M each `of` columns keep `keep`, and both are 0 when
    unstructured. Raises RoseError for a ratio outside 0..1, or N and M that contradict it."""

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
        """How many of `size` weights go: round(ratio · size)."""
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
    wrong = RoseError(f"Sparsity must be a ratio from 0 to 1 such as 0.7, or N:M such as 2:4, not {sparsity!r}.")
    if isinstance(sparsity, str) and ":" in sparsity:
        keep_text, _, of_text = sparsity.partition(":")
        if not (keep_text.strip().isdecimal() and of_text.strip().isdecimal()):
            raise wrong
        keep, of = int(keep_text), int(of_text)
        if of < 1 or keep > of:
            raise wrong
        return Pattern(ratio=1 - keep / of, keep=keep, of=of)
    if not isinstance(sparsity, str) and not is_number(sparsity):
        raise wrong
    try:
        text = sparsity.strip() if isinstance(sparsity, str) else sparsity
        ratio = float(text[:-1]) / 100 if isinstance(text, str) and text.endswith("%") else float(text)
    except ValueError:
        raise wrong from None
    if not 0 <= ratio <= 1:  # also catches NaN
        raise wrong
    return Pattern(ratio=ratio)
