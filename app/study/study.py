"""A study: one model, one calibration, every layer measured. Filled in the background, read by all pages.

`shared` keeps these objects for all browser sessions; the model in them is never changed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import nan
from typing import Any, ClassVar, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

import rose
from app.jobs import GivenBack, Job, Run, Shared, holding
from app.registry import held
from app.study import cache
from app.study.setup import FORETOLD, MEASURED, Setup
from rose.layer.error import relative_error
from rose.layer.forecast import forecasts, price_columns
from rose.layer.hessian import condition_number, spectrum
from rose.layer.order import Prices, live_range
from rose.layer.pattern import THRESHOLD
from rose.layer.profile import SPARSITIES, Profile, block_sizes, profile
from rose.layer.settings import LayerSettings
from rose.model.network.layers import PrunableLayer
from rose.model.network.network import Network
from rose.model.run.one_layer import Energies, is_left_dense, measure_layer
from rose.model.walk.walk import BlockStatistics, statistics_of
from rose.rows import records_table
from rose.verdicts import caution_column, cautions

# What a study remembers; the results asked for longest ago go first. Plots of small layers take kilobytes, recorded
# sweeps of large ones gigabytes: one page shows two of them, each up to `lab.LARGEST_TRACE`, and must not have to make
# them again whenever it is drawn. So the latest stay whatever their size, and older ones only within a modest sum.
KEPT_RESULTS = 96
KEPT_LATEST = 8
KEPT_BYTES = 5 * 10**8
HOME = torch.device("cpu")  # where models of the app rest
TwoBlocks = tuple[BlockStatistics, BlockStatistics]  # where its weights are now, which may be a GPU; as it is kept
T = TypeVar("T")


@dataclass(eq=False)
class LoadedModel(Shared):
    """A model that sessions share. Take the lock to run it; never change it."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    lock: threading.Lock
    identity: str | None = None  # of the files that it was read from, see `cache.model_identity`
    comes_back: ClassVar[bool] = True  # see `Registry`

    def __post_init__(self) -> None:
        super().__init__()

    @cached_property
    def network(self) -> Network:
        return Network(self.model)


class Calibration(Shared):
    """Statistics of all chosen layers, shared by studies that differ only in what they do with them."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()  # held by the study that fills it
        self.complete = False
        self.files: cache.Files | None = None  # that it was filled from
        self.blocks: list[BlockStatistics] = []
        self.tokens: Tensor | None = None
        self.held_out: Tensor | None = None
        self.cautions: list[str] = []  # on the text that the tokens were drawn from

    def draw(self, setup: Setup, loaded: LoadedModel) -> Tensor:
        """The tokens, drawn by the first call."""
        if self.tokens is None:
            self.cautions = []
            self.tokens, self.held_out = setup.draw(loaded.tokenizer, self.cautions.append)
        return self.tokens

    def iterate(self, study: Study, loaded: LoadedModel) -> Iterator[TwoBlocks]:
        """Block by block: from memory where complete, else from the disk, else by running the model."""
        setup, files, job = study.setup, study.files, study.job
        with holding(self.lock, job):
            folder = cache.folder_of(setup, files)
            if not self.complete or self.files not in (None, files):
                self.complete, self.files, self.tokens = False, files, None
                self.draw(setup, loaded)
                layers = loaded.network.select(setup.layers)
                blocks = cache.read_blocks(folder, layers) if folder else None
                self.blocks, self.complete = blocks or [], blocks is not None
            if self.complete:
                yield from _again(self.blocks, loaded, job)
                return
            tokens = self.draw(setup, loaded)
            options: dict[str, Any] = {"layers": setup.layers, "held_out": self.held_out}
            with holding(loaded.lock, job):
                for block in rose.visit_blocks(loaded.model, tokens, progress=study._follow(), **options):
                    self.blocks.append(block.to(HOME))
                    yield block, self.blocks[-1]
            self.complete = True
            if folder:
                job.message = "Keeping statistics for the next start"
                cache.keep_blocks(folder, self.blocks)


def _again(blocks: list[BlockStatistics], loaded: LoadedModel, job: Job) -> Iterator[TwoBlocks]:
    """Known statistics of each decoder block, while its weights are in memory."""
    # Not the layers of the model that was read then: its weights may have been left on disk.
    layers = {layer.name: layer for layer in loaded.network.layers}
    current = [replace(block, layers=[layers[layer.name] for layer in block.layers]) for block in blocks]
    if not loaded.network.is_streamed:
        yield from zip(current, current, strict=True)
        return
    with holding(loaded.lock, job):
        for block in current:
            with loaded.network.residence.visit(block.block_index, HOME):
                yield block, block


class InputsRun(Run):
    """Collects the inputs of one layer; see `Study.collect`."""

    def __init__(self, study: Study, layer: str) -> None:
        super().__init__()
        self.subject, self.layer = study.subject, layer
        self._study: Study | None = study  # until it is over: the runs that a session keeps must not hold studies

    def _run(self, job: Job) -> None:
        study, self._study = self._study, None
        assert study is not None  # a job runs once
        study.collect(self.layer, self)


class Study(Run):
    """The results of one set-up, growing while its job runs."""

    def __init__(
        self,
        setup: Setup,
        load: Callable[[], LoadedModel],
        calibration: Calibration,
        files: cache.Files | None = None,
        *,
        recall: bool = True,
    ) -> None:
        super().__init__()
        self.setup = setup
        self.files = files or cache.files_of(setup)  # as they were when it was started; of a Hub's model, once loaded
        self.layer_names: list[str] = []  # all of them, as soon as the model is loaded
        self.loaded: LoadedModel | None = None
        self.calibration = calibration
        self._load = load
        self._lock = threading.Lock()
        self._records: dict[str, list[rose.LayerRecord]] = {}
        self._condition: dict[str, float] = {}
        self._forecast: dict[str, dict[str, float]] = {}  # errors that `FORETOLD` should leave, by layer
        self._profiles: dict[str, Profile] = {}
        self.draws: dict[str, dict[str, list[float]]] = {}  # see `cache.Kept`
        self.head_width: int | None = None  # of the model, in columns
        self._live_ranges: dict[str, float] = {}
        self._layers: dict[str, tuple[PrunableLayer, rose.InputStatistics, rose.InputStatistics | None]] = {}
        self._memory: OrderedDict[Any, Any] = OrderedDict()
        self._version = 0  # of the measurements
        self._tables: dict[str, tuple[Any, Any]] = {}  # the latest of each kind, and what it was made of
        self._may_recall = recall
        self.go_on = False  # with the other layers where one cannot be measured
        self._failed_at: str | None = None
        self.failed: dict[str, str] = {}  # why, by layer
        self.left_dense: list[str] = []  # layers of experts to which no calibration token was routed
        self.kept: cache.Kept | None = None  # what was found on disk

    @property
    def subject(self) -> tuple[Setup, cache.Files]:
        """What it is a study of; the same after it was let go and restored."""
        return self.setup, self.files

    @property
    def measurements(self) -> cache.Kept:
        with self._lock:
            records = [record for records in self._records.values() for record in records]
            numbers = dict(self._condition), dict(self._forecast), dict(self._profiles)
            return cache.Kept(records, *numbers, self.draws, self.head_width)

    @property
    def is_example(self) -> bool:
        return self.kept is not None and bool(self.kept.made_with)

    @property
    def is_restored(self) -> bool:
        """Whether every number came from disk, so that a run only collects the inputs of layers."""
        return self.kept is not None and self.kept.is_exact

    @property
    def is_measured(self) -> bool:
        """Whether every number is there, whatever has become of a run that collects inputs."""
        return self.is_restored or self.job.status in ("done", "kept")

    @property
    def expected(self) -> list[str]:
        return [name for name in self.layer_names if name not in self.left_out]

    @property
    def left_out(self) -> set[str]:
        return {*self.failed, *self.left_dense}

    @property
    def can_go_on(self) -> bool:
        """Whether it failed at a layer, so that the others can still be measured."""
        return not self.go_on and self._failed_at is not None

    def restore(self) -> bool:
        """Shows what is on disk for this set-up without measuring or loading anything; says whether anything is."""
        if self._recall():
            self.job.status = "kept"
        return self.kept is not None

    def _run(self, job: Job) -> None:
        job.message = "Looking for earlier results"
        self._recall()
        job.message = "Loading the model"
        self.loaded = self._load()
        job.check()
        if self.loaded.identity not in (None, self.files.model):  # only loading brings a Hub's files, or newer ones
            self.files, self.kept = replace(self.files, model=self.loaded.identity), None
            self._recall()
        self._place_statistics(self.loaded)
        self.head_width = self.loaded.network.head_width
        self.layer_names = [layer.name for layer in self.loaded.network.select(self.setup.layers)]
        job.message = "Collecting the inputs of layers" if self.is_restored else "Measuring layers"
        for block, kept_block in self.calibration.iterate(self, self.loaded):
            self._measure(block, kept_block, job)
        if not self.is_restored and not self.failed and (folder := cache.folder_of(self.setup, self.files)):
            cache.keep_study(folder, self.setup, self.measurements)

    def _recall(self) -> bool:
        """Shows what was kept for these files, and says whether anything was."""
        self.kept = (cache.recall(self.setup, self.files) if self._may_recall else None) or self.kept
        stored = self.kept or cache.Kept()
        with self._lock:
            self._records = {}
            for record in stored.records:
                self._records.setdefault(record.layer, []).append(record)
            self._condition, self._forecast = dict(stored.condition), dict(stored.forecast)
            self._profiles, self.draws, self.head_width = dict(stored.profiles), stored.draws, stored.head_width
            self.layer_names = list(self._records)
            self._version += 1
        return self.kept is not None

    def _place_statistics(self, loaded: LoadedModel) -> None:
        """Statistics that were kept beside the records: these layers can be looked into at once."""
        if (saved := self.kept) is None:
            return
        layers = {layer.name: layer for layer in loaded.network.select(self.setup.layers)}
        with self._lock:
            for name, statistics in saved.calibration.items():
                self._layers[name] = (layers[name], statistics, saved.held_out.get(name))
            self._version += 1

    def _measure(self, block: BlockStatistics, stored: BlockStatistics, job: Job) -> None:
        with self._lock:
            measured = set(self._records) if self.is_restored else set()
        conditions: dict[int, float] = {}
        for layer in block.layers:
            job.check()
            if is_left_dense(layer, block.calibration):
                self.left_dense.append(layer.name)
                continue
            statistics, held_out = statistics_of(layer, block.calibration), block.held_out.get(layer.name)
            if layer.name not in measured:
                try:
                    records = self._measure_layer(layer, statistics, held_out, job)
                    pairs, options = list(FORETOLD.values()), self.layer_options()
                    results = forecasts(layer.weight, statistics, pairs, **options)
                    plan = rose.plan_order(layer.weight, statistics, **options)
                    has_heads = layer.head_width is not None
                    columns = profile(layer.weight, plan, block_sizes(self.head_width), has_heads=has_heads)
                    if id(statistics) not in conditions:  # layers that share an input share its Hessian
                        conditions[id(statistics)] = condition_number(statistics.hessian, self.setup.damping)
                except rose.RoseError as problem:
                    if not self.go_on:
                        self._failed_at = layer.name
                        raise
                    self.failed[layer.name] = str(problem)
                    continue
                with self._lock:
                    if layer.name in self._records:  # the statistics of an example on a slightly different text
                        self._live_ranges.pop(layer.name, None)
                        self._memory = OrderedDict((k, v) for k, v in self._memory.items() if layer.name not in k)
                    self._records[layer.name] = records
                    self._profiles[layer.name] = columns
                    self._condition[layer.name] = conditions[id(statistics)]
                    errors = [float(f"{forecast.held_out:.6g}") for forecast in results]
                    self._forecast[layer.name] = dict(zip(FORETOLD, errors, strict=True))
            with self._lock:
                self._layers[layer.name] = (layer, stored.calibration[layer.name], stored.held_out.get(layer.name))
                self._version += 1

    def _measure_layer(
        self, layer: PrunableLayer, statistics: rose.InputStatistics, held_out: rose.InputStatistics | None, job: Job
    ) -> list[rose.LayerRecord]:
        options, energies, records = self.layer_options(), Energies(layer.weight), list[rose.LayerRecord]()
        for name, how in MEASURED.items():
            job.check()  # each may take seconds
            settings = LayerSettings.of(**options, **how)
            records.append(replace(measure_layer(layer, statistics, held_out, settings, energies), method=name))
        return records

    def has_stored(self, layer: str) -> bool:
        """Whether the inputs of a measured layer are in the example or on disk, so that the model need not run."""
        folder, (record, *_) = cache.folder_of(self.setup, self.files), self._records[layer]
        in_example = self.kept is not None and layer in self.kept.calibration
        return in_example or (folder is not None and (folder / cache.BLOCK.format(record.block_index)).exists())

    def collect(self, layer: str, run: Run) -> None:
        """Collects the inputs of one layer of a restored study, where they are not stored; other layers stay as they
        are."""
        self.use()
        run._say("Loading the model")
        loaded = self.loaded = self._load()
        self._place_statistics(loaded)
        if self.has(layer):
            return
        run._say(f"Collecting the inputs of {layer}")
        chosen, calibration = loaded.network.select([layer]), self.calibration
        folder = cache.folder_of(self.setup, self.files)
        with holding(calibration.lock, run.job):
            blocks = cache.read_blocks(folder, chosen) if folder else None
            if blocks is None:
                tokens = calibration.draw(self.setup, loaded)
                options: dict[str, Any] = {"layers": [layer], "held_out": calibration.held_out}
                with holding(loaded.lock, run.job):
                    visited = rose.visit_blocks(loaded.model, tokens, progress=run._follow(), **options)
                    blocks = [block.to(HOME) for block in visited]
        for block in blocks:
            self._measure(block, block, run.job)

    def layer_options(self, sparsity: str | None = None) -> dict[str, Any]:
        """Keyword arguments for `rose.prune_layer` that this set-up implies; `sparsity` replaces the set-up's."""
        setup = self.setup
        return {"sparsity": sparsity or setup.sparsity, "block_size": setup.block_size, "damping": setup.damping}

    def free(self) -> None:
        """Gives back the model, inputs of layers and remembered results; it is now as if its numbers came from disk."""
        cautions, self.calibration = self.calibration.cautions, Calibration()
        self.calibration.cautions = cautions
        with self._lock:
            self.loaded, self._layers, self._memory = None, {}, OrderedDict()
        if self.job.status == "done":
            self.kept = self.kept if self.is_restored else self.measurements
            self._make_job()
            self.job.status = "kept"

    def _latest(self, kind: str, key: Any, compute: Callable[[], T]) -> T:
        """As `remember`, for tables that every page draws: anew after each measurement, the latest of each kind."""
        made_of = (self._version, key)  # before it is made: a layer may be measured meanwhile
        entry = self._tables.get(kind)
        if entry is None or entry[0] != made_of:
            entry = self._tables[kind] = (made_of, compute())
        return entry[1]

    def records(self) -> pd.DataFrame:
        """All measurements so far; do not change the table, which others see too."""
        return self._latest("records", None, lambda: records_table(self.measurements.records))

    def overview(self, threshold: float) -> pd.DataFrame:
        """One row per layer so far. Do not change the table: pages share it.

        `error_NAME` is the relative error on calibration inputs, `held_out_NAME` on held-out inputs. NAME is in
        `MEASURED`, or rose: two-level order on layers columnar under this threshold.
        `gain` and `global_gain` are the shares of SparseGPT's error that two-level order and ROSE global save (above 0:
        better). `held_out_gain` and `held_out_global_gain` are the same on held-out inputs, and `forecast_gain` and
        `forecast_global_gain` their forecasts. `live_range` is the relative range without dead columns, NaN where a
        layer has none. `is_undecided`: other text may decide otherwise, by `OrderPlan.interval`. `gain_draw_1`
        and so on: `held_out_gain` in further draws of text, where there are any.
        """
        return self._latest("overview", threshold, lambda: self._overview(threshold))

    def _overview(self, threshold: float) -> pd.DataFrame:
        table = self.records()
        keys = ["layer", "block_index", "projection", "rows", "columns", "relative_range", "dead_columns", "damping"]
        keys += ["column_variation", "tokens", "is_damping_raised", "massive", "range_low", "range_high"]
        keys += ["heads_per_block", "between_heads"]
        wide = table[table["method"] == "sparsegpt"][keys].set_index("layer")
        for name in MEASURED:
            rows = table[table["method"] == name].set_index("layer")
            wide[f"error_{name}"], wide[f"held_out_{name}"] = rows["relative_error"], rows["held_out_error"]
        with self._lock:  # a layer that was finished since `records` has no row; an empty table would take it for one
            wide["condition"] = pd.Series(self._condition, dtype=float).reindex(wide.index)
            forecast = pd.DataFrame.from_dict(self._forecast, orient="index").reindex(wide.index)
        wide = _decided(wide, threshold)
        for kind in ("error", "held_out"):
            wide[f"{kind}_rose"] = wide[f"{kind}_two_level"].where(wide["is_columnar"], wide[f"{kind}_sparsegpt"])
        kinds = {"forecast_": forecast.add_prefix("forecast_"), "": wide, "held_out_": wide}
        for (tokens, errors), kind in zip(kinds.items(), ("forecast", "error", "held_out"), strict=True):
            for name, which in (("two_level", ""), ("rose_global", "global_")):
                if f"{kind}_{name}" in errors:
                    natural = errors[f"{kind}_sparsegpt"]
                    wide[f"{tokens}{which}gain"] = 1 - errors[f"{kind}_{name}"] / natural.where(natural > 0)
        draws = pd.Series({name: self.draws.get(name, {}).get("two_level", []) for name in wide.index}, dtype=object)
        for draw in range(max(map(len, draws), default=0)):
            wide[f"gain_draw_{draw + 1}"] = [shares[draw] if len(shares) > draw else nan for shares in draws]
        dead = [name for name in wide.index[wide["dead_columns"] > 0] if self.has(name)]
        wide["live_range"] = pd.Series({name: self.live_range(name) for name in dead}, dtype=float)
        # Only over-fitting depends on the method: the longest has them all.
        brief = caution_column(table).groupby(table["layer"], sort=False).agg(lambda texts: max(texts, key=len))
        wide["cautions"] = brief
        return wide.reset_index()

    def cautions(self, layer: str | None = None) -> list[str]:
        """Cautions about the calibration text, then about the layers so far, or about one: `rose.verdicts.cautions`."""

        def compute() -> list[str]:
            table = self.records()
            return cautions(table if layer is None else table[table["layer"] == layer])

        return [*self.calibration.cautions, *self._latest("cautions", layer, compute)]

    def most_columnar(self) -> str | None:
        records = self.measurements.records
        return max(records, key=lambda record: record.relative_range).layer if records else None

    def has(self, layer: str) -> bool:
        with self._lock:
            return layer in self._layers

    def _inputs(self, layer: str) -> tuple[PrunableLayer, rose.InputStatistics, rose.InputStatistics | None]:
        """A layer that was measured, and its calibration and held-out inputs. Raises GivenBack after `free`."""
        self.use()
        with self._lock:
            if layer not in self._layers:
                raise GivenBack
            return self._layers[layer]

    def weight(self, layer: str) -> Tensor:
        """W, (out, in), as the model holds it; do not change it. Read from its file where the model streams."""
        prunable = self._inputs(layer)[0]
        if self.loaded is not None and self.loaded.network.is_streamed:
            residence = self.loaded.network.residence
            return self.remember(("weight", layer), lambda: residence.read_weight(prunable))
        return prunable.weight.to(HOME)  # a copy only while its decoder block is on a GPU

    def statistics(self, layer: str) -> rose.InputStatistics:
        return self._inputs(layer)[1]

    def held_out_statistics(self, layer: str) -> rose.InputStatistics | None:
        return self._inputs(layer)[2]

    def added_damping(self, layer: str) -> float:
        """λ, absolute, that this layer was measured with."""
        return self._records[layer][0].damping * float(self.statistics(layer).diagonal.mean())

    def spectrum(self, layer: str) -> Tensor:
        """Eigenvalues of H, descending, (in,); remembered. Cubic in the number of columns."""
        return self.remember(("spectrum", layer), lambda: spectrum(self.statistics(layer).hessian))

    def plan(self, layer: str, threshold: float = THRESHOLD, sparsity: str | None = None) -> rose.OrderPlan:
        base = self.remember(("plan", layer, sparsity), lambda: self._plan(layer, sparsity))
        # A slider over the threshold must not fill the memory with copies of the losses: these share them.
        return self.remember(("plan", layer, sparsity, threshold), lambda: replace(base, threshold=threshold))

    def prices(self, layer: str, order: str | rose.Order = "natural") -> Prices:
        """The prices of this layer's columns in an order; remembered for orders with a name."""
        if not isinstance(order, str):
            return price_columns(self.plan(layer), order)
        return self.remember(("prices", layer, order), lambda: price_columns(self.plan(layer), order))

    def live_range(self, layer: str) -> float:
        """Relative range of this layer without its dead columns; remembered, the plan that it takes is not."""
        if layer not in self._live_ranges:
            self._live_ranges[layer] = live_range(self._plan(layer))
        return self._live_ranges[layer]

    def _plan(self, layer: str, sparsity: str | None = None) -> rose.OrderPlan:
        return rose.plan_order(self.weight(layer), self.statistics(layer), **self.layer_options(sparsity))

    def profile(self, layer: str) -> Profile | None:
        """The layer by its columns; None where nothing was measured, or by a former version."""
        return self._profiles.get(layer)

    def head_width_of(self, layer: str) -> int | None:
        """Columns of an attention head whose outputs are this layer's inputs; None where it is no output projection."""
        return self.head_width if self._records[layer][0].between_heads is not None else None

    @property
    def sizes(self) -> dict[int, float]:
        """Block sizes whose relative ranges are known, in columns: the heads that a block holds."""
        sizes = {size: size / self.head_width if self.head_width else 0.0 for size in block_sizes(self.head_width)}
        of_study = self.setup.block_columns
        return dict(sorted((sizes | {of_study: of_study / self.head_width if self.head_width else 0.0}).items()))

    @property
    def sparsities(self) -> list[str]:
        return sorted({*(f"{sparsity:g}" for sparsity in SPARSITIES), self.setup.sparsity})

    def what_if(self, threshold: float, sparsity: str, size: int) -> pd.DataFrame:
        """`overview` with relative ranges, and what follows from them, at another sparsity and block size."""
        of_study = self.setup.sparsity, self.setup.block_columns
        if (sparsity, size) == of_study:
            return self.overview(threshold)
        return self._latest("what if", (threshold, sparsity, size), lambda: self._what_if(threshold, sparsity, size))

    def _what_if(self, threshold: float, sparsity: str, size: int) -> pd.DataFrame:
        table, sizes = self.overview(threshold), block_sizes(self.head_width)
        if size not in sizes or float(sparsity) not in SPARSITIES:
            return table.assign(relative_range=nan, range_low=nan, range_high=nan)
        place = SPARSITIES.index(float(sparsity)), sizes.index(size)
        profiles = [self._profiles.get(layer) for layer in table["layer"]]
        ranges = [(nan,) * 3 if profile is None else profile.ranges[place].tolist() for profile in profiles]
        columns = pd.DataFrame(ranges, columns=["relative_range", "range_low", "range_high"], index=table.index)
        return _decided(table.assign(**columns), threshold)

    def prune(self, layer: str, *, method: str = "rose", **options: Any) -> rose.LayerResult:
        """Prunes one layer by one sweep or method on this study's statistics; remembered."""
        options |= self.layer_options() | {"method": method}
        key = ("prune", layer, *sorted(options.items()))
        return self.remember(key, lambda: rose.prune_layer(self.weight(layer), self.statistics(layer), **options))

    def knows(self, key: Any, group: Any = None) -> bool:
        """Whether `remember` would compute nothing for this key."""
        with self._lock:
            return key in (self._memory if group is None else self._memory.get(group, ()))

    def remember(self, key: Any, compute: Callable[[], T], group: Any = None) -> T:
        """`compute()`, or what it gave for this key before; results of a group count, and are forgotten, as one."""
        if group is not None:
            results = self.remember(group, dict[Any, T])
            return results[key] if key in results else results.setdefault(key, compute())
        with self._lock:
            if key in self._memory:
                self._memory.move_to_end(key)
                return self._memory[key]
        value = compute()
        with self._lock:
            self._memory[key] = value
            while len(self._memory) > KEPT_RESULTS or (
                len(self._memory) > KEPT_LATEST and held([self._memory]) > KEPT_BYTES
            ):
                self._memory.popitem(last=False)
        return value


def _decided(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    return table.assign(
        is_columnar=table["relative_range"] > threshold,
        is_undecided=table["range_low"].le(threshold) & table["range_high"].ge(threshold),
    )


def error_on(inputs: rose.InputStatistics | None, weight: Tensor, pruned: Tensor) -> float:
    """Relative error on these inputs; NaN where there are none."""
    return nan if inputs is None else relative_error(weight, pruned, inputs.hessian)
