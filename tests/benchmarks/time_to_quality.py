"""How long it takes to be as good as the authors' program: python -m tests.benchmarks.time_to_quality --reference PATH

PATH is a clone of github.com/mingluo-su/ROSE. The authors' SparseGPT on all tokens; SparseGPT and our recommended
method on ever more until they are as good; and what pruning on a quarter of the tokens and then tuning on nearly all
reaches in their time. Everything by default otherwise: dense targets, and forward passes in bfloat16 where the
processor gains from it.

Each row is kept as it comes, and the same command goes on where it was stopped. Seconds are the processor's, as these
are single runs of minutes, and other programs may come and go. Tuning is given the time that is left by the clock, so
take one thread and a quiet core.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import rose
from rose.layer.pattern import METHOD
from rose.model.defaults import TUNING
from rose.model.load.tokens import load_tokens
from tests.benchmarks.common import MODEL, Rows, arguments, processor_seconds
from tests.benchmarks.reference import SPARSITY, load_reference, prune_by_reference

LENGTH = 512  # tokens of our windows, and of those that perplexity is measured on
JUDGED = 24  # windows of these
AUTHORS, OURS = "authors", "ours"


@dataclass(frozen=True)
class Race:
    """What each run begins from, and the rows of those before."""

    rows: Rows
    model: Any
    tokens: Any
    judge: Any

    def known(self, program: str, method: str) -> Iterator[tuple[float, float]]:
        """Perplexity and seconds of the rows of a method, as text keeps them."""
        if self.rows.path.exists():
            table = self.rows.table()
            table = table[(table["program"] == program) & (table["method"] == method)]
            yield from zip(table["perplexity"], table["processor_seconds"], strict=True)

    def run(self, program: str, method: str, windows: Any, prune: Any) -> None:
        """Prunes a copy of the dense model by `prune(model, windows)`, unless that has been done."""
        tokens = f"{windows.shape[0]} × {windows.shape[1]}"
        if (program, method, tokens) in self.rows:
            return
        model = copy.deepcopy(self.model)
        seconds, _ = processor_seconds(lambda: prune(model, windows))
        reached = round(rose.perplexity(model, self.judge), 1)
        known = {"program": program, "method": method, "tokens": tokens, "perplexity": reached}
        self.rows.add(**known, processor_seconds=round(seconds, 3))


def race(run: Race, official: ModuleType) -> None:
    def theirs(model: Any, windows: Any) -> None:
        prune_by_reference(official, model, windows, "sparsegpt")

    run.run(AUTHORS, "sparsegpt", run.tokens, theirs)
    ((goal, allowed),) = run.known(AUTHORS, "sparsegpt")
    windows = run.tokens.view(-1, LENGTH)
    for method in ("sparsegpt", METHOD):
        for count in (2, 4, 8, 16, 32, 64):
            if any(reached <= goal for reached, _ in run.known(OURS, method)):
                break
            run.run(OURS, method, windows[:count], partial(prune, method=method))

    def prune_and_tune(model: Any, few: Any) -> None:
        used, _ = processor_seconds(lambda: prune(model, few, METHOD))
        held_out, minutes = windows[-TUNING.held_out :], (allowed - used) / 60
        rose.tune_model(model, run.model, windows[: -TUNING.held_out], held_out=held_out, minutes=minutes)

    run.run(OURS, f"{METHOD}, tuned", windows[: len(windows) // 4], prune_and_tune)


def prune(model: Any, windows: Any, method: str) -> None:
    rose.prune_model(model, windows, method=method, sparsity=SPARSITY)


def main() -> None:
    options = arguments(__doc__, reference=Path, output=Path("time-to-quality.csv"), samples=32, length=1024)
    official = load_reference(options.reference)
    model, tokenizer = rose.load_model(MODEL)
    tokens, judge = load_tokens(
        "packaged", tokenizer, samples=options.samples, held_out=JUDGED * LENGTH // options.length,
        length=options.length, seed=0,
    )  # fmt: skip
    race(Race(Rows(options.output, ["program", "method", "tokens"]), model, tokens, judge), official)


if __name__ == "__main__":
    main()
