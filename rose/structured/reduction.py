"""One part reduced to a shape: units chosen, the rest compensated, removed columns zero until the cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.statistics import InputStatistics
from rose.layer.target import Gap, target_error_with_bias
from rose.model.network.layers import PrunableLayer
from rose.rows import PartRecord
from rose.structured.methods import StructuredMethod, choose
from rose.structured.parts import CHANNELS, HEADS, Part, Shape
from rose.structured.problem import Problem, recover, relative_errors
from rose.structured.surgery import Cut, add_bias
from rose.verdicts import SPARSE
from rose.wording import percent


@dataclass(frozen=True)
class Solution:
    """A reduced part on the CPU: remaining units, output projection in the layer's dtype with zero columns, bias
    change, and its record."""

    kept: Tensor
    weight: Tensor
    bias: Tensor | None
    record: PartRecord


class Reduction:
    """The parts reduced so far, whose removed units are only zero; a context manager that restores the weights of a
    stopped run."""

    def __init__(self, in_files: bool = False) -> None:
        """`in_files`: the model is streamed, so weights need no restoring."""
        self.in_files = in_files
        self.cuts: list[Cut] = []
        self._originals: list[tuple[Any, nn.Parameter, nn.Parameter | None]] = []  # modules with weights and biases

    def note(self, part: Part, stay: Tensor, shape: Shape) -> None:
        """Notes a cut before its output projection is written, and keeps the old weight."""
        self.cuts.append(Cut(part, stay, shape))
        if not self.in_files:
            module: Any = part.output.module
            self._originals.append((module, module.weight, part.output.bias))
            module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)

    def write(self, part: Part, shape: Shape, solution: Solution, with_bias: bool) -> None:
        """Writes the output projection, and its bias if allowed."""
        self.note(part, solution.kept, shape)
        part.output.write(solution.weight)
        if with_bias:
            add_bias(part.output, solution.bias)

    def __enter__(self) -> Reduction:
        return self

    def __exit__(self, problem: type[BaseException] | None, *_: object) -> None:
        if problem is not None:
            for module, weight, bias in self._originals:
                module.weight, module.bias = weight, bias


def layers_read(method: StructuredMethod, parts: Iterable[Part]) -> list[PrunableLayer]:
    """The layers whose inputs are needed: output projections and, for some methods, the layers that make channels."""
    parts = list(parts)
    layers = {part.output.name: part.output for part in parts}
    if method.looks_at_inputs:
        layers |= {layer.name: layer for part in parts if part.kind == CHANNELS for layer in part.makers}
    return list(layers.values())


def sources_of(
    part: Part, method: StructuredMethod, size: Callable[[str], Tensor]
) -> tuple[tuple[Tensor, Tensor], ...]:
    """For methods that need it: rows of weights that make the channels, (units, in), and root mean square inputs,
    (in,); `size` gives the latter by layer name."""
    if not method.looks_at_inputs or part.kind == HEADS:
        return ()
    return tuple(
        (rows.layer.weight[rows.start : rows.start + part.shape.units].float(), size(rows.layer.name))
        for rows in part.rows
    )


def recovery_in(records: Iterable[PartRecord]) -> str:
    """The recovery of a run: "none" where no part could take its bias."""
    return next((record.recovery for record in records if record.recovery != "none"), "none")


def check_zeros(layer: PrunableLayer, recovery: str, target: str = "layer") -> None:
    """Raises RoseError where least squares would fill the zeros of a pruned output projection."""
    if recovery != "exact" and target != "dense":
        return
    if layer.weight.is_meta:  # of a skeleton
        return
    zeros = float(layer.weight.eq(0).float().mean())
    if SPARSE < zeros < 1:
        raise RoseError(
            f"{layer.name} is pruned, and recovery exact and target dense would fill its zeros "
            f"({percent(zeros, 0)} of its weights); slim the dense model and prune what is left, or choose "
            "recovery linear, bias or none."
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
    """Chooses the units of a part and compensates for the others; the model is not changed.

    `targets`: gaps to the dense model's output and their inputs, for calibration and held-out tokens, as available.
    """
    began = time.perf_counter()
    if recovery == "bias" and not problem.with_bias:
        recovery = "none"  # nothing is put back, and the record says so
    layer = part.output
    check_zeros(layer, recovery, "dense" if targets else "layer")
    dense = layer.weight.float()
    choice = choose(method, problem, shape)
    weight, bias = recover(problem, choice.kept, recovery)
    weight = weight.to(layer.weight.dtype)
    written = weight.float()
    unrecovered = dense.masked_fill(~problem.columns_of(choice.kept), 0)
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
        columns=dense.shape[1], tokens=problem.tokens, dead_columns=int(problem.second.diagonal().eq(0).sum()),
        damping=problem.used_damping, is_damping_raised=problem.used_damping > problem.damping,
    )  # fmt: skip
    return Solution(choice.kept, weight.cpu(), None if bias is None else bias.cpu(), record)
