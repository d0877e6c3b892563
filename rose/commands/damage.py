"""`rose damage`: what the model loses by each layer or decoder block alone; rows are kept as they come."""

from __future__ import annotations

from typing import Any

from rich.console import Console

import rose
from rose import verdicts
from rose.commands import shared, terminal
from rose.environment import launched_place
from rose.files import reachable
from rose.model.estimate.duration import estimate_damage, sweeps_of
from rose.model.load.models import parse_dtype
from rose.model.measure.damage import (
    WHOLE,
    DamageFolder,
    DamageRecord,
    DamageReport,
    dense_weights,
    outliers,
    rank_correlation,
)
from rose.model.network.precision import Precision
from rose.model.network.residence import pick_device
from rose.model.run.settings import run_settings
from rose.recipe.file import Recipe
from rose.recipe.steps import Damage
from rose.wording import number


def run(spec: Damage, console: Console) -> None:
    if launched_place()[1] > 1:
        raise rose.RoseError("damage measures in one process; start it without torchrun.")
    chosen = shared.run_options(spec)
    run_settings(**chosen)
    reachable(spec.output)  # before the model's format is read
    spec = shared.settle_dtype(spec, spec.model)
    pruning = {} if spec.restore is None else dict.fromkeys(("method", "sparsity"))  # of who restores: nobody's
    device = pick_device()
    environment = Precision.of("float32", parse_dtype(spec.dtype), device).environment(device)
    settings = spec.to_dict("changes") | pruning | {"environment": environment}
    folder = DamageFolder(spec.output, settings)
    if not any(row.unit == WHOLE for row in folder.rows):
        _measure(spec, chosen, folder, console)
    _print(DamageReport.from_records(folder.rows, restore=spec.restore))
    terminal.say(f"Rows and summary are in {spec.output}")


def _measure(spec: Damage, chosen: dict[str, Any], folder: DamageFolder, console: Console) -> None:
    """Adds the rows that are missing to the folder."""
    model, tokenizer = shared.load(spec, console)
    restore = None
    if spec.restore is not None:
        dense = model
        model, _ = shared.load(spec, console, spec.restore, tokenizer=spec.model)
        restore = dense_weights(dense, model, spec.layers)
    drawn = shared.calibration(spec, tokenizer, spec.seed)
    tokens, windows = drawn.tokens, drawn.held_out
    if spec.evaluate is not None:
        windows = shared.windows(spec, spec.evaluate, tokenizer)
    assert windows is not None
    Recipe((spec,)).write(spec.output)
    folder.know(model, {"calibration": tokens, "evaluation": windows})
    cost = estimate_damage(
        model,
        samples=len(tokens),
        length=tokens.shape[1],
        windows=len(windows),
        window_length=windows.shape[1],
        layers=spec.layers,
        units=spec.units,
        sweeps=0 if restore else sweeps_of([spec.method]),
    )
    shared.tell_cost(spec, "Measuring", cost.seconds, [], model, console)

    def keep(row: DamageRecord) -> None:
        folder.add(row)
        if row.unit != WHOLE:
            loss = f"{row.delta_loss:+.4f}".replace("-", "−")
            facts = f"loss {loss} ± {row.standard_error:.4f}, error {row.held_out_error:.4f}"
            console.print(f"{row.unit}: {facts}")

    with terminal.bar(console, "Measuring") as follow:
        rose.damage(
            model,
            tokens,
            held_out=windows,
            units=spec.units,
            layers=spec.layers,
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
    if len(table) > 2:
        correlation = verdicts.says_correlation(
            "Held-out error", "which units the loss depends on", rank_correlation(table)
        )
        terminal.say(f"{correlation}.")
    small = outliers(table)
    if len(small):
        terminal.say(f"Small error, large damage: {', '.join(small['unit'])}")
    if summary["together"] is not None:
        verb = "give back" if summary.get("restore") else "cost"
        terminal.say(
            f"All at once {verb} {number(summary['together'])} nats per token, the sum of each alone is "
            f"{number(summary['sum_of_damages'])}; loss without a change {number(summary['base_loss'])}"
        )
