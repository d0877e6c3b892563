"""Pictures for the README: python -m tests.benchmarks.screenshots [FOLDER [NAME ...]].

Pages as they open, on finished examples, in light and dark, at 1280 × 800. Names are those of the files: explore,
prune, check, pareto, slim, your_own_order, ...
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import nbformat
import pandas as pd
import plotly.graph_objects as go
from playwright.sync_api import Browser, Page, expect

from app.figures.palette import Theme, method_style
from app.figures.shapes import Chart
from app.figures.style import Drawing
from rose import verdicts
from rose.verdicts import Result
from tests.benchmarks import bits, structured, tuning
from tests.benchmarks.methods import costs_and_worths
from tests.browser.conftest import COLUMNAR_LAYER, ROOT, SETUP, choose, chromium, measure, serve, settle

PAGES = ("explore", "learn", "order_lab", "prune", "smaller", "check")
ADDRESSES = {"explore": ""}  # where they differ from the page's name
PATIENCE = 900_000  # milliseconds, for a layer's inputs on a busy machine
RESULTS = ROOT / "docs/results"
THEMES: tuple[Theme, ...] = ("light", "dark")
RENDERING = 1500  # milliseconds, for what plotly draws after the script has ended


def shoot(page: Page, address: str, name: str, path: Path) -> None:
    page.goto(f"{address}/{ADDRESSES.get(name, name)}")
    settle(page)
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)  # a layer's inputs are collected first
    settle(page)
    page.wait_for_timeout(RENDERING)
    page.screenshot(path=path)
    print(path, flush=True)


def plugin(folder: Path) -> Path:
    """The file that the notebook on one's own method writes."""
    notebook = nbformat.read(ROOT / "notebooks/your_own_method.ipynb", as_version=4)
    (source,) = (cell.source for cell in notebook.cells if cell.source.startswith("%%writefile"))
    path = folder / "my_method.py"
    path.write_text(source.partition("\n")[2])
    return path


def shoot_plugin(browser: Browser, folder: Path, pictures: Path) -> None:
    """The order lab with the order of that notebook."""
    words = urlencode(SETUP | {"layer": COLUMNAR_LAYER})
    with serve(folder / "log.txt", ROSE_PLUGINS=str(plugin(folder))) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{address}/?{words}")
        measure(page)
        page.goto(f"{address}/order_lab?{words}")
        settle(page)
        choose(page, "Sort by", "Snake")
        settle(page)
        page.wait_for_timeout(RENDERING)
        page.screenshot(path=pictures / "your_own_order.png")


def time_and_perplexity(results: Sequence[Result], *, dense: float, time: str, theme: Theme) -> Drawing:
    """A mark for each run with its name; the title says what `rose.verdicts` does."""
    chart = Chart(x=time, y="perplexity", height=600, theme=theme)
    for run in results:
        look = method_style(run.method)
        look = look.opened()._replace(colour=chart.ink.muted) if run.target == "layer" else look
        named: dict[str, Any] = {"mode": "markers+text", "textposition": "top center", "showlegend": False}
        chart.points([run.seconds], [run.value], look, "", size=13, text=[run.name], **named)
    chart.figure.add_hline(y=dense, line=chart.dashed | {"width": 1.5})
    chart.x(type="log")
    finding = verdicts.says_ranking(verdicts.rank(results))
    what = "Perplexity against time, lower is better in both; dashed: dense; grey, open: target layer"
    table = pd.DataFrame({"run": [run.name for run in results], "perplexity": [run.value for run in results]})
    return chart.done(finding, what, "", "Scatter chart of perplexity against time", table)


def pareto(theme: Theme) -> go.Figure:
    """Time against perplexity, from what results.md reports of one environment, controls with target layer included."""
    rows = pd.read_csv(RESULTS / "headline.csv", dtype={"sparsity": str})
    rows = rows[rows["comparison"].isin(["headline 0.7", "controls 0.7"]) & ~rows["tuned"]]
    return time_and_perplexity(
        costs_and_worths(
            pd.read_csv(RESULTS / "methods-times.csv"), rows.drop_duplicates(["method", "seed", "environment"])
        ),
        dense=float(rows["dense_perplexity"].iloc[0]),
        time="time of pruning ÷ SparseGPT's",
        theme=theme,
    ).figure


def tuned(theme: Theme) -> go.Figure:
    """The same of tuning.md."""
    rows = pd.read_csv(RESULTS / "tuning.csv", dtype={"sparsity": str}).query("model == 'smollm2-135m'")
    dense = float(rows.loc[rows["method"] == "dense", "perplexity"].iloc[0])
    measured = tuning.costs_and_worths(rows, "0.7")
    return time_and_perplexity(measured, dense=dense, time="processor time, s", theme=theme).figure


# Of numbers that documents report, without the app.
FIGURES: dict[str, Callable[[Theme], go.Figure]] = {
    "pareto": pareto,
    "tuning": tuned,
    "bits": lambda theme: bits.picture(pd.read_csv(RESULTS / "bits-budget.csv"), theme),
    "slim": lambda theme: structured.picture(pd.read_csv(RESULTS / "structured.csv"), theme),
    "slim-qwen": lambda theme: structured.picture(pd.read_csv(RESULTS / "qwen2.5-coder-0.5b-structured.csv"), theme),
}


def shoot_figure(browser: Browser, figure: go.Figure, folder: Path, picture: Path) -> None:
    page = browser.new_page(viewport={"width": 1100, "height": 620})
    figure.update_layout(height=600)
    file = folder / f"{picture.stem}.html"
    figure.write_html(file, config={"displayModeBar": False})
    page.goto(file.as_uri())
    page.wait_for_timeout(RENDERING)
    page.locator(".plotly-graph-div").screenshot(path=picture)
    page.close()


def main() -> None:
    pictures = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs/screenshots")
    names = {*PAGES, *FIGURES, "your_own_order"}
    asked = set(sys.argv[2:]) or names
    if unknown := asked - names:
        sys.exit(f"No picture is named {', '.join(sorted(unknown))}.")
    expect.set_options(timeout=PATIENCE)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        if asked & {*PAGES}:
            with serve(Path(folder, "log.txt"), ROSE_CACHE=f"{folder}/cache") as address:
                for scheme in THEMES:
                    page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 800})
                    page.set_default_timeout(PATIENCE)
                    for name in (name for name in PAGES if name in asked):
                        shoot(page, address, name, pictures / f"{name}-{scheme}.png")
                    page.close()
        for name in asked & FIGURES.keys():
            for theme in THEMES:
                shoot_figure(browser, FIGURES[name](theme), Path(folder), pictures / f"{name}-{theme}.png")
        if "your_own_order" in asked:
            shoot_plugin(browser, Path(folder), pictures)


if __name__ == "__main__":
    main()
