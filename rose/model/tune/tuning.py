"""Tuning: the kept weights of a pruned model are trained towards the dense model's next-token distributions.

Distillation of sparse models: Kurtic et al. 2023, arXiv:2310.06927. Gradients of removed weights are 0 from the first
step on. So Adam's moments and steps are 0 there, too, and zeros stay to the bit. The Trainer of transformers lacks
masks, a time limit, a dense model and a choice of the best step.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from rose.errors import RoseError, is_whole
from rose.files import explained
from rose.model.defaults import RATE
from rose.model.estimate import TOGETHER
from rose.model.network.network import Network
from rose.model.network.precision import DEFAULT
from rose.model.network.residence import evaluating, gradients_only_of
from rose.model.network.stand_ins import hooked
from rose.model.progress import ProgressCallback, part_callback, time_left
from rose.model.run.checkpoint import begun_with, claimed
from rose.model.settings import TuneSettings
from rose.model.tune.task import (
    TuneReport,
    TuneTask,
    TuningLook,
    TuningProgress,
    check_memory,
    check_pair,
    check_pruned,
    cross_entropy,
    divergence,
    find_trained,
    in_float32,
    reusing_memory,
    rounded,
    settle,
)
from rose.model.workers import Workers
from rose.tensor_files import DamagedFile, digest, read_tensors, write_tensors

FAR = 0.55  # nats a token behind the dense model; below this the rate is lower, because little can be gained
KEPT = 0.4  # share of kept weights; above this the rate is lower, because more weights move the outputs more
SIZE = 2.5e-4  # of `_size`, below which the rate is less in proportion: Adam's steps are as large for small weights
LEAST = 0.1  # share of the rate that is left at the dense model itself, for users whose own text differs
FULL = 32  # steps for the full rate: the first steps harm the model, and few further steps do not repair this
BETAS = (0.9, 0.999)  # of Adam
WARM_UP = 0.25  # share of steps in which the rate rises: the first steps follow few gradients, and do harm
LOOKS = 8  # measurements on held-out windows, and saves, besides the first
STATE = "state-{}.safetensors"  # of a part
FORMAT = 4  # raise it when an older folder would no longer give the same weights
FACTS = ("step", "steps", "best_step", "seconds", "away", "dense_held_out")  # of a `Tuner`, saved with its weights


class Tuner:
    """A run of `rose.tune_model`, or of one part; it can still report after a stop.

    Attributes:
        curve: the measurements so far.
        steps: the planned number, at first 0.
        away: the dense model's lead at the start, nats a token; None until measured.
    """

    def __init__(self, task: TuneTask, settings: TuneSettings) -> None:
        """Checks everything; changes nothing. Raises RoseError for bad input."""
        self.network, self.dense, self.settings = Network(task.model), Network(task.dense), settings
        self.tokens, self.held_out, self.workers = task.tokens, task.held_out, Workers.here()
        check_pair(self.network, self.dense, by_text_alone=task.unpruned and settings.loss == "ce")
        for network in (self.network, self.dense):
            network.check_in_memory()
            network.check_tokens(self.tokens, "The loss of next tokens")
            if self.held_out is not None:
                network.check_tokens(self.held_out, "The loss of next tokens", "held-out tokens")
        least = self.workers.count
        if settings.batch < least:
            raise RoseError(
                f"A batch of {settings.batch} cannot be divided over {least} processes; choose one of {least} or more."
            )
        self.trained = find_trained(self.network, task.layers)
        check_pruned(self.trained, self.network, self.dense, task.unpruned)
        weights = sum(each.frozen.numel() for each in self.trained)
        self.kept = 1 - sum(int(each.frozen.sum()) for each in self.trained) / max(1, weights)
        # The first process's memory counts: if one alone refused, the others would wait for it.
        fits = partial(check_memory, self.network, self.tokens.shape[1], weights, compute=settings.compute)
        self.workers.from_first(fits)
        self.precision = self.workers.precision(settings.compute, self.network, torch.float32)
        self.start = [each.parameter.detach().clone() for each in self.trained]
        self.best = self.start
        self.best_step, self.step, self.steps, self.seconds = 0, 0, 0, 0.0
        self.away = FAR
        self.dense_held_out: float | None = None
        self.curve: list[TuningLook] = []
        self.gathered: list[float] = []  # losses of the steps since the last look

    @property
    def rate(self) -> float:
        """The highest learning rate. By default it follows from the number of steps, the size of weights, the share of
        kept weights, and the dense model's lead, which is the possible gain."""
        if self.settings.rate:
            return self.settings.rate
        share = min(1.0, max(LEAST, self.away / FAR), KEPT / max(KEPT, self.kept)) * min(1.0, self._size / SIZE)
        return RATE * share * min(1.0, max(1, self.steps) / FULL)

    @cached_property
    def _size(self) -> float:
        """Sum of all layers' norms over their number of weights: less for small weights, and for large layers.

        A step of Adam moves each of a layer's n weights by about the rate, many of them together. Such a step is a
        matrix of norm rate·√n, compared with a root mean square of ‖W‖/√n in the layer.
        """
        weights = [layer.weight for layer in self.dense.layers]
        norms = sum(float(torch.linalg.vector_norm(weight, dtype=torch.float64)) for weight in weights)
        return norms / sum(weight.numel() for weight in weights)

    def run(self, progress: ProgressCallback | None, state: Path | None) -> None:
        """See `Parts.run`; `state` is the file from which a stopped run goes on."""
        network, parameters = self.network, [each.parameter for each in self.trained]
        with ExitStack() as stack:
            stack.enter_context(gradients_only_of(network.model, parameters))
            stack.callback(lambda: list(map(settle, self.trained, self.best)))
            stack.enter_context(reusing_memory())
            ids = set(map(id, parameters))
            frozen = [layer.parameter for layer in network.layers if id(layer.parameter) not in ids]
            stack.enter_context(in_float32(network.model, frozen if self.precision.rounds else ()))
            stack.enter_context(evaluating(network.model, network.device))
            stack.enter_context(evaluating(self.dense.model, network.device))
            stack.callback(lambda: self.__dict__.pop("optimizer", None))  # its moments take much memory
            stack.callback(lambda: self.__dict__.pop("teacher", None))
            self._train(progress, state)

    def _train(self, progress: ProgressCallback | None, state: Path | None) -> None:
        """The steps of a run, while the model is float32 and on its device."""
        self.progress, self.state, self.device = progress, state, self.network.device
        self.teacher = rounded(self.dense) if self.precision.rounds else self.dense.model
        self.optimizer = torch.optim.Adam([each.parameter for each in self.trained], lr=RATE, betas=BETAS, fused=True)

        def clear(mask: Tensor, parameter: Any) -> None:
            parameter.grad.mul_(mask)
            self.tell()

        masks = [(each.parameter, ~each.frozen.to(self.device)) for each in self.trained]
        hooks: list[Any] = [each.register_post_accumulate_grad_hook(partial(clear, mask)) for each, mask in masks]
        blocks = [block for network in (self.network, Network(self.teacher)) for block in network.blocks]
        hooks += [block.register_forward_hook(lambda *_: self.tell()) for block in blocks if progress]
        self.began, self.first_step = time.perf_counter(), 0
        with hooked(hooks):
            if not self._resume():
                self._start()
                self.steps = self._plan()
                self._save()
            self.began, self.first_step = time.perf_counter() - self.seconds, self.step
            looks = {round(self.steps * (number + 1) / LOOKS) for number in range(LOOKS)}
            while self.step < self.steps:
                self._step()
                if self.step in looks:
                    self._look()
                    self._save()

    def tell(self) -> None:
        if self.progress is None:
            return
        steps = max(1, self.steps)
        seconds, fraction = time.perf_counter() - self.began, self.step / steps
        left = time_left(seconds, fraction, self.first_step / steps)
        counts = (self.step, steps, fraction, seconds, left)
        self.progress(TuningProgress("tune", 0, 1, None, None, *counts, curve=tuple(self.curve)))

    def _start(self) -> None:
        """The first look, and the dense model's lead on held-out windows, or on the first step's."""
        windows = self._windows(0) if self.held_out is None else self.held_out
        dense = self._next_tokens(self.teacher, windows)
        if self.held_out is not None:
            self.dense_held_out = dense
        self._look()
        pruned = self.curve[0].held_out
        self.away = (self._next_tokens(self.network.model, windows) if pruned is None else pruned) - dense

    def _plan(self) -> int:
        """The number of steps, for the epochs, or to fit into the minutes."""
        batches = max(1, len(self.tokens) // self.settings.batch)
        if self.settings.minutes is None:
            return max(1, round((self.settings.epochs or 1) * batches))
        started = time.perf_counter()
        self._gradient(0)  # the first pass pays for start-up
        middle = time.perf_counter()
        self._gradient(0)
        self.optimizer.zero_grad()
        ended = time.perf_counter()
        # Looks after the first need no pass of the dense model, which is half of the time.
        left = 60 * self.settings.minutes - (ended - started) - (1 + LOOKS / 2) * self.curve[0].seconds
        planned = max(1, int(left / (ended - middle)))
        return int(self.workers.smallest(planned) or 1)

    def _windows(self, step: int) -> Tensor:
        tokens, batch = self.tokens, min(self.settings.batch, len(self.tokens))
        per_epoch = max(1, len(tokens) // batch)
        seed = (self.settings.seed * 1_000_003 + step // per_epoch) % 2**63
        order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
        at = step % per_epoch * batch
        return tokens[order[at : at + batch]]

    def _step(self) -> None:
        warm = max(1, round(WARM_UP * self.steps))
        rate = min((self.step + 1) / warm, (self.steps - self.step) / max(1, self.steps - warm), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.rate
        loss = self._gradient(self.step)
        if not math.isfinite(loss):
            if not self.step:
                raise RoseError(f"The loss is {loss} before any step; `rose check` tells which weights are not finite.")
            raise RoseError(
                f"The loss of step {self.step + 1} is {loss}; choose a smaller rate than {self.rate:g}. The best "
                "weights before are kept."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.gathered.append(loss)
        self.step += 1
        self.seconds = time.perf_counter() - self.began
        self.tell()

    def _gradient(self, step: int) -> float:
        """Gradients of the mean loss a token over the windows of a step, summed over processes; returns the loss."""
        windows = self._windows(step).to(self.device).long()
        mine = windows.tensor_split(self.workers.count)[self.workers.place]
        tokens = windows.shape[0] * (windows.shape[1] - (self.settings.loss == "ce"))
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        for some in mine.split(max(1, TOGETHER // windows.shape[1])) if len(mine) else ():
            part = self._loss(some)
            (part / tokens).backward()
            total += part.detach()
        for each in self.trained:
            if each.parameter.grad is None:
                each.parameter.grad = torch.zeros_like(each.parameter)
            self.workers.sum_tensor(each.parameter.grad)
        self.workers.sum_tensor(total)
        return float(total) / tokens

    def _loss(self, windows: Tensor) -> Tensor:
        """Summed over the tokens of these windows."""
        logits = self._logits(self.network.model, windows)
        if self.settings.loss == "ce":
            return cross_entropy(logits, windows)
        with torch.no_grad():
            target = self._logits(self.teacher, windows)
        return divergence(logits, target)

    def _logits(self, model: Any, windows: Tensor) -> Tensor:
        with self.precision.computing(self.device):
            return model(input_ids=windows, use_cache=False).logits

    def _look(self) -> None:
        """Measures on held-out windows, and keeps the weights if they are the best so far."""
        windows = self.held_out
        held_out = None if windows is None else self._next_tokens(self.network.model, windows)
        loss = sum(self.gathered) / len(self.gathered) if self.gathered else None
        self.gathered.clear()
        self.seconds = time.perf_counter() - self.began
        before = [look.held_out for look in self.curve if look.held_out is not None]
        self.curve.append(TuningLook(self.step, self.seconds, loss, held_out))
        if self.step and (held_out is None or (math.isfinite(held_out) and held_out < min(before))):
            self.best = [each.parameter.detach().clone() for each in self.trained]
            self.best_step = self.step
        self.tell()

    def _next_tokens(self, model: Any, windows: Tensor) -> float:
        """The mean loss of next tokens, as in perplexity, which may fall without the distance to the dense model."""
        mine = windows.tensor_split(self.workers.count)[self.workers.place].to(self.device).long()
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        with torch.no_grad():
            for window in mine[:, None]:  # none, if processes are more than windows
                total += cross_entropy(self._logits(model, window), window)
        self.workers.sum_tensor(total)
        return float(total) / (windows.shape[0] * (windows.shape[1] - 1))

    def _save(self) -> None:
        if (path := self.state) is None:
            return
        tensors: dict[str, Tensor] = {}
        for each, best in zip(self.trained, self.best, strict=True):
            tensors |= {f"{each.name}/weight": each.parameter.detach(), f"{each.name}/best": best}
            for name, value in self.optimizer.state.get(each.parameter, {}).items():
                tensors[f"{each.name}/{name}"] = value
        facts = json.dumps({name: getattr(self, name) for name in FACTS})
        curve = json.dumps(list(map(asdict, self.curve)))

        def write() -> None:
            with explained(path.parent):
                write_tensors(path, tensors, facts=facts, curve=curve)

        self.workers.from_first(write)

    def _resume(self) -> bool:
        if self.state is None:
            return False
        try:
            tensors, texts = read_tensors(self.state)
        except DamagedFile:
            return False
        facts = json.loads(texts["facts"])
        self.curve = [TuningLook(**look) for look in json.loads(texts["curve"])]
        for name in FACTS:
            setattr(self, name, facts[name])
        self.best = [tensors[f"{each.name}/best"] for each in self.trained]
        for each in self.trained:
            each.parameter.data.copy_(tensors[f"{each.name}/weight"])
            stored = {name: tensors.get(f"{each.name}/{name}") for name in ("step", "exp_avg", "exp_avg_sq")}
            # The step, too: a fused Adam counts on the weights' device.
            state = {name: value.to(self.device) for name, value in stored.items() if value is not None}
            if state:
                self.optimizer.state[each.parameter] = state
        return True

    @property
    def table(self) -> pd.DataFrame:
        table = pd.DataFrame(list(map(asdict, self.curve)), columns=["step", "seconds", "loss", "held_out"])
        return table.astype({"loss": float, "held_out": float})

    def report(self) -> TuneReport:
        rows = []
        for each, before in zip(self.trained, self.start, strict=True):
            now, old = each.parameter.detach().float(), before.float()
            change = float((now - old).norm() / old.norm().clamp_min(1e-30))
            frozen = (now == old) & each.frozen.to(now.device)
            rows.append((each.name, before.numel(), int(frozen.sum()), change))
        held_out = {look.step: look.held_out for look in self.curve}
        layers = pd.DataFrame(rows, columns=["layer", "weights", "zeros", "change"])
        summary = {
            **self.settings.to_dict(),
            "compute": self.precision.describe()["compute"],  # the format in use, also in a resumed run
            "rate": self.rate,
            "samples": self.tokens.shape[0],
            "length": self.tokens.shape[1],
            "steps": self.step,
            "steps_planned": self.steps,
            "kept_step": self.best_step,
            "seconds": self.seconds,
            "held_out_before": held_out.get(0),
            "held_out_after": held_out.get(self.best_step),
            "held_out_dense": self.dense_held_out,
            "zeros": int(layers["zeros"].sum()),
            "zeros_before": sum(int(each.frozen.sum()) for each in self.trained),
            "weights": int(layers["weights"].sum()),
            "environment": self.precision.environment(self.network.device),
        }
        return TuneReport(layers, self.table, summary)


def texts_digest(tokens: Tensor, held_out: Tensor | None) -> str:
    texts = {"tokens": tokens.long()}
    return digest(texts if held_out is None else texts | {"held_out": held_out.long()})


@TuneSettings.explain
def tune_model(
    model: nn.Module,
    dense: nn.Module,
    tokens: Tensor,
    *,
    held_out: Tensor | None = None,
    layers: Sequence[str] | None = None,
    parts: int = 1,
    unpruned: bool = False,
    minutes: float | None = None,
    epochs: float | None = None,
    loss: str = "kl",
    rate: float | None = None,
    batch: int = 2,
    seed: int = 0,
    compute: str = DEFAULT,
    progress: ProgressCallback | None = None,
    checkpoint: str | Path | None = None,
) -> TuneReport:
    """Trains the kept weights of a pruned model in place; removed weights stay 0, to the bit.

    Args:
        model: pruned by any program: its zeros are the mask. A slimmed model will do, too.
        dense: the model before, with the same vocabulary; not changed.
        tokens: windows to train on, (samples, length) int64.
        held_out: further windows, whose next tokens decide which step is kept: perplexity on them is never worse than
            at the start.
        layers: names to tune, `*` allowed; None means every prunable layer. Norms, embeddings and the head stay.
        parts: decoder blocks are tuned in parts, one after another, each with its share of the steps; gradients and
            Adam's moments take the memory of one part.
        unpruned: tune a model without zeros, too.
        progress: called with a `TuningProgress` several times a step; may raise to stop: the best step so far is kept.
        checkpoint: a folder from which the same call resumes; weights are equal with the same number of processes. Load
            the pruned model again for that, as a stopped tuning has changed it.

    Weights and moments are float32. The learning rate rises over a quarter of the steps and falls to 0 linearly; see
    `rose.model.tune.tuning.Tuner.rate`.

    Raises:
        RoseError: bad input, before any work; a loss that is not finite; or no room to save.
    """
    settings = TuneSettings.among(locals())
    tuner = Parts(TuneTask(model, dense, tokens, held_out, layers, unpruned), settings, parts)
    tuner.run(progress, checkpoint)
    return tuner.report()


class Parts:
    """As `Tuner`, for decoder blocks in parts: each has its share of the time and keeps its own best step."""

    def __init__(self, task: TuneTask, settings: TuneSettings, parts: int = 1) -> None:
        """Checks everything; changes nothing. Raises RoseError for bad input."""
        network = Network(task.model)
        selected = network.select(task.layers)
        blocks = sorted({layer.block_index for layer in selected})
        if not (is_whole(parts) and 1 <= parts <= len(blocks)):
            can = f"choose 1 to {len(blocks)}"
            raise RoseError(f"{len(blocks)} decoder blocks cannot be tuned in {parts!r} parts; {can}.")
        self.task, self.settings = task, settings
        part_of = {block: index * parts // len(blocks) for index, block in enumerate(blocks)}
        # Names of layers by part; parts have whole decoder blocks, in the model's order.
        self.parts = [[layer.name for layer in selected if part_of[layer.block_index] == part] for part in range(parts)]
        if parts > 1:
            check_pruned(find_trained(network, task.layers), network, Network(task.dense), task.unpruned)
        self.tuner = self._tuner(0)
        self.done: list[TuneReport] = []

    def _tuner(self, number: int) -> Tuner:
        count, settings = len(self.parts), self.settings
        if count > 1:
            minutes = None if settings.minutes is None else settings.minutes / count
            epochs = None if settings.minutes is not None else (settings.epochs or 1) / count
            seed = (settings.seed + number) % 2**63  # other windows come first
            settings = settings.changed(minutes=minutes, epochs=epochs, seed=seed)
        unpruned = self.task.unpruned or count > 1  # one part may well have no zeros
        return Tuner(replace(self.task, layers=self.parts[number], unpruned=unpruned), settings)

    def run(self, progress: ProgressCallback | None = None, checkpoint: str | Path | None = None) -> None:
        """Tunes. However it ends, the model has the best weights so far, in its own format and with its zeros."""
        begun, count = begun_with(checkpoint, "products"), len(self.parts)
        if begun and self.settings.compute == DEFAULT:  # another machine may choose another
            self.settings = self.settings.changed(compute=begun)
            del self.tuner
            self.tuner = self._tuner(0)
        with claimed(checkpoint, self._describe) if checkpoint is not None else nullcontext() as folder:
            start = time.perf_counter()
            for number in range(count):
                if number:
                    del self.tuner  # before the next one measures free memory
                    self.tuner = self._tuner(number)
                part = part_callback(progress, start, number / count, (number + 1) / count) if count > 1 else progress
                try:
                    self.tuner.run(part, folder and folder / STATE.format(number))
                finally:
                    if self.tuner.curve:  # not if it was stopped before any measurement
                        self.done.append(self.tuner.report())

    def _describe(self) -> dict[str, Any]:
        tuner = self.tuner
        return {
            "command": "tune",
            "format": FORMAT,
            "parts": len(self.parts),
            **self.settings.to_dict(),
            **tuner.precision.describe(),
            "tokens": texts_digest(tuner.tokens, tuner.held_out),
            "layers": self.parts,
            "model": tuner.network.residence.fingerprint(),
            "dense": tuner.dense.residence.fingerprint(),
        }

    def report(self) -> TuneReport:
        """One report of all parts; steps and seconds go on from part to part."""
        if len(self.parts) == 1:
            return self.tuner.report()
        curves: list[pd.DataFrame] = []
        steps, seconds = 0, 0.0
        for report in self.done:
            curve = report.curve.assign(step=report.curve["step"] + steps, seconds=report.curve["seconds"] + seconds)
            curves.append(curve if not curves else curve[1:])  # a part begins where the one before has ended
            steps, seconds = steps + report.summary["steps"], seconds + report.summary["seconds"]
        last, layers = self.done[-1].summary, pd.concat([report.layers for report in self.done], ignore_index=True)
        sums = ("steps", "steps_planned", "zeros", "zeros_before", "weights")
        summary = {
            **last,
            **self.settings.to_dict(),
            **{name: sum(report.summary[name] for report in self.done) for name in sums},
            "compute": last["compute"],
            "rate": last["rate"],
            "parts": len(self.done),
            "fewest_planned": min(filter(None, (report.summary["steps_planned"] for report in self.done)), default=0),
            "kept_step": steps - last["steps"] + last["kept_step"],
            "seconds": seconds,
            "held_out_before": self.done[0].summary["held_out_before"],
        }
        return TuneReport(layers, pd.concat(curves, ignore_index=True), summary)


def tune_until_stopped(
    make: Callable[[], Parts], following: AbstractContextManager[ProgressCallback], checkpoint: str | Path | None = None
) -> tuple[TuneReport | None, BaseException | None]:
    """Tunes the result of `make`, followed from then on; whatever stops it, the model has the best weights so far.

    Returns the report, None without a finished step, and what stopped tuning, None at its regular end.
    """
    tuner, stopped = None, None
    try:
        tuner = make()
        with following as progress:
            tuner.run(progress, checkpoint)
    except (Exception, KeyboardInterrupt) as problem:
        if Workers.here().count > 1 and not isinstance(problem, (RoseError, KeyboardInterrupt)):
            raise  # in this process alone: the others would wait for it
        stopped = problem
    has_step = tuner is not None and any(report.summary["steps"] for report in tuner.done)
    return tuner.report() if tuner and has_step else None, stopped
