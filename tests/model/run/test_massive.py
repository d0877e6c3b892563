"""Reports and checks name layers with massive activations."""

import copy
import json

import pytest
from torch import nn

import rose
from rose.verdicts import caution_column
from tests.model.families import make_model, make_tokens

LAYER, CHANNEL = "model.layers.1.mlp.down_proj", 5
TOKENS, WINDOWS = make_tokens(), make_tokens(seed=2)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    """A tiny LLaMA in which one channel of a down_proj is some thousand times as active as the others."""
    model = make_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[CHANNEL] *= 1000
    return model


def check_sentence(sentences: list[str]) -> None:
    (sentence,) = [text for text in sentences if "very few input channels" in text]
    assert f"channel {CHANNEL}" in sentence
    assert "without these channels" in sentence


@pytest.mark.parametrize("target", ["layer", "dense"])
def test_reports_and_checks_name_the_layer(dense, target):
    pruned = copy.deepcopy(dense)
    report = rose.prune_model(pruned, TOKENS, sparsity=0.5, block_size=16, target=target, held_out=WINDOWS)
    cautions = caution_column(report.layers).str.contains("massive activations")
    assert report.layers.loc[cautions, "layer"].tolist() == [LAYER]
    check_sentence(report.remarks)
    row = report.layers.set_index("layer").loc[LAYER]
    assert row["error_without_massive"] > row["relative_error"]
    assert "error_without_massive" not in report.without_errors().layers
    check = rose.check_checkpoint(dense, pruned, TOKENS, methods=["wanda"], block_size=16)
    check_sentence(check.cautions)
    row = check.layers.set_index("layer").loc[LAYER]
    assert row["error_without_massive"] > row["dense_input_error"]
    assert json.loads(check.to_json())["cautions"] == check.cautions
