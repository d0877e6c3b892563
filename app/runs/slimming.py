"""A smaller copy beside the dense model, and every way to make a model smaller. No Streamlit here."""

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
from transformers import PreTrainedTokenizerBase

import rose
from app import words
from app.jobs import Job, Run, holding
from app.runs.copies import NEW_TOKENS, CopyRun, Step, as_before, dense_record
from app.study.setup import TOKENS, Setup, check_memory
from app.study.study import LoadedModel
from rose.model.defaults import HELD_OUT
from rose.model.estimate import Cost, estimate_cost, estimate_evaluation
from rose.model.load.models import parse_dtype
from rose.model.network.layers import count_parameters
from rose.recipe.steps import Slim, Smaller
from rose.smaller import Bench, Row
from rose.smaller.measure import PROMPT, in_turns
from rose.structured.plan import estimate_slim_memory, estimate_slimming
from rose.structured.settings import WHOLE_BLOCKS, SlimSettings
from rose.structured.slimming import check_slimming
from rose.verdicts import Interval, paired_ratio, says_perplexity


@dataclass(frozen=True)
class Speedup:
    """How many times as fast the smaller model reads a prompt."""

    ratio: Interval
    turns: int  # of each model
    bound: float  # what the number of multiplications allows

    @classmethod
    def of(cls, dense: Sequence[float], slim: Sequence[float], bound: float) -> Speedup:
        """From the seconds of each turn; `dense` and `slim` took turns."""
        return cls(paired_ratio(*(list(map(math.log, times)) for times in (dense, slim))), len(dense), bound)

    def says(self) -> str:
        """A sentence, which tells no ratio that chance or other work on the machine may have made."""
        prompt = f"a prompt of {PROMPT} tokens"
        if not self.ratio.is_clear or self.ratio.low > self.bound:
            return f"The speed at {prompt} is unclear: this machine is too noisy, or the model is too small."
        times, turns = self.ratio.value_text, words.count(self.turns, "turn")
        return f"It reads {prompt} {times} times as fast here (95\u202f% interval {self.ratio.bounds}, {turns} each)."


def recipe_of(setup: Setup, **chosen: Any) -> Slim:
    """The recipe of a copy; `chosen`: its method, ratio and allocation. Raises RoseError for impossible values."""
    fields = setup.pick(("model", "dtype", *TOKENS)) | {"output": "slim"}
    if chosen["method"] == WHOLE_BLOCKS:  # as they are
        return Slim.of(**fields, method=chosen["method"], ratio=chosen["ratio"])
    return Slim.of(**fields, damping=setup.damping, **chosen)


def estimate(setup: Setup, request: Slim, model: nn.Module) -> Cost:
    """Cost of a copy and of evaluating both models; raises RoseError for an impossible copy."""
    sizes, settings = setup.extent, SlimSettings(**request.stages()[0])
    check_slimming(model, settings)
    seconds = estimate_slimming(model, settings, **sizes)
    seconds += 2 * estimate_evaluation(model, tokens=setup.held_out * setup.length, new_tokens=NEW_TOKENS)
    dtype = parse_dtype(setup.dtype)
    memory = estimate_slim_memory(model, settings, held_out=setup.held_out > 0, dtype=dtype, **sizes)
    return replace(estimate_cost(model, **sizes), seconds=seconds, memory=memory.besides_weights)


class Slimming(CopyRun):
    """One run; `models` are dense, slim, and slim tuned once it is."""

    UNIT = " parts"

    def __init__(self, setup: Setup, request: Slim, load: Callable[[], LoadedModel], *, prompt: str = "") -> None:
        super().__init__(setup, load, prompt=prompt)
        self.request = request
        self.speedup: Speedup | None = None  # of the slim model

    def windows(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        held_out = self.setup.draw(tokenizer)[1]
        return torch.empty(0, self.setup.length, dtype=torch.int64) if held_out is None else held_out

    def judge(self, model_name: str, model: Any, tokenizer: Any, windows: Tensor, step: Step) -> dict[str, Any]:
        """But for the speed, which is measured for several models at once."""
        return super().judge(model_name, model, tokenizer, windows, step) | {"kept_parameters": count_parameters(model)}

    def _run(self, job: Job) -> None:
        request, setup = self.request, self.setup
        self._say("Loading the model")
        loaded = self._load()
        check_memory(estimate(setup, request, loaded.model), setup.dtype)
        cautions: list[str] = []
        tokens, held_out = setup.draw(loaded.tokenizer, cautions.append)
        windows = self.windows(loaded.tokenizer)
        model = self._copy(loaded.model, loaded.lock)
        dense = dense_record(self.judge("the dense model", model, loaded.tokenizer, windows, self._step))
        share = f"{100 * request.ratio:g} %"
        self._say(f"Taking {share} out")
        report = rose.prune_structured(
            model, tokens, **request.stages()[0], held_out=held_out, progress=self._follow(0.2, 0.8)
        )
        label = f"{request.method}, {share} out"
        measured = self.judge(label, model, loaded.tokenizer, windows, self._step)
        about = {"evaluated_on": HELD_OUT, "windows": len(windows), "window_length": setup.length}
        before = about | as_before(dense) if len(windows) else {}
        slim = replace(report, called=label).with_summary(**measured, **before, **setup.origin, text_cautions=cautions)
        self._say("Measuring the speed of both models")
        with holding(loaded.lock, job):
            dense_turns, turns = in_turns(loaded.model, model)
        seconds = [turn[0] for turn in dense_turns], [turn[0] for turn in turns]
        self._say("Writing the checkpoint")
        self.dense, slim = (  # tokens a second; their ratio equals the ratio of `Speedup`
            record.with_summary(tokens_per_second=PROMPT / statistics.geometric_mean(times))
            for record, times in zip((dense, slim), seconds, strict=True)
        )
        self.add(self.write(model, loaded.tokenizer, slim))
        self.speedup = Speedup.of(*seconds, bound=1 / (1 - report.summary["removed_fraction"]))
        self.fraction = 1.0

    def perplexities(self) -> list[list[str]]:
        """How perplexity moved from the dense model's, by smaller model: a sentence, and another on odd windows."""
        sentences = [
            (copy, says_perplexity(copy.summary)) for copy in self.copies if "perplexity_after" in copy.summary
        ]
        return [[f"{copy.name} takes perplexity on held-out windows {move}.", *odd] for copy, (move, *odd) in sentences]


class SmallerRun(Run):
    """Every way estimated, then measured, the most promising first, for the minutes that were asked for."""

    def __init__(self, request: Smaller, load: Callable[[], LoadedModel]) -> None:
        super().__init__()
        self.request, self._load, self.estimated = request, load, 60 * request.minutes
        self.rows: list[Row] = []  # one a way, measured rows in place of their estimates
        self.left_out: list[str] = []  # sentences on ways that cannot be made

    def _run(self, job: Job) -> None:
        self._say("Loading the model")
        loaded = self._load()
        model = self._copy(loaded.model, loaded.lock)
        self._say("Estimating every way")
        bench = Bench(self.request, model, loaded.tokenizer, self._temporary())
        self.rows, self.left_out, seconds = bench.rows, bench.left_out, 60 * self.request.minutes
        start = time.monotonic()

        def follow(name: str, _share: float, doing: str) -> None:
            self.fraction = min(0.999, (time.monotonic() - start) / seconds)
            if (text := f"{name}: {doing}") != self.job.message:
                self._say(text)
            self.job.check()

        for _ in bench.measured_rows(seconds, follow):
            self.rows = bench.rows
        self.rows, self.fraction = bench.rows, 1.0

    def count_measured(self) -> int:
        return sum(row.is_measured for row in self.rows)

    def kept(self, key: str) -> Path | None:
        """The folder of a copy; only recommended copies are kept."""
        place = self._folder / key if self._folder is not None else None
        return place if place is not None and place.exists() else None
