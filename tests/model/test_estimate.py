"""The memory formula, by hand on a model of known shapes; tests/benchmarks/memory.py compares it with a real run."""

from typing import Any

import pytest
import torch
import transformers

import rose
from rose.model.estimate import estimate_memory, gap_work
from tests.model.families import VOCABULARY, make_model

BLOCK = 32 * 32 * 2 + 16 * 32 * 2 + 3 * 56 * 32 + 2 * 32  # q, o; k, v of half as many heads; feed-forward; norms


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_memory_of_a_tiny_llama_matches_the_formula(dtype, size):
    memory = estimate_memory(make_model("llama"), samples=500, length=24, dtype=dtype)
    assert memory.block == size * BLOCK
    assert memory.embedding == size * (VOCABULARY * 32 + 32)
    assert memory.hessians == 4 * (3 * 32**2 + 56**2)  # q, k, v; o; gate, up; down
    assert memory.work == 4 * (4 * 56**2 + 6 * 32 * 56)  # sweeping a layer that is not much wider than high
    assert memory.activations == size * 500 * 24 * 32
    assert memory.batch == size * 4 * (170 * 24) * 56  # 170 samples of 24 tokens are just below 4096
    assert memory.peak == memory.block + memory.activations + memory.hessians + memory.batch


def test_hidden_states_on_disk_and_held_out_samples_are_counted():
    ram, on_disk = (estimate_memory(make_model("llama"), samples=500, length=24, on_disk=x) for x in (False, True))
    assert on_disk.activations == 4 * 170 * 24 * 32
    assert ram.peak - on_disk.peak == 4 * (500 - 170) * 24 * 32
    few, held_out = (estimate_memory(make_model("llama"), samples=3, length=24, held_out=x) for x in (False, True))
    assert few.activations == 4 * 3 * 24 * 32
    assert held_out.hessians == 2 * few.hessians  # statistics of their own
    assert held_out.work == few.work + 4 * 56**2


def test_only_chosen_layers_are_counted():
    memory = estimate_memory(make_model("llama"), samples=3, length=24, layers=["*o_proj"])
    assert memory.hessians == 4 * 32**2
    assert memory.work == 4 * (4 + 6) * 32**2
    assert memory.batch == 4 * 4 * (3 * 24) * 56  # the whole block runs
    writer = estimate_memory(make_model("llama"), samples=3, length=24, layers=["*o_proj"], dense_targets=True)
    assert writer.work == memory.work + 4 * 2 * 32**2  # as wide as the stream, into which it writes


def test_a_wide_layer_needs_most_while_its_hessian_is_factorized():
    model = make_model("llama")
    model.model.layers[0].mlp.down_proj = torch.nn.Linear(320, 32, bias=False)
    memory = estimate_memory(model, samples=3, length=24, layers=["*.0.mlp.down_proj"])
    assert memory.work == 4 * (6 * 320**2 + 2 * 32 * 320)


@pytest.mark.parametrize("dense_targets", [False, True])
def test_experts_have_hessians_of_their_own_and_few_tokens_each(dense_targets):
    model = make_model("sparse_experts")  # 24 experts of width 16, two for each token
    memory = estimate_memory(model, samples=3, length=24, dense_targets=dense_targets)
    alone = 4 * 32**2
    assert memory.hessians == (alone if dense_targets else 4 * (2 * 32**2 + 24 * (32**2 + 16**2)))
    waiting = 3 * 32 + 32 + (2 * 32 + 2 * (32 + 16)) + 32  # what waits; inputs of attention and of two experts; stream
    assert memory.waiting == (4 * 3 * 24 * waiting if dense_targets else 0)
    read = 2 * 32 + 2 * (32 + 16)  # by all layers that a token comes to, where they are counted together
    assert memory.batch == 4 * 3 * 24 * (4 * 32 if dense_targets else read)


def test_output_layers_are_recognized_by_any_name():
    def work(config: transformers.PretrainedConfig) -> float:
        model = transformers.AutoModelForCausalLM.from_config(config)
        return gap_work(rose.prunable_layers(model), 1000)

    sizes: dict[str, Any] = {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 64, "vocab_size": 96}
    assert work(transformers.GPTJConfig(**sizes, rotary_dim=8)) == work(transformers.GPT2Config(**sizes))


def test_methods_with_stages_of_their_own_take_more_time():
    sizes: dict[str, Any] = {"samples": 3, "length": 24, "layers": ["*.0.mlp.gate_proj"]}  # 56 × 32
    work = {name: estimate_memory(make_model("llama"), **sizes, method=name).work for name in rose.METHODS}
    assert work["sparsegpt"] == 4 * (4 * 32**2 + 6 * 56 * 32)
    assert work["rose_admm"] == 4 * (4 * 32**2 + 10 * 56 * 32)
    assert all(needed >= work["sparsegpt"] for needed in work.values())


def test_a_large_vocabulary_counts_at_the_start():
    model = make_model("llama")
    model.resize_token_embeddings(100_000)
    memory = estimate_memory(model, samples=1, length=24)
    assert memory.peak == memory.block + memory.activations + memory.embedding
