"""The task and the report of a tuning, the checks before it, the parameters that it changes, and its losses.

Zeros in these parameters stay to the bit.
"""

import copy
import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.rounding import coarsest_grid
from rose.model.check.change import apparent_grid
from rose.model.defaults import PRUNED
from rose.model.estimate import check_free, tuning_memory
from rose.model.network.layers import GRIDS_TRIED, count_parameters, count_zeros
from rose.model.network.network import Network, check_same_model
from rose.model.network.precision import DEFAULT, Precision
from rose.model.progress import Progress
from rose.report import RunReport
from rose.wording import count, whole

FEW = 8  # steps below which minutes were too few for this machine: the rate rises over a quarter of them
ROWS = 16  # tokens whose distributions are made at once, small enough for the processor's cache


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
        layers: a row per tuned parameter, with its change ‖ΔW‖/‖W‖ over nonzero weights; beside low-rank factors W
            includes frozen ones.
        curve: a row per measurement, columns as in `TuningLook`.
        summary: settings, steps, windows, seconds, the chosen step, and the held-out loss before and after.
    """

    layers: pd.DataFrame
    curve: pd.DataFrame
    summary: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """Entries for the report of the pruned model: settings, totals, the curve, and each layer's change."""
        changes = dict(zip(self.layers["layer"], self.layers["change"], strict=True))
        return {**self.summary, "curve": self.curve.to_dict("records"), "change": changes}

    def added_to(self, report: RunReport, **entries: Any) -> RunReport:
        """The report of the run that made the model, without errors that no longer hold.

        Its summary has `facts` and `entries` as "tuned", and earlier tunings as "tuned_before". The
        environment is the tuning's; a run of two stages has the second stage's.
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
    check_same_model(pruned, dense.embedding_norms(), "The model to tune was not pruned from the dense one")
    if by_text_alone or count_parameters(pruned.model) < count_parameters(dense.model):
        return
    (zeros, weights), (before, _) = count_zeros(pruned.layers), count_zeros(dense.layers)
    if zeros >= PRUNED * weights and before >= zeros:
        raise RoseError(
            "The dense model is as sparse as the model to tune; give the model before pruning, or train on the text "
            "alone, with loss ce and unpruned."
        )


def check_memory(
    network: Network, length: int, weights: int | None = None, *, compute: str = DEFAULT, besides: int = 0
) -> None:
    """Raises RoseError if tuning on this processor, with windows of `length` tokens, takes more memory than is free.

    `weights` is the number to train, None for all prunable layers; `besides` are bytes that other objects will take.
    """
    if network.device.type != "cpu":
        return
    if weights is None:
        weights = sum(layer.weight.numel() for layer in network.layers)
    rounds = Precision.of(compute, torch.float32, network.device).rounds
    advice = "tune decoder blocks in more parts, shorter windows, or on a larger machine"
    needed = tuning_memory(network, length, weights, rounds=rounds)
    check_free("Tuning takes, besides both models, about", needed, advice, besides=besides)


MMAP_MAX, TRIM_THRESHOLD = -4, -1  # of mallopt(3)


@dataclass(frozen=True)
class Trained:
    """A parameter to train: of one layer, or of all experts of a decoder block."""

    name: str  # of the first layer that it belongs to
    parameter: nn.Parameter  # as the model stores it, perhaps W transposed
    frozen: Tensor  # True = removed and stays so; also zeros of a sparse part beside a low-rank one


def find_trained(network: Network, layers: Sequence[str] | None) -> list[Trained]:
    """The parameters of these prunable layers, each once; see `Network.select`."""
    by_id: dict[int, Trained] = {}
    for layer in network.select(layers):
        parameter = layer.parameter
        if id(parameter) not in by_id:
            by_id[id(parameter)] = Trained(layer.name, parameter, parameter.detach() == 0)
    for layer in network.layers:  # all layers, because experts that were not chosen share parameters with chosen ones
        if layer.low_rank is not None and id(layer.parameter) in by_id:
            layer.part_of(by_id[id(layer.parameter)].frozen).copy_(_beside(layer.weight, *layer.low_rank))
    return list(by_id.values())


def _beside(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    limits, size = torch.finfo(weight.dtype), weight.float().abs()
    gap = (weight.float() - (left.float() @ right.float()).to(weight.device)).abs()
    # The first is each entry's own rounding, below the smallest normal number too; the second the product's sums.
    return gap <= limits.eps * size.clamp_min(limits.smallest_normal) + 4 * torch.finfo(torch.float32).eps * size.max()


def check_pruned(trained: Sequence[Trained], network: Network, dense: Network, unpruned: bool) -> None:
    """Raises RoseError for weights on a grid if the dense weights are not on it. Unless `unpruned`, also for a model
    without zeros that has all weights of the dense model."""
    names, before = {each.name for each in trained}, {layer.name: layer for layer in dense.layers}
    for layer in [layer for layer in network.layers if layer.name in names and not layer.is_expert][:GRIDS_TRIED]:
        grid, old = apparent_grid(layer.weight.float()), before.get(layer.name)
        if grid and old and apparent_grid(old.weight.float()):
            # Weights of a GGUF file lie on a grid, and pruning without compensation keeps it; a coarser grid is new.
            new, former = coarsest_grid(layer.weight.float()), coarsest_grid(old.weight.float())
            grid = grid if new and (former is None or new.grid.bits < former.grid.bits) else None
        if grid:
            raise RoseError(
                f"The weights of {layer.name} lie on a grid of {grid.levels} values, which tuning would leave; tune "
                "the model first and round it then (prune with sparsity 0 and bits 4), which keeps its zeros."
            )
    if unpruned or count_parameters(network.model) < count_parameters(dense.model):
        return
    if not any(float(each.frozen.float().mean()) >= PRUNED for each in trained):
        raise RoseError(
            "The model has all weights of the dense model and no zeros, so tuning has nothing to recover; give a "
            "pruned model, or choose unpruned."
        )


@contextmanager
def in_float32(model: nn.Module, exceptions: Sequence[nn.Parameter]) -> Iterator[None]:
    """While this lasts, all other parameters are float32, as bfloat16 loses small steps; rounded back at the end.

    Float64 parameters are float32, too, because autocast does not round them; at the end they are restored.
    """
    left = {id(each) for each in exceptions if each.dtype != torch.float64}
    stored = {each: each.dtype for each in model.parameters() if each.is_floating_point() and id(each) not in left}
    doubles = {each: each.data for each in stored if each.dtype == torch.float64}
    for parameter in stored:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in stored.items():
            parameter.data = doubles.get(parameter, parameter.data).to(dtype)


def rounded(network: Network) -> nn.Module:
    """A copy for forward passes with bfloat16 matrices; it shares everything else, except float16 and float64."""

    def shared(parameter: nn.Parameter) -> nn.Parameter:
        # Some operations refuse these beside bfloat16, such as layer norms on processors.
        if parameter.dtype not in (torch.float16, torch.float64):
            return parameter
        return nn.Parameter(parameter.detach().float(), requires_grad=False)

    memo: dict[int, Any] = {id(parameter): shared(parameter) for parameter in network.model.parameters()}
    for layer in network.layers:
        memo[id(layer.parameter)] = nn.Parameter(layer.parameter.detach().bfloat16(), requires_grad=False)
    return copy.deepcopy(network.model, memo)


@contextmanager
def reusing_memory() -> Iterator[None]:
    """A context in which glibc keeps freed memory, so that the system need not map pages anew for every large tensor.
    It has no effect with other C libraries."""
    try:
        library = ctypes.CDLL(None)
        tell, give_back = library.mallopt, library.malloc_trim
    except (OSError, AttributeError, TypeError):
        yield
        return
    tell(MMAP_MAX, 0)
    tell(TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        tell(MMAP_MAX, 2**16)
        tell(TRIM_THRESHOLD, 2**17)
        give_back(0)


def settle(trained: Trained, weight: Tensor) -> None:
    """Gives a parameter this weight with exactly its zeros, also after rounding to the parameter's dtype.

    Raises AssertionError if a frozen weight has changed, which no training step can do.
    """
    parameter = trained.parameter.detach()
    weight = weight.to(parameter.device)
    stays = torch.equal(weight[trained.frozen].float(), parameter[trained.frozen].float())
    assert stays, f"tuning has changed removed weights of {trained.name}"
    weight = weight.to(parameter.dtype)
    smallest = torch.full_like(weight, torch.finfo(parameter.dtype).smallest_normal).copysign(weight)
    parameter.copy_(torch.where(trained.frozen, parameter, torch.where(weight == 0, smallest, weight)))


class _Divergence(torch.autograd.Function):
    """Sum over tokens of KL(dense ‖ pruned) by logits, (tokens, vocabulary) each. The gradient is the difference of the
    distributions, so no float32 copy of all logits is kept."""

    @staticmethod
    def forward(ctx: Any, pruned: Tensor, dense: Tensor) -> Tensor:
        gradient, total = torch.empty_like(pruned), torch.zeros((), dtype=torch.float32, device=pruned.device)
        for logits, target, slot in zip(pruned.split(ROWS), dense.split(ROWS), gradient.split(ROWS), strict=True):
            log_q = nn.functional.log_softmax(logits.float(), 1)
            log_p = nn.functional.log_softmax(target.float(), 1)
            p = log_p.exp()
            total += (p * (log_p - log_q)).sum()
            slot.copy_(log_q.exp_().sub_(p))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(above[0]), None  # of no further use, and large


def divergence(pruned: Tensor, dense: Tensor) -> Tensor:
    """Sum over tokens of KL(dense ‖ pruned), in nats; logits of (windows, length, vocabulary)."""
    return _Divergence.apply(pruned.flatten(0, 1), dense.flatten(0, 1))


def cross_entropy(logits: Tensor, windows: Tensor) -> Tensor:
    """Sum over tokens of the loss of next tokens, in nats; logits (windows, length, vocabulary), windows (windows,
    length)."""
    ahead = logits[:, :-1].float().flatten(0, 1)
    return nn.functional.cross_entropy(ahead, windows[:, 1:].flatten(), reduction="sum")
