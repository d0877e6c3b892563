"""Sane layers and faults within them, and what a check by the weights alone says of each.

    python -m tests.benchmarks.within --sane sane.csv --planted planted.csv

Layers of a model are pruned by every method of the registry at 50, 70 and 80 % and to 2:4, rounded ones too, each on
the dense model's inputs. --sane gets a row for each: the lowest cosines of kept weights with the dense ones in rows and
columns with 16 kept weights, slopes of rows beside the layer's median, and how many parts are accused or may be lawful.
--planted gets, for faults of every kind and size in layers of some methods at 70 %, how many of the places were found
wrong, how many were only called lawful, and how many were missed. What is there is not done again. `--compare` names a
folder with earlier files of the same names, and prints the rows that changed; exit status 1 where there are any.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rose
from rose.errors import RoseError
from rose.layer.registry import METHODS
from rose.layer.statistics import InputStatistics
from rose.model.check.agreement import misfits
from tests.benchmarks.common import MODEL, Rows, arguments, changes
from tests.model.check.faults import COLUMNS, ROWS, TILES

PATTERNS: tuple[float | str, ...] = (0.5, 0.7, 0.8, "2:4")
LAYERS = ("0.self_attn.q_proj", "1.self_attn.k_proj", "5.self_attn.o_proj", "9.mlp.up_proj", "11.mlp.down_proj")
BASES = ("magnitude", "wanda", "sparsegpt", "rose_admm")
SIZES = (1, 4, 32)
TILE_SIZES = ((1, 32), (1, 128), (8, 32), (32, 32), (128, 128))
PLACES = (0.15, 0.5, 0.8)  # of the rows or columns of a layer
TELLING = 16
SANE = ["model", "layer", "method", "pattern", "bits"]
PLANTED = ["model", "layer", "method", "axis", "fault", "size"]


def extremes(dense: Tensor, pruned: Tensor) -> dict[str, float]:
    """Lowest cosines of rows and columns, and the range of slopes of rows."""
    was = torch.where(pruned == 0, 0, dense)
    found: dict[str, Tensor] = {}
    for axis, name in ((1, "row"), (0, "column")):
        energy, square, both = ((one * other).sum(axis) for one, other in ((was, was), (pruned, pruned), (was, pruned)))
        known = (pruned != 0).sum(axis) >= TELLING
        cosines, slopes = (both / (energy * square).sqrt())[known], (both / energy)[known]
        found |= {f"{name}_cosine": cosines.min(), f"median_{name}_cosine": cosines.median()}
        found |= {f"{name}_slope_low": (slopes / slopes.median()).min()}
        found |= {f"{name}_slope_high": (slopes / slopes.median()).max()}
    return {name: round(float(value), 4) for name, value in found.items()}


def variants() -> Iterator[tuple[str, float | str, int | None]]:
    """Method, pattern and bits."""
    yield from ((method, pattern, None) for method, pattern in product(METHODS, PATTERNS))
    yield from (("sparsegpt", 0.7, bits) for bits in (4, 3))


def planted(weight: Tensor) -> Iterator[tuple[str, str, str, Tensor]]:
    """Axis, fault, size, and the weight with the fault, at each place where it changes something."""
    shape = weight.shape
    faulty = weight.clone()
    for axis, faults in (("row", ROWS), ("column", COLUMNS)):
        for (fault, plant), size, place in product(faults.items(), SIZES, PLACES):
            plant(faulty, int(place * shape[axis == "column"]), size, torch.Generator().manual_seed(0))
            if not torch.equal(faulty, weight):
                yield axis, fault, str(size), faulty
            faulty = weight.clone()
    for (fault, tile), (rows, columns), place in product(TILES.items(), TILE_SIZES, PLACES):
        row, column = int(place * (shape[0] - rows)), int(place * (shape[1] - columns)) // 32 * 32
        tile(faulty, row, column, rows, columns, torch.Generator().manual_seed(0))
        if not torch.equal(faulty, weight):
            yield "tile", fault, f"{rows} × {columns}", faulty
        faulty = weight.clone()


def measure_sane(
    options: argparse.Namespace, layers: dict[str, Tensor], statistics: dict[str, InputStatistics]
) -> None:
    rows = Rows(options.sane, SANE)
    for name, (method, pattern, bits) in product(statistics, variants()):
        key = (options.model, name, method, pattern, bits or "")
        if key in rows:
            continue
        rounding: dict[str, Any] = {"bits": bits} if bits else {}
        try:
            pruned = rose.prune_layer(
                layers[name], statistics[name], method=method, sparsity=pattern, **rounding
            ).weight
        except RoseError as problem:  # OATS has no place for a low-rank part beside 2:4
            rows.add(dict(zip(rows.key, key, strict=True)) | {"refused": str(problem)})
            continue
        found = misfits(layers[name], pruned)
        lawful = sum(part.may_be_lawful for part in found)
        accused = {"accused": len(found) - lawful, "may_be_lawful": lawful}
        rows.add(dict(zip(rows.key, key, strict=True)) | accused | extremes(layers[name], pruned))


def measure_planted(
    options: argparse.Namespace, layers: dict[str, Tensor], statistics: dict[str, InputStatistics]
) -> None:
    rows = Rows(options.planted, PLANTED[:3])
    for name, method in product(statistics, options.bases):
        if (options.model, name, method) in rows:
            continue
        pruned = rose.prune_layer(layers[name], statistics[name], method=method, sparsity=0.7).weight
        counts: dict[tuple[str, str, str], list[int]] = {}
        for axis, fault, size, faulty in planted(pruned):
            found = misfits(layers[name], faulty)
            outcome = 0 if any(not part.may_be_lawful for part in found) else 1 if found else 2
            counts.setdefault((axis, fault, size), [0, 0, 0])[outcome] += 1
        outcomes = ("found", "may_be_lawful", "missed")
        common = {"model": options.model, "layer": name, "method": method}
        rows.add(
            *(
                common | dict(zip(PLANTED[3:], what, strict=True)) | dict(zip(outcomes, count, strict=True))
                for what, count in counts.items()
            )
        )


def main() -> int:
    files = {"sane": Path, "planted": Path, "compare": ""}
    sizes = {"layers": list(LAYERS), "bases": list(BASES), "samples": 8, "length": 256}
    options = arguments(__doc__, **files, model=MODEL, **sizes)
    model, tokenizer = rose.load_model(options.model)
    tokens = rose.load_tokens("packaged", tokenizer, samples=options.samples, length=options.length, seed=0)
    layers = {layer.name: layer.weight.detach().float() for layer in rose.prunable_layers(model)}
    names = [next(name for name in layers if name.endswith(f".{end}")) for end in options.layers]
    statistics = rose.collect_statistics(model, tokens, layers=names)
    measure_planted(options, layers, statistics)
    measure_sane(options, layers, statistics)
    keys = {options.sane: SANE, options.planted: PLANTED}
    return max(changes(options.compare, path, key) for path, key in keys.items()) if options.compare else 0


if __name__ == "__main__":
    sys.exit(main())
