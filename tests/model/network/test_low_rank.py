"""What OATS leaves besides a dense sum: its factors, in the saved checkpoint and through an interrupted run."""

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import rose
from rose.model.measure.comparison import compare_methods
from rose.model.network.layers import LEFT, RIGHT, low_rank_tensors, prunable_layers
from tests.model.families import make_model, make_tokens
from tests.tiny import byte_tokenizer

OPTIONS = {"method": "oats", "sparsity": 0.5, "block_size": 16, "options": {"iterations": 4, "rank_ratio": 0.4}}


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # GPT-2 stores its weights transposed
def test_saved_factors_leave_a_sparse_part_and_an_ordinary_checkpoint(family, tmp_path):
    model = make_model(family)
    report = rose.prune_model(model, make_tokens(), **OPTIONS)
    rose.save_model(model, byte_tokenizer(), tmp_path / "out", report=report)
    factors = load_file(tmp_path / "out" / "low_rank.safetensors")
    layers = prunable_layers(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    assert len(factors) == 2 * len(layers)
    rows = report.layers.set_index("layer")
    for layer in layers:
        left, right = factors[layer.name + LEFT], factors[layer.name + RIGHT]
        sparse = layer.weight - left @ right
        kept = int((sparse.abs() > 1e-5 * layer.weight.abs().max()).sum())
        stored = kept + left.numel() + right.numel()
        assert 1 - stored / layer.weight.numel() == pytest.approx(rows.loc[layer.name, "sparsity"], abs=0.01)


def test_a_comparison_leaves_the_dense_model_without_factors():
    model = make_model("llama")
    rows = compare_methods(
        model,
        lambda seed: (make_tokens(seed=seed), None),
        make_tokens(2),
        methods=["oats"],
        sparsities=["0.5"],
        seeds=[0],
    )
    assert len(list(rows)) == 1
    assert not low_rank_tensors(model.named_modules())
