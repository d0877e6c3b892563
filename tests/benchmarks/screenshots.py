"""Pictures for the README: python -m tests.benchmarks.screenshots [FOLDER [NAME ...]]. All of them take some minutes.

The packaged model on the start page's own settings, all layers measured, in light and dark, at a width of 1280; of
most pages the figure alone. Names are those of the files: layers, prune, check, pareto, slim, depth, damage,
your_own_order, ...
"""

import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import nbformat
import pandas as pd
import plotly.graph_objects as go
import torch
from playwright.sync_api import Browser, Page, expect

import rose
from app.figures.palette import Theme, method_style
from app.figures.shapes import Chart
from app.figures.style import Drawing
from rose import verdicts
from rose.model.network.layers import prunable_layers
from rose.verdicts import Result
from tests.benchmarks import bits, structured, tuning
from tests.benchmarks.methods import costs_and_worths
from tests.browser.conftest import COLUMNAR_LAYER, ROOT, SETUP, chromium, measure, serve, settle
from tests.browser.test_prune import prune

PAGES: dict[str, dict[str, Any]] = {
    "start": {},
    "layers": {},
    "layer": {},
    "order_lab": {},
    "structures": {},
    "smaller": {},
    "learn": {},
    "prune": {
        "prune_layers": "model.layers.[0-5].*",
        "prune_methods": ["ROSE ADMM", "SparseGPT", "Wanda"],
        "prune_sparsities": "0.7",
    },
    "text": {},
    "diffusion": {"diffusion_sparsity": "0.7"},
}
WHOLE = ("start", "learn", "smaller", "text")  # pages whose words belong to the picture
TALL = 1800  # pixels, in which every page shows its first figures
ALL_LAYERS = 900_000  # milliseconds, for measuring or pruning them on a busy machine
RESULTS = ROOT / "docs/results"
THEMES: tuple[Theme, ...] = ("light", "dark")
RENDERING = 1500  # milliseconds, for what plotly draws after the script has ended
BROKEN = "model.layers.1.mlp.up_proj"


def broken_checkpoint(dense: str, folder: Path) -> Path:
    """2:4 by magnitude, one group of which keeps three weights."""
    model, tokenizer = rose.load_model(dense)
    with torch.no_grad():
        for layer in prunable_layers(model):
            weight = layer.module.get_parameter("weight")
            groups = weight.unflatten(1, (-1, 4))
            groups.scatter_(2, groups.abs().topk(2, largest=False).indices, 0)
            if layer.name == BROKEN:
                weight[7, 16:20] = torch.tensor([0.1, 0.2, 0.3, 0.0])
    rose.save_model(model, tokenizer, folder / "broken")
    return folder / "broken"


def query(page: str = "start") -> str:
    return urlencode({"layer": COLUMNAR_LAYER} | PAGES[page], doseq=True)


def crop(page: Page, path: Path, *parts: str) -> None:
    """A picture of these parts of the page and of what lies between them; of its first figure unless told otherwise."""
    boxes = [page.locator(part).first.bounding_box() for part in parts or (".stPlotlyChart",)]
    known = [box for box in boxes if box is not None]
    left, top = (min(box[side] for box in known) for side in ("x", "y"))
    right = max(box["x"] + box["width"] for box in known)
    bottom = max(box["y"] + box["height"] for box in known)
    page.add_style_tag(content=".modebar-container { display: none; }")
    page.screenshot(path=path, clip={"x": left, "y": top, "width": right - left, "height": bottom - top})
    print(path, flush=True)


def shoot(page: Page, address: str, name: str, path: Path) -> None:
    page.set_viewport_size({"width": 1280, "height": 800 if name in WHOLE else TALL})
    page.goto(f"{address}/{name if name != 'start' else ''}?{query(name)}")
    settle(page)
    if name == "prune" and page.get_by_role("button", name="Prune", exact=True).is_enabled():
        prune(page)
    if name == "text":  # read by the copy that was pruned last
        page.get_by_role("button", name="Read", exact=True).click()
        expect(page.get_by_text("surprise itself")).to_be_visible(timeout=ALL_LAYERS)
    if name == "diffusion":
        page.get_by_role("button", name="Prune and draw").click()
        expect(page.locator(".figure-title", has_text="ROSE 0.7: ")).to_be_visible(timeout=ALL_LAYERS)
    if name in ("layer", "order_lab", "structures"):  # sweeps and costs are computed first
        expect(page.locator(".figure-title").first).to_be_visible(timeout=ALL_LAYERS)
    expect(page.get_by_test_id("stSidebar").get_by_role("progressbar")).to_have_count(0, timeout=ALL_LAYERS)
    page.wait_for_timeout(RENDERING)
    if name in WHOLE:
        page.screenshot(path=path)
    else:
        crop(page, path, *(("[data-testid=stTable]", ".stPlotlyChart") if name == "prune" else ()))


def plugin(folder: Path) -> Path:
    """The file that the notebook on one's own method writes."""
    notebook = nbformat.read(ROOT / "notebooks/your_own_method.ipynb", as_version=4)
    (source,) = (cell.source for cell in notebook.cells if cell.source.startswith("%%writefile"))
    path = folder / "my_method.py"
    path.write_text(source.partition("\n")[2])
    return path


def shoot_plugin(browser: Browser, folder: Path, pictures: Path) -> None:
    """The order lab with the order of that notebook."""
    orders = {"lab_section": "Order × budget", "lab_matrix_orders": ["Natural", "Two-level", "Snake"]}
    words = urlencode(SETUP | {"layer": COLUMNAR_LAYER} | orders, doseq=True)
    with serve(folder / "log.txt", ROSE_PLUGINS=str(plugin(folder))) as address:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{address}/?{words}")
        measure(page)
        page.goto(f"{address}/order_lab?{words}")
        settle(page)
        page.wait_for_timeout(RENDERING)
        crop(page, pictures / "your_own_order.png")


def shoot_check(browser: Browser, address: str, folder: Path, pictures: Path) -> None:
    """The packaged model at 2:4 with a group that keeps too many, judged by its weights."""
    asked = {"check_path": str(broken_checkpoint("smollm2-135m", folder)), "check_on": "Weights alone"}
    for scheme in THEMES:
        page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": TALL})
        page.goto(f"{address}/check?{urlencode(asked)}")
        settle(page)
        start = page.get_by_test_id("stMain").get_by_role("button", name="Check", exact=True)
        if start.count():  # sessions share what was checked
            start.click()
        expect(page.get_by_text("pattern broken: 1 of").first).to_be_visible(timeout=ALL_LAYERS)
        page.wait_for_timeout(RENDERING)
        crop(page, pictures / f"check-{scheme}.png")
        page.close()


def compare_targets(page: Page) -> None:
    """The comparison of two targets that Compare runs offers, on a server that has pruned nothing else."""
    if page.get_by_text("None of these runs has drift").is_visible():  # sessions share reports
        page.get_by_text("More runs: open saved ones").click()
        page.get_by_role("button", name="Compare two targets").click()
        expect(page.get_by_text(re.compile("^Perplexity of the runs shown: .*; "))).to_be_visible(timeout=ALL_LAYERS)


def measure_damage(page: Page) -> None:
    """All decoder blocks of the packaged model, each pruned alone."""
    start = page.get_by_role("button", name=re.compile("Measure sensitivity"))
    if start.count():  # sessions share what was measured
        start.click()
    expect(page.get_by_text("Changed together")).to_be_visible(timeout=ALL_LAYERS)


def shoot_measured(browser: Browser, folder: Path, pictures: Path, name: str, fill: Callable[[Page], None]) -> None:
    """A page behind a measurement that takes minutes, on a server of its own."""
    with serve(folder / f"{name}.txt", ROSE_CACHE="") as address:
        for scheme in THEMES:
            page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": TALL})
            page.goto(f"{address}/{name}")
            settle(page)
            fill(page)
            settle(page)
            page.wait_for_timeout(RENDERING)
            crop(page, pictures / f"{name}-{scheme}.png")
            page.close()


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
    rest = {*FIGURES, "check", "depth", "damage", "your_own_order"}
    asked = set(sys.argv[2:]) or {*PAGES, *rest}
    if "text" in asked:
        asked.add("prune")
    if unknown := asked - {*PAGES, *rest}:
        sys.exit(f"No picture is named {', '.join(sorted(unknown))}.")
    expect.set_options(timeout=ALL_LAYERS)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        cache = {"ROSE_CACHE": f"{folder}/cache"}
        with serve(Path(folder, "log.txt"), **cache) as address:
            for scheme in THEMES if asked & {*PAGES} else ():
                page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 800})
                page.goto(f"{address}/?{query()}")
                settle(page)
                page.get_by_role("link", name="Explore").first.click()  # the example; sessions share its inputs
                measured = page.get_by_test_id("stSidebar").get_by_text("layers measured")
                expect(measured).to_be_visible(timeout=ALL_LAYERS)
                for name in (name for name in PAGES if name in asked):
                    shoot(page, address, name, pictures / f"{name}-{scheme}.png")
                page.close()
            if "check" in asked:
                shoot_check(browser, address, Path(folder), pictures)
        for name in asked & FIGURES.keys():
            for theme in THEMES:
                shoot_figure(browser, FIGURES[name](theme), Path(folder), pictures / f"{name}-{theme}.png")
        for name, fill in {"depth": compare_targets, "damage": measure_damage}.items():
            if name in asked:
                shoot_measured(browser, Path(folder), pictures, name, fill)
        if "your_own_order" in asked:
            shoot_plugin(browser, Path(folder), pictures)


if __name__ == "__main__":
    main()
