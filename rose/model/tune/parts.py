"""`rose.tune_model`: tuning at once, or decoder blocks in parts, where memory does not suffice for all of them.

Every part is trained through the loss of the whole model, so it makes good what the parts before have left. Gradients,
Adam's moments and float32 copies are those of one part at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Unpack

import pandas as pd
from torch import Tensor, nn

from rose.errors import RoseError
from rose.given import is_whole
from rose.model.load.tokens import SEEDS
from rose.model.network.network import Network
from rose.model.network.precision import DEFAULT
from rose.model.progress import ProgressCallback, part_callback
from rose.model.run.checkpoint import begun_with, claimed
from rose.model.tune.kept import check_pruned, find_trained
from rose.model.tune.task import TuneOptions, TuneReport, TuneTask
from rose.model.tune.tuning import Tuner, describe_tuning
from rose.model.workers import Workers
from rose.recipe.parts import TuneSettings


def tune_model(
    model: nn.Module,
    dense: nn.Module,
    tokens: Tensor,
    *,
    held_out: Tensor | None = None,
    layers: Sequence[str] | None = None,
    parts: int = 1,
    unpruned: bool = False,
    progress: ProgressCallback | None = None,
    checkpoint: str | Path | None = None,
    **options: Unpack[TuneOptions],
) -> TuneReport:
    """Trains the kept weights of a pruned model in place; what was removed stays 0, to the bit.

    Args:
        model: pruned by whatever program: its zeros are the mask. One that slimming has made smaller will do too.
        dense: the model before, of the same vocabulary; not changed.
        tokens: windows to train on, (samples, length) int64.
        held_out: further windows, which decide by their next tokens which step is kept: perplexity on them is never
            worse than at the start.
        layers: names to tune, `*` allowed; None means every prunable layer. Norms, embeddings and the head stay.
        parts: decoder blocks are tuned in so many parts, one after another, each with its share of the steps; memory
            for gradients and Adam's moments is that of one part.
        unpruned: tune a model without zeros, too.
        progress: called with a `TuningProgress` many times a step; may raise to stop: the best step so far is kept.
        checkpoint: a folder from which the same call goes on, after it was stopped or killed, to the same bits where
            there are as many processes, as sums differ by rounding; load the pruned model again for that, as a tuning
            that was stopped has changed it.

    Keyword arguments besides:
        minutes: how long tuning may take; the number of steps is set by the time of the first ones.
        epochs: passes over `tokens`, where no minutes are given; 1 by default, parts allowed.
        loss: "kl", towards the dense model's distributions; "ce", of the text's own next tokens, for data of one's own.
        rate: of Adam, after a warm-up over a quarter of the steps, falling to 0 linearly. None means 0.001, in
            proportion less for fewer than 32 steps, and the lower of two for a model whose loss of next tokens is less
            than 0.55 nats above the dense one's, and for one that has kept more than 0.4 of the weights, as smaller
            models have; and less where the dense model's weights are small and its layers large, as in most models
            beyond the packaged one: see `rose.model.tune.tuning.size_of`.
        batch: windows of a step; several processes share them.
        seed: of the order of windows.
        compute: format of matrix products, see `rose.prune_model`. Weights and Adam's moments are float32.

    Raises:
        RoseError: bad input, before any work; a loss that is not finite; or no room to save.
    """
    tuner = Parts(TuneTask(model, dense, tokens, held_out, layers, unpruned), TuneSettings.of(**options), parts)
    tuner.run(progress, checkpoint)
    return tuner.report()


class Parts:
    """As `Tuner`, for decoder blocks in parts: each has its share of the time and keeps its own best step."""

    def __init__(self, task: TuneTask, settings: TuneSettings, parts: int = 1) -> None:
        """Checks everything; changes nothing. Raises RoseError for bad input."""
        network = Network(task.model)
        self.task, self.settings, self.parts = task, settings, divided(network, task.layers, parts)
        if parts > 1:
            check_pruned(find_trained(network, task.layers), network, Network(task.dense), task.unpruned)
        self.tuner = self._tuner(0)
        self.done: list[TuneReport] = []

    def _tuner(self, number: int) -> Tuner:
        count, own = len(self.parts), self.settings
        if count > 1:
            minutes = None if own.minutes is None else own.minutes / count
            epochs = None if own.minutes is not None else (own.epochs or 1) / count
            seed = (own.seed + number) % SEEDS  # other windows come first
            own = own.changed(minutes=minutes, epochs=epochs, seed=seed)
        unpruned = self.task.unpruned or count > 1  # one part may well have no zeros
        return Tuner(replace(self.task, layers=self.parts[number], unpruned=unpruned), own)

    def run(self, progress: ProgressCallback | None = None, checkpoint: str | Path | None = None) -> None:
        """Tunes. However it ends, the model has the best weights so far, in its own format and with its zeros."""
        begun = begun_with(checkpoint, "products")
        if begun and self.settings.compute == DEFAULT:  # another machine may choose another
            self.settings = self.settings.changed(compute=begun)
            del self.tuner
            self.tuner = self._tuner(0)
        # Each part has a folder of its own within, which says the rest.
        asked = partial(describe_tuning, self.settings, self.tuner.precision, len(self.parts))
        with claimed(checkpoint, asked) if checkpoint is not None and len(self.parts) > 1 else nullcontext():
            self._run(progress, checkpoint)

    def _run(self, progress: ProgressCallback | None, checkpoint: str | Path | None) -> None:
        began, count = time.perf_counter(), len(self.parts)
        for number in range(count):
            if number:
                del self.tuner  # before the next one asks how much memory is free
                self.tuner = self._tuner(number)
            own = part_callback(progress, began, number / count, (number + 1) / count) if count > 1 else progress
            folder = Path(checkpoint) / str(number) if checkpoint is not None and count > 1 else checkpoint
            try:
                self.tuner.run(own, folder)
            finally:
                if self.tuner.curve:  # not where it was stopped before anything was measured
                    self.done.append(self.tuner.report())

    @property
    def is_begun(self) -> bool:
        """Whether a step is done, so that there is something to keep and to report."""
        return any(report.summary["steps"] for report in self.done)

    def report(self) -> TuneReport:
        """What was done, so far or in the end."""
        return joined(self.done, self.settings) if len(self.parts) > 1 else self.tuner.report()


def tune_until_stopped(
    make: Callable[[], Parts],
    following: AbstractContextManager[ProgressCallback],
    checkpoint: str | Path | None = None,
) -> tuple[TuneReport | None, BaseException | None]:
    """Tunes what `make` prepares, followed from then on; whatever stops it, the model has the best weights so far.

    Returns:
        The report, None without a finished step, and what stopped tuning, None where it came to its end.
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
    return tuner.report() if tuner and tuner.is_begun else None, stopped


def divided(network: Network, layers: Sequence[str] | None, parts: int) -> list[list[str]]:
    """Names of the layers to tune, in so many parts of whole decoder blocks, in the model's order.

    Raises:
        RoseError: fewer decoder blocks than parts, or no whole number of them.
    """
    selected = network.select(layers)
    blocks = sorted({layer.block_index for layer in selected})
    if not (is_whole(parts) and 1 <= parts <= len(blocks)):
        raise RoseError(f"{len(blocks)} decoder blocks cannot be tuned in {parts!r} parts; choose 1 to {len(blocks)}.")
    place = {block: index * parts // len(blocks) for index, block in enumerate(blocks)}
    return [[layer.name for layer in selected if place[layer.block_index] == part] for part in range(parts)]


def joined(reports: Sequence[TuneReport], settings: TuneSettings) -> TuneReport:
    """One report of parts that were tuned one after another; steps and seconds go on from part to part."""
    curves: list[pd.DataFrame] = []
    steps, seconds = 0, 0.0
    for report in reports:
        curve = report.curve.assign(step=report.curve["step"] + steps, seconds=report.curve["seconds"] + seconds)
        curves.append(curve if not curves else curve[1:])  # a part begins where the one before has ended
        steps, seconds = steps + report.summary["steps"], seconds + report.summary["seconds"]
    first, last = reports[0].summary, reports[-1].summary
    sums = ("steps", "steps_planned", "zeros", "zeros_before", "weights")
    return TuneReport(
        pd.concat([report.layers for report in reports], ignore_index=True),
        pd.concat(curves, ignore_index=True),
        {
            **last,
            **settings.to_dict(),
            **{name: sum(report.summary[name] for report in reports) for name in sums},
            "compute": last["compute"],
            "rate": last["rate"],
            "parts": len(reports),
            "fewest_planned": min(filter(None, (report.summary["steps_planned"] for report in reports)), default=0),
            "kept_step": steps - last["steps"] + last["kept_step"],
            "seconds": seconds,
            "held_out_before": first["held_out_before"],
        },
    )
