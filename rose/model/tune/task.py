"""What a tuning is asked for, what is refused before it begins, and what it reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import pandas as pd
import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.model.defaults import PRUNED
from rose.model.estimate.memory import check_free
from rose.model.estimate.tuning import tuning_memory
from rose.model.network.identity import check_same_model, embedding_norms
from rose.model.network.layers import count_parameters, count_zeros, prunable_layers, text_config
from rose.model.network.network import Network
from rose.model.network.precision import DEFAULT, Precision
from rose.model.progress import Progress
from rose.report import RunReport
from rose.wording import count, whole

FEW = 8  # steps below which minutes were too few for this machine: the rate rises over a quarter of them


class TuneOptions(TypedDict, total=False):
    """Keywords of `rose.tune_model`, which says what they mean; `TuneSettings` has their defaults."""

    minutes: float | None
    epochs: float | None
    loss: str
    rate: float | None
    batch: int
    seed: int
    compute: str


@dataclass(frozen=True)
class TuneTask:
    """What is tuned towards what; see `rose.tune_model`."""

    model: nn.Module
    dense: nn.Module
    tokens: Tensor
    held_out: Tensor | None = None
    layers: Sequence[str] | None = None
    unpruned: bool = False


@dataclass(frozen=True)
class TuningLook:
    """One measurement while tuning: after `step` steps and `seconds`; losses in nats a token. `loss` is the mean of the
    steps since the last look, None at the start; `held_out` is that of next tokens, None without held-out windows."""

    step: int
    seconds: float
    loss: float | None
    held_out: float | None


@dataclass(frozen=True)
class TuningProgress(Progress):
    """Progress in steps, with what has been measured so far."""

    curve: tuple[TuningLook, ...] = ()


@dataclass(frozen=True, eq=False)
class TuneReport:
    """What tuning has done.

    Attributes:
        layers: a row for each tuned parameter: layer, weights, zeros, change (‖ΔW‖/‖W‖ over the weights that
            are not 0; beside low-rank factors the frozen ones count in W).
        curve: a row for each measurement, columns as in `TuningLook`.
        summary: settings, steps, windows, seconds, which step was kept, and the held-out loss before and after.
    """

    layers: pd.DataFrame
    curve: pd.DataFrame
    summary: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """What the report of a pruned model says of it: settings, totals, the curve, and how far layers have moved."""
        moved = dict(zip(self.layers["layer"], self.layers["change"], strict=True))
        return {**self.summary, "curve": self.curve.to_dict("records"), "change": moved}

    def added_to(self, report: RunReport, **more: Any) -> RunReport:
        """The report of a run whose model this has tuned: what still holds of it, and in its summary, as "tuned",
        `facts` and `more`, and as "tuned_before" those of earlier tunings, if any. Its environment, of a run in two
        stages that of the second, is the one that tuned."""
        report, environment = report.without_errors(), {"environment": self.summary["environment"]}
        if report.then is not None:
            report, environment = replace(report, then=report.then.with_summary(**environment)), {}
        former = [*report.summary.get("tuned_before", []), *filter(None, [report.summary.get("tuned")])]
        before = {"tuned_before": former} if former else {}
        return report.with_summary(tuned={**self.facts, **more}, **before, **environment)

    @property
    def caution(self) -> str:
        """Where the minutes were too few for this machine, a sentence that says so; else ""."""
        minutes = self.summary["minutes"]
        steps = self.summary.get("fewest_planned", self.summary["steps_planned"])  # each part's rate rises and falls
        if minutes is None or steps >= FEW:
            return ""
        of = " of a part" if "parts" in self.summary else ""
        fitted = f"{count(steps, 'step')}{of} fitted into {minutes:g} min"
        return f"Only {fitted}, so little has changed; give it more minutes."


def check_pair(model: nn.Module, dense: nn.Module, *, by_text_alone: bool) -> None:
    """Raises RoseError unless a model may be tuned towards this one: it has its tokens and its input embeddings, which
    no pruning changes, and fewer zeros; what learns by a text alone may ask for any (`by_text_alone`)."""
    if model is dense:
        raise RoseError(
            "The model to tune and the dense one are the same object, which pruning has changed in place; load the "
            "dense model once more."
        )
    one, other = (text_config(each).vocab_size for each in (model, dense))
    if one != other:
        raise RoseError(
            f"The models have different vocabularies, {whole(one)} and {whole(other)} tokens; give the dense model "
            "that was pruned."
        )
    check_same_model(model, embedding_norms(dense), "The model to tune was not pruned from the dense one")
    if by_text_alone or count_parameters(model) < count_parameters(dense):
        return
    (zeros, weights), (before, _) = (count_zeros(prunable_layers(one)) for one in (model, dense))
    if zeros >= PRUNED * weights and before >= zeros:
        raise RoseError(
            "The dense model is as sparse as the one to tune; give the model it was pruned from, or train on the text "
            "alone, with loss ce and unpruned."
        )


def check_memory(
    network: Network, length: int, weights: int | None = None, *, compute: str = DEFAULT, besides: int = 0
) -> None:
    """Raises RoseError where tuning on this processor takes more memory than is free.

    Args:
        length: tokens a window.
        weights: how many are trained; None for all of the prunable layers.
        compute: see `TuneSettings`.
        besides: bytes that will be taken before tuning begins.
    """
    if weights is None:
        weights = sum(layer.weight.numel() for layer in network.layers)
    rounds = Precision.of(compute, torch.float32, network.device).rounds
    if network.device.type == "cpu":
        needed = tuning_memory(network, length, weights, rounds=rounds)
        advice = "tune decoder blocks in more parts, shorter windows, or on a larger machine"
        check_free("Tuning takes, besides both models, about", needed, advice, besides=besides)
