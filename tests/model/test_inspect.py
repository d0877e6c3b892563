"""Files of tensors are described and compared by streaming; the numbers are those of plain torch."""

import json
from pathlib import Path

import gguf
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import rose
from rose import cli
from rose.model import inspect
from rose.model.inspect import TensorFiles, compare_files, difference_of, inspect_file, look_at, says_differences, tree
from rose.model.network.layers import prunable_layers
from rose.model.ship.export import export_gguf
from tests.model.formats.test_gguf import finish
from tests.model.ship.test_export import CONFIGURATIONS, save
from tests.refusals import refused
from tests.tiny import save_tiny_llama

Q8_0 = gguf.GGMLQuantizationType.Q8_0
UP = "model.layers.{}.mlp.up_proj.weight".format


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "RUN", 1000)  # less than any matrix here


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    weights = {UP(block): 0.02 * torch.randn(200, 96) for block in range(4)}
    return weights | {"norm.weight": torch.ones(96), "embed.weight": torch.randn(50, 96), "ids": torch.arange(5)}


def saved(path: Path, weights: dict[str, Tensor], note: str = "") -> Path:
    save_file(weights, path, {"note": note} if note else None)
    return path


def inspected(path: Path) -> pd.DataFrame:
    with TensorFiles(path) as files:
        return inspect_file(files).set_index("name")


def test_the_numbers_of_a_tensor_match_torch(tmp_path):
    weights = tensors()
    first, second = weights[UP(0)], weights[UP(1)]
    first[first.abs() < 0.01] = 0
    first[3], first[:, 7], first[150, 5] = 0, 0, -1.5
    first[9] *= 9
    second[0, 0], second[199, 95] = torch.nan, -torch.inf
    weights[UP(2)] = torch.sign(weights[UP(2)]) * 0.03
    table = inspected(saved(tmp_path / "a.safetensors", weights))
    row = table.loc[UP(0)]
    assert (row["zeros"], row["zero_rows"], row["zero_columns"]) == (int((first == 0).sum()), 1, 1)
    assert (row["largest"], row["largest_at"]) == (1.5, "150, 5")
    assert row["norm"] == pytest.approx(float(first.norm()), rel=1e-5)
    assert row["says"] == "Row 3 is zero. Column 7 is zero."
    assert row["norms"].startswith("Rows 9 and 150 have unusual norms; row ")
    assert table.loc[UP(1), "not_finite"] == 2
    assert table.loc[UP(2), "true_bits"] < 3 < table.loc[UP(3), "true_bits"] == 32
    assert table.loc["norm.weight", "true_bits"] == 16
    assert np.isnan(table.loc["ids", "zeros"])


def test_differences_are_named_by_row_and_column(tmp_path):
    first = tensors()
    second = {name: weight.clone() for name, weight in first.items()}
    second[UP(1)][5] *= -1
    second[UP(2)][:, 6] *= 3
    second[UP(3)] = second[UP(3)].bfloat16()
    second["embedding.weight"] = second.pop("embed.weight")
    second["more"], second["ids"][0] = torch.zeros(2), 7
    del second["norm.weight"]
    paths = saved(tmp_path / "a.safetensors", first), saved(tmp_path / "b.safetensors", second)
    with TensorFiles(paths[0]) as before, TensorFiles(paths[1]) as after:
        table = compare_files(before, after).set_index("name")
        change = difference_of(before, after, UP(1))
        sevens = torch.full((200, 96), 7.0)
        gap = (sevens - first[UP(0)]).norm(dim=1) / first[UP(0)].norm(dim=1)
        second[UP(0)] = sevens
    assert table["status"].to_dict() == {
        UP(0): "equal", UP(1): "differs", UP(2): "differs", UP(3): "rounded",
        "norm.weight": "gone", "embed.weight": "renamed", "ids": "differs", "more": "added",
    }  # fmt: skip
    assert table.loc["embed.weight", "other_name"] == "embedding.weight"
    assert "Row 5: all 96 kept weights have the opposite sign." in table.loc[UP(1), "says"]
    assert "Column 6: the weights are 3.00 times as large" in table.loc[UP(2), "says"]
    assert (table.loc[UP(1), "rows"], table.loc[UP(2), "columns"]) == (1, 1)
    assert change.row_change[5] == pytest.approx(2)
    assert not change.row_change[6:].any()
    with TensorFiles(paths[1]) as before, TensorFiles(paths[0]) as after:
        table = compare_files(before, after).set_index("name")
    assert table.loc[[UP(0), UP(1), UP(3)], "status"].tolist() == ["equal", "differs", "rounded"]
    with TensorFiles(paths[0]) as before, TensorFiles(saved(tmp_path / "c.safetensors", second)) as after:
        assert difference_of(before, after, UP(0)).row_change.tolist() == pytest.approx(gap.tolist(), rel=1e-4)


def test_a_large_tensor_is_compared_in_runs_with_the_same_numbers(tmp_path, monkeypatch):
    first = tensors()
    second = {name: weight * 1.5 for name, weight in first.items() if name.startswith("model")}
    second[UP(0)][second[UP(0)].abs() < 0.02] = 0
    paths = saved(tmp_path / "a.safetensors", first), saved(tmp_path / "b.safetensors", second)
    with TensorFiles(paths[0]) as before, TensorFiles(paths[1]) as after:
        whole = difference_of(before, after, UP(0))
        monkeypatch.setattr(inspect, "WHOLE", 0)
        runs = difference_of(before, after, UP(0))
    for name in ("change", "cosine", "slope", "moved", "zeros", "zeros_before"):
        assert getattr(runs, name) == pytest.approx(getattr(whole, name), rel=1e-5)
    assert torch.allclose(runs.column_change, whole.column_change)


def test_the_same_tensors_are_found_in_every_format(tmp_path):
    folder = save_tiny_llama(tmp_path / "plain")
    model, tokenizer = rose.load_model(str(folder))
    rose.prune_model(model, torch.arange(64).view(2, 32) % 200, method="magnitude", sparsity="2:4", target="layer")
    rose.save_model(model, tokenizer, tmp_path / "pruned")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    plain = inspected(tmp_path / "pruned")
    numbers = ["zeros", "pattern", "norm", "largest_at"]
    pd.testing.assert_frame_equal(inspected(tmp_path / "shards").loc[plain.index, numbers], plain[numbers])
    with TensorFiles(tmp_path / "shards") as files:
        assert json.loads(files.texts()["config.json"])["model_type"] == "llama"
    grouped = tree(plain.reset_index())
    assert set(grouped.loc[grouped["name"].str.startswith("model.layers"), "tensors"]) == {3}


def test_a_gguf_file_is_read_in_runs_whatever_its_types(tmp_path):
    weights = {name: weight for name, weight in tensors().items() if weight.ndim == 2}
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_chat_template("{{ messages }}")
    for name, weight in weights.items():
        writer.add_tensor(name, gguf.quantize(weight.numpy(), Q8_0), raw_dtype=Q8_0)
    finish(writer)
    table = inspected(tmp_path / "a.gguf")
    assert set(table["kind"]) == {"Q8_0"}
    assert table.loc[UP(0), "bits"] == 8.5
    for name, weight in weights.items():
        dequantized = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), Q8_0), Q8_0))
        assert table.loc[name, "norm"] == pytest.approx(float(dequantized.norm()), rel=1e-5)
    with TensorFiles(tmp_path / "a.gguf") as files:
        assert files.texts()["chat template"] == "{{ messages }}"


@pytest.mark.parametrize("family", ["llama, biases", "gemma3", "gpt2"])
def test_tensors_of_a_gguf_file_match_its_model(family, tmp_path):
    """Orders of rows, transposed matrices and shifted norms of llama.cpp are undone."""
    model = save(CONFIGURATIONS[family](), tmp_path / "model", 8)
    export_gguf(str(tmp_path / "model"), tmp_path / "model.gguf", "q8_0", embeddings="f32")
    layer = prunable_layers(model)[0]
    layer.write(layer.weight.detach() * (torch.arange(layer.weight.shape[1]) % 2))
    model.save_pretrained(tmp_path / "pruned")
    with TensorFiles(tmp_path / "model.gguf") as before, TensorFiles(tmp_path / "pruned") as after:
        assert before.tensors.keys() == after.tensors.keys()
        table = compare_files(before, after)
    assert set(table["status"]) == {"equal", "differs"}
    differing = table[table["change"].fillna(0) + (table["zeros"] > table["zeros_before"]) > 1e-6]  # not norms + 1 − 1
    assert list(differing["name"]) == [f"{layer.name}.weight"]
    assert int(differing["zeros"].iloc[0]) == int((layer.weight == 0).sum())
    assert differing["stored_as"].iloc[0].startswith("blk.0.attn_q")
    assert f"{layer.name}.weight" in says_differences(table)


def test_pictures_of_a_tensor_show_all_of_it(tmp_path):
    weights = tensors()
    with TensorFiles(saved(tmp_path / "a.safetensors", weights)) as files:
        look = look_at(files, UP(0), cells=50, bins=11)
        assert torch.allclose(inspect.spectrum(files, UP(0))[0], torch.linalg.matrix_norm(weights[UP(0)], 2))
    weight = weights[UP(0)]
    assert look.block == (4, 2)
    assert np.allclose(look.map, weight.abs().reshape(50, 4, 48, 2).amax((1, 3)))
    assert look.counts.sum() == weight.numel()
    assert torch.allclose(look.facts.column_norms, weight.norm(dim=0))


def test_the_command_prints_and_writes_its_findings(tmp_path, capsys):
    weights = tensors()
    path = saved(tmp_path / "a.safetensors", weights, note="by hand")
    table, document = tmp_path / "a.csv", tmp_path / "a.json"
    assert cli.main(["inspect", str(path), "--output", str(table), "--json", str(document)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Nothing stands out: seven tensors, ")
    assert "mlp.up_proj.weight: 4 of 200 × 96, F32" in printed
    assert list(pd.read_csv(table)["name"]) == sorted(weights)
    assert json.loads(document.read_text())["texts"] == {"metadata": "note: by hand"}
    weights[UP(1)][5] *= -1
    assert cli.main(["inspect", str(path), str(saved(tmp_path / "b.safetensors", weights))]) == 0
    assert f"One of seven tensors differs: {UP(1)}. The others: 6 equal." in capsys.readouterr().out
    weights["norm.weight"][3] = torch.nan
    assert cli.main(["inspect", str(saved(path, weights))]) == 0
    assert "One of seven tensors stands out: norm.weight. In all" in (printed := capsys.readouterr().out)
    assert "norm.weight: one number NaN or infinite." in printed


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 100], ids=["none", "empty", "noise"])
@pytest.mark.parametrize("name", ["a.safetensors", "a.gguf", "a.bin"])
def test_files_without_tensors_are_refused(name, content, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refused(".", TensorFiles, tmp_path / name)
