"""Perplexity against the loss that transformers computes itself."""

import copy
import dataclasses
import math
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

import rose
from rose.model.measure import comparison
from rose.model.measure import perplexity as evaluation
from rose.rows import records_table
from tests.model.families import VOCABULARY, make_model, make_tokens
from tests.refusals import cancelled, refused


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "opt", "bloom", "gpt_neox"])
def test_perplexity_is_exp_of_the_mean_loss(family):
    model, tokens = make_model(family), make_tokens()
    with torch.no_grad():
        losses = [model(input_ids=window[None], labels=window[None]).loss.item() for window in tokens]
    assert rose.perplexity(model, tokens) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert evaluation.window_losses(model, tokens).tolist() == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("elements", [1, 3 * 24 * VOCABULARY, 10**9])
def test_batches_do_not_matter(elements, monkeypatch):
    model, tokens = make_model("llama"), make_tokens()
    expected = rose.perplexity(model, tokens)
    monkeypatch.setattr(evaluation, "LOGIT_ELEMENTS", elements)
    assert rose.perplexity(model, tokens) == pytest.approx(expected, rel=1e-5)


def test_hopeless_predictions_have_infinite_perplexity():
    model = make_model("llama")
    model.lm_head.weight.data.mul_(1e5)
    assert rose.perplexity(model, make_tokens()) == math.inf


def test_perplexity_reports_progress_and_can_be_cancelled(monkeypatch):
    monkeypatch.setattr(evaluation, "LOGIT_ELEMENTS", 2 * 24 * VOCABULARY)
    model, shares = make_model("llama").train(), list[float]()
    rose.perplexity(model, make_tokens(), progress=shares.append)
    blocks = model.config.num_hidden_layers
    assert len(shares) == 3 * (blocks + 1)  # after each decoder block of a batch, and after the batch
    assert shares[blocks :: blocks + 1] == [0.4, 0.8, 1.0]
    assert shares == sorted(shares)
    cancelled(rose.perplexity, model, make_tokens(), progress=Mock(side_effect=rose.Cancelled))
    assert model.training


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alps", ("alps", None, None, None)),
        ("alps:layer", ("alps", None, None, "layer")),
        ("sparsegpt@random:1", ("sparsegpt", "random:1", None, None)),
        ("sparsegpt@random:1/layer", ("sparsegpt", "random:1", "layer", None)),
        ("sparsegpt@random:1/layer:dense", ("sparsegpt", "random:1", "layer", "dense")),
    ],
)
def test_methods_of_a_comparison_may_have_an_order_and_a_target(text, expected):
    variant = comparison.parse_variant(text)
    assert tuple(map(variant.get, ("method", "order", "budget", "target"))) == expected


def test_targets_are_compared_in_one_run():
    model, tokens = make_model("llama"), make_tokens(4)
    dense_weights = copy.deepcopy(model.state_dict())
    methods = ["sparsegpt:layer", "sparsegpt:dense", "sparsegpt"]
    plan = comparison.plan_comparison(methods, ["0.5"], target="dense", block_size=16, target_damping=0.5)

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        return make_tokens(4, seed=seed), make_tokens(2, seed=9)

    layer, dense, usual = comparison.compare_methods(model, draw, tokens, plan, seeds=[0])
    assert all(torch.equal(weight, dense_weights[name]) for name, weight in model.state_dict().items())
    assert layer.mean_target_error is None
    assert layer.drift != dense.drift == usual.drift
    alone: dict[str, Any] = {"method": "sparsegpt", "sparsity": 0.5, "block_size": 16, "target": "layer"}
    given, held_out = draw(0)
    report = rose.prune_model(make_model("llama"), given, held_out=held_out, **alone)
    assert layer.mean_held_out_error == report.summary["mean_held_out_error"]


def test_rows_of_different_environments_are_never_paired():
    def row(method: str, seed: int, value: float) -> comparison.ComparisonRow:
        losses = " ".join(str(np.log(value) + gap) for gap in (-0.1, 0.1))
        more = {"environment": "a", "losses": losses}
        return comparison.ComparisonRow(method, "0.5", seed, value, 10.0, 0.1, None, 0.5, 1.0, 100, **more)

    here = [row("rose", 0, 20.0), row("rose", 1, 21.0), row("alps", 0, 30.0), row("alps", 1, 31.0)]
    table = records_table(here, comparison.ComparisonRow)
    assert comparison.conclusions(table)[0].startswith("At 0.5: rose has the lowest perplexity, 20.5.")
    mean = np.log(420) / 2
    assert comparison.results_at(table, "0.5")[0].losses == pytest.approx([mean - 0.1, mean + 0.1])
    single = [row for row in here if row.seed == 0]  # is decided by windows alone
    assert "over two windows" in comparison.conclusions(records_table(single, comparison.ComparisonRow))[0]
    moved = [here[0], here[1], *(dataclasses.replace(row, environment="b") for row in here[2:])]
    conclusion = comparison.conclusions(records_table(moved, comparison.ComparisonRow))[0]
    assert "Not ranked: rose and alps differ in environment (a; b)" in conclusion
    mixed = [here[0], dataclasses.replace(here[1], environment="b")]
    assert comparison.summarize(mixed)[["environment", "seeds"]].values.tolist() == [["a", 1], ["b", 1]]
    assert comparison.to_markdown(mixed).count("| rose |") == 2


def test_rows_on_a_text_that_has_changed_since_are_not_resumed(tmp_path):
    model, tokens = make_model("llama"), make_tokens()
    folder = comparison.ComparisonFolder(tmp_path, {"evaluate": "a.txt"})
    folder.know(model, {"evaluation": tokens})
    folder.add(comparison.ComparisonRow("rose", "0.5", 0, 20.0, 10.0, 0.1, None, 0.5, 1.0, 100))
    again = comparison.ComparisonFolder(tmp_path, {"evaluate": "a.txt"})
    again.know(model, {"evaluation": tokens, "calibration": tokens})
    refused("another text: the evaluation tokens differ", again.know, model, {"evaluation": tokens + 1})


@pytest.mark.parametrize(
    ("methods", "sparsity", "options", "words"),
    [
        (["rose:dense", "sparsegpt"], "0.5", {"target": "layer", "target_damping": 0.5}, "Only target dense"),
        (["rose_admm", "sparsegpt"], "0.5", {"options": {"effort": 3}}, "effort"),
        (["sparsegpt", "oats"], "7:8", {}, "would store more than the dense layer"),
    ],
)
def test_a_comparison_refuses_bad_input_before_any_run(methods, sparsity, options, words):
    refused(words, comparison.plan_comparison, methods, [sparsity], block_size=16, **options)
