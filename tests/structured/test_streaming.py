"""Models made smaller whose weights stay in files: the same bits as in memory, one decoder block at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import rose
from rose.files import digest
from rose.model.load import streaming
from rose.model.network.layers import decoder_blocks
from rose.structured.memory import estimate_slim_memory
from tests.model.families import DENSE, logits, make_model, make_tokens
from tests.structured.test_slimming import UNSAID
from tests.tiny import byte_tokenizer

pytestmark = pytest.mark.usefixtures("small_batches")
OPTIONS: dict[str, Any] = {"ratio": 0.3, "multiple": 4, "target": "dense", "held_out": make_tokens(2, seed=3)}


def save(family: str, folder: Path, **options: Any) -> str:
    make_model(family).save_pretrained(folder, **options)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def on_meta(model: nn.Module) -> bool:
    return all(parameter.is_meta for parameter in model.parameters())


def slim_both(folder: str, out: Path, dtype: str = "float32", **options: Any) -> list[Any]:
    """Whole and streamed: reports, configurations and digests of what was written must agree; returns the two models
    read again."""
    found = []
    for stream in (False, True):
        model, tokenizer = rose.load_model(folder, stream=stream, dtype=dtype)
        report = rose.prune_structured(model, make_tokens(), **OPTIONS | options)
        if stream:
            assert on_meta(model)
        rose.save_model(model, tokenizer, out / f"{stream}", report=report)
        read, _ = rose.load_model(str(out / f"{stream}"), dtype=dtype)
        configuration = json.loads((out / f"{stream}" / "config.json").read_text())
        summary = {name: value for name, value in report.summary.items() if name != "seconds"}
        found.append((read, configuration, report.layers.drop(columns="seconds").to_csv(), summary))
    (whole, *said), (streamed, *other) = found
    assert said == other
    assert digest(whole.state_dict()) == digest(streamed.state_dict())
    return [whole, streamed]


@pytest.mark.parametrize("family", DENSE)
def test_every_family_as_in_memory_to_the_bit(family: str, tmp_path: Path) -> None:
    folder = save(family, tmp_path / "dense")
    uniform = family not in UNSAID
    _, streamed = slim_both(folder, tmp_path, allocation="uniform" if uniform else "cost")
    before = sum(parameter.numel() for parameter in make_model(family).parameters())
    assert sum(parameter.numel() for parameter in streamed.parameters()) < before
    if uniform:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "True")
        assert torch.equal(logits(plain), logits(streamed))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "slimllm", "allocation": "similarity"},
        {"method": "obs", "allocation": "cost", "dtype": "bfloat16"},
        {"method": "wanda", "target": "layer", "parts": ["channels"]},
    ],
)
def test_every_way_as_in_memory_to_the_bit(options: dict[str, Any], tmp_path: Path) -> None:
    slim_both(save("llama", tmp_path / "dense", max_shard_size="20KB"), tmp_path, **options)


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "mixtral"])
def test_decoder_blocks_leave_the_files(family: str, tmp_path: Path) -> None:
    ratio = 0.25 if family == "gemma3" else 0.5
    _, streamed = slim_both(save(family, tmp_path / "dense"), tmp_path, method="depth", ratio=ratio)
    assert len(decoder_blocks(streamed)[1]) == (3 if family == "gemma3" else 1)


def test_slim_then_prune_as_in_memory_to_the_bit(tmp_path: Path) -> None:
    folder, written = save("llama", tmp_path / "dense"), []
    for stream in (False, True):
        model, tokenizer = rose.load_model(folder, stream=stream)
        rose.prune_structured(model, make_tokens(), **OPTIONS)
        pruned = rose.prune_model(model, make_tokens(), sparsity=0.5, block_size=16)
        assert (pruned.layers["sparsity"] - 0.5).abs().max() < 0.01
        rose.save_model(model, tokenizer, tmp_path / f"{stream}")
        written.append(digest(rose.load_model(str(tmp_path / f"{stream}"))[0].state_dict()))
    assert written[0] == written[1]


def test_slim_twice(tmp_path: Path) -> None:
    folder, written = save("llama", tmp_path / "dense"), []
    for stream in (False, True):
        model, tokenizer = rose.load_model(folder, stream=stream)
        rose.prune_structured(model, make_tokens(), ratio=0.2, multiple=4)
        rose.prune_structured(model, make_tokens(), ratio=0.2, multiple=4, parts=["channels"])
        rose.prune_structured(model, make_tokens(), ratio=0.5, method="depth")
        rose.save_model(model, tokenizer, tmp_path / f"{stream}")
        written.append(digest(rose.load_model(str(tmp_path / f"{stream}"))[0].state_dict()))
    assert written[0] == written[1]


def test_one_block_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = rose.load_model(save("gemma3", tmp_path / "dense"), stream=True)
    blocks = decoder_blocks(model)[1]
    most = []
    read = streaming.BlockFiles.read

    def watched(self: streaming.BlockFiles, key: str) -> torch.Tensor:
        most.append(sum(any(p is not None and not p.is_meta for p in block.parameters()) for block in blocks))
        return read(self, key)

    monkeypatch.setattr(streaming.BlockFiles, "read", watched)
    rose.prune_structured(model, make_tokens(), **OPTIONS)
    rose.save_model(model, tokenizer, tmp_path / "out")
    assert max(most) == 1


def test_memory_by_the_formula() -> None:
    """Hidden size 32, 56 channels, float32; see docs/memory.md."""
    model, tokens = make_model("llama"), {"samples": 4, "length": 24}
    memory = estimate_slim_memory(model, **tokens, parts=["heads", "channels"], dense_targets=True)
    assert memory.work == 4 * (8 * 56**2 + 6 * 32 * 56)
    assert memory.hessians == 4 * 56**2
    assert memory.waiting == 4 * 96 * (3 * 32 + 56 + (32 + 56) + 32)
    heads = estimate_slim_memory(model, **tokens, parts=["heads"])
    assert (heads.work, heads.hessians) == (4 * (8 * 32**2 + 6 * 32 * 32), 4 * 32**2)
    depth = estimate_slim_memory(model, **tokens, method="depth")
    assert (depth.hessians, depth.waiting) == (4 * 32**2, 0)


def test_a_stopped_run_leaves_a_streamed_model_as_it_was(tmp_path: Path) -> None:
    folder = save("gemma3", tmp_path / "dense")
    model, tokenizer = rose.load_model(folder, stream=True)
    names = {name: parameter.shape for name, parameter in model.named_parameters()}

    def stop(progress: rose.Progress) -> None:
        if progress.stage == "prune" and progress.block_index == 2:
            raise rose.Cancelled

    with pytest.raises(rose.Cancelled):
        rose.prune_structured(model, make_tokens(), progress=stop, **OPTIONS)
    assert on_meta(model)
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == names
    rose.save_model(model, tokenizer, tmp_path / "out")
    assert digest(rose.load_model(str(tmp_path / "out"))[0].state_dict()) == digest(
        rose.load_model(folder)[0].state_dict()
    )
    assert rose.prune_structured(model, make_tokens(), **OPTIONS).summary["removed_fraction"] > 0.2


def test_what_was_pruned_would_be_lost(tmp_path: Path) -> None:
    model, _ = rose.load_model(save("llama", tmp_path / "dense"), stream=True)
    rose.prune_model(model, make_tokens(), sparsity=0.5, block_size=16)
    with pytest.raises(rose.RoseError, match="pruned already; save it, and load what was saved"):
        rose.prune_structured(model, make_tokens(), **OPTIONS)
