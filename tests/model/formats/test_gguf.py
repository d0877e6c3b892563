"""GGUF files read a tensor at a time: the same models as transformers makes of them, with less memory."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rose.model.formats import gguf as gguf_file
from rose.model.formats.gguf import frugal_reading
from tests.refusals import refused

WIDTH, INNER, BLOCKS, HEADS, KEY_HEADS, VOCABULARY = 64, 96, 2, 4, 2, 512
EXPERTS, EXPERT_INNER = 4, 768  # the width of an expert that transformers takes for granted


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def dense(number: int) -> dict[str, np.ndarray]:
    return {"ffn_gate": values(INNER, WIDTH), "ffn_up": values(INNER, WIDTH) + number, "ffn_down": values(WIDTH, INNER)}


def experts(number: int) -> dict[str, np.ndarray]:
    return {
        "ffn_gate_exps": values(EXPERTS, EXPERT_INNER, WIDTH),
        "ffn_up_exps": values(EXPERTS, EXPERT_INNER, WIDTH) + number,
        "ffn_down_exps": values(EXPERTS, WIDTH, EXPERT_INNER),
        "ffn_gate_inp": values(EXPERTS, WIDTH),
    }


def write(path: Path, architecture: str, mlp: Callable[[int], dict[str, np.ndarray]]) -> Path:
    """A tiny random file; matrices are quantized as in practice, where their width allows."""
    writer = gguf.GGUFWriter(path, architecture)
    fields: dict[str, Any] = {"name": "tiny", "context_length": 64, "embedding_length": WIDTH, "block_count": BLOCKS}
    fields |= {"feed_forward_length": INNER, "head_count": HEADS, "key_length": WIDTH // HEADS}
    fields |= {"head_count_kv": KEY_HEADS, "layer_norm_rms_eps": 1e-6, "vocab_size": VOCABULARY}
    fields |= {"tokenizer_model": "gpt2", "token_merges": ["w o"], "bos_token_id": 0, "eos_token_id": 1}
    fields["token_list"] = ["w", "o", "wo", *(f"word{number}" for number in range(3, VOCABULARY))]
    if mlp is experts:
        fields |= {"expert_count": EXPERTS, "expert_used_count": 2}
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    tensors = {name: values(VOCABULARY, WIDTH) for name in ("token_embd", "output")} | {"output_norm": values(WIDTH)}
    for number in range(BLOCKS):
        queries, keys, norm = values(WIDTH, WIDTH), values(WIDTH * KEY_HEADS // HEADS, WIDTH), values(WIDTH)
        block = mlp(number) | {"attn_q": queries + number, "attn_k": keys, "attn_v": keys - number}
        block |= {"attn_output": queries, "attn_norm": norm, "ffn_norm": norm}
        tensors |= {f"blk.{number}.{name}": value for name, value in block.items()}
    for name, value in tensors.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if value.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{name}.weight", gguf.quantize(value, kind), raw_dtype=kind)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_part()
    writer.close()


def load(path: Path, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype, local_files_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("architecture", "mlp"), [("llama", dense), ("qwen2", dense), ("qwen3moe", experts)])
def test_the_model_matches_that_of_transformers(architecture, mlp, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "PIECE", 1000)  # so that matrices are dequantized in pieces
    path = write(tmp_path / "tiny.gguf", architecture, mlp)
    expected = load(path, dtype)
    with frugal_reading():
        model = load(path, dtype)
    assert model.config.to_dict() == expected.config.to_dict()
    weights, others = model.state_dict(), expected.state_dict()
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert weight.dtype == others[name].dtype
        assert torch.equal(weight, others[name]), name
    tokens = torch.arange(16)[None]
    assert torch.equal(model(tokens).logits, expected(tokens).logits)


def test_a_tensor_without_a_place_is_refused_unless_it_is_derived(tmp_path, caplog):
    with frugal_reading():
        load(write(tmp_path / "c.gguf", "llama", lambda n: dense(n) | {"rope_freqs": values(8)}), torch.float32)
        assert "scales positions (rope_freqs.weight), which is ignored" in caplog.text
        load(write(tmp_path / "a.gguf", "llama", lambda n: dense(n) | {"attn_rot_embd": values(8)}), torch.float32)
        path = write(tmp_path / "b.gguf", "llama", lambda n: dense(n) | {"attn_sinks": values(HEADS)})
        refused(r"2 tensors that LlamaForCausalLM has no place for, such as blk\.0\.attn", load, path, torch.float32)


def test_loading_needs_the_memory_of_one_tensor_more(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.VOCABULARY", 20_000)  # one matrix so large that the rest does not count
    monkeypatch.setattr(gguf_file, "PIECE", 10_000)
    path = write(tmp_path / "tiny.gguf", "llama", dense)
    with frugal_reading():
        load(path, torch.bfloat16)  # what is made once and kept
        tracemalloc.start()  # sees NumPy's memory, not PyTorch's
        try:
            load(path, torch.bfloat16)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 1.3 * 4 * 20_000 * WIDTH


def test_fields_match_the_gguf_library(tmp_path):
    path = tmp_path / "fields.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_types([1, 3, 2**31 - 1])
    writer.add_token_scores([0.5, -1.25, 0.0])
    writer.add_array("flags", [True, False])
    writer.add_token_list(["rose", "", "Röschen"])
    finish(writer)
    ours, theirs = gguf_file.Reader(str(path)), gguf.GGUFReader(path)
    assert list(ours.fields) == list(theirs.fields)
    for name, field in theirs.fields.items():
        assert ours.fields[name].types == field.types, name
        assert ours.fields[name].contents() == field.contents(), name
    assert ours.fields["tokenizer.ggml.tokens"].contents() == ["rose", "", "Röschen"]
