"""The network that a diffusion pipeline calls at every step, and its blocks, found by structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from rose.errors import RoseError


def denoiser_of(pipeline: Any) -> nn.Module:
    """The component `transformer` or `unet` of a pipeline; raises RoseError where it has none, or several."""
    parts = [getattr(pipeline, name, None) for name in ("transformer", "unet")]
    found = [part for part in parts if isinstance(part, nn.Module)]
    if len(found) != 1:
        raise RoseError(
            f"{type(pipeline).__name__} has {len(found) or 'no'} transformer or UNet; choose a pipeline with one."
        )
    if isinstance(getattr(pipeline, "transformer_2", None), nn.Module):
        raise RoseError(f"{type(pipeline).__name__} has two transformers, one after the other; choose one with one.")
    return found[0]


def outermost_lists(denoiser: nn.Module) -> list[str]:
    """Names of the lists of blocks, such as "transformer_blocks"; lists within a block are not among them."""
    lists = [name for name, module in denoiser.named_modules() if isinstance(module, nn.ModuleList)]
    return [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]


def block_of(name: str, lists: Sequence[str]) -> str:
    """The block that a layer is in, such as "transformer_blocks.3"; "" outside all lists of blocks."""
    for prefix in lists:
        if name.startswith(f"{prefix}."):
            return f"{prefix}.{name.removeprefix(f'{prefix}.').partition('.')[0]}"
    return ""
