"""One part reduced to a shape: units chosen, the rest compensated, removed columns set to zero until the cut."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor, nn

from rose.layer.statistics import InputStatistics
from rose.layer.target import Gap, target_error_with_bias
from rose.structured.methods import StructuredMethod, choose
from rose.structured.parts import HEADS, Part, Shape
from rose.structured.problem import Problem, recover, relative_errors
from rose.structured.surgery import add_bias

Original = tuple[Any, nn.Parameter, nn.Parameter | None]  # a module with its weight and bias


@dataclass(frozen=True)
class PartRecord:
    """One part of a decoder block in numbers; errors are relative to the mean square of the dense projection's output.

    `unrecovered_error` is that of the kept columns as they were; `target_error` and `held_out_target_error` are those
    against the dense model's output, where that was the target. `units` counts query heads or channels, `swapped` those
    that came back in place of others.
    """

    block_index: int
    part: str
    layer: str
    method: str
    recovery: str
    units: int
    kept_units: int
    groups: int
    kept_groups: int
    parameters: int
    kept_parameters: int
    relative_error: float
    unrecovered_error: float
    held_out_error: float | None
    swapped: int
    seconds: float
    target_error: float | None = None
    held_out_target_error: float | None = None


def parts_table(records: Sequence[PartRecord]) -> pd.DataFrame:
    """One row per record; the columns are there even when no record is."""
    names = [entry.name for entry in dataclasses.fields(PartRecord)]
    table = pd.DataFrame([dataclasses.asdict(record) for record in records], columns=names)
    return table.astype(dict.fromkeys(("held_out_error", "target_error", "held_out_target_error"), float))


@dataclass(frozen=True)
class Solution:
    """A part reduced: units that stay, the output projection in the layer's dtype, what its bias gains; in numbers.

    Columns of `weight` that belong to removed units are zero.
    """

    kept: Tensor
    weight: Tensor
    bias: Tensor | None
    record: PartRecord


def sources_of(
    part: Part, method: StructuredMethod, size: Callable[[str], Tensor]
) -> tuple[tuple[Tensor, Tensor], ...]:
    """What makes a part's channels, for methods that look there: rows of weights, (units, in), and input sizes, (in,).

    Args:
        size: the root mean square of every input of the layer of this name.
    """
    if not method.looks_at_inputs or part.kind == HEADS:
        return ()
    return tuple(
        (rows.layer.weight[rows.start : rows.start + part.shape.units].float(), size(rows.layer.name))
        for rows in part.rows
    )


def solve_part(
    part: Part,
    shape: Shape,
    problem: Problem,
    method: StructuredMethod,
    recovery: str,
    held_out: InputStatistics | None = None,
    targets: Sequence[tuple[Gap, InputStatistics]] = (),
) -> Solution:
    """Chooses the units of a part and compensates for the others; nothing is changed yet.

    Args:
        part, shape: what to reduce, and to what.
        problem: of its output projection, see `make_problem`.
        held_out: further inputs, to measure errors on.
        targets: the gap to the dense model's output with the inputs that it is of, of calibration and of held-out
            tokens, as far as there are any.

    Raises:
        RoseError: statistics that cannot be inverted.
    """
    began = time.perf_counter()
    layer = part.output
    dense = layer.weight.float()
    choice = choose(method, problem, shape)
    weight, bias = recover(problem, choice.kept, recovery)
    weight = weight.to(layer.weight.dtype)
    written = weight.float()
    unrecovered = dense.masked_fill(~problem.mask(choice.kept), 0)
    after, before = relative_errors(dense, problem.second, problem.mean, [(written, bias), (unrecovered, None)])
    held = None
    if held_out is not None:
        second = held_out.hessian / held_out.total_weight
        (held,) = relative_errors(dense, second, held_out.mean, [(written, bias)])
    missed = [target_error_with_bias(dense, written, bias, gap, inputs) for gap, inputs in targets]
    record = PartRecord(
        block_index=part.block_index, part=part.kind, layer=layer.name, method=method.name,
        recovery=recovery, units=part.shape.units, kept_units=shape.units, groups=part.shape.groups,
        kept_groups=shape.groups, parameters=part.parameters(part.shape), kept_parameters=part.parameters(shape),
        relative_error=after, unrecovered_error=before, held_out_error=held,
        swapped=choice.swapped,
        seconds=time.perf_counter() - began, target_error=missed[0] if missed else None,
        held_out_target_error=missed[1] if len(missed) > 1 else None,
    )  # fmt: skip
    return Solution(choice.kept, weight, bias, record)


def renew(part: Part, originals: list[Original]) -> None:
    """Gives the output projection a new parameter; `originals` gets it as it was, for `put_back`."""
    module: Any = part.output.module
    originals.append((module, module.weight, getattr(module, "bias", None)))
    module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)


def write_part(part: Part, solution: Solution, *, with_bias: bool) -> None:
    """Writes the output projection, and its bias where it may have one."""
    part.output.write(solution.weight)
    if with_bias:
        add_bias(part.output, solution.bias)


def put_back(originals: Sequence[Original]) -> None:
    """Undoes what was written since `renew`."""
    for module, weight, bias in originals:
        module.weight, module.bias = weight, bias
