"""The task of a tuning, the checks before it begins, its progress and its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import pandas as pd
import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.model.defaults import PRUNED
from rose.model.estimate.memory import check_free, tuning_memory
from rose.model.network.identity import check_same_model, embedding_norms
from rose.model.network.layers import count_parameters, count_zeros
from rose.model.network.network import Network
from rose.model.network.precision import DEFAULT, Precision
from rose.model.progress import Progress
from rose.report import RunReport
from rose.wording import count, whole

FEW = 8  # steps below which minutes were too few for this machine: the rate rises over a quarter of them


class TuneOptions(TypedDict, total=False):
    """Keywords of `rose.tune_model`; `TuneSettings` has the defaults."""

    minutes: float | None
    epochs: float | None
    loss: str
    rate: float | None
    batch: int
    seed: int
    compute: str


@dataclass(frozen=True)
class TuneTask:
    model: nn.Module
    dense: nn.Module
    tokens: Tensor
    held_out: Tensor | None = None
    layers: Sequence[str] | None = None
    unpruned: bool = False


@dataclass(frozen=True)
class TuningLook:
    """One measurement, losses in nats a token. `loss` is the mean over the steps since the last look, None at first;
    `held_out` counts next tokens, None without held-out windows."""

    step: int
    seconds: float
    loss: float | None
    held_out: float | None


@dataclass(frozen=True)
class TuningProgress(Progress):
    curve: tuple[TuningLook, ...] = ()


@dataclass(frozen=True, eq=False)
class TuneReport:
    """The outcome of a tuning.

    Attributes:
        layers: a row per tuned parameter: layer, weights, zeros, change (‖ΔW‖/‖W‖ over nonzero weights; beside
            low-rank factors W includes frozen ones).
        curve: a row per measurement, columns as in `TuningLook`.
        summary: settings, steps, windows, seconds, the chosen step, and the held-out loss before and after.
    """

    layers: pd.DataFrame
    curve: pd.DataFrame
    summary: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """For the report of the pruned model: settings, totals, the curve, and each layer's change."""
        changes = dict(zip(self.layers["layer"], self.layers["change"], strict=True))
        return {**self.summary, "curve": self.curve.to_dict("records"), "change": changes}

    def added_to(self, report: RunReport, **entries: Any) -> RunReport:
        """The report of the run that made the model, without errors that no longer hold.

        Its summary has `facts` and `entries` as "tuned", and earlier tunings as "tuned_before". The
        environment, in a run of two stages that of the second, is the tuning's.
        """
        report, environment = report.without_errors(), {"environment": self.summary["environment"]}
        if report.then is not None:
            report, environment = replace(report, then=report.then.with_summary(**environment)), {}
        former = [*report.summary.get("tuned_before", []), *filter(None, [report.summary.get("tuned")])]
        before = {"tuned_before": former} if former else {}
        return report.with_summary(tuned={**self.facts, **entries}, **before, **environment)

    @property
    def caution(self) -> str:
        """A sentence if the minutes were too few for this machine; else ""."""
        minutes = self.summary["minutes"]
        steps = self.summary.get("fewest_planned", self.summary["steps_planned"])  # each part's rate rises and falls
        if minutes is None or steps >= FEW:
            return ""
        of = " of a part" if "parts" in self.summary else ""
        fitted = f"{count(steps, 'step')}{of} fitted into {minutes:g} min"
        return f"Only {fitted}, so little has changed; give it more minutes."


def check_pair(model: nn.Module | Network, dense: nn.Module | Network, *, by_text_alone: bool) -> None:
    """Raises RoseError unless a model may be tuned towards this one, with the same vocabulary and input embeddings, and
    fewer zeros; `by_text_alone` allows as many."""
    pruned, dense = (each if isinstance(each, Network) else Network(each) for each in (model, dense))
    if pruned.model is dense.model:
        raise RoseError(
            "The model to tune and the dense one are the same object, which pruning has changed in place; load the "
            "dense model once more."
        )
    if pruned.config.vocab_size != dense.config.vocab_size:
        raise RoseError(
            f"The models have different vocabularies, {whole(pruned.config.vocab_size)} and "
            f"{whole(dense.config.vocab_size)} tokens; give the dense model that was pruned."
        )
    check_same_model(pruned.model, embedding_norms(dense.model), "The model to tune was not pruned from the dense one")
    if by_text_alone or count_parameters(pruned.model) < count_parameters(dense.model):
        return
    (zeros, weights), (before, _) = count_zeros(pruned.layers), count_zeros(dense.layers)
    if zeros >= PRUNED * weights and before >= zeros:
        raise RoseError(
            "The dense model is as sparse as the one to tune; give the model it was pruned from, or train on the text "
            "alone, with loss ce and unpruned."
        )


def check_memory(
    network: Network, length: int, weights: int | None = None, *, compute: str = DEFAULT, besides: int = 0
) -> None:
    """Raises RoseError if tuning on this processor takes more memory than is free.

    Args:
        length: tokens a window.
        weights: the number to train; None for all prunable layers.
        compute: see `TuneSettings`.
        besides: bytes that something else will take first.
    """
    if network.device.type != "cpu":
        return
    if weights is None:
        weights = sum(layer.weight.numel() for layer in network.layers)
    rounds = Precision.of(compute, torch.float32, network.device).rounds
    advice = "tune decoder blocks in more parts, shorter windows, or on a larger machine"
    needed = tuning_memory(network, length, weights, rounds=rounds)
    check_free("Tuning takes, besides both models, about", needed, advice, besides=besides)
