"""Checkpoints of LLaMA's shapes with made-up weights in bfloat16 or another format, a shard at a time."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.tiny import byte_tokenizer


def write_random_llama(folder: Path, hidden: int, blocks: int, dtype: torch.dtype) -> int:
    """Random weights, heads of 64 dimensions; returns the checkpoint's bytes."""
    heads = hidden // 64
    sizes = {"hidden_size": hidden, "intermediate_size": hidden * 11 // 4, "num_attention_heads": heads}
    generator, size = torch.Generator().manual_seed(0), 0
    for path, shapes in _shards(folder, num_hidden_layers=blocks, dtype=dtype, **sizes).items():
        tensors = {
            name: (torch.randn(shape, generator=generator) * 0.02 if len(shape) > 1 else torch.ones(shape)).to(dtype)
            for name, shape in shapes.items()
        }
        save_file(tensors, path, {"format": "pt"})
        size += sum(tensor.nbytes for tensor in tensors.values())
    return size


def _shards(folder: Path, **sizes: Any) -> dict[Path, dict[str, torch.Size]]:
    """Writes all but the weights; returns the names and shapes of each file that is to come: one for each decoder
    block, and one for the rest."""
    config = LlamaConfig(vocab_size=32000, max_position_embeddings=4096, **sizes)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shards: dict[Path, dict[str, torch.Size]] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[2] if ".layers." in name else "rest"
        shards.setdefault(folder / f"model-{part}.safetensors", {})[name] = parameter.shape
    weights = {name: path.name for path, shapes in shards.items() for name in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    return shards
