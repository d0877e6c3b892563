"""What a configuration says: parts that others depend on, decoder blocks known by their place, models cut twice."""

from typing import Any

import pytest
import torch
import transformers
from transformers import PretrainedConfig

import rose
from rose.model.network.layers import decoder_blocks
from rose.structured.configuration import droppable_blocks, kinds_of
from rose.structured.parts import CHANNELS, HEADS
from tests.model.families import EXPERTS, GATED, VOCABULARY, WINDOW, logits, make_from, make_model
from tests.structured.test_slimming import reload, slim

pytestmark = pytest.mark.usefixtures("small_batches")

FOUR: dict[str, Any] = {**GATED, "num_hidden_layers": 4}
_GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_head": 4, "n_positions": 64}


DEPENDENT: dict[str, tuple[PretrainedConfig, tuple[str, ...], str]] = {
    "norms over all heads": (transformers.Olmo2Config(**GATED), (CHANNELS,), r"_norm\.weight belongs to them"),
    "a norm for each head": (transformers.StableLmConfig(**GATED, qk_layernorm=True), (CHANNELS,), "belongs to them"),
    "norms between layers": (transformers.BitNetConfig(**GATED), (), r"sub_norm\.weight belongs to them"),
    "other layers of the heads": (transformers.DogeConfig(**GATED), (CHANNELS,), "belongs to them"),
    "heads in pairs": (transformers.DiffLlamaConfig(**GATED), (CHANNELS,), "cannot be taken out"),
    "heads of two sizes": (
        transformers.Gemma4TextConfig(
            **FOUR, head_dim=8, global_head_dim=16, sliding_window=WINDOW, hidden_size_per_layer_input=0,
            num_kv_shared_layers=0, layer_types=["sliding_attention", "full_attention"] * 2,
        ),
        (CHANNELS,),
        "cannot be taken out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DEPENDENT)
def test_parts_that_other_tensors_belong_to_are_not_offered(case, tmp_path):
    config, offered, message = DEPENDENT[case]
    model = make_from(config)
    assert kinds_of(model) == offered
    before = logits(model)
    with pytest.raises(rose.RoseError, match=message):
        slim(model, parts=[HEADS])
    assert torch.equal(logits(model), before)
    if offered:
        slim(model)
        assert torch.equal(logits(reload(model, tmp_path / "slim")), logits(model))
    else:
        with pytest.raises(rose.RoseError, match="choose the method depth"):
            slim(model)


PLACED: dict[str, tuple[PretrainedConfig, list[int]]] = {
    "positions in some": (transformers.SmolLM3Config(**FOUR), [0, 1, 2, 3]),
    "first ones dense": (EXPERTS["deepseek_v3"](), [1]),
    "every second one sparse": (
        transformers.Qwen3MoeConfig(**FOUR, num_experts=4, moe_intermediate_size=16, decoder_sparse_step=2), []
    ),
    "scaled by their place": (transformers.GPT2Config(**_GPT2, n_layer=4, scale_attn_by_inverse_layer_idx=True), [3]),
    "attention of two kinds": (
        transformers.GPTNeoConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_layers=4, num_heads=4, max_position_embeddings=64,
            window_size=WINDOW, attention_types=[[["global", "local"], 2]],
        ),
        [0, 1, 2, 3],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLACED)
def test_what_a_decoder_block_is_by_its_place_stays_true(case, tmp_path):
    """The first decoder block changes least, so that it would go."""
    config, free = PLACED[case]
    model = make_from(config)
    _, blocks = decoder_blocks(model)
    with torch.no_grad():
        for parameter in blocks[0].parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.1)
    ratio = 1 / len(blocks)
    if not free:
        with pytest.raises(rose.RoseError, match="says by their place what they are"):
            slim(model, method="depth", ratio=ratio)
        return
    assert droppable_blocks(model) == free
    kept = list(blocks)
    slim(model, method="depth", ratio=ratio)
    (gone,) = [index for index, block in enumerate(kept) if block not in list(decoder_blocks(model)[1])]
    assert gone == free[0]
    assert torch.equal(logits(reload(model, tmp_path / "slim")), logits(model))


@pytest.mark.parametrize(
    "second",
    [
        {"allocation": "cost", "parts": [CHANNELS], "ratio": 0.1},
        {"allocation": "cost", "parts": [HEADS], "ratio": 0.15},
        {"allocation": "similarity"},
        {"method": "depth", "ratio": 0.5},
    ],
)
def test_a_model_whose_blocks_differ_can_be_cut_again(second, tmp_path):
    model = make_model("llama")
    slim(model, allocation="cost")
    again = reload(model, tmp_path / "once", plain=False)
    slim(again, **second)
    assert torch.equal(logits(reload(again, tmp_path / "twice", plain=False)), logits(again))
