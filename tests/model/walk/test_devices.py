"""The paths for a GPU on an imitated device: results match the processor, and devices never mix."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

import rose
from rose.layer.statistics import InputStatistics
from rose.layer.tiles import solve_rows
from rose.model.measure.perplexity import continue_prompt
from rose.tensor_files import digest
from tests.layer.helpers import make_layer
from tests.pretend import is_there, pretend_cuda
from tests.tiny import byte_tokenizer, save_tiny_llama

TOKENS = torch.randint(1, 257, (6, 48), generator=torch.Generator().manual_seed(0))
CALIBRATION, HELD_OUT = TOKENS[:4], TOKENS[4:]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("devices"), blocks=2)


def load(checkpoint: Path, stream: bool = False) -> PreTrainedModel:
    return rose.load_model(str(checkpoint), stream=stream)[0]


def test_devices_do_not_mix_on_a_pretended_one_either():
    here = torch.ones(3)
    with pretend_cuda() as cuda:
        there, module = here.to(cuda), torch.nn.Linear(3, 1).to(cuda)
        assert there.is_cuda
        assert there.device == cuda == torch.zeros(2, device=cuda).device == module(there).device
        for mix in (lambda: there + here, lambda: module(here)):
            with pytest.raises(RuntimeError, match="same device"):
                mix()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        there += 1
        assert (there * 2).cpu().tolist() == [4, 4, 4]
        assert here.tolist() == [1, 1, 1]


@pytest.mark.parametrize("sparsity", ["0.6", "2:4"])
@pytest.mark.parametrize("method", list(rose.METHODS))
def test_every_method_prunes_layers_on_a_device(method, sparsity):
    layer = make_layer(rows=32, columns=64, tokens=256)
    expected = layer.prune(method=method, sparsity=sparsity)
    with pretend_cuda() as cuda:
        statistics = InputStatistics(64, cuda)
        statistics.update(layer.inputs.to(cuda))
        options = {"method": method, "sparsity": sparsity, "block_size": 8}
        result = rose.prune_layer(layer.weight.to(cuda), statistics, **options)
        assert result.weight.is_cuda
        assert (result.mask.cpu() == expected.mask).float().mean() > 0.99  # a near tie may turn the other way
        assert result.relative_error == pytest.approx(expected.relative_error, rel=5e-3)


@pytest.mark.parametrize("resident", [False, True], ids=["visiting", "resident"])
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "rose_dealt", "target": "layer"},
        {"method": "sparsegpt", "sparsity": "2:4", "target": "dense"},
        {"method": "measured", "sparsity": "2:4"},
        {"method": "oats"},
        {"method": "rose", "true_sequential": True},
        {"method": "rose", "allocation": "owl", "target_damping": 1.0},  # a smaller one amplifies rounding
        {"method": "sparsegpt", "allocation": "sensitivity"},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_models_are_pruned_on_a_device_and_moved_back(settings, resident, checkpoint, monkeypatch):
    solved = []
    monkeypatch.setattr("rose.layer.tiles.solve_rows", lambda *tile: (solved.append(1), solve_rows(*tile)))
    expected = rose.prune_model(load(checkpoint), CALIBRATION, held_out=HELD_OUT, block_size=16, **settings)
    assert not solved
    model = load(checkpoint)
    with pretend_cuda() as cuda:
        if resident:
            model.to(cuda)
        report = rose.prune_model(model, CALIBRATION, held_out=HELD_OUT, block_size=16, **settings)
        assert all(weight.is_cuda == resident for weight in model.parameters())
    assert report.summary["device"] == "cuda"
    assert bool(solved) == (settings["method"] != "oats")
    for column in ("relative_error", "held_out_error", "relative_range", "sparsity"):
        assert report.layers[column].to_numpy() == pytest.approx(expected.layers[column].to_numpy(), rel=0.02)


def test_a_streamed_model_is_written_from_a_device(checkpoint, tmp_path):
    for name, place in (("here", nullcontext), ("there", pretend_cuda)):
        model = load(checkpoint, stream=True)
        with place():
            rose.prune_model(model, CALIBRATION, method="wanda")
        rose.save_model(model, byte_tokenizer(), tmp_path / name)
    for file in (tmp_path / "here").glob("*.safetensors"):
        assert digest(load_file(file)) == digest(load_file(tmp_path / "there" / file.name))


@pytest.mark.parametrize("resident", [False, True], ids=["visiting", "resident"])
def test_measurements_on_a_device_match_the_processor(resident, checkpoint):
    model, tokenizer = load(checkpoint), byte_tokenizer()
    perplexity = rose.perplexity(model, CALIBRATION)
    hessians = {name: entry.hessian for name, entry in rose.collect_statistics(model, CALIBRATION).items()}
    errors = [record.relative_error for record in rose.analyze_model(model, CALIBRATION, block_size=16)]
    text = continue_prompt(model, tokenizer, "abc", new_tokens=4)
    with pretend_cuda() as cuda:
        if resident:
            model.to(cuda)
        assert rose.perplexity(model, CALIBRATION) == pytest.approx(perplexity)
        for name, statistics in rose.collect_statistics(model, CALIBRATION).items():
            assert is_there(statistics.hessian) == resident
            torch.testing.assert_close(statistics.hessian.cpu(), hessians[name])
        again = [record.relative_error for record in rose.analyze_model(model, CALIBRATION, block_size=16)]
        assert again == pytest.approx(errors, rel=0.02)
        assert continue_prompt(model, tokenizer, "abc", new_tokens=4) == text
