"""Perplexity against the loss that transformers computes itself."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rose
from rose.model import evaluation
from rose.model.comparison import ComparisonRow, to_markdown
from tests.model.families import VOCABULARY, make_model, make_tokens


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "opt", "bloom", "gpt_neox"])
def test_perplexity_is_exp_of_the_mean_loss(family: str) -> None:
    model, tokens = make_model(family), make_tokens()
    with torch.no_grad():
        losses = [model(input_ids=window[None], labels=window[None]).loss.item() for window in tokens]
    assert rose.perplexity(model, tokens) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert evaluation.window_losses(model, tokens).tolist() == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("elements", [1, 3 * 24 * VOCABULARY, 10**9])
def test_batches_do_not_matter(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = make_model("llama"), make_tokens()
    expected = rose.perplexity(model, tokens)
    monkeypatch.setattr(evaluation, "LOGIT_ELEMENTS", elements)
    assert rose.perplexity(model, tokens) == pytest.approx(expected, rel=1e-5)


def test_uniform_predictions_have_the_perplexity_of_the_vocabulary() -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert rose.perplexity(model, make_tokens()) == pytest.approx(VOCABULARY, rel=1e-5)


def test_hopeless_predictions_are_infinite_and_not_an_error() -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    assert rose.perplexity(model, make_tokens()) == math.inf


def test_progress_and_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LOGIT_ELEMENTS", 2 * 24 * VOCABULARY)
    model = make_model("llama").train()
    shares: list[float] = []
    rose.perplexity(model, make_tokens(), progress=shares.append)
    assert shares == [0.4, 0.8, 1.0]

    def stop(_share: float) -> None:
        raise rose.Cancelled

    with pytest.raises(rose.Cancelled):
        rose.perplexity(model, make_tokens(), progress=stop)
    assert model.training
    assert next(model.parameters()).device == torch.device("cpu")


def test_windows_do_not_see_each_other() -> None:
    model, tokens = make_model("llama"), make_tokens()
    shuffled = tokens[[3, 1, 4, 0, 2]]
    assert rose.perplexity(model, shuffled) == pytest.approx(rose.perplexity(model, tokens), rel=1e-5)


def test_pruning_the_packaged_model_raises_its_perplexity(
    packaged: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    """Known text: the dense model predicts English; without its weights it does not."""
    model, tokenizer = packaged
    tokens = rose.load_tokens("packaged", tokenizer, samples=2, length=128, seed=0)
    dense = rose.perplexity(model, tokens)
    assert 5 < dense < 60
    broken = copy.deepcopy(model)
    for layer in rose.prunable_layers(broken):
        assert isinstance(layer.module, nn.Linear)
        if layer.projection == "mlp.down_proj" and layer.block_index < 3:
            layer.write(torch.zeros_like(layer.weight))
    assert rose.perplexity(broken, tokens) > 3 * dense


def test_a_comparison_as_markdown() -> None:
    def row(method: str, sparsity: str, seed: int, value: float) -> ComparisonRow:
        return ComparisonRow(method, sparsity, seed, value, 10.0, 0.1, None, 0.5, 1.0, 100)

    rows = [row("rose", "0.5", 0, 20.0), row("rose", "0.5", 1, 23.0), row("rose", "2:4", 0, 30.04)]
    assert to_markdown([*rows, row("wanda", "0.5", 0, 1234.5)]) == (
        "| method | 0.5 | 2:4 |\n|---|---|---|\n| rose | 21.5 ± 1.5 | 30.0 |\n| wanda | 1234 | – |\n"
    )
    assert to_markdown([]) == ""


def test_windows_with_nothing_to_predict() -> None:
    with pytest.raises(rose.RoseError, match="windows of at least 2 tokens"):
        rose.perplexity(make_model("llama"), make_tokens()[:, :1])
