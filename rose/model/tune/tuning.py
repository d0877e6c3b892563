"""Tuning: the kept weights of a pruned model are trained towards the dense model's next-token distributions.

Pruning compensates inside a layer, and towards the dense model's hidden states; this goes through the model's own loss,
and so makes good what no layer can see (distillation of sparse models: Kurtic et al. 2023, arXiv:2310.06927). Gradients
of removed weights are 0 from the first step on, so Adam's moments and its steps are 0 there too: zeros stay to the bit.

The loop is our own, and short. transformers' Trainer keeps its state in pickles, cannot be told how long it may take,
and would need the masks, the dense model and the choice of the best step put into it from outside.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rose.errors import RoseError
from rose.files import explained
from rose.model.defaults import RATE
from rose.model.estimate.tuning import TOGETHER
from rose.model.network.network import Network
from rose.model.network.precision import Precision
from rose.model.network.residence import evaluating, gradients_only_of
from rose.model.network.stand_ins import hooked
from rose.model.progress import ProgressCallback, time_left
from rose.model.run.checkpoint import claimed
from rose.model.tune.kept import (
    check_pruned,
    find_trained,
    frozen_matrices,
    in_float32,
    reusing_memory,
    rounded,
    settle,
)
from rose.model.tune.loss import cross_entropy, divergence
from rose.model.tune.task import TuneReport, TuneTask, TuningLook, TuningProgress, check_memory, check_pair
from rose.model.workers import Workers
from rose.recipe.parts import TuneSettings
from rose.tensor_files import DamagedFile, digest, read_tensors, write_tensors

FAR = 0.55  # nats a token behind the dense model, below which the rate is less: there is less to gain than it disturbs
KEPT = 0.4  # of the trained weights, above which the rate is less: outputs move in proportion to the weights that do
SIZE = 2.5e-4  # of `size_of`, below which the rate is less in proportion: Adam's steps are as large for small weights
LEAST = 0.1  # share of the rate that is left at the dense model itself, for those whose own text says something else
FULL = 32  # steps from which on the rate is that: its first ones make the model worse, which few more do not win back
BETAS = (0.9, 0.999)  # of Adam
WARM_UP = 0.25  # share of the steps in which the rate rises: the first ones follow few gradients, and do harm
LOOKS = 8  # measurements on held-out windows, and saves, besides that of the start
STATE = "state.safetensors"
FORMAT = 3  # raise it where an older folder would no longer give the same weights
FACTS = ("step", "steps", "best_step", "seconds", "away", "dense_held_out")  # of a `Tuner`, saved with its weights


class Tuner:
    """One run of `rose.tune_model`, or of one of its parts, whose report can be had also after it was stopped.

    Attributes:
        curve: what was measured so far.
        steps: how many there will be, 0 until it is known.
    """

    def __init__(self, task: TuneTask, settings: TuneSettings) -> None:
        """Checks everything; changes nothing. Raises RoseError for bad input."""
        self.network, self.dense, self.settings = Network(task.model), Network(task.dense), settings
        tokens, held_out = task.tokens, task.held_out
        self.tokens, self.held_out, self.workers = tokens, held_out, Workers.here()
        check_pair(task.model, task.dense, by_text_alone=task.unpruned and settings.loss == "ce")
        for network in (self.network, self.dense):
            network.check_in_memory()
            network.check_tokens(tokens, "The loss of next tokens")
            if held_out is not None:
                network.check_tokens(held_out, "The loss of next tokens", "held-out tokens")
        if settings.batch < self.workers.count:
            least = self.workers.count
            raise RoseError(
                f"A batch of {settings.batch} cannot be divided over {least} processes; choose one of {least} or more."
            )
        self.trained = find_trained(self.network, task.layers)
        check_pruned(self.trained, self.network, self.dense, task.unpruned)
        weights = sum(one.frozen.numel() for one in self.trained)
        self.kept = 1 - sum(int(one.frozen.sum()) for one in self.trained) / max(1, weights)
        # The first one's memory counts: where one alone refused, the others would wait for it.
        fits = partial(check_memory, self.network, tokens.shape[1], weights, compute=settings.compute)
        self.workers.from_first(fits)
        products = partial(Precision.of, settings.compute, torch.float32, self.network.device)
        self.precision = self.workers.from_first(products)
        self.start = [one.parameter.detach().clone() for one in self.trained]
        self.best = self.start
        self.best_step, self.step, self.steps, self.seconds = 0, 0, 0, 0.0
        self.away = FAR  # nats a token by which the dense model is better at the start, once it is known
        self.dense_held_out: float | None = None
        self.curve: list[TuningLook] = []

    @property
    def rate(self) -> float:
        """The learning rate at its highest; where it was not given, by the number of steps, by the size of weights, by
        how much better the dense model is, which is what there is to gain, and by the share of weights that are kept.
        """
        if self.settings.rate:
            return self.settings.rate
        known = min(1.0, max(LEAST, self.away / FAR), KEPT / max(KEPT, self.kept)) * min(1.0, self._size / SIZE)
        return RATE * known * min(1.0, max(1, self.steps) / FULL)

    @cached_property
    def _size(self) -> float:
        return size_of(self.dense)

    def run(self, progress: ProgressCallback | None = None, checkpoint: str | Path | None = None) -> None:
        """Tunes. However it ends, the model has the best weights so far, in its own format and with its zeros."""
        network, device = self.network, self.network.device
        with ExitStack() as stack:
            folder = None
            if checkpoint is not None:
                folder = stack.enter_context(claimed(checkpoint, self._describe))
            stack.enter_context(gradients_only_of(network.model, [one.parameter for one in self.trained]))
            stack.callback(self._settle)
            stack.enter_context(reusing_memory())
            frozen = frozen_matrices(network, self.trained) if self.precision.rounds else ()
            stack.enter_context(in_float32(network.model, frozen))
            stack.enter_context(evaluating(network.model, device))
            stack.enter_context(evaluating(self.dense.model, device))
            _Loop(self, progress, folder).run()

    def _settle(self) -> None:
        for one, weight in zip(self.trained, self.best, strict=True):
            settle(one, weight.to(one.parameter.device))

    def _describe(self) -> dict[str, Any]:
        return describe_tuning(self.settings, self.precision, 1) | {
            "tokens": texts_digest(self.tokens, self.held_out),
            "layers": [one.name for one in self.trained],
            "model": self.network.residence.fingerprint(),
            "dense": self.dense.residence.fingerprint(),
        }

    @property
    def table(self) -> pd.DataFrame:
        """`curve` with a row for each measurement."""
        rows = [asdict(look) for look in self.curve]
        table = pd.DataFrame(rows, columns=["step", "seconds", "loss", "held_out"])
        return table.astype({"loss": float, "held_out": float})

    def report(self) -> TuneReport:
        """What was done, so far or in the end."""
        rows = []
        for one, was in zip(self.trained, self.start, strict=True):
            now, before = one.parameter.detach().float(), was.float()
            change = float((now - before).norm() / before.norm().clamp_min(1e-30))
            kept = (now == before) & one.frozen.to(now.device)
            rows.append((one.name, was.numel(), int(kept.sum()), change))
        known = {look.step: look.held_out for look in self.curve}
        table = pd.DataFrame(rows, columns=["layer", "weights", "zeros", "change"])
        return TuneReport(
            table,
            self.table,
            {
                **self.settings.to_dict(),
                "compute": self.precision.describe()["compute"],  # what it came to, also where a run goes on
                "rate": self.rate,
                "samples": self.tokens.shape[0],
                "length": self.tokens.shape[1],
                "steps": self.step,
                "steps_planned": self.steps,
                "kept_step": self.best_step,
                "seconds": self.seconds,
                "held_out_before": known.get(0),
                "held_out_after": known.get(self.best_step),
                "held_out_dense": self.dense_held_out,
                "zeros": int(table["zeros"].sum()),
                "zeros_before": sum(int(one.frozen.sum()) for one in self.trained),
                "weights": int(table["weights"].sum()),
                "environment": self.precision.environment(self.network.device),
            },
        )


def texts_digest(tokens: Tensor, held_out: Tensor | None) -> str:
    """Tells the windows of a tuning in its checkpoint."""
    given = {"tokens": tokens.long()}
    return digest(given if held_out is None else given | {"held_out": held_out.long()})


def size_of(dense: Network) -> float:
    """Norms of all layers over the number of their weights: less where weights are small, and where layers are large.

    A step of Adam moves each of a layer's n weights by about the rate, many of them together: a matrix of norm rate·√n,
    where the layer's own entries have a root mean square of ‖W‖/√n.
    """
    norms = sum(float(torch.linalg.vector_norm(one.weight, dtype=torch.float64)) for one in dense.layers)
    return norms / sum(one.weight.numel() for one in dense.layers)


def describe_tuning(settings: TuneSettings, precision: Precision, parts: int) -> dict[str, Any]:
    """What was asked for, for the checkpoint: JSON values."""
    return {"command": "tune", "format": FORMAT, "parts": parts, **settings.to_dict(), **precision.describe()}


class _Loop:
    """The steps of a run, while the model is float32 and on its device."""

    def __init__(self, tuner: Tuner, progress: ProgressCallback | None, folder: Path | None) -> None:
        self.tuner, self.precision, self.progress, self.folder = tuner, tuner.precision, progress, folder
        self.settings, self.device, self.workers = tuner.settings, tuner.network.device, tuner.workers
        self.trained = tuner.trained
        self.teacher = rounded(tuner.dense) if self.precision.rounds else tuner.dense.model
        self.optimizer = torch.optim.Adam([one.parameter for one in self.trained], lr=RATE, betas=BETAS, fused=True)
        masks = [(one.parameter, ~one.frozen.to(self.device)) for one in self.trained]
        self.hooks = [one.register_post_accumulate_grad_hook(self._clear(kept)) for one, kept in masks]
        blocks = [block for network in (tuner.network, Network(self.teacher)) for block in network.blocks]
        self.hooks += [block.register_forward_hook(lambda *_: self.tell()) for block in blocks if progress]
        self.began, self.first_step = time.perf_counter(), 0
        self.gathered: list[float] = []

    def _clear(self, kept: Tensor) -> Callable[[Tensor], None]:
        """A hook that sets the gradient to 0 where a parameter is not kept."""

        def clear(parameter: Tensor) -> None:
            assert parameter.grad is not None
            parameter.grad.mul_(kept)
            self.tell()

        return clear

    def run(self) -> None:
        with hooked(self.hooks):
            if not self._resume():
                self._start()
                self.tuner.steps = self._plan()
                self._save()
            self.began = time.perf_counter() - self.tuner.seconds
            self.first_step = self.tuner.step
            while self.tuner.step < self.tuner.steps:
                self._step()
                if self.tuner.step in self._looks():
                    self._look()
                    self._save()

    def tell(self) -> None:
        if self.progress is None:
            return
        tuner, steps = self.tuner, max(1, self.tuner.steps)
        seconds, fraction = time.perf_counter() - self.began, tuner.step / steps
        left = time_left(seconds, fraction, self.first_step / steps)
        counts = (tuner.step, steps, fraction, seconds, left)
        self.progress(TuningProgress("tune", 0, 1, None, None, *counts, curve=tuple(tuner.curve)))

    def _start(self) -> None:
        """The first look, and how much better the dense model tells next tokens: on held-out windows or on those of
        the first step."""
        tuner = self.tuner
        windows = self._windows(0) if tuner.held_out is None else tuner.held_out
        dense = self._next_tokens(self.teacher, windows)
        if tuner.held_out is not None:
            tuner.dense_held_out = dense
        self._look()
        own = tuner.curve[0].held_out
        tuner.away = (self._next_tokens(tuner.network.model, windows) if own is None else own) - dense

    def _plan(self) -> int:
        """How many steps there will be: as the epochs want, or as many as fit into the minutes."""
        batches = max(1, len(self.tuner.tokens) // self.settings.batch)
        if self.settings.minutes is None:
            return max(1, round((self.settings.epochs or 1) * batches))
        started = time.perf_counter()
        self._gradient(0)  # the first pass pays for start-up
        middle = time.perf_counter()
        self._gradient(0)
        self.optimizer.zero_grad()
        ended = time.perf_counter()
        # Looks after the first one need no pass of the dense model, which takes half of it.
        left = 60 * self.settings.minutes - (ended - started) - (1 + LOOKS / 2) * self.tuner.curve[0].seconds
        planned = max(1, int(left / (ended - middle)))
        return int(self.workers.smallest(planned) or 1)

    def _looks(self) -> set[int]:
        steps = self.tuner.steps
        return {round(steps * (number + 1) / LOOKS) for number in range(LOOKS)}

    def _windows(self, step: int) -> Tensor:
        """The windows of one step: every epoch has an order of its own."""
        tokens, batch = self.tuner.tokens, min(self.settings.batch, len(self.tuner.tokens))
        per_epoch = max(1, len(tokens) // batch)
        seed = (self.settings.seed * 1_000_003 + step // per_epoch) % 2**63
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(tokens), generator=generator)
        at = step % per_epoch * batch
        return tokens[order[at : at + batch]]

    def _step(self) -> None:
        tuner = self.tuner
        warm = max(1, round(WARM_UP * tuner.steps))
        rate = min((tuner.step + 1) / warm, (tuner.steps - tuner.step) / max(1, tuner.steps - warm), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * tuner.rate
        loss = self._gradient(tuner.step)
        if not math.isfinite(loss):
            raise RoseError(self._failed(loss))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.gathered.append(loss)
        tuner.step += 1
        tuner.seconds = time.perf_counter() - self.began
        self.tell()

    def _failed(self, loss: float) -> str:
        tuner = self.tuner
        if not tuner.step:
            return f"The loss is {loss} before any step; `rose check` tells which weights are not finite."
        said = f"The loss of step {tuner.step + 1} is {loss}; choose a smaller rate than {tuner.rate:g}."
        return f"{said} The best weights before are kept."

    def _gradient(self, step: int) -> float:
        """Gradients of the mean loss a token over the windows of a step, summed over processes; returns the loss."""
        windows = self._windows(step).to(self.device).long()
        own = windows.tensor_split(self.workers.count)[self.workers.place]
        tokens = windows.shape[0] * (windows.shape[1] - (self.settings.loss == "ce"))
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        for several in own.split(max(1, TOGETHER // windows.shape[1])) if len(own) else ():
            part = self._loss(several)
            (part / tokens).backward()
            total += part.detach()
        for one in self.trained:
            if one.parameter.grad is None:
                one.parameter.grad = torch.zeros_like(one.parameter)
            self.workers.sum_tensor(one.parameter.grad)
        self.workers.sum_tensor(total)
        return float(total) / tokens

    def _loss(self, windows: Tensor) -> Tensor:
        """Summed over the tokens of these windows."""
        logits = self._logits(self.tuner.network.model, windows)
        if self.settings.loss == "ce":
            return cross_entropy(logits, windows)
        with torch.no_grad():
            wanted = self._logits(self.teacher, windows)
        return divergence(logits, wanted)

    def _logits(self, model: Any, windows: Tensor) -> Tensor:
        with self.precision.computing(self.device):
            return model(input_ids=windows, use_cache=False).logits

    def _look(self) -> None:
        """Measures on held-out windows, and keeps the weights if they are the best so far."""
        tuner = self.tuner
        windows = tuner.held_out
        held_out = None if windows is None else self._next_tokens(tuner.network.model, windows)
        loss = sum(self.gathered) / len(self.gathered) if self.gathered else None
        self.gathered.clear()
        tuner.seconds = time.perf_counter() - self.began
        tuner.curve.append(TuningLook(tuner.step, tuner.seconds, loss, held_out))
        known = [look.held_out for look in tuner.curve[:-1] if look.held_out is not None]
        if tuner.step and (held_out is None or (math.isfinite(held_out) and held_out < min(known))):
            tuner.best = [one.parameter.detach().clone() for one in self.trained]
            tuner.best_step = tuner.step
        self.tell()

    def _next_tokens(self, model: Any, windows: Tensor) -> float:
        """The loss of next tokens, by which perplexity judges too: a model that has come no nearer to the dense one's
        distributions may well tell them better."""
        own = windows.tensor_split(self.workers.count)[self.workers.place].to(self.device).long()
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        with torch.no_grad():
            for window in own[:, None]:  # of none, where processes are more than windows
                total += cross_entropy(self._logits(model, window), window)
        self.workers.sum_tensor(total)
        return float(total) / (windows.shape[0] * (windows.shape[1] - 1))

    def _save(self) -> None:
        if self.folder is None:
            return
        tuner = self.tuner
        tensors: dict[str, Tensor] = {}
        for one, best in zip(self.trained, tuner.best, strict=True):
            tensors |= {f"{one.name}/weight": one.parameter.detach(), f"{one.name}/best": best}
            for name, value in self.optimizer.state.get(one.parameter, {}).items():
                tensors[f"{one.name}/{name}"] = value
        facts = {name: getattr(tuner, name) for name in FACTS}
        curve = json.dumps([asdict(look) for look in tuner.curve])
        folder = self.folder

        def write() -> None:
            with explained(folder):
                write_tensors(folder / STATE, tensors, facts=json.dumps(facts), curve=curve)

        self.workers.from_first(write)

    def _resume(self) -> bool:
        """Goes back to what was saved last; False where nothing was, or it is damaged."""
        if self.folder is None:
            return False
        try:
            tensors, texts = read_tensors(self.folder / STATE)
        except DamagedFile:
            return False
        tuner, facts = self.tuner, json.loads(texts["facts"])
        tuner.curve = [TuningLook(**look) for look in json.loads(texts["curve"])]
        for name in FACTS:
            setattr(tuner, name, facts[name])
        tuner.best = [tensors[f"{one.name}/best"] for one in self.trained]
        for one in self.trained:
            one.parameter.data.copy_(tensors[f"{one.name}/weight"])
            known = {name: tensors.get(f"{one.name}/{name}") for name in ("step", "exp_avg", "exp_avg_sq")}
            # The step too: a fused Adam counts where the weights are.
            state = {name: value.to(self.device) for name, value in known.items() if value is not None}
            if state:
                self.optimizer.state[one.parameter] = state
        return True
