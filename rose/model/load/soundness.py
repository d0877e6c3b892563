"""What is wrong with a model's files although they can be read: refused when it is loaded, in a sentence."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rose.errors import RoseError
from rose.model.network.layers import decoder_blocks

# Of a configuration: what each number may be at most; all are at least 1.
LARGEST = {"num_hidden_layers": 10_000, "hidden_size": 2**20, "vocab_size": 2**26, "num_attention_heads": 2**16}


def check_sizes(name: str, config: Any) -> None:
    """Raises RoseError for numbers that no model has."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for field, most in LARGEST.items():
        value = getattr(text, field, None)
        if isinstance(value, int | float) and not (1 <= value <= most and value == int(value)):
            raise RoseError(f"The configuration of {name} says {field} = {value}; it must be from 1 to {most:,}.")


def check_all_used(name: str, model: nn.Module, unused: Collection[str]) -> None:
    """Raises RoseError where files hold weights of decoder blocks that the configuration does not name.

    Masks and frequencies, which old files hold too, are no weights; what is outside the decoder blocks may be for
    pictures or sound.
    """
    prefix, _ = decoder_blocks(model)
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    starts = (f"{prefix}.", f"{prefix.partition('.')[2]}.")  # files may lack the name of the body
    extra = sorted(
        key
        for key in unused
        if key.startswith(starts) and (key.endswith(".weight") or key.rpartition(".")[0] in layers)
    )
    if extra:
        raise RoseError(
            f"{name} holds {len(extra)} weights that its configuration does not name, such as {extra[0]}; its "
            "config.json belongs to another model, or was changed."
        )


def check_finite(name: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raises RoseError for NaN and infinity, naming the tensor."""
    for key, tensor in tensors:
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            raise RoseError(
                f"{name} holds NaN or infinity in {key}; its file is damaged, or {tensor.dtype} too narrow for it."
            )
