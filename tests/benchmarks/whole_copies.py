"""Sane copies of whole models, and what a check by weights says of each: no copy may be accused.

    python -m tests.benchmarks.whole_copies [METHOD ...] --output whole.csv --sparsities 0.5 2:4 [--tuned 2] [--bits 4]

Each copy is pruned in memory, by all methods of the registry or those named. `--halved` stores the copy in bfloat16,
`--by-tokens` runs the calibration tokens through both models too. `--blocks 0 12 23` prunes these decoder blocks alone.
`--keep` names a folder for the pruned weights. A row has the number of tensors that are accused and
of layers with parts that may be lawful, and the first of each. A row in the file is not made again. `--compare` names
an earlier file, and prints the rows that changed; exit status 1 where there are any.
"""

import copy
import sys
import time
from pathlib import Path
from typing import Any

import torch

import rose
from rose.layer.registry import METHODS
from tests.benchmarks.common import MODEL, Rows, arguments, changes


def main() -> int:
    options = arguments(
        __doc__,
        "methods",
        output=Path,
        model=MODEL,
        sparsities=["0.5", "2:4"],
        target="dense",
        bits=0,
        tuned=0.0,
        halved=False,
        by_tokens=False,
        samples=8,
        length=256,
        blocks=[""],
        keep="",
        compare="",
    )
    dense, tokenizer = rose.load_model(options.model)
    tokens = rose.load_tokens("packaged", tokenizer, samples=options.samples, length=options.length, seed=0)
    key = (
        "model",
        "method",
        "sparsity",
        "target",
        "bits",
        "tuned",
        "halved",
        "by_tokens",
        "samples",
        "length",
        "blocks",
    )
    options.blocks = " ".join(options.blocks)
    layers = [f"*.{block}.*" for block in options.blocks.split()] or None
    rows = Rows(options.output, key)
    for sparsity in options.sparsities:
        for method in options.methods or METHODS:
            run: dict[str, Any] = {name: getattr(options, name) for name in key if name not in ("method", "sparsity")}
            run |= {"method": method, "sparsity": sparsity}
            if tuple(run[name] for name in key) in rows:
                continue
            began, pruned = time.process_time(), copy.deepcopy(dense)
            rounding = {"bits": options.bits} if options.bits else {}
            rose.prune_model(
                pruned, tokens, method=method, sparsity=sparsity, target=options.target, layers=layers, **rounding
            )
            if options.tuned:
                windows = rose.load_tokens("packaged", tokenizer, samples=32, length=options.length, seed=1)
                rose.tune_model(pruned, dense, windows, minutes=options.tuned)
            if options.halved:
                pruned.bfloat16()
            if options.keep:
                Path(options.keep).mkdir(parents=True, exist_ok=True)
                changed = {
                    layer.name: pruned.get_parameter(f"{layer.name}.weight")
                    for layer in rose.prunable_layers(dense)
                    if not layer.weight.equal(pruned.get_parameter(f"{layer.name}.weight"))
                }
                torch.save(changed, Path(options.keep) / f"{'-'.join(str(run[name]) for name in key[1:8])}.pt")
            check = rose.check_checkpoint(dense, pruned, tokens if options.by_tokens else None)
            odd = check.layers[check.layers["misfits"] != ""]
            rows.add(
                run
                | {"accused": len(check.wrong), "layers_with_lawful_parts": len(odd)}
                | {"first_accused": " ".join(check.wrong.head(1).astype(str).to_numpy().ravel())}
                | {"first_lawful": " ".join(odd[["layer", "misfits"]].head(1).to_numpy().ravel())}
                | {"processor_seconds": round(time.process_time() - began)}
            )
            del pruned, check  # before the next copy takes as much memory
    return changes(options.compare, options.output, key) if options.compare else 0


if __name__ == "__main__":
    sys.exit(main())
