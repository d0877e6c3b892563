"""Results name their model, and results of different models are refused together."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import rose
from rose.model.network.network import Network
from tests.seams.consumers import Refused, run
from tests.seams.producers import BLOCKS, HALF, RESTORE, SLIM, Workshop
from tests.tiny import save_tiny_llama


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape."""
    return save_tiny_llama(tmp_path_factory.mktemp("other") / "other", blocks=BLOCKS, seed=1)


def test_the_weights_of_another_model_are_not_restored(shop: Workshop, other: Path) -> None:
    asked = ("--model", other, "--restore", "{prune, target layer}")
    with pytest.raises(Refused, match=r"was not pruned from the dense one: their input embeddings differ; give"):
        run(shop, *RESTORE, *asked, "--output", shop.new("restored"))


def test_damages_of_another_model_are_not_shared(shop: Workshop, other: Path) -> None:
    asked = ("--allocation", f"damage:{shop.folder('damage, blocks')}", "--output")
    with pytest.raises(Refused, match=r"The damages in \S+ are those of another model: their input embeddings differ"):
        run(shop, *HALF, *asked, shop.new("shared"), "--model", other)
    asked = ("--allocation", f"damage:{shop.folder('damage, layers')}", "--output")
    with pytest.raises(Refused, match=r"model.layers.0.mlp.gate_proj had 8192 weights when its damage was measured"):
        run(shop, *HALF, *asked, shop.new("shared"), "--model", "{slim, uniform}")
    run(shop, *HALF, *asked, shop.new("shared"), "--dtype", "bfloat16", "--evaluate", "{text}")


def test_every_report_has_the_embedding_norms_of_its_model(shop: Workshop) -> None:
    norms = Network(rose.load_model(str(shop.folder("dense")))[0]).embedding_norms()
    assert len(norms) == 8
    for name in ("prune, target dense", "slim, cost", "slim and prune, depth"):
        assert shop.report(name)["embedding_norms"] == norms


def test_a_report_names_the_dropped_decoder_blocks(shop: Workshop) -> None:
    dense, slim = (AutoModelForCausalLM.from_pretrained(shop.folder(name)) for name in ("dense", "slim, depth"))
    gone = shop.report("slim, depth")["dropped_blocks"]
    assert len(gone) == 1
    left = [block for index, block in enumerate(dense.model.layers) if index not in gone]
    for before, after in zip(left, slim.model.layers, strict=True):
        assert torch.equal(before.mlp.down_proj.weight, after.mlp.down_proj.weight)


def test_slimming_without_least_squares_keeps_zeros(shop: Workshop) -> None:
    out = shop.new("slim")
    run(shop, *SLIM, "--method", "wanda", "--model", "{prune, 2:4}", "--output", out)
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (shop.folder("prune, 2:4"), out))
    for old, new in zip(before.model.layers, after.model.layers, strict=True):
        channels = set(map(tuple, new.mlp.down_proj.weight.T.tolist()))
        assert 0 < len(channels) < 128
        assert channels <= set(map(tuple, old.mlp.down_proj.weight.T.tolist()))


def test_earlier_zeros_are_reported(shop: Workshop, tmp_path: Path) -> None:
    model, tokenizer = rose.load_model(str(shop.folder("dense")))
    model.model.layers[1].mlp.up_proj.weight.zero_()
    rose.save_model(model, tokenizer, tmp_path / "hollow")
    printed = run(shop, *HALF, "--model", tmp_path / "hollow", "--output", tmp_path / "out")
    assert "In one of 21 layers no more weights are zero than before" in printed
    table = rose.RunReport.from_json((tmp_path / "out" / "report.json").read_text()).layers.set_index("layer")
    gone = ["model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"]  # the second reads nothing but zeros
    assert table.loc[gone, "sparsity"].tolist() == [1, 1]
    assert table["sparsity"].drop(gone).tolist() == pytest.approx([0.5] * 19, abs=1e-3)
