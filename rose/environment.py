"""Versions, processor, threads and processes. Machines round differently, and pruning amplifies it: perplexities of one
run differ by several per cent, so only results of one environment are compared."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ROUNDING = ("torch", "transformers")  # programs that round numbers their own way


def versions() -> dict[str, str]:
    """Versions of programs that affect results, for reports; "checkout" for rose in a checkout."""
    installed = {"python": platform.python_version()}
    for name in (*ROUNDING, "rose-explorer"):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "checkout"
    return installed


def says_versions() -> str:
    """The same in words."""
    return ", ".join(f"{name} {version}" for name, version in versions().items())


@cache
def processor() -> str:
    """The model of the processor, as the system names it."""
    try:
        match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


def environment(compute: str, device: torch.device) -> str:
    """Processor or GPU, threads, versions and the format of forward passes (see `Precision.describe`), in words."""
    import torch

    place = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    threads, installed = torch.get_num_threads(), versions()
    programs = [f"{name} {installed[name]}" for name in ROUNDING]
    return ", ".join([place, f"{threads} thread{'s' if threads > 1 else ''}", *programs, compute])


def is_launched() -> bool:
    """Whether a launcher such as torchrun started several processes for one run."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def launched_place() -> tuple[int, int]:
    """Which of how many processes the launcher says this is; (0, 1) without one."""
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if is_launched() else (0, 1)
