"""Reports of runs that nobody has made, with errors to choose: quick to have, and exactly known."""

from pathlib import Path
from typing import Any

import rose

PROJECTIONS = {"self_attn.o_proj": (8, 8), "mlp.down_proj": (8, 16)}


def made_report(
    method: str = "sparsegpt", factor: float = 1.0, *, blocks: int = 3, width: int = 8, **summary: Any
) -> rose.RunReport:
    """A run over so many decoder blocks of two layers, their errors times `factor`."""
    places = [(block, name, columns) for block in range(blocks) for name, (_, columns) in PROJECTIONS.items()]
    records = []
    for block, projection, columns in places:
        place = {"layer": f"model.layers.{block}.{projection}", "block_index": block, "projection": projection}
        is_columnar = projection.endswith("o_proj") and block == 1
        errors = {"relative_error": 0.1 * factor * (1 + block), "held_out_error": 0.2 * factor * (1 + block)}
        numbers = {"rows": width, "columns": columns, "relative_range": 0.6 if is_columnar else 0.1, **errors}
        same = {"sparsity": 0.7, "damping": 0.01, "dead_columns": 0, "seconds": 0.5, "order": "natural"}
        record = {**place, **numbers, **same, "method": method, "is_columnar": is_columnar, "budget": "block"}
        records.append(rose.LayerRecord(**record))
    drift = [
        {"block_index": block, "drift": 0.1 * factor * (1 + block), "passed_on": 0.05 * block, "arisen": 0.05}
        for block in range(blocks)
    ]
    settings = {"model": "tiny", "method": method, "sparsity": "0.7", "target": "dense", "damping": 0.01}
    settings |= {"samples": 4, "length": 16, "seed": 0, "seconds": 3.0, "windows": 4, "drift": drift}
    settings |= {"perplexity_before": 20.0, "perplexity_after": 20.0 + 10.0 * factor}
    marks = {"ratio": "slim", "methods": "analyze", "step_weights": "diffuse prune"}
    run = next((run for mark, run in marks.items() if mark in summary), "prune")
    return rose.RunReport.from_records(records, {"run": run}, **(settings | summary))


def made_run(*arguments: Any, **summary: Any) -> rose.RunReport:
    (run,) = made_report(*arguments, **summary).runs
    return run


def made_tuning(change: dict[str, float], **facts: Any) -> dict[str, Any]:
    """What a record tells of a tuning that moved these layers, see `rose.model.tune.task.TuneReport.facts`."""
    counts = dict.fromkeys(("steps", "steps_planned", "kept_step", "zeros", "weights", "samples", "length"), 4)
    return counts | {"minutes": 3.0, "seconds": 180.0, "rate": 0.001, "curve": [], "change": change} | facts


def saved(folder: Path, report: rose.RunReport) -> Path:
    report.save(folder)
    return folder
