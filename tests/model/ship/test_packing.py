"""Packed folders: equal to the bit, smaller, and refused if a byte is wrong."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import rose
from rose import cli
from rose.layer.pattern import Grid
from rose.layer.rounding import choose_scales
from rose.model.formats.packed import FORMAT, VERSION, TensorFile, decode, digest_of_facts, encode
from rose.model.load.stored import is_packed, weight_files
from rose.model.ship.packing import TYPES, TensorWriter, pack_folder, packed_size, unpack_folder
from rose.tensor_files import digest
from tests.layer.helpers import round_to
from tests.model.families import make_model, make_tokens
from tests.refusals import refused
from tests.tiny import byte_tokenizer


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def without(weight: Tensor, share: float) -> Tensor:
    return torch.where(weight.abs() < weight.abs().float().quantile(share).to(weight.dtype), 0, weight)


def n_of_m(weight: Tensor) -> Tensor:
    groups = weight.unflatten(-1, (-1, 4))
    return torch.where(groups.abs() >= groups.abs().topk(2).values[..., 1:], groups, 0).flatten(-2)


def on_grid(weight: Tensor, bits: int, group: int | str) -> Tensor:
    grid = Grid(bits, group)
    return round_to(weight.float(), choose_scales(weight.float(), grid), grid).to(weight.dtype)


def with_nan(weight: Tensor) -> Tensor:
    weight[3, :2] = torch.tensor([torch.nan, torch.inf])
    return weight


# Tensor, its kind, whether its last two dimensions are exchanged, and the most bits a weight may take.
CASES: dict[str, tuple[Callable[[], Tensor], str, bool, float]] = {
    "half": (lambda: without(random(256, 512), 0.5), "sparse", False, 0.40 * 16),
    "seventy": (lambda: without(random(256, 512), 0.7), "sparse", False, 0.26 * 16),
    "float16": (lambda: without(random(64, 96, dtype=torch.float16), 0.5), "sparse", False, 8),
    "float32": (lambda: without(random(64, 96, dtype=torch.float32), 0.5), "sparse", False, 15),
    "odd": (lambda: without(random(7, 13, 5), 0.8), "sparse", False, 16),
    "2:4": (lambda: n_of_m(random(256, 512)), "sparse", False, 0.65 + 5.5),
    "2:4, Conv1D": (lambda: n_of_m(random(256, 512)).T.contiguous(), "sparse", True, 0.65 + 5.5),
    # Zeros are negative where a program multiplies by a mask.
    "signs": (lambda: (weight := random(64, 96)) * (weight.abs() > 0.7), "sparse", False, 8),
    "not finite": (lambda: with_nan(without(random(64, 96), 0.5)), "sparse", False, 8),
    "all": (lambda: torch.zeros(64, 96, dtype=torch.bfloat16), "sparse", False, 0.2),
    "grid": (lambda: on_grid(without(random(256, 512), 0.5), 4, 64), "grid", False, 0.22 * 16),
    "grid, seventy": (lambda: on_grid(without(random(256, 512), 0.7), 4, 64), "grid", False, 0.16 * 16),
    "grid, dense": (lambda: on_grid(random(64, 128, dtype=torch.float32), 4, "row"), "grid", False, 5),
    "grid, 8": (lambda: on_grid(without(random(64, 96, dtype=torch.float32), 0.5), 8, 32), "grid", False, 6),
    "grid, Conv1D": (lambda: on_grid(without(random(64, 96), 0.5), 4, 32).T.contiguous(), "grid", True, 5),
    "grid, experts": (lambda: on_grid(without(random(128, 64), 0.5), 4, 32).view(4, 32, 64), "grid", False, 5),
}


@pytest.mark.parametrize("case", CASES)
def test_a_tensor_comes_back_to_the_bit(case):
    make, kind, flipped, bits = CASES[case]
    tensor = make()
    packed = encode(tensor)
    assert (packed.facts["kind"], packed.facts["flipped"]) == (kind, flipped)
    assert 8 * packed.size / tensor.numel() <= bits
    facts = json.loads(json.dumps(packed.facts))
    assert digest({"": decode(facts, packed.parts)}) == digest({"": tensor})


def test_small_files_cannot_unpack_to_large_tensors():
    packed = encode(without(random(64, 96), 0.5))
    with pytest.raises(rose.RoseError, match="too little memory to unpack a tensor of shape"):
        decode(packed.facts | {"shape": [2**40, 96]}, packed.parts)
    large = np.frombuffer(zstandard.compress(bytes(10**6)), np.uint8)
    with pytest.raises(ValueError, match="mask does not open to 768 bytes"):
        decode(packed.facts | {"zstd": ["mask"]}, packed.parts | {"mask": large})


@pytest.mark.parametrize(
    "odd", [{"group": 0}, {"kind": None}, {"shape": ["many"]}, {"shape": [64]}, {"shape": [4, 17]}, {"dtype": "F64"}]
)
def test_an_odd_header_is_refused_in_a_sentence(odd, tmp_path):
    packed = encode(on_grid(without(random(64, 96), 0.5), 4, 32))
    facts = {key: value for key, value in (packed.facts | {"sha256": "0"} | odd).items() if value is not None}
    metadata = {"format": FORMAT, "version": VERSION, "tensors": json.dumps({"w": facts})}
    parts = {f"w:{name}": torch.from_numpy(part.copy()) for name, part in packed.parts.items()}
    save_file(parts, tmp_path / "odd", metadata | {"digest": digest_of_facts(metadata)})
    with pytest.raises(rose.RoseError, match=r"^[^\n]+ is damaged: [^\n]+\.$"), TensorFile(tmp_path / "odd") as file:
        file.tensor("w")


FAMILIES = ["llama", "gpt2", "gemma3", "qwen3_moe"]


def save_pruned(family: str, folder: Path, **options: Any) -> Path:
    model = make_model(family, dtype=torch.bfloat16)
    rose.prune_model(model, make_tokens(), method="wanda", sparsity=0.7, held_out=None)
    model.save_pretrained(folder, **options)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_folder_loads_and_unpacks_to_the_bit(family, tmp_path):
    folder = save_pruned(family, tmp_path / "plain", max_shard_size="30KB" if family == "llama" else "1GB")
    made = pack_folder(folder, tmp_path / "packed")
    assert is_packed(tmp_path / "packed")
    assert made.stored < made.plain
    assert made.layers > 0
    plain, tokenizer = rose.load_model(str(folder), dtype="bfloat16")
    if family != "qwen3_moe":  # of which files hold each expert by itself
        assert replace(packed_size(plain), digests={}) == replace(made, digests={})
    loaded, other = rose.load_model(str(tmp_path / "packed"), dtype="bfloat16")
    assert digest(loaded.state_dict()) == digest(plain.state_dict())
    assert type(loaded) is type(plain)
    assert loaded.generation_config == plain.generation_config
    assert other("a rose") == tokenizer("a rose")
    ties = [model.get_output_embeddings().weight is model.get_input_embeddings().weight for model in (plain, loaded)]
    assert ties[0] == ties[1]
    assert unpack_folder(tmp_path / "packed", tmp_path / "unpacked") == made
    for packed_file, unpacked_file in zip(weight_files(folder), weight_files(tmp_path / "unpacked"), strict=True):
        with TensorFile(packed_file) as first, TensorFile(unpacked_file) as second:
            assert packed_file.name == unpacked_file.name
            assert first.metadata == second.metadata
            assert all(digest({"": first.tensor(n)}) == digest({"": second.tensor(n)}) for n in first.names())
    assert {path.name for path in (tmp_path / "unpacked").iterdir()} == {path.name for path in folder.iterdir()}
    streamed, tokenizer = rose.load_model(str(tmp_path / "packed"), stream=True, dtype="bfloat16")
    rose.save_model(streamed, tokenizer, tmp_path / "saved")
    folders = (folder, tmp_path / "unpacked", tmp_path / "saved")
    assert len({digest(AutoModelForCausalLM.from_pretrained(path).state_dict()) for path in folders}) == 1


def test_what_a_model_needs_besides_its_weights_comes_along(tmp_path):
    folder = tmp_path / "plain"
    make_model("llama").save_pretrained(folder)
    needed = ["additional_chat_templates/rag.jinja", "code/deep/layers.py", ".gitattributes", "low_rank.safetensors"]
    others = ["consolidated.safetensors", "original/model.safetensors", "onnx/model.onnx_data", ".git/lfs/large"]
    for name in [*needed, *others]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    pack_folder(folder, folder / "packed")  # inside of what is read
    unpack_folder(folder / "packed", tmp_path / "unpacked")
    there = {str(path.relative_to(tmp_path / "unpacked")) for path in (tmp_path / "unpacked").rglob("*")}
    assert there > set(needed)
    assert not there & {*others, "packed"}
    assert (tmp_path / "unpacked" / needed[0]).read_text() == needed[0]


def test_every_known_type_is_written(tmp_path):
    """MLX keeps codes as uint32; what safetensors or this program does not know is refused in a sentence."""
    kinds = [kind for kind in TYPES if kind != torch.bool]
    with TensorWriter(tmp_path / "a.safetensors") as writer:
        for kind in kinds:
            writer.add(str(kind), torch.tensor([1, 2]).to(kind))
        writer.finish({})
        refused("b is stored as complex64", writer.add, "b", torch.ones(1, dtype=torch.complex64))
    for name, tensor in load_file(tmp_path / "a.safetensors").items():
        assert name == str(tensor.dtype)
        assert tensor.float().tolist() == [1, 2]


def test_a_wrong_byte_is_refused_in_a_sentence(tmp_path):
    pack_folder(save_pruned("llama", tmp_path / "plain"), tmp_path / "packed")
    (path,) = weight_files(tmp_path / "packed")
    whole = path.read_bytes()
    start = int.from_bytes(whole[:8], "little") + 8
    places = [start // 2, *np.linspace(start, len(whole) - 1, 12).astype(int)]
    for spoiled in [*(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :] for at in places), whole[:-100], b""]:
        path.unlink()  # a new file each time: threads of the load before may still read the old one
        path.write_bytes(spoiled)
        refused(r"^[^\n]+\.$", rose.load_model, str(tmp_path / "packed"))
        refused(r"^[^\n]+\.$", unpack_folder, tmp_path / "packed", tmp_path / "unpacked")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "plain"]


def test_pack_and_unpack_commands_round_trip(tmp_path, capsys):
    folder = save_pruned("llama", tmp_path / "plain")
    (folder / "mtp.safetensors").touch()
    assert cli.main(["pack", str(folder)]) == 0
    assert cli.main(["unpack", f"{folder}-packed", "--output", str(tmp_path / "again")]) == 0
    printed = capsys.readouterr().out
    first, second = re.findall(r"read back and .*; digest (\w{16})", printed)
    assert first == second
    assert "matrices that have zeros or lie on a grid take 0." in printed
    assert printed.count("Left out, as model.safetensors.index.json does not name them: mtp.safetensors\n") == 1
    (folder / "model.safetensors.index.json").write_text('{"weight_map"')
    assert cli.main(["pack", str(folder), "--output", str(tmp_path / "twice")]) == 2
    assert "index.json cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "twice").exists()


def test_the_reader_in_the_documents_reads_packed_files(tmp_path):
    """It needs nothing of rose."""
    text = (Path(__file__).parents[3] / "docs" / "lab-notes" / "shipping.md").read_text()
    (code,) = re.findall(r"```python\n(.*?def read_packed.*?)```", text, re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    model = make_model("gpt2", dtype=torch.bfloat16)
    rose.prune_model(model, make_tokens(), method="wanda", sparsity=0.5, held_out=None)
    weight = model.transformer.h[0].mlp.c_fc.weight
    weight.data.copy_(on_grid(weight.detach().T.contiguous(), 4, 32).T)
    model.save_pretrained(tmp_path / "plain")
    pack_folder(tmp_path / "plain", tmp_path / "packed")
    (path,) = weight_files(tmp_path / "packed")
    kinds = set()
    with safe_open(path, "np") as file:
        for name, facts in json.loads(file.metadata()["tensors"]).items():
            if facts["kind"] != "plain":
                kinds.add(facts["kind"])
                read = torch.from_numpy(namespace["read_packed"](file, name))
                assert torch.equal(read, model.state_dict()[name].float())
    assert kinds == {"sparse", "grid"}
