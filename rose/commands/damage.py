"""`rose damage`: what the model loses by each layer or decoder block alone; rows are kept as they come."""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd
from rich.console import Console

import rose
from rose import verdicts
from rose.commands import options as shared
from rose.commands import terminal
from rose.files import reachable
from rose.layer.defaults import BLOCK_SIZE, DAMPING, METHOD, SPARSITY, THRESHOLD
from rose.model.defaults import DAMAGE, UNITS
from rose.model.estimate.duration import estimate_damage, sweeps_of
from rose.model.load.models import parse_dtype
from rose.model.measure.damage import dense_weights
from rose.model.measure.damage_report import (
    PREDICTORS,
    WHOLE,
    DamageFolder,
    DamageRecord,
    DamageReport,
    correlations,
    outliers,
    rank_correlation,
)
from rose.model.network.precision import Precision
from rose.model.network.residence import pick_device
from rose.model.run.settings import run_settings
from rose.model.workers import launched_place
from rose.wording import listing, number

# Settings of a folder; with any other the rows would not belong together.
FOLDER_SETTINGS = (
    *("model", "dtype", "calibration", "samples", "length", "seed", "held_out", "bos", "layers", "block_size"),
    *("damping", "threshold", "sparsity", "method", "option", "units", "restore", "evaluate", "windows"),
)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "damage", help="how much a model's loss rises when one layer or decoder block alone is pruned"
    )
    shared.add(parser, f"{shared.MODEL} {shared.TEXT} layers block-size damping threshold option")
    shared.add(parser, "sparsity", default=None, help=f'ratio, or N:M such as "2:4" (default: {SPARSITY})')
    shared.add(parser, "method", default=None, help=f"{', '.join(rose.METHODS)} (default: {METHOD})")
    add = parser.add_argument
    says = "what is pruned alone, one after another (default: %(default)s)"
    add("--units", choices=UNITS, default="layers", help=says)
    says = "give the units of this pruned model the dense weights of --model back, instead of pruning"
    add("--restore", metavar="FOLDER", help=says)
    says = "measure loss on this text (default: the calibration text's held-out windows)"
    shared.add(parser, "evaluate", help=says)
    shared.add(parser, "windows")
    shared.add(parser, "output", help="rows.csv and summary.json; the same command resumes an interrupted run")
    parser.set_defaults(run=run, **DAMAGE._asdict())


def run(options: argparse.Namespace, console: Console) -> None:
    if launched_place()[1] > 1:
        raise rose.RoseError("damage measures in one process; start it without torchrun.")
    _settle_pruning(options)
    chosen = shared.run_options(options)
    run_settings(**chosen)
    if options.evaluate is None and options.held_out < 1:
        raise rose.RoseError("Loss needs windows: give --evaluate TEXT, or --held-out of at least 1.")
    reachable(options.output)  # before a model is asked how it is stored
    shared.settle_dtype(options, options.model)
    pruning = {} if options.restore is None else dict.fromkeys(("method", "sparsity"))  # of who restores: nobody's
    device = pick_device()
    here = Precision.of("float32", parse_dtype(options.dtype), device).environment(device)
    places = shared.absolutes(options, "model restore calibration evaluate")
    settings = shared.pick(options, FOLDER_SETTINGS) | places | pruning | {"environment": here}
    folder = DamageFolder(options.output, settings)
    options.rows = options.output
    if not any(row.unit == WHOLE for row in folder.rows):
        _measure(options, chosen, folder, console)
    _print(DamageReport.from_records(folder.rows, restore=options.restore))
    terminal.say(f"Rows and summary are in {options.output}")


def _settle_pruning(options: argparse.Namespace) -> None:
    """Puts the usual sparsity and method where none is given; raises RoseError for any where nothing is pruned."""
    usual: dict[str, Any] = {"method": None, "sparsity": None, "option": []}
    usual |= {"block_size": BLOCK_SIZE, "damping": DAMPING, "threshold": THRESHOLD}
    wrong = shared.changed(options, usual)
    if options.restore is not None and wrong:
        left_out = listing(wrong, len(wrong))
        raise rose.RoseError(f"--restore gives weights back and prunes nothing; leave {left_out} out.")
    options.sparsity, options.method = options.sparsity or str(SPARSITY), options.method or METHOD


def _measure(options: argparse.Namespace, chosen: dict[str, Any], folder: DamageFolder, console: Console) -> None:
    """Adds the rows that are missing to the folder."""
    model, tokenizer = shared.load(options, console)
    restore = None
    if options.restore is not None:
        dense = model
        model, _ = shared.load(options, console, options.restore, tokenizer=options.model)
        restore = dense_weights(dense, model, options.layers)
    tokens, windows = shared.calibration(options, tokenizer, options.seed)
    if options.evaluate is not None:
        windows = shared.windows(options, options.evaluate, tokenizer)
    assert windows is not None
    folder.know(model, {"calibration": tokens, "evaluation": windows})
    cost = estimate_damage(
        model,
        samples=len(tokens),
        length=tokens.shape[1],
        windows=len(windows),
        window_length=windows.shape[1],
        layers=options.layers,
        units=options.units,
        sweeps=0 if restore else sweeps_of([options.method]),
    )
    shared.tell_cost(options, "Measuring", cost.seconds, [], model, console)

    def keep(row: DamageRecord) -> None:
        folder.add(row)
        if row.unit != WHOLE:
            loss = f"{row.delta_loss:+.4f}".replace("-", "−")
            told = f"loss {loss} ± {row.standard_error:.4f}, error {row.held_out_error:.4f}"
            console.print(f"{row.unit}: {told}")

    with terminal.bar(console, "Measuring") as follow:
        rose.damage(
            model,
            tokens,
            held_out=windows,
            units=options.units,
            layers=options.layers,
            restore=restore,
            done={row.unit for row in folder.rows},
            record=keep,
            progress=follow,
            **chosen,
        )


def _print(report: DamageReport) -> None:
    """What the model loses by its units, and how well error told."""
    table, summary = report.units, report.summary
    ranked = table.sort_values("damage", ascending=False)
    shown = ranked[["unit", "held_out_error", "drift", "damage", "standard_error"]]
    terminal.print_table(shown, "Damage, nats per token")
    terminal.say(*summary["cautions"])
    _print_correlations(correlations(table))
    if len(table) > 2:
        found = verdicts.says_correlation("Held-out error", "which units the loss depends on", rank_correlation(table))
        terminal.say(f"{found}.")
    small = outliers(table)
    if len(small):
        terminal.say(f"Small error, large damage: {', '.join(small['unit'])}")
    if summary["together"] is not None:
        what = "give back" if summary.get("restore") else "cost"
        terminal.say(
            f"All at once {what} {number(summary['together'])} nats per token, the sum of each alone is "
            f"{number(summary['sum_of_damages'])}; loss without a change {number(summary['base_loss'])}"
        )


def _print_correlations(found: pd.DataFrame) -> None:
    """A row for each group of units and each number that might tell damage in advance, where there is a correlation."""
    rows = [
        {"units ranked": f"{one['group']} {one['name']}".strip(), "units": one["units"], "by": name, "rank": one[name]}
        for one in found.to_dict("records")
        for name in PREDICTORS[1:]  # held-out error stands for that on calibration tokens
        if one[name] is not None
    ]
    if not rows:
        return
    told = pd.DataFrame(rows).astype({"rank": str, "units": str})
    told["by"] = told["by"].str.replace("_", " ")
    told.loc[told["units ranked"].duplicated(), ["units ranked", "units"]] = ""
    told = told.rename(columns={"rank": "correlation, 95 % interval"})
    terminal.print_table(told, "Rank correlation with damage")
