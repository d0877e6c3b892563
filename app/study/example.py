"""Makes the finished study that comes with the app: python -m app.study.example. Takes a minute or two.

It measures all layers of the packaged model on the start page's settings, as the app would. It keeps
every number, the statistics of the most columnar layers, and the heads that can be rotated: about 6 MB. Run it again
whenever a study's measurements have changed; `tests/app/study/test_example.py` compares it with a fresh measurement.
"""

import platform
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import rose
from app.jobs import run_to_end
from app.study import cache
from app.study.setup import Setup
from app.study.study import Calibration, LoadedModel, Study
from rose.layer.defaults import THRESHOLD
from rose.model.run.rotation import value_heads

LAYERS = 3  # whose statistics go along: 0.7 MB for each of the two streams of a layer with 576 inputs
WIDEST = 1024  # input channels of such a layer


def restored() -> Study:
    """The study as it ships, with the model and the statistics of its most columnar layers."""
    study = Study(Setup(), _load, Calibration())
    assert study.restore()
    study.loaded = _load()
    study._place_statistics(study.loaded)
    return study


def _load() -> LoadedModel:
    return LoadedModel(*rose.load_model(Setup().model, dtype=Setup().dtype), threading.Lock())


def measured(setup: Setup, load: Callable[[], LoadedModel]) -> Study:
    """A study that is measured afresh, whatever is on disk. Raises RoseError if the measurement fails."""
    study = Study(setup, load, Calibration(), cache.Files(None, None), recall=False)
    run_to_end(study.job, lambda: f"{len(study.records())} measurements")
    return study


def measure() -> cache.Kept:
    """Measures the study that ships."""
    study = measured(Setup(), _load)
    assert study.loaded is not None
    table = study.overview(THRESHOLD)
    narrow = table[table["columns"] <= WIDEST].sort_values("relative_range", ascending=False, kind="stable")
    layers = narrow["layer"].head(LAYERS)
    return cache.Kept(
        study.all_records(),
        dict(zip(table["layer"], table["condition"], strict=True)),
        study._forecast,
        {name: study.statistics(name) for name in layers},
        {name: held_out for name in layers if (held_out := study.held_out_statistics(name)) is not None},
        {heads.output.name: heads.layout for heads in value_heads(study.loaded.network)},
        made_with=f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
    )


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else cache.EXAMPLE
    cache.write_example(measure(), path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
