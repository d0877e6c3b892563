"""Families in GGUF files: architecture, configuration, layout of weights, and the tokenizer, copied or written."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import Mock

import gguf
from gguf import GGUFReader, GGUFValueType, GGUFWriter, TokenType
from torch import Tensor

from rose.errors import RoseError
from rose.model.load.models import BUILDERS
from rose.model.load.tokens import first_token

PATTERN = 6  # of Gemma 3 in llama.cpp: every sixth decoder block attends to everything
LOCAL_BASE = 10000.0  # of its other decoder blocks
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # of GPT-2, which stores them as (in, out)
SILU, GELU_TANH = ("silu", "swish"), ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")  # as transformers calls them


@dataclass(frozen=True)
class Family:
    """A family of GGUF files."""

    architecture: gguf.MODEL_ARCH
    field: str  # of the configuration, with the activation between linear layers
    activations: tuple[str, ...]  # supported by llama.cpp; a file does not name the activation
    # writes the family's fields; raises RoseError where llama.cpp would compute something else
    describe: Callable[[GGUFWriter, Any], None]
    # (name in the model, weight, configuration) -> the weight in the file's layout
    arrange: Callable[[str, Tensor, Any], Tensor] = lambda _name, weight, _config: weight


def family_of(config: Any) -> Family:
    """Raises RoseError for families, shapes and activations that a GGUF file cannot express."""
    if config.model_type not in FAMILIES:
        raise RoseError(f"{config.model_type} models cannot be exported; {', '.join(FAMILIES)} can.")
    if any(getattr(config, field, None) is not None for field in BUILDERS):
        raise RoseError("The decoder blocks of this model differ in shape, so only rose reads it.")
    family = FAMILIES[config.model_type]
    if (activation := getattr(config, family.field)) not in family.activations:
        raise RoseError(
            f"llama.cpp computes {family.activations[0]} in every {config.model_type} model, not {activation}; "
            "use transformers instead."
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
            "llama.cpp has no sliding window for this family, and this model uses one; use transformers instead."
        )
    _add_rope(writer, config.rope_parameters)


def _add_rope(writer: GGUFWriter, rope: Any) -> None:
    kind = rope.get("rope_type", "default")
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind != "default":
        raise RoseError(f"Positions scaled by {kind} are not exported; use transformers instead.")


def _gemma3(writer: GGUFWriter, config: Any) -> None:
    _rotary(writer, config)
    numbers = range(1, len(config.layer_types) + 1)
    pattern = ["sliding_attention" if number % PATTERN else "full_attention" for number in numbers]
    local = config.rope_parameters["sliding_attention"]
    if list(config.layer_types) != pattern or float(local["rope_theta"]) != LOCAL_BASE:
        raise RoseError(
            "llama.cpp treats every sixth decoder block of Gemma 3 as global, and this model does not; use "
            "transformers instead."
        )
    if config.query_pre_attn_scalar != config.head_dim or config.final_logit_softcapping:
        raise RoseError(
            "llama.cpp scales the queries or logits of Gemma 3 differently from this model; use transformers instead."
        )
    writer.add_sliding_window(config.sliding_window)
    _add_rope(writer, config.rope_parameters["full_attention"])


def _gpt2(writer: GGUFWriter, config: Any) -> None:
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        raise RoseError(
            "llama.cpp scales the attention of GPT-2 differently from this model; use transformers instead."
        )
    _common(writer, config)
    writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _llama_rows(name: str, weight: Tensor, config: Any) -> Tensor:
    """Queries and keys in pairs of neighbours, as llama.cpp rotates them; here a head's halves are separate."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _gemma_norms(name: str, weight: Tensor, _config: Any) -> Tensor:
    """Gemma multiplies by 1 + the weight of a norm; files hold the sum."""
    return weight.float() + 1 if name.endswith("norm.weight") else weight


FAMILIES = {
    "llama": Family(gguf.MODEL_ARCH.LLAMA, "hidden_act", SILU, _plain_rotary, _llama_rows),
    "qwen2": Family(gguf.MODEL_ARCH.QWEN2, "hidden_act", SILU, _plain_rotary),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3, "hidden_act", SILU, _plain_rotary),
    "gemma3_text": Family(gguf.MODEL_ARCH.GEMMA3, "hidden_activation", GELU_TANH, _gemma3, _gemma_norms),
    "gpt2": Family(
        gguf.MODEL_ARCH.GPT2,
        "activation_function",
        GELU_TANH,
        _gpt2,
        lambda name, weight, _config: weight.T if name.endswith(CONV1D) else weight,
    ),
}

# Beginnings of the patterns by which byte-level vocabularies split text -> what llama.cpp calls them.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
SPLITS = {CONTRACTIONS + "\\p{N}{1,3}|": "llama-bpe", CONTRACTIONS + "\\p{N}|": "qwen2"}
IDS = {"bos": "add_bos_token_id", "eos": "add_eos_token_id", "unk": "add_unk_token_id", "pad": "add_pad_token_id"}

TEMPLATE = "tokenizer.chat_template"  # begins the names of fields


def copy_vocabulary(writer: GGUFWriter, source: GGUFReader, *, with_template: bool = True) -> None:
    """Writes every tokenizer field of a GGUF file."""
    for name, field in source.fields.items():
        if name.startswith("tokenizer.") and (with_template or not name.startswith(TEMPLATE)):
            inner = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)


def fields_of(tokenizer: Any, size: int) -> Any:
    """The data that `write_vocabulary` writes, or the whole tokenizer if it refuses it, for comparisons."""
    writer = Mock()
    try:
        write_vocabulary(writer, tokenizer, size)
    except RoseError:
        return tokenizer.backend_tokenizer.to_str()
    return writer.method_calls


def write_template(writer: GGUFWriter, tokenizer: Any) -> None:
    if template := tokenizer.chat_template:  # or several, by name
        has_names = isinstance(template, dict)
        writer.add_chat_template([{"name": n, "template": t} for n, t in template.items()] if has_names else template)


def write_vocabulary(writer: GGUFWriter, tokenizer: Any, size: int) -> None:
    """Writes the fields of a fast tokenizer, without its chat template; ids without a token become unused tokens.
    Raises RoseError for a tokenizer that is not BPE, has no merges, or splits text in an unknown way."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    model = settings["model"]
    if model["type"] != "BPE":
        raise RoseError(f"A tokenizer of type {model['type']} is not exported; only BPE is.")
    added = {entry["id"]: entry for entry in settings["added_tokens"]}
    pieces = {number: token for token, number in model["vocab"].items()} | {
        n: entry["content"] for n, entry in added.items()
    }
    tokens = [pieces.get(number, f"[PAD{number}]") for number in range(size)]
    is_pieces = bool(model.get("byte_fallback"))
    types = [_type(number, pieces, added, model, is_pieces) for number in range(size)]
    merges = [entry if isinstance(entry, str) else " ".join(entry) for entry in model["merges"]]
    if is_pieces:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        # llama.cpp joins the pair of the highest score first, tokenizer.json the first merge.
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(model["merges"]):
            ranks.setdefault(merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge), rank)
        writer.add_token_scores([-float(ranks.get(token, len(ranks) + 1)) for token in tokens])
        text = json.dumps([settings["normalizer"], settings["pre_tokenizer"]], ensure_ascii=False)
        prepends = ('"Prepend"', '"prepend_scheme": "first"', '"prepend_scheme": "always"')
        writer.add_add_space_prefix(any(scheme in text for scheme in prepends))
    elif not merges:
        raise RoseError(
            "This tokenizer has no merges, and programs do not read a GGUF file without them; use transformers instead."
        )
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_split(settings["pre_tokenizer"]))
        writer.add_token_merges(merges)
    writer.add_token_list([token.encode() for token in tokens])
    writer.add_token_types(types)
    for name, method in IDS.items():
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None and number < size:
            getattr(writer, method)(number)
    writer.add_add_bos_token(first_token(tokenizer) is not None)


def _type(number: int, pieces: dict[int, str], added: dict[int, Any], model: Any, is_pieces: bool) -> int:
    token = pieces.get(number)
    if token is None:
        return TokenType.UNUSED
    if token == model.get("unk_token"):
        return TokenType.UNKNOWN
    if number in added:
        return TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED
    is_byte = is_pieces and len(token) == 6 and token.startswith("<0x")
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _split(pre_tokenizer: Any) -> str:
    """llama.cpp's name for the splitting of text before merges."""
    settings = pre_tokenizer or {"type": None}  # text is not split at all
    parts = settings["pretokenizers"] if settings["type"] == "Sequence" else [settings]
    patterns = [part["pattern"].get("Regex", "") for part in parts if part["type"] == "Split"]
    for pattern in patterns:
        for begins, name in SPLITS.items():
            if pattern.startswith(begins):
                return name
    byte_level = any(part["type"] == "ByteLevel" and part.get("use_regex", True) for part in parts)
    if byte_level and not patterns:
        digits = any(part["type"] == "Digits" and part["individual_digits"] for part in parts)
        return "smollm" if digits else "gpt-2"
    raise RoseError(
        "This tokenizer splits text in a way whose name in GGUF files is not known; use transformers instead."
    )
