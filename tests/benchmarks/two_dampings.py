"""Two dampings of the correction towards the dense model: python -m tests.benchmarks.two_dampings --output FOLDER ...

The correction of a layer that writes into the residual stream has two parts: what its inputs lack, X_d − X_p, and what
the stream has lost, R. One μ serves both (docs/targets.md); here each has its own, as multiples of the rule's: "1,0.3"
is 1 for the inputs, 0.3 for R. Layers that read the stream take that of the inputs. A line of FOLDER/rows.csv for each
run, as it comes; the same command resumes where the lines end.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from unittest import mock

from torch import Tensor

import rose
from rose.layer.target import OutputGap, target_damping
from rose.model.load.tokens import load_calibration
from rose.model.network.layers import PrunableLayer, decoder_blocks, text_config
from rose.model.walk.targets import BlockTargets, Pairs
from tests.benchmarks.beyond import without_stream
from tests.benchmarks.common import MODEL, Rows, arguments, judged

KEY = ["model", "method", "sparsity", "tokens", "seed", "inputs", "stream"]


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


def multiples(text: str) -> tuple[float, float]:
    """ "1,3": the rule's μ for the inputs, three times it for R."""
    inputs, stream = map(float, text.split(","))
    return inputs, stream


def main() -> None:
    options = arguments(
        __doc__,
        output=Path,
        model=MODEL,
        calibration=str,
        evaluate=str,
        method="sparsegpt",
        sparsity="0.7",
        samples=[4, 16],
        seeds=[0, 1, 2],
        multiples=["1,1", "1,0.3", "1,3", "0.3,1", "3,1"],
    )
    dense, tokenizer = rose.load_model(options.model, dtype="bfloat16")
    windows, blocks = judged(options.evaluate, tokenizer), len(decoder_blocks(dense)[1])
    rows = Rows(options.output / "rows.csv", KEY)
    for seed, samples, text in product(options.seeds, options.samples, options.multiples):
        inputs, stream = multiples(text)
        tokens, _ = load_calibration(  # those of the other studies, which hold some out
            options.calibration, tokenizer, samples=samples, held_out=4, length=512, seed=seed
        )
        key = (options.model, options.method, options.sparsity, tokens.numel(), seed, inputs, stream)
        if key in rows:
            continue
        rule = target_damping(text_config(dense).hidden_size, tokens.numel(), blocks)
        model, how = copy.deepcopy(dense), {"method": options.method, "sparsity": options.sparsity}
        with damped_apart(rule * stream):
            rose.prune_model(model, tokens, target="dense", target_damping=rule * inputs, **how)
        rows.add(**dict(zip(KEY, key, strict=True)), rule=rule, perplexity=rose.perplexity(model, windows))
    print(rows.means(["tokens", "inputs", "stream"], ["perplexity"]))


if __name__ == "__main__":
    main()
