"""Slimming of whole models: every family, saved files, configurations, and refusals."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import rose
from rose.model.network.layers import decoder_blocks
from rose.model.network.network import Network
from rose.structured.configuration import droppable_blocks, kinds_of
from rose.structured.methods import STRUCTURED
from rose.structured.parts import CHANNELS, HEADS, Shape, block_parameters, find_parts
from rose.structured.plan import plan_slimming, possible_shapes, saved_by, similarity_ratios
from rose.structured.settings import SlimSettings
from rose.structured.slimming import SlimRun
from rose.structured.survey import survey
from tests.model.families import DENSE, GATED, VOCABULARY, WINDOW, logits, make_from, make_model, make_tokens, stop_at
from tests.refusals import cancelled, refused
from tests.tiny import byte_tokenizer

pytestmark = pytest.mark.usefixtures("small_batches")
OFFERED = dict.fromkeys(DENSE, (CHANNELS,)) | dict.fromkeys(
    ["llama", "mistral", "qwen3", "gemma3", "phi3"], (HEADS, CHANNELS)
)
UNSAID = ("openai_gpt", "bloom")  # families whose configuration has no number for channels


def slim(model: nn.Module, **options: Any) -> rose.RunReport:
    return rose.prune_structured(model, make_tokens(), **{"ratio": 0.3, "multiple": 4, "target": "dense"} | options)


def reload(model: Any, folder: Path, plain: bool = True) -> Any:
    rose.save_model(model, byte_tokenizer(), folder)
    read = transformers.AutoModelForCausalLM.from_pretrained
    return read(folder).eval() if plain else rose.load_model(str(folder))[0]


@pytest.mark.parametrize("family", DENSE)
def test_every_family_is_slimmed_or_refused(family, tmp_path):
    model = make_model(family)
    assert kinds_of(model) == OFFERED[family]
    allocation, dense = "cost" if family in UNSAID else "uniform", block_parameters(model)
    if family in UNSAID:
        before = logits(model)
        refused(r"has no number for MLP channels.*allocation cost", slim, model)
        assert torch.equal(logits(model), before)
    report = slim(model, allocation=allocation, target="layer")
    assert report.summary["removed_fraction"] == pytest.approx(0.3, abs=0.04)
    assert block_parameters(model) == pytest.approx(dense * (1 - report.summary["removed_fraction"]))
    assert report.layers["relative_error"].between(0, 1).all()
    assert (report.layers["relative_error"] < report.layers["unrecovered_error"]).all()
    ids, options = make_tokens(1, 8), {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with_cache, without = model.generate(ids, **options), model.generate(ids, use_cache=False, **options)
    assert torch.equal(with_cache, without)
    again = reload(model, tmp_path / "slim", plain=allocation == "uniform")
    assert torch.equal(logits(again), logits(model))


def test_a_process_without_rose_loads_it(tmp_path):
    model = make_model("llama")
    slim(model, parts=[HEADS, CHANNELS])
    rose.save_model(model, byte_tokenizer(), tmp_path / "slim")
    torch.save((make_tokens(), logits(model)), tmp_path / "expected")
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as A; folder = sys.argv[1]; "
        "tokens, expected = torch.load(folder + '/expected'); torch.set_num_threads(1); "
        "model = A.from_pretrained(folder + '/slim').eval(); "
        "assert torch.equal(model(tokens, use_cache=False).logits, expected); "
        "model.generate(tokens[:1], max_new_tokens=3); assert 'rose' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize(("method", "allocation"), [("obs", "cost"), ("slimllm", "similarity")])
def test_shapes_that_differ_are_read_by_rose(family, method, allocation, tmp_path):
    model = make_model(family)
    report = slim(model, method=method, allocation=allocation)
    assert not report.summary["uniform"]
    assert report.summary["removed_fraction"] == pytest.approx(0.3, abs=0.04)
    again = reload(model, tmp_path / "slim", plain=False)
    assert torch.equal(logits(again), logits(model))
    refused(r"differ in shape.*cannot be streamed", rose.load_model, str(tmp_path / "slim"), stream=True)
    pruned = rose.prune_model(again, make_tokens(), sparsity=0.5, block_size=8)
    assert (pruned.layers["sparsity"] - 0.5).abs().max() < 0.01
    assert torch.equal(logits(reload(again, tmp_path / "pruned", plain=False)), logits(again))


@pytest.mark.parametrize("shape", [Shape(1, 2), Shape(2, 1)], ids=["a group", "a query of every group"])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_cut_model_matches_zeroed_columns(family, shape):
    """Heads alone; the same columns of the dense model's output projections zeroed must give the same logits."""
    model = make_model(family)
    zeroed, parts = copy.deepcopy(model), find_parts(model, [HEADS])
    settings = SlimSettings(method="magnitude", allocation="cost")
    run = SlimRun(Network(model), parts, [[shape]] * len(parts), (), settings)
    run.walk({"calibration": make_tokens()})
    for cut, (before,) in zip(run.reduction.cuts, find_parts(zeroed, [HEADS]), strict=True):
        assert int(cut.kept.sum()) == shape.units
        before.output.write(before.output.weight * cut.kept.repeat_interleave(before.width))
    torch.testing.assert_close(logits(model), logits(zeroed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [name for name, method in STRUCTURED.items() if method.select])
def test_every_method_reduces_the_channels_it_says(method):
    model = make_model("llama")
    report = slim(model, method=method, parts=[CHANNELS], held_out=make_tokens(2, seed=5))
    assert set(report.layers["part"]) == {CHANNELS}
    (units,) = set(report.layers["kept_units"])
    assert model.config.intermediate_size == units in range(4, 56, 4)
    assert all(block.mlp.down_proj.weight.shape == (32, units) for block in model.model.layers)
    assert (report.layers["held_out_error"] > 0).all()


def test_reported_errors_match_the_model_on_tokens():
    """The first decoder block's MLP, heads untouched, so that it reads what the dense one reads."""
    model = make_model("llama")
    dense = copy.deepcopy(model)
    report = slim(model, parts=[CHANNELS], held_out=make_tokens(2, seed=3))
    seen: list[torch.Tensor] = []
    for each in (dense, model):
        with each.model.layers[0].mlp.register_forward_hook(lambda _m, _i, out: seen.append(out)):
            logits(each)
    before, after = seen
    error = float((before - after).square().sum() / before.square().sum())
    first = report.layers.iloc[0]
    assert first["relative_error"] == pytest.approx(error, rel=1e-3)
    # There the dense model's output is what its own weights make of its inputs; behind it no longer.
    assert first["target_error"] == pytest.approx(first["relative_error"], rel=1e-4)
    assert first["held_out_target_error"] == pytest.approx(first["held_out_error"], rel=1e-4)
    assert report.layers["target_error"].iloc[1] != pytest.approx(report.layers["relative_error"].iloc[1], rel=1e-2)
    assert report.summary["mean_target_error"] == pytest.approx(report.layers["target_error"].mean())


def test_the_unrecovered_error_is_that_of_the_columns_as_they_were():
    """Whatever the target; with the first decoder block alone both targets keep the same columns."""
    layers = {target: slim(make_model("llama"), target=target, method="wanda").layers for target in ("layer", "dense")}
    first = [table.iloc[0] for table in layers.values()]
    assert first[0]["unrecovered_error"] == pytest.approx(first[1]["unrecovered_error"], rel=1e-6)
    assert layers["layer"]["target_error"].isna().all()


def test_survey_statistics_match_the_model():
    """Similarity and mean square by decoder block, against hooks in the model's own forward pass."""
    model, seen = make_model("llama"), []

    def watch(_block: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        before, after = args[0] if args else kwargs["hidden_states"], output[0] if isinstance(output, tuple) else output
        seen.append((torch.cosine_similarity(before, after, dim=-1).mean(), after.square().sum(-1).mean()))

    surveyed = [(entry.similarity, entry.stream) for entry in survey(model, make_tokens(), [])]
    for block in model.model.layers:
        block.register_forward_hook(watch, with_kwargs=True)
    logits(model)
    assert surveyed == [pytest.approx([float(value) for value in means], rel=1e-4) for means in seen]


def test_depth_drops_the_blocks_that_change_least(tmp_path):
    model = make_model("gemma3")
    similar = [entry.similarity for entry in survey(model, make_tokens(), [])]
    gone = max(range(4), key=similar.__getitem__)
    kinds = [kind for index, kind in enumerate(model.config.layer_types) if index != gone]
    blocks = [block for index, block in enumerate(model.model.layers) if index != gone]
    report = slim(model, method="depth", ratio=0.25)
    assert list(model.model.layers) == blocks
    assert model.config.layer_types == kinds
    assert report.summary["removed_fraction"] == pytest.approx(0.25)
    assert torch.equal(logits(reload(model, tmp_path / "slim")), logits(model))


@pytest.mark.parametrize("stage", ["prune", "done"])
def test_a_stopped_run_leaves_the_model_as_it_was(stage):
    model = make_model("llama")
    before, names = logits(model), set(model.state_dict())
    cancelled(slim, model, progress=stop_at(stage, 1))
    assert torch.equal(logits(model), before)
    assert set(model.state_dict()) == names


def test_dense_targets_come_nearer_to_the_dense_model():
    """On the very tokens of calibration, and with hardly any damping, so that it must hold."""
    dense, distances = logits(make_model("llama")), []
    for target, damping in (("dense", 0.01), ("layer", None)):
        model = make_model("llama")
        report = slim(model, target=target, target_damping=damping, held_out=make_tokens(2))
        distances.append(float((logits(model) - dense).norm()))
        assert len(report.summary["drift"]) == len(model.model.layers)
    assert distances[0] < distances[1]


def test_similarity_gives_the_published_ratios():
    """LLaMA-7B's 32 decoder blocks at 20 %: 26 of them, 0.25 · 26 · softmax(10 cos) as in the authors' program."""
    cosines = torch.linspace(0.8, 0.99, 32).tolist()
    ratios = similarity_ratios(cosines, 0.25 * 26 / 32)
    expected = (torch.tensor(cosines[6:], dtype=torch.float64) * 10).softmax(0) * 26 * 0.25
    assert ratios[:6] == [0] * 6
    assert ratios[6:] == pytest.approx(expected.tolist(), rel=0.01)


def test_prices_reach_the_ratio_at_the_least_cost():
    model, costs = make_model("llama"), dict.fromkeys(("uniform", "cost"), 0.0)
    surveys = list(survey(model, make_tokens(), find_parts(model), biases=[HEADS, CHANNELS]))
    for allocation in costs:
        settings = SlimSettings(ratio=0.3, allocation=allocation, multiple=1)
        shapes = plan_slimming(model, make_tokens(), settings, possible_shapes(model, settings), surveys=surveys)
        assert saved_by(find_parts(model), shapes) == pytest.approx(0.3 * block_parameters(model), rel=0.05)
        for block, of_block in zip(surveys, shapes, strict=True):
            priced = zip(block.parts, of_block, strict=True)
            costs[allocation] += sum(part.costs[shape] for part, shape in priced) / block.stream
    assert costs["cost"] <= 1.05 * costs["uniform"]


@pytest.mark.parametrize("allocation", ["uniform", "cost"])
def test_the_ratio_suggested_by_a_refusal_is_possible(allocation):
    model, options = make_model("llama"), {"allocation": allocation, "parts": [HEADS]}
    offered = float(refused("ask for a ratio of at most", slim, model, ratio=0.6, **options).split()[-1].rstrip("."))
    report = slim(model, ratio=offered, recovery="none", **options)
    assert report.summary["removed_fraction"] == pytest.approx(offered, abs=0.001)
    assert report.summary["remarks"] == []


def test_bias_recovery_is_reported_only_for_parts_with_a_bias():
    model = make_model("mistral")
    refused("can take a bias", slim, model, recovery="bias")
    report = slim(model, method="wanda")
    assert report.summary["recovery"] == "none"
    assert set(report.layers["recovery"]) == {"none"}
    report = slim(make_from(transformers.Qwen3Config(**GATED, attention_bias=True)), method="wanda", multiple=1)
    assert report.summary["recovery"] == "bias"
    assert dict(zip(report.layers["part"], report.layers["recovery"], strict=True)) == {HEADS: "bias", CHANNELS: "none"}


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (transformers.ArceeConfig(**GATED), {"ratio": 0.25}),  # channels without a gate
        *((DENSE["llama"](), {"ratio": ratio, "multiple": 8, "target": "layer"}) for ratio in (0.2, 0.3)),
    ],
)
def test_the_requested_ratio_is_reached_for_uneven_shapes(config, options):
    model = make_from(config)
    assert kinds_of(model) == (HEADS, CHANNELS)
    report = slim(model, recovery="linear", **options)
    assert report.summary["removed_fraction"] == pytest.approx(options["ratio"], rel=0.12)


def shared_blocks() -> Any:
    model = make_model("llama")
    model.model.layers[1].mlp.up_proj = model.model.layers[0].mlp.up_proj
    return model


def own_code() -> Any:
    model = make_model("llama")
    model.config.__class__ = type("Own", (transformers.LlamaConfig,), {})
    return model


def gated_queries() -> Any:
    return make_from(transformers.Qwen3_5TextConfig(**GATED, head_dim=8, layer_types=["full_attention"] * 2))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (shared_blocks, {}, "are the same weights"),
        (own_code, {"allocation": "cost"}, "choose the allocation uniform"),
        (gated_queries, {"parts": [HEADS]}, "The heads of Qwen3_5ForCausalLM cannot be taken out"),
        (lambda: make_model("gpt2"), {"parts": [HEADS, CHANNELS]}, "cannot be taken out.*choose channels alone"),
        (lambda: make_model("mixtral"), {}, "is a mixture of experts, which cannot be made smaller yet"),
        (None, {"allocation": "cost", "parts": [HEADS], "ratio": 0.08}, "too large pieces"),
        (None, {"ratio": 0.001}, "No uniform shapes"),
        (None, {"ratio": 0.99}, r"do not hold that much; ask for a ratio of at most 0\."),
        (None, {"method": "depth", "ratio": 0.1}, "not a whole one"),
        (None, {"method": "depth", "ratio": 0.9}, "is all of them; ask for a smaller ratio"),
        (None, {"method": "depth", "ratio": 0.5, "recovery": "exact"}, "leave out parts, allocation and recovery"),
        (None, {"multiple": 56}, "no smaller multiple of 56"),
        (None, {"ratio": 0.9, "allocation": "similarity"}, "do not hold that much"),
        (None, {"ratio": 0.0001, "allocation": "cost"}, "This ratio would remove nothing"),
        (None, {"ratio": 0.001, "allocation": "similarity"}, "This ratio would remove nothing"),
    ],
)
def test_bad_requests_are_one_sentence_and_change_nothing(make, options, message):
    model = make() if make else make_model("llama")
    before = logits(model)
    work: list[rose.Progress] = []
    refused(message, slim, model, progress=work.append, **options)
    assert not work or message == "too large pieces"  # which only prices tell
    assert torch.equal(logits(model), before)


FOUR: dict[str, Any] = {**GATED, "num_hidden_layers": 4}
_GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_head": 4, "n_positions": 64}

DEPENDENT: dict[str, tuple[transformers.PretrainedConfig, tuple[str, ...], str]] = {
    "norms over all heads": (transformers.Olmo2Config(**GATED), (CHANNELS,), r"_norm\.weight belongs to them"),
    "a norm for each head": (transformers.StableLmConfig(**GATED, qk_layernorm=True), (CHANNELS,), "belongs to them"),
    "norms between layers": (transformers.BitNetConfig(**GATED), (), r"sub_norm\.weight belongs to them"),
    "other layers of the heads": (transformers.DogeConfig(**GATED), (CHANNELS,), "belongs to them"),
    "heads in pairs": (make_model("diff_llama").config, (CHANNELS,), "cannot be taken out"),
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
def test_parts_tied_to_other_tensors_are_not_offered(case, tmp_path):
    config, offered, message = DEPENDENT[case]
    model = make_from(config)
    assert kinds_of(model) == offered
    before = logits(model)
    refused(message, slim, model, parts=[HEADS])
    assert torch.equal(logits(model), before)
    if offered:
        slim(model)
        assert torch.equal(logits(reload(model, tmp_path / "slim")), logits(model))
    else:
        refused("choose the method depth", slim, model)


PLACED: dict[str, tuple[transformers.PretrainedConfig, list[int]]] = {
    "positions in some": (transformers.SmolLM3Config(**FOUR), [0, 1, 2, 3]),
    "first ones dense": (make_model("deepseek_v3").config, [1]),
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
def test_types_of_decoder_blocks_stay_true_after_dropping(case, tmp_path):
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
        refused("says by their place what they are", slim, model, method="depth", ratio=ratio)
        return
    assert droppable_blocks(model) == free
    blocks_left = list(blocks)
    slim(model, method="depth", ratio=ratio)
    (gone,) = [index for index, block in enumerate(blocks_left) if block not in list(decoder_blocks(model)[1])]
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
def test_a_model_with_different_blocks_can_be_slimmed_again(second, tmp_path):
    model = make_model("llama")
    slim(model, allocation="cost")
    again = reload(model, tmp_path / "once", plain=False)
    slim(again, **second)
    assert torch.equal(logits(reload(again, tmp_path / "twice", plain=False)), logits(again))
