"""Checkpoints of LLaMA's shapes with made-up weights in bfloat16 or another format, a shard at a time."""

import json
from math import prod
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


def write_zeros_of_7b(folder: Path, blocks: int) -> None:
    """Zeros in the shapes of LLaMA's 7B, in bfloat16: sparse files, which take no room on a disk."""
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    for path, shapes in _shards(folder, num_hidden_layers=blocks, dtype=torch.bfloat16, **sizes).items():
        header, end = {}, 0
        for name, shape in shapes.items():
            start, end = end, end + 2 * prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        with path.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + end)


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
