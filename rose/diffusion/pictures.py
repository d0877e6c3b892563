"""Pictures as a sheet, for files and screens."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rose.output import write_file

GAP = 2  # pixels between pictures
SCALE = 4  # sheet pixels for each picture pixel, by side


def make_sheet(rows: Sequence[Tensor]) -> np.ndarray:
    """One row of pictures for each tensor (n, channels, height, width) between −1 and 1, padded with white: (height,
    width[, 3]) uint8; one channel is grey."""
    parts = [torch.nn.functional.pad(row, (0, GAP, 0, GAP), value=1.0) for row in rows]
    lines = [torch.cat(list(part), dim=-1) for part in parts]
    widest = max(line.shape[-1] for line in lines)
    lines = [torch.nn.functional.pad(line, (0, widest - line.shape[-1]), value=1.0) for line in lines]
    sheet = torch.cat(lines, dim=-2).float().clamp(-1, 1)
    pixels = ((sheet + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return pixels.repeat(SCALE, 0).repeat(SCALE, 1)


def write_sheet(path: Path, rows: Sequence[Tensor]) -> None:
    """Writes a PNG file, whole or not at all; raises RoseError where it cannot be written."""
    from PIL import Image  # comes with diffusers

    buffer = io.BytesIO()
    Image.fromarray(make_sheet(rows)).save(buffer, format="png")
    write_file(path, buffer.getvalue())
