"""What benchmarks share: options, texts, rows that are kept as they come, and clocks."""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import rose
from rose.files import write_atomically
from rose.model.network.network import Network
from rose.model.network.precision import DEFAULT, Precision
from rose.model.walk.forward import check_blocks, record_inputs, run_block

MODEL = "smollm2-135m"
# Options of benchmarks that prune whole models by draw and judge them by perplexity.
WHOLE: dict[str, Any] = {
    "output": Path,
    "model": MODEL,
    "calibration": "packaged",
    "evaluate": "packaged",
    "length": 512,
    "windows": 24,
    "seeds": [0, 1, 2],
}
Row = tuple[str, float, str, float]  # what, seconds (NaN where it is no time), compared with, ratio


def arguments(document: str | None, *words: str, **options: Any) -> argparse.Namespace:
    """Reads the options of a benchmark, whose document explains them; `words` names words without an option's name."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in words:
        parser.add_argument(name, nargs="*")
    add_options(parser, **options)
    return parser.parse_args()


def add_options(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Adds options by their defaults: a list where there may be several; a type for what must be given."""
    for name, default in options.items():
        flag, single = f"--{name.replace('_', '-')}", default[0] if isinstance(default, list) else default
        if isinstance(default, type):
            parser.add_argument(flag, type=default, required=True)
        elif isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            many = "+" if isinstance(default, list) else None
            parser.add_argument(flag, type=type(single), default=default, nargs=many, help="default: %(default)s")


def judged(text: str, tokenizer: Any, windows: int = 24, length: int = 512) -> Tensor:
    """The windows of a text's test part on which perplexity is measured, (windows, length)."""
    return rose.load_tokens(text, tokenizer, samples=windows, length=length, seed=None, split="test")


def dense_and_judged(options: argparse.Namespace) -> tuple[nn.Module, Any, Tensor]:
    """The dense model in bfloat16, its tokenizer, and the windows it is judged on, by options of `WHOLE`."""
    dense, tokenizer = rose.load_model(options.model, dtype="bfloat16")
    return dense, tokenizer, judged(options.evaluate, tokenizer, options.windows, options.length)


class Rows:
    """Rows of a .csv file, each written and printed as it comes; a run that is started again goes on where it stopped.

    Attributes:
        key: columns that tell runs apart.
    """

    def __init__(self, path: Path, key: Sequence[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.key = path, key
        # As text, so that what is there stays as it was written.
        self._rows = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records") if path.exists() else []

    def __contains__(self, run: tuple[Any, ...]) -> bool:
        """Whether there is a row with these values of the key."""
        return tuple(map(str, run)) in {tuple(str(row.get(name, "")) for name in self.key) for row in self._rows}

    def add(self, *several: dict[str, Any], **row: Any) -> None:
        """Keeps one row, or several of one run, all or none, with the environment where they do not name it."""
        here = Precision.of(DEFAULT, torch.float32, torch.device("cpu")).environment(torch.device("cpu"))
        new = [{"environment": here} | one for one in ([*several, row] if row else several)]
        self._rows += new
        write_atomically(self.path, pd.DataFrame(self._rows).to_csv(index=False).encode())
        print(*new, sep="\n", flush=True)

    def table(self) -> pd.DataFrame:
        """All rows. What is empty stays text where the column is text: a dense model has no method."""
        table = pd.read_csv(self.path)
        return table.fillna(dict.fromkeys(table.select_dtypes(exclude="number"), ""))

    def means(self, by: Sequence[str], values: Sequence[str]) -> str:
        """Means over draws, and how many there are, to be printed."""
        groups = self.table().groupby(list(by), sort=False)
        return groups[list(values)].mean().assign(draws=groups.size()).round(3).to_string()


def timed(work: Callable[[], object], repeats: int = 1) -> float:
    """The least of some repetitions, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def processor_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that all threads together were at work, which other programs disturb little; and what came out."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


@torch.no_grad()
def forward_passes(model: nn.Module, tokens: Tensor, passes: int) -> None:
    """Bare forward passes through all decoder blocks, batched as the pipeline batches them."""
    network = Network(model)
    hidden: list[Tensor] = []
    outputs = check_blocks(network, tokens)
    arguments = record_inputs(network, tokens, outputs, lambda _batch, states: hidden.append(states))
    for block, others in zip(network.blocks, arguments, strict=True):
        for _ in range(passes):
            outputs = [
                run_block(block, states, other, torch.device("cpu"))
                for states, other in zip(hidden, others, strict=True)
            ]
        hidden = outputs


def packaged_model(tokens_per_run: tuple[int, int]) -> tuple[nn.Module, Tensor]:
    """The packaged model, warmed up, and calibration tokens, (samples, length)."""
    samples, length = tokens_per_run
    model, tokenizer = rose.load_model(MODEL)
    tokens = rose.load_tokens("packaged", tokenizer, samples=samples, length=length)
    forward_passes(model, tokens[:1], 1)
    return model, tokens
