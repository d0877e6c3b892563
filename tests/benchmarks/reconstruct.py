"""Does training what was kept pay? Block reconstruction: python -m tests.benchmarks.reconstruct --output FOLDER ...

Once a decoder block is pruned towards the dense model, and before the next one is, the weights that it kept are trained
to put out what the dense block puts out on the dense model's hidden states, given those of the pruned model. Masks stay
as they are. Adam, a rate that falls linearly to 0, one step a batch; the loss is the mean over tokens of ‖Δh‖²/‖h‖²,
and the epoch is kept that is best on held-out windows. (Training with a fixed mask: EBFT, arXiv 2402.12419.)

A line of FOLDER/rows.csv for each run, as it comes; the same command resumes where the lines end. A rate of 0 is the
plain prune.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import rose
from rose.model.load.tokens import load_calibration
from rose.model.network.precision import Precision
from rose.model.walk.forward import run_block
from rose.model.walk.walk import Walk
from tests.benchmarks.resuming import resume

SAMPLES, HELD_OUT, WINDOWS, LENGTH = 16, 4, 24, 512
BATCH_TOKENS = 1024
KEY = ["method", "rate", "seed"]
CALIBRATION, APART = "calibration", "held_out"


class Reconstruction:
    """Takes the place of two steps of a walk: what enters a decoder block is kept, what leaves it is trained."""

    def __init__(self, rate: float, epochs: int) -> None:
        self.rate, self.epochs = rate, epochs
        self.inputs: dict[str, list[Tensor]] = {}
        self.improved: list[float] = []  # held-out loss after over before, of each block
        self.run_dense, self.leave = Walk.run_dense, Walk.leave

    def enter(self, walk: Walk, block: nn.Module, index: int, watch: Any = None) -> None:
        """Before a block is pruned."""
        self.inputs = {
            stream: [walk.kept.activations.read(stream, batch) for batch in range(len(arguments[index]))]
            for stream, arguments in walk.arguments.items()
        }
        self.run_dense(walk, block, index, watch)

    @torch.no_grad()
    def train(self, walk: Walk, index: int) -> None:
        """After all its layers are pruned: trains the block, and runs it again."""
        block = walk.network.blocks[index]
        precise = copy.deepcopy(block).float().requires_grad_()
        rounding = Precision(rounds=walk.precision.products == torch.bfloat16)
        losses = partial(self._losses, walk, precise, index, rounding)
        weights = _matrices(precise)
        kept, masks = _copies(weights), [weight != 0 for weight in weights]
        before = best = self._mean(losses(APART))
        optimizer = torch.optim.Adam(weights, lr=self.rate, betas=(0.9, 0.95))
        steps = self.epochs * len(self.inputs[CALIBRATION])
        fall = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        for _ in range(self.epochs):
            with torch.enable_grad():
                for loss in losses(CALIBRATION):
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    fall.step()
                    for weight, mask in zip(weights, masks, strict=True):
                        weight.data.mul_(mask)
            missed = self._mean(losses(APART))
            if missed < best:
                best, kept = missed, _copies(weights)
        self.improved.append(best / before)
        for weight, trained in zip(_matrices(block), kept, strict=True):
            weight.copy_(trained)
        self._run_again(walk, block, index)
        self.leave(walk, index)

    def _losses(self, walk: Walk, block: nn.Module, index: int, precision: Precision, stream: str) -> Iterator[Tensor]:
        """Of each batch of a stream, with the weights that the block has when it is asked for."""
        assert walk.dense is not None
        for batch, hidden in enumerate(self.inputs[stream]):
            dense = walk.dense.activations.read(stream, batch).float()
            arguments = walk.arguments[stream][index][batch]
            output = run_block(block, hidden.float(), arguments, walk.network.device, precision)
            yield ((output - dense).square().sum(-1) / dense.square().sum(-1)).mean()

    @staticmethod
    def _mean(losses: Iterator[Tensor]) -> float:
        return float(torch.stack(list(losses)).mean())

    def _run_again(self, walk: Walk, block: nn.Module, index: int) -> None:
        assert walk.dense is not None
        walk.dense.block_drift(index, walk.network.device)  # that of the block as it was
        for stream, batches in self.inputs.items():
            for batch, hidden in enumerate(batches):
                output = walk.run(block, hidden, walk.arguments[stream][index][batch])
                walk.put_out(stream, batch, index, output)


def _matrices(block: nn.Module) -> list[nn.Parameter]:
    """The weights that are trained; norms are not."""
    return [parameter for parameter in block.parameters() if parameter.ndim == 2]


def _copies(weights: list[nn.Parameter]) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights]


@contextlib.contextmanager
def reconstructing(work: Reconstruction) -> Iterator[None]:
    """Every decoder block that is pruned within is trained."""
    with (
        mock.patch.object(Walk, "run_dense", lambda walk, *arguments: work.enter(walk, *arguments)),
        mock.patch.object(Walk, "leave", lambda walk, index: work.train(walk, index)),
        mock.patch("rose.model.walk.forward.BATCH_TOKENS", BATCH_TOKENS),
    ):
        yield


def runs(options: argparse.Namespace, known: set[Any]) -> Iterator[dict[str, Any]]:
    dense, tokenizer = rose.load_model(options.model, dtype="bfloat16")
    windows = rose.load_tokens(options.evaluate, tokenizer, samples=WINDOWS, length=LENGTH, seed=None, split="test")
    for seed in options.seeds:
        tokens, held_out = load_calibration(
            options.calibration, tokenizer, samples=options.samples, held_out=HELD_OUT, length=LENGTH, seed=seed
        )
        for method in options.methods:
            for rate in options.rates:
                if (method, rate, seed) in known:
                    continue
                model, work, began = copy.deepcopy(dense), Reconstruction(rate, options.epochs), time.process_time()
                with reconstructing(work) if rate else contextlib.nullcontext():
                    report = rose.prune_model(
                        model, tokens, method=method, sparsity=options.sparsity, held_out=held_out
                    )
                row = {"method": method, "rate": rate, "seed": seed, "seconds": time.process_time() - began}
                row["perplexity"] = rose.perplexity(model, windows)
                row["drift"] = report.summary["drift"][-1]["drift"]
                row["held_out_loss"] = sum(work.improved) / len(work.improved) if rate else 1.0
                row["sparsity"] = _sparsity(model, report)
                yield row


def _sparsity(model: nn.Module, report: rose.RunReport) -> float:
    """Share of zeros: that training has left the masks alone."""
    weights = [model.get_parameter(f"{name}.weight") for name in report.layers["layer"]]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.reconstruct",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--calibration", default="packaged", metavar="TEXT")
    parser.add_argument("--evaluate", default="packaged", metavar="TEXT")
    parser.add_argument("--methods", nargs="+", default=["sparsegpt"])
    parser.add_argument("--sparsity", default="0.7")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 1e-3], help="of learning; 0: no training")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    rows = resume(options.output, KEY, partial(runs, options))
    means = rows.groupby(KEY[:-1], sort=False)[["perplexity", "seconds", "drift", "held_out_loss"]].agg(["mean", "std"])
    shown = Table("method", "rate", *(f"{name}, {what}" for name, what in means.columns))
    for (method, rate), values in means.iterrows():
        shown.add_row(method, str(rate), *(f"{value:.3f}" for value in values))
    Console(width=160).print(shown)


if __name__ == "__main__":
    main()
