"""`rose evaluate`: perplexity and zero-shot accuracy of a model."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console

import rose
from rose.commands import options as shared
from rose.commands import terminal
from rose.files import expand
from rose.model.defaults import PAPERS
from rose.model.measure.perplexity import perplexity_of
from rose.model.measure.zero_shot import TASKS, check_installed, task_manager, zero_shot
from rose.output import check_file, write_file
from rose.rows import csv_text, finite
from rose.wording import count, listing

# Options of --text, unless given.
PERPLEXITY: dict[str, Any] = {"windows": None, "length": PAPERS.length, "compute": "float32"}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="perplexity and zero-shot accuracy of a model")
    shared.add(parser, shared.MODEL)
    says = "number format of matrix products in forward passes, for --text"
    shared.add(parser, "compute", default=None, help=f"{says} (default: {PERPLEXITY['compute']})")
    add = parser.add_argument
    add("--text", metavar="TEXT", help=f"text to measure perplexity on: {shared.TEXTS}")
    shared.add(parser, "length", default=None, help=f"tokens per window (default: {PERPLEXITY['length']})")
    shared.add(parser, "windows bos")
    says = f"measure zero-shot accuracy on these tasks of lm-eval; none named: {', '.join(TASKS)}"
    add("--tasks", nargs="*", metavar="TASK", help=says)
    says = "take tasks from the YAML files in this folder instead; where they run code, give --trust-remote-code too"
    add("--task-folder", metavar="FOLDER", help=says)
    add("--limit", type=int, metavar="N", help="only the first N questions of each task")
    add("--output", type=expand, metavar="FILE.csv", help="write the accuracies to this file")
    add(
        "--json",
        type=expand,
        metavar="FILE.json",
        help="write all that was measured, losses by window too, to this file",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> None:
    _check(options)
    model, tokenizer = shared.load(options, console)
    written = shared.origin(options)
    if options.text is not None:
        windows = shared.windows(options, options.text, tokenizer)
        losses = shared.losses(model, windows, console, "Perplexity", options.compute)
        found = perplexity_of(losses)
        written |= {"text": shared.absolute(options.text), "length": options.length, "compute": options.compute}
        written |= {"perplexity": found, "losses": losses.tolist()}
        of = f"{options.model} on {options.text}, {count(len(windows), 'window')} of {options.length}"
        terminal.say(f"Perplexity of {of}: {found:.3f}")
    if options.tasks is not None:
        chosen = shared.pick(options, ("task_folder", "trust_remote_code", "limit", "bos"))
        table = zero_shot(model, tokenizer, tasks=options.tasks or TASKS, **chosen)
        terminal.print_table(table, f"Zero-shot accuracy of {options.model}")
        if options.output:
            write_file(options.output, csv_text(table))
        terminal.say(f"Mean accuracy {table['accuracy'].mean():.4f} over {len(table)} tasks")
        written |= {"limit": options.limit, "accuracies": table.to_dict("records")}
    if options.json:
        write_file(options.json, json.dumps(finite(written), indent=1))


def _check(options: argparse.Namespace) -> None:
    """Raises RoseError for options that leave nothing to do or that do not belong together; fills in the usual."""
    if options.text is None and options.tasks is None:
        raise rose.RoseError("Say what to measure: --text for perplexity, --tasks for zero-shot accuracy, or both.")
    if options.json:
        check_file(options.json)
    given = shared.changed(options, dict.fromkeys(PERPLEXITY))
    if options.text is None and given:
        are, them = ("is", "it") if len(given) == 1 else ("are", "them")
        raise rose.RoseError(
            f"{listing(given)} {are} for the perplexity on --text; give that too, or leave {them} out."
        )
    for name, usual in PERPLEXITY.items():
        if getattr(options, name) is None:
            setattr(options, name, usual)
    if options.tasks is None:
        if options.output:
            advice = "give some, or leave it out"
            raise rose.RoseError(f"--output names a .csv file for the accuracies of --tasks; {advice}.")
        if options.limit is not None or options.task_folder:
            raise rose.RoseError("--limit and --task-folder are for --tasks; give that too, or leave them out.")
        return
    check_installed()
    if options.limit is not None and options.limit < 1:
        raise rose.RoseError(f"--limit must be at least 1, not {options.limit}.")
    if options.output:
        check_file(options.output)
    task_manager(options.tasks or TASKS, options.task_folder, trust_remote_code=options.trust_remote_code)
