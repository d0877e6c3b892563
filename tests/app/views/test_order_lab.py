"""The order lab: every error shown is the one that `rose.prune_layer` gives for that order and budget."""

import base64
import json
from collections.abc import Sequence

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest
from torch import Tensor

import rose
from app.lab.sweeps import BASELINE
from app.study.study import Study
from rose.layer.error import relative_error
from rose.layer.forecast import best_shares
from rose.layer.split import split_error
from tests.app.tiny_study import COLUMNAR, WIDTH, figures, measured_study, open_page, texts, titles

pytestmark = pytest.mark.usefixtures("patient")
PAGE = "views/order_lab.py"
NATURAL = list(range(WIDTH))


def pruned(study: Study, order: str | Tensor | Sequence[int], budget: object, **changes: object) -> rose.LayerResult:
    options = {"method": "rose", "sparsity": 0.7, "block_size": 16, "order": order, "budget": budget} | changes
    return rose.prune_layer(study.weight(COLUMNAR), study.statistics(COLUMNAR).hessian, **options)


def held_out_error(study: Study, result: rose.LayerResult) -> float:
    held_out = study.held_out_statistics(COLUMNAR)
    return relative_error(study.weight(COLUMNAR), result.weight, held_out.hessian)


def section(study: Study, name: str, **query: str) -> AppTest:
    return open_page(PAGE, study, lab_section=name, **query)


def bars(app: AppTest) -> dict[str, tuple[float, float, float]]:
    """Mask, sequence and held-out error of each bar, by its name."""
    drawn = json.loads(figures(app)[1])["data"]
    names = drawn[0]["y"]
    return dict(zip(names, zip(*(numbers(part, "x") for part in drawn), strict=True), strict=True))


def numbers(drawn: dict, axis: str) -> np.ndarray:
    """The values of a trace, as plotly sends them."""
    return np.frombuffer(base64.b64decode(drawn[axis]["bdata"]), drawn[axis]["dtype"])


def parts(study: Study, order: str | Sequence[int], budget: object, **changes: object) -> tuple[float, float, float]:
    """What the page should show for an order: mask, sequence and held-out error as parts of SparseGPT's."""
    base, result = (pruned(study, *pair, **changes) for pair in (("natural", "block"), (order, budget)))
    split = split_error(study.weight(COLUMNAR), study.statistics(COLUMNAR), result)
    held_out = held_out_error(study, result) / held_out_error(study, base)
    return split.mask / base.relative_error, split.sequence / base.relative_error, held_out


def near(value: tuple[float, float, float]) -> object:
    return pytest.approx(value, rel=1e-3, abs=1e-6)


def test_orders_stand_beside_ones_own(study):
    shown = bars(section(study, "Your order"))
    pairs = {"SparseGPT": BASELINE, "ROSE": ("two_level", "block")}
    pairs |= {"ROSE global": ("global", "layer"), "Pivot": ("pivot", "layer"), "Yours": BASELINE}
    for name, pair in pairs.items():
        assert shown[name] == near(parts(study, *pair))
    seeds = np.mean([parts(study, f"random:{seed}", "block") for seed in range(3)], axis=0)
    assert shown["Random"] == near(tuple(seeds))


def test_user_order_and_shares_are_swept(study):
    app = section(study, "Your order", own="48-63/0-15/16-31/32-47")
    moved = [*NATURAL[48:], *NATURAL[:48]]
    assert bars(app)["Yours"] == near(parts(study, moved, "block"))
    assert app.query_params["own"] == "48-63/0-15/16-31/32-47"
    app.selectbox(key="lab_own_rule").set_value("pivot").run()
    assert bars(app)["Yours"] == near(parts(study, "pivot", "block"))
    assert "Pivot: the column that" in texts(app)
    app.selectbox(key="lab_own_budget").set_value("layer").run()
    assert bars(app)["Yours"] == near(parts(study, "pivot", "layer"))
    app.selectbox(key="lab_own_budget").set_value("best").run()
    options = study.layer_options() | {"order": "pivot"}
    best = best_shares(study.weight(COLUMNAR), study.statistics(COLUMNAR), **options)
    assert bars(app)["Yours"] == near(parts(study, "pivot", best.shares.tolist()))
    assert app.selectbox(key="lab_own_budget").value == "best"
    app.button(key="lab-own-undo").click().run()
    assert bars(app)["Yours"] == near(parts(study, "pivot", "layer"))
    app.button(key="lab-own-reset").click().run()
    assert bars(app)["Yours"] == near(parts(study, NATURAL, "block"))


def test_pasted_orders_are_swept_or_refused(study):
    app = section(study, "Your order")
    app.text_area(key="lab_own_columns").set_value("63-0").run()
    app.button(key="lab-own-use").click().run()
    assert bars(app)["Yours"] == near(parts(study, NATURAL[::-1], "block"))
    app.text_input(key="lab_own_shares").set_value("40 % 80 % 80 % 80 %").run()
    app.button(key="lab-own-use-shares").click().run()
    assert app.selectbox(key="lab_own_budget").value == "own"
    app.text_area(key="lab_own_columns").set_value("0-3").run()
    app.button(key="lab-own-use").click().run()
    assert "60 of 64 columns are missing" in texts(app)
    assert bars(app)["Yours"] == near(parts(study, NATURAL[::-1], [0.1, 0.2, 0.2, 0.2]))


def test_lines_are_held_out_errors_after_each_block(study):
    held_out, weight = study.held_out_statistics(COLUMNAR), study.weight(COLUMNAR)
    trace = pruned(study, "two_level", "block", trace=True).trace
    stages = [relative_error(weight, stage, held_out.hessian) for stage in trace.weights]
    lines = {line["name"]: line for line in json.loads(figures(section(study, "Your order"))[0])["data"]}
    assert list(lines) == ["SparseGPT", "ROSE", "Pivot", "Yours"]
    assert numbers(lines["ROSE"], "y") == pytest.approx(stages, rel=1e-4)


def test_blocks_of_another_size_are_swept(study):
    app = section(study, "Your order", lab_block="32")
    assert app.selectbox(key="lab_block").value == 32
    assert bars(app)["ROSE" if "ROSE" in bars(app) else "Two-level"] == near(
        parts(study, "two_level", "block", block_size=32)
    )


def test_a_sweep_opens_in_its_middle(study):
    app = section(study, "Inside a sweep")
    assert app.slider(key="lab_step").value == 2
    assert titles(app)[0].startswith("After 2 of 4 blocks")
    app.slider(key="lab_step").set_value(4).run()
    assert "pruned as number" in titles(app)[0]
    app.segmented_control(key="lab_sweep_beside").set_value("shares").run()
    assert "Two-level, one threshold" in figures(app)[0]


def test_fixed_patterns_have_no_shares():
    study = measured_study(sparsity="2:4")
    app = section(study, "Your order")
    assert "lab_own_budget" not in [box.key for box in app.selectbox]
    app.text_area(key="lab_own_columns").set_value("1,0,2-63").run()
    app.button(key="lab-own-use").click().run()
    assert "must keep each group of 4 neighbouring columns together" in texts(app)
    result = pruned(study, "pivot", "block", sparsity="2:4")
    split = split_error(study.weight(COLUMNAR), study.statistics(COLUMNAR), result)
    base = pruned(study, "natural", "block", sparsity="2:4").relative_error
    assert bars(app)["Pivot"][0] == pytest.approx(split.mask / base, rel=1e-3)
