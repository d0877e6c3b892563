"""Killed runs, full disks and damaged files: finished blocks are kept, and results are equal to the bit."""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

import rose
from rose import files as durable
from rose import tensor_files
from rose.model.network.layers import low_rank_tensors
from rose.model.network.network import Network
from rose.model.run import checkpoint as checkpoint_module
from rose.model.run.checkpoint import open_checkpoint
from rose.tensor_files import digest
from tests.model.families import LENGTH, make_model, make_tokens, save, stop_at
from tests.refusals import cancelled, refused

ROOT = Path(__file__).parents[3]
OPTIONS: dict[str, Any] = {"method": "rose", "sparsity": 0.5, "block_size": 16}


def run(folder: Path | None, model: Any = None, tokens: Tensor | None = None, **options: Any) -> tuple[str, Any]:
    """Prunes a dense tiny model; returns the digest of its weights, and the report."""
    model, tokens = model or make_model("gemma3"), make_tokens() if tokens is None else tokens
    report = rose.prune_model(model, tokens, checkpoint=folder, **{**OPTIONS, **options})
    return digest(model.state_dict()), report


def factors_of(model: nn.Module) -> dict[str, Tensor]:
    return low_rank_tensors((layer.name, layer.module) for layer in rose.prunable_layers(model))


@pytest.fixture(scope="module", autouse=True)
def small_batches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # for the runs that tests here share, too
        patch.setattr("rose.model.walk.forward.BATCH_TOKENS", 2 * LENGTH + 5)
        yield


@pytest.fixture(scope="module")
def undisturbed(small_batches: None) -> tuple[str, rose.RunReport]:
    return run(None)


@pytest.fixture(scope="module")
def stopped(small_batches: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run that was stopped in decoder block 2 of 4."""
    folder = tmp_path_factory.mktemp("stopped")
    cancelled(run, folder, progress=stop_at("calibrate", 2))
    return folder


@pytest.fixture
def begun(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "begun")


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2", {"bits": 4, "group": "row"}),  # stores its weights transposed
        ("llama", {"layers": ["*.1.*.o_proj"]}),  # a decoder block without chosen layers comes first
        ("llama", {"method": "measured", "held_out": make_tokens(2, seed=3), "allocation": "sensitivity"}),
        ("llama", {"method": "oats", "target": "layer"}),
        ("gemma3", {"target": "layer", "true_sequential": True}),
        ("llama", {"compute": "bfloat16"}),
        ("llama", {"dtype": torch.bfloat16, "bits": 8, "group": "row", "method": "rose_admm"}),
        ("deepseek_v2", {"bits": 3, "group": "row", "sparsity": "2:4"}),
        ("deepseek_v2", {"method": "oats"}),  # experts, in both layouts
        ("gpt_oss", {"method": "oats"}),
    ],
)
def test_resumed_runs_give_the_same_weights_and_report(family, options, tmp_path):
    options = OPTIONS | options
    dtype = options.pop("dtype", torch.float32)
    plain = make_model(family).to(dtype)
    expected = rose.prune_model(plain, make_tokens(), **options)
    cancelled(run, tmp_path, make_model(family).to(dtype), progress=stop_at("prune", 1), **options)
    options.pop("compute", None)  # "auto" goes on in the format of the checkpoint
    for _ in range(2):  # a finished run ends at once, with the same report
        model = make_model(family).to(dtype)
        weights, figures_of_run = run(tmp_path, model, **options)
        assert weights == digest(plain.state_dict())
        assert figures_of_run.layers.drop(columns="seconds").equals(expected.layers.drop(columns="seconds"))
        assert figures_of_run.summary["drift"] == expected.summary["drift"]
        factors = factors_of(model)
        assert digest(factors) == digest(factors_of(plain))
        assert bool(factors) == (options.get("method") == "oats")


def pruned_in(events: list[rose.Progress]) -> set[int]:
    return {event.block_index for event in events if event.stage == "prune"}


def test_finished_blocks_are_not_pruned_again(begun, undisturbed):
    events: list[rose.Progress] = []
    weights, report = run(begun, progress=events.append)
    assert weights == undisturbed[0]
    assert pruned_in(events) == {2, 3}
    assert [event.fraction for event in events] == sorted(event.fraction for event in events)
    assert events[-1].remaining == 0
    assert len(report.layers) == events[-1].layers_done == 28
    assert not [path for path in begun.iterdir() if path.is_dir()]  # large, and of no use any more
    events.clear()
    again, _ = run(begun, progress=events.append)
    assert again == undisturbed[0]
    assert {event.stage for event in events} == {"done"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # a weight that is a little off, which no format notices
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
@pytest.mark.parametrize(
    ("name", "restarts_at"),
    [
        ("block-00000.safetensors", 0),
        ("block-00001.safetensors", 1),
        ("activations/calibration-00001.safetensors", 2),
        ("allocation.safetensors", 2),
        ("lock", 2),
    ],
)
def test_damaged_checkpoint_files_are_computed_again(harm, name, restarts_at, begun, undisturbed, caplog):
    if name != "lock" or harm is Path.unlink:
        harm(begun / name)
    events: list[rose.Progress] = []
    with caplog.at_level(logging.WARNING):
        resumed, report = run(begun, progress=events.append)
    assert resumed == undisturbed[0]
    assert report.layers["layer"].tolist() == undisturbed[1].layers["layer"].tolist()
    assert min(pruned_in(events)) == restarts_at
    if name.startswith("block") and harm is not Path.unlink:
        assert f"decoder block {restarts_at} is pruned again" in caplog.text


def test_a_damaged_description_is_refused(begun):
    before = sorted(path.name for path in begun.iterdir())
    cut(begun / "run.json")
    refused(r"run\.json is damaged.*; put it back, or remove the folder", run, begun)
    assert sorted(path.name for path in begun.iterdir()) == before


def with_another_norm() -> nn.Module:
    model = make_model("gemma3")
    model.model.norm.weight.data[3] += 1
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.6}, "sparsity was 0.5 there and is 0.6 now"),
        ({"budget": "layer", "target": "layer"}, "budget was"),
        ({"method": "wanda"}, "method was rose there and is wanda now"),
        ({"layers": ["*o_proj"]}, "the layers differ"),
        ({"held_out": make_tokens(2, seed=3)}, "the held-out differ"),
        ({"tokens": make_tokens(seed=9)}, "the tokens differ"),
        ({"model": with_another_norm()}, r"the model's weights differ .*loaded dense"),
        ({"target": "layer"}, "target was dense there and is layer now"),
        ({"compute": "bfloat16"}, r"computed in float32 there and are in bfloat16 now \(compute float32 asks"),
        ({}, "another version of this program began it"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(options, message, begun, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "FORMAT", checkpoint_module.FORMAT + (not options))
    refused(message, run, begun, **options)
    assert (begun / "block-00001.safetensors").exists()


def test_the_format_of_a_run_in_the_home_folder_is_read(begun, monkeypatch):
    monkeypatch.setenv("HOME", str(begun.parent))
    assert checkpoint_module.begun_with("~/begun", "products") == "float32"


def test_a_streamed_model_is_distinguished_from_one_in_memory(begun, tmp_path):
    model, _ = rose.load_model(save("gemma3", tmp_path / "dense"), stream=True)
    refused("the model was in memory there and is streamed now", run, begun, model)


def test_tokens_may_come_in_another_whole_number_type(begun, undisturbed):
    assert run(begun, tokens=make_tokens().int())[0] == undisturbed[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("kept.txt", "precious", "not empty and holds no checkpoint"),
        ("run.json", '{"learning_rate": 0.1}', "belongs to another run"),
    ],
)
def test_a_folder_of_another_program_is_refused_and_unchanged(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    (tmp_path / "a.tmp").write_text("unfinished")
    refused(message, run, tmp_path)
    texts = {path.name: path.read_text() for path in tmp_path.iterdir() if path.name != "lock"}
    assert texts == {name: content, "a.tmp": "unfinished"}


def test_two_runs_cannot_share_a_checkpoint(tmp_path):
    with open_checkpoint(Network(make_model("llama")), tmp_path, dict):
        refused("Another run is using the checkpoint", run, tmp_path)


def full(*_args: Any, **_options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("moment", [0, 1, 2, 5, 9, 14])
@pytest.mark.parametrize("step", ["save_file", "sync"])
def test_a_full_disk_loses_no_finished_block(moment, step, tmp_path, monkeypatch, undisturbed):
    module = tensor_files if step == "save_file" else durable
    works = chain(repeat(getattr(module, step), moment), repeat(full))
    with monkeypatch.context() as patch:
        patch.setattr(module, step, lambda *args, **options: next(works)(*args, **options))
        refused(r"No space left on device.*make room.*resumes from there", run, tmp_path)
    assert not [path for path in tmp_path.rglob("*.tmp") if path.is_file()]
    assert run(tmp_path)[0] == undisturbed[0]


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(rose.model.run.prune, "start_walk", Mock(side_effect=AssertionError))
    for folder, message in (
        (tmp_path / "file", "file is a file, and a checkpoint is a folder"),
        (5, "must be a string or a Path, not 5"),
        (tmp_path / "file" / "below", "cannot be written"),
    ):
        refused(message, run, folder)
    monkeypatch.setattr(checkpoint_module, "write_atomically", full)
    refused("No space left on device", run, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["lock"]
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr("filelock.FileLock.acquire", Mock(side_effect=denied))
    refused(r"Permission denied.*choose another folder", run, tmp_path / "locked")


@pytest.mark.parametrize("bad", ["tokens", "held_out", "damping"])
def test_bad_input_does_not_claim_a_folder(bad, tmp_path):
    options = {"tokens": make_tokens(), bad: -1.0 if bad == "damping" else torch.full((2, 4), 10**6)}
    with pytest.raises(rose.RoseError, match=r"outside the model's vocabulary|damping must be"):
        rose.prune_model(make_model("llama"), **options, allocation="owl", checkpoint=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
