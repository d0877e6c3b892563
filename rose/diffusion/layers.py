"""Which layers of a denoiser are pruned, found by what they read and not by their names."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from rose.diffusion.denoiser import block_of, denoiser_of, outermost_lists
from rose.diffusion.trajectory import Batch, run_pipeline
from rose.errors import RoseError
from rose.model.network.layers import PrunableLayer

One = TypeVar("One")

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Anatomy:
    """A denoiser's weights by what pruning does with them.

    Attributes:
        layers: prunable ones, in the order in which the denoiser calls them; `block_index` counts its blocks in that
            order.
        convolutions: convolutional layers, which stay dense.
        convolution_weights: their weights.
        weights: all parameters of the denoiser.
    """

    layers: list[PrunableLayer]
    convolutions: int
    convolution_weights: int
    weights: int


class _Seen(Exception):
    """Ends the probe once the denoiser has been called."""


def study_denoiser(pipeline: Any, batch: Batch, *, guidance: float | None = None) -> Anatomy:
    """Calls the denoiser once, and records what each linear layer reads.

    Prunable is every linear layer inside a list of blocks that reads a sequence of tokens. Layers that read one vector
    for a whole picture (time and class embeddings, the modulation made from them) and layers outside the blocks stay
    dense, as embeddings and heads of language models do. Convolutions stay dense too: their Hessian would be that of
    unfolded patches, which no paper on these models prunes by.

    Args:
        pipeline, batch, guidance: see `rose.diffusion.trajectory.run_pipeline`.

    Raises:
        RoseError: no layer is prunable.
    """
    denoiser = denoiser_of(pipeline)
    outermost = outermost_lists(denoiser)
    called: dict[str, nn.Module] = {}
    hooks = []
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and block_of(name, outermost):

            def seen(module: nn.Module, args: tuple, name: str = name) -> None:
                if isinstance(args[0], Tensor) and args[0].ndim >= 3:
                    called.setdefault(name, module)

            hooks.append(module.register_forward_pre_hook(seen))

    def stop(*_anything: Any) -> None:
        raise _Seen

    hooks.append(denoiser.register_forward_hook(stop))
    try:
        run_pipeline(pipeline, batch, steps=2, guidance=guidance)
    except _Seen:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        raise RoseError(
            f"{type(denoiser).__name__} has no blocks with linear layers that read tokens: nothing to prune."
        )
    blocks: dict[str, int] = {}
    layers = []
    for name, module in called.items():
        block = block_of(name, outermost)
        index = blocks.setdefault(block, len(blocks))
        layers.append(PrunableLayer(name, index, name.removeprefix(f"{block}."), module))
    convolutions = [module for module in denoiser.modules() if isinstance(module, CONVOLUTIONS)]
    return Anatomy(
        layers,
        len(convolutions),
        sum(module.weight.numel() for module in convolutions),
        sum(parameter.numel() for parameter in denoiser.parameters()),
    )


def choose_layers(layers: Sequence[PrunableLayer], names: Sequence[str] | None) -> list[PrunableLayer]:
    """The layers with these names; `*` and `?` match as in a shell; None means all.

    Raises:
        RoseError: a name that matches nothing, or no name at all.
    """
    if names is None:
        return list(layers)
    if not names:
        raise RoseError("No layer is chosen; give at least one name, or leave the choice out for all.")
    chosen: set[str] = set()
    for pattern in [names] if isinstance(names, str) else names:
        matched = {layer.name for layer in layers if fnmatch.fnmatchcase(layer.name, pattern)}
        if not matched:
            raise RoseError(
                f"No prunable layer is named {pattern!r}; names look like {layers[0].name}, and * matches any part."
            )
        chosen |= matched
    return [layer for layer in layers if layer.name in chosen]


def make_packages(layers: Sequence[One], packages: int) -> list[list[One]]:
    """Runs of layers, or of other parts, as equal in number as can be, in their order; at most one for each."""
    parts = np.array_split(np.arange(len(layers)), min(packages, len(layers)))
    return [[layers[k] for k in part] for part in parts]


def check_packages(packages: int) -> None:
    """Raises RoseError unless this is a whole number of at least 1."""
    if not isinstance(packages, int) or isinstance(packages, bool) or packages < 1:
        raise RoseError(f"The number of packages must be a whole number of at least 1, not {packages!r}.")


def default_block_size(layers: Sequence[PrunableLayer]) -> int:
    """128 columns, or fewer in a small model: a quarter of its narrowest layer, a multiple of four for N:M."""
    narrowest = min(layer.weight.shape[1] for layer in layers)
    return min(128, max(4, narrowest // 4 // 4 * 4))
