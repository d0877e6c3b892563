"""Results match the SlimLLM authors' program; tests/structured/golden.py has run it."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from rose.model.network.network import Network
from rose.model.walk.walk import collect_statistics
from rose.structured.methods import channel_scores, head_scores
from rose.structured.parts import Shape, find_parts
from rose.structured.settings import SlimSettings
from rose.structured.slimming import SlimRun
from rose.structured.survey import make_problem
from tests.model.families import logits
from tests.structured.golden import FIXTURE, RATIOS, tiny_llama


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as archive:
        return dict(archive)


@pytest.fixture
def dense(golden: dict[str, np.ndarray]) -> LlamaForCausalLM:
    model = tiny_llama()
    weights = {name: torch.from_numpy(golden[f"dense/{name}"]).float() for name in model.state_dict()}
    model.load_state_dict(weights)
    return model


def tokens_of(golden: dict[str, np.ndarray]) -> Tensor:
    return torch.from_numpy(golden["tokens"]).long()


def test_scores_match_the_published_program(golden, dense):
    heads, _ = find_parts(dense)[0]
    statistics = collect_statistics(dense, tokens_of(golden), layers=[heads.output.name])[heads.output.name]
    problem = make_problem(heads, statistics, True, 0.01)
    ours = -head_scores(problem, torch.zeros(8, dtype=torch.bool))  # theirs say how much correlation is left
    np.testing.assert_allclose(ours.numpy(), golden["0/head_scores"], rtol=1e-4)


def test_a_whole_run_matches_the_published_program(golden, dense, monkeypatch):
    seen: list[Tensor] = []
    plain = channel_scores
    monkeypatch.setattr(
        "rose.structured.methods.channel_scores", lambda problem: seen.append(plain(problem)) or seen[-1]
    )
    parts = find_parts(dense)
    shapes = [
        [
            Shape(heads.shape.groups - round(ratio * heads.shape.groups), 1),
            Shape(1, channels.shape.units - round(ratio * channels.shape.units)),
        ]
        for (heads, channels), ratio in zip(parts, RATIOS, strict=True)
    ]
    settings = SlimSettings(method="slimllm", allocation="cost")
    run = SlimRun(Network(dense), parts, shapes, ("heads", "channels"), settings)
    run.walk({"calibration": tokens_of(golden)})
    for cut in run.reduction.cuts:
        theirs = golden[f"{cut.part.block_index}/{cut.part.kind}"]
        assert cut.kept.tolist() == theirs.tolist(), (cut.part.block_index, cut.part.kind)
    # Their ℓ2 norms are sums over tokens and ours are means.
    factor = tokens_of(golden).numel() ** 0.5
    for index, scores in enumerate(seen):
        np.testing.assert_allclose(scores.numpy() * factor, golden[f"{index}/channel_scores"], rtol=2e-3)
    np.testing.assert_allclose(logits(dense, tokens_of(golden)[:2]).numpy(), golden["logits"], rtol=2e-3, atol=2e-3)
