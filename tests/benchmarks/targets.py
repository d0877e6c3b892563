"""The damping of dense targets on whole models: python -m tests.benchmarks.targets --output FOLDER ...

Perplexity of the pruned model by the number of calibration tokens (--samples of --length each), the decoder blocks that
are pruned (the first --blocks of them, 0 for all), the damping μ and the seed of the draw: with target layer, with μ by
rule, and with fixed ones. A line of FOLDER/damping.csv for each run, as it comes; the same command resumes where the
lines end.
"""

import copy
from itertools import product

import rose
from rose.model.load.tokens import load_tokens
from rose.model.network.layers import prunable_layers
from tests.benchmarks.common import WHOLE, Rows, arguments, dense_and_judged

LAYER, RULE = "layer", "rule"
KEY = ["model", "method", "sparsity", "blocks", "tokens", "seed", "damping"]


def main() -> None:
    options = arguments(
        __doc__,
        **WHOLE,
        method="sparsegpt",
        sparsity="0.7",
        blocks=0,
        samples=[2, 4, 8, 16, 32, 64],
        damping=[LAYER, RULE, "0.1", "0.3", "1", "3", "10"],
    )
    dense, tokenizer, windows = dense_and_judged(options)
    layers = [layer for layer in prunable_layers(dense) if not options.blocks or layer.block_index < options.blocks]
    blocks = len({layer.block_index for layer in layers})
    rows = Rows(options.output / "damping.csv", KEY)
    for seed, samples, damping in product(options.seeds, options.samples, options.damping):
        key = (options.model, options.method, options.sparsity, blocks, samples * options.length, seed, damping)
        if key in rows:
            continue
        tokens, held_out = load_tokens(
            options.calibration, tokenizer, samples=samples, held_out=4, length=options.length, seed=seed
        )
        model = copy.deepcopy(dense)
        report = rose.prune_model(
            model,
            tokens,
            method=options.method,
            sparsity=options.sparsity,
            layers=[layer.name for layer in layers],
            target="layer" if damping == LAYER else "dense",
            target_damping=None if damping in (LAYER, RULE) else float(damping),
            held_out=held_out,
        )
        rows.add(
            **dict(zip(KEY, key, strict=True)),
            mu=report.layers["target_damping"].median(),
            perplexity=rose.perplexity(model, windows),
            final_drift=report.last_drift,
        )
    print(rows.means(["blocks", "tokens", "damping"], ["perplexity"]))


if __name__ == "__main__":
    main()
