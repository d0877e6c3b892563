"""A tiny random LLaMA checkpoint with a byte-level tokenizer: a whole model that loads and prunes in a moment."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS = 257


def byte_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte, ids 1 to 256; 0 pads. `bos`: text begins with the token `BOS` and ends with the pad."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={"<pad>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos:
        core.add_special_tokens(["<bos>"])
        core.post_processor = processors.TemplateProcessing(
            single="<bos> $A <pad>", special_tokens=[("<bos>", BOS), ("<pad>", 0)]
        )
    more = {"bos_token": "<bos>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<pad>", **more)


def save_tiny_llama(
    folder: Path, blocks: int = 3, hidden: int = 64, bos: bool = False, seed: int = 0, vocabulary: int = 257
) -> Path:
    """Writes the checkpoint and returns its folder."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=258 if bos else vocabulary,
        bos_token_id=BOS if bos else None,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer(bos).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
