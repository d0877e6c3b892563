"""What every figure promises, whatever it shows."""

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

import app.figures
import rose
from app.figures import drift, losses, maps, methods, orders, palette, sensitivity, shapes, sweeps, trust, weights
from app.figures.style import Drawing
from app.lab.basis import BASES
from rose.layer.checks import CurvePoint, ErrorMeasures
from rose.layer.pattern import Pattern
from rose.rows import json_rows
from rose.verdicts import Result

COUNTED = re.compile(
    r"(decoder |pruned )?blocks?(?! loss)|query head|layers? pruned|layer, in|denoising steps"
    r"|step, noisiest|step of training"
)


def relative_curves(lab: SimpleNamespace) -> dict[str, np.ndarray]:
    """Undamped squared error after each block, relative to tr(W H Wᵀ), by order."""
    return {name: orders.so_far(result) / lab.energy for name, result in lab.results.items()}


NAME = "model.layers.1.self_attn.o_proj"
CURVE = [CurvePoint(256, 0.02, 0.09, 0.01), CurvePoint(512, 0.03, 0.06, 0.01)]
POSITIONS = pd.DataFrame({"position": [0, 1, 2], "relative_error": [0.10, 0.12, 0.15]})
ORDERS = pd.DataFrame(
    [(o, b, s, e) for o, e in (("natural", 0.2), ("global", 0.1)) for b in ("block", "layer") for s in (0.5, 0.7)],
    columns=["order", "budget", "sparsity", "relative_error"],
)
PERPLEXITY = [Result("SparseGPT", "sparsegpt", 32.2, seconds=1.0), Result("Magnitude", "magnitude", 3e4, seconds=9.0)]
SEEDS = pd.DataFrame(
    [("sparsegpt", "0.7", 0, 30.0), ("rose", "0.7", 0, 28.0), ("rose", "0.7", 1, 29.0)],
    columns=["method", "sparsity", "seed", "perplexity"],
).assign(mean_held_out_error=0.1, seconds=1.0)
DRIFTS = pd.DataFrame(
    [("layer", 0, 0.1, 0.0), ("layer", 1, 0.3, 0.35), ("dense", 0, 0.05, 0.0), ("dense", 1, 0.15, 0.175)],
    columns=["target", "block_index", "drift", "passed_on"],
).assign(
    run=lambda table: "SparseGPT, 0.7, target " + table["target"],
    method="sparsegpt",
    sparsity="0.7",
    arisen=0.1,
    cancelled=lambda table: table["passed_on"] + 0.1 - table["drift"],
    perplexity=20.0,
)
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
MEASURES = [ErrorMeasures("sparsegpt", 2.0, 2.002, 2.001, 10.0), ErrorMeasures("wanda", 3.0, 3.0, None, 10.0)]
EXCERPT = trust.MaskExcerpt(
    np.tile([True, True, False, False], (3, 2)) & (np.eye(3, 8) < 1), 9, 64, 2, 4, [(9, 64)], 3, 99
)
IN_BASES = pd.DataFrame(
    [
        (b, m, e, 1.2 * e)
        for b, e in zip(BASES, (0.12, 0.1, 0.08, 0.07), strict=True)
        for m in ("sparsegpt", "rose_admm")
    ],
    columns=["basis", "method", "relative_error", "held_out_error"],
)
COSTS = pd.Series({"mask_error": 0.2, "error": 0.1, "possible_error": 0.05, "recovered": 0.67, "error_of_rose": 0.08})
WAY = pd.DataFrame(
    [("stage 1 of 2", 1.0, False, 0.1, 0.12), ("stage 2 of 2", 2.0, True, 0.2, 0.3)],
    columns=["step", "work", "is_complete", "relative_error", "held_out_error"],
)
TUNED = pd.DataFrame(
    [(0, 1.0, np.nan, 1.2), (5, 9.0, 1.0, 0.9), (10, 17.0, 0.8, 0.95)], columns=["step", "seconds", "loss", "held_out"]
)
PIXELS = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 4, 4)
ALPHA = {name: rose.step_weights(name, 3) for name in ("uniform", "log_decrease")}
DIAGONALS = np.arange(1, 16, dtype=np.float32).reshape(3, 5)

HEADS = pd.DataFrame(
    [(b, h, h // 2, f"model.layers.{b}.self_attn.o_proj", 0.01 * (1 + b + h)) for b in range(3) for h in range(4)],
    columns=["block_index", "head", "group", "layer", "cost"],
)
CHANNELS = pd.DataFrame({"channel": [2, 0, 1], "alone": [0.01, 0.02, 0.3], "together": [0.01, 0.04, 1.0]})
ACCURACY = pd.DataFrame(
    [("piqa", 100, 0.6, 0.05, "Dense", "dense"), ("piqa", 100, 0.5, 0.05, "ROSE at 0.7", "rose")],
    columns=["task", "questions", "accuracy", "accuracy_error", "run", "method"],
)
TWO_RUNS = pd.DataFrame(
    [(f"model.layers.{b}.{p}", b, p, 0.1 * (b + 1), 0.08 * (b + 1)) for b in range(3) for p in ("o_proj", "up_proj")],
    columns=["layer", "block_index", "projection", "first", "second"],
)
APART = pd.concat([TWO_RUNS.assign(second=np.nan), TWO_RUNS[1:].assign(first=np.nan)])

FIGURES: dict[str, Callable[..., Drawing]] = {  # of the layer `lab`, with the tables `records` and `layers`
    "model_map": lambda x, **t: maps.model_map(x.layers, marked_layer=NAME, **t),
    "model_map_gain": lambda x, **t: maps.model_map(x.layers, "gain", **t),
    "model_map_condition": lambda x, **t: maps.model_map(x.layers, "condition", **t),
    "gain_scatter": lambda x, **t: maps.gain_scatter(x.layers, marked_layer=NAME, **t),
    "range_bars": lambda x, **t: maps.range_bars(x.layers, marked_layer=NAME, **t),
    "layer_strips": lambda x, **t: weights.layer_strips(
        x.weight, x.plan, x.statistics.mean_square.sqrt(), heads=4, marked_block=2, **t
    ),
    "weight_map": lambda x, **t: weights.weight_map(x.weight, widths=x.plan.block_width, marked_block=2, **t),
    "weight_surface": lambda x, **t: weights.weight_surface(x.weight, **t),
    "hessian_diagonal": lambda x, **t: weights.hessian_diagonal(
        x.statistics.diagonal, added=1.0, widths=x.plan.block_width, marked_block=2, **t
    ),
    "hessian_diagonal_log": lambda x, **t: weights.hessian_diagonal(
        x.statistics.diagonal, added=1.0, arrange="sorted", scale="log", **t
    ),
    "hessian_spectrum": lambda x, **t: weights.hessian_spectrum(
        torch.linalg.eigvalsh(x.statistics.hessian), added=1.0, **t
    ),
    "importance_map": lambda x, **t: weights.importance_map(x.plan, marked_block=2, **t),
    "potential_loss_map": lambda x, **t: weights.potential_loss_map(x.plan, marked_block=2, **t),
    "prepruning_mask": lambda x, **t: weights.prepruning_mask(x.plan, marked_block=2, **t),
    "column_loss_map": lambda x, **t: losses.column_loss_map(x.plan, marked_block=2, **t),
    "block_loss_bars": lambda x, **t: losses.block_loss_bars(x.plan, marked_block=2, **t),
    "order_picture": lambda x, **t: losses.order_picture(x.plan, "two_level", marked_block=2, marked_column=33, **t),
    "order_picture_mixed": lambda x, **t: losses.order_picture(x.plan, "hessian", marked_column=33, **t),
    "head_map": lambda x, **t: sensitivity.head_map(HEADS, marked_block=1, **t),
    "channel_curve": lambda x, **t: sensitivity.channel_curve(CHANNELS, 2, block=0, **t),
    "method_errors": lambda x, **t: methods.method_errors(x.records, **t),
    "over_seeds_bars": lambda x, **t: methods.over_seeds_bars(SEEDS, "0.7", **t),
    "error_curve": lambda x, **t: orders.error_curve(relative_curves(x), **t),
    "damage_split": lambda x, **t: orders.damage_split(x.results["two_level"], x.inside, **t),
    "sweep_film": lambda x, **t: sweeps.sweep_film([x.results["natural"], x.results["two_level"]], x.energy, **t),
    "solver_race": lambda x, **t: sweeps.solver_race({"sweep": ("One sweep", WAY)}, 3.0, held_out=True, **t),
    "basis_errors": lambda x, **t: orders.basis_errors(IN_BASES, BASES, "gathered", **t),
    "basis_errors_as_given": lambda x, **t: orders.basis_errors(IN_BASES.assign(held_out_error=np.nan), BASES, **t),
    "mask_changes": lambda x, **t: sweeps.mask_changes(
        x.weight.numpy() > 0, x.weight.numpy() > 0.1, solver="ADMM", step="iteration 2", since="its last step", **t
    ),
    "price_lines": lambda x, **t: orders.price_lines(
        {name: rose.price_columns(x.plan, name) for name in ("natural", "pivot")}, **t
    ),
    "forecast_scatter": lambda x, **t: orders.forecast_scatter(
        ORDERS.rename(columns={"relative_error": "measured"}).assign(forecast=0.1, budget="block"), **t
    ),
    "position_curve": lambda x, **t: orders.position_curve(POSITIONS, block=2, base="natural", place=2, **t),
    "order_bars": lambda x, **t: orders.order_bars(ORDERS, **t),
    "order_budget_matrix": lambda x, **t: orders.order_budget_matrix(ORDERS, **t),
    "error_measures": lambda x, **t: trust.error_measures(MEASURES, **t),
    "held_out_curve": lambda x, **t: trust.held_out_curve(CURVE, **t),
    "tensor_map": lambda x, **t: weights.tensor_map(np.eye(4, dtype=np.float32), (2, 2), name="w", **t),
    "histogram": lambda x, **t: weights.histogram(np.array([1, 2, 1]), np.linspace(-1, 1, 4), **t),
    "norms": lambda x, **t: weights.norms({"row": np.arange(1, 5), "column": np.arange(1, 9)}, **t),
    "verdict_map": lambda x, **t: trust.verdict_map(
        x.layers.assign(verdict="fails", reason="It is <b>wrong</b>.", is_wrong=True),
        "12 layers: all fail",
        marked_layer=NAME,
        **t,
    ),
    "broken_pattern": lambda x, **t: trust.broken_pattern(EXCERPT, layer=NAME, **t),
    "compensation_bars": lambda x, **t: trust.compensation_bars(COSTS, layer=NAME, **t),
    "layer_map": lambda x, **t: methods.layer_map(x.records, "rose", **t),
    "drift_curves": lambda x, **t: drift.drift_curves(DRIFTS, finding="Drift of 0.15", **t),
    "drift_shares": lambda x, **t: drift.drift_shares(DRIFTS[DRIFTS["target"] == "dense"], **t),
    "cancelled_shares": lambda x, **t: drift.cancelled_shares(DRIFTS, **t),
    "damage_map": lambda x, **t: sensitivity.damage_map(DAMAGES, marked="model.layers.1.mlp.up_proj", **t),
    "damage_map_error": lambda x, **t: sensitivity.damage_map(DAMAGES, "held_out_error", **t),
    "damage_bars": lambda x, **t: sensitivity.damage_bars(BLOCK_DAMAGES, marked="model.layers.1", **t),
    "damage_bars_error": lambda x, **t: sensitivity.damage_bars(BLOCK_DAMAGES, "held_out_error", **t),
    "damage_scatter": lambda x, **t: sensitivity.damage_scatter(DAMAGES, marked="model.layers.1.mlp.up_proj", **t),
    "perplexity_bars": lambda x, **t: methods.perplexity_bars(PERPLEXITY, dense=20.7, **t),
    "accuracy_bars": lambda x, **t: methods.accuracy_bars(ACCURACY, **t),
    "run_maps": lambda x, **t: maps.run_maps(TWO_RUNS, ("A", "B"), "held-out error", **t),
    "maps_apart": lambda x, **t: maps.run_maps(APART, ("A", "B"), "held-out error", why="Elsewhere.", **t),
    "run_difference": lambda x, **t: maps.run_difference(TWO_RUNS, ("A", "B"), "held-out error", **t),
    "run_difference_share": lambda x, **t: maps.run_difference(
        TWO_RUNS, ("A", "B"), "held-out error", as_share=True, **t
    ),
    "tuning_curve": lambda x, **t: methods.tuning_curve(TUNED, 40, dense=0.7, **t),
    "pictures": lambda x, **t: drift.pictures(
        {"Dense": PIXELS, "ROSE": -PIXELS}, ["bag", "coat"], 3, time=700.0, drift=0.2, **t
    ),
    "drift_curve": lambda x, **t: drift.drift_curve([0, 0.1, 0.3], [999, 499], method="rose", marked=1, **t),
    "step_weighting": lambda x, **t: drift.step_weighting(ALPHA, DIAGONALS, "log_decrease", **t),
}


def title(drawing: Drawing) -> str:
    return drawing.figure.layout.title.text.split("</b>")[0].removeprefix("<b>").replace("<br>", " ")


def below(drawing: Drawing) -> str:
    """What the second line of the title says is drawn."""
    return drawing.figure.layout.title.text.split("</b>")[1].replace("<br>", " ")


LARGE = [
    *("weight_map", "weight_surface", "hessian_diagonal", "importance_map", "potential_loss_map", "prepruning_mask"),
    *("column_loss_map", "block_loss_bars", "order_picture", "order_picture_mixed"),
]


def test_every_public_figure_is_listed_here():
    names = [found.name for found in pkgutil.iter_modules(app.figures.__path__)]
    modules = [importlib.import_module(f"app.figures.{name}") for name in names]
    drawing = {
        name
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ != "app.figures.lessons"  # tests/app/lessons draws these
        and not name.startswith("_")
        and function.__annotations__.get("return") == "Drawing"
    }
    called = {name for draw in FIGURES.values() for name in draw.__code__.co_names}
    assert drawing - {"finish"} <= called, "CONTRIBUTING.md says that all of them are held to the contract"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure(name, theme, lab, records, layers):
    before = records.copy()
    hold(FIGURES[name](SimpleNamespace(**vars(lab), records=records, layers=layers), theme=theme), theme)
    pd.testing.assert_frame_equal(records, before)


def hold(drawing: Drawing, theme: palette.Theme) -> None:
    """What every figure promises."""
    figure, layout = drawing.figure, drawing.figure.layout
    assert len(figure.to_json()) < 2_000_000
    assert re.match(r"<b>[A-Z0-9].*</b><br><span", layout.title.text), "a finding, and below it what is drawn"
    assert drawing.caption == "" or drawing.caption.endswith(".")
    assert len(drawing.alt) < 300
    assert layout.meta["finding"] in drawing.alt
    assert len(drawing.data) > 0
    assert json.dumps(json_rows(drawing.data), allow_nan=False)
    assert layout.template.layout.font.color == palette.INKS[theme].text
    assert layout.template.layout.paper_bgcolor == palette.INKS[theme].page
    _large_enough(figure.to_plotly_json())
    _typed_arrays(drawing)
    _whole_ticks(figure)
    assert not re.search(r'format": ?"[^"]*%"', figure.to_json()), "plotly's per cent has no space before the sign"


@pytest.fixture(scope="module")
def large() -> SimpleNamespace:
    """A layer of 4096 × 11008, as pre-pruning would leave it; put together by hand, as only drawing is tested."""
    score = torch.rand(4096, 11008, generator=torch.Generator().manual_seed(0))
    lost = score * (score < 0.7)
    plan = rose.OrderPlan(
        importance=score,
        potential_loss=lost,
        column_loss=lost.sum(0),
        block_loss=lost.sum(0).view(86, 128).sum(1),
        block_width=(128,) * 86,
        hessian_diagonal=score[0],
        relative_range=0.1,
        threshold=0.5,
        pattern=Pattern(0.7),
        block_size=128,
    )
    return SimpleNamespace(weight=score, plan=plan, statistics=SimpleNamespace(diagonal=score[0]))


@pytest.mark.parametrize("name", LARGE)
def test_figures_of_a_large_layer_stay_below_2_MB(name, large):
    assert len(FIGURES[name](large).figure.to_json()) < 2_000_000


def _large_enough(tree: object) -> None:
    """No text below 14 px outside the 3-D axes, whose labels have their own scale."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("font", "tickfont", "textfont") and isinstance(value, dict) and "size" in value:
                assert value["size"] >= 14, value
            elif key != "scene":
                _large_enough(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            _large_enough(value)


def _whole_ticks(figure: go.Figure) -> None:
    """No fractions on an axis that counts: blocks, heads, layers, steps."""
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        if COUNTED.match(axis.title.text or ""):
            assert axis.dtick in range(1, 1001), axis.title.text


def _typed_arrays(drawing: Drawing) -> None:
    for trace in drawing.figure.data:
        if trace.type in ("heatmap", "surface"):
            assert isinstance(trace.z, np.ndarray)
            assert trace.z.dtype in (np.float32, np.uint8)
            assert max(trace.z.shape) <= shapes.MAX_CELLS
