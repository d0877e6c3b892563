"""What a correction towards the dense model does beyond the perplexity it is judged by:
python -m tests.benchmarks.beyond --first TEXT --judged TEXT --second TEXT --output FOLDER

Models are pruned with calibration text from one source or another, towards each layer's own output, towards the dense
model, and towards it without what the residual stream has lost (R). Each is then judged by

- perplexity on the text of the first source that is kept for it, and on windows of the second that calibrate nothing;
- agreement: how often its most likely next token is the dense model's;
- choice: zero-shot accuracy, as in multiple-choice tasks: which of three passages of the same window a text continues,
  by the log-likelihood that each lends it;
- judged: what it writes by itself (sampled, at temperature 1), as perplexity under the dense model;
- repeated: share of the four-grams in what it writes most likely (greedily) that it has written before.

A line of FOLDER/rows.csv for each run, as it comes; the same command resumes where the lines end.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import rose
from rose.model.load.tokens import load_calibration
from rose.model.walk.targets import BlockTargets
from tests.benchmarks.resuming import resume

VARIANTS = ("layer", "dense", "dense without R")
SAMPLES, WINDOWS, LENGTH = 16, 24, 512
CONTEXT, CONTINUATION = 64, 16  # tokens of a choice
PLACES = (128, 256, 384)  # where in a window a passage ends and its continuation begins
PROMPT, WRITTEN, GRAM = 64, 64, 4  # tokens
KEY = ["calibration", "variant", "method", "seed"]
JUDGED = ["first", "second", "agreement", "choice", "judged", "repeated"]


@contextlib.contextmanager
def without_stream() -> Iterator[None]:
    """Dense targets that leave the residual stream's own loss alone: R = 0."""
    of_stream = BlockTargets._lost

    def nothing(*arguments: Any) -> Tensor:
        return torch.zeros_like(of_stream(*arguments))

    with mock.patch.object(BlockTargets, "_lost", nothing):
        yield


def prune(model: nn.Module, tokens: Tensor, variant: str, method: str, sparsity: str) -> None:
    target = variant.split(maxsplit=1)[0]
    with without_stream() if variant == "dense without R" else contextlib.nullcontext():
        rose.prune_model(model, tokens, method=method, sparsity=sparsity, target=target)


class Judge:
    """The dense model, and what all the others are asked."""

    def __init__(self, dense: Any, windows: Tensor) -> None:
        self.dense, self.windows = dense, windows
        self.predicted = self._predictions(dense)

    @torch.no_grad()
    def _predictions(self, model: Any) -> Tensor:
        return torch.cat([model(input_ids=part).logits.argmax(-1) for part in self.windows.split(4)])

    @torch.no_grad()
    def choice(self, model: Any) -> float:
        """Share of continuations to which their own passage, of the three of a window, lends the most likelihood.

        The text stays and the passage varies: how likely a text is anywhere then plays no part.
        """
        right, of = 0, len(PLACES)
        for window in self.windows:
            passages = torch.stack([window[place - CONTEXT : place] for place in PLACES])
            endings = torch.stack([window[place : place + CONTINUATION] for place in PLACES])
            ids = torch.cat([passages.repeat(of, 1), endings.repeat_interleave(of, 0)], 1)  # ending by ending
            logits = model(input_ids=ids, logits_to_keep=CONTINUATION + 1).logits[:, :-1].float()
            likely = logits.log_softmax(-1).gather(-1, ids[:, -CONTINUATION:].unsqueeze(-1)).sum((1, 2))
            right += int((likely.view(of, of).argmax(1) == torch.arange(of)).sum())
        return right / (len(self.windows) * of)

    @torch.no_grad()
    def write(self, model: Any, greedy: bool) -> Tensor:
        """Continuations of the windows' first tokens, (windows, prompt + written)."""
        torch.manual_seed(0)
        how = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        tokens = {"min_new_tokens": WRITTEN, "max_new_tokens": WRITTEN, "pad_token_id": 0}
        prompts = self.windows[:, :PROMPT]
        return model.generate(prompts, attention_mask=torch.ones_like(prompts), **how, **tokens)

    @torch.no_grad()
    def judged(self, written: Tensor) -> float:
        """Perplexity under the dense model of what was written behind the prompts."""
        logits = self.dense(input_ids=written, logits_to_keep=WRITTEN + 1).logits[:, :-1].float()
        loss = nn.functional.cross_entropy(logits.transpose(1, 2), written[:, -WRITTEN:])
        return math.exp(float(loss))

    def asked(self, model: Any) -> dict[str, float]:
        """Everything but the perplexities."""
        return {
            "agreement": float((self._predictions(model) == self.predicted).float().mean()),
            "choice": self.choice(model),
            "judged": self.judged(self.write(model, greedy=False)),
            "repeated": repeated(self.write(model, greedy=True)[:, -WRITTEN:]),
        }


def repeated(written: Tensor) -> float:
    """Share of runs of four tokens that occurred before in the same row, (rows, tokens)."""
    again, total = 0, 0
    for row in written.tolist():
        grams = [tuple(row[start : start + GRAM]) for start in range(len(row) - GRAM + 1)]
        again, total = again + len(grams) - len(set(grams)), total + len(grams)
    return again / total


def runs(options: argparse.Namespace, known: set[Any]) -> Iterator[dict[str, Any]]:
    dense, tokenizer = rose.load_model(options.model, dtype="bfloat16")
    first = rose.load_tokens(options.judged, tokenizer, samples=WINDOWS, length=LENGTH, seed=None, split="test")
    judge = Judge(dense, first)
    for seed in options.seeds:
        other, second = load_calibration(
            options.second, tokenizer, samples=SAMPLES, held_out=WINDOWS, length=LENGTH, seed=seed
        )
        own, _ = load_calibration(options.first, tokenizer, samples=SAMPLES, held_out=0, length=LENGTH, seed=seed)
        assert second is not None
        for calibration, variant, method in [("", "dense model", ""), *options.runs]:
            if (calibration, variant, method, seed) in known:
                continue
            model = copy.deepcopy(dense)
            if method:
                prune(model, own if calibration == "first" else other, variant, method, options.sparsity)
            row = {"calibration": calibration, "variant": variant, "method": method, "seed": seed}
            row["first"], row["second"] = rose.perplexity(model, first), rose.perplexity(model, second)
            yield row | judge.asked(model)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.beyond",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--first", required=True, metavar="TEXT", help="to calibrate on")
    parser.add_argument("--judged", required=True, metavar="TEXT", help="of the same source, to judge by")
    parser.add_argument("--second", default="packaged", metavar="TEXT", help="another source, for both")
    parser.add_argument("--sparsity", default="0.7")
    parser.add_argument("--methods", nargs="+", default=["sparsegpt", rose.RECOMMENDED])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--calibrations", nargs="+", default=["first", "second"], choices=("first", "second"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    options.runs = [
        (calibration, variant, method)
        for calibration in options.calibrations
        for method in options.methods
        for variant in options.variants
    ]
    summary(resume(options.output, KEY, partial(runs, options)))


def summary(rows: pd.DataFrame) -> None:
    """Means over draws, and how many there are."""
    means = rows.groupby(KEY[:-1], sort=False)[JUDGED].agg("mean").join(rows.groupby(KEY[:-1]).size().rename("draws"))
    shown = Table(*KEY[:-1], *JUDGED, "draws")
    for names, values in means.iterrows():
        shown.add_row(*names, *(f"{value:.3f}" for value in values))
    Console(width=160).print(shown)


if __name__ == "__main__":
    main()
