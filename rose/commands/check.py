"""`rose check`: looks for faults in a checkpoint that was made from a dense model by pruning, whoever made it."""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

import rose
from rose.commands import options as shared
from rose.commands import terminal
from rose.files import expand
from rose.layer.registry import get_method
from rose.model.check.between import EVEN, better_by_layer, common_masks
from rose.model.check.check import CheckpointCheck, check_checkpoint
from rose.model.check.findings import FEW, findings, headline, lines, says_other_draw
from rose.model.defaults import CHECK, CHECKED_AGAINST
from rose.model.formats.low_rank import keep_low_rank
from rose.output import check_file, write_file
from rose.rows import json_rows
from rose.wording import listing, percent

SHOWN = 10  # layers in the table of errors
ERRORS = {"error": "error", "mask_error": "mask alone", "possible_error": "refit"}


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
    says = f"with --calibration, compare with what these methods reach (default: {','.join(CHECKED_AGAINST)})"
    add("--methods", metavar="A,B", help=says)
    add("--json", type=expand, metavar="FILE.json", help="write all verdicts, reasons and numbers to this file")
    parser.set_defaults(run=run, **CHECK._asdict())


def run(options: argparse.Namespace, console: Console) -> int:
    """Returns 1 where something is wrong."""
    if options.json:
        check_file(options.json)
    unused = shared.changed(options, CHECK._asdict() | {"seed": 0, "bos": "auto", "methods": None})
    if unused and not options.calibration:
        alone = "Without --calibration TEXT a check goes by the weights alone"
        raise rose.RoseError(f"{alone}; give that too, or leave {listing(unused, len(unused))} out.")
    methods = shared.split(options.methods, "--methods") if options.methods else CHECKED_AGAINST
    for method in methods:
        get_method(method)
    dense, tokenizer = shared.load(options, console, options.dense)
    tokens, held_out = shared.calibration(options, tokenizer, options.seed) if options.calibration else (None, None)
    models: dict[str, Any] = {}
    checks: dict[str, CheckpointCheck] = {}
    for name in options.pruned:
        models[name], _ = shared.load(options, console, name, finite=False, tokenizer=options.dense)
        keep_low_rank(models[name], expand(name))
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
        if len(options.pruned) > 1:
            terminal.say(f"{name}:")
        terminal.say(*(f"{about}: {text}" for about, text in lines(checks[name])), *findings(checks[name]))
        terminal.say(*checks[name].cautions, _of_draw(name, options, checks[name]))
        _print_errors(checks[name].by_error)
    tables = {pair: _between(pair, models, checks) for pair in combinations(models, 2)}
    if options.json:
        _write(options.json, checks, tables)
    for name, check in checks.items():
        terminal.say(f"{name}: {headline(check).text}{_names(check, options.json)}")
    return 0 if all(check.is_sane for check in checks.values()) else 1


def _names(check: CheckpointCheck, file: Path | None) -> str:
    """A sentence with the names of all that is wrong, or the file that has them where they are many."""
    names = list(check.wrong["name"])
    if file and len(names) > FEW:
        return f" {file} names all {len(names)}."
    return f" Wrong: {', '.join(names)}." if names else ""


def _print_errors(layers: pd.DataFrame) -> None:
    """What compensation recovered, of the first `SHOWN` layers; nothing where no error was measured."""
    if layers.empty:
        return
    table = layers.head(SHOWN)[["layer", *ERRORS, "recovered"]].rename(columns=ERRORS)
    table["recovered"] = [percent(share, 0) for share in table["recovered"].astype(float)]
    terminal.print_table(table, "Errors of layers, those that are wrong first, then the highest")
    if len(layers) > SHOWN:
        terminal.say(f"… and {len(layers) - SHOWN} more, which --json FILE.json has")


def _of_draw(name: str, options: argparse.Namespace, check: CheckpointCheck) -> str:
    """A caution where the checkpoint was calibrated on other windows; "" where not."""
    if not options.calibration:
        return ""
    drawn = shared.pick(options, ("calibration", "samples", "length", "seed"))
    drawn |= {"held_out_samples": options.held_out, "bos_token": check.summary["bos_token"]}
    return says_other_draw(expand(name), drawn)


def _between(pair: tuple[str, str], models: dict[str, Any], checks: dict[str, CheckpointCheck]) -> pd.DataFrame:
    """Prints how two checkpoints differ, and returns it by layer."""
    first, second = pair
    masks = common_masks(models[first], models[second])
    common, chance = map(percent, masks[["jaccard", "chance"]].mean())
    terminal.say(f"{first} and {second} both remove {common} of the weights that either removes, {chance} by chance")
    better = better_by_layer(checks[first], checks[second], pair)
    counts = better["better"].value_counts()
    if len(counts):
        wins = [f"{name} has the lower error in {counts.get(name, 0)} layers" for name in pair]
        terminal.say(f"{wins[0]}, {wins[1]}; no clear difference in {counts.get(EVEN, 0)}")
    return masks.merge(better, on="layer", how="left")


def _write(path: Path, checks: dict[str, CheckpointCheck], tables: dict[tuple[str, str], pd.DataFrame]) -> None:
    """One check as it is; of several a list, and what is between them."""
    if len(checks) == 1:
        return write_file(path, next(iter(checks.values())).to_json())
    between = [{"checkpoints": pair, "layers": json_rows(table)} for pair, table in tables.items()]
    each = [{"checkpoint": name} | check.to_dict() for name, check in checks.items()]
    return write_file(path, json.dumps({"checkpoints": each, "between": between}, indent=1))
