"""`rose check`: is a checkpoint what a pruned copy of its dense model should be, whoever made it?"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console

from rose.commands import options as shared
from rose.commands import terminal
from rose.model.check.checkpoint import METHODS, CheckpointCheck, check_checkpoint, common_masks
from rose.output import check_file, write_file


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("check", help="compare a checkpoint with the dense model it was made from")
    add = parser.add_argument
    add("dense", metavar="DENSE", help="the model before: packaged name, Hub id, folder or .gguf file")
    add("pruned", nargs="+", metavar="PRUNED", help="the checkpoint, or several, the same")
    shared.add(parser, "dtype trust-remote-code stream")
    says = f"measure errors on it: {shared.TEXTS} (default: none, which judges the weights alone, in seconds)"
    shared.add(parser, "calibration", help=says, default=None)
    shared.add(parser, "samples length seed held-out bos")
    says = "compare with what these methods reach (default: %(default)s)"
    add("--methods", default=",".join(METHODS), metavar="A,B", help=says)
    add("--json", type=Path, metavar="FILE.json", help="write all that was found there; several: a file for each")
    parser.set_defaults(run=run, samples=8, length=512, held_out=2)


def run(options: argparse.Namespace, console: Console) -> int:
    """Returns 1 where something is wrong."""
    if options.json:
        check_file(options.json)
    dense, tokenizer = shared.load(options, console, options.dense)
    tokens, held_out = shared.calibration(options, tokenizer, options.seed) if options.calibration else (None, None)
    is_sane, models = True, {}
    for number, name in enumerate(options.pruned):
        model, _ = shared.load(options, console, name, finite=False)
        with terminal.bar(console, "Checking") as follow:
            found = check_checkpoint(
                dense,
                model,
                tokens,
                held_out=held_out,
                methods=shared.split(options.methods, "--methods"),
                progress=follow,
            )
        _print(name, found)
        is_sane &= found.is_sane
        models[name] = model
        if options.json:
            path = (
                options.json
                if len(options.pruned) == 1
                else options.json.with_stem(f"{options.json.stem}-{number + 1}")
            )
            write_file(path, found.to_json())
    for one, other in combinations(models, 2):
        common, chance = common_masks(models[one], models[other])[["jaccard", "chance"]].mean()
        terminal.say(f"{one} and {other} have {common:.1%} of what they remove in common (by chance {chance:.1%})")
    return 0 if is_sane else 1


def _print(name: str, found: CheckpointCheck) -> None:
    """What is wrong first, then what was found of the whole."""
    summary, wrong = found.summary, found.wrong
    if len(wrong):
        terminal.print_table(wrong, f"Wrong in {name}")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in summary["verdicts"].items())
    sparsity, pattern = summary["sparsity"], summary["pattern"]
    terminal.say(f"{name}: {summary['layers']} layers, {sparsity:.2%} zeros, pattern {pattern}; {counts}")
    layers = found.layers
    if "error" in layers:
        known = layers.dropna(subset=["error"])
        means = known[[column for column in known if "error" in column and "held_out" not in column]].mean()
        terminal.say("Mean errors: " + ", ".join(f"{_label(column)} {value:.4f}" for column, value in means.items()))
    if summary["drift"]:
        terminal.say(f"Drift after the last decoder block: {summary['drift'][-1]['drift']:.4f}")
    if "perplexity" in summary:
        terminal.say(f"Perplexity {summary['perplexity_dense']:.2f} dense, {summary['perplexity']:.2f} here")
    terminal.say(
        "Nothing is wrong." if found.is_sane else f"Wrong: {len(wrong)} tensors, the worst {wrong['name'][0]}."
    )


def _label(column: str) -> str:
    return {"error": "as found", "mask_error": "mask alone", "possible_error": "possible"}.get(
        column, column.removeprefix("error_of_")
    )
