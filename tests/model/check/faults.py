"""What other programs do to weights, in plain torch; a fault changes `size` rows or columns from `at` in place."""

from collections.abc import Callable

import torch
from torch import Tensor

Plant = Callable[[Tensor, int, int, torch.Generator], None]


def _rows(change: Callable[[Tensor, torch.Generator], Tensor]) -> Plant:
    """Changes rows; what was removed stays removed."""

    def plant(weight: Tensor, at: int, size: int, generator: torch.Generator) -> None:
        part = weight[at : at + size]
        part.copy_(torch.where(part == 0, 0, change(part.clone(), generator)))

    return plant


def _moved(move: Callable[[Tensor, Tensor, torch.Generator], Tensor]) -> Plant:
    """Moves weights with their zeros: `move` gets the matrix and the numbers of the rows."""

    def plant(weight: Tensor, at: int, size: int, generator: torch.Generator) -> None:
        numbers = torch.arange(at, at + size)
        weight[numbers] = move(weight.clone(), numbers, generator)

    return plant


def _noise(part: Tensor, generator: torch.Generator) -> Tensor:
    return part[part != 0].std() * torch.randn(part.shape, generator=generator)


def _swap(weight: Tensor, at: int, size: int, generator: torch.Generator) -> None:
    other = (at + len(weight) // 2) % (len(weight) - size + 1)
    first, second = weight[at : at + size].clone(), weight[other : other + size].clone()
    weight[other : other + size], weight[at : at + size] = first, second


def _shuffle(weight: Tensor, numbers: Tensor, generator: torch.Generator) -> Tensor:
    return torch.stack([weight[row, torch.randperm(weight.shape[1], generator=generator)] for row in numbers])


def _duplicate(weight: Tensor, numbers: Tensor, _generator: torch.Generator) -> Tensor:
    return weight[(numbers[0] + len(weight) // 2) % len(weight)].expand(len(numbers), -1)


ROWS: dict[str, Plant] = {
    "negated": _rows(lambda part, _: -part),
    "times 2": _rows(lambda part, _: 2 * part),
    "times 0.5": _rows(lambda part, _: part / 2),
    "times 1.25": _rows(lambda part, _: 1.25 * part),
    "times 10": _rows(lambda part, _: 10 * part),
    "times 0.1": _rows(lambda part, _: part / 10),
    "noise": _rows(_noise),
    "noise of half the size added": _rows(lambda part, generator: part + _noise(part, generator) / 2),
    "constant": _rows(lambda part, _: part[part != 0].abs().mean().expand_as(part)),
    "signs at random": _rows(lambda part, g: part * (torch.randint(0, 2, part.shape, generator=g) * 2 - 1)),
    "zero": _rows(lambda part, _: 0 * part),
    "swapped": _swap,
    "duplicated": _moved(_duplicate),
    "those of the row before": _moved(lambda weight, numbers, _: weight[numbers - 1]),
    "shifted by one column": _moved(lambda weight, numbers, _: weight[numbers].roll(1, 1)),
    "shifted by 32 columns": _moved(lambda weight, numbers, _: weight[numbers].roll(32, 1)),
    "reversed": _moved(lambda weight, numbers, _: weight[numbers].flip(1)),
    "shuffled": _moved(_shuffle),
    "rows in reverse order": _moved(lambda weight, numbers, _: weight[numbers.flip(0)]),
}
ROWS_ONLY = {
    *("times 0.5", "times 1.25", "times 0.1", "noise of half the size added", "zero", "shifted by 32 columns"),
    *("reversed", "rows in reverse order"),
}


def _of_columns(plant: Plant) -> Plant:
    return lambda weight, at, size, generator: plant(weight.T, at, size, generator)


COLUMNS = {name: _of_columns(plant) for name, plant in ROWS.items() if name not in ROWS_ONLY}


def _tile(change: str) -> Callable[[Tensor, int, int, int, int, torch.Generator], None]:
    def plant(weight: Tensor, row: int, column: int, rows: int, columns: int, generator: torch.Generator) -> None:
        part = weight[row : row + rows, column : column + columns]
        if change == "that of the next tile":
            part.copy_(weight.roll(-columns, 1)[row : row + rows, column : column + columns].clone())
        else:
            ROWS[change](part, 0, rows, generator)

    return plant


TILES = {
    name: _tile(name)
    for name in ("negated", "noise", "times 2", "constant", "signs at random", "that of the next tile")
}


def compensate(weight: Tensor, ratio: float = 0.7) -> Tensor:
    """A pruned weight as programs leave it: the smallest are zero, the others have moved."""
    order = weight.abs().flatten().argsort()
    pruned = weight * (1 + 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    pruned.view(-1)[order[: round(ratio * len(order))]] = 0
    return pruned


def q4_0(weight: Tensor) -> Tensor:
    """Symmetric blocks of 32, as in GGUF: zero stays zero."""
    blocks = weight.reshape(-1, 32)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    step = (largest / -8).half().float()
    levels = torch.where(step == 0, 0, blocks / step).add(8.5).floor().clamp(0, 15) - 8
    return (levels * step).reshape(weight.shape)


def q4_1(weight: Tensor) -> Tensor:
    """Blocks of 32 with an offset: nearly no zero stays zero."""
    blocks = weight.reshape(-1, 32)
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    step, low = ((high - low) / 15).half().float(), low.half().float()
    levels = torch.where(step == 0, 0, (blocks - low) / step).add(0.5).floor().clamp(0, 15)
    return (levels * step + low).reshape(weight.shape)
