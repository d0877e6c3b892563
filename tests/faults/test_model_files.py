"""Model files with wrong headers or sizes are refused in one sentence before memory is allocated."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import rose
from rose import cli
from rose.model.load import streaming
from rose.model.load.models import load_skeleton
from tests.faults.weights import joined, parts_of, places
from tests.model.formats.test_gguf import dense, write
from tests.refusals import refused
from tests.tiny import save_tiny_llama

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("sound") / "tiny.gguf", "llama", dense).read_bytes()


def of_up(kind: str, change: Callable[[int], int], size: int = 8) -> Callable[[bytes], bytes]:
    """Changes what a file says of one matrix in its middle."""

    def changed(content: bytes) -> bytes:
        name = b"blk.0.ffn_up.weight"
        start = content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
        at = start + {"dimension": 4, "type": 20, "offset": 24}[kind]
        value = change(int.from_bytes(content[at : at + 8], "little")) % 2 ** (8 * size)
        return content[:at] + value.to_bytes(size, "little") + content[at + size :]

    return changed


def of_header(kind: str, value: int) -> Callable[[bytes], bytes]:
    """Changes the first number of a kind."""

    def changed(content: bytes) -> bytes:
        place = next(place for place in places(content)[0] if place.kind == kind)
        end = place.start + place.size
        return content[: place.start] + value.to_bytes(place.size, "little") + content[end:]

    return changed


GGUF = {
    "offset that wraps around": (of_up("offset", lambda _: 2**64 - 32), "is at 18446744073709551584, not at"),
    "misaligned": (of_up("offset", lambda offset: offset + 1), "blk.0.ffn_up.weight is at"),
    "overlap": (of_up("offset", lambda offset: offset - 32), "blk.0.ffn_up.weight is at"),
    "gap": (of_up("offset", lambda offset: offset + 32), "blk.0.ffn_up.weight is at"),
    "shrunk by its type": (of_up("type", lambda _: 2, 4), "not at .*, where the tensors before it end"),
    "unknown type": (of_up("type", lambda _: 4711, 4), "of the unknown type 4711"),
    "no rows": (of_up("dimension", lambda _: 0), r"of shape \(0, 96\)"),
    "row of half a block": (of_up("dimension", lambda _: 48), r"of shape \(48, 96\), which its type does not have"),
    "sizes whose product wraps around": (of_up("dimension", lambda _: 2**62), "not at|beyond its end"),
    "tensors without end": (of_header("count of tensors", 2**63), "9223372036854775808 tensors"),
    "fields without end": (of_header("count of fields", 2**63), "9223372036854775808 fields"),
    "text without end": (of_header("length of a text", 2**63), "header goes on beyond its end"),
    "items without end": (of_header("count of items", 2**62), "4611686018427387904 items of fields"),
    "more items than bytes": (of_header("count of items", 2**22), "beyond its end"),
    "lists of lists": (of_header("type of items", 9), "lists of lists"),
    "appended": (lambda content: content + bytes(4096), "4096 bytes follow its last tensor"),
    "cut": (lambda content: content[:-1], "output.weight|blk.1.ffn_norm.weight goes on beyond its end"),
}


@pytest.mark.parametrize("name", GGUF)
def test_gguf_tensors_are_aligned_as_ggml_requires(name: str, sound: bytes, tmp_path: Path) -> None:
    change, sentence = GGUF[name]
    path = tmp_path / "changed.gguf"
    path.write_bytes(change(sound))
    refused(rf"^{re.escape(str(path))} is damaged: .*{sentence}", rose.load_model, path)


@pytest.mark.parametrize("alignment", [0, 3, 2**31])
def test_impossible_gguf_alignments_are_refused(alignment: int, tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("general.alignment", alignment)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.close):
        step()
    refused(r"alignment|begin at multiples of 2147483648", rose.load_model, path)


def test_gguf_metadata_of_another_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    monkeypatch.setattr("tests.model.formats.test_gguf.INNER", 64)
    matrices = dense(0)
    monkeypatch.undo()
    write(path, "llama", lambda _: matrices)
    refused("4 096 weights in the GGUF file, but 6 144 by its metadata", rose.load_model, path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_llama(tmp_path / "model", blocks=2, hidden=32)


def refusal(folder: Path, stream: bool) -> str:
    with pytest.raises(rose.RoseError) as refused:
        rose.load_model(folder, stream=stream)
    return str(refused.value)


@pytest.mark.parametrize("stream", [False, True])
def test_integer_weights_are_refused_and_integer_buffers_are_ignored(folder: Path, stream: bool) -> None:
    """Old files hold masks and numbers of positions, which a model computes anew."""
    path, prefix = folder / "model.safetensors", "model.layers.0.self_attn"
    buffers = {f"{prefix}.position_ids": torch.arange(8), f"{prefix}.masked_bias": torch.ones(4).bool()}
    save_file(load_file(path) | buffers, path, {"format": "pt"})
    assert rose.load_model(folder, stream=stream)[0].config.num_hidden_layers == 2
    header, data = parts_of(path.read_bytes())
    for kind in ("I32", "U32"):
        header[UP]["dtype"] = kind
        path.write_bytes(joined(header, data))
        assert f"{UP} is stored as {kind} in the files of" in refusal(folder, stream)


@pytest.mark.parametrize("stream", [False, True])
def test_wrong_safetensors_headers_are_refused(folder: Path, stream: bool) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    header, data = parts_of(content)
    empty = {"dtype": "F32", "shape": [0, 4], "data_offsets": [len(data), len(data)]}
    refused: dict[str, bytes] = {
        "appended": content + b"1234",
        "cut": content[:-1],
        "length of the header": struct.pack("<Q", 2**63) + content[8:],
        "depth": joined(b"[" * 100_000, data),
        "text in place of a header": joined(b"[]", data),
        "shape": joined(header | {UP: header[UP] | {"shape": [2**63, 2]}}, data),
        "overlap": joined(header | {UP: header[UP] | {"data_offsets": [0, 8192]}}, data),
        "kind": joined(header | {UP: header[UP] | {"dtype": "9" * 5000}}, data),
        "name": joined(header | {"a\nb": header[UP]}, data),
    }
    for name, changed in refused.items():
        path.write_bytes(changed)
        message = refusal(folder, stream)
        assert message.isprintable(), name
        assert len(message) <= 600, name
    path.write_bytes(joined(header | {f"part{number}": empty for number in range(5000)}, data))
    rose.load_model(folder, stream=stream)  # tensors of no size may share a place
    for other in (None, 7, "", "..", "../out.safetensors", "config.json"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {UP: other}}))
        assert "index.json cannot be read" in refusal(folder, stream)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        *(({"num_hidden_layers": value}, "must be from 1 to 1 000") for value in (-3, 0, 1001, 10**12)),
        ({"num_local_experts": 10**6}, "must be from 0 to 4 096"),
        ({"hidden_size": 0}, "must be from 1 to"),
        ({"num_labels": 30_000_000}, "num_labels = 30000000; it must be from 1 to 131 072"),
        ({"vision_config": {"text_config": {"num_labels": 30_000_000}}}, "num_labels = 30000000"),
        ({"vision_config": {"model_type": "siglip_vision_model", "depth": 10**9}}, "depth = 1000000000"),
    ],
)
def test_impossible_configurations_are_refused(folder: Path, changes: dict[str, Any], sentence: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    for load in (load_skeleton, rose.load_model):
        refused(sentence, load, str(folder))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("field", "value"), [("vocab_size", 2**26), ("intermediate_size", 2**22)])
def test_sizes_are_compared_with_the_tensors_before_memory_is_allocated(folder, field, value, stream, monkeypatch):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("memory was taken"))
    assert re.search(
        r"is of shape \(.*\) in the files of .*, but of \(.*\) by its config.json", refusal(folder, stream)
    )


def prune(folder: Path, output: Path) -> int:
    options = f"--calibration packaged --samples 2 --length 16 --sparsity 0.5 --stream --output {output}"
    return cli.main(["prune", "--model", str(folder), *options.split()])


@pytest.mark.parametrize("moment", ["first block", "last block", "shards"])
@pytest.mark.parametrize("how", ["same size", "other size", "configuration"])
def test_changes_during_streaming_are_reported(how, moment, folder, tmp_path, monkeypatch, capsys):
    other = save_tiny_llama(tmp_path / "other", blocks=2 if how == "same size" else 3, hidden=32, seed=1)
    changed = "config.json" if how == "configuration" else "model.safetensors"
    visit, visited = streaming.BlockFiles.visit, list[int]()

    def watched(self: streaming.BlockFiles, index: int, device: torch.device) -> Any:
        visited.append(index)
        is_writing = (tmp_path / "pruned").parent.glob(".rose-partial-*/model-00001*")
        due = {"first block": True, "last block": index == 1, "shards": any(is_writing)}[moment]
        if due and not (folder / "done").exists():
            (folder / changed).write_bytes((other / changed).read_bytes())
            (folder / "done").touch()
        return visit(self, index, device)

    monkeypatch.setattr(streaming.BlockFiles, "visit", watched)
    assert prune(folder, tmp_path / "pruned") == 2
    assert (folder / "done").exists()
    message = " ".join(capsys.readouterr().err.split())
    assert f"{folder / changed} has been changed by another program since this run began to read it" in message
    assert not (tmp_path / "pruned").exists()


def test_tensors_outside_decoder_blocks_share_files(folder, tmp_path, monkeypatch):
    path = folder / "model.safetensors"
    tensors = load_file(path) | {f"vision.{number}.weight": torch.full((4, 4), 1.0) for number in range(300)}
    save_file(tensors, path, {"format": "pt"})
    monkeypatch.setattr(streaming, "SHARD", 257 * 32 + 1000)
    assert prune(folder, tmp_path / "pruned") == 0
    shards = [load_file(shard) for shard in sorted((tmp_path / "pruned").glob("model-*.safetensors"))]
    assert {name for shard in shards for name in shard} == tensors.keys()
    assert [max(map(torch.Tensor.numel, shard.values())) for shard in shards[:2]] == [64 * 32] * 2
    assert len(shards) < 8
    assert all(torch.equal(shard[name], tensors[name]) for shard in shards[2:] for name in shard)
