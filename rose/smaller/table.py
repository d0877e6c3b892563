"""A row of the table of smaller copies; and the programs that make zeros or N:M pay, as published, and whether this
machine could run them (runtimes.csv)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch

from rose.errors import RoseError
from rose.rows import Count, NotNegative, Within, read_records
from rose.verdicts import Result

MEASURED, ESTIMATE = "measured", "estimate"
FILES = ("safetensors", "f16", "q8_0", "q4_0")
TABLE = "table.csv"
RUNTIMES = Path(__file__).with_name("runtimes.csv")
CPU_FLAGS = Path("/proc/cpuinfo")
Positive = Annotated[float | None, Within(0)]


@dataclass(frozen=True)
class Row:
    """A way to make a model smaller, in numbers.

    `times` is perplexity on held-out calibration windows over the dense model's, with its paired interval; an estimate
    has the range seen in other models. `second_…` are the same on the second text. `…_gain` is a speed over the dense
    model's, measured in turns, with its 95 % interval, and None for copies of the dense model's shapes.
    """

    key: str
    name: str
    basis: str  # MEASURED or ESTIMATE
    bits: int | None
    safetensors: Count  # bytes of files to q4_0, None for a file that cannot be written
    f16: int | None
    q8_0: int | None
    q4_0: int | None
    minutes: NotNegative  # to make the copy
    memory: Count  # bytes for that, besides the model
    perplexity: Positive = None
    times: Positive = None
    times_low: Positive = None
    times_high: Positive = None
    second_perplexity: Positive = None
    second_times: Positive = None
    second_low: Positive = None
    second_high: Positive = None
    prefill: Positive = None  # tokens a second in torch on this machine
    decoding: Positive = None
    prefill_gain: Positive = None
    prefill_low: Positive = None
    prefill_high: Positive = None
    decoding_gain: Positive = None
    decoding_low: Positive = None
    decoding_high: Positive = None
    llama_prefill: Positive = None  # in llama.cpp, if llama-bench is installed
    llama_decoding: Positive = None
    stored: int | None = None  # of the model as it is: bytes of the checkpoint's own files
    losses: str = ""  # by window, in nats a token
    second_losses: str = ""
    environment: str = ""

    @property
    def is_measured(self) -> bool:
        return self.basis == MEASURED

    @property
    def exact(self) -> tuple[str, ...]:
        """Files that hold the layers exactly: q8_0 and q4_0 round whatever has more bits."""
        bits = math.inf if self.bits is None else self.bits
        rounded = {"q8_0": bits > 8, "q4_0": bits > 4}
        return tuple(name for name in FILES if getattr(self, name) is not None and not rounded.get(name))

    @property
    def bytes(self) -> int:
        """Of the smallest file that holds the layers exactly."""
        return int(min(getattr(self, name) for name in self.exact))

    @property
    def smallest(self) -> str:
        return min(self.exact, key=lambda name: getattr(self, name))

    @property
    def loads(self) -> str:
        """Programs, and the files of `exact` that they load."""
        _, *types = self.exact
        return "transformers, vLLM: safetensors" + (f"; llama.cpp: {', '.join(types)}" if types else "")

    def result(self, text: str = "") -> Result:
        """Perplexity on the calibration text, or on the "second" one, as verdicts compare it."""
        prefix = f"{text}_" if text else ""
        losses = getattr(self, f"{prefix}losses")
        value = getattr(self, f"{prefix}perplexity")
        values = tuple(map(float, losses.split()))
        return Result(self.name, self.key, float("nan") if value is None else value, values)


ENDED = "no longer offered"


def read_rows(folder: str | Path) -> list[Row]:
    """The table of a folder that `rose smaller` has written. Raises RoseError: the table is missing, or a line is not a
    whole row."""
    path = Path(folder) / TABLE
    if not path.is_file():
        raise RoseError(f"There is no {TABLE} in {folder}; give a folder that `rose smaller` has written.")
    return read_records(path, Row, "smaller copies")


def says_llama(rows: Sequence[Row]) -> str:
    """A sentence on speed in llama.cpp; "" where that was not measured."""
    timed = [row for row in rows if row.llama_decoding]
    rates = [f"{row.name} reads {row.llama_prefill:.0f} and writes {row.llama_decoding:.0f}" for row in timed]
    return f"Tokens a second in llama.cpp: {'; '.join(rates)}." if rates else ""


def runtimes() -> pd.DataFrame:
    """A row a program: name, uses, hardware, needs, gain, state, source, checked (a date), and here, for people."""
    table = pd.read_csv(RUNTIMES)
    table["here"] = [usable_here(requires) for requires in table.pop("requires")]
    return table


def usable_here(requires: str) -> str:
    """ "yes", or "no: …" with the missing parts; `requires` has words such as "cuda-8 openvino"."""
    missing = [reason for word in requires.split() if (reason := _missing(word))]
    return f"no: {', '.join(missing)}" if missing else "yes"


def _missing(word: str) -> str:
    if word == "ended":
        return ENDED
    if word.startswith("cuda"):
        if not torch.cuda.is_available() or torch.version.cuda is None:
            return "no NVIDIA GPU"
        generation = int(word.partition("-")[2] or 0)
        return "" if torch.cuda.get_device_capability()[0] >= generation else f"a GPU below {generation}.0"
    if word == "amx":
        return "" if CPU_FLAGS.is_file() and "amx_int8" in CPU_FLAGS.read_text() else "no AMX instructions"
    return "" if find_spec(word) else f"{word} is not installed"
