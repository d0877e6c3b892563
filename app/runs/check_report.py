"""What was found in a checkpoint as one file to send, and its drift as a figure. No Streamlit here."""

from typing import Any

from app import words
from app.figures import checkpoint as figures
from app.figures.drift import drift_curves
from app.figures.maps import where_layers
from app.figures.palette import Theme
from app.figures.style import Drawing
from app.runs.checked import CheckpointRun, differs, facts, finding, record_of
from app.runs.depth import drift_table
from app.runs.html_page import Report
from rose.environment import says_versions
from rose.model.check.check import CheckpointCheck

NAMED = 20  # of what is wrong, in words
BARS = 3  # layers whose errors are drawn


def report_of(run: CheckpointRun) -> Report:
    """What was found as a file to send: the map, layers that stand out, drift, numbers."""
    found, request = run.found, run.request
    assert found is not None
    wrong = found.wrong
    named = [f"{words.short_layer(row.name)}, {row.verdict}: {row.reason}" for row in wrong.head(NAMED).itertuples()]
    drawings = [map_of(found)] if differs(found) else []
    drawings += [figures.broken_pattern(one, layer=words.short_layer(name)) for name, one in run.excerpts.items()]
    drawings += [
        figures.compensation_bars(row, layer=words.short_layer(row["layer"]))
        for _, row in found.by_error.head(BARS).iterrows()
    ]
    if found.summary["drift"]:
        drawings.append(drift_curve(run))
    on = f" on {request.setup.samples} × {request.setup.length} tokens of {words.text_name(request.setup.text)}"
    return Report(
        title=f"Check of {request.name}",
        subtitle=f"Against {request.setup.model}{on if request.with_tokens else ', the weights alone'}",
        findings=[f"{finding(found)}.", *named, *facts(run)],
        drawings=drawings,
        tables={name: table for name, table in {"What is wrong": wrong, "Others": found.others}.items() if len(table)},
        layers=found.layers,
        commands={request.name: request.command},
        versions={request.name: says_versions()},
    )


def drift_curve(run: CheckpointRun, theme: Theme = "light") -> Drawing:
    table = drift_table([record_of(run)])
    last = table.iloc[-1]
    said = f"After decoder block {last['block_index']:.0f} the drift is {words.number(float(last['drift']))}"
    return drift_curves(table, finding=said, theme=theme)


def map_of(found: CheckpointCheck, **look: Any) -> Drawing:
    """The verdicts on all layers, titled by where the wrong ones lie."""
    said = words.sentence(where_layers(found.layers[found.layers["is_wrong"]], "wrong"))
    return figures.verdict_map(found.layers, said, **look)
