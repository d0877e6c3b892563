"""Files that can be read but hold what no model has are refused when they are loaded, whole and streamed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rose
from rose.model.network.network import Network
from tests.tiny import save_tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_llama(tmp_path / "model", hidden=32)


def configure(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("stream", [False, True])
def test_more_decoder_blocks_than_the_configuration_names(folder: Path, stream: bool) -> None:
    configure(folder, num_hidden_layers=2)
    with pytest.raises(rose.RoseError, match=r"9 weights .* does not name, such as model\.layers\.2\.input_layernorm"):
        rose.load_model(str(folder), stream=stream)


@pytest.mark.parametrize(("field", "value"), [("vocab_size", 100), ("num_key_value_heads", 1)])
def test_shapes_that_are_not_those_of_the_configuration(folder: Path, field: str, value: int) -> None:
    configure(folder, **{field: value})
    with pytest.raises(rose.RoseError, match=r"^\S+ is of shape \(\d+, 32\) in the files of \S+, but of \(\d+, 32\)"):
        rose.load_model(str(folder))


class Program:
    """Runs something where it is unpickled without care."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


def test_a_pickle_that_runs_something(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    torch.save(load_file(weights) | {"more": Program(tmp_path / "ran")}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(rose.RoseError, match=r"run any program; it is not loaded\. Get the model as safetensors\.$"):
        rose.load_model(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [-3, 0, 10**9])
def test_numbers_that_no_model_has(folder: Path, value: int) -> None:
    configure(folder, num_hidden_layers=value)
    with pytest.raises(rose.RoseError, match=rf"num_hidden_layers = {value}; it must be from 1 to 1 000"):
        rose.load_model(str(folder))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_no_number_is_named(folder: Path, value: float) -> None:
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
