"""How to prune a layer: each setting declared once, for Python, command lines, recipes and forms; imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rose.errors import RoseError, check_choice
from rose.layer.pattern import (
    BLOCK_SIZE,
    BUDGETS,
    DAMPING,
    METHOD,
    SPARSITY,
    THRESHOLD,
    Grid,
    Pattern,
    parse_grid,
    parse_sparsity,
)
from rose.layer.registry import Value, check_order_name, get_method
from rose.spec import Real, Spec, Whole, setting, whole_number

SHARES_WITHIN = 0.005  # how far the sum of shares may be off, because people type rounded numbers


def as_sparsity(value: Any) -> str:
    """ "0.7" for 0.7, "0.70", ".7" and "70%" too, as all of them name the same runs; "2:4" stays."""
    pattern = parse_sparsity(value)
    if pattern.is_grouped:
        return str(pattern)
    ratio = float(pattern.ratio)
    # A percentage is divided by 100, which leaves "33.3%" inexact.
    return f"{ratio:.12g}" if isinstance(value, str) and "%" in value else repr(ratio).removesuffix(".0")


def _order(order: Any) -> Any:
    if isinstance(order, str) and order != "rose":  # two-level or natural, as the layer is columnar or not
        check_order_name(order)
    return order


def as_budget(budget: Any) -> str | tuple[float, ...] | None:
    """A budget by name, or its shares as numbers. Raises RoseError for anything else."""
    if budget is None:
        return None
    if isinstance(budget, str):
        check_choice("The budget", budget, BUDGETS)
        return budget
    try:
        shares = tuple(map(float, budget))
    except (TypeError, ValueError):
        raise RoseError(f"A budget is 'block', 'layer' or a list of shares, one a block, not {budget!r}.") from None
    if not all(0 <= share <= 1 for share in shares):  # also catches NaN
        raise RoseError("A share of a budget is a part of the layer's weights, a number from 0 to 1.")
    return shares


def check_shares(budget: str | Sequence[float] | None, pattern: Pattern) -> None:
    """Raises RoseError unless the shares of a budget, if it has any, sum to the sparsity."""
    if budget is None or isinstance(budget, str):
        return
    if pattern.is_grouped:
        raise RoseError(f"{pattern} fixes what every block gives up; choose a ratio for a budget of your own.")
    if abs(sum(budget) - pattern.ratio) > SHARES_WITHIN:
        raise RoseError(f"The shares of a budget must sum to the sparsity {pattern}, not to {sum(budget):.4g}.")


def _pairs(value: Any) -> Any:
    """Options as a mapping; a list of NAME=VALUE, as a command line has them, becomes one."""
    if isinstance(value, list | tuple):
        pairs = [str(text).partition("=") for text in value]
        for name, equals, value_text in pairs:
            if not (name.strip() and equals and value_text.strip()):
                raise RoseError(f"--option takes NAME=VALUE, not {name + equals + value_text!r}.")
        value = {name.strip(): value_text.strip() for name, _, value_text in pairs}
    if not isinstance(value, Mapping):
        return {} if value is None else value
    return {name: _number_in(each) if isinstance(each, str) else each for name, each in value.items()}


def _number_in(text: str) -> Value:
    """The number that a text holds; other texts as they are."""
    with suppress(ValueError):
        return int(text) if text.lstrip("-").isdecimal() else float(text)
    return text


def as_block_size(value: Any) -> Any:
    """Columns as a whole number, or attention heads as "2heads"; raises RoseError for another text."""
    if not isinstance(value, str):
        return value
    text = value.replace(" ", "").lower()
    if text.isdecimal():
        return int(text)
    match = re.fullmatch(r"(\d+|\d*\.\d+)heads?", text)
    if not match or not float(match[1]) > 0:
        raise RoseError(f"The block size must be a number of columns, or of heads such as 2heads, not {value!r}.")
    return f"{float(match[1]):g}heads"


def columns_of(block_size: int | str, head_width: int | None) -> int:
    """The columns of a block. "2heads" counts those of attention heads, (columns per head) `head_width`; raises
    RoseError where heads are unknown, or the columns are no whole number."""
    if not isinstance(block_size, str):
        return block_size
    if head_width is None:
        raise RoseError(f"A block size of {block_size} needs to know the heads of a model; give a number of columns.")
    columns = float(block_size.removesuffix("heads")) * head_width
    if columns % 1 or columns < 1:
        raise RoseError(f"{block_size} of {head_width} columns are no whole number of columns; give another number.")
    return int(columns)


Sparsity = Annotated[str, BeforeValidator(as_sparsity), setting('ratio, or N:M such as "2:4"')]
BlockSize = Annotated[
    Annotated[Whole, Field(ge=1)] | str,
    BeforeValidator(as_block_size),
    setting(
        "columns per block; 2heads: the columns of two attention heads",
        label="Block size, columns",
        unit="columns",
        metavar="COLUMNS",
    ),
]
Damping = Annotated[Real, setting("added to the Hessian's diagonal, as a share of its mean", ge=0)]
Method = Annotated[
    str, AfterValidator(lambda name: get_method(name).name), setting("a pruning method, see `rose models`")
]
Options = Annotated[
    dict[str, Value],
    BeforeValidator(_pairs),
    setting("an option of the method, see `rose models`", form="pairs", flag="option", metavar="NAME=VALUE"),
]
ORDER_HELP = "override the method's order: a name, or random:SEED"
BUDGET_HELP = (
    "override the method's budget: block, the same share of every block, or layer, one threshold for all weights of "
    "the layer"
)


class SharedSettings(Spec):
    """Settings that methods share when they are compared."""

    sparsity: Sparsity = str(SPARSITY)
    block_size: BlockSize = BLOCK_SIZE
    damping: Damping = DAMPING
    threshold: Annotated[Real, setting("a layer is columnar above this relative range", ge=0, le=1)] = THRESHOLD
    bits: Annotated[
        Literal[3, 4, 8] | None,
        BeforeValidator(whole_number),
        setting("round kept weights to this many bits, on a grid with an exact zero; see docs/shipping.md"),
    ] = None
    group: Annotated[
        Literal[32, 64, 128, "row"] | None,
        BeforeValidator(whole_number),
        setting("input columns that share a scale (default: 64)"),
    ] = None

    @cached_property
    def pattern(self) -> Pattern:
        """The sparsity, parsed."""
        return parse_sparsity(self.sparsity)

    @property
    def block_columns(self) -> int:
        """Columns per block; raises RoseError where the block size counts heads, see `in_columns`."""
        return columns_of(self.block_size, None)

    def in_columns(self, head_width: int | None) -> Self:
        """The same settings with a block size in columns, for a model with heads of this width."""
        columns = columns_of(self.block_size, head_width)
        return self if columns == self.block_size else self.changed(block_size=columns)

    @cached_property
    def grid(self) -> Grid | None:
        """The grid of kept weights; None leaves them as they are."""
        return parse_grid(self.bits, self.group) if self.bits or self.group else None

    @model_validator(mode="after")
    def _check_shared(self) -> Self:
        # An N:M group always fits its own M columns. Without a block size, layers have their own.
        size = self.block_size if isinstance(self.block_size, int) else max(1, self.pattern.of)
        self.pattern.check(self.pattern.of, size)
        _ = self.grid  # raises RoseError
        return self


class LayerSettings(SharedSettings):
    """How to prune one layer."""

    method: Method = METHOD
    # Besides a name, an order is an `Order` or a permutation of the columns, and a budget is shares. A share is the
    # part of the layer's weights that a block gives up, in the order visited; shares sum to the sparsity.
    order: Annotated[Any, AfterValidator(_order), setting(ORDER_HELP)] = None
    budget: Annotated[Any, BeforeValidator(as_budget), setting(BUDGET_HELP)] = None
    options: Options = Field(default_factory=dict)

    @cached_property
    def method_options(self) -> dict[str, Value]:
        """All options of the method, those given and the defaults of others."""
        overrides = self.order is not None or self.budget is not None
        rounds = self.grid is not None
        return get_method(self.method).check_request(
            self.pattern, options=self.options, orders=overrides, rounds=rounds
        )

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        if self.budget is not None:
            check_shares(self.budget, self.pattern)
        _ = self.method_options  # raises RoseError
        return self

    def describe(self) -> dict[str, Any]:
        """The settings for a report, as JSON values, without order and budget: each layer has its own."""
        head = {"method": self.method, "sparsity": str(self.pattern), "options": self.method_options}
        return head | self.pick(("block_size", "damping", "threshold")) | describe_grid(self.grid)


def describe_grid(grid: Grid | None) -> dict[str, Any]:
    """The grid's fields as JSON values; nothing where weights are not rounded."""
    return asdict(grid) if grid else {}
