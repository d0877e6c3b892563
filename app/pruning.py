"""Pruning copies of a whole model in the background: several methods and sparsities, one after another.

No Streamlit here. The shared model is only copied, under its lock; one copy lives at a time, and of each nothing
stays but its report, its perplexity, what it wrote, and the checkpoint where one was asked for.
"""

from __future__ import annotations

import contextlib
import copy
import shlex
import shutil
import tempfile
import threading
import time
import weakref
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rose
from app.jobs import Job, acquire
from app.study import LoadedModel, Setup
from rose.layer.methods import get_method
from rose.layer.pattern import parse_sparsity
from rose.model.cost import Cost, estimate_cost, estimate_evaluation, sweeps_of
from rose.model.generation import continue_prompt
from rose.model.loading import check_output

GRACE = 120.0  # seconds that checkpoints outlive a lost connection; longer than an unwatched job runs on
HELD_OUT = "held out"  # the calibration's own held-out windows, in place of the name of a text
Keep = Literal["nothing", "zip", "folder"]


@dataclass(frozen=True)
class Request:
    """What is to be pruned, and what each pruned model is asked.

    Attributes:
        methods, sparsities: every pair of them is run.
        layers: names separated by spaces, `*` allowed.
        threshold: of columnar layers.
        evaluate: text for perplexity, as for `rose.load_tokens`, or `HELD_OUT`.
        windows, window_length: of that text.
        prompt, new_tokens: to be continued; an empty prompt leaves this out.
        keep: checkpoints as "zip" in a temporary folder, in `folder` on this machine, or "nothing".
        folder: path; each checkpoint is a folder in it.
    """

    methods: tuple[str, ...]
    sparsities: tuple[str, ...]
    layers: str = "*"
    threshold: float = 0.5
    evaluate: str = HELD_OUT
    windows: int = 4
    window_length: int = 512
    prompt: str = ""
    new_tokens: int = 30
    keep: Keep = "nothing"
    folder: str = ""

    @property
    def layer_patterns(self) -> list[str] | None:
        return None if self.layers.strip() in ("", "*") else self.layers.split()

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(method, sparsity) in the order in which they are run: all methods at one sparsity, then the next."""
        return [(method, sparsity) for sparsity in self.sparsities for method in self.methods]

    def target(self, method: str, sparsity: str) -> Path:
        """Folder of one checkpoint."""
        return Path(self.folder).expanduser() / run_name(method, sparsity)

    def check(self, setup: Setup) -> None:
        """Raises RoseError for what no run could do, before any work."""
        if not self.methods or not self.sparsities:
            raise rose.RoseError("Choose at least one method and one sparsity.")
        for method in self.methods:
            get_method(method)
        for sparsity in self.sparsities:
            parse_sparsity(sparsity)
        if self.windows < 1 or self.window_length < 2:
            raise rose.RoseError("Perplexity needs at least 1 window of at least 2 tokens.")
        if self.evaluate == HELD_OUT:
            there = setup.held_out * (setup.length // self.window_length)
            if there < self.windows:
                raise rose.RoseError(
                    f"This set-up holds out {setup.held_out} × {setup.length} tokens, which gives {there} windows of "
                    f"{self.window_length}; ask for fewer or shorter ones, or choose another text."
                )
        if self.keep == "folder":
            if not self.folder.strip():
                raise rose.RoseError("Give the path of a folder for the checkpoints.")
            for pair in self.pairs:
                target = self.target(*pair)
                if target.exists():
                    raise rose.RoseError(f"{target} already exists; choose another folder for the checkpoints.")


def run_name(method: str, sparsity: str) -> str:
    """For files and folders: "rose-0.7", "sparsegpt-2-4"."""
    return f"{method}-{sparsity.replace(':', '-').replace('%', 'pct')}"


@dataclass(frozen=True)
class Outcome:
    """What became of one copy, or of the dense model, whose report is None.

    Attributes:
        method, sparsity: as asked; "dense" and "0".
        perplexity: on the chosen windows.
        text: the continuation of the prompt, empty without one.
        report: of the pruning, with perplexities in its summary.
        checkpoint: .zip file or folder, where one was kept.
    """

    method: str
    sparsity: str
    perplexity: float
    text: str
    report: rose.RunReport | None = None
    checkpoint: Path | None = None

    @property
    def label(self) -> str:
        return "Dense" if self.report is None else f"{rose.METHODS[self.method].label}, {self.sparsity}"


class PruningRun:
    """One run over all pairs of a request, growing while its job runs.

    Attributes:
        setup, request: what was asked.
        job: the background work.
        dense: the model before pruning, None until measured.
        outcomes: one per finished pair.
        doing: the step at work, in words.
        fraction: share of the estimated work done, 0 to 1.
        pruned: layers of the copy at work that are done: layer, projection, relative_error, seconds.
        layers: how many it has in all.
    """

    def __init__(self, setup: Setup, request: Request, load: Callable[[], LoadedModel]) -> None:
        self.setup, self.request = setup, request
        self.dense: Outcome | None = None
        self.outcomes: list[Outcome] = []
        self.doing = "Loading the model"
        self.fraction = 0.0
        self.pruned: list[dict[str, Any]] = []
        self.layers = 0
        self._load = load
        self._done = self._total = 0.0  # estimated seconds of finished steps, and of all
        self._began = time.monotonic()
        self._folder: Path | None = None
        self._new_folder: Path | None = None  # where there was none before
        self._farewell: threading.Timer | None = None
        self.job = Job(self._run)

    @property
    def seconds(self) -> float:
        """Since the run was made."""
        return time.monotonic() - self._began

    @property
    def remaining(self) -> float | None:
        """Estimated seconds left; None while there is nothing to go by."""
        return self.seconds * (1 - self.fraction) / self.fraction if self.fraction > 0.01 else None

    def table(self) -> pd.DataFrame:
        """One row per finished model, the dense one first: perplexity, its ratio to dense, mean errors, seconds."""
        models = ([self.dense] if self.dense else []) + self.outcomes
        rows = []
        for outcome in models:
            summary = {} if outcome.report is None else outcome.report.summary
            rows.append(
                {
                    "method": outcome.method,
                    "sparsity": outcome.sparsity,
                    "perplexity": outcome.perplexity,
                    "ratio_to_dense": outcome.perplexity / models[0].perplexity,
                    "mean_relative_error": summary.get("mean_relative_error"),
                    "mean_held_out_error": summary.get("mean_held_out_error"),
                    "removed_fraction": summary.get("removed_fraction", 0.0),
                    "columnar_layers": summary.get("columnar_layers"),
                    "seconds": summary.get("seconds", 0.0),
                }
            )
        return pd.DataFrame(rows)

    def layer_table(self) -> pd.DataFrame:
        """The finished runs' layers, one under the other; `sparsity` is realised, `asked` as it was asked for."""
        tables = [outcome.report.layers.assign(asked=outcome.sparsity) for outcome in self.outcomes if outcome.report]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def _run(self, job: Job) -> None:
        try:
            self._work(job)
        except BaseException:
            self.discard()  # checkpoints of a run that was stopped would be looked for by nobody
            raise

    def _work(self, job: Job) -> None:
        setup, request = self.setup, self.request
        if request.keep == "folder":
            base = request.target(*request.pairs[0]).parent
            self._new_folder = None if base.exists() else base
            check_output(request.target(*request.pairs[0]))  # not after an hour of pruning
        loaded = self._load()
        job.check()
        tokens, held_out = setup.draw(loaded.tokenizer)
        windows = self._windows(loaded.tokenizer, held_out)
        costs = [estimate_pair(loaded.model, setup, request, method).seconds for method, _ in request.pairs]
        evaluation = _evaluation_seconds(loaded.model, request)
        self._total = sum(costs) + evaluation * (len(costs) + 1)
        model = self._copy(loaded, job)
        self.dense = self._judge(model, loaded.tokenizer, windows, "dense", "0", None, evaluation, job)
        for number, ((method, sparsity), cost) in enumerate(zip(request.pairs, costs, strict=True)):
            if number:
                model = self._copy(loaded, job)
            self._say(f"Pruning by {get_method(method).label}, sparsity {sparsity}")
            report = rose.prune_model(
                model,
                tokens,
                method=method,
                sparsity=sparsity,
                layers=request.layer_patterns,
                block_size=setup.block_size,
                damping=setup.damping,
                threshold=request.threshold,
                held_out=held_out,
                progress=self._follower(job, cost),
            )
            self._done += cost
            outcome = self._judge(model, loaded.tokenizer, windows, method, sparsity, report, evaluation, job)
            self.outcomes.append(outcome)
            del model  # before the next copy is made
        self.fraction = 1.0

    def _copy(self, loaded: LoadedModel, job: Job) -> PreTrainedModel:
        acquire(loaded.lock, job)
        try:
            return copy.deepcopy(loaded.model)  # type: ignore[return-value]
        finally:
            loaded.lock.release()

    def _windows(self, tokenizer: PreTrainedTokenizerBase, held_out: Tensor | None) -> Tensor:
        request = self.request
        if request.evaluate != HELD_OUT:
            return rose.load_tokens(
                request.evaluate,
                tokenizer,
                samples=request.windows,
                length=request.window_length,
                seed=None,
                split="test",
            )
        assert held_out is not None  # as checked
        return held_out_windows(held_out, request.windows, request.window_length)

    def _say(self, doing: str) -> None:
        self.doing = doing

    def _share(self, job: Job, cost: float) -> Callable[[float], None]:
        """For a step of so many estimated seconds: takes its share done, moves the whole."""

        def tell(share: float) -> None:
            self.fraction = min(0.999, (self._done + cost * share) / self._total) if self._total else 0.0
            job.check()

        return tell

    def _follower(self, job: Job, cost: float) -> Callable[[rose.Progress], None]:
        share = self._share(job, cost)
        self.pruned = []
        last = time.monotonic()

        def tell(progress: rose.Progress) -> None:
            nonlocal last
            self.layers = progress.layers
            now = time.monotonic()
            if progress.layer is not None:
                self.pruned.append(
                    {
                        "layer": progress.layer,
                        "projection": progress.layer.rpartition(".")[2],
                        "relative_error": progress.relative_error,
                        "seconds": now - last,
                    }
                )
            last = now
            share(progress.fraction)

        return tell

    def _judge(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        windows: Tensor,
        method: str,
        sparsity: str,
        report: rose.RunReport | None,
        cost: float,
        job: Job,
    ) -> Outcome:
        """Perplexity, continuation and checkpoint of one model."""
        request = self.request
        whose = "the dense model" if report is None else f"{get_method(method).label}, sparsity {sparsity}"
        self._say(f"Perplexity of {whose}")
        share = self._share(job, cost)
        perplexity = rose.perplexity(model, windows, progress=share)
        text = ""
        if request.prompt.strip():
            self._say(f"Prompt continued by {whose}")
            text = continue_prompt(
                model, tokenizer, request.prompt, new_tokens=request.new_tokens, tick=lambda: share(1.0)
            )
        self._done += cost
        if report is None:
            return Outcome(method, sparsity, perplexity, text)
        assert self.dense is not None
        report = report.with_summary(
            model=self.setup.model,
            dtype=self.setup.dtype,
            calibration=self.setup.text,
            seed=self.setup.seed,
            evaluated_on=request.evaluate,
            windows=request.windows,
            window_length=request.window_length,
            perplexity_before=self.dense.perplexity,
            perplexity_after=perplexity,
        )
        checkpoint = self._save(model, tokenizer, method, sparsity, report, job)
        return Outcome(method, sparsity, perplexity, text, report, checkpoint)

    def _save(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        method: str,
        sparsity: str,
        report: rose.RunReport,
        job: Job,
    ) -> Path | None:
        if self.request.keep == "nothing":
            return None
        self._say(f"Writing the checkpoint of {get_method(method).label}, sparsity {sparsity}")
        job.check()
        if self.request.keep == "folder":
            target = self.request.target(method, sparsity)
            check_output(target)
            rose.save_model(model, tokenizer, target, report=report)
            return target
        folder = self._temporary() / run_name(method, sparsity)
        rose.save_model(model, tokenizer, folder, report=report)
        archive = folder.with_name(folder.name + ".zip")
        try:
            _pack(folder, archive, job)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return archive

    def _temporary(self) -> Path:
        """Made on first use; goes with this object, at the latest when the program ends."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="rose-pruned-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def let_go(self, after: float = GRACE) -> None:
        """The viewer has gone: deletes the temporary checkpoints in a while, unless `hold` is called before."""
        self.hold()
        self._farewell = threading.Timer(after, self._expire, (after,))
        self._farewell.daemon = True
        self._farewell.start()

    def hold(self) -> None:
        """The viewer is (still, or again) there."""
        if self._farewell is not None:
            self._farewell.cancel()

    def _expire(self, after: float) -> None:
        if self.job.status == "running":
            self.let_go(after)  # nobody watches it, so it will soon stop
        else:
            self.discard()

    def discard(self) -> None:
        """Deletes the temporary checkpoints; those in a folder that the user chose stay, each of them whole."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._new_folder is not None:
            with contextlib.suppress(OSError):  # not empty: it holds a finished checkpoint
                self._new_folder.rmdir()


def _pack(folder: Path, archive: Path, job: Job) -> None:
    """Stored, not compressed: weights hardly shrink, and it would take minutes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for file in sorted(folder.iterdir()):
            job.check()
            packed.write(file, f"{folder.name}/{file.name}")


def held_out_windows(held_out: Tensor, windows: int, length: int) -> Tensor:
    """Cuts held-out samples, (samples, tokens), into windows, (windows, length); none spans two samples."""
    per_sample = held_out.shape[1] // length
    return held_out[:, : per_sample * length].reshape(-1, length)[:windows]


# What a run will take


def estimate_pair(model: nn.Module, setup: Setup, request: Request, method: str) -> Cost:
    """Pruning one copy; `model` may be a skeleton."""
    return estimate_cost(
        model,
        samples=setup.samples + setup.held_out,
        length=setup.length,
        layers=request.layer_patterns,
        sweeps=sweeps_of([method]),
        passes=2,
    )


def _evaluation_seconds(model: nn.Module, request: Request) -> float:
    new_tokens = request.new_tokens if request.prompt.strip() else 0
    return estimate_evaluation(model, tokens=request.windows * request.window_length, new_tokens=new_tokens)


def estimate(model: nn.Module, setup: Setup, request: Request) -> Cost:
    """The whole run: every pair pruned and evaluated, and the dense model evaluated."""
    costs = [estimate_pair(model, setup, request, method) for method, _ in request.pairs]
    seconds = sum(cost.seconds for cost in costs) + (len(costs) + 1) * _evaluation_seconds(model, request)
    return Cost(seconds, max(cost.memory for cost in costs), costs[0].model_memory, costs[0].layers)


# The same from a terminal and from Python


def command_lines(setup: Setup, request: Request) -> str:
    """Commands that prune and evaluate as this request does, one per pair."""
    lines = []
    for method, sparsity in request.pairs:
        output = str(request.target(method, sparsity)) if request.keep == "folder" else run_name(method, sparsity)
        options = {
            "--model": setup.model,
            "--dtype": setup.dtype,
            "--calibration": setup.text,
            "--samples": setup.samples,
            "--length": setup.length,
            "--seed": setup.seed,
            "--held-out": setup.held_out,
            "--method": method,
            "--sparsity": sparsity,
            "--block-size": setup.block_size,
            "--damping": setup.damping,
            "--threshold": request.threshold,
        }
        same_length = request.evaluate != HELD_OUT and request.window_length == setup.length
        if same_length:
            options |= {"--evaluate": request.evaluate, "--windows": request.windows}
        options["--output"] = output
        words = [
            f"{name} {shlex.quote(f'{value:g}' if isinstance(value, float) else str(value))}"
            for name, value in options.items()
        ]
        if request.layer_patterns:
            words.append("--layers " + " ".join(shlex.quote(name) for name in request.layer_patterns))
        lines.append("python -m rose prune " + " ".join(words))
        if request.evaluate != HELD_OUT and not same_length:
            lines.append(
                f"python -m rose evaluate --model {shlex.quote(output)} --text {shlex.quote(request.evaluate)} "
                f"--length {request.window_length} --windows {request.windows}"
            )
    return "\n".join(lines)


def python_code(setup: Setup, request: Request) -> str:
    """A script that does what this request does."""
    if request.evaluate == HELD_OUT:
        windows = (
            f"per_sample = held_out.shape[1] // {request.window_length}\n"
            f"windows = held_out[:, : per_sample * {request.window_length}]"
            f".reshape(-1, {request.window_length})[:{request.windows}]\n"
        )
    else:
        windows = (
            f"windows = rose.load_tokens({request.evaluate!r}, tokenizer, samples={request.windows}, "
            f'length={request.window_length}, seed=None, split="test")\n'
        )
    output = Path(request.folder).expanduser() if request.keep == "folder" else None
    folder = 'f"{method}-{sparsity}"' if output is None else f'f"{output}/{{method}}-{{sparsity}}"'
    folder += '.replace(":", "-")'
    return (
        "import copy\n\nimport rose\n\n"
        f"dense, tokenizer = rose.load_model({setup.model!r}, dtype={setup.dtype!r})\n"
        f"drawn = rose.load_tokens({setup.text!r}, tokenizer, samples={setup.samples + setup.held_out}, "
        f"length={setup.length}, seed={setup.seed})\n"
        f"tokens, held_out = drawn[:{setup.samples}], "
        + (f"drawn[{setup.samples}:]\n" if setup.held_out else "None\n")
        + windows
        + 'print("dense", rose.perplexity(dense, windows))\n'
        f"for sparsity in {list(request.sparsities)}:\n"
        f"    for method in {list(request.methods)}:\n"
        "        model = copy.deepcopy(dense)\n"
        "        report = rose.prune_model(\n"
        "            model, tokens, held_out=held_out, method=method, sparsity=sparsity, "
        f"layers={request.layer_patterns},\n"
        f"            block_size={setup.block_size}, damping={setup.damping}, threshold={request.threshold},\n"
        "        )\n"
        "        print(method, sparsity, rose.perplexity(model, windows), report.summary)\n"
        f"        rose.save_model(model, tokenizer, {folder}, report=report)\n"
    )
