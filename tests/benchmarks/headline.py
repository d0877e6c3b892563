"""The headline table and its controls: python -m tests.benchmarks.headline --calibration TEXT --evaluate TEXT.

A comparison is one sparsity of one model with all its methods and draws, computed in one environment (see
`rose.environment`): one that was begun elsewhere and not finished is begun again, so that no table mixes two. Each row
goes to the file as it comes, and the same command goes on after it was killed.

    headline   of --model: six methods towards the dense model, at each of 0.5 to 0.8 and 2:4, pruned alone, and tuned
               in one pass over --tuned further windows of the calibration text
    controls   at 0.7: SparseGPT with H shrunk by columns per token, as ROSE ADMM has it; SparseGPT
               with other μ than the rule's, to be chosen by `perplexity_held_out`, which is of windows of the
               calibration text, and reported by `perplexity`, of the evaluation text; random and dealt order beside
               ROSE's, all with target layer
    others     SparseGPT, ROSE ADMM and ALPS on each of --others, by name or path, at 0.5 and 0.7

`--only NAME ...` takes comparisons such as "headline 0.7"; `--tuned 0` leaves tuning out. What is printed in the end
are verdicts by intervals over evaluation windows (losses are means over draws) and over draws: both must be clear.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

import rose
from rose.files import expand, write_atomically
from rose.layer.methods import LayerResult
from rose.layer.methods.rose_admm import MOST_SHRINKAGE
from rose.layer.methods.toolkit import prune_by_sweep
from rose.layer.settings import LayerSettings
from rose.layer.statistics import InputStatistics
from rose.layer.target import correction_damping
from rose.model.defaults import TUNING
from rose.model.load.tokens import load_apart, load_tokens
from rose.model.measure.comparison import (
    ComparisonRow,
    compare_methods,
    conclusions,
    plan_comparison,
    write_losses,
)
from rose.model.measure.perplexity import perplexity_of, window_losses
from rose.model.network.network import Network
from rose.rows import read_records
from tests.benchmarks.common import MODEL, Rows, arguments, judged

SPARSITIES = ("0.7", "0.5", "2:4", "0.6", "0.8")
METHODS = ("wanda", "sparsegpt", "rose", "rose_dealt", "alps", "rose_admm")
FACTORS = (0.3, 3.0)  # of μ, beside the rule's
KEY = ("comparison", "method", "seed", "tuned", "environment")


@rose.register(
    "sparsegpt_shrunk", "SparseGPT, H shrunk", "SparseGPT with columns/tokens times the diagonal added to H."
)
def sparsegpt_shrunk(weight: Tensor, statistics: InputStatistics, settings: LayerSettings) -> LayerResult:
    """Natural order, block budget, and the shrinkage of `rose.layer.methods.rose_admm`."""
    hessian = statistics.hessian.clone()
    hessian.diagonal().mul_(1 + min(len(hessian) / statistics.tokens, MOST_SHRINKAGE))
    shrunk = InputStatistics.from_hessian(hessian, statistics.tokens)
    return prune_by_sweep(weight, shrunk, settings, order="natural", budget="block")


@dataclass(frozen=True)
class Way:
    """One way to prune: its name in the table, the method as for `parse_variant`, and μ as a multiple of the rule's."""

    name: str
    method: str
    factor: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One sparsity of a model, in all its ways; `tuned`: without and with tuning."""

    name: str
    model: str
    sparsity: str
    ways: tuple[Way, ...]
    tuned: bool = False


def comparisons(model: str, others: Sequence[str], *, tuned: bool) -> list[Comparison]:
    """All of them, in the order in which they are made."""
    usual = tuple(Way(method, method) for method in METHODS)
    found = [Comparison(f"headline {sparsity}", model, sparsity, usual, tuned) for sparsity in SPARSITIES]
    layer = ("sparsegpt", "rose", "sparsegpt@random:0", "sparsegpt@random:1", "sparsegpt@dealt", "rose_dealt")
    controls = [Way(method, method) for method in ("sparsegpt", "sparsegpt_shrunk", "rose_admm")]
    controls += [Way(f"sparsegpt, {factor:g} μ", "sparsegpt", factor) for factor in FACTORS]
    controls += [Way(f"{method}:layer", f"{method}:layer") for method in layer]
    found.append(Comparison("controls 0.7", model, "0.7", tuple(controls)))
    few = tuple(Way(method, method) for method in ("sparsegpt", "rose_admm", "alps"))
    for other in others:
        name = expand(other).name
        found += [Comparison(f"{name} {sparsity}", other, sparsity, few) for sparsity in ("0.5", "0.7")]
    return found


class Table:
    """The rows of one comparison in one environment, in the file of all."""

    def __init__(self, path: Path, comparison: Comparison, seeds: Sequence[int], here: str) -> None:
        self.comparison, self.seeds, self.here = comparison, seeds, here
        self.path = path
        self.rows = Rows(path, KEY)

    def has(self, way: Way, seed: int, tuned: bool, where: str) -> bool:
        return (self.comparison.name, way.name, seed, tuned, where) in self.rows

    def lacks(self, where: str) -> Iterator[tuple[int, Way]]:
        """What is left to do in an environment, all ways of a draw one after another."""
        stages = (False, True) if self.comparison.tuned else (False,)
        for seed in self.seeds:
            for way in self.comparison.ways:
                if not all(self.has(way, seed, tuned, where) for tuned in stages):
                    yield seed, way

    def known(self) -> pd.DataFrame:
        """Rows of this comparison."""
        if not self.path.exists():
            return pd.DataFrame({name: [] for name in KEY})
        table = pd.read_csv(self.path, keep_default_na=False)
        return table[table["comparison"] == self.comparison.name]

    def begin(self) -> bool:
        """Whether something is left to do; if so, drops what was begun in other environments."""
        if any(not any(self.lacks(where)) for where in self.known()["environment"].unique()):
            return False
        if (self.known()["environment"] != self.here).any():
            table = pd.read_csv(self.path, dtype=str, keep_default_na=False)
            stale = (table["comparison"] == self.comparison.name) & (table["environment"] != self.here)
            print(f"{self.comparison.name}: begun elsewhere, begun again", flush=True)
            write_atomically(self.path, table[~stale].to_csv(index=False).encode())
            self.rows = Rows(self.path, KEY)
        return True

    def one(self) -> list[ComparisonRow]:
        """A row of this comparison, under no method's name, for the dense model's perplexity; none at the beginning."""
        if not len(self.known()):
            return []
        place = int(self.known().index[0])
        return [dataclasses.replace(read_records(self.path, ComparisonRow, "comparison runs")[place], method="")]

    def add(self, way: Way, row: ComparisonRow, *, tuned: bool, **more: Any) -> None:
        if not self.has(way, row.seed, tuned, row.environment):
            own = dataclasses.asdict(row) | {"method": way.name}
            self.rows.add(comparison=self.comparison.name, tuned=tuned, **own, **more)

    def verdicts(self) -> list[str]:
        """What the rows say, without and with tuning."""
        table, said = self.known(), []
        for tuned, rows in table.groupby("tuned"):
            said += [f"{'Tuned' if str(tuned) == 'True' else 'Pruned'}. {one}" for one in conclusions(rows)]
        return said


def make(table: Table, options: Any, model: nn.Module, tokenizer: Any) -> None:
    """Prunes in every way that is left, tunes what is to be tuned, and keeps the rows."""
    comparison, dense = table.comparison, copy.deepcopy(model) if table.comparison.tuned else model
    windows = judged(options.evaluate, tokenizer, options.windows, options.length)
    blocks, tokens = len(Network(model).blocks), options.samples * options.length
    mu = correction_damping(Network(model).config.hidden_size, tokens, blocks)

    def draw(seed: int) -> tuple[Tensor, Tensor | None]:
        return load_tokens(
            options.calibration, tokenizer, samples=options.samples, held_out=options.held_out, length=options.length,
            seed=seed,
        )  # fmt: skip

    for seed, way in table.lacks(table.here):
        damping = None if way.factor is None else way.factor * mu
        held_out = draw(seed)[1]
        assert held_out is not None
        plan = plan_comparison([way.method], [comparison.sparsity], target="dense", target_damping=damping)
        for row in compare_methods(model, draw, windows, plan, seeds=[seed], done=table.one()):
            table.add(way, row, tuned=False, perplexity_held_out=rose.perplexity(model, held_out), steps="")
            if comparison.tuned:
                further, judges = load_apart(
                    options.calibration, tokenizer, samples=options.tuned, held_out=TUNING.held_out,
                    length=options.length, seed=seed, apart_from=windows,
                )  # fmt: skip
                done = rose.tune_model(model, dense, further, held_out=judges, epochs=1.0)
                losses = window_losses(model, windows)
                after = dataclasses.replace(row, perplexity=perplexity_of(losses), losses=write_losses(losses))
                chosen = rose.perplexity(model, judges)
                table.add(way, after, tuned=True, perplexity_held_out=chosen, steps=done.summary["steps"])


def main() -> None:
    options = arguments(
        __doc__, calibration=str, evaluate=str, samples=16, length=512, held_out=8, windows=24, seeds=[0, 1, 2],
        tuned=64, model=MODEL, others=[""], only=[""], output="docs/results/headline.csv",
    )  # fmt: skip
    loaded: dict[str, tuple[nn.Module, Any]] = {}
    for comparison in comparisons(options.model, list(filter(None, options.others)), tuned=options.tuned > 0):
        if any(options.only) and comparison.name not in options.only:
            continue
        if comparison.model not in loaded:
            loaded = {comparison.model: rose.load_model(comparison.model)}
        model, tokenizer = loaded[comparison.model]
        ((_, settings), *_) = plan_comparison([comparison.ways[0].method], [comparison.sparsity], target="dense")
        table = Table(Path(options.output), comparison, options.seeds, Network(model).environment(settings.compute))
        if table.begin():
            make(table, options, model, tokenizer)
        print(f"{comparison.name}:", *table.verdicts(), sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
