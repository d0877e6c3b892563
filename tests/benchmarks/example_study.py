"""Makes the files that come with the app, each beside the module that reads it.

    python -m tests.benchmarks.example_study studies --models qwen-0.5b.gguf qwen-1.5b.gguf   # the finished studies
    python -m tests.benchmarks.example_study whole_models    # numbers of docs/results that the lessons show

A study has every number and every layer's profile, at most 5 MB; the packaged model's (a few minutes) also has the
statistics of its most columnar layers. Make the studies again whenever their measurements have changed;
`tests/app/study/test_example.py` compares the first with a fresh measurement.
"""

import platform
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers

import rose
from app.lessons import example
from app.study import cache
from app.study.setup import MEASURED, Setup
from app.study.study import Calibration, LoadedModel, Study
from rose.layer.pattern import THRESHOLD
from rose.layer.settings import LayerSettings
from rose.model.network.layers import PrunableLayer
from rose.model.run.one_layer import Energies, measure_layer
from tests.benchmarks.common import arguments

ROOT = Path(__file__).parents[2]
LAYERS = 1  # whose statistics go along: 0.7 MB for each of the two streams of a layer with 576 inputs
DRAWS = 3  # of text, of models with fewer parameters than `SMALL`
SMALL = 1e9
WIDEST = 1024  # input channels of such a layer


def make_studies(models: list[str]) -> list[Path]:
    """Measures the studies afresh, whatever is on disk; of the second and third, `models` are the GGUF files."""
    named = zip(cache.FINISHED.items(), [None, *models], strict=False)
    return [make_study(setup, path, model or setup.model) for (setup, path), model in named]


def make_study(setup: Setup, path: Path, model: str) -> Path:
    """Every number and the profile of each layer; of the packaged model, statistics of the most columnar layers too."""
    loaded = LoadedModel(*rose.load_model(model, dtype=setup.dtype), threading.Lock())
    study, wanted = Study(setup, lambda: loaded, Calibration(), cache.Files(None, None), recall=False), set[str]()
    study.loaded, study.head_width = loaded, loaded.network.head_width
    is_small = sum(weight.numel() for weight in loaded.model.parameters()) < SMALL
    for seed in range(DRAWS if is_small else 1):
        tokens, held_out = setup.changed(seed=seed).draw(loaded.tokenizer, print)
        for block in rose.visit_blocks(loaded.model, tokens, held_out=held_out):
            study.job.watch("terminal")
            if seed == 0:
                study._measure(block, block, study.job)
                wanted |= set(_most_columnar(study)) if setup == Setup() else set()
                study._layers = {name: kept for name, kept in study._layers.items() if name in wanted}
            else:
                for layer in block.layers:
                    saved = _saved(study, layer, block.calibration[layer.name], block.held_out[layer.name])
                    for name, share in saved.items():
                        study.draws.setdefault(layer.name, {}).setdefault(name, []).append(share)
            print(f"{path.stem}, seed {seed}, decoder block {block.block_index}", flush=True)
    layers = _most_columnar(study) if setup == Setup() else []
    kept = replace(
        study.measurements,
        calibration={name: study.statistics(name) for name in layers},
        held_out={name: others for name in layers if (others := study.held_out_statistics(name)) is not None},
        text=cache.text_digest(),
        made_with=f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
    )
    path.parent.mkdir(exist_ok=True)
    cache.write(path, kept)
    return path


def _most_columnar(study: Study) -> list[str]:
    table = study.overview(THRESHOLD).query(f"columns <= {WIDEST}")
    return list(table.sort_values("relative_range", ascending=False, kind="stable")["layer"].head(LAYERS))


def _saved(study: Study, layer: PrunableLayer, inputs: rose.InputStatistics, others: rose.InputStatistics) -> dict:
    """Shares of SparseGPT's held-out error that the other methods save in another draw."""
    options, energies = study.layer_options(), Energies(layer.weight)
    errors: dict[str, Any] = {
        name: measure_layer(layer, inputs, others, LayerSettings.of(**options, **how), energies).held_out_error
        for name, how in MEASURED.items()
    }
    return {name: round(1 - error / errors["sparsegpt"], 5) for name, error in errors.items() if name != "sparsegpt"}


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
    parts_of_errors = _parts_of_errors(pd.read_csv(results / "splits.csv"))
    by_heads = _by_heads(pd.read_csv(results / "heads.csv", dtype={"sparsity": str}))
    parts = [
        headline.assign(file="headline.csv"),
        errors.assign(file="orders-outputs.csv"),
        columnar.assign(file="layers-70.csv", tuned=False, seed=0),
        parts_of_errors.assign(file="splits.csv", tuned=False, seed=0),
        by_heads.assign(file="heads.csv", tuned=False),
    ]
    return pd.concat(parts)[["file", "method", "tuned", "seed", "value"]].round(4).reset_index(drop=True)


def _parts_of_errors(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over output projections, as parts of SparseGPT's error: method is "SWEEP PART"."""
    rows = rows[(rows["model"] == "smollm2-135m") & rows["layer"].str.endswith("o_proj")]
    base = rows[rows["sweep"] == "natural/block"].set_index("layer")
    columns = {"error": "error", "mask": "mask_error", "held out": "held_out_error"}
    means = []
    for part, column in columns.items():
        against = rows["layer"].map(base["held_out_error" if part == "held out" else "error"])
        mean = (rows[column] / against).groupby(rows["sweep"], sort=False).mean()
        means.append(mean.rename(lambda sweep, part=part: f"{sweep} {part}"))
    return pd.concat(means).rename_axis("method").reset_index(name="value")


def _by_heads(rows: pd.DataFrame) -> pd.DataFrame:
    """SparseGPT's held-out error by block size, relative to blocks of 128, geometric means over output projections."""
    rows = rows[(rows["model"] == "smollm2-135m") & (rows["sparsity"] == "0.7") & (rows["sweep"] == "natural/block")]
    wide = rows.pivot(index=["seed", "layer"], columns="block_size", values="held_out_error")
    means = np.exp(np.log(wide.div(wide[128], axis=0)).groupby("seed").mean())
    return means.melt(var_name="method", ignore_index=False).reset_index().astype({"method": str})


def make_whole_models() -> Path:
    copied_numbers().to_csv(example.DATA, index=False)
    return example.DATA


def main() -> None:
    options = arguments(__doc__, "files", models=[""])
    torch.set_num_threads(1)
    names = options.files or ["studies", "whole_models"]
    paths = make_studies([model for model in options.models if model]) if "studies" in names else []
    for path in [*paths, *([make_whole_models()] if "whole_models" in names else [])]:
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
