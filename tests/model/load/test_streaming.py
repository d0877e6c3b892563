"""Models whose weights stay in files: the same numbers as in memory, one decoder block at a time, shard by shard."""

import errno
import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import rose
from rose.model.load import streaming
from rose.model.network.layers import decoder_blocks
from rose.output import PARTIAL
from rose.tensor_files import digest
from tests.model.families import DENSE, make_model, make_tokens, on_meta, save, stop_at

pytestmark = pytest.mark.usefixtures("small_batches")
OPTIONS: dict[str, Any] = {"sparsity": 0.5, "block_size": 16, "held_out": make_tokens(2, seed=3)}


@pytest.mark.parametrize("family", DENSE)
def test_pruned_as_in_memory_to_the_bit(family, tmp_path):
    folder = save(family, tmp_path / "dense")
    whole, tokenizer = rose.load_model(str(folder))
    expected = rose.prune_model(whole, make_tokens(), **OPTIONS)
    rose.save_model(whole, tokenizer, tmp_path / "whole")
    streamed, tokenizer = rose.load_model(str(folder), stream=True)
    found = rose.prune_model(streamed, make_tokens(), **OPTIONS)
    assert on_meta(streamed)
    rose.save_model(streamed, tokenizer, tmp_path / "streamed", report=found)
    assert on_meta(streamed)
    assert found.layers.drop(columns="seconds").equals(expected.layers.drop(columns="seconds"))
    one = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "streamed")
    assert digest(one.state_dict()) == digest(other.state_dict())
    assert type(one) is type(other)
    configurations = [json.loads((tmp_path / x / "config.json").read_text()) for x in ("whole", "streamed")]
    assert configurations[0] == configurations[1]
    names = {path.name for path in (tmp_path / "whole").iterdir()} - {"model.safetensors"}
    assert names <= {path.name for path in (tmp_path / "streamed").iterdir()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_and_sharded_files(dtype, tmp_path):
    folder = save("llama", tmp_path / "dense", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    models = []
    for stream in (False, True):
        model, tokenizer = rose.load_model(str(folder), stream=stream, dtype=dtype)
        rose.prune_model(model, make_tokens(), **OPTIONS)
        rose.save_model(model, tokenizer, tmp_path / f"{stream}")
        models.append(AutoModelForCausalLM.from_pretrained(tmp_path / f"{stream}"))
    assert models[1].model.layers[0].mlp.up_proj.weight.dtype == getattr(torch, dtype)
    assert digest(models[0].state_dict()) == digest(models[1].state_dict())


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_analyzed_as_in_memory(family, tmp_path):
    folder = str(save(family, tmp_path))
    whole, streamed = (rose.load_model(folder, stream=stream)[0] for stream in (False, True))
    one, other = (list(rose.analyze_model(model, make_tokens(), **OPTIONS)) for model in (whole, streamed))
    assert [(r.layer, r.method, r.relative_error, r.held_out_error) for r in one] == [
        (r.layer, r.method, r.relative_error, r.held_out_error) for r in other
    ]
    statistics = [rose.collect_statistics(model, make_tokens()) for model in (whole, streamed)]
    assert all(torch.equal(x.hessian, statistics[1][name].hessian) for name, x in statistics[0].items())
    assert on_meta(streamed)


def test_a_checkpoint_goes_on(tmp_path):
    folder = save("gemma3", tmp_path / "dense")
    whole, _ = rose.load_model(str(folder))
    rose.prune_model(whole, make_tokens(), allocation="owl", **OPTIONS)

    options = {**OPTIONS, "allocation": "owl", "checkpoint": tmp_path / "kept"}
    streamed, _ = rose.load_model(str(folder), stream=True)
    with pytest.raises(rose.Cancelled):
        rose.prune_model(streamed, make_tokens(), progress=stop_at("calibrate", 2), **options)
    assert on_meta(streamed)
    (tmp_path / "kept" / "activations-00002" / "calibration-00000.safetensors").unlink()  # so the blocks run again
    streamed, tokenizer = rose.load_model(str(folder), stream=True)
    rose.prune_model(streamed, make_tokens(), **options)
    rose.save_model(streamed, tokenizer, tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert digest(written.state_dict()) == digest(whole.state_dict())
    save("gemma3", tmp_path / "other")
    content = bytearray((tmp_path / "other" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "other" / "model.safetensors").write_bytes(content)
    other, _ = rose.load_model(str(tmp_path / "other"), stream=True)
    with pytest.raises(rose.RoseError, match="the model's weights differ"):
        rose.prune_model(other, make_tokens(), **options)


def test_one_block_in_memory_at_a_time(tmp_path, monkeypatch):
    model, tokenizer = rose.load_model(str(save("gemma3", tmp_path / "dense")), stream=True)
    blocks = decoder_blocks(model)[1]
    most = []
    read = streaming.BlockFiles.read

    def watched(self: streaming.BlockFiles, key: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        there = sum(any(not p.is_meta for p in block.parameters()) for block in blocks)
        outside = [n for n, p in model.named_parameters() if not p.is_meta and ".layers." not in n]
        most.append((there, len(outside)))
        return read(self, key, dtype)

    monkeypatch.setattr(streaming.BlockFiles, "read", watched)
    rose.prune_model(model, make_tokens(), **OPTIONS)
    rose.save_model(model, tokenizer, tmp_path / "out")
    assert max(there for there, _ in most) == 1
    assert all(not outside for there, outside in most[-40:])


def test_pruned_weights_leave_no_files_behind(tmp_path):
    (tmp_path / "scratch" / f"{PARTIAL}dead").mkdir(parents=True)  # of a run that was killed
    model, _ = rose.load_model(str(save("llama", tmp_path / "dense")), stream=True, scratch=tmp_path / "scratch")
    rose.prune_model(model, make_tokens(), **OPTIONS)
    assert len(list((tmp_path / "scratch").rglob("block-*"))) == 2
    del model
    gc.collect()
    assert not list((tmp_path / "scratch").iterdir())


# ---- what cannot be streamed


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_an_output_head_that_differs_from_the_embedding_is_not_tied(tmp_path):
    folder = save("llama", tmp_path / "dense")
    change_config(folder, tie_word_embeddings=True)
    for stream in (False, True):
        model = rose.load_model(str(folder), stream=stream)[0]
        assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight


def test_files_that_vanish_during_a_run_are_reported(tmp_path):
    model, _ = rose.load_model(str(save("llama", tmp_path)), stream=True)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(rose.RoseError, match="cannot be read any more"):
        rose.prune_model(model, make_tokens(), **OPTIONS)
    assert on_meta(model)


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    model, tokenizer = rose.load_model(str(save("llama", tmp_path / "dense")), stream=True)
    rose.prune_model(model, make_tokens(), **OPTIONS)
    write, calls = streaming.save_file, []

    def full(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*arguments)

    monkeypatch.setattr(streaming, "save_file", full)
    with pytest.raises(rose.RoseError, match="free some space"):
        rose.save_model(model, tokenizer, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
    monkeypatch.undo()
    rose.save_model(model, tokenizer, tmp_path / "out")  # nothing was lost
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    with safe_open(shards[0], "pt") as file:
        assert float(file.get_tensor("model.layers.0.mlp.up_proj.weight").eq(0).float().mean()) == 0.5


def test_a_refused_or_stopped_run_can_begin_again(tmp_path):
    model, _ = rose.load_model(str(save("llama", tmp_path / "dense")), stream=True)
    with pytest.raises(rose.RoseError, match="outside the model's vocabulary"):
        rose.prune_model(model, torch.full((2, 4), 10**6), **OPTIONS)

    def stop(progress: rose.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rose.prune_model(model, make_tokens(), progress=stop, **OPTIONS)
    assert len(rose.prune_model(model, make_tokens(), **OPTIONS).layers) == len(rose.prunable_layers(model))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "lacks model.safetensors; only safetensors can"),
        (lambda folder: os.truncate(folder / "model.safetensors", 9000), "missing, corrupt or of an unknown kind"),
        (lambda folder: change_config(folder, num_hidden_layers=3), "no tensor named model.layers.2"),
        (lambda folder: change_config(folder, intermediate_size=64), "is of shape .56, 32. in the files"),
        (lambda folder: change_config(folder, quantization_config={"quant_method": "fp8"}), "holds quantized weights"),
        (lambda folder: make_model("llama").model.save_pretrained(folder), r"lacks lm_head\.weight"),
    ],
)
def test_files_that_cannot_be_streamed_are_refused(harm, message, tmp_path):
    folder = save("llama", tmp_path / "model")
    harm(folder)
    with pytest.raises(rose.RoseError, match=message):
        rose.load_model(str(folder), stream=True)


def test_runs_that_need_the_whole_model_are_refused_on_a_streamed_one(tmp_path):
    model, _ = rose.load_model(str(save("llama", tmp_path / "dense")), stream=True)
    with pytest.raises(rose.RoseError, match="Sensitivity needs the whole model"):
        rose.prune_model(model, make_tokens(), allocation="sensitivity", **OPTIONS)
    with pytest.raises(rose.RoseError, match="load it without streaming"):
        rose.perplexity(model, make_tokens())
    rose.prune_model(model, make_tokens(), layers=["*self_attn*"], **OPTIONS)
    for lose in (rose.prune_model, rose.prune_structured):
        with pytest.raises(rose.RoseError, match="pruned already; save it, and load what was saved"):
            lose(model, make_tokens())
