"""Parts of layers that do not follow the dense weights: in sentences, and whether they may be lawful."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rose.layer import agreement
from rose.layer.agreement import COLUMN, ROW, Misfit
from rose.model.check.inputs import LayerInputs
from rose.wording import count, number, sentence, whole

SHOWN = 3  # parts of a layer that a reason names
GAIN = 0.3  # of dense weights put back, above which what moved them is no compensation
LAWFUL = "This may be lawful, as compensation changes few rows and columns much; a check with tokens tells."


def wrong_parts(misfits: Sequence[Misfit]) -> list[Misfit]:
    """Those that no compensation explains."""
    return [part for part in misfits if not part.may_be_lawful]


def with_inputs(
    misfits: Sequence[Misfit], weight: Tensor, after: Tensor, streams: Sequence[LayerInputs]
) -> tuple[Misfit, ...]:
    """Without what is lawful by the inputs of a layer: weights that the dense ones would be no improvement on.

    Args:
        misfits: of V, `after`, beside W, `weight`, (out, in) each.
        streams: calibration inputs, and held-out ones where there are any.
    """
    wrong = (part for part in misfits if not part.may_be_lawful or _gain(part, weight, after, streams) > GAIN)
    return tuple(replace(part, may_be_lawful=False) for part in wrong)


def _gain(part: Misfit, weight: Tensor, after: Tensor, streams: Sequence[LayerInputs]) -> float:
    """How far the error falls when dense weights are put back into a part of V, by the energy of that change δ:

        2 ⟨δ, GᵀX_p + (W − V) H⟩ / tr(δ H δᵀ) − 1

    It is −1 where kept weights are fitted to the inputs, and near 1 where they are changed by chance. The least over
    streams and targets.
    """
    rows, columns = _slice(part.rows), _slice(part.columns)
    difference, pruned = weight[rows].float() - after[rows].float(), after[rows, columns]
    change = torch.where(pruned == 0, 0, difference[:, columns])
    gains = []
    for inputs in streams:
        hessian = inputs.statistics.hessian
        energy = (change @ hessian[columns, columns] * change).sum().clamp_min(1e-30)
        missed = difference @ hessian[:, columns]
        for gap in (inputs.gap, inputs.stream) if inputs.stream else (inputs.gap,):
            target = gap.of(weight).cross[rows, columns]
            gains.append(2 * float((change * (missed + target)).sum() / energy) - 1)
    return min(gains)


def says_parts(misfits: Sequence[Misfit]) -> str:
    """A sentence for each of the first parts, and how many there are besides."""
    texts = [says_part(part) for part in misfits[:SHOWN]]
    left = len(misfits) - len(texts)
    return " ".join([*texts, *([f"{whole(left)} more parts are wrong."] if left > 1 else [])])


def says_part(part: Misfit) -> str:
    """What happened to a part, as a sentence."""
    return f"{_place(part)}: {_event(part)}."


def _slice(ends: tuple[int, int]) -> slice:
    return slice(ends[0], ends[1] + 1)


def _span(axis: str, ends: tuple[int, int]) -> str:
    return f"{axis} {ends[0]}" if ends[0] == ends[1] else f"{axis}s {ends[0]} to {ends[1]}"


def _place(part: Misfit) -> str:
    if part.axis in (ROW, COLUMN):
        return sentence(_span(part.axis, part.rows if part.axis == ROW else part.columns))
    return sentence(f"{_span('row', part.rows)}, {_span('column', part.columns)}")


def _event(part: Misfit) -> str:
    first, last = part.rows if part.axis == ROW else part.columns
    weights = "its only kept weight" if part.kept == 1 else f"all {whole(part.kept)} kept weights"
    if part.kind == agreement.NEGATED:
        some = f"{whole(part.opposite)} of {whole(part.kept)} kept weights"
        has = "has" if part.kept == 1 else "have"
        return f"{weights if part.opposite == part.kept else some} {has} the opposite sign"
    if part.kind in (agreement.OTHERS, agreement.OTHERS_NEGATED):
        assert part.source is not None
        backward = ", negated" if part.kind == agreement.OTHERS_NEGATED else ""
        return f"the weights are those of {_span(part.axis, (part.source, part.source + last - first))}{backward}"
    if part.kind == agreement.SHIFTED:
        across = ("right", "left", "column") if part.axis == ROW else ("down", "up", "row")
        return f"the weights are shifted {across[part.shift < 0]} by {count(abs(part.shift), across[2])}"
    if part.kind == agreement.COUNT:
        each = " each" if last > first else ""
        size = whole(part.kept // (last - first + 1))
        return f"{size} weights are kept{each}, and {whole(int(part.value))} in other rows"
    if part.kind == agreement.ABSURD:
        return f"the weight is {number(part.value)}, and no dense weight of this layer is above {number(part.dense)}"
    rows = "these rows are" if last > first else "the row is"
    texts = {
        agreement.REVERSED: "the weights stand in reverse order",
        agreement.CONSTANT: f"{weights} have the same value {number(part.value)}",
        agreement.SCALED: f"the weights are {number(part.factor)} times as large as those of the rest of the layer",
        agreement.EMPTY: f"no weight is left, though {rows} not small in the dense model",
        agreement.CHANGED: f"the weight is {number(part.value)}, and {number(part.dense)} in the dense model",
    }
    return texts.get(part.kind, f"{weights} have nothing to do with the dense ones (cosine {part.cosine:.2f})")
