"""Faults in readable model files, refused in one sentence when the model is loaded."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rose.errors import RoseError
from rose.interrupt import stop_point
from rose.model.formats.conversion import Conversion
from rose.model.load.stored import StoredTensor
from rose.model.network.layers import MASKED, count_parameters, decoder_blocks
from rose.model.network.precision import name_of
from rose.wording import whole

# The largest allowed numbers in a configuration, by the names of all families; numbers of experts may be 0.
LARGEST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "depth"), 1000),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 2**20),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), 2**16),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions"), 2**26),
    "num_labels": 2**17,  # for each of which a configuration makes a name
    **dict.fromkeys(("intermediate_size", "ffn_dim", "moe_intermediate_size"), 2**24),
}
MOST_GROWTH, MOST_ADDED = 4, 2**24  # of numbers in memory over numbers in files
FLOATS = ("F", "BF16")  # begin the formats of weights
EXPERTS = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4096)


def check_sizes(name: str, config: Mapping[str, Any]) -> None:
    """Raises RoseError for impossible numbers in a configuration, which could take all memory."""
    for field, value in config.items():
        least, most = (0, EXPERTS[field]) if field in EXPERTS else (1, LARGEST.get(field, 0))
        if isinstance(value, Mapping):
            check_sizes(name, value)
        elif most and isinstance(value, int | float) and not (least <= value <= most and value == int(value)):
            raise RoseError(
                f"The configuration of {name} says {field} = {value}; it must be from {least} to {whole(most)}."
            )


def check_shapes(
    name: str, mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]], source: str = "config.json"
) -> None:
    """Raises RoseError for the first (tensor, shape in the files, shape by the configuration); `source` names the
    configuration's file."""
    for key, stored, configured in sorted(mismatched):
        raise RoseError(
            f"{key} is of shape {tuple(stored)} in the files of {name}, but of {tuple(configured)} by its {source}, "
            "which belongs to another model, or was changed. Restore that file."
        )


def check_stored(name: str, model: nn.Module, stored: Mapping[str, StoredTensor], conversion: Conversion) -> None:
    """Refuses files that do not hold a model's weights, before memory is taken; buffers may be integers.

    Raises:
        RoseError: a parameter that is stored as integers, twice, or in another shape.
    """
    for parameter_name, parameter in model.named_parameters():
        keys = conversion.pieces.get(parameter_name, [])
        if wrong := next((key for key in keys if not stored[key].kind.startswith(FLOATS)), None):
            raise RoseError(
                f"{wrong} is stored as {stored[wrong].kind} in the files of {name}, but weights are floating-point "
                "numbers; its file is damaged. Get it again."
            )
        if not keys or conversion.is_made(parameter_name):
            continue
        if len(keys) > 1:
            raise RoseError(f"{name} holds one weight under two names, {keys[0]} and {keys[1]}; take one out.")
        if stored[keys[0]].shape != parameter.shape:
            check_shapes(name, [(keys[0], stored[keys[0]].shape, parameter.shape)])


def check_extent(name: str, model: nn.Module, stored: int, source: str = "config.json") -> None:
    """Raises RoseError where a model (on the meta device) would take far more memory than its files' numbers.

    The margin covers dequantized four-bit numbers and missing tensors, for which another check is responsible.
    """
    needed = count_parameters(model) + sum(buffer.nbytes for buffer in model.buffers()) // 4
    if needed > MOST_GROWTH * stored + MOST_ADDED:
        raise RoseError(
            f"{name} holds {whole(stored)} numbers, but its {source} describes a model of {whole(needed)}; that "
            "belongs to another model, or was changed. Restore it."
        )


def check_masks_applied(name: str, missing: Collection[str], stored: Collection[str]) -> None:
    """Raises RoseError where files hold `weight_orig` and `weight_mask` of torch.nn.utils.prune, not their product."""
    if any(f"{key}_orig" in stored for key in missing):
        raise RoseError(f"{name} {MASKED} and save the model again.")


def check_all_used(name: str, model: nn.Module, unused: Collection[str]) -> None:
    """Raises RoseError where files hold weights of decoder blocks that the configuration does not name.

    Masks and frequencies in old files are no weights; tensors outside the decoder blocks may be for images or sound.
    """
    prefix, _ = decoder_blocks(model)
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    starts = (f"{prefix}.", f"{prefix.partition('.')[2]}.")  # files may lack the name of the body
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()  # by its family, as a block for drafts
    extra = sorted(
        key
        for key in unused
        if key.startswith(starts)
        and (key.endswith(".weight") or key.rpartition(".")[0] in layers)
        and not any(re.search(pattern, key) for pattern in ignored)
    )
    if beside := [key for key in extra if not key.endswith((".weight", ".bias"))]:
        raise RoseError(
            f"{name} keeps {beside[0]} beside its weights, such as a mask or a scale, which is not read; apply it to "
            "them, and save the weights alone."
        )
    if extra:
        raise RoseError(
            f"{name} holds {len(extra)} weights that its configuration does not name, such as {extra[0]}; its "
            "config.json belongs to another model, or was changed. Restore that file."
        )


def check_finite(name: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raises RoseError for NaN and infinity, naming the tensor."""
    for key, tensor in tensors:
        stop_point()
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            raise RoseError(
                f"{name} holds NaN or infinity in {key}; its file is damaged, or "
                f"{name_of(tensor.dtype)} is too narrow for it. Get the file again, or load the model in float32."
            )
