"""Keywords of functions, written from the recipes by `python -m tests.recipe.keywords`."""

from collections.abc import Sequence
from typing import TypedDict

from rose.layer.pattern import SettingsOptions


class RunOptions(SettingsOptions, total=False):
    allocation: str
    target: str
    target_damping: float | None
    true_sequential: bool
    min_expert_tokens: int
    compute: str


class TuneOptions(TypedDict, total=False):
    minutes: float | None
    epochs: float | None
    loss: str
    rate: float | None
    batch: int
    seed: int
    compute: str


class CutOptions(TypedDict, total=False):
    method: str
    ratio: float
    parts: Sequence[str] | None
    recovery: str | None
    damping: float
    multiple: int


class SlimOptions(CutOptions, total=False):
    allocation: str
    target: str
    target_damping: float | None
