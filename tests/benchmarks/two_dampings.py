"""Two dampings of the correction towards the dense model: python -m tests.benchmarks.two_dampings --output FOLDER ...

The correction of a layer that writes into the residual stream has two parts: what its inputs lack, X_d − X_p, and what
the stream has lost, R. One μ serves both (docs/targets.md); here each has its own, as multiples of the rule's, and
layers that read the stream take that of the inputs. A line of FOLDER/rows.csv for each run, as it comes; the same
command resumes where the lines end.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

import rose
from rose.layer.target import OutputGap, target_damping
from rose.model.load.tokens import load_calibration
from rose.model.network.layers import PrunableLayer, decoder_blocks, text_config
from rose.model.walk.targets import BlockTargets, Pairs
from tests.benchmarks.beyond import without_stream
from tests.benchmarks.resuming import resume

KEY = ["model", "method", "sparsity", "tokens", "seed", "inputs", "stream"]
WINDOWS, LENGTH = 24, 512
MULTIPLES = [(1.0, 1.0), (1.0, 0.3), (1.0, 3.0), (0.3, 1.0), (3.0, 1.0)]  # of the rule's μ: for the inputs, for R


class TwoPartGap(OutputGap):
    """A gap whose share of the stream has a damping of its own.

    Args:
        whole: the gap.
        inputs: the gap with R = 0.
        stream_damping: μ for R.
    """

    def __init__(self, whole: OutputGap, inputs: OutputGap, stream_damping: float) -> None:
        rows, columns = whole.cross.shape
        super().__init__(rows, columns, whole.cross.device, whole.dtype)
        self.cross, self.square, self.total = whole.cross, whole.square, whole.total
        self.inputs, self.stream_damping = inputs, stream_damping

    def correction(self, weight: Tensor, hessian: Tensor, damping: float) -> tuple[Tensor, float]:
        stream = copy.copy(self.inputs)
        stream.cross = self.cross - self.inputs.cross
        own, used = self.inputs.correction(weight, hessian, damping)
        return own + stream.correction(weight, hessian, self.stream_damping)[0], used


@contextlib.contextmanager
def damped_apart(stream_damping: float) -> Iterator[None]:
    """Prunes towards the dense model with this μ for R; `target_damping` is that of the inputs."""
    measure = BlockTargets._output_gap

    def measure_both(targets: BlockTargets, layer: PrunableLayer, pairs: Pairs) -> OutputGap:
        whole = measure(targets, layer, pairs)
        with without_stream():
            inputs = measure(targets, layer, pairs)
        return TwoPartGap(whole, inputs, stream_damping)

    with mock.patch.object(BlockTargets, "_output_gap", measure_both):
        yield


def runs(options: argparse.Namespace, known: set[Any]) -> Iterator[dict[str, Any]]:
    dense, tokenizer = rose.load_model(options.model, dtype="bfloat16")
    windows = rose.load_tokens(options.evaluate, tokenizer, samples=WINDOWS, length=LENGTH, seed=None, split="test")
    blocks = len(decoder_blocks(dense)[1])
    for seed, samples in itertools.product(options.seeds, options.samples):
        tokens, _ = load_calibration(  # those of the other studies, which hold some out
            options.calibration, tokenizer, samples=samples, held_out=4, length=LENGTH, seed=seed
        )
        rule = target_damping(text_config(dense).hidden_size, tokens.numel(), blocks)
        for inputs, stream in options.multiples:
            key = (options.model, options.method, options.sparsity, tokens.numel(), seed, inputs, stream)
            if key in known:
                continue
            model = copy.deepcopy(dense)
            with damped_apart(rule * stream):
                rose.prune_model(
                    model,
                    tokens,
                    method=options.method,
                    sparsity=options.sparsity,
                    target="dense",
                    target_damping=rule * inputs,
                )
            yield dict(zip(KEY, key, strict=True)) | {"rule": rule, "perplexity": rose.perplexity(model, windows)}


def multiples(text: str) -> tuple[float, float]:
    """ "1,3": the rule's μ for the inputs, three times it for R."""
    inputs, stream = map(float, text.split(","))
    return inputs, stream


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.two_dampings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--calibration", required=True, metavar="TEXT")
    parser.add_argument("--evaluate", required=True, metavar="TEXT")
    parser.add_argument("--method", default="sparsegpt")
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--samples", type=int, nargs="+", default=[4, 16], help="of 512 tokens each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--multiples", type=multiples, nargs="+", default=MULTIPLES, metavar="INPUTS,STREAM")
    options = parser.parse_args()
    rows = resume(options.output, KEY, partial(runs, options))
    means = rows.pivot_table(
        index=["inputs", "stream"], columns="tokens", values="perplexity", aggfunc=["mean", "count"]
    )
    print(means.round(1).to_string())


if __name__ == "__main__":
    main()
