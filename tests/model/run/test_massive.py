"""A layer with massive activations is told of wherever the numbers of layers stand."""

import json

import pandas as pd
import pytest
import torch
from torch import nn

import rose
from rose.verdicts import caution_column
from tests.model.families import make_model, make_tokens

LAYER, CHANNEL = "model.layers.1.mlp.down_proj", 5
TOKENS, WINDOWS = make_tokens(), make_tokens(seed=2)
BRIEF = "massive activations"


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    """A tiny LLaMA in which one channel of a down_proj is some thousand times as active as the others."""
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[CHANNEL] *= 1000
    return model


def layers_with_caution(table: pd.DataFrame) -> list[str]:
    return table.loc[caution_column(table).str.contains(BRIEF), "layer"].unique().tolist()


def check_sentence(sentences: list[str]) -> None:
    (sentence,) = [text for text in sentences if "very few input channels" in text]
    assert f"channel {CHANNEL}" in sentence
    assert "without these channels" in sentence


@pytest.mark.parametrize("target", ["layer", "dense"])
def test_reports_of_pruning(dense, target):
    report = rose.prune_model(make_copy(dense), TOKENS, sparsity=0.5, block_size=16, target=target, held_out=WINDOWS)
    assert layers_with_caution(report.layers) == [LAYER]
    check_sentence(report.remarks)
    row = report.layers.set_index("layer").loc[LAYER]
    assert row["error_without_massive"] > row["relative_error"]
    assert "error_without_massive" not in report.without_errors().layers


def test_a_check_of_a_checkpoint(dense):
    pruned = make_copy(dense)
    rose.prune_model(pruned, TOKENS, method="sparsegpt", sparsity=0.5, block_size=16, target="layer")
    found = rose.check_checkpoint(dense, pruned, TOKENS, methods=["wanda"], block_size=16)
    check_sentence(found.cautions)
    row = found.layers.set_index("layer").loc[LAYER]
    assert row["error_without_massive"] > row["dense_input_error"]
    assert json.loads(found.to_json())["cautions"] == found.cautions


def make_copy(model: nn.Module) -> nn.Module:
    copied = make_model("llama")
    copied.load_state_dict(model.state_dict())
    return copied
