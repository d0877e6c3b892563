"""What `rose pack` makes of pruned layers: python -m tests.benchmarks.packed --output packed.csv

The packaged model in bfloat16, pruned by SparseGPT on 8 × 512 tokens of the packaged text. `share` is what the layers
take packed, of what they take in bfloat16. Each row is kept as it comes, and the same command goes on.
"""

from itertools import product
from pathlib import Path
from typing import Any

import rose
from rose.model.ship.packing import packed_size
from tests.benchmarks.common import MODEL, Rows, arguments

SPARSITIES, BITS = ("0.5", "0.7"), (None, 4)
GROUP = 64


def main() -> None:
    options = arguments(__doc__, output=Path, samples=8, length=512)
    rows = Rows(options.output, ("sparsity", "bits"))
    for sparsity, bits in product(SPARSITIES, BITS):
        if (sparsity, bits or 16) in rows:
            continue
        model, tokenizer = rose.load_model(MODEL, dtype="bfloat16")
        tokens = rose.load_tokens("packaged", tokenizer, samples=options.samples, length=options.length, seed=0)
        grid: dict[str, Any] = {"bits": bits, "group": GROUP} if bits else {}
        rose.prune_model(model, tokens, method="sparsegpt", sparsity=sparsity, **grid)
        size = packed_size(model)
        rows.add(sparsity=sparsity, bits=bits or 16, layers=size.layers, share=size.layer_share)


if __name__ == "__main__":
    main()
