"""Copies of a whole model pruned in the background, one after another. No Streamlit here.

The shared model is only copied, under its lock, and one copy exists at a time.
"""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

import rose
from app.jobs import Job
from app.runs.copies import NEW_TOKENS, CopyRun, Step, as_before, case_name, dense_record, worth_keeping
from app.runs.kept_copies import RESERVE
from app.study.setup import CHOSEN, Setup, check_memory, weights_size
from app.study.study import LoadedModel
from rose.files import expand, reachable
from rose.layer.pattern import Grid
from rose.layer.settings import describe_grid
from rose.model.defaults import HELD_OUT, STUDY
from rose.model.estimate import Cost, estimate_evaluation, estimate_memory, pruning_cost
from rose.model.load.models import parse_dtype
from rose.model.load.tokens import load_apart
from rose.model.measure.zero_shot import MISSING, check_task_folder, is_installed, zero_shot
from rose.model.network.network import Network
from rose.model.settings import PruneSettings
from rose.output import check_output, check_room
from rose.recipe.steps import Prune
from rose.report import name_of_run

QUESTION_TOKENS = 250  # with all its answers: between winogrande's 60 and hellaswag's 400
PROMPT = "Python is a programming language that"
WINDOWS = 8  # four often leave copies undecided that eight tell apart
# Which checkpoints are kept: "best" of each sparsity and "all" are temporary files; "folder" keeps them.
Keep = Literal["best", "all", "folder", "none"]


def label_of(case: Prune) -> str:
    """For people: "ROSE at 0.7", "ROSE at 0.7, 4 bits", "ROSE at 0.7, target layer"; dense is the usual target."""
    return name_of_run(case.method, case.sparsity + (f", {case.grid.brief}" if case.grid else ""), case.target)


@dataclass(frozen=True)
class PruneRequest:
    """Copies to prune, one for each method, sparsity, target and grid, and how each is evaluated."""

    methods: tuple[str, ...]
    sparsities: tuple[str, ...]
    targets: tuple[str, ...] = ("dense",)
    grids: tuple[Grid | None, ...] = (None,)  # of kept weights; None leaves them as they are
    shared: PruneSettings = field(default_factory=PruneSettings)  # every copy has these settings
    evaluate: str = HELD_OUT  # or a text as for `rose.load_tokens`
    windows: int = WINDOWS
    window_length: int = STUDY.length
    prompt: str = ""  # "" for none
    new_tokens: int = NEW_TOKENS
    keep: Keep = "none"
    folder: str = ""  # each checkpoint is a folder in it
    tasks: tuple[str, ...] = ()  # zero-shot
    task_folder: str = ""  # of further tasks; "" for lm-eval's
    questions: int = 100  # of each task, the first ones

    def __post_init__(self) -> None:
        spelled = dict.fromkeys(Setup.edited(sparsity=sparsity).sparsity for sparsity in self.sparsities)
        object.__setattr__(self, "sparsities", tuple(spelled))

    @property
    def count(self) -> int:
        """Number of copies."""
        return len(self.sparsities) * len(self.grids) * len(self.methods) * len(self.targets)

    def cases(self, setup: Setup) -> list[Prune]:
        """The recipe of every copy: all methods at one sparsity, then the next. Raises RoseError for impossible values.

        Perplexity is in it only where the command measures the same: on a text, in windows as long as those that
        calibrate.
        """
        shared = setup.pick(CHOSEN) | self.shared.pick(self.shared.model_fields_set) | self.shared.pick(("layers",))
        if self.evaluate != HELD_OUT and self.window_length == setup.length and not setup.stream:
            shared |= {"evaluate": self.evaluate, "windows": self.windows}
        folder, cases = expand(self.folder) if self.keep == "folder" else Path(), []
        for sparsity, grid, method, target in product(self.sparsities, self.grids, self.methods, self.targets):
            settings = {"method": method, "sparsity": sparsity, **self.shared.towards(target), **describe_grid(grid)}
            output = folder / case_name(method, sparsity, target, grid)
            cases.append(Prune.of(**{**shared, **settings, "output": output}))
        return cases

    def evaluated(
        self, tokenizer: PreTrainedTokenizerBase, setup: Setup, drawn: tuple[Tensor, Tensor | None]
    ) -> Tensor:
        """The windows that perplexity is measured on; `drawn`: the set-up's windows, from its `draw`. Held-out windows
        come from the set-up. If these are too few or of another length, unused windows of the text replace them.

        Raises RoseError where the text is too short.
        """
        sizes: dict[str, Any] = {"samples": self.windows, "length": self.window_length}
        if self.evaluate != HELD_OUT:
            return rose.load_tokens(self.evaluate, tokenizer, seed=None, split="test", **sizes)
        tokens, held_out = drawn
        if held_out is not None and len(held_out) >= self.windows and held_out.shape[1] == self.window_length:
            return held_out[: self.windows]
        used = tokens if held_out is None else torch.cat([tokens, held_out])
        windows, _ = load_apart(setup.calibration, tokenizer, held_out=0, seed=setup.seed, apart_from=used, **sizes)
        if len(windows) < self.windows:
            raise rose.RoseError(
                f"After the calibration windows, {setup.calibration} has {len(windows)} windows of "
                f"{self.window_length} tokens left; ask for fewer or shorter ones, or measure perplexity on another "
                "text."
            )
        return windows

    def check(self, setup: Setup, model: nn.Module) -> None:
        """Raises RoseError for an impossible request, before any work; `model` may be a skeleton."""
        is_folder = self.keep == "folder"
        missing = {
            "Choose at least one method and one sparsity.": not self.methods or not self.sparsities,
            "Choose how many bits kept weights get, or that they stay as they are.": not self.grids,
            "Choose at least one target: dense, or layer as in the papers.": not self.targets,
            "Give the path of the text that perplexity is measured on.": not self.evaluate.strip(),
            MISSING: self.tasks and not is_installed(),
            "Give the path of a folder for the checkpoints.": is_folder and not self.folder.strip(),
        }
        for problem, is_missing in missing.items():
            if is_missing:
                raise rose.RoseError(problem)
        network = Network(model)
        for length in (setup.length, self.window_length):
            network.check_length(length)
        cases = self.cases(setup)
        for case in cases:
            case.check()
            network.to_prune(case.layers, case.pattern, case.in_columns(network.head_width).block_columns, case.grid)
        if self.tasks and self.task_folder.strip():
            check_task_folder(self.task_folder.strip())
        for case in cases if is_folder else ():
            if reachable(case.output).exists():
                raise rose.RoseError(f"{case.output} already exists; choose another folder for the checkpoints.")

    def estimate(self, setup: Setup, model: nn.Module) -> Cost:
        """Every case pruned and evaluated, and the dense model evaluated."""
        costs = [self.estimate_case(setup, case, model) for case in self.cases(setup)]
        seconds = sum(cost.seconds for cost in costs) + (len(costs) + 1) * self.evaluation_seconds(model)
        return Cost(seconds, max(cost.memory for cost in costs), costs[0].model_memory, costs[0].layers)

    def estimate_case(self, setup: Setup, case: Prune, model: nn.Module) -> Cost:
        """Pruning one copy; `model` may be a skeleton."""
        cost = pruning_cost(case, model, case.method, case.target)
        sizes = case.extent | {"dtype": parse_dtype(setup.dtype), "held_out": setup.held_out > 0}
        walk: dict[str, Any] = {"sequential": case.true_sequential, "dense_targets": case.target == "dense"}
        memory = estimate_memory(model, **sizes, **walk, layers=case.layers, method=case.method)
        return replace(cost, memory=memory.besides_weights)

    def evaluation_seconds(self, model: nn.Module) -> float:
        new_tokens = self.new_tokens if self.prompt.strip() else 0
        tokens = self.windows * self.window_length
        return estimate_evaluation(model, tokens=tokens, new_tokens=new_tokens) + self.task_seconds(model)

    def task_seconds(self, model: nn.Module) -> float:
        """Zero-shot tasks of one model; a rough guess, as questions differ in length."""
        tokens = len(self.tasks) * self.questions * QUESTION_TOKENS
        return estimate_evaluation(model, tokens=tokens, new_tokens=0) if tokens else 0.0


class PruningRun(CopyRun):
    """One run over all copies of a request, growing while its job runs."""

    def __init__(
        self,
        setup: Setup,
        request: PruneRequest,
        load: Callable[[], LoadedModel],
        publish: Callable[[rose.RunReport], None] = lambda _report: None,
    ) -> None:
        """`publish` gets the record of every finished copy."""
        folder = request.folder if request.keep == "folder" else ""
        options: dict[str, Any] = {"prompt": request.prompt, "new_tokens": request.new_tokens}
        super().__init__(setup, load, folder=folder, publish=publish, **options)
        self.request = request
        self.cautions: list[str] = []  # on the calibration text
        self._begun = 0.0  # estimated seconds of the steps that were begun

    def windows(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        return self.request.evaluated(tokenizer, self.setup, self.setup.draw(tokenizer))

    def evaluation_seconds(self, model: nn.Module) -> float:
        return self.request.evaluation_seconds(model) - self.request.task_seconds(model)

    def judge(self, model_name: str, model: Any, tokenizer: Any, windows: Tensor, step: Step) -> dict[str, Any]:
        results, request = super().judge(model_name, model, tokenizer, windows, step), self.request
        if request.tasks:
            tell = step(f"Zero-shot tasks answered by {model_name}", request.task_seconds(model))
            folder = expand(request.task_folder.strip()) if request.task_folder.strip() else None
            options: dict[str, Any] = {"tasks": request.tasks, "task_folder": folder, "limit": request.questions}
            results["zero_shot"] = zero_shot(model, tokenizer, progress=tell, **options).to_dict("records")
        return results

    def _run(self, job: Job) -> None:
        request, new_folder = self.request, None
        if request.keep == "folder":
            first = request.cases(self.setup)[0].output
            new_folder = None if first.parent.exists() else first.parent
            check_output(first)  # not after an hour of pruning
        try:
            self._work(job)
        except rose.Cancelled:
            self.discard()  # nobody would look for the checkpoints of a stopped run
            raise
        finally:
            if new_folder is not None:
                with contextlib.suppress(OSError):  # not empty: it holds checkpoints, each of them whole
                    new_folder.rmdir()

    def _work(self, job: Job) -> None:
        setup, request = self.setup, self.request
        self._say("Loading the model")
        loaded = self._load()
        job.check()
        tokens, held_out = setup.draw(loaded.tokenizer, self.cautions.append)
        whole, cases = request.estimate(setup, loaded.model), request.cases(setup)
        check_memory(whole, setup.dtype)
        if request.keep == "folder":
            check_room(request.folder, len(cases) * weights_size(whole, setup.dtype), RESERVE)
        windows = request.evaluated(loaded.tokenizer, setup, (tokens, held_out))
        costs = [request.estimate_case(setup, case, loaded.model).seconds for case in cases]
        self.estimated = sum(costs) + request.evaluation_seconds(loaded.model) * (len(costs) + 1)
        model = self._copy(loaded.model, loaded.lock)
        self.dense = dense_record(self.judge("the dense model", model, loaded.tokenizer, windows, self._step))
        for case, cost in zip(cases, costs, strict=True):
            if model is None:
                model = self._copy(loaded.model, loaded.lock)
            tell = self._step(f"Pruning by {label_of(case)}", cost)
            report = rose.prune_model(
                model,
                tokens,
                **case.pick(PruneSettings.fields()),
                held_out=held_out,
                progress=lambda progress: tell(progress.fraction),  # noqa: B023  called at once
            )
            measured = self.judge(label_of(case), model, loaded.tokenizer, windows, self._step)
            self.add(self._saved(model, loaded.tokenizer, self._signed(report, case).with_summary(**measured)))
            if request.keep == "best":
                for name in self.checkpoints.keys() - worth_keeping(self.copies):
                    shutil.rmtree(self.checkpoints.pop(name), ignore_errors=True)
            model = None  # before the next copy is made
        self.fraction = 1.0

    def _step(self, doing: str, cost: float) -> Callable[[float], None]:
        """Begins a step with its estimated seconds; its callback moves the progress of the whole run."""
        self._say(doing)
        begun = self._begun
        self._begun += cost

        def tell(share: float) -> None:
            self.fraction = min(0.999, (begun + cost * share) / self.estimated)
            self.job.check()

        return tell

    def _signed(self, report: rose.RunReport, case: Prune) -> rose.RunReport:
        request = self.request
        assert self.dense is not None
        about: dict[str, Any] = {"evaluated_on": request.evaluate, "windows": request.windows}
        about |= {"window_length": request.window_length, "text_cautions": self.cautions, **as_before(self.dense)}
        about |= {} if request.shared.layers is None else {"chosen_layers": " ".join(request.shared.layers)}
        return report.signed(case, **about)

    def _saved(self, model: Any, tokenizer: PreTrainedTokenizerBase, copy: rose.RunReport) -> rose.RunReport:
        """The copy, after its checkpoint is written if it is kept."""
        keep = self.request.keep
        if keep == "none" or (keep == "best" and copy.name not in worth_keeping([*self.copies, copy])):
            return copy
        self._say(f"Writing the checkpoint of {copy.name}")
        return self.write(model, tokenizer, copy)
