"""Files that can be read but hold what no model has are refused when they are loaded, whole and streamed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForCausalLM

import rose
from rose.model.load.models import load_skeleton, stored_dtype
from rose.model.network.network import Network
from tests.tiny import save_tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_llama(tmp_path / "model", hidden=32)


def configure(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("stream", [False, True])
def test_more_decoder_blocks_than_the_configuration_names(folder, stream):
    configure(folder, num_hidden_layers=2)
    with pytest.raises(rose.RoseError, match=r"9 weights .* does not name, such as model\.layers\.2\.input_layernorm"):
        rose.load_model(str(folder), stream=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_masks_beside_weights_are_refused_and_ignored_tensors_are_not(folder, stream, monkeypatch):
    path, block = folder / "model.safetensors", "model.layers.3.mlp.up_proj.weight"
    tensors = load_file(path)
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.3.*"])
    save_file(tensors | {block: torch.zeros(2, 2)}, path, {"format": "pt"})
    rose.load_model(str(folder), stream=stream)
    save_file(tensors | {"model.layers.0.mlp.up_proj.mask": torch.zeros(2, 2)}, path, {"format": "pt"})
    with pytest.raises(
        rose.RoseError, match=r"keeps model\.layers\.0\.mlp\.up_proj\.mask beside its weights, .* apply it"
    ):
        rose.load_model(str(folder), stream=stream)


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
    with pytest.raises(
        rose.RoseError, match=r"holds both model\.safetensors and, by .*, model-00001-of-00002\.saf.* old one"
    ):
        rose.load_model(str(folder), stream=stream)
    (folder / "model.safetensors").rename(folder / "whole")
    first.rename(folder / "first")
    with pytest.raises(
        rose.RoseError, match=r"lacks model-00001-of-00002\.safetensors, which model\S+ names; get it again"
    ):
        rose.load_model(str(folder), stream=stream)
    (folder / "first").rename(first)
    (folder / "model.safetensors.index.json").rename(folder / "index")
    with pytest.raises(rose.RoseError, match=r"holds model-00001-of-00002\.safetensors, but not model\.safetensors or"):
        rose.load_model(str(folder), stream=stream)
    (folder / "index").rename(folder / "model.safetensors.index.json")
    for path in folder.glob("model-*"):
        path.unlink()
    (folder / "whole").rename(folder / "model.safetensors")  # saved over shards, whose index stays
    rose.load_model(str(folder), stream=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_the_format_is_read_from_the_weights_not_the_configuration(folder, stream, monkeypatch, caplog):
    monkeypatch.setenv("ROSE_COMPUTE", "bfloat16")
    configure(folder, dtype="bfloat16")
    assert stored_dtype(str(folder)) == Network(load_skeleton(str(folder))).dtype == torch.float32
    assert Network(rose.load_model(str(folder), stream=stream)[0]).dtype == torch.float32
    path, norm = folder / "model.safetensors", "model.norm.weight"
    configure(folder, dtype="float32")
    tensors = {key: tensor.bfloat16() for key, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    assert stored_dtype(str(folder)) == Network(rose.load_model(str(folder), stream=stream)[0]).dtype == torch.bfloat16
    assert not caplog.text
    save_file(tensors | {norm: tensors[norm].float()}, path, {"format": "pt"})
    assert Network(rose.load_model(str(folder), stream=stream)[0]).dtype == torch.bfloat16
    assert (
        f"is read in bfloat16, which rounds one tensor stored in a wider format, such as {norm}; float32" in caplog.text
    )


def test_fp8_weights_are_dequantized_with_a_gpu_too(folder, monkeypatch):
    name, path = "model.layers.1.mlp.up_proj.weight", folder / "model.safetensors"
    tensors = load_file(path)
    for key in [key for key in tensors if "proj" in key]:
        scales = torch.full([-(-size // 32) for size in tensors[key].shape], 0.01)
        tensors |= {key: (100 * tensors[key]).to(torch.float8_e4m3fn), f"{key}_scale_inv": scales}
    save_file(tensors, path, {"format": "pt"})
    configure(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [32, 32]})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (9, 0))
    model, _ = rose.load_model(str(folder))
    monkeypatch.undo()
    assert torch.allclose(model.get_parameter(name), tensors[name].float() / 100)
    layer = model.get_submodule(name.removesuffix(".weight"))
    layer.weight = nn.Parameter(tensors[name], requires_grad=False)
    with pytest.raises(rose.RoseError, match=r"up_proj has weights in float8_e4m3fn, which cannot be pruned"):
        rose.prunable_layers(model)


class Program:
    """Runs something where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_not_read(folder, tmp_path, name, stream):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors | {"more": Program(tmp_path / "ran")}, folder / name)
    with pytest.raises(rose.RoseError, match=r"is a pickle|only safetensors|Error while deserializing header"):
        rose.load_model(str(folder), stream=stream)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_no_number_is_named(folder, value):
    name, path = "model.layers.1.mlp.up_proj.weight", folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name][3, 4] = value
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(rose.RoseError, match=f"holds NaN or infinity in {name}; its file is damaged"):
        rose.load_model(str(folder))
    model, tokenizer = rose.load_model(str(folder), stream=True)
    tokens = rose.load_tokens("packaged", tokenizer, samples=2, length=16)
    with pytest.raises(rose.RoseError, match=f"holds NaN or infinity in {name}"):
        rose.prune_model(model, tokens, block_size=16)
    for stream in (False, True):
        broken, _ = rose.load_model(str(folder), finite=False, stream=stream)
        with Network(broken).residence.visit(1, torch.device("cpu")) as block:
            assert int((~block.mlp.up_proj.weight.isfinite()).sum()) == 1
