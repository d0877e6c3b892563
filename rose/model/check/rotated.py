"""Heads that were rotated before pruning: values and output projection of a checkpoint are then in another basis than
the dense model's, which changes no output; see `rose.layer.basis`.

The rotation is found by its effect: R of a group of heads brings RᵀW_v and W_o R nearest to the kept weights
(orthogonal Procrustes, Schönemann 1966; removed weights are filled in by the last R, and so say nothing). It is
believed where kept weights then agree, and did not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor, nn

from rose.layer.change import UNLIKE
from rose.model.network.heads import ValueHeads, twin_of
from rose.model.network.layers import PrunableLayer

SAMPLE = 4096  # weights that tell whether a layer is another one's
BELIEVED = 2 * UNLIKE  # cosine of kept weights with the rotated dense ones, above which they are the same
FILLED = 40  # times that removed weights are filled in; at 70 % each leaves 0.7 of the error
Pair = tuple[PrunableLayer, PrunableLayer]  # of the dense model and of the other one


@dataclass(frozen=True)
class Aligned:
    """A dense decoder block in the basis of another one."""

    module: nn.Module  # a copy that shares all that was not rotated
    pairs: list[Pair]  # its layers beside the other block's
    outputs: tuple[str, ...]  # names of the output projections whose heads were rotated
    layers: tuple[str, ...]  # of these and of their values


def sample(weight: Tensor) -> Tensor:
    """Some weights, always from the same places of a shape; float32 on the CPU."""
    flat = weight.reshape(-1)
    places = torch.linspace(0, len(flat) - 1, min(SAMPLE, len(flat)), dtype=torch.float64).long()
    return torch.nan_to_num(flat[places.to(flat.device)].float().cpu())


@torch.no_grad()
def align(block: nn.Module, pairs: Sequence[Pair], width: int | None) -> Aligned | None:
    """The dense block with its heads rotated as in the other one; None where none were. `width`: columns of a head."""
    plain = [pair for pair in pairs if not pair[0].is_expert]
    strange = set()  # layers whose kept weights have nothing to do with the dense ones
    for before, after in plain:
        dense, pruned = sample(before.weight), sample(after.weight)
        if float(_cosine(dense, pruned)) < UNLIKE and pruned.any():
            strange.add(before.name)
    if not width or len(strange) == len(plain):
        return None  # another model's block: a rotation leaves all but values and outputs as they were
    rotated: list[tuple[ValueHeads, Tensor]] = []
    for values, output in combinations(plain, 2):  # in the order of modules
        if output[0].name in strange and (heads := _heads(output, values, width)) is not None:
            rotations = _rotations(heads, output[1].weight, values[1].weight)
            if rotations is not None:
                rotated.append((heads, rotations))
                strange.remove(output[0].name)
    if not rotated:
        return None
    twin = twin_of(block)
    for heads, rotations in rotated:
        heads.rotate_in(twin, rotations)
    copies = {id(pair[0]): replace(pair[0], module=twin.get_submodule(pair[0].projection)) for pair in plain}
    outputs = tuple(heads.output.name for heads, _ in rotated)
    layers = (*outputs, *(heads.values.name for heads, _ in rotated))
    return Aligned(twin, [(copies.get(id(before), before), after) for before, after in pairs], outputs, layers)


def _cosine(dense: Tensor, pruned: Tensor, dim: int = 0) -> Tensor:
    """Of the nonzeros of `pruned` with the dense weights there."""
    return torch.cosine_similarity(torch.where(pruned == 0, 0, dense), pruned, dim=dim)


def _heads(output: Pair, values: Pair, width: int) -> ValueHeads | None:
    """The heads of an output projection, if values are those rows of the other layer that look strange; else None."""
    before, after = (layer.weight.float() for layer in values)
    if output[0].weight.shape[1] % width or len(before) % width:
        return None
    alike = _cosine(before.reshape(len(before) // width, -1), after.reshape(len(after) // width, -1), dim=1)
    starts = [width * int(group) for group in (alike < BELIEVED).nonzero()]
    count = output[0].weight.shape[1] // width
    if not starts or count % len(starts):
        return None
    return ValueHeads(output[0], values[0], width, tuple(starts[head * len(starts) // count] for head in range(count)))


def _rotations(heads: ValueHeads, output: Tensor, values: Tensor) -> Tensor | None:
    """R of each group of heads, (groups, width, width) float64; None where no rotation explains the pruned weights."""
    layout, width = heads.layout, heads.width
    rows = torch.cat([torch.arange(start, start + width) for start in sorted(set(heads.rows))])
    group = torch.tensor(layout.group)

    def by_group(of_output: Tensor, of_values: Tensor) -> Tensor:
        """All that R turns, (groups, vectors, width): a group's rows of values as columns, and its heads' columns."""
        columns = of_output.double().unflatten(1, (-1, width)).permute(1, 0, 2)  # (heads, out, width)
        joined = [columns[group == number].flatten(0, 1) for number in range(layout.groups)]
        turned = of_values.double()[rows.to(of_values.device)].unflatten(0, (-1, width)).mT
        return torch.stack([torch.cat(parts) for parts in zip(turned, joined, strict=True)])

    dense, pruned = by_group(heads.output.weight, heads.values.weight), by_group(output, values)
    if not pruned.isfinite().all():
        return None
    removed, filled = pruned == 0, pruned
    for step in range(FILLED):
        first, _, second = torch.linalg.svd(dense.mT @ filled)
        rotations = first @ second
        turned = dense @ rotations
        if step == 0 and float(_cosine(turned.flatten(), pruned.flatten())) < UNLIKE:
            return None
        filled = torch.where(removed, turned, pruned)
    return rotations if float(_cosine(turned.flatten(), pruned.flatten())) >= BELIEVED else None
