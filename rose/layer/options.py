"""Options of a single pruning method: allowed values and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rose.errors import RoseError
from rose.given import check_choice, is_number

Value = float | str


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes:
        default: also the type: a text with choices, an int for whole numbers, else a float.
        summary: one phrase for people.
        choices: allowed texts; empty for a number.
        low, high: allowed range of a number, both included.
    """

    default: Value
    summary: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0

    def read(self, name: str, value: Value) -> Value:
        """The value in the option's own type; numbers may come as text, as from a command line. Raises RoseError: not a
        choice, not a number, or out of range."""
        if self.choices:
            check_choice(f"The option {name}", value, self.choices)
            return value
        whole = isinstance(self.default, int)
        wrong = RoseError(
            f"The option {name} must be a {'whole ' if whole else ''}number from {self.low:g} to {self.high:g}, "
            f"not {value!r}."
        )
        if not isinstance(value, str) and not is_number(value):
            raise wrong
        try:
            number = float(value)
        except ValueError:
            raise wrong from None
        if not self.low <= number <= self.high or (whole and number != int(number)):  # NaN fails the first
            raise wrong
        return int(number) if whole else number


def complete_options(
    label: str, declared: Mapping[str, Option], values: Mapping[str, Value] | None
) -> dict[str, Value]:
    """Every known option of a method, with its value or default; raises RoseError for an unknown option."""
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        raise RoseError(f"Options are given by name, such as {{'effort': 2}}, not as {values!r}.")
    unknown = [name for name in values if name not in declared]
    if unknown:
        has = f"it has {', '.join(declared)}" if declared else "it has none"
        raise RoseError(f"{label} has no option {unknown[0]!r}; {has}.")
    return {name: option.read(name, values.get(name, option.default)) for name, option in declared.items()}
