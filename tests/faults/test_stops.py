"""Work in a thread can be cancelled inside long steps, and leaves everything unchanged."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

import rose
from app.jobs import Job
from rose.interrupt import is_stoppable, stop_point, stoppable
from rose.model.load.tokens import load_tokens
from rose.model.measure.perplexity import continue_prompt, perplexity, read_text
from rose.model.network.network import Network
from rose.model.run.allocation import hessian_traces
from tests.refusals import cancelled
from tests.tiny import save_tiny_llama

BLOCKS = 3


def passed(work: Callable[[], Any], last: int = -1) -> int:
    """The number of places at which the work can be stopped; it is stopped at the last."""
    places = itertools.count(1)

    def check() -> None:
        if next(places) == last:
            raise rose.Cancelled

    with stoppable(check):
        work()
    assert not is_stoppable()
    return next(places) - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"), blocks=BLOCKS)


@pytest.fixture(scope="module")
def tiny(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return rose.load_model(str(folder))


def settings_of(model: nn.Module) -> tuple[Any, ...]:
    """All that a stopped pass might leave behind."""
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    return hooks, flags, model.training, torch.get_default_dtype(), torch.is_grad_enabled()


def traces(network: Network, tokens: torch.Tensor) -> Any:
    return hessian_traces(network, tokens, network.layers)


PASSES: dict[str, tuple[Callable[..., Any], int]] = {
    "text": (lambda model, _tokenizer, tokens: read_text(model, tokens[:1]), BLOCKS),
    "perplexity": (lambda model, _tokenizer, tokens: perplexity(model, tokens), BLOCKS),
    "prompt": (lambda model, tokenizer, _tokens: continue_prompt(model, tokenizer, "Hello", new_tokens=5), 5),
    "sensitivity": (lambda model, _, tokens: traces(Network(model), tokens[:1]), 4 * BLOCKS),  # two passes, both ways
}


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_can_be_cancelled_after_any_decoder_block(name, tiny):
    model, tokenizer = tiny
    work, least = PASSES[name]
    tokens = load_tokens("packaged", tokenizer, samples=2, length=16)
    model.train()
    before = settings_of(model)
    every = passed(lambda: work(model, tokenizer, tokens))
    assert every >= least
    for last in {1, 2, every // 2, every}:
        cancelled(passed, lambda: work(model, tokenizer, tokens), last)
        assert settings_of(model) == before


@pytest.mark.parametrize("method", ["alps", "oats", "dsnot", "rose_admm", "rose_dealt"])
def test_a_slow_method_can_be_cancelled_inside_a_layer(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(16, 32, generator=generator), torch.randn(64, 32, generator=generator)
    statistics = rose.InputStatistics(32)
    statistics.update(inputs)
    assert passed(lambda: rose.prune_layer(weight, statistics, method=method, sparsity=0.5, block_size=8)) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_loading_can_be_cancelled_between_tensors(folder: Path, stream: bool) -> None:
    def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return rose.load_model(str(folder), dtype="bfloat16", stream=stream)

    bars, dtype = logging.is_progress_bar_enabled(), torch.get_default_dtype()
    every = passed(load)
    assert every > (2 if stream else 9 * BLOCKS)
    for last in {1, every // 2, every}:
        cancelled(passed, load, last)
        assert (logging.is_progress_bar_enabled(), torch.get_default_dtype()) == (bars, dtype)
        assert logging.set_tqdm_hook(None) is None


def test_a_cancelled_job_stops_at_the_next_check() -> None:
    def work(job: Job) -> None:
        stop_point()
        job.stop()
        stop_point()
        raise AssertionError

    job = Job(work).start()
    job.wait(240)
    assert job.status == "cancelled"
