"""`rose evaluate`: perplexity and zero-shot accuracy of a model."""

from __future__ import annotations

import json

from rich.console import Console

from rose.commands import shared, terminal
from rose.model.measure.perplexity import perplexity_of
from rose.model.measure.zero_shot import TASKS, check_installed, task_manager, zero_shot
from rose.output import check_file, write_file
from rose.recipe.steps import Evaluate
from rose.rows import csv_text, finite
from rose.wording import count


def run(spec: Evaluate, console: Console) -> None:
    _check(spec)
    spec = shared.settle_dtype(spec, spec.model)
    model, tokenizer = shared.load(spec, console)
    written = shared.origin(spec)
    if spec.text is not None:
        windows = shared.windows(spec, spec.text, tokenizer)
        losses = shared.losses(model, windows, console, "Perplexity", spec.compute)
        perplexity = perplexity_of(losses)
        written |= {"text": spec.to_dict()["text"], "length": spec.length, "compute": spec.compute}
        written |= {"perplexity": perplexity, "losses": losses.tolist()}
        of = f"{spec.model} on {spec.text}, {count(len(windows), 'window')} of {spec.length}"
        terminal.say(f"Perplexity of {of}: {perplexity:.3f}")
    if spec.tasks is not None:
        chosen = shared.pick(spec, ("task_folder", "trust_remote_code", "limit", "bos"))
        table = zero_shot(model, tokenizer, tasks=spec.tasks or TASKS, **chosen)
        terminal.print_table(table, f"Zero-shot accuracy of {spec.model}")
        if spec.output:
            write_file(spec.output, csv_text(table))
        terminal.say(f"Mean accuracy {table['accuracy'].mean():.4f} over {len(table)} tasks")
        written |= {"limit": spec.limit, "accuracies": table.to_dict("records")}
    if spec.json_file:
        write_file(spec.json_file, json.dumps(finite(written), indent=1))


def _check(spec: Evaluate) -> None:
    """Raises RoseError, before anything is loaded, for files that cannot be written and for unknown tasks."""
    for file in filter(None, (spec.json_file, spec.output)):
        check_file(file)
    if spec.tasks is not None:
        check_installed()
        task_manager(spec.tasks or TASKS, spec.task_folder, trust_remote_code=spec.trust_remote_code)
