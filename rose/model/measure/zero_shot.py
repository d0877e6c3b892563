"""Zero-shot accuracy with lm-eval (Gao et al., "A framework for few-shot language model evaluation").

It is installed apart, from requirements-eval.txt. A pruned model's answers can be bad while its perplexity looks
harmless; papers therefore report both.
"""

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from torch import nn
from transformers import PreTrainedTokenizerBase

from rose.errors import RoseError
from rose.files import reachable
from rose.model.load.tokens import first_token
from rose.model.network.residence import evaluating, pick_device

# What SparseGPT, Wanda, OWL and ROSE report, with lm-eval's names; openbookqa is the papers' OBQA.
TASKS = ("boolq", "winogrande", "piqa", "openbookqa", "hellaswag", "arc_easy", "arc_challenge")
BATCH = 8  # sequences at a time
MISSING = "Zero-shot tasks need lm-eval; run: pip install -r requirements-eval.txt"


def check_installed() -> None:
    """Raises RoseError without lm-eval. Imports all of it, which takes seconds; see `is_installed`."""
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as problem:
        raise RoseError(f"{MISSING} ({problem})") from problem


def is_installed() -> bool:
    """Whether lm-eval is there, without an import."""
    return find_spec("lm_eval") is not None


def check_task_folder(folder: str | Path, *, trust_remote_code: bool = False) -> None:
    """Raises RoseError for a missing folder, and for task definitions in it that could run code beside them, unless
    that is trusted."""
    place = reachable(folder)
    if not place.is_dir():
        raise RoseError(f"There is no folder {folder}; give one that holds task definitions (.yaml).")
    files = [path.resolve() for path in place.rglob("*yaml") if path.is_file()]
    odd = None if trust_remote_code else next((path for path in files if not _is_plain(path, files)), None)
    if odd is not None:
        raise RoseError(
            f"{odd} may run Python code: it is no plain YAML (such as !function), or names a metric or YAML file that "
            "lies elsewhere; only `rose evaluate --trust-remote-code` runs the tasks of its folder."
        )


def _is_plain(path: Path, files: Sequence[Path]) -> bool:
    """Whether a task definition names no code, and includes only those among `files`."""
    try:
        config = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # as lm-eval reads it
        include = config.get("include", [])
        included = [(path.parent / name).resolve() for name in (include if isinstance(include, list) else [include])]
        metrics = [metric["metric"] for metric in config.get("metric_list", [])]
        return all(each in files for each in included) and not any("/" in metric for metric in metrics)
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError):  # a tag, no mapping, odd values
        return False


def zero_shot(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tasks: Sequence[str] = TASKS,
    task_folder: str | Path | None = None,
    trust_remote_code: bool = False,
    limit: int | None = None,
    bos: str = "auto",
    progress: Callable[[float], Any] = lambda _share: None,
) -> pd.DataFrame:
    """Accuracy on multiple-choice tasks of lm-eval, without examples in the prompt.

    The chosen answer has the largest log-likelihood; for `accuracy_norm`, if the task defines it, divided by its
    length. Data sets come from the Hub, or from files that a local task names.

    Args:
        task_folder: a folder of tasks as YAML files, which replaces all other tasks.
        trust_remote_code: run Python code that files in that folder name, such as by `!function`.
        limit: only the first questions of each task.
        bos: whether every question begins with a beginning-of-sequence token, see `rose.model.load.tokens.first_token`.
        progress: called with the share done, 0 to 1, before each batch of answers; may raise to stop.

    Returns:
        A row per task: task, questions, accuracy, accuracy_error (standard error), accuracy_norm; NaN for numbers that
            the task does not have. The error counts two more right and two more wrong answers (Agresti and Coull
            1998): without them, all right or all wrong would be beyond chance.

    Raises:
        RoseError: lm-eval is not installed, a `bos` that the tokenizer cannot do, an unknown task, a task that may
            run code, or a data set out of reach.
    """
    check_installed()
    first = first_token(tokenizer, bos)
    if not tasks or (limit is not None and limit < 1):
        raise RoseError("Zero-shot needs at least one task, and a limit of at least 1.")
    with evaluating(model, device := pick_device()):
        manager = task_manager(tasks, task_folder, trust_remote_code=trust_remote_code)
        wrapped = _wrapped(model, tokenizer, device, first, progress)
        results = _evaluate(wrapped, manager, list(tasks), limit)
    return pd.DataFrame([_row(name, results["results"][name], results["n-samples"][name]) for name in tasks])


def task_manager(tasks: Sequence[str], folder: str | Path | None, *, trust_remote_code: bool = False) -> Any:
    """lm-eval's tasks, or a folder's; raises RoseError as `check_task_folder`, and for groups and unknown tasks."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        check_task_folder(folder, trust_remote_code=trust_remote_code)
    manager = TaskManager(include_path=None if folder is None else str(folder), include_defaults=folder is None)
    groups = [name for name in tasks if name in manager.all_tasks and name not in manager.all_subtasks]
    if groups:
        raise RoseError(f"{', '.join(groups)} stands for several tasks; name the tasks that you want.")
    unknown = ", ".join(name for name in tasks if name not in manager.all_subtasks)
    if unknown and folder is not None:
        raise RoseError(f"{folder} defines no task named {unknown}.")
    if unknown:
        raise RoseError(f"There is no task named {unknown}; choose from {', '.join(TASKS)}, or any other of lm-eval's.")
    return manager


def _wrapped(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    first: int | None,
    progress: Callable[[float], Any],
) -> Any:
    from lm_eval.models.huggingface import HFLM

    class Begun(HFLM):
        """Every question begins as calibration does, with the `first` token or with none."""

        def tok_encode(
            self,
            string: str,
            add_special_tokens: bool | None = None,
            left_truncate_len: int | None = None,
            **_options: Any,
        ) -> list[int]:
            ids = super().tok_encode(string, add_special_tokens=False)
            if first is not None and add_special_tokens is not False and ids[:1] != [first]:
                ids = [first, *ids]
            return ids[-left_truncate_len:] if left_truncate_len else ids

        def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **options: Any) -> list[Any]:
            self.batches, self.run = math.ceil(len(requests) / BATCH), 0
            return super()._loglikelihood_tokens(requests, *args, **options)

        def _model_call(self, *args: Any, **options: Any) -> Any:
            progress(min(1.0, self.run / max(1, self.batches)))
            self.run += 1
            return super()._model_call(*args, **options)

    return Begun(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, device=str(device))


def _evaluate(wrapped: Any, manager: Any, tasks: list[str], limit: int | None) -> dict[str, Any]:
    import lm_eval
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    # Templates belong to tasks, too, and in lm-eval's own environment they reach all of Python.
    sandbox = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters.update(utils.env.filters)
    utils.env = sandbox
    try:
        results = lm_eval.simple_evaluate(
            model=wrapped,
            tasks=tasks,
            num_fewshot=0,
            limit=limit,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=0,  # accuracies have a closed standard error
        )
    except (OSError, ValueError, ConnectionError, TemplateError) as problem:  # the first three: a set out of reach
        reason = " ".join(str(problem).split())[:150]
        raise RoseError(
            f"The tasks cannot be run ({reason}); check the network, or give a folder of tasks with local files."
        ) from problem
    assert results is not None  # None only on other ranks of a distributed run
    return dict(results)


def _row(name: str, result: dict[str, Any], questions: dict[str, int]) -> dict[str, Any]:
    accuracy, number = float(result.get("acc,none", math.nan)), int(questions["effective"])
    share = (accuracy * number + 2) / (number + 4)
    return {
        "task": name,
        "questions": number,
        "accuracy": accuracy,
        "accuracy_error": math.sqrt(share * (1 - share) / (number + 4)),
        "accuracy_norm": float(result.get("acc_norm,none", math.nan)),
    }
