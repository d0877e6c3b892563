"""Weights in the types of GGUF files: f16, and blocks of 32 codes with a scale, q8_0 and q4_0."""

from __future__ import annotations

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from rose.errors import RoseError
from rose.layer.grid import coarsest_grid

TYPES = {"f16": Type.F16, "q8_0": Type.Q8_0, "q4_0": Type.Q4_0}
CODES = {Type.Q8_0: 8, Type.Q4_0: 4}  # the most bits that a code of the type has
BLOCK = 32


def parse_type(name: str) -> Type:
    """Raises RoseError for another type than those that keep zeros."""
    if name not in TYPES:
        raise RoseError(
            f"The type must be {', '.join(TYPES)}, not {name}: others, such as q4_1 and the k-quants, store an offset, "
            "and removed weights would not stay zero."
        )
    return TYPES[name]


def in_blocks(weight: Tensor, kind: Type) -> tuple[np.ndarray, bool]:
    """A weight matrix in q8_0 or q4_0: bytes (out, bytes a row), and whether it is exact.

    Weights on a grid whose groups are whole blocks are stored by their codes and scales; others are rounded.
    """
    coded = coarsest_grid(weight)
    if coded is None or coded.grid.bits > CODES[kind]:
        return gguf.quantize(np.ascontiguousarray(weight.float().numpy()), kind), False
    rows, columns = weight.shape
    scales = coded.scales.repeat_interleave(columns // BLOCK // coded.scales.shape[1], dim=1)
    steps = scales.half().numpy()[..., None].view(np.uint8)  # (rows, blocks, 2)
    codes = coded.codes.view(rows, -1, BLOCK).numpy()
    if kind == Type.Q4_0:
        low, high = np.split((codes + 8).astype(np.uint8), 2, axis=2)
        codes = low | high << 4
    return np.concatenate([steps, codes.view(np.uint8)], axis=2).reshape(rows, -1), True


def in_floats(weight: Tensor) -> tuple[np.ndarray, Type]:
    """A tensor in the narrowest of f16, bf16 and f32 that holds it exactly, bytes and type."""
    for kind, dtype in ((Type.F16, torch.float16), (Type.BF16, torch.bfloat16)):
        if torch.equal(weight.to(dtype).float(), weight.float()):
            return as_type(weight, kind), kind
    return as_type(weight, Type.F32), Type.F32


def as_type(weight: Tensor, kind: Type) -> np.ndarray:
    """Raises RoseError for weights that are too large for f16."""
    values = weight.float().contiguous()
    if kind == Type.F16:
        values = values.half()
        if not bool(values.isfinite().all()):
            raise RoseError("Some weights are too large for f16, which ends at 65504; pack the folder instead.")
        return values.numpy()
    if kind == Type.BF16:
        return values.bfloat16().view(torch.uint8).numpy()
    return values.numpy()
