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
from app.runs.request import HELD_OUT, NEW_TOKENS
from app.study.setup import Setup, check_memory
from app.study.study import LoadedModel
from rose.model.estimate.duration import Cost, estimate_cost, estimate_evaluation
from rose.model.load.models import parse_dtype
from rose.model.measure.generation import continue_prompt
from rose.model.measure.perplexity import perplexity_of, window_losses
from rose.model.network.layers import count_parameters, text_config
from rose.structured.plan import SlimSettings, estimate_slim_memory, estimate_slimming
from rose.structured.slimming import check_slimming
from rose.verdicts import Interval, paired_ratio, says_perplexity

TOKENS = 128  # of the prompt that speed is measured with
FEWEST_TURNS, MOST_TURNS = 5, 50
TIMING = 5.0  # seconds that both models take turns for, where a pass is short


@dataclass(frozen=True)
class Outcome:
    """One model in numbers: parameters, losses on held-out windows, tokens per second, text."""

    label: str
    parameters: int
    losses: tuple[float, ...]  # mean of each window, nats a token; () where nothing is held out
    speed: float
    text: str

    @property
    def perplexity(self) -> float | None:
        return perplexity_of(torch.tensor(self.losses, dtype=torch.float64)) if self.losses else None

    def measured(self, stage: str) -> dict[str, Any]:
        """Perplexity and losses as the summary of a report has them, "before" or "after"."""
        return {f"perplexity_{stage}": self.perplexity, f"losses_{stage}": list(self.losses)}


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


def judge(label: str, model: Any, tokenizer: Any, held_out: Tensor | None, prompt: str) -> Outcome:
    """All but the speed, which is measured for several models at once."""
    losses = () if held_out is None or not len(held_out) else tuple(window_losses(model, held_out).tolist())
    text = continue_prompt(model, tokenizer, prompt, new_tokens=NEW_TOKENS) if prompt.strip() else ""
    return Outcome(label, count_parameters(model), losses, 0.0, text)


class Slimming(TunableRun):
    """One run. `outcomes` (dense, slim, and slim tuned once it is), `report` and `checkpoint` (a folder) are there once
    it is done.
    """

    UNIT = " parts"

    def __init__(
        self, setup: Setup, settings: SlimSettings, load: Callable[[], LoadedModel], *, prompt: str = ""
    ) -> None:
        """prompt: that both models continue; an empty one is not continued."""
        super().__init__()
        self.setup, self.settings, self.prompt = setup, settings, prompt
        self.outcomes: list[Outcome] = []
        self.report: rose.RunReport | None = None
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
        dense = judge("Dense", model, loaded.tokenizer, held_out, self.prompt)
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
        slim = judge(label, model, loaded.tokenizer, held_out, self.prompt)
        report = report.with_summary(**self._told(dense, slim), text_cautions=said)
        self._say("Measuring the speed of both models")
        with holding(loaded.lock, job):
            seconds = _seconds(loaded.model, model, job)
        self._say("Writing the checkpoint")
        rose.save_model(model, loaded.tokenizer, self.untuned, report=report)
        self.checkpoint = self.untuned
        pairs = zip((dense, slim), seconds, strict=True)
        self.outcomes = [replace(one, speed=_speed(own)) for one, own in pairs]
        self.speedup = Speedup.of(*seconds, bound=1 / (1 - report.summary["removed_fraction"]))
        self.report, self.fraction = report, 1.0

    @property
    def untuned(self) -> Path:
        """The checkpoint that tuning begins with."""
        return self._temporary() / f"slim-{self.settings.method}-{self.settings.ratio:g}"

    def _told(self, dense: Outcome, slim: Outcome) -> dict[str, Any]:
        """What the report says of the set-up, and of perplexity where it was measured."""
        setup = self.setup
        if not slim.losses:
            return setup.origin
        windows = {"evaluated_on": HELD_OUT, "windows": len(slim.losses), "window_length": setup.length}
        return setup.origin | windows | dense.measured("before") | slim.measured("after")

    def perplexities(self) -> list[list[str]]:
        """How perplexity moved from the dense model's, by smaller model: a sentence, and another on odd windows."""
        dense, *smaller = self.outcomes
        if not dense.losses:
            return []
        said = []
        for one in smaller:
            moved, *odd = says_perplexity(dense.measured("before") | one.measured("after"))
            said.append([f"{one.label} takes perplexity on held-out windows {moved}.", *odd])
        return said

    def add_tuned(self, outcome: Outcome, model: Any, tokenizer: Any, found: rose.TuneReport) -> None:
        """Puts the smaller copy's tuned one beside it, and its checkpoint and report in place of the copy's."""
        assert self.report is not None
        folder = self.untuned.with_name(f"{self.untuned.name}-tuned")
        before = self.outcomes[1].measured("before") if outcome.losses else {}
        after = outcome.measured("after") if outcome.losses else {}
        report = found.added_to(self.report, **before).with_summary(**after)
        with written_beside(folder, folder.exists()) as place:  # that of an earlier tuning
            rose.save_model(model, tokenizer, place, report=report)
        self.outcomes, self.checkpoint, self.report = [*self.outcomes[:2], outcome], folder, report


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
