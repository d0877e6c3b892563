"""Drift of pruned models along their decoder blocks, and pictures of a pruned diffusion model.

Along decoder blocks all numbers are on held-out tokens, relative to the dense model's hidden states; see
`storage.BlockDrift`.
"""

import pandas as pd

from app.figures import palette
from app.figures.palette import Style, Theme
from app.figures.shapes import Chart
from app.figures.style import Drawing
from app.words import percent

DRIFT = "drift ‖h<sub>p</sub> − h<sub>d</sub>‖² / ‖h<sub>d</sub>‖²"
HEIGHT = 410
# Along decoder blocks


def _curves(chart: Chart, table: pd.DataFrame, column: str, form: str, unit: str = "") -> None:
    """One line a run over decoder blocks."""
    runs = table.drop_duplicates("run")
    looks = palette.run_styles(list(zip(runs["run"], runs["method"], runs["target"], strict=True)))
    for name, rows in table.groupby("run", sort=False):
        hover = f"{name}<br>decoder block %{{x}}: %{{y:{form}}}{unit}"
        chart.line(rows["block_index"], rows[column], looks[str(name)], hover, width=2.2)
    chart.block_axis(table["block_index"])


def drift_curves(table: pd.DataFrame, *, finding: str, theme: Theme = "light") -> Drawing:
    """Drift after every decoder block, a line a run: run, method, sparsity, target, block_index, drift."""
    chart = Chart(x="decoder block", y=DRIFT, height=HEIGHT, legend=True, theme=theme)
    _curves(chart, table, "drift", ".4g")
    note = (
        "Squared distance of hidden states, pruned (p) from dense (d), after every decoder block; mean over held-out "
    )
    note += "tokens"
    alt = "Line chart of drift by decoder block, one line a run"
    return chart.done(finding, note, "", alt, table.reset_index(drop=True))


def drift_shares(table: pd.DataFrame, *, theme: Theme = "light") -> Drawing:
    """Drift of one run by decoder block: drift passed on to the block, and drift that arises in it."""
    blocks, chart = table["block_index"], Chart(x="decoder block", y=DRIFT, height=HEIGHT, legend=True, theme=theme)
    passed, arisen = Style(palette.SLATE, "passed on"), Style(palette.ORANGE, "arisen in the block", pattern="/")
    for column, look in {"passed_on": passed, "arisen": arisen}.items():
        chart.bars(blocks, table[column], look, f"decoder block %{{x}}<br>{look.label} %{{y:.4g}}")
    after, hover = Style(chart.ink.text, "drift after the block"), "decoder block %{x}<br>drift %{y:.4g}"
    chart.line(blocks, table["drift"], after, hover, width=2, size=7)
    chart.figure.update_layout(barmode="stack", bargap=0.15)
    chart.block_axis(blocks)
    source, total = table.loc[table["arisen"].idxmax()], table["arisen"].sum()
    finding = "No drift arises in any decoder block"
    if total > 0:
        share = percent(source["arisen"] / total, 0)
        finding = f"Decoder block {source['block_index']} adds most: {share} of all that arises"
    note = f"{table['run'].iloc[0]}: a stack above the line: the two partly cancel; below it: they reinforce each other"
    caption = "Passed on: drift that a block hands on with its dense weights. Arisen: what pruning its layers changes."
    alt = "Stacked bars of drift passed on and arisen, and a line of drift, by decoder block"
    return chart.done(finding, note, caption, alt, table.reset_index(drop=True))


# Pictures
