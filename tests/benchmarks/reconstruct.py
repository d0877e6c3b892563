"""Does training what was kept pay? Block reconstruction: python -m tests.benchmarks.reconstruct --output FOLDER ...

Once a decoder block is pruned towards the dense model, and before the next one is, the weights that it kept are trained
to put out what the dense block puts out on the dense model's hidden states, given those of the pruned model. Masks stay
as they are. Adam, a rate that falls linearly to 0, one step a batch; the loss is the mean over tokens of ‖Δh‖²/‖h‖²,
and the epoch is kept that is best on held-out windows. (Training with a fixed mask: EBFT, arXiv 2402.12419.)

A line of FOLDER/rows.csv for each run, as it comes; the same command resumes where the lines end. A rate of learning
of 0 is the plain prune.
"""

from __future__ import annotations

import contextlib
import copy
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
from rose.model.network.precision import Precision
from rose.model.walk.forward import run_block
from rose.model.walk.walk import Walk
from tests.benchmarks.common import MODEL, Rows, arguments, judged, processor_seconds

BATCH_TOKENS = 1024
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
        for batch, hidden in enumerate(self.inputs[stream]):
            dense = walk.dense.activations.read(stream, batch).float()
            arguments = walk.arguments[stream][index][batch]
            output = run_block(block, hidden.float(), arguments, walk.network.device, precision)
            yield ((output - dense).square().sum(-1) / dense.square().sum(-1)).mean()

    @staticmethod
    def _mean(losses: Iterator[Tensor]) -> float:
        return float(torch.stack(list(losses)).mean())

    def _run_again(self, walk: Walk, block: nn.Module, index: int) -> None:
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


def main() -> None:
    options = arguments(
        __doc__,
        output=Path,
        model=MODEL,
        calibration="packaged",
        evaluate="packaged",
        methods=["sparsegpt"],
        sparsity="0.7",
        samples=16,
        rates=[0.0, 1e-3],
        epochs=8,
        seeds=[0, 1, 2],
    )
    dense, tokenizer = rose.load_model(options.model, dtype="bfloat16")
    windows = judged(options.evaluate, tokenizer)
    rows = Rows(options.output / "rows.csv", ["method", "rate", "seed"])
    for seed, method, rate in product(options.seeds, options.methods, options.rates):
        if (method, rate, seed) in rows:
            continue
        tokens, held_out = load_calibration(
            options.calibration, tokenizer, samples=options.samples, held_out=4, length=512, seed=seed
        )
        model, work = copy.deepcopy(dense), Reconstruction(rate, options.epochs)
        run = partial(rose.prune_model, model, tokens, method=method, sparsity=options.sparsity, held_out=held_out)
        with reconstructing(work) if rate else contextlib.nullcontext():
            seconds, report = processor_seconds(run)
        rows.add(
            method=method,
            rate=rate,
            seed=seed,
            seconds=seconds,
            perplexity=rose.perplexity(model, windows),
            drift=report.last_drift,
            held_out_loss=sum(work.improved) / len(work.improved) if rate else 1.0,
            sparsity=_sparsity(model, report),
        )
    print(rows.means(["method", "rate"], ["perplexity", "seconds", "drift", "held_out_loss"]))


def _sparsity(model: nn.Module, report: rose.RunReport) -> float:
    """Share of zeros: that training has left the masks alone."""
    weights = [model.get_parameter(f"{name}.weight") for name in report.layers["layer"]]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


if __name__ == "__main__":
    main()
