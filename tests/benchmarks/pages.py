"""Server time of page changes and slider moves on measured layers: python -m tests.benchmarks.pages.

Not part of the test run. Runs the pages as Streamlit does, without a browser, on one decoder block of the packaged
model; each number is the median of a few runs, in milliseconds, from the change to the last element sent.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from streamlit.testing.v1 import AppTest

from app import session, shared
from app.study.setup import Setup
from app.study.study import Calibration, LoadedModel, Study

MAIN = str(Path(session.__file__).parent / "main.py")
LAYERS = ("model.layers.18.self_attn.o_proj", "model.layers.18.mlp.down_proj")
SETUP = Setup(layers="model.layers.18.*", samples=4, length=256, held_out=2)
SECTIONS: dict[str, dict[str, str]] = {
    "Weights": {},
    "Weights, surface": {"weights_as": "3-D surface"},
    "Inputs": {},
    "Inputs, spectrum": {"hessian": "Spectrum"},
    "Losses": {},
    "Losses, mask": {"loss_map": "Pre-pruning mask"},
    "Order": {},
    "Error": {},
    "Compare layers": {},
}
REPEATS = 5


def measured() -> Study:
    def load() -> LoadedModel:
        return shared._loaded_model.__wrapped__(  # type: ignore[attr-defined]
            SETUP.model, SETUP.dtype, SETUP.stream
        )

    study = Study(SETUP, load, Calibration())
    study.job.watch("benchmark")
    study.job.start()
    study.job.wait(600)
    assert study.job.status == "done", study.job.message
    shared.studies()[SETUP] = study
    return study


def opened(page: str, **query: str) -> AppTest:
    app = AppTest.from_file(MAIN, default_timeout=120)
    for name, value in (SETUP.to_texts() | query).items():
        app.query_params[name] = value
    app.run()
    app.switch_page(f"views/{page}.py").run()
    assert not app.exception, app.exception
    return app


def median(act: Callable[[int], object]) -> float:
    """Milliseconds; the argument counts the runs, so that every run can change something."""
    times = []
    for turn in range(REPEATS):
        start = time.perf_counter()
        act(turn)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def again(app: AppTest, _turn: int) -> None:
    app.run()


def mark(block: Any, turn: int) -> None:
    block.set_value(str(turn)).run()


def main() -> None:
    measured()
    table = Table("What", "Median, ms", title="Server time on measured layers; aim: below 300 ms")
    layers = opened("layers")
    table.add_row("Layers: page", f"{median(lambda _: layers.run()):.0f}")
    slider = layers.slider(key="threshold_widget")
    table.add_row("Layers: threshold moved", f"{median(lambda turn: slider.set_value(0.3 + turn / 50).run()):.0f}")
    for layer in LAYERS:
        name = layer.removeprefix("model.layers.")
        for label, choices in SECTIONS.items():
            app = opened("layer", layer=layer, section=label.split(",")[0], **choices)
            table.add_row(f"Layer {name}: {label}", f"{median(partial(again, app)):.0f}")
        app = opened("layer", layer=layer, section="Losses")
        block = app.selectbox(key="block")
        moved = median(partial(mark, block))
        table.add_row(f"Layer {name}: another block marked", f"{moved:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
