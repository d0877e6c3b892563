"""The low-rank parts that a method leaves beside sparse ones (OATS), in a file of their own beside the weights."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rose.errors import RoseError
from rose.model.network.layers import LEFT, RIGHT, low_rank_tensors, named_layers, prunable_layers

FILE = "low_rank.safetensors"  # the factors, named as by `low_rank_tensors`


def write_low_rank(model: nn.Module, folder: Path) -> None:
    """Writes the factors of a model, or of a pipeline's denoiser, where it has some; raises what the disk does."""
    factors = low_rank_tensors(named_layers(model))
    if factors:
        plain = {name: factor.detach().cpu().contiguous() for name, factor in factors.items()}
        save_file(plain, folder / FILE)


def keep_low_rank(model: nn.Module, folder: Path) -> None:
    """Gives the layers of a model that was read from a folder the low-rank parts that `save_model` put there."""
    if not (folder / FILE).is_file():
        return
    try:
        factors = load_file(folder / FILE)
    except (OSError, SafetensorError) as problem:
        raise RoseError(f"{folder / FILE} cannot be read ({problem}); copy the checkpoint again.") from problem
    for layer in prunable_layers(model):
        left, right = factors.get(layer.name + LEFT), factors.get(layer.name + RIGHT)
        if left is not None and right is not None and (len(left), right.shape[1]) == layer.weight.shape:
            layer.keep_low_rank((left, right))
