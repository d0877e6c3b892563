"""Every figure keeps the same contract; the conftest of this folder checks it for each figure that a test draws."""

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import app.figures
import rose
from app.figures import (
    drift,
    explore,
    losses,
    maps,
    methods,
    palette,
    sensitivity,
    shapes,
    trust,
    weights,
)
from app.figures.style import Drawing
from rose.layer.pattern import Pattern
from rose.rows import json_rows

COUNTED = re.compile(
    r"(decoder |pruned )?blocks?(?! loss)|query head|layers? pruned|layer, in|denoising steps"
    r"|step, noisiest|step of training"
)

NAME = "model.layers.1.self_attn.o_proj"
DRIFTS = pd.DataFrame(
    [("layer", 0, 0.1, 0.0), ("layer", 1, 0.3, 0.35), ("dense", 0, 0.05, 0.0), ("dense", 1, 0.15, 0.175)],
    columns=["target", "block_index", "drift", "passed_on"],
).assign(run=lambda table: "SparseGPT, 0.7, target " + table["target"], method="sparsegpt", sparsity="0.7", arisen=0.1)
DAMAGES = pd.DataFrame(
    [
        *((0, "mlp.up_proj", 0.01, 0.5), (0, "mlp.down_proj", 0.02, 0.01), (1, "mlp.up_proj", 0.03, 0.02)),
        *((1, "mlp.down_proj", 0.04, -0.001), (2, "mlp.up_proj", 0.05, 0.03), (2, "mlp.down_proj", 0.06, 0.04)),
    ],
    columns=["block_index", "projection", "relative_error", "damage"],
).assign(
    unit=lambda table: "model.layers." + table["block_index"].astype(str) + "." + table["projection"],
    held_out_error=lambda table: table["relative_error"],
    output_error=lambda table: 10 * table["relative_error"],
    drift=lambda table: table["relative_error"] / 9,
    standard_error=0.001,
)
BLOCK_DAMAGES = DAMAGES[::2].assign(unit=["model.layers.0", "model.layers.1", "model.layers.2"], projection="")
EXCERPT = trust.MaskExcerpt(np.tile([True, True, False, False], (3, 2)) & (np.eye(3, 8) < 1), 9, 64, 2, 4, [(9, 64)])
ERRORS = {"mask_error": 0.2, "error": 0.1, "possible_error": 0.05, "error_of_rose": 0.08}
COSTS = pd.Series(ERRORS | {f"held_out_{name}": 1.2 * error for name, error in ERRORS.items()} | {"recovered": 0.67})
TUNED = pd.DataFrame(
    [(0, 1.0, np.nan, 1.2), (5, 9.0, 1.0, 0.9), (10, 17.0, 0.8, 0.95)], columns=["step", "seconds", "loss", "held_out"]
)
HEADS = pd.DataFrame(
    [(b, h, h // 2, f"model.layers.{b}.self_attn.o_proj", 0.01 * (1 + b + h)) for b in range(3) for h in range(4)],
    columns=["block_index", "head", "group", "layer", "cost"],
)
CHANNELS = pd.DataFrame({"channel": [2, 0, 1], "alone": [0.01, 0.02, 0.3], "together": [0.01, 0.04, 1.0]})
TWICE = pd.Series({"held_out_sparsegpt": 0.2, "held_out_rose": 0.18, "is_columnar": True})
FORECASTS = pd.DataFrame(
    [("natural", "block", 0.2, 0.21), ("global", "block", 0.1, 0.12), ("global", "layer", 0.1, 0.11)],
    columns=["order", "budget", "forecast", "measured"],
)
LARGE: dict[str, Callable[..., Drawing]] = {  # figures of one layer
    "weight_map": lambda x: weights.weight_map(x.weight, widths=x.plan.block_width, marked_block=2),
    "hessian_diagonal": lambda x: weights.hessian_diagonal(
        x.statistics.diagonal, added=1.0, widths=x.plan.block_width, marked_block=2
    ),
    "importance_map": lambda x: weights.importance_map(x.plan, marked_block=2),
    "potential_loss_map": lambda x: weights.potential_loss_map(x.plan, marked_block=2),
    "prepruning_mask": lambda x: weights.prepruning_mask(x.plan, marked_block=2),
    "column_loss_map": lambda x: losses.column_loss_map(x.plan, marked_block=2),
    "block_loss_bars": lambda x: losses.block_loss_bars(x.plan, marked_block=2),
}
FIGURES: dict[str, Callable[..., Drawing]] = LARGE | {  # of the layer `lab`, and what no other test here draws
    "model_map_condition": lambda x: maps.model_map(x.layers, "condition", marked_layer=NAME),
    "strips": lambda x: explore.strips(x.columns),
    "joined_blocks": lambda x: explore.joined_blocks(x.columns, x.columns.profile.order(x.columns.size)),
    "errors_twice": lambda x: explore.errors_twice(TWICE, draws=[0.1, 0.05, 0.12]),
    "channel_curve": lambda x: sensitivity.channel_curve(CHANNELS, 2, block=0),
    "method_errors": lambda x: methods.method_errors(x.records),
    "tensor_map": lambda x: weights.tensor_map(np.eye(4, dtype=np.float32), (2, 2), name="w"),
    "histogram": lambda x: weights.histogram(np.array([1, 2, 1]), np.linspace(-1, 1, 4)),
    "norms": lambda x: weights.norms({"row": np.arange(1, 5), "column": np.arange(1, 9)}),
    "broken_pattern": lambda x: trust.broken_pattern(EXCERPT, layer=NAME),
    "compensation_bars": lambda x: trust.compensation_bars(COSTS, layer=NAME),
    "drift_curves": lambda x: drift.drift_curves(DRIFTS, finding="Drift of 0.15"),
    "drift_shares": lambda x: drift.drift_shares(DRIFTS[DRIFTS["target"] == "dense"]),
    "damage_map": lambda x: sensitivity.damage_map(DAMAGES, "held_out_error", marked=DAMAGES["unit"][2]),
    "damage_bars": lambda x: sensitivity.damage_bars(BLOCK_DAMAGES, marked="model.layers.1"),
    "damage_bars_error": lambda x: sensitivity.damage_bars(BLOCK_DAMAGES, "held_out_error"),
    "damage_scatter": lambda x: sensitivity.damage_scatter(DAMAGES, marked=DAMAGES["unit"][2]),
    "tuning_curve": lambda x: methods.tuning_curve(TUNED, 40, dense=0.7),
}


def title(drawing: Drawing) -> str:
    return drawing.figure.layout.title.text.split("</b>")[0].removeprefix("<b>").replace("<br>", " ")


def below(drawing: Drawing) -> str:
    """What the second line of the title says is drawn."""
    return drawing.figure.layout.title.text.split("</b>")[1].replace("<br>", " ")


def figure_functions() -> Iterator[tuple[ModuleType, str]]:
    """Every public function that draws, with its module; tests/app/lessons draws those of the lessons."""
    for module_info in pkgutil.iter_modules(app.figures.__path__):
        module = importlib.import_module(f"app.figures.{module_info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            draws = function.__annotations__.get("return") == "Drawing" and function.__module__ == module.__name__
            if draws and module_info.name != "lessons" and not name.startswith("_"):
                yield module, name


def test_every_public_figure_is_drawn_here():
    tests = " ".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    missing = [name for _, name in figure_functions() if f".{name}(" not in tests]
    assert not missing, "CONTRIBUTING.md says that all of them are held to the contract"


@pytest.mark.parametrize("name", FIGURES)
def test_figures_keep_their_contract(name, lab, records, layers):
    FIGURES[name](SimpleNamespace(**vars(lab), records=records, layers=layers))


def hold(drawing: Drawing, theme: palette.Theme) -> None:
    """What every figure promises."""
    figure, layout, text = drawing.figure, drawing.figure.layout, drawing.figure.to_json()
    assert len(text) < 2_000_000
    assert re.match(r"<b>[A-Z0-9].*</b><br><span", layout.title.text), "a finding, and below it what is drawn"
    assert drawing.caption == "" or drawing.caption.endswith(".")
    assert len(drawing.alt) < 300
    assert layout.meta["finding"] in drawing.alt
    assert len(drawing.data) > 0
    assert json.dumps(json_rows(drawing.data), allow_nan=False)
    assert layout.template.layout.font.color == palette.INKS[theme].text
    assert layout.template.layout.paper_bgcolor == palette.INKS[theme].page
    _large_enough(figure.to_plotly_json())
    for trace in figure.data:
        if trace.type == "heatmap":
            assert isinstance(trace.z, np.ndarray)
            assert trace.z.dtype in (np.float32, np.uint8)
            assert max(trace.z.shape) <= shapes.MAX_CELLS
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        if COUNTED.match(axis.title.text or ""):
            assert axis.dtick in range(1, 1001), f"no fractions on an axis that counts: {axis.title.text}"
    assert not re.search(r'format": ?"[^"]*%"', text), "plotly's per cent has no space before the sign"


@pytest.fixture(scope="module")
def large() -> SimpleNamespace:
    """A layer of 576 × 5504, as pre-pruning would leave it; put together by hand, as only drawing is tested."""
    score = torch.rand(576, 5504, generator=torch.Generator().manual_seed(0))
    lost = score * (score < 0.7)
    by_block = {"block_loss": lost.sum(0).view(43, 128).sum(1), "block_width": (128,) * 43, "block_size": 128}
    maps = {"importance": score, "potential_loss": lost, "column_loss": lost.sum(0), "hessian_diagonal": score[0]}
    plan = rose.OrderPlan(**maps, **by_block, relative_range=0.1, threshold=0.5, pattern=Pattern(0.7))
    return SimpleNamespace(weight=score, plan=plan, statistics=SimpleNamespace(diagonal=score[0]))


@pytest.mark.parametrize("name", LARGE)
def test_figures_of_a_large_layer_stay_small(name, large):
    LARGE[name](large)


def _large_enough(tree: object) -> None:
    """No text below 14 px."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("font", "tickfont", "textfont") and isinstance(value, dict) and "size" in value:
                assert value["size"] >= 14, value
            else:
                _large_enough(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            _large_enough(value)
