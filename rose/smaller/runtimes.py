"""Programs that make zeros or N:M pay, as published, and whether this machine could run them: runtimes.csv."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch

FILE = Path(__file__).with_name("runtimes.csv")
CPU_FLAGS = Path("/proc/cpuinfo")


def runtimes() -> pd.DataFrame:
    """A row a program: name, uses, hardware, needs, gain, state, source, checked (a date), and here, for people."""
    table = pd.read_csv(FILE)
    table["here"] = [usable_here(requires) for requires in table.pop("requires")]
    return table


def usable_here(requires: str) -> str:
    """ "yes", or "no: …" with the missing parts; `requires` has words such as "cuda-8 openvino"."""
    missing = [reason for word in requires.split() if (reason := _missing(word))]
    return f"no: {', '.join(missing)}" if missing else "yes"


def _missing(word: str) -> str:
    if word == "ended":
        return "no longer offered"
    if word.startswith("cuda"):
        if not torch.cuda.is_available() or torch.version.cuda is None:
            return "no NVIDIA GPU"
        generation = int(word.partition("-")[2] or 0)
        return "" if torch.cuda.get_device_capability()[0] >= generation else f"a GPU below {generation}.0"
    if word == "amx":
        return "" if CPU_FLAGS.is_file() and "amx_int8" in CPU_FLAGS.read_text() else "no AMX instructions"
    return "" if find_spec(word) else f"{word} is not installed"
