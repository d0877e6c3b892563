"""Families in GGUF files: architecture, configuration, and layout of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
from gguf import GGUFWriter
from torch import Tensor

from rose.errors import RoseError
from rose.model.load.models import BUILDERS

PATTERN = 6  # of Gemma 3 in llama.cpp: every sixth decoder block attends to everything
LOCAL_BASE = 10000.0  # of its other decoder blocks
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # of GPT-2, which stores them as (in, out)
SILU, GELU_TANH = ("silu", "swish"), ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")  # as transformers calls them


@dataclass(frozen=True)
class Family:
    """A family of GGUF files.

    Attributes:
        field: of the configuration, with the activation between linear layers.
        activations: supported by llama.cpp; a file does not name the activation.
        describe: writes the family's fields; raises RoseError where llama.cpp would compute something else.
        arrange: (name in the model, weight, configuration) -> the weight in the file's layout.
    """

    architecture: gguf.MODEL_ARCH
    field: str
    activations: tuple[str, ...]
    describe: Callable[[GGUFWriter, Any], None]
    arrange: Callable[[str, Tensor, Any], Tensor]


def family_of(config: Any) -> Family:
    """Raises RoseError for families, shapes and activations that a GGUF file cannot express."""
    if config.model_type not in FAMILIES:
        raise RoseError(
            f"{config.model_type} models cannot be exported; {', '.join(FAMILIES)} can. Its folder can be packed."
        )
    if any(getattr(config, field, None) is not None for field in BUILDERS):
        raise RoseError("The decoder blocks of this model differ in shape, so only rose reads it; pack it instead.")
    family = FAMILIES[config.model_type]
    if (activation := getattr(config, family.field)) not in family.activations:
        raise RoseError(
            f"llama.cpp computes {family.activations[0]} in every {config.model_type} model, not {activation}; "
            "pack the folder instead."
        )
    return family


def _common(writer: GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)


def _rotary(writer: GGUFWriter, config: Any) -> None:
    """LLaMA and its descendants."""
    _common(writer, config)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)


def _plain_rotary(writer: GGUFWriter, config: Any) -> None:
    _rotary(writer, config)
    if getattr(config, "use_sliding_window", False):
        raise RoseError(
            "llama.cpp has no sliding window for this family, and this model uses one; pack the folder instead."
        )
    _add_rope(writer, config.rope_parameters)


def _add_rope(writer: GGUFWriter, rope: Any) -> None:
    kind = rope.get("rope_type", "default")
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind != "default":
        raise RoseError(f"Positions scaled by {kind} are not exported; pack the folder instead.")


def _gemma3(writer: GGUFWriter, config: Any) -> None:
    _rotary(writer, config)
    pattern = [
        "sliding_attention" if number % PATTERN else "full_attention"
        for number in range(1, len(config.layer_types) + 1)
    ]
    local = config.rope_parameters["sliding_attention"]
    if list(config.layer_types) != pattern or float(local["rope_theta"]) != LOCAL_BASE:
        raise RoseError(
            "llama.cpp treats every sixth decoder block of Gemma 3 as global, and this model does not; pack the "
            "folder instead."
        )
    if config.query_pre_attn_scalar != config.head_dim or config.final_logit_softcapping:
        raise RoseError(
            "llama.cpp scales the queries or logits of Gemma 3 differently from this model; pack the folder instead."
        )
    writer.add_sliding_window(config.sliding_window)
    _add_rope(writer, config.rope_parameters["full_attention"])


def _gpt2(writer: GGUFWriter, config: Any) -> None:
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        raise RoseError("llama.cpp scales the attention of GPT-2 differently from this model; pack the folder instead.")
    _common(writer, config)
    writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _same(_name: str, weight: Tensor, _config: Any) -> Tensor:
    return weight


def _llama_rows(name: str, weight: Tensor, config: Any) -> Tensor:
    """Queries and keys in pairs of neighbours, as llama.cpp rotates them; here a head's halves are separate."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _one_added(name: str, weight: Tensor, _config: Any) -> Tensor:
    """Gemma multiplies by 1 + the weight of a norm; files hold the sum."""
    return weight.float() + 1 if name.endswith("norm.weight") else weight


def _transposed(name: str, weight: Tensor, _config: Any) -> Tensor:
    return weight.T if name.endswith(CONV1D) else weight


FAMILIES = {
    "llama": Family(gguf.MODEL_ARCH.LLAMA, "hidden_act", SILU, _plain_rotary, _llama_rows),
    "qwen2": Family(gguf.MODEL_ARCH.QWEN2, "hidden_act", SILU, _plain_rotary, _same),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3, "hidden_act", SILU, _plain_rotary, _same),
    "gemma3_text": Family(gguf.MODEL_ARCH.GEMMA3, "hidden_activation", GELU_TANH, _gemma3, _one_added),
    "gpt2": Family(gguf.MODEL_ARCH.GPT2, "activation_function", GELU_TANH, _gpt2, _transposed),
}
