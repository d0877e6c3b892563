"""Makes the files that come with the app, each beside the module that reads it.

    python -m tests.benchmarks.example_study study           # the finished study: a minute or two
    python -m tests.benchmarks.example_study first           # the first pictures of a starting server, from the study
    python -m tests.benchmarks.example_study whole_models    # numbers of docs/results that the lessons show

The study has every number, the statistics of the most columnar layers, and the heads that can be rotated: about 6 MB.
Make it again whenever a study's measurements have changed; `tests/app/study/test_example.py` compares it with a fresh
measurement.
"""

import gzip
import html
import json
import platform
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd
import torch
import transformers
from playwright.sync_api import Page
from plotly.offline import get_plotlyjs

import rose
from app import first
from app.figures import maps, palette, weights
from app.figures.style import untitled
from app.jobs import run_to_end
from app.lab import your_order
from app.lessons import example
from app.study import cache
from app.study.setup import Setup
from app.study.study import Calibration, LoadedModel, Study
from app.words import short_layer
from rose.layer.pattern import THRESHOLD
from rose.model.walk.heads import value_heads
from tests.benchmarks.common import arguments
from tests.browser.conftest import chromium

ROOT = Path(__file__).parents[2]
LAYERS = 3  # whose statistics go along: 0.7 MB for each of the two streams of a layer with 576 inputs
WIDTHS = {"layers": (492, 376), "layer": (884,), "order_lab": (376,)}  # pixels of a page's figures on a screen of 1280
# Larger than it is shown, as texts are wider than in the page's font; the names of a legend would take the most room.
DRAW = """([figure, width]) => {
  const [wide, high] = [width, figure.layout.height].map(side => 1.2 * side);
  const layout = {...figure.layout, width: wide, height: high, showlegend: false};
  return Plotly.toImage({...figure, layout}, {format: "svg", width: wide, height: high});
}"""
WIDEST = 1024  # input channels of such a layer


def load() -> LoadedModel:
    return LoadedModel(*rose.load_model(Setup().model, dtype=Setup().dtype), threading.Lock())


def make_study() -> Path:
    """Measures the study afresh, whatever is on disk. Raises RoseError if the measurement fails."""
    study = Study(Setup(), load, Calibration(), cache.Files(None, None), recall=False)
    run_to_end(study.job, lambda: f"{len(study.records())} measurements")
    assert study.loaded is not None
    table = study.overview(THRESHOLD)
    narrow = table[table["columns"] <= WIDEST].sort_values("relative_range", ascending=False, kind="stable")
    layers = narrow["layer"].head(LAYERS)
    kept = replace(
        study.measurements,
        calibration={name: study.statistics(name) for name in layers},
        held_out={name: held_out for name in layers if (held_out := study.held_out_statistics(name)) is not None},
        heads={heads.output.name: heads.layout for heads in value_heads(study.loaded.network)},
        text=cache.text_digest(),
        made_with=f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
    )
    cache.write(cache.EXAMPLE, kept)
    return cache.EXAMPLE


def make_first() -> Path:
    """Draws what the pages open on for the example."""
    study = Study(Setup(), load, Calibration())
    assert study.restore()
    study.loaded = load()
    study._place_statistics(study.loaded)
    table, saved = study.overview(0.5), study.kept
    assert saved is not None
    layers = sorted(saved.calibration, key=table.set_index("layer")["relative_range"].__getitem__, reverse=True)
    titles = {page: _title(f"{page or 'start'}.py") for page in first.PAGES}
    content: dict[str, Any] = {"layer": layers[0], "titles": titles}
    for theme in palette.INKS:
        look: dict[str, Any] = {"theme": theme, "marked_layer": layers[0]}
        content[theme] = {
            "layers": [maps.model_map(table, layers=study.layer_names, **look), maps.gain_scatter(table, **look)]
        }
        for layer in layers:
            plan, norm = study.plan(layer), study.statistics(layer).mean_square.sqrt()
            options: dict[str, Any] = {"layer": short_layer(layer), "theme": theme}
            strips = weights.layer_strips(study.weight(layer), plan, norm, heads=study.heads(layer), **options)
            content[theme] |= {
                f"layer {layer}": [strips],
                f"order_lab {layer}": [your_order.opening(study, layer, theme)],
            }
        with chromium() as browser:
            page = browser.new_page()
            page.add_script_tag(content=get_plotlyjs())
            content[theme] = {
                name: [
                    _packed(drawing, page, width)
                    for drawing, width in zip(drawings, WIDTHS[name.partition(" ")[0]], strict=True)
                ]
                for name, drawings in content[theme].items()
            }
    first.FILE.write_bytes(gzip.compress(json.dumps(content).encode(), 9, mtime=0))
    return first.FILE


def _title(file: str) -> str:
    """As the page itself says it."""
    title = re.search(r'st\.title\("(.*)"\)', (ROOT / "app/views" / file).read_text(encoding="utf-8"))
    assert title is not None
    return title[1]


def _packed(drawing: Any, page: Page, width: int) -> dict[str, Any]:
    """The drawing as SVG, this many pixels wide, and the words around it."""
    meta = drawing.figure.layout.meta
    texts = {part: html.escape(re.sub("<.*?>", "", meta[part])) for part in ("finding", "what")}
    address = page.evaluate(DRAW, [json.loads(untitled(drawing.figure).to_json()), width])
    return texts | {"alt": html.escape(drawing.alt), "svg": unquote(address.partition(",")[2])}


def copied_numbers() -> pd.DataFrame:
    """The rows of `example.measured`, from docs/results."""
    results = ROOT / "docs/results"
    headline = pd.read_csv(results / "headline.csv")
    headline = headline[headline["comparison"] == "headline 0.7"].assign(value=headline["perplexity"])
    layers = pd.read_csv(results / "orders-outputs.csv", dtype={"sparsity": str, "block_size": str})
    chosen = (layers["model"] == "smollm2-135m") & (layers["sparsity"] == "0.7") & (layers["block_size"] == "128")
    layers = layers[chosen & (layers["basis"] == "as given")]
    orders = [name for name in layers.columns if "/" in name or name.startswith("rose")]
    relative = layers[orders].div(layers["natural/block"], axis=0).groupby(layers["seed"]).mean()
    errors = relative.melt(var_name="method", ignore_index=False).reset_index().assign(tuned=False)
    columnar = pd.read_csv(results / "layers-70.csv").query(f"relative_range > {THRESHOLD}")
    columnar = columnar.pivot(index="layer", columns="method", values="held_out_error")
    columnar = columnar.div(columnar["sparsegpt"], axis=0)[["rose"]].melt(var_name="method")
    rotated = pd.read_csv(results / "rotation.csv").query("model == 'smollm2-135m' and method == 'sparsegpt'")
    rotated = rotated.pivot(index="layer", columns="basis", values="error")
    bases = pd.Series({"learned": (rotated["learned"] / rotated["as given"]).mean()}).rename_axis("method")
    parts = [
        headline.assign(file="headline.csv"),
        errors.assign(file="orders-outputs.csv"),
        columnar.assign(file="layers-70.csv", tuned=False, seed=0),
        bases.reset_index(name="value").assign(file="rotation.csv", tuned=False, seed=0),
    ]
    return pd.concat(parts)[["file", "method", "tuned", "seed", "value"]].round(4).reset_index(drop=True)


def make_whole_models() -> Path:
    copied_numbers().to_csv(example.DATA, index=False)
    return example.DATA


MAKERS = {"study": make_study, "first": make_first, "whole_models": make_whole_models}


def main() -> None:
    for name in arguments(__doc__, "files").files or MAKERS:
        path = MAKERS[name]()
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
