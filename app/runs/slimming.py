"""Making a copy of the model smaller in the background, and comparing it with the dense one. No Streamlit here."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rose
from app import words
from app.jobs import Job, TunableRun, holding
from app.runs.checkpoints import written_beside
from app.runs.pruning import dense_record, measured_perplexity
from app.runs.request import HELD_OUT, NEW_TOKENS
from app.study.setup import Setup, check_memory
from app.study.study import LoadedModel
from rose.model.estimate.duration import Cost, estimate_cost, estimate_evaluation
from rose.model.load.models import parse_dtype
from rose.model.measure.generation import continue_prompt
from rose.model.measure.perplexity import window_losses
from rose.model.network.layers import count_parameters, text_config
from rose.recipe.parts import SlimSettings
from rose.structured.plan import estimate_slim_memory, estimate_slimming
from rose.structured.slimming import check_slimming
from rose.verdicts import Interval, paired_ratio, says_perplexity

TOKENS = 128  # of the prompt that speed is measured with
FEWEST_TURNS, MOST_TURNS = 5, 50
TIMING = 5.0  # seconds that both models take turns for, where a pass is short


@dataclass(frozen=True)
class Speedup:
    """How many times as fast the smaller model reads a prompt."""

    ratio: Interval
    turns: int  # of each model
    bound: float  # what the number of multiplications allows

    @classmethod
    def of(cls, dense: Sequence[float], slim: Sequence[float], bound: float) -> Speedup:
        """From the seconds of each turn; `dense` and `slim` took turns."""
        logs = ([math.log(seconds) for seconds in one] for one in (dense, slim))
        return cls(paired_ratio(*logs), len(dense), bound)

    def says(self) -> str:
        """A sentence, which tells no ratio that chance or other work on the machine may have made."""
        if not self.ratio.is_clear or self.ratio.low > self.bound:
            return (
                f"How much faster it reads a prompt of {TOKENS} tokens cannot be told: this machine is too noisy, or "
                "the model too small."
            )
        return (
            f"It reads a prompt of {TOKENS} tokens {words.number(self.ratio.value)} times as fast here (95 % interval "
            f"{self.ratio.bounds}, {words.count(self.turns, 'turn')} each)."
        )


def estimate(setup: Setup, settings: SlimSettings, model: nn.Module) -> Cost:
    """A copy made, and it and the dense model evaluated; raises RoseError for what cannot be made of this model."""
    sizes: dict[str, Any] = {"samples": setup.samples + setup.held_out, "length": setup.length}
    check_slimming(model, settings)
    seconds = estimate_slimming(model, settings, **sizes)
    seconds += 2 * estimate_evaluation(model, tokens=setup.held_out * setup.length, new_tokens=NEW_TOKENS)
    dtype = parse_dtype(setup.dtype)
    memory = estimate_slim_memory(model, settings, held_out=setup.held_out > 0, dtype=dtype, **sizes)
    return replace(estimate_cost(model, **sizes), seconds=seconds, memory=memory.besides_weights)


def judge(model: Any, tokenizer: Any, held_out: Tensor | None, prompt: str) -> dict[str, Any]:
    """The results of a record but for the speed, which is measured for several models at once."""
    results: dict[str, Any] = {"kept_parameters": count_parameters(model)}
    if held_out is not None and len(held_out):
        results |= measured_perplexity(window_losses(model, held_out))
    if prompt.strip():
        results["continuation"] = continue_prompt(model, tokenizer, prompt, new_tokens=NEW_TOKENS)
    return results


class Slimming(TunableRun):
    """One run. `models` (dense, slim, and slim tuned once it is) and `checkpoint`, a folder, are its results."""

    UNIT = " parts"

    def __init__(
        self, setup: Setup, settings: SlimSettings, load: Callable[[], LoadedModel], *, prompt: str = ""
    ) -> None:
        """prompt: that both models continue; an empty one is not continued."""
        super().__init__()
        self.setup, self.settings, self.prompt = setup, settings, prompt
        self.models: list[rose.RunReport] = []
        self.checkpoint: Path | None = None
        self.speedup: Speedup | None = None  # of the slim model
        self._load = load

    def _run(self, job: Job) -> None:
        settings, setup = self.settings, self.setup
        self._say("Loading the model")
        loaded = self._load()
        check_memory(estimate(setup, settings, loaded.model), setup.dtype)
        said: list[str] = []
        tokens, held_out = setup.draw(loaded.tokenizer, said.append)
        model = self._copy(loaded.model, loaded.lock)
        self._say("Perplexity and text: Dense")
        dense = judge(model, loaded.tokenizer, held_out, self.prompt)
        share = f"{100 * settings.ratio:g} %"
        self._say(f"Taking {share} out")
        report = rose.prune_structured(
            model,
            tokens,
            **vars(settings),
            held_out=held_out,
            progress=self._follow(0.2, 0.8),
        )
        label = f"{settings.method}, {share} out"
        self._say(f"Perplexity and text: {label}")
        slim = judge(model, loaded.tokenizer, held_out, self.prompt)
        report = report.with_summary(**slim, **self._told(dense), text_cautions=said)
        self._say("Measuring the speed of both models")
        with holding(loaded.lock, job):
            seconds = _seconds(loaded.model, model, job)
        self._say("Writing the checkpoint")
        rose.save_model(model, loaded.tokenizer, self.untuned, report=report)
        self.checkpoint = self.untuned
        models = dense_record("Dense", dense), replace(report, called=label)
        pairs = zip(models, seconds, strict=True)
        self.models = [model.with_summary(tokens_per_second=_speed(own)) for model, own in pairs]
        self.speedup = Speedup.of(*seconds, bound=1 / (1 - report.summary["removed_fraction"]))
        self.fraction = 1.0

    @property
    def untuned(self) -> Path:
        """The checkpoint that tuning begins with."""
        return self._temporary() / f"slim-{self.settings.method}-{self.settings.ratio:g}"

    def _told(self, dense: dict[str, Any]) -> dict[str, Any]:
        """What the record says of the set-up, and of the dense model's perplexity where it was measured."""
        setup = self.setup
        if "losses_after" not in dense:
            return setup.origin
        windows = {"evaluated_on": HELD_OUT, "windows": len(dense["losses_after"]), "window_length": setup.length}
        before = {"perplexity_before": dense["perplexity_after"], "losses_before": dense["losses_after"]}
        return setup.origin | windows | before

    def perplexities(self) -> list[list[str]]:
        """How perplexity moved from the dense model's, by smaller model: a sentence, and another on odd windows."""
        sentences = []
        for model in self.models[1:]:
            if "perplexity_after" in model.summary:
                moved, *odd = says_perplexity(model.summary)
                sentences.append([f"{model.name} takes perplexity on held-out windows {moved}.", *odd])
        return sentences

    def add_tuned(
        self, label: str, measured: dict[str, Any], model: Any, tokenizer: Any, found: rose.TuneReport
    ) -> None:
        """Puts the smaller copy's tuned one beside it, and its checkpoint in place of the copy's."""
        folder, slim = self.untuned.with_name(f"{self.untuned.name}-tuned"), self.models[1]
        numbers = ("perplexity", "losses") if "perplexity_after" in slim.summary else ()
        before = {f"{number}_before": slim.summary[f"{number}_after"] for number in numbers}
        tuned = replace(found.added_to(slim, **before).with_summary(**measured), called=label)
        with written_beside(folder, folder.exists()) as place:  # that of an earlier tuning
            rose.save_model(model, tokenizer, place, report=tuned)
        self.models, self.checkpoint = [*self.models[:2], tuned], folder


def _seconds(dense: Any, slim: Any, job: Job) -> tuple[list[float], list[float]]:
    """Of reading a prompt, by turn: in pairs, so that other work disturbs both alike, each first in every other one.

    The first passes of a model are slow and do not count; how long the second ones take says how many turns there are.
    """
    ids = torch.randint(3, text_config(dense).vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    ids = ids.to(next(dense.parameters()).device)
    for _ in range(2):
        pair = _timed(dense, ids) + _timed(slim, ids)
    found: tuple[list[float], list[float]] = [], []
    for turn in range(min(MOST_TURNS, max(FEWEST_TURNS, round(TIMING / pair)))):
        job.check()
        for which in (0, 1) if turn % 2 else (1, 0):
            found[which].append(_timed((dense, slim)[which], ids))
    return found


def _speed(seconds: Sequence[float]) -> float:
    """Tokens per second over all turns; of two models these differ by the very ratio that `Speedup` tells."""
    return TOKENS / statistics.geometric_mean(seconds)


@torch.no_grad()
def _timed(model: Any, ids: Tensor) -> float:
    start = time.perf_counter()
    model(input_ids=ids, use_cache=False)
    return time.perf_counter() - start
