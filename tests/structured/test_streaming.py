"""Slimming a streamed model gives the same bits as in memory; stopped runs resume."""

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import rose
from rose.model.network.network import Network
from rose.structured.plan import estimate_slim_memory
from rose.structured.settings import SlimSettings
from rose.tensor_files import digest
from tests.model.families import DENSE, figures, logits, make_model, make_tokens, on_meta, read_both_ways, save, stop_at
from tests.refusals import cancelled, refused
from tests.structured.test_slimming import UNSAID

pytestmark = pytest.mark.usefixtures("small_batches")
OPTIONS: dict[str, Any] = {"ratio": 0.3, "multiple": 4, "target": "dense", "held_out": make_tokens(2, seed=3)}


def slim(model: nn.Module, **options: Any) -> rose.RunReport:
    return rose.prune_structured(model, make_tokens(), **OPTIONS | options)


@pytest.mark.parametrize("family", DENSE)
def test_every_family_matches_the_run_in_memory_to_the_bit(family, tmp_path):
    folder = save(family, tmp_path / "dense")
    uniform = family not in UNSAID
    streamed = read_both_ways(folder, tmp_path, partial(slim, allocation="uniform" if uniform else "cost"))
    before = sum(parameter.numel() for parameter in make_model(family).parameters())
    assert sum(parameter.numel() for parameter in streamed.parameters()) < before
    if uniform:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "True")
        assert torch.equal(logits(plain), logits(streamed))


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", {"method": "slimllm", "allocation": "similarity"}),
        ("bfloat16", {"method": "obs", "allocation": "cost"}),
        ("float32", {"method": "wanda", "target": "layer", "parts": ["channels"]}),
    ],
)
def test_every_method_matches_the_run_in_memory_to_the_bit(dtype, options, tmp_path):
    folder = save("llama", tmp_path / "dense", max_shard_size="20KB")
    read_both_ways(folder, tmp_path, partial(slim, **options), dtype=dtype)


def test_successive_changes_match_the_run_in_memory_to_the_bit(tmp_path):
    def prune(model: nn.Module) -> rose.RunReport:
        report = rose.prune_model(model, make_tokens(), sparsity=0.5, block_size=16)
        assert (report.layers["sparsity"] - 0.5).abs().max() < 0.01
        return report

    folder = save("llama", tmp_path / "dense")
    channels, drop = partial(slim, ratio=0.2, parts=["channels"]), partial(slim, ratio=0.5, method="depth")
    read_both_ways(folder, tmp_path / "thrice", partial(slim, ratio=0.2), channels, drop)
    read_both_ways(folder, tmp_path / "pruned", slim, prune)


def test_memory_estimates_match_the_formula():
    """Hidden size 32, 56 channels, float32; see docs/large-models.md."""
    model, tokens = make_model("llama"), {"samples": 4, "length": 24}
    memory = estimate_slim_memory(model, SlimSettings(target="dense"), **tokens)
    assert memory.work == 4 * (8 * 56**2 + 6 * 32 * 56)
    assert memory.hessians == 4 * 56**2
    assert memory.waiting == 4 * 96 * (3 * 32 + 56 + (32 + 56) + 32)
    heads = estimate_slim_memory(model, SlimSettings(parts=["heads"]), **tokens)
    assert (heads.work, heads.hessians) == (4 * (8 * 32**2 + 6 * 32 * 32), 4 * 32**2)
    depth = estimate_slim_memory(model, SlimSettings(method="depth", target="dense"), **tokens)
    assert (depth.hessians, depth.waiting) == (4 * 32**2, 0)


def test_the_same_slimming_gives_the_same_model(tmp_path):
    """The fingerprint ignores the time of a run, so a later run resumes its checkpoint."""
    folder = save("llama", tmp_path / "dense")
    models = [rose.load_model(folder, stream=True)[0] for _ in range(2)]
    for model in models:
        slim(model)
    first, second = (Network(model).residence.fingerprint() for model in models)
    assert first == second


def test_a_stopped_run_leaves_a_streamed_model_as_it_was(tmp_path):
    folder = save("gemma3", tmp_path / "dense")
    model, tokenizer = rose.load_model(folder, stream=True)
    names = {name: parameter.shape for name, parameter in model.named_parameters()}
    cancelled(slim, model, progress=stop_at("prune", 2))
    assert on_meta(model)
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == names
    rose.save_model(model, tokenizer, tmp_path / "out")
    saved, dense = (rose.load_model(str(tmp_path / name))[0] for name in ("out", "dense"))
    assert digest(saved.state_dict()) == digest(dense.state_dict())
    assert slim(model).summary["removed_fraction"] > 0.2


def run(family: str, folder: Path | None, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[str, Any]:
    """Slims a dense tiny model; returns the digest of its weights, and what its report says."""
    model = make_model(family).to(dtype)
    report = rose.prune_structured(model, make_tokens(), checkpoint=folder, **OPTIONS | options)
    return digest(model.state_dict()), figures(report)


def interrupt(folder: Path, family: str = "gemma3", **options: Any) -> None:
    cancelled(run, family, folder, progress=stop_at("prune", 2 if family == "gemma3" else 1), **options)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2", {}),  # stores its weights transposed, and has biases
        ("llama", {"method": "slimllm", "allocation": "similarity"}),
        ("llama", {"allocation": "cost", "target": "layer", "held_out": None}),
        ("llama", {"dtype": torch.bfloat16}),
    ],
)
def test_resumed_runs_give_the_same_weights_and_report(family, options, tmp_path):
    expected = run(family, None, **options)
    interrupt(tmp_path, family, **options)
    assert run(family, tmp_path, **options) == expected


def test_finished_blocks_are_not_reduced_again_and_prices_not_computed_again(tmp_path):
    expected = run("gemma3", None)
    interrupt(tmp_path)
    events: list[rose.Progress] = []
    assert run("gemma3", tmp_path, progress=events.append) == expected
    assert {event.stage for event in events} <= {"embed", "calibrate", "propagate", "prune", "done"}
    assert {event.block_index for event in events if event.stage == "prune"} == {2, 3}
    assert not list(tmp_path.glob("activations*"))
    events.clear()
    assert run("gemma3", tmp_path, progress=events.append) == expected
    assert {event.stage for event in events} == {"done"}


def test_a_streamed_run_resumes(tmp_path):
    folder, checkpoint = str(save("gemma3", tmp_path / "dense")), tmp_path / "kept"
    expected, report = run("gemma3", None)
    model, _ = rose.load_model(folder, stream=True)
    with pytest.raises(rose.Cancelled):
        rose.prune_structured(model, make_tokens(), checkpoint=checkpoint, progress=stop_at("calibrate", 2), **OPTIONS)
    for _ in range(2):  # the second time all is done already
        model, tokenizer = rose.load_model(folder, stream=True)
        again = rose.prune_structured(model, make_tokens(), checkpoint=checkpoint, **OPTIONS)
        assert on_meta(model)
        assert figures(again) == report
    rose.save_model(model, tokenizer, tmp_path / "out")
    assert digest(rose.load_model(str(tmp_path / "out"))[0].state_dict()) == expected


def test_the_blocks_to_drop_are_remembered(tmp_path):
    options: dict[str, Any] = {"method": "depth", "ratio": 0.25}
    expected, told = run("gemma3", tmp_path, **options)[0], Mock()
    assert run("gemma3", tmp_path, progress=told, **options)[0] == expected
    assert not told.called


def prune(folder: Path) -> None:
    rose.prune_model(make_model("gemma3"), make_tokens(), sparsity=0.5, block_size=16, checkpoint=folder)


@pytest.mark.parametrize(
    ("begun", "other", "message"),
    [
        (interrupt, partial(run, "gemma3", ratio=0.4), "ratio was 0.3 there and is 0.4 now"),
        (interrupt, partial(run, "gemma3", parts=["channels"]), r"parts was \['heads', 'channels'\] there"),
        (interrupt, partial(run, "gemma3", dtype=torch.bfloat16), "the model's weights differ"),
        (interrupt, prune, "that of slim, not of prune"),
        (prune, partial(run, "gemma3"), "that of prune, not of slim"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(begun, other, message, tmp_path):
    begun(tmp_path)
    refused(message, other, tmp_path)
