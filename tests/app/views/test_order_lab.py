"""The order lab: every error shown is the one that `rose.prune_layer` gives for that order and budget."""

import base64
import json
from collections.abc import Sequence

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest
from torch import Tensor

import rose
from app.figures.orders import run_name, run_style
from app.lab.basis import measure, rotatable
from app.lab.sweeps import PlannedSweep, outcome
from app.study.study import Study
from rose.layer.basis import HeadLayout, find_rotations, rotate_columns, rotate_statistics
from rose.layer.error import relative_error
from rose.layer.forecast import best_shares, forecast
from rose.layer.pattern import Pattern
from rose.layer.split import split_error
from rose.wording import apart
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


def shown(app: AppTest) -> dict[str, str]:
    """The errors at the lines' ends, by name."""
    return dict(trace["name"].rsplit(" ", 1) for trace in json.loads(figures(app)[0])["data"])


def errors(study: Study, order: str | Sequence[int], budget: object) -> dict[str, str]:
    """What the page should show for this order of one's own."""
    pairs = [("pivot", "layer"), ("pivot_weighted", "layer"), ("global", "layer")]
    best = min((pruned(study, *pair) for pair in pairs), key=lambda result: result.relative_error)
    four = {
        "Yours": held_out_error(study, pruned(study, order, budget)),
        "ROSE": held_out_error(study, pruned(study, "two_level", "block")),
        "SparseGPT": held_out_error(study, pruned(study, "natural", "block")),
        f"{run_style(run_name(best)).label},": held_out_error(study, best),
    }
    return dict(zip(four, apart(*four.values()), strict=True))


def test_user_order_and_shares_are_swept(study):
    app = section(study, "Your order", own="48-63,0-47")
    moved = [*NATURAL[48:], *NATURAL[:48]]
    assert shown(app) == errors(study, moved, "block")
    assert app.query_params["own"] == "48-63,0-47"
    app.selectbox(key="lab_own_rule").set_value("pivot").run()
    assert shown(app) == errors(study, "pivot", "block")
    app.selectbox(key="lab_own_budget").set_value("layer").run()
    assert shown(app) == errors(study, "pivot", "layer")
    app.selectbox(key="lab_own_budget").set_value("best").run()
    options = study.layer_options() | {"order": "pivot"}
    best = best_shares(study.weight(COLUMNAR), study.statistics(COLUMNAR), **options)
    assert shown(app) == errors(study, "pivot", best.shares.tolist())
    app.button(key="lab-own-undo").click().run()
    assert shown(app) == errors(study, "pivot", "layer")
    app.button(key="lab-own-reset").click().run()
    assert shown(app) == errors(study, NATURAL, "block")
    assert "Yours: the same error as SparseGPT" in titles(app)[0]
    assert "SparseGPT: natural order, an equal share from every block" in texts(app)


def test_pasted_orders_are_swept_or_refused(study):
    app = section(study, "Your order")
    app.text_area(key="lab_own_columns").set_value("63-0").run()
    app.button(key="lab-own-use").click().run()
    assert shown(app) == errors(study, NATURAL[::-1], "block")
    app.text_input(key="lab_own_shares").set_value("40 % 80 % 80 % 80 %").run()
    app.button(key="lab-own-use-shares").click().run()
    app.text_area(key="lab_own_columns").set_value("0-3").run()
    app.button(key="lab-own-use").click().run()
    assert "60 of 64 columns are missing" in texts(app)
    assert shown(app) == errors(study, NATURAL[::-1], [0.1, 0.2, 0.2, 0.2])


def test_lines_are_held_out_errors_after_each_block(study):
    held_out, weight = study.held_out_statistics(COLUMNAR), study.weight(COLUMNAR)
    sweep = outcome(study, COLUMNAR, PlannedSweep("two_level", "block"))
    trace = pruned(study, "two_level", "block", trace=True).trace
    stages = [relative_error(weight, stage, held_out.hessian) for stage in trace.weights]
    assert sweep.curve == pytest.approx(stages, rel=1e-4)
    assert sweep.curve[-1] == pytest.approx(sweep.held_out_error)
    assert list(shown(section(study, "Your order"))) == ["SparseGPT", "ROSE", "Weighted pivot, one threshold,", "Yours"]


def test_prices_share_a_mean_and_forecasts_match(study):
    app = section(study, "Prices", lab_price_block="3")
    lines, marks = json.loads(figures(app)[0]), json.loads(figures(app)[1])
    level = study.prices(COLUMNAR, "natural").level
    assert f"the same mean log price, {level:.1f}:" in titles(app)[0]
    assert [line["name"] for line in lines["data"]].count("block 3") == 3  # on each of three lines
    options = {"sparsity": "0.7", "block_size": 16, "damping": 0.01}
    told = forecast(study.weight(COLUMNAR), study.statistics(COLUMNAR), order="pivot", budget="layer", **options)
    (pivot,) = [mark for mark in marks["data"] if mark["name"] == "Pivot" and "open" in mark["marker"]["symbol"]]
    measured = held_out_error(study, pruned(study, "pivot", "layer"))
    place = [numbers(pivot, axis)[0] for axis in "xy"]
    assert place == pytest.approx([told.held_out, measured], rel=1e-3)


def test_sweep_is_shown_as_a_film(study):
    app = section(study, "Inside a sweep")
    assert len(figures(app)) == 1
    film = json.loads(figures(app)[0])
    assert [frame["name"] for frame in film["frames"]] == ["0", "1", "2", "3", "4"]
    app.selectbox(key="lab_sweep_beside").set_value("budget").run()
    assert len(figures(app)) == 1
    assert "Two-level, one threshold" in figures(app)[0]


def numbers(drawn: dict, axis: str) -> np.ndarray:
    """The values of a trace, as plotly sends them."""
    return np.frombuffer(base64.b64decode(drawn[axis]["bdata"]), drawn[axis]["dtype"])


def test_every_sweep_is_split_into_mask_and_sequence(study):
    app = section(study, "Mask and sequence")
    mask, sequence, ring = json.loads(figures(app)[0])["data"]
    base = pruned(study, "natural", "block")
    weight, statistics = study.weight(COLUMNAR), study.statistics(COLUMNAR)
    for order, budget, name in (("two_level", "block", "Two-level, equal shares"), ("global", "layer", "ROSE global")):
        result, at = pruned(study, order, budget), mask["customdata"].index(name)
        parts = split_error(weight, statistics, result)
        assert numbers(mask, "x")[at] == pytest.approx(parts.mask / base.relative_error, rel=1e-4)
        assert numbers(sequence, "x")[at] == pytest.approx(parts.sequence / base.relative_error, rel=1e-3)
        held_out = held_out_error(study, result) / held_out_error(study, base)
        assert numbers(ring, "x")[at] == pytest.approx(held_out, rel=1e-4)
    assert len(mask["customdata"]) == 14  # seven orders, two budgets


def test_fixed_patterns_have_no_shares():
    app = section(measured_study(sparsity="2:4"), "Your order")
    assert "lab_own_budget" not in [box.key for box in app.selectbox]
    app.text_area(key="lab_own_columns").set_value("1,0,2-63").run()
    app.button(key="lab-own-use").click().run()
    assert "must keep each group of 4 neighbouring columns together" in texts(app)
    app.segmented_control(key="lab_section").set_value("budget").run()
    assert len(json.loads(figures(app)[0])["data"][0]["customdata"]) == 7, "both budgets agree"


def test_basis_changes_errors_and_not_the_model(study):
    app = section(study, "Basis", lab_basis="Gathered")
    weight, statistics = study.weight(COLUMNAR), study.statistics(COLUMNAR)
    held_out = study.held_out_statistics(COLUMNAR)
    layout, errors = HeadLayout(16, (0, 1, 2, 3)), {}
    for basis in ("random:0", "gathered", "learned"):
        rotations = find_rotations(weight, statistics.hessian, layout, basis, pattern=Pattern(0.7), block_size=16)
        turned = rotate_columns(weight, layout, rotations).float()
        options = {"method": "sparsegpt", "sparsity": 0.7, "block_size": 16}
        result = rose.prune_layer(turned, rotate_statistics(statistics, layout, rotations), **options)
        judge = rotate_statistics(held_out, layout, rotations).hessian
        errors[basis] = relative_error(turned, result.weight, judge)
    errors["given"] = held_out_error(study, pruned(study, "natural", "block"))
    bars, *_ = json.loads(figures(app)[0])["data"]
    assert bars["name"] == "SparseGPT"
    shown = np.frombuffer(base64.b64decode(bars["y"]["bdata"]), bars["y"]["dtype"])
    assert shown == pytest.approx([errors[name] for name in ("random:0", "given", "gathered", "learned")], rel=1e-4)
    assert rotatable(study) is rotatable(study), "heads are looked for once"
    assert measure(study, COLUMNAR, "random:3", "sparsegpt") != measure(study, COLUMNAR, "random:0", "sparsegpt")
