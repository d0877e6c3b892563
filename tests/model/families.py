"""Tiny random models of many decoder families, built from configurations; nothing is downloaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

import rose
from rose.errors import Cancelled
from rose.model.network.network import Network
from rose.model.progress import Progress
from rose.model.walk.heads import value_heads
from rose.model.walk.walk import Walk, check_streams, start_walk
from rose.tensor_files import digest
from tests.tiny import byte_tokenizer

VOCABULARY = 96
LENGTH = 24  # longer than WINDOW, so that sliding and full attention need different masks
WINDOW = 6

Configurations = dict[str, Callable[[], PretrainedConfig]]
_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_FALCON = _IDS | {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES = _FALCON | {"max_position_embeddings": 64}
GATED = _SIZES | {"intermediate_size": 56, "num_key_value_heads": 2}
_ALTERNATING = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
_GEMMA = GATED | _ALTERNATING | {"head_dim": 8, "sliding_window": WINDOW}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_OPT = _SIZES | {"ffn_dim": 56}
_NEOX = _SIZES | {"intermediate_size": 56}

DENSE: Configurations = {
    "llama": lambda: transformers.LlamaConfig(**GATED),
    "mistral": lambda: transformers.MistralConfig(**GATED, sliding_window=WINDOW),
    "qwen3": lambda: transformers.Qwen3Config(**GATED, head_dim=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_GEMMA),
    "phi3": lambda: transformers.Phi3Config(**GATED),
    "gpt2": lambda: transformers.GPT2Config(**_GPT, bos_token_id=1, eos_token_id=2),
    "openai_gpt": lambda: transformers.OpenAIGPTConfig(**_GPT),
    "opt": lambda: transformers.OPTConfig(**_OPT, word_embed_proj_dim=32),
    "opt_projected": lambda: transformers.OPTConfig(**_OPT, word_embed_proj_dim=16, do_layer_norm_before=False),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_NEOX),
    "gpt_neox_sequential": lambda: transformers.GPTNeoXConfig(**_NEOX, use_parallel_residual=False),
    "bloom": lambda: transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "falcon": lambda: transformers.FalconConfig(**_FALCON),
    "falcon_alibi": lambda: transformers.FalconConfig(
        **_FALCON, alibi=True, parallel_attn=False, multi_query=False, bias=True
    ),
    "falcon_grouped": lambda: transformers.FalconConfig(**_FALCON, new_decoder_architecture=True, num_kv_heads=2),
}
_MOE = GATED | {"num_experts": 4, "num_experts_per_tok": 2}
_SMALL_MOE = _MOE | {"moe_intermediate_size": 16}
_DEEPSEEK = GATED | {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
}
_DEEPSEEK |= {"num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 16}
_DEEPSEEK |= {"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
_DEEPSEEK["first_k_dense_replace"] = 1  # the first decoder block has no experts
EXPERTS: Configurations = {
    "mixtral": lambda: transformers.MixtralConfig(**GATED, num_local_experts=4),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**_SMALL_MOE),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(**_SMALL_MOE, shared_expert_intermediate_size=24),
    "olmoe": lambda: transformers.OlmoeConfig(**_MOE),
    "deepseek_v2": lambda: transformers.DeepseekV2Config(**_DEEPSEEK),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(**_DEEPSEEK),
    "ernie4_5_moe": lambda: transformers.Ernie4_5_MoeConfig(  # shared experts run before the others
        **GATED, moe_num_experts=4, moe_k=2, moe_num_shared_experts=1, moe_intermediate_size=16
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **GATED, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW
    ),
}
UNUSUAL: Configurations = {
    "granite": lambda: transformers.GraniteConfig(**GATED, residual_multiplier=0.25),  # of what its layers put out
    "diff_llama": lambda: transformers.DiffLlamaConfig(**GATED),  # subtracts one head from another
    "sparse_experts": lambda: transformers.Qwen3MoeConfig(**_SMALL_MOE | {"num_experts": 24}),  # few tokens to each
}
UNCHAINED: Configurations = {
    "xlm": lambda: transformers.XLMConfig(vocab_size=VOCABULARY, emb_dim=32, n_layers=2, n_heads=4),
    "gemma4": lambda: transformers.Gemma4TextConfig(  # later decoder blocks read the keys and values of earlier ones
        **_GEMMA, global_head_dim=16, hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCABULARY,
        num_kv_shared_layers=2,
    ),
    "glm_moe_dsa": lambda: transformers.GlmMoeDsaConfig(  # one decoder block picks what the next one attends to
        **_DEEPSEEK, index_topk=4, index_head_dim=8, index_n_heads=2, indexer_types=["full", "shared"]
    ),
}  # fmt: skip
UNKNOWN_EXPERTS: Configurations = {
    "jetmoe": lambda: transformers.JetMoeConfig(
        **GATED | {"num_attention_heads": 4}, num_local_experts=4, num_experts_per_tok=2, kv_channels=8
    ),
    "llama4": lambda: transformers.Llama4TextConfig(**GATED, num_local_experts=4, intermediate_size_mlp=56, head_dim=8),
}


def make_model(family: str, seed: int = 0, **options: Any) -> Any:
    """A random model in evaluation mode; `options` as for `AutoModelForCausalLM.from_config`."""
    families = DENSE | UNUSUAL | EXPERTS | UNKNOWN_EXPERTS | UNCHAINED
    return make_from(families[family](), seed, **options)


def make_from(config: PretrainedConfig, seed: int = 0, **options: Any) -> Any:
    """`make_model` by a configuration."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, **options)
    # Random initial weights make every block a small correction; larger ones let errors show.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "embed" not in name and "wte" not in name and "wpe" not in name:
                parameter.mul_(3)
    return model.eval()


def make_tokens(samples: int = 5, length: int = LENGTH, seed: int = 1) -> Tensor:
    return torch.randint(3, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Any, tokens: Tensor | None = None) -> Tensor:
    return model(input_ids=make_tokens() if tokens is None else tokens, use_cache=False).logits


def rotate_heads(model: nn.Module) -> list[str]:
    """Rotates all heads at random, in place; returns the names of their output projections."""
    generator, every = torch.Generator().manual_seed(0), value_heads(Network(model))
    for heads in every:
        drawn = torch.randn(heads.layout.groups, heads.width, heads.width, generator=generator, dtype=torch.double)
        heads.rotate(torch.linalg.qr(drawn).Q)
    return [heads.output.name for heads in every]


def save(family: str, folder: Path, **options: Any) -> Path:
    """A checkpoint of such a model, with a tokenizer; returns its folder."""
    make_model(family).save_pretrained(folder, **options)
    byte_tokenizer().save_pretrained(folder)
    return folder


def figures(report: rose.RunReport) -> tuple[str, dict[str, Any]]:
    """All that a report says, apart from times."""
    summary = {name: value for name, value in report.summary.items() if name != "seconds"}
    return report.layers.drop(columns="seconds").to_csv(), summary


def read_both_ways(
    folder: Path, out: Path, *changes: Callable[[nn.Module], rose.RunReport], dtype: str = "float32"
) -> nn.Module:
    """Whole and streamed: reports, configurations and what was written must agree; the streamed model, read again."""
    readings = []
    for stream in (False, True):
        model, tokenizer = rose.load_model(str(folder), stream=stream, dtype=dtype)
        reports = [change(model) for change in changes]
        assert on_meta(model) == stream
        saved = out / f"{stream}"
        rose.save_model(model, tokenizer, saved)
        read, again = rose.load_model(str(saved), dtype=dtype)
        assert stream or digest(read.state_dict()) == digest(model.state_dict())
        assert again("w5 w7")["input_ids"] == tokenizer("w5 w7")["input_ids"]
        configuration = json.loads((saved / "config.json").read_text())
        names = {name for path in saved.glob("*.safetensors") for name in load_file(path)}
        readings.append((configuration, names, [figures(report) for report in reports], digest(read.state_dict())))
    assert readings[0] == readings[1]
    return read


def on_meta(model: nn.Module) -> bool:
    return all(parameter.is_meta for parameter in model.parameters())


def stop_when(condition: Callable[[Any], bool]) -> Callable[[Any], None]:
    """A callback that cancels a run there."""

    def stop(progress: Any) -> None:
        if condition(progress):
            raise Cancelled

    return stop


def stop_at(stage: str, block: int) -> Callable[[Progress], None]:
    return stop_when(lambda progress: (progress.stage, progress.block_index) == (stage, block))


def begin_walk(
    model: nn.Module, tokens: Tensor, held_out: Tensor | None = None, layers: Any = None, is_dense: bool = False
) -> Walk:
    """A walk over these layers, towards dense targets where `is_dense`."""
    network = Network(model)
    streams = check_streams(network, tokens, held_out)
    return start_walk(network, streams, network.select(layers), has_dense_targets=True if is_dense else None)
