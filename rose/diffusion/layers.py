"""Which layers of a denoiser are pruned, found by what they read and not by their names."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from rose.diffusion.denoiser import block_of, outermost_lists
from rose.diffusion.trajectory import Trajectories
from rose.errors import RoseError
from rose.layer.defaults import BLOCK_SIZE
from rose.model.network.layers import PrunableLayer, check_plain
from rose.model.network.stand_ins import hooked


class _Enough(Exception):
    """Ends the probe once the denoiser has been called."""


def find_layers(trajectories: Trajectories) -> list[PrunableLayer]:
    """Calls the denoiser once; the prunable layers, in the order in which it calls them. Raises RoseError for none,
    and as `check_plain`.

    Prunable is every linear layer inside a list of blocks that reads a sequence of tokens. Layers that read one vector
    for a whole picture (time and class embeddings, the modulation made from them) and layers outside the blocks stay
    dense, as embeddings and heads of language models do. Convolutions stay dense too: their Hessian would be that of
    unfolded patches, which no paper on these models prunes by. `block_index` counts blocks in the order of the calls.
    """
    denoiser = trajectories.denoiser
    check_plain(denoiser)
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
        raise _Enough

    hooks.append(denoiser.register_forward_hook(stop))
    with hooked(hooks), suppress(_Enough):
        next(trajectories.draw())
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
    return layers


def convolutions(denoiser: nn.Module) -> list[Any]:
    """Its convolutional layers, which stay dense."""
    return [module for module in denoiser.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]


def default_block_size(layers: Sequence[PrunableLayer]) -> int:
    """128 columns, or fewer in a small model: a quarter of its narrowest layer, a multiple of four for N:M."""
    narrowest = min(layer.weight.shape[1] for layer in layers)
    return min(BLOCK_SIZE, max(4, narrowest // 4 // 4 * 4))
