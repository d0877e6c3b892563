"""`rose check`: looks for faults in a checkpoint that was made from a dense model by pruning, whoever made it."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from rose.commands import shared, terminal
from rose.files import expand
from rose.model.check.check import EVEN, CheckpointCheck, better_by_layer, check_checkpoint, common_masks
from rose.model.check.findings import FEW, findings, headline, lines
from rose.model.network.layers import keep_low_rank
from rose.output import check_file, write_file
from rose.recipe.steps import CheckCopies
from rose.rows import json_rows
from rose.wording import percent

SHOWN = 10  # layers in the table of errors
ERRORS = {"error": "error", "mask_error": "mask alone", "possible_error": "refit"}


def run(spec: CheckCopies, console: Console) -> int:
    """Returns 1 where something is wrong."""
    if spec.json_file:
        check_file(spec.json_file)
    dense, tokenizer = shared.load(spec, console, spec.dense)
    drawn = shared.calibration(spec, tokenizer, spec.seed) if spec.calibration else None
    tokens, held_out = (drawn.tokens, drawn.held_out) if drawn else (None, None)
    models: dict[str, Any] = {}
    checks: dict[str, CheckpointCheck] = {}
    for name in spec.pruned:
        models[name], _ = shared.load(spec, console, name, finite=False, tokenizer=spec.dense)
        keep_low_rank(models[name], expand(name))
        with terminal.bar(console, "Checking") as follow:
            checks[name] = check_checkpoint(
                dense,
                models[name],
                tokens,
                held_out=held_out,
                methods=spec.methods,
                compute=spec.compute,
                progress=follow,
            )
        if len(spec.pruned) > 1:
            terminal.say(f"{name}:")
        terminal.say(*(f"{about}: {text}" for about, text in lines(checks[name])))
        terminal.say(*findings(checks[name], expand(name), _drawn(spec, checks[name])))
        _print_errors(checks[name].by_error)
    tables = {pair: _between(pair, models, checks) for pair in combinations(models, 2)}
    if spec.json_file:
        _write(spec.json_file, checks, tables)
    for name, check in checks.items():
        terminal.say(f"{name}: {headline(check).text}{_names(check, spec.json_file)}")
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


def _drawn(spec: CheckCopies, check: CheckpointCheck) -> dict[str, Any] | None:
    """The calibration windows, as reports have them; None without any."""
    if not spec.calibration:
        return None
    drawn = shared.pick(spec, ("calibration", "samples", "length", "seed"))
    return drawn | {"held_out_samples": spec.held_out, "bos_token": check.summary["bos_token"]}


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
