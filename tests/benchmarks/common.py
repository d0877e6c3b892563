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


SHOWN = 3  # rows of a kind that came or went
ROUNDING = 1e-5  # relative difference of two numbers that are called equal


def changes(before: str | Path, after: Path, key: Sequence[str], partly: bool = False) -> int:
    """Prints the rows that two files do not share and those that differ, by key; 1 where there are any, else 0.

    `before` may be a folder with a file of the same name. A row is "rounded otherwise" where its numbers are nearly
    equal and nothing else but the column `exact` differs. `partly`: rows of a first key that `after` lacks are left
    out, as they were not asked for.
    """
    before = Path(before) / after.name if Path(before).is_dir() else before
    old, new = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in (before, after))
    key = [name for name in key if name in old and name in new]
    old = old[old[key[0]].isin(new[key[0]])] if partly else old
    lines = list[str]()
    for what, table, other in (("gone", old, new), ("added", new, old)):
        rows = table[~pd.MultiIndex.from_frame(table[key]).isin(pd.MultiIndex.from_frame(other[key]))]
        for first, group in rows.groupby(key[0], sort=False):
            names = [" · ".join(row) for row in group[key[1:]].head(SHOWN).to_numpy()]
            lines.append(f"{what}: {first}, {len(group)} rows: {'; '.join(names)}")
    columns = [name for name in old if name in new and name not in (*key, "processor_seconds")]
    for _, row in old.merge(new, on=key, suffixes=("", " then")).iterrows():
        cells = [(name, row[name], row[f"{name} then"]) for name in columns if row[name] != row[f"{name} then"]]
        if cells:
            is_rounding = all(name == "exact" or _nearly(was, now) for name, was, now in cells)
            shown = ", ".join(f"{name} {was} → {now}" for name, was, now in cells if name != "exact" or len(cells) == 1)
            lines.append(f"{'rounded otherwise' if is_rounding else 'changed'}: {' · '.join(row[key])}: {shown}")
    print(*(lines or ["no difference"]), sep="\n")
    return int(bool(lines))


def _nearly(first: str, second: str) -> bool:
    """Whether two texts agree word by word, numbers up to rounding."""
    words, others = first.split(), second.split()
    try:
        pairs = [(word, other) for word, other in zip(words, others, strict=True) if word != other]
        return all(abs(float(word) - float(other)) <= ROUNDING * abs(float(word)) for word, other in pairs)
    except ValueError:
        return False


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
