"""Lists of blocks in a denoiser, and which block a module is in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


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
