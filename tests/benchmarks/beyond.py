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

import contextlib
import copy
import math
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import rose
from rose.model.load.tokens import load_calibration
from rose.model.walk.targets import BlockTargets
from tests.benchmarks.common import MODEL, Rows, arguments, judged

VARIANTS = ("layer", "dense", "dense without R")
SAMPLES, WINDOWS = 16, 24
CONTEXT, CONTINUATION = 64, 16  # tokens of a choice
PLACES = (128, 256, 384)  # where in a window a passage ends and its continuation begins
PROMPT, WRITTEN, GRAM = 64, 64, 4  # tokens
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


def main() -> None:
    options = arguments(
        __doc__,
        output=Path,
        model=MODEL,
        first=str,
        judged=str,
        second="packaged",
        sparsity="0.7",
        methods=["sparsegpt", rose.RECOMMENDED],
        variants=list(VARIANTS),
        calibrations=["first", "second"],
        seeds=[0, 1, 2],
    )
    dense, tokenizer = rose.load_model(options.model, dtype="bfloat16")
    first = judged(options.judged, tokenizer)
    judge, rows = Judge(dense, first), Rows(options.output / "rows.csv", ["calibration", "variant", "method", "seed"])
    for seed in options.seeds:
        draw = partial(load_calibration, tokenizer=tokenizer, samples=SAMPLES, length=512, seed=seed)
        other, second = draw(options.second, held_out=WINDOWS)
        own, _ = draw(options.first, held_out=0)
        assert second is not None
        runs = product(options.calibrations, options.methods, options.variants)
        for calibration, method, variant in [("", "", "dense model"), *runs]:
            if (calibration, variant, method, seed) in rows:
                continue
            model = copy.deepcopy(dense)
            if method:
                prune(model, own if calibration == "first" else other, variant, method, options.sparsity)
            found = {"first": rose.perplexity(model, first), "second": rose.perplexity(model, second)}
            found |= judge.asked(model)
            rows.add(calibration=calibration, variant=variant, method=method, seed=seed, **found)
    print(rows.means(["calibration", "variant", "method"], JUDGED))


if __name__ == "__main__":
    main()
