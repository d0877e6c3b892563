"""The check of a checkpoint as one file to send, and its drift as a figure. No Streamlit here."""

from typing import Any

from app import words
from app.figures import trust as figures
from app.figures.drift import drift_curves
from app.figures.maps import where_layers
from app.figures.palette import Theme
from app.figures.style import Drawing
from app.results.drift import drift_table
from app.results.html_page import ReportPage
from app.runs.checked import CheckpointRun, differs, facts, record_of
from rose.environment import says_versions
from rose.model.check.check import CheckpointCheck
from rose.model.check.findings import headline, lines
from rose.recipe import Recipe

BARS = 3  # layers whose errors are drawn


def report_of(run: CheckpointRun) -> ReportPage:
    """The headline, a line for each verdict, the map, layers that stand out, drift and numbers, as a file to send."""
    check, request = run.check, run.request
    assert check is not None
    drawings = [map_of(check)] if differs(check) else []
    drawings += [
        figures.broken_pattern(excerpt, layer=words.short_layer(name)) for name, excerpt in run.excerpts.items()
    ]
    drawings += [
        figures.compensation_bars(row, layer=words.short_layer(row["layer"]))
        for _, row in check.by_error.head(BARS).iterrows()
    ]
    if check.summary["drift"]:
        drawings.append(drift_curve(run))
    on = f" on {request.setup.samples} × {request.setup.length} tokens of {words.text_name(request.setup.text)}"
    tables = {"Wrong tensors": check.wrong, "Others that differ": check.others}
    return ReportPage(
        title=f"Check of {request.name}",
        subtitle=f"Against {request.setup.model}{on if request.with_tokens else ', the weights alone'}",
        findings=[headline(check).text, *map(": ".join, lines(check, words.short_layer)), *facts(run)],
        drawings=drawings,
        tables={heading: table for heading, table in tables.items() if len(table)},
        layers=check.layers,
        recipes={request.name: str(Recipe((request.recipe(),)))},
        versions={request.name: says_versions()},
    )


def drift_curve(run: CheckpointRun, theme: Theme = "light") -> Drawing:
    table = drift_table([record_of(run)])
    last = table.iloc[-1]
    finding = f"After decoder block {last['block_index']:.0f} the drift is {words.number(float(last['drift']))}"
    return drift_curves(table, finding=finding, theme=theme)


def map_of(check: CheckpointCheck, **look: Any) -> Drawing:
    """The verdicts on all layers, titled by where the wrong ones lie."""
    wrong = check.layers[check.layers["is_wrong"]]
    finding = words.sentence(where_layers(wrong, "wrong")) if len(wrong) else "Verdicts differ; no layer is accused"
    return figures.verdict_map(check.layers, finding, **look)
