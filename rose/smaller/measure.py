"""Smaller copies made and measured, the most promising first; a folder keeps rows, and copies that are recommended."""

import copy
import inspect
import json
import math
import shutil
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from rose.errors import RoseError
from rose.interrupt import stop_point
from rose.model.estimate import estimate_evaluation
from rose.model.load.models import load_model, save_model, stored_bytes
from rose.model.load.tokens import load_apart, load_tokens, tuning_draw
from rose.model.measure.folder import MeasurementFolder
from rose.model.measure.perplexity import perplexity_of, plain_english, window_losses
from rose.model.network.layers import text_config
from rose.model.network.network import Network
from rose.model.run.prune import prune_model
from rose.model.settings import PruneSettings
from rose.model.ship.export import export_gguf
from rose.model.tune.tuning import tune_model
from rose.output import check_room, temporary_folder
from rose.recipe.file import Recipe
from rose.recipe.steps import Slim, Smaller
from rose.report import RunReport
from rose.rows import csv_text, records_table
from rose.smaller.table import MEASURED, TABLE, Row
from rose.smaller.ways import AS_IS, Way, corrected, estimated_rows, file_sizes, says_left_out, ways_of
from rose.spec import Spec
from rose.structured.settings import SlimSettings
from rose.structured.slimming import prune_structured
from rose.verdicts import Interval, paired_ratio
from rose.verdicts.smaller import MUCH_WORSE, recommend

Follow = Callable[[float, str], Any]  # told the share that is done, and what is being done; may raise to stop
PROMPT, NEW_TOKENS = 128, 16
SHORTEST = 0.01  # minutes
FIRST = (AS_IS, "bits-8", "bits-4")  # measured whatever the minutes: every recommendation compares with them
TURNS = (5, 15)  # of each model, fewest and most
TIMING = 8.0  # seconds for turns
SUMMARY = "summary.json"


@dataclass
class Begun:
    """A copy after its first step, on disk for other ways that begin with this step."""

    step: Spec
    seconds: float
    place: Path


class Bench:
    """Makes and measures copies of a model, which it never changes. `ways` are what can be made of it, `rows` a row for
    each, estimates until they are measured; `folder` holds the copies of recommended rows, each named by its key."""

    def __init__(self, spec: Smaller, model: Any, tokenizer: Any, folder: Path) -> None:
        """Raises RoseError for texts that are too short or windows that are too long for the model."""
        self.spec, self.model, self.tokenizer, self.folder = spec, model, tokenizer, folder
        Network(model).check_length(spec.length)
        self.tokens, held_out = spec.draw(tokenizer)
        assert held_out is not None
        if spec.second is None:
            second = plain_english(model, tokenizer)
        else:
            sizes: dict[str, Any] = {"samples": spec.held_out, "length": spec.length, "bos": spec.bos}
            second = load_tokens(spec.second, tokenizer, seed=None, split="test", **sizes)
        self.texts = {"": held_out, "second": second}
        self.dense_sizes = file_sizes(model, tokenizer, spec.model, Path(spec.model).name)
        self.ways, self.left_out = ways_of(spec, model)  # and sentences on ways that cannot be made
        dense, *copies = estimated_rows(spec, model, self.ways, self.dense_sizes)
        self.estimates = [replace(dense, stored=stored_bytes(spec.model)), *copies]
        self.rows, self.measured = self.estimates, dict[str, Row]()
        self.begun: Begun | None = None
        self._temporary = ExitStack()
        weakref.finalize(self, self._temporary.close)
        # Seconds to measure a copy: first estimated, then the last copy's.
        self.judging = 2 * estimate_evaluation(model, tokens=spec.held_out * spec.length)

    def know(self, rows: Sequence[Row]) -> None:
        """Puts rows that were measured in place of their estimates, and corrects the estimates that are left."""
        self.measured |= {row.key: row for row in rows}
        self.rows = corrected(self.estimates, self.measured, self.spec.tune)

    def way(self, key: str) -> Way:
        """Raises RoseError for a key that no way of this model has."""
        way = next((way for way in self.ways if way.key == key), None)
        if way is None:
            raise RoseError(f"There is no row {key!r}; choose one of {', '.join(way.key for way in self.ways)}.")
        return way

    def measured_rows(self, seconds: float, follow: Callable[[str, float, str], Any]) -> Iterator[Row]:
        """Measures the most promising ways that fit into the time, as `measure`; `follow` also gets a way's name."""
        end = time.monotonic() + seconds
        while way := self.best_next(end - time.monotonic()):
            try:
                left = math.inf if way.key in FIRST else end - time.monotonic()
                yield self.measure(way, partial(follow, way.name), left)
            except (RoseError, TimeoutError) as problem:
                self.left_out.append(says_left_out([way], problem))
                if isinstance(problem, TimeoutError):  # its estimate stays
                    return
                self.ways = [other for other in self.ways if other.key != way.key]
                self.estimates = [row for row in self.estimates if row.key != way.key]
                self.know([])

    def best_next(self, seconds: float) -> Way | None:
        """The next of `FIRST`, whatever the time, or the most promising way that fits into it; None if none does."""
        open_rows = {row.key: row for row in self.rows if not row.is_measured}
        for key in FIRST:
            if key in open_rows:
                return self.way(key)
        for row in sorted(open_rows.values(), key=self._promise, reverse=True):
            way = self.way(row.key)
            if 60 * row.minutes - self._spared(way) + self.judging <= seconds:
                return way
        return None

    def _spared(self, way: Way) -> float:
        """Seconds that the copy on disk spares this way."""
        return self.begun.seconds if self.begun and self.begun.step in way.steps[:1] else 0.0

    def _promise(self, row: Row) -> float:
        """The saving of a row over its loss, both as logarithms; below 0 if it loses too much."""
        times = row.times or math.inf
        saved = math.log(self.rows[0].bytes / row.bytes) + math.log(row.prefill_gain or 1.0)
        return saved / (0.02 + math.log(times)) if times < MUCH_WORSE else -times

    def measure(self, way: Way, follow: Follow, seconds: float = math.inf) -> Row:
        """Makes the copy, measures it beside the dense model, and keeps it where it is recommended now. Raises
        RoseError where it cannot be made, TimeoutError where not in `seconds`, and whatever `follow` raises."""
        start, spared = time.perf_counter(), self._spared(way)

        def follow_in_time(share: float, doing: str) -> None:
            if time.perf_counter() - start > seconds:
                raise TimeoutError("Its copy was not made in the minutes that were left.")
            follow(share, doing)

        model, report = self.make(way, follow_in_time) if way.steps else (self.model, None)
        finished = time.perf_counter()
        sizes: Any = file_sizes(model, self.tokenizer, self.spec.model, way.key) if way.steps else self.dense_sizes
        minutes = (finished - start + spared) / 60
        row = replace(self.row(way.key), basis=MEASURED, minutes=minutes, prefill_gain=None, **sizes)
        row = replace(row, **self._quality(model, follow), **self._speed(model, way, follow))
        self.know([row])
        self.judging = time.perf_counter() - finished
        if report is None:
            self.know([replace(row, **_llama_speed(self.spec.model, row))])
        else:
            self._keep(way, model, report)
        return self.row(way.key)

    def make(self, way: Way, follow: Follow) -> tuple[Any, RunReport]:
        """A copy of the model made by the steps of the way, with the record of the last one."""
        _, *rest = steps = way.steps
        model, report = self._begin(way, lambda share, doing: follow(share / len(steps), doing))
        for number, step in enumerate(rest, 1):
            before = report

            def follow_part(share: float, doing: str, number: int = number) -> None:
                follow((number + share) / len(steps), doing)

            report = self._do(step, model, follow_part)
            if before.kind == "slim" and report.kind == "prune":
                report = replace(before, then=report)
        return model, report

    def _begin(self, way: Way, follow: Follow) -> tuple[Any, RunReport]:
        """The copy after the first step of the way; from disk, where the last copy began with this step, too."""
        step, start = way.steps[0], time.perf_counter()
        if self.begun and self.begun.step == step:
            dtype = next(self.model.parameters()).dtype
            return load_model(self.begun.place, dtype=dtype)[0], RunReport.load(self.begun.place)
        model = copy.deepcopy(self.model)
        report = self._do(step, model, follow)
        remaining = [each for each in self.ways if each != way and not self.row(each.key).is_measured]
        if any(step in each.steps[:1] for each in remaining):
            self.begun = None
            self._temporary.close()
            with suppress(RoseError, OSError):  # without room for it, the next copy begins anew
                self.folder.mkdir(parents=True, exist_ok=True)
                check_room(self.folder, 2 * sum(parameter.nbytes for parameter in model.parameters()))
                place = self._temporary.enter_context(temporary_folder(self.folder)) / "model"
                save_model(model, self.tokenizer, place, report=report)
                self.begun = Begun(step, time.perf_counter() - start, place)
        return model, report

    def _do(self, step: Spec, model: Any, follow: Follow) -> RunReport:
        tune = getattr(step, "tune", None)
        most = 0.5 if tune else 1.0  # of the bar
        settings = SlimSettings if isinstance(step, Slim) else PruneSettings
        options = step.pick(settings.fields())
        doing, work = ("Slimming", prune_structured) if isinstance(step, Slim) else ("Pruning", prune_model)
        report: RunReport = work(
            model, self.tokens, progress=lambda progress: follow(most * progress.fraction, doing), **options
        )
        if tune:
            draw = tuning_draw(self.spec.length)._asdict()
            text: dict[str, Any] = {"seed": self.spec.seed, "bos": self.spec.bos, "apart_from": self.texts[""]}
            tokens, held_out = load_apart(self.spec.calibration, self.tokenizer, **draw, **text)
            tuned = tune_model(
                model, self.model, tokens, held_out=held_out, minutes=self.spec.tune, seed=self.spec.seed,
                progress=lambda progress: follow(0.5 + 0.5 * progress.fraction, "Tuning"),
            )  # fmt: skip
            report = tuned.added_to(report)
        return report.signed(step)

    def _quality(self, model: Any, follow: Follow) -> dict[str, Any]:
        """Perplexity on both texts, with paired intervals."""
        facts: dict[str, Any] = {}
        for text, windows in self.texts.items():
            losses = window_losses(model, windows, progress=lambda share: follow(share, "Measuring perplexity"))
            prefix = f"{text}_" if text else ""
            facts[f"{prefix}perplexity"] = perplexity_of(losses)
            facts[f"{prefix}losses"] = " ".join(f"{loss:.9g}" for loss in losses)
            dense = losses if model is self.model else torch.tensor(self.rows[0].result(text).losses)
            ratio = Interval(1.0, 1.0, 1.0) if dense is losses else paired_ratio(losses.tolist(), dense.tolist())
            names = ("second_times", "second_low", "second_high") if text else ("times", "times_low", "times_high")
            facts |= dict(zip(names, (ratio.value, ratio.low, ratio.high), strict=True))
        return facts

    def _speed(self, model: Any, way: Way, follow: Follow) -> dict[str, Any]:
        """Tokens a second in torch; a copy of other shapes is timed in turns with the dense model."""
        facts: dict[str, Any] = {"environment": Network(model).environment()}
        follow(0.0, "Measuring speed")
        if way.steps and not way.slim:
            return facts | {"prefill": self.rows[0].prefill, "decoding": self.rows[0].decoding}
        dense, other = in_turns(self.model, None if model is self.model else model)
        for at, name, tokens in ((0, "prefill", PROMPT), (1, "decoding", NEW_TOKENS)):
            logs = [[math.log(turn[at]) for turn in each] for each in (dense, other)]
            facts[name] = tokens / math.exp(math.fsum(logs[1] or logs[0]) / len(logs[1] or logs[0]))
            if other:
                gain = paired_ratio(logs[0], logs[1])
                facts |= {f"{name}_gain": gain.value, f"{name}_low": gain.low, f"{name}_high": gain.high}
        return facts

    def _keep(self, way: Way, model: Any, report: RunReport) -> None:
        """Saves the copy where it is recommended now, with its recipe; removes those that no longer are."""
        keys = {recommendation.key for recommendation in recommend(self.rows)}
        if way.key in keys:
            self.save(way, model, report)
        for other in self.ways:
            if other.key not in keys:
                shutil.rmtree(self.folder / other.key, ignore_errors=True)
        if (self.folder / way.key).exists():
            self.know([replace(self.row(way.key), **_llama_speed(str(self.folder / way.key), self.row(way.key)))])

    def row(self, key: str) -> Row:
        return next(row for row in self.rows if row.key == key)

    def save(self, way: Way, model: Any, report: RunReport) -> Path:
        """Writes a copy with its record and its recipe into the folder."""
        place = self.folder / way.key
        if not place.exists():
            check_room(place, sum(parameter.nbytes for parameter in model.parameters()))
            save_model(model, self.tokenizer, place, report=report)
            # Which measures no other row than the model as it is.
            Recipe(self.spec.changed(write=way.key, minutes=SHORTEST)).write(place)
        return place


class SmallerFolder(MeasurementFolder[Row]):
    """Measured rows; table.csv has the estimates of all others too, and summary.json what is recommended."""

    kind, key = Row, ("key",)
    holds = ("table of smaller copies", "a row of smaller copies")
    summaries = (TABLE, SUMMARY)
    bench: Bench | None = None  # which has the estimates

    def summarize(self, settings: dict[str, Any]) -> dict[str, str]:
        measured = {row.key: row for row in self.rows}  # also by other processes
        table = [measured.get(row.key, row) for row in self.bench.rows] if self.bench else self.rows
        recommendations = [asdict(recommendation) for recommendation in recommend(table)]
        return {
            TABLE: csv_text(records_table(table, Row)),
            SUMMARY: json.dumps({"settings": settings, "recommendations": recommendations}, indent=1),
        }


@torch.no_grad()
def in_turns(dense: Any, other: Any | None) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Seconds to read a prompt and to write tokens after it, in turns; each model is first in every second turn."""
    ids = torch.randint(3, text_config(dense).vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    ids = ids.to(next(dense.parameters()).device)
    models = [model for model in (dense, other) if model is not None]
    warm = [_timed(model, ids) for model in models]  # the first passes are slow
    turns = min(TURNS[1], max(TURNS[0], round(TIMING / max(1e-3, sum(map(sum, warm))))))
    seconds: list[list[tuple[float, float]]] = [[] for _ in models]
    for turn in range(turns):
        for at in range(len(models)) if turn % 2 else reversed(range(len(models))):
            stop_point()
            seconds[at].append(_timed(models[at], ids))
    return seconds[0], seconds[1] if other is not None else []


def _timed(model: Any, ids: Tensor) -> tuple[float, float]:
    parameters = inspect.signature(model.forward).parameters
    names = [name for name in ("cache", "past_key_values") if name in parameters]  # none in OpenAI GPT
    options: dict[str, Any] = {"logits_to_keep": 1} | {name: DynamicCache(config=model.config) for name in names[:1]}
    start = time.perf_counter()
    output = model(input_ids=ids, **options)
    middle = time.perf_counter()
    for _ in range(NEW_TOKENS):
        token = output.logits[:, -1:].argmax(-1)
        ids = token if names else torch.cat([ids, token], 1)
        output = model(input_ids=ids, **options)
    return middle - start, time.perf_counter() - middle


def _llama_speed(name: str, row: Row) -> dict[str, Any]:
    """Tokens a second in llama.cpp, of the smallest GGUF file that holds the layers exactly; {} where its program
    that measures speed is not installed, or fails. `name`: of the checkpoint."""
    kinds = [kind for kind in ("q4_0", "q8_0", "f16") if kind in row.exact]
    program = shutil.which("llama-bench")
    if not kinds or program is None:
        return {}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.gguf"
        export_gguf(name, file, kinds[0])
        sizes = {"-p": PROMPT, "-n": NEW_TOKENS, "-t": torch.get_num_threads()}  # threads as in torch
        options = [str(part) for pair in sizes.items() for part in pair]
        command = [program, "-m", str(file), *options, "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True)
    try:
        rates = {bool(run["n_gen"]): float(run["avg_ts"]) for run in json.loads(done.stdout)}
        return {"llama_prefill": rates[False], "llama_decoding": rates[True]}
    except (ValueError, KeyError, TypeError):
        return {}
