"""Streamed models match models in memory; files with wrong tensors are refused."""

import errno
import gc
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, Mock

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import rose
from rose.model.load import streaming
from rose.model.load.models import load_skeleton, stored_dtype
from rose.model.network.layers import decoder_blocks
from rose.model.network.network import Network
from rose.output import PARTIAL
from rose.rows import records_table
from rose.tensor_files import digest
from tests.model.families import DENSE, EXPERTS, make_model, make_tokens, on_meta, read_both_ways, save, stop_at
from tests.refusals import cancelled, refused
from tests.tiny import edit_config, save_tiny_llama

pytestmark = pytest.mark.usefixtures("small_batches")
OPTIONS: dict[str, Any] = {"sparsity": 0.5, "block_size": 16, "held_out": make_tokens(2, seed=3)}


def test_parameters_are_empty_in_one_thread_alone():
    with streaming.empty_parameters(), ThreadPoolExecutor(1) as another:
        layers = [nn.Linear(2, 2), another.submit(nn.Linear, 2, 2).result()]
    assert [layer.weight.is_meta for layer in (*layers, nn.Linear(2, 2))] == [True, False, False]


@pytest.mark.parametrize(
    ("family", "dtype", "shard"),
    [
        *((family, "float32", "1GB") for family in DENSE | EXPERTS),  # experts' files hold most of them by themselves
        ("llama", "bfloat16", "20KB"),
        ("llama", "float16", "20KB"),
    ],
)
def test_streamed_pruning_matches_memory_to_the_bit(family, dtype, shard, tmp_path):
    folder = save(family, tmp_path / "dense", max_shard_size=shard)
    assert (len(list(folder.glob("*.safetensors"))) > 2) == (shard == "20KB")
    layers = ["*.1.*"] if family in EXPERTS else None
    prune = partial(rose.prune_model, tokens=make_tokens(), layers=layers, **OPTIONS)
    read = read_both_ways(folder, tmp_path, prune, dtype=dtype)
    assert {parameter.dtype for parameter in read.parameters()} == {getattr(torch, dtype)}
    assert not read.training
    assert not any(parameter.requires_grad for parameter in read.parameters())
    whole, streamed = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("False", "True"))
    assert digest(whole.state_dict()) == digest(streamed.state_dict())
    names = {path.name for path in (tmp_path / "False").iterdir()} - {"model.safetensors"}
    assert names <= {path.name for path in (tmp_path / "True").iterdir()}


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_streamed_analysis_matches_memory(family, tmp_path):
    folder = str(save(family, tmp_path))
    whole, streamed = (rose.load_model(folder, stream=stream)[0] for stream in (False, True))
    records = [list(rose.analyze_model(model, make_tokens(), **OPTIONS)) for model in (whole, streamed)]
    tables = [records_table([replace(record, seconds=0.0) for record in of_a_model]) for of_a_model in records]
    pd.testing.assert_frame_equal(*tables)
    statistics = [rose.collect_statistics(model, make_tokens()) for model in (whole, streamed)]
    assert all(torch.equal(x.hessian, statistics[1][name].hessian) for name, x in statistics[0].items())
    assert on_meta(streamed)


def test_a_streamed_run_resumes_from_its_checkpoint(tmp_path):
    folder = save("gemma3", tmp_path / "dense")
    whole, _ = rose.load_model(str(folder))
    rose.prune_model(whole, make_tokens(), allocation="owl", **OPTIONS)

    options = {**OPTIONS, "allocation": "owl", "checkpoint": tmp_path / "kept"}
    streamed, _ = rose.load_model(str(folder), stream=True)
    cancelled(rose.prune_model, streamed, make_tokens(), progress=stop_at("calibrate", 2), **options)
    assert on_meta(streamed)
    streamed, tokenizer = rose.load_model(str(folder), stream=True)
    rose.prune_model(streamed, make_tokens(), **options)
    rose.save_model(streamed, tokenizer, tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert digest(written.state_dict()) == digest(whole.state_dict())
    weights = save("gemma3", tmp_path / "other") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    other, _ = rose.load_model(str(tmp_path / "other"), stream=True)
    refused("the model's weights differ", rose.prune_model, other, make_tokens(), **options)


@pytest.mark.parametrize("run", [rose.prune_model, rose.prune_structured])
def test_one_block_in_memory_at_a_time(run, tmp_path, monkeypatch):
    model, tokenizer = rose.load_model(str(save("gemma3", tmp_path / "dense")), stream=True)
    blocks = decoder_blocks(model)[1]
    most = []
    read = streaming.BlockFiles.read_several

    def watched(self: streaming.BlockFiles, *arguments: Any) -> dict[str, torch.Tensor]:
        there = sum(any(p is not None and not p.is_meta for p in block.parameters()) for block in blocks)
        outside = [n for n, p in model.named_parameters() if not p.is_meta and ".layers." not in n]
        most.append((there, len(outside)))
        return read(self, *arguments)

    monkeypatch.setattr(streaming.BlockFiles, "read_several", watched)
    run(model, make_tokens(), **OPTIONS if run is rose.prune_model else {"ratio": 0.3, "multiple": 4})
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


@pytest.mark.parametrize("stream", [False, True])
def test_an_output_head_that_differs_from_the_embedding_is_not_tied(folder, stream):
    edit_config(folder, tie_word_embeddings=True)
    model = rose.load_model(str(folder), stream=stream)[0]
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight


def test_files_that_vanish_during_a_run_are_reported(tmp_path):
    model, _ = rose.load_model(str(save("llama", tmp_path)), stream=True)
    (tmp_path / "model.safetensors").unlink()
    refused("cannot be read any more", rose.prune_model, model, make_tokens(), **OPTIONS)
    assert on_meta(model)


def test_a_full_disk_leaves_no_half_checkpoint_and_the_next_save_loses_nothing(tmp_path, monkeypatch):
    model, tokenizer = rose.load_model(str(save("llama", tmp_path / "dense")), stream=True)
    rose.prune_model(model, make_tokens(), **OPTIONS)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(streaming, "save_file", Mock(wraps=streaming.save_file, side_effect=[DEFAULT, DEFAULT, full]))
    refused("free some space", rose.save_model, model, tokenizer, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
    monkeypatch.undo()
    for name in ("out", "again"):
        rose.save_model(model, tokenizer, tmp_path / name)
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("out", "again"))
    assert digest(first.state_dict()) == digest(second.state_dict())
    assert float(first.model.layers[0].mlp.up_proj.weight.eq(0).float().mean()) == 0.5


def test_a_file_is_opened_once_for_many_small_tensors(tmp_path, monkeypatch):
    """Each opening reads the whole header: one a tensor takes minutes for twenty thousand."""
    path = save("llama", tmp_path / "dense") / "model.safetensors"
    more = {f"vision.{number}": torch.full((2,), float(number)) for number in range(300)}
    save_file(load_file(path) | more, path, {"format": "pt"})
    model, tokenizer = rose.load_model(str(tmp_path / "dense"), stream=True)
    opened = Mock(side_effect=streaming.safe_open)
    monkeypatch.setattr(streaming, "safe_open", opened)
    rose.save_model(model, tokenizer, tmp_path / "out")
    assert opened.call_count < 100
    files = [load_file(file) for file in (tmp_path / "out").glob("*.safetensors")]
    assert all(any(torch.equal(file.get(name, tensor + 1), tensor) for file in files) for name, tensor in more.items())


def test_refused_and_stopped_runs_can_start_again(tmp_path):
    model, _ = rose.load_model(str(save("llama", tmp_path / "dense")), stream=True)
    refused("outside the model's vocabulary", rose.prune_model, model, torch.full((2, 4), 10**6), **OPTIONS)
    cancelled(rose.prune_model, model, make_tokens(), progress=stop_at("prune", 0), **OPTIONS)
    assert len(rose.prune_model(model, make_tokens(), **OPTIONS).layers) == len(rose.prunable_layers(model))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "No such file .*model.safetensors"),
        (lambda folder: os.truncate(folder / "model.safetensors", 9000), "missing, corrupt or of an unknown kind"),
        (lambda folder: edit_config(folder, num_hidden_layers=3), "no tensor named model.layers.2"),
        (lambda folder: edit_config(folder, quantization_config={"quant_method": "fp8"}), "holds quantized weights"),
        (lambda folder: make_model("llama").model.save_pretrained(folder), r"lacks lm_head\.weight"),
    ],
)
def test_files_that_cannot_be_streamed_are_refused(harm, message, tmp_path):
    folder = save("llama", tmp_path / "model")
    harm(folder)
    refused(message, rose.load_model, str(folder), stream=True)


def test_runs_that_need_the_whole_model_are_refused_on_a_streamed_one(tmp_path):
    model, _ = rose.load_model(str(save("llama", tmp_path / "dense")), stream=True)
    with pytest.raises(rose.RoseError, match="Sensitivity needs the whole model"):
        rose.prune_model(model, make_tokens(), allocation="sensitivity", **OPTIONS)
    refused("load it without streaming", rose.perplexity, model, make_tokens())
    rose.prune_model(model, make_tokens(), layers=["*self_attn*"], **OPTIONS)
    for lose in (rose.prune_model, rose.prune_structured):
        refused("pruned already; save it, and load what was saved", lose, model, make_tokens())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_llama(tmp_path / "model", hidden=32)


@pytest.mark.parametrize("stream", [False, True])
def test_undeclared_decoder_blocks_are_refused(folder, stream):
    edit_config(folder, num_hidden_layers=2)
    not_read(folder, r"nine tensors .* does not name, such as model\.layers\.2\.input_layernorm", stream)


@pytest.mark.parametrize("stream", [False, True])
def test_masks_beside_weights_are_refused_and_ignored_tensors_are_not(folder, stream, monkeypatch):
    path, block = folder / "model.safetensors", "model.layers.3.mlp.up_proj.weight"
    tensors = load_file(path)
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.3.*"])
    save_file(tensors | {block: torch.zeros(2, 2)}, path, {"format": "pt"})
    rose.load_model(str(folder), stream=stream)
    save_file(tensors | {"model.layers.0.mlp.up_proj.mask": torch.zeros(2, 2)}, path, {"format": "pt"})
    not_read(folder, r"one tensor .*, such as model\.layers\.0\.mlp\.up_proj\.mask; apply masks", stream)


def not_read(folder: Path, message: str, stream: bool) -> None:
    refused(message, rose.load_model, folder, stream=stream)


def shard(folder: Path) -> Path:
    """Writes the weights a second time, in two shards with their index, and returns the first."""
    tensors = load_file(folder / "model.safetensors")
    names = {key: f"model-0000{1 + (key > 'model.layers.1')}-of-00002.safetensors" for key in tensors}
    for name in set(names.values()):
        save_file({key: tensors[key] for key in tensors if names[key] == name}, folder / name, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder / "model-00001-of-00002.safetensors"


@pytest.mark.parametrize("stream", [False, True])
def test_duplicate_weights_and_missing_shards_are_refused(folder, stream):
    first = shard(folder)
    not_read(folder, r"holds both model\.safetensors and, by .*, model-00001\S+.* old one", stream)
    (folder / "model.safetensors").rename(folder / "whole")
    first.unlink()
    not_read(folder, r"cannot be loaded; .*No such file .*model-00001-of-00002\.safetensors", stream)
    for path in folder.glob("model-*"):
        path.unlink()
    (folder / "whole").rename(folder / "model.safetensors")  # saved over shards, whose index stays
    rose.load_model(str(folder), stream=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_the_format_is_read_from_the_weights_not_the_configuration(folder, stream, monkeypatch, caplog):
    monkeypatch.setenv("ROSE_COMPUTE", "bfloat16")
    edit_config(folder, dtype="bfloat16")
    assert stored_dtype(str(folder)) == Network(load_skeleton(str(folder))).dtype == torch.float32
    assert Network(rose.load_model(str(folder), stream=stream)[0]).dtype == torch.float32
    path, norm = folder / "model.safetensors", "model.norm.weight"
    edit_config(folder, dtype="float32")
    tensors = {key: tensor.bfloat16() for key, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    assert stored_dtype(str(folder)) == Network(rose.load_model(str(folder), stream=stream)[0]).dtype == torch.bfloat16
    assert not caplog.text
    save_file(tensors | {norm: tensors[norm].float()}, path, {"format": "pt"})
    assert Network(rose.load_model(str(folder), stream=stream)[0]).dtype == torch.bfloat16
    assert f"is read in bfloat16, which rounds one tensor stored in a wider format, such as {norm}" in caplog.text


def test_fp8_weights_are_dequantized_with_a_gpu_too(folder, monkeypatch):
    name, path = "model.layers.1.mlp.up_proj.weight", folder / "model.safetensors"
    tensors = load_file(path)
    for key in [key for key in tensors if "proj" in key]:
        scales = torch.full([-(-size // 32) for size in tensors[key].shape], 0.01)
        tensors |= {key: (100 * tensors[key]).to(torch.float8_e4m3fn), f"{key}_scale_inv": scales}
    save_file(tensors, path, {"format": "pt"})
    edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [32, 32]})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (9, 0))
    model, _ = rose.load_model(str(folder))
    monkeypatch.undo()
    assert torch.allclose(model.get_parameter(name), tensors[name].float() / 100)
    layer = model.get_submodule(name.removesuffix(".weight"))
    layer.weight = nn.Parameter(tensors[name], requires_grad=False)
    refused(r"up_proj has weights in float8_e4m3fn, which cannot be pruned", rose.prunable_layers, model)


class Program:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickles_are_not_read(folder, tmp_path, name, stream):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors | {"more": Program(tmp_path / "ran")}, folder / name)
    not_read(folder, r"[Nn]o (such )?file .*model.safetensors|Error while deserializing header", stream)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_numbers_are_named(folder, value):
    name, path = "model.layers.1.mlp.up_proj.weight", folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name][3, 4] = value
    save_file(tensors, path, {"format": "pt"})
    refused(f"holds NaN or infinity in {name}; its file is damaged", rose.load_model, str(folder))
    model, tokenizer = rose.load_model(str(folder), stream=True)
    tokens = rose.load_tokens("packaged", tokenizer, samples=2, length=16)
    refused(f"holds NaN or infinity in {name}", rose.prune_model, model, tokens, block_size=16)
    for stream in (False, True):
        broken, _ = rose.load_model(str(folder), finite=False, stream=stream)
        with Network(broken).residence.visit(1, torch.device("cpu")) as block:
            assert int((~block.mlp.up_proj.weight.isfinite()).sum()) == 1
