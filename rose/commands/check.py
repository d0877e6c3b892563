"""`rose check`: is a checkpoint what a pruned copy of its dense model should be, whoever made it?"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from rose.commands import options as shared
from rose.commands import terminal
from rose.commands.checkpoints import say_odd
from rose.layer.methods import METHODS as KNOWN
from rose.layer.methods import get_method
from rose.model.check.between import EVEN, better_by_layer, common_masks
from rose.model.check.checkpoint import CheckpointCheck, check_checkpoint
from rose.model.check.costs import METHODS
from rose.model.check.verdicts import says_pattern
from rose.model.check.whose import says_alike
from rose.output import check_file, write_file
from rose.report import finite
from rose.verdicts import says_perplexity
from rose.wording import count, percent, whole

SHOWN = 8  # names in a line
METHOD = "error_of_"  # before the name of a column of what a method reaches


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("check", help="compare a checkpoint with the dense model it was made from")
    add = parser.add_argument
    add("dense", metavar="DENSE", help="the model before: packaged name, Hub id, folder or .gguf file")
    add("pruned", nargs="+", metavar="PRUNED", help="one or more checkpoints made from it, named the same way")
    shared.add(parser, "dtype", default="float32")  # which holds what either file holds
    shared.add(parser, "compute trust-remote-code stream")
    says = f"text to measure errors on: {shared.TEXTS} (default: none, judge by the weights alone, in seconds)"
    shared.add(parser, "calibration", help=says, default=None)
    shared.add(parser, "samples length seed held-out bos")
    says = "compare with what these methods reach (default: %(default)s)"
    add("--methods", default=",".join(METHODS), metavar="A,B", help=says)
    add("--json", type=Path, metavar="FILE.json", help="write all that was found to this file")
    parser.set_defaults(run=run, samples=8, length=512, held_out=2)


def run(options: argparse.Namespace, console: Console) -> int:
    """Returns 1 where something is wrong."""
    if options.json:
        check_file(options.json)
    methods = shared.split(options.methods, "--methods")
    for method in methods:
        get_method(method)
    dense, tokenizer = shared.load(options, console, options.dense)
    tokens, held_out = shared.calibration(options, tokenizer, options.seed) if options.calibration else (None, None)
    models: dict[str, Any] = {}
    checks: dict[str, CheckpointCheck] = {}
    for name in options.pruned:
        models[name], _ = shared.load(options, console, name, finite=False, tokenizer=options.dense)
        with terminal.bar(console, "Checking") as follow:
            checks[name] = check_checkpoint(
                dense,
                models[name],
                tokens,
                held_out=held_out,
                methods=methods,
                compute=options.compute,
                progress=follow,
            )
        _print(name, checks[name])
    tables = {pair: _between(pair, models, checks) for pair in combinations(models, 2)}
    if options.json:
        _write(options.json, checks, tables)
    return 0 if all(found.is_sane for found in checks.values()) else 1


def _print(name: str, found: CheckpointCheck) -> None:
    """What is wrong first, then what was found of the whole."""
    summary, wrong, layers = found.summary, found.wrong, found.layers
    for row in wrong.head(terminal.MAX_ROWS).itertuples():
        terminal.say(f"{row.name}: {row.verdict}. {row.reason}")
    if len(wrong) > terminal.MAX_ROWS:
        terminal.say(f"… and {len(wrong) - terminal.MAX_ROWS} more")
    counts = ", ".join(f"{size} {verdict}" for verdict, size in summary["verdicts"].items())
    zeros = f"{percent(summary['sparsity'], 2)} zeros ({whole(summary['zeros'])} of {whole(summary['weights'])})"
    if summary["zeros_before"]:
        zeros += f", {whole(summary['zeros_before'])} of them in the dense model"
    terminal.say(f"{name}: {summary['layers']} layers, {zeros}, {says_pattern(summary['pattern'])}; {counts}")
    _print_gone(summary["gone"])
    if rotated := summary["rotated_heads"]:
        terminal.say(f"Heads of {len(rotated)} output projections were rotated before pruning, which changes no output")
    changed = found.others.groupby("kind", sort=False).size()
    if len(changed):
        kinds = ", ".join(f"{count} of kind {kind}" for kind, count in changed.items())
        terminal.say(f"Other tensors that differ: {kinds}")
    if near := summary["nearest"]:
        whose = KNOWN[near["name"]].label + (", towards the dense model" if near["target"] == "dense" else "")
        shares = f"{percent(near['agreement'])} of what they remove in common; by chance {percent(near['chance'])}"
        how = "those of" if summary["method"] else "nearest to those of"
        terminal.say(f"Masks of {near['layers']} layers are {how} {whose} ({shares}). {says_alike(near)}".rstrip())
    if "error" in layers:
        known = layers.dropna(subset=["error"])
        means = known[[column for column in known if "error" in column and "held_out" not in column]].mean()
        terminal.say("Mean errors: " + ", ".join(f"{_label(column)} {value:.4f}" for column, value in means.items()))
        if known["recovered"].notna().any():
            recovered = percent(known["recovered"].median(), 0)
            terminal.say(f"Compensation recovered {recovered} of what it could, in the median")
    if summary["drift"]:
        terminal.say(f"Drift after the last decoder block: {summary['drift'][-1]['drift']:.4f}")
    if "perplexity_after" in summary:
        moved, *odd = says_perplexity(summary)
        terminal.say(f"Perplexity {moved}")
        say_odd(odd)
    terminal.say(*found.cautions)
    if found.is_sane:
        terminal.say("Nothing is wrong.")
    else:
        which = ", the worst" if len(wrong) > 1 else ","
        terminal.say(f"Wrong: {count(len(wrong), 'tensor')}{which} {wrong['name'][0]}.")


def _print_gone(gone: dict[str, Any]) -> None:
    if parts := [count(gone[f"{what}s"], what) for what in ("row", "column") if gone[f"{what}s"]]:
        terminal.say(f"Nothing is left of {' and '.join(parts)} of layers")
    for what in ("head", "expert"):
        if names := gone[f"{what}s"]:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            terminal.say(f"Nothing is left of {count(len(names), what)}: {', '.join(names[:SHOWN])}{more}")


def _label(column: str) -> str:
    labels = {"error": "as found", "mask_error": "mask alone", "possible_error": "possible"}
    if column.startswith(METHOD):
        return KNOWN[column.removeprefix(METHOD)].label
    return (labels | {"dense_input_error": "on dense inputs"})[column]


def _between(pair: tuple[str, str], models: dict[str, Any], checks: dict[str, CheckpointCheck]) -> pd.DataFrame:
    """Prints how two checkpoints differ, and returns it by layer."""
    one, other = pair
    masks = common_masks(models[one], models[other])
    common, chance = map(percent, masks[["jaccard", "chance"]].mean())
    terminal.say(f"{one} and {other} have {common} of what they remove in common (by chance {chance})")
    better = better_by_layer(checks[one], checks[other], pair)
    counts = better["better"].value_counts()
    if len(counts):
        wins = [f"{name} has the lower error in {counts.get(name, 0)} layers" for name in pair]
        terminal.say(f"{wins[0]}, {wins[1]}; no clear difference in {counts.get(EVEN, 0)}")
    return masks.merge(better, on="layer", how="left")


def _write(path: Path, checks: dict[str, CheckpointCheck], tables: dict[tuple[str, str], pd.DataFrame]) -> None:
    """One check as it is; of several a list, and what is between them."""
    if len(checks) == 1:
        return write_file(path, next(iter(checks.values())).to_json())
    between = [{"checkpoints": pair, "layers": table.to_dict(orient="records")} for pair, table in tables.items()]
    each = [{"checkpoint": name} | found.to_dict() for name, found in checks.items()]
    return write_file(path, json.dumps(finite({"checkpoints": each, "between": between}), indent=1))
