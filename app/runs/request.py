"""The settings of a run over the whole model, and what it will take. No Streamlit here."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

import rose
from app.study.setup import Setup, one_spelling, patterns_of
from rose.files import expand, reachable
from rose.layer.pattern import THRESHOLD, Grid
from rose.model.estimate.duration import Cost, estimate_cost, estimate_evaluation, sweeps_of
from rose.model.estimate.memory import estimate_memory
from rose.model.load.models import parse_dtype
from rose.model.load.tokens import load_apart
from rose.model.measure.zero_shot import MISSING, check_task_folder, is_installed
from rose.model.network.network import Network
from rose.model.network.precision import DEFAULT as COMPUTED
from rose.model.run.settings import run_settings
from rose.recipe.parts import PruneSettings
from rose.recipe.steps import Prune
from rose.report import name_of_run

QUESTION_TOKENS = 250  # with all its answers: between winogrande's 60 and hellaswag's 400
HELD_OUT = "held out"  # windows of the calibration text that nothing else uses, in place of the name of a text
PROMPT = "Python is a programming language that"
NEW_TOKENS = 30  # that continue it
WINDOWS = 8  # four often leave copies undecided that eight tell apart
# Of checkpoints. The best of each sparsity, and all, are temporary files; in a folder they stay.
Keep = Literal["best", "all", "folder", "none"]


class Case(NamedTuple):
    """What one pruned model is pruned by. Dense is the usual target, so that labels name only the other one."""

    method: str
    sparsity: str
    target: str = "dense"
    bits: int | None = None
    group: str | None = None

    @property
    def asked(self) -> str:
        """What is taken away, for people: "0.7", "0.7, 4 bits". Copies of one such amount are ranked."""
        return self.sparsity if self.bits is None else f"{self.sparsity}, {self.bits} bits"

    @property
    def label(self) -> str:
        """For people: "ROSE at 0.7", "ROSE at 0.7, 4 bits", "ROSE at 0.7, target layer"."""
        return name_of_run(self.method, self.asked, self.target)

    @property
    def name(self) -> str:
        """For files and folders: "rose-0.7", "sparsegpt-2-4", "rose-0.7-4bits", "rose-0.7-layer"."""
        name = f"{self.method}-{self.sparsity.replace(':', '-')}"
        name += "" if self.bits is None else f"-{self.bits}bits"
        return name if self.target == "dense" else f"{name}-{self.target}"


@dataclass(frozen=True)
class PruneRequest:
    """Copies to prune, and how each is evaluated; see `rose.prune_model`."""

    methods: tuple[str, ...]  # each is run with each of the sparsities and targets
    sparsities: tuple[str, ...]
    layers: str = "*"  # names separated by spaces, `*` allowed
    threshold: float = THRESHOLD
    true_sequential: bool = False
    evaluate: str = HELD_OUT  # or a text as for `rose.load_tokens`
    windows: int = WINDOWS
    window_length: int = Setup.length
    prompt: str = ""  # "" for none
    new_tokens: int = NEW_TOKENS
    keep: Keep = "none"
    folder: str = ""  # each checkpoint is a folder in it
    targets: tuple[str, ...] = ("dense",)
    target_damping: float | None = None  # None leaves it to the engine
    tasks: tuple[str, ...] = ()  # zero-shot
    task_folder: str = ""  # of further tasks; "" for lm-eval's
    questions: int = 100  # of each task, the first ones
    bits: tuple[int | None, ...] = (None,)  # that kept weights are rounded to; None leaves them as they are
    group: str = str(Grid.group)  # input columns that share a scale

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsities", tuple(dict.fromkeys(map(one_spelling, self.sparsities))))

    @property
    def layer_patterns(self) -> list[str] | None:
        return patterns_of(self.layers)

    @property
    def cases(self) -> list[Case]:
        """Every copy, in the order in which they are run: all methods at one sparsity, then the next."""
        return [
            Case(method, sparsity, target, bits, None if bits is None else self.group)
            for sparsity in self.sparsities
            for bits in self.bits
            for method in self.methods
            for target in self.targets
        ]

    def recipe(self, setup: Setup, case: Case) -> Prune:
        """The recipe of a copy; raises RoseError for impossible values.

        Perplexity is in it only where the command measures the same: on a text, in windows as long as those that
        calibrate.
        """
        values = setup.recipe(threshold=self.threshold).to_dict()
        shared = {name: value for name, value in values.items() if name in Prune.fields() and name != "compute"}
        shared |= {"stream": setup.stream, "layers": self.layer_patterns, "true_sequential": self.true_sequential}
        is_dense = case.target == "dense"
        shared |= {"target_damping": self.target_damping if is_dense else None, **case._asdict()}
        if is_dense:
            shared["true_sequential"] = False  # dense targets always are
        if self.evaluate != HELD_OUT and self.window_length == setup.length and not setup.stream:
            shared |= {"evaluate": self.evaluate, "windows": self.windows}
        return Prune.of(**shared, output=self.output(case) if self.keep == "folder" else case.name)

    def settings(self, setup: Setup, case: Case) -> dict[str, Any]:
        """Arguments of `rose.prune_model` for a copy."""
        spec = self.recipe(setup, case)
        return {name: getattr(spec, name) for name in PruneSettings.fields() if name != "layers"}

    def output(self, case: Case) -> Path:
        return expand(self.folder) / case.name

    def evaluated(self, tokenizer: PreTrainedTokenizerBase, setup: Setup, drawn: Iterable[Tensor | None]) -> Tensor:
        """The windows of which perplexity is measured; `drawn`: the set-up's windows, from its `draw`.

        Raises RoseError where the text is too short.
        """
        if self.evaluate != HELD_OUT:
            return rose.load_tokens(
                self.evaluate, tokenizer, samples=self.windows, length=self.window_length, seed=None, split="test"
            )
        used = torch.cat([windows for windows in drawn if windows is not None])
        windows, _ = load_apart(
            setup.text,
            tokenizer,
            samples=self.windows,
            held_out=0,
            length=self.window_length,
            seed=setup.seed,
            apart_from=used,
        )
        if len(windows) < self.windows:
            raise rose.RoseError(
                f"Besides what calibrates, {setup.text} has {len(windows)} windows of {self.window_length} tokens; ask "
                "for fewer or shorter ones, or measure perplexity on another text."
            )
        return windows

    def check(self, setup: Setup, model: nn.Module) -> None:
        """Raises RoseError for an impossible request, before any work; `model` may be a skeleton."""
        if not self.methods or not self.sparsities:
            raise rose.RoseError("Choose at least one method and one sparsity.")
        if not self.bits:
            raise rose.RoseError("Choose how many bits kept weights get, or that they stay as they are.")
        if not self.targets:
            raise rose.RoseError("Choose at least one target: dense, or layer as in the papers.")
        network = Network(model)
        for length in (setup.length, self.window_length):
            network.check_length(length)
        for case in self.cases:
            run = run_settings(**self.settings(setup, case)).layer
            network.to_prune(self.layer_patterns, run.pattern, run.block_size, run.grid)
        if not self.evaluate.strip():
            raise rose.RoseError("Give the path of the text that perplexity is measured on.")
        if self.tasks and not is_installed():
            raise rose.RoseError(MISSING)
        if self.tasks and self.task_folder.strip():
            check_task_folder(self.task_folder.strip())
        if self.keep == "folder":
            if not self.folder.strip():
                raise rose.RoseError("Give the path of a folder for the checkpoints.")
            for output in map(self.output, self.cases):
                if reachable(output).exists():
                    raise rose.RoseError(f"{output} already exists; choose another folder for the checkpoints.")

    def estimate(self, setup: Setup, model: nn.Module) -> Cost:
        """Every case pruned and evaluated, and the dense model evaluated."""
        costs = [estimate_case(model, setup, self, case) for case in self.cases]
        seconds = sum(cost.seconds for cost in costs) + (len(costs) + 1) * evaluation_seconds(model, self)
        return Cost(seconds, max(cost.memory for cost in costs), costs[0].model_memory, costs[0].layers)


def estimate_case(model: nn.Module, setup: Setup, request: PruneRequest, case: Case) -> Cost:
    """Pruning one copy; `model` may be a skeleton."""
    sizes: dict[str, Any] = {
        "samples": setup.samples + setup.held_out,
        "length": setup.length,
        "layers": request.layer_patterns,
    }
    cost = estimate_cost(
        model,
        **sizes,
        sweeps=sweeps_of([case.method], case.bits),
        passes=1 if request.true_sequential and case.target == "layer" else 2,
        compute=COMPUTED,
        target=case.target,
    )
    memory = estimate_memory(
        model,
        **sizes,
        dtype=parse_dtype(setup.dtype),
        sequential=request.true_sequential,
        dense_targets=case.target == "dense",
        held_out=setup.held_out > 0,
        method=case.method,
    )
    return replace(cost, memory=memory.besides_weights)


def evaluation_seconds(model: nn.Module, request: PruneRequest) -> float:
    new_tokens = request.new_tokens if request.prompt.strip() else 0
    tokens = request.windows * request.window_length
    return estimate_evaluation(model, tokens=tokens, new_tokens=new_tokens) + task_seconds(model, request)


def task_seconds(model: nn.Module, request: PruneRequest) -> float:
    """Zero-shot tasks of one model; a rough guess, as questions differ in length."""
    tokens = len(request.tasks) * request.questions * QUESTION_TOKENS
    return estimate_evaluation(model, tokens=tokens, new_tokens=0) if tokens else 0.0
