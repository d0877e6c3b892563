"""The order lab: every error shown is the one that `rose.prune_layer` gives for that order and budget."""

import json
import re
from collections.abc import Sequence

import pytest
import torch
from streamlit.testing.v1 import AppTest
from torch import Tensor

import rose
from app.lab import bits
from app.lab.bases import measure, rotatable
from app.lab.sweeps import PlannedSweep, outcome
from app.study.study import Study
from rose.layer.basis import HeadLayout, find_rotations, rotate_columns, rotate_statistics
from rose.layer.error import quadratic_form, relative_error
from rose.layer.paper import positions
from rose.layer.pattern import Pattern
from rose.wording import number
from tests.app.tiny_study import COLUMNAR, WIDTH, figures, measured_study, open_page, texts, titles

pytestmark = pytest.mark.usefixtures("patient")
PAGE = "views/order_lab.py"


def pruned(study: Study, order: str | Tensor | Sequence[int], budget: str, **changes: object) -> rose.LayerResult:
    options = {"sparsity": 0.7, "block_size": 16} | changes
    return rose.prune_layer(
        study.weight(COLUMNAR), study.statistics(COLUMNAR).hessian, order=order, budget=budget, **options
    )


def held_out_error(study: Study, result: rose.LayerResult) -> float:
    held_out = study.held_out_statistics(COLUMNAR)
    assert held_out is not None
    return relative_error(study.weight(COLUMNAR), result.weight, held_out.hessian)


def section(study: Study, name: str, **query: str) -> AppTest:
    return open_page(PAGE, study, lab_section=name, **query)


def test_compare_shows_the_errors_of_prune_layer(study: Study) -> None:
    app = section(study, "Compare orders")
    names = {"Natural": "natural", "Two-level": "two_level", "Global": "global"}
    table = app.dataframe[0].value
    assert len(table) == 8
    assert table["relative_error"].is_monotonic_increasing
    base = pruned(study, "natural", "block")
    for row in table[table["order"] != "Random"].itertuples():
        result = pruned(study, names[row.order], row.budget)
        assert row.relative_error == pytest.approx(result.relative_error, rel=1e-4)
        assert row.to_baseline == pytest.approx(result.relative_error / base.relative_error, rel=1e-4)
        assert row.held_out_error == pytest.approx(held_out_error(study, result), rel=1e-4)
    assert f"SparseGPT ({base.relative_error:.5f})" in texts(app)
    rose_error = pruned(study, "two_level", "block").relative_error
    seeds = sorted((pruned(study, f"random:{seed}", "block").relative_error, seed) for seed in range(10))
    assert seeds[5][0] < rose_error, "most random orders end below ROSE's, and the page shows why"
    given_up = figures(app)[1]
    assert "Giving up an equal share costs one block up to" in given_up.replace("\\u003cbr\\u003e", " ")
    assert f"Random, seed {seeds[5][1]}" in given_up

    app.multiselect(key="lab_orders").set_value(["random"]).run()
    table = app.dataframe[0].value.set_index("budget")
    assert set(table["order"]) == {"Random"}
    errors = [pruned(study, f"random:{seed}", "layer").relative_error for seed in range(10)]
    assert table.loc["layer", "relative_error"] == pytest.approx(sum(errors) / 10, rel=1e-4)
    assert table.loc["layer", "seeds"] == f"{min(errors):.5f} to {max(errors):.5f}"
    app.multiselect(key="lab_orders").set_value([]).run()
    assert "Choose at least one order" in texts(app)


def own_errors(app: AppTest) -> list[str]:
    """On held-out and on calibration tokens, of one's own order and of the first that it is compared with."""
    small = [one.value for one in app.caption if one.value.startswith("Calibration: ")]
    return [app.metric[0].value, *(one.removeprefix("Calibration: ").partition(",")[0] for one in small[:1])]


def both_errors(study: Study, result: rose.LayerResult) -> list[str]:
    return [f"{held_out_error(study, result):.5f}", f"{result.relative_error:.5f}"]


def test_moving_a_block_recomputes_at_once(study: Study) -> None:
    app = section(study, "Your own order")
    natural = list(range(WIDTH))
    assert own_errors(app) == both_errors(study, pruned(study, natural, "block"))
    assert "but for the large numbers, which are on held-out tokens" in texts(app)
    assert [tile.delta for tile in app.metric[:2]] == ["the same as SparseGPT", "SparseGPT"]
    assert re.search("Your own, block budget: [0-9.]+, the same as SparseGPT", texts(app))
    assert re.fullmatch(r"[\d.]+ % (less|more)", app.metric[2].delta)  # a tile has room for no more
    # The costliest block, 3, is chosen; take it to the front.
    assert app.selectbox(key="lab_own_block").value == 3
    app.slider(key="lab_own_position").set_value(1).run()
    moved = natural[48:] + natural[:48]
    assert own_errors(app) == both_errors(study, pruned(study, moved, "block"))
    assert "3 → 0 → 1 → 2" in texts(app)
    assert app.query_params["own"] == "natural:3.0.1.2"
    app.button(key="lab-own-later").click().run()
    moved = natural[:16] + natural[48:] + natural[16:48]
    assert own_errors(app) == both_errors(study, pruned(study, moved, "block"))
    app.button(key="lab-own-undo").click().run()
    assert "3 → 0 → 1 → 2" in texts(app)
    app.button(key="lab-own-reset").click().run()
    assert own_errors(app) == both_errors(study, pruned(study, natural, "block"))
    app.button(key="lab-own-undo").click().run()
    assert "3 → 0 → 1 → 2" in texts(app)


def test_own_order_comes_from_a_link_or_any_order_and_has_any_budget(study: Study) -> None:
    app = section(study, "Your own order", own="blocks:1.0.3.2")
    parts = rose.make_order(study.plan(COLUMNAR), "blocks").permutation.split(16)
    linked = pruned(study, torch.cat([parts[i] for i in (1, 0, 3, 2)]), "block")
    assert own_errors(app) == both_errors(study, linked)
    app.selectbox(key="lab_own_base").set_value("global").run()
    assert own_errors(app) == both_errors(study, pruned(study, "global", "block"))
    app.button_group(key="lab_own_budget").set_value("layer").run()
    assert own_errors(app) == both_errors(study, pruned(study, "global", "layer"))
    names = [metric.label for metric in app.metric]
    assert names == ["Your order", "SparseGPT", "Natural order", "Two-level order"]
    assert app.metric[1].value == f"{held_out_error(study, pruned(study, 'natural', 'block')):.5f}"


@pytest.mark.parametrize("step", [0, 1, 4])
def test_scrubbing_splits_the_damage(study: Study, step: int) -> None:
    app = section(study, "Inside a sweep")
    app.slider(key="lab_step").set_value(step).run()
    assert len(figures(app)) == 2
    shown = texts(app)
    assert f"{WIDTH - 16 * step} of {WIDTH} columns are still free" in shown
    trace = pruned(study, "two_level", "block", trace=True).trace
    assert trace is not None
    removed = int(trace.removed[:step].sum())
    assert f"{removed:,} of 4,096 weights are pruned so far".replace(",", " ") in shown
    if step:
        share = 1 - float(trace.error[step - 1] / trace.lost[step - 1])
        assert f"({100 * share:.0f} %)" in shown
    else:
        assert "Nothing is pruned yet" in shown
        app.button(key="lab-play").click().run()
        app.session_state.lab_ticked = 0.0  # as if the time of a block had passed
        app.run()
        assert f"{WIDTH - 16} of {WIDTH} columns are still free" in texts(app)
        app.segmented_control(key="lab_sweep_beside").set_value("budget").run()
        assert len(figures(app)) == 3  # both sweeps in one, and what became of each one's error
        assert "Two-level, layer budget" in figures(app)[0]


def test_every_position_is_a_real_sweep(study: Study) -> None:
    app = section(study, "Where should the costliest block go?")
    natural = list(range(WIDTH))
    strong, others = natural[48:], natural[:48]
    errors = [pruned(study, others[: 16 * to] + strong + others[16 * to :], "block").relative_error for to in range(4)]
    plan = study.plan(COLUMNAR)
    measured = [outcome(study, COLUMNAR, PlannedSweep(order, "block")).error for order in positions(plan, "natural", 3)]
    assert measured == pytest.approx(errors, rel=1e-4)
    assert "on held-out tokens when block 3" in titles(app)[0]
    shown = texts(app.button_group(key="lab_position_error").set_value("calibration").run())
    assert "Block 3 would lose most per column" in shown
    assert f"at position {1 + errors.index(min(errors))} and highest" in shown
    assert errors[0] < errors[-1] / 2  # pruned first, the strong block finds help
    app.selectbox(key="lab_others").set_value("two_level").run()
    ring = json.loads(figures(app)[0])["data"][1]
    assert (ring["x"], ring["name"]) == ([1], "its place in two-level order")  # block 3, the costliest, goes first


def test_error_by_sparsity(study: Study) -> None:
    app = section(study, "By sparsity")
    table = app.dataframe[0].value
    assert list(table.columns) == ["60 %", "70 %", "80 %", "90 %"]
    app.button_group(key="lab_bar_error").set_value("calibration").run()
    calibration = app.dataframe[0].value
    for label, order in (("Natural", "natural"), ("Blocks only", "blocks")):
        for level in (0.6, 0.9):
            result, column = pruned(study, order, "block", sparsity=level), f"{100 * level:.0f} %"
            assert table.loc[label, column] == pytest.approx(held_out_error(study, result), rel=1e-4)
            assert calibration.loc[label, column] == pytest.approx(result.relative_error, rel=1e-4)


@pytest.mark.parametrize("kind", ["calibration", "held_out"])
def test_order_and_budget_apart(study: Study, kind: str) -> None:
    app = section(study, "Order and budget")
    app.button_group(key="lab_matrix_kind").set_value(kind).run()

    def error(order: str, budget: str) -> float:
        result = pruned(study, order, budget)
        return result.relative_error if kind == "calibration" else held_out_error(study, result)

    base = error("natural", "block")
    drawn = figures(app)[0]
    for order in ("natural", "two_level", "hessian", "random", "global"):
        for budget in ("block", "layer"):
            seeds = [f"random:{seed}" for seed in range(10)] if order == "random" else [order]
            mean = sum(error(one, budget) for one in seeds) / len(seeds)
            assert f"003e{mean / base:.3f}" in drawn, (order, budget)


def test_without_held_out_tokens_the_table_has_no_column_for_them() -> None:
    study = measured_study(held_out=0)
    app = section(study, "Compare orders")
    assert "held_out_error" not in app.dataframe[0].value
    assert "no held-out tokens" in texts(app)
    app.segmented_control(key="lab_section").set_value("own").run()
    assert own_errors(app) == [f"{pruned(study, 'natural', 'block').relative_error:.5f}"]
    assert "Errors are on calibration tokens." in texts(app)
    app.segmented_control(key="lab_section").set_value("sparsity").run()
    assert "on calibration tokens" in titles(app)[0]


def test_under_a_fixed_pattern_the_page_says_that_budgets_agree() -> None:
    app = section(measured_study(sparsity="2:4"), "Compare orders")
    assert "both budgets are the same" in texts(app)
    errors = app.dataframe[0].value.groupby("order")["relative_error"].nunique()
    assert (errors == 1).all()


def test_a_step_beyond_the_blocks_of_another_layer_is_its_last(study: Study) -> None:
    wide = "model.layers.1.mlp.down_proj"  # six blocks of columns; the others have four
    app = open_page(PAGE, study, layer=wide, lab_section="Inside a sweep")
    app.slider(key="lab_step").set_value(6).run()
    app.segmented_control(key="lab_section").set_value("compare").run()
    app.sidebar.selectbox(key="layer_widget").set_value(COLUMNAR).run()
    app.segmented_control(key="lab_section").set_value("sweep").run()
    assert not app.exception
    assert app.slider(key="lab_step").value == 4


def test_zeros_and_bits_of_one_budget(study: Study) -> None:
    app = section(study, "Zeros or fewer bits")
    found = bits.table(study, COLUMNAR).set_index(["sparsity", "bits"])
    words = {"method": rose.RECOMMENDED, "sparsity": "0.5", "bits": 4, "group": "row"}
    half = rose.prune_layer(study.weight(COLUMNAR), study.statistics(COLUMNAR), **study.layer_options() | words)
    assert found.loc[("0.5", 4), "relative_error"] == pytest.approx(half.relative_error, rel=1e-4)
    assert found.loc[("0.5", 4), "relative_error"] > found.loc[("0.5", 0), "relative_error"]
    assert "Half the weights at 4 bits make" in titles(app)[0]


def test_a_basis_changes_errors_and_not_the_model(study: Study) -> None:
    app = section(study, "Make a layer columnar", lab_basis="Gathered")
    assert app.select_slider(key="lab_basis").value == "gathered"
    weight, statistics, held_out = (
        getter(COLUMNAR) for getter in (study.weight, study.statistics, study.held_out_statistics)
    )
    assert held_out is not None
    layout = HeadLayout(16, (0, 1, 2, 3))
    errors = {}
    for basis in ("random:0", "gathered", "learned"):
        rotations = find_rotations(weight, statistics.hessian, layout, basis, pattern=Pattern(0.7), block_size=16)
        turned = rotate_columns(weight, layout, rotations).float()
        result = rose.prune_layer(
            turned, rotate_statistics(statistics, layout, rotations), method="sparsegpt", sparsity=0.7, block_size=16
        )
        judge = rotate_statistics(held_out, layout, rotations).hessian
        assert quadratic_form(turned, judge) == pytest.approx(quadratic_form(weight, held_out.hessian), rel=1e-4)
        errors[basis] = relative_error(turned, result.weight, judge)
    given = held_out_error(study, pruned(study, "natural", "block"))
    shown = texts(app)
    moves = {basis: "falls" if error < given else "rises" for basis, error in errors.items()}
    gathered = f"{moves['gathered']} from {number(given)} to {number(errors['gathered'])}"
    assert f"In the gathered basis SparseGPT's held-out error {gathered}" in shown
    for basis, name in (("learned", "the learned"), ("random:0", "a random")):
        assert f"in {name} basis it {moves[basis]} to {number(errors[basis])}" in shown
    assert "In the gathered basis SparseGPT makes" in titles(app)[0]
    known = rotatable(study)
    assert rotatable(study) is known, "heads are looked for once"

    app.select_slider(key="lab_basis").set_value("random").run()
    assert "In a random basis SparseGPT makes" in titles(app)[0]
    assert ", random" in titles(app)[1]
    app.number_input(key="lab_basis_seed").set_value(3).run()
    assert measure(study, COLUMNAR, "random:3", "sparsegpt") != measure(study, COLUMNAR, "random:0", "sparsegpt")


def test_a_layer_without_heads_leads_to_the_nearest_with_them(study: Study) -> None:
    app = open_page(PAGE, study, layer="model.layers.2.mlp.up_proj", lab_section="Make a layer columnar")
    assert "cannot be rotated: it is not a suitable output projection" in texts(app)
    app.button(key="lab-basis-nearest").click().run()
    assert app.session_state.chosen_layer == "model.layers.2.self_attn.o_proj"
    assert "The dense model computes the same in all four" in texts(app)


def test_cautions_and_the_tokens_that_errors_are_on_are_said(study: Study) -> None:
    app = section(study, "Order and budget")
    assert "calibration tokens are fewer" not in texts(app)
    assert "on held-out tokens" in titles(app)[0]
    app = section(measured_study(samples=1), "Inside a sweep")  # of 32 tokens, for 64 columns
    assert "Calibration tokens are fewer than columns" in texts(app)
    assert "Errors are on calibration tokens." in texts(app)
