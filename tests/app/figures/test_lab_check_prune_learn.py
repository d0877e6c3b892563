"""What the figures of the order lab, the checks, whole-model runs and lessons show, number by number."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import rose
from app import words
from app.figures import (
    check,
    checkpoint,
    drift,
    losses,
    maps,
    methods,
    orders,
    palette,
    savings,
    sensitivity,
    style,
    sweeps,
)
from rose import verdicts
from rose.layer.checks import CurvePoint, ErrorMeasures, RealisedSparsity
from rose.layer.error import quadratic_form
from rose.layer.order import plan_from_importance
from rose.verdicts import Result
from tests.app.figures.test_contract import BLOCK_DAMAGES, COSTS, DAMAGES, DRIFTS, HEADS, OF_BITS
from tests.app.figures.test_layer_and_overview import below, title

# Figure (b) of the ROSE paper's overview illustration.
EXAMPLE = torch.tensor(
    [
        [2.3, 1.2, 1.5, 2.4, 1.5, 1.0, 3.9, 4.6, 4.8],
        [1.4, 1.9, 1.5, 1.8, 0.6, 1.4, 4.8, 4.2, 4.7],
        [2.1, 1.6, 1.1, 2.2, 0.3, 1.1, 6.7, 5.1, 1.9],
        [2.8, 1.0, 2.0, 0.7, 1.1, 1.8, 4.9, 4.8, 1.6],
    ]
)


# Order lab


def test_curve_is_the_undamped_error_so_far_and_ends_at_the_final_error(lab: SimpleNamespace) -> None:
    drawing = orders.error_curve(orders.relative_curves(lab.results, lab.energy))
    for trace, (name, result) in zip(drawing.figure.data, lab.results.items(), strict=True):
        assert trace.y[0] == 0
        errors = [
            quadratic_form(weights - lab.weight, lab.statistics.hessian) / lab.energy
            for weights in result.trace.weights[1:]
        ]
        assert trace.y[1:] == pytest.approx(errors, rel=1e-4)
        assert trace.y[-1] == pytest.approx(result.relative_error, rel=1e-4)
        assert trace.line.color == palette.ORDER_COLOURS[name]
    final = {name: result.relative_error for name, result in lab.results.items()}
    best = orders.run_style(min(final, key=final.__getitem__)).label
    assert title(drawing).startswith(f"{best} ends lowest")
    assert list(drawing.data.columns) == ["pruned_blocks", *lab.results]
    natural = lab.results["natural"]
    drawing = orders.error_curve(orders.relative_curves({"natural": natural}, lab.energy))
    steps = natural.trace.error_so_far(natural.added_damping).diff()
    jump, share = int(steps.argmax()) + 1, float(steps.max() / steps.sum())
    assert title(drawing) == f"SparseGPT: step {jump} of 3 brings {100 * share:.0f} % of the error"
    with pytest.raises(rose.RoseError, match="at least one order"):
        orders.error_curve({})


def test_random_orders_are_one_band(lab: SimpleNamespace) -> None:
    seeds = {
        f"random:{seed}": rose.prune_layer(
            lab.weight, lab.statistics, sparsity=0.5, block_size=16, order=f"random:{seed}", trace="errors"
        )
        for seed in range(4)
    }
    drawing = orders.error_curve(orders.relative_curves({"two_level": lab.results["two_level"]} | seeds, lab.energy))
    _, band, mean = drawing.figure.data
    errors = [result.relative_error for result in seeds.values()]
    assert (max(band.y[:4]), band.y[4]) == pytest.approx((max(errors), min(errors)), rel=1e-4)
    assert mean.y[-1] == pytest.approx(sum(errors) / 4, rel=1e-4)
    below = sum(error < lab.results["two_level"].relative_error for error in errors)
    assert f"{words.out_of(below, 4, 'seed')} end" in drawing.caption


def test_what_a_block_gives_up_under_both_budgets(lab: SimpleNamespace) -> None:
    results = {
        order + plus: rose.prune_layer(
            lab.weight, lab.statistics, sparsity=0.5, block_size=16, order=order, budget=budget, trace="errors"
        )
        for order in ("two_level", "random:0")
        for plus, budget in (("", "block"), (" + layer", "layer"))
    }
    drawing = orders.given_up(results, lab.energy)
    most = [float(results[order].trace.lost.max()) / lab.energy for order in ("two_level", "random:0")]
    assert title(drawing) == (
        f"Giving up an equal share costs one block up to {words.number(most[0])} in two-level order and "
        f"{words.number(most[1])} in random order"
    )
    block, layer, *_ = drawing.figure.data
    assert block.customdata == pytest.approx([0.5, 0.5, 0.5])
    assert layer.customdata == pytest.approx(
        results["two_level + layer"].trace.removed.numpy() / 24 / np.array([8, 16, 16])
    )
    assert layer.customdata[0] < 0.4, "one threshold asks less of the strong block, which is visited first"


def test_a_run_has_the_colour_of_its_order_and_a_methods_name_only_where_order_and_budget_are_its_own() -> None:
    labels = {
        "natural": "SparseGPT",
        "two_level": "ROSE's order",
        "global + layer": "ROSE global",
        "natural + layer": "Natural, layer budget",
        "two_level + layer": "Two-level, layer budget",
        "global": "Global, block budget",
        "two_level_ascending": "Two-level, ascending, block budget",
    }
    assert {run: orders.run_style(run).label for run in labels} == labels
    block, layered = orders.run_style("global"), orders.run_style("global + layer")
    assert block.colour == layered.colour
    assert block.dash != layered.dash


def test_damage_adds_up(lab: SimpleNamespace) -> None:
    result = lab.results["two_level"]
    drawing = orders.damage_split(result, lab.inside, step=0)
    remains, later, inside = drawing.figure.data
    assert remains.y + later.y + inside.y == pytest.approx(result.trace.lost.numpy(), rel=1e-4)
    assert remains.y + later.y == pytest.approx(lab.inside.numpy(), rel=1e-4)
    assert later.y[-1] == pytest.approx(0, abs=1e-3 * remains.y[-1])
    assert inside.y[-1] > 0, "columns of the same block compensate even in the last block"
    share = 100 * inside.y[-1] / float(result.trace.lost[-1])
    assert f"the {share:.0f} % that is absorbed there goes to the 16 columns of the block itself" in drawing.caption
    assert remains.customdata[0] == "block 2"
    assert drawing.data["removed_weights"].sum() == 480


def test_frame_shows_pruned_cells_apart_and_what_is_free(lab: SimpleNamespace) -> None:
    drawing = sweeps.sweep_frame([lab.results["two_level"]], 1, lab.energy)
    z, veil = drawing.figure.data[0].z, drawing.figure.data[1].z
    assert (z[:, :8] == 0).sum() == 96, "the narrow strong block comes first and gives up half of its 192 weights"
    assert (z[:, 8:] > 0).all()
    assert veil.tolist() == [[2] * 8 + [0] * 32]
    assert "96 of 960 weights are pruned so far; 32 of 40 columns are still free" in drawing.caption
    natural = sweeps.sweep_frame([lab.results["two_level"]], 2, lab.energy, arrange="natural")
    assert natural.figure.data[1].z[0, 32:].tolist() == [1] * 8
    assert (natural.figure.data[1].z == 2).sum() == 16


def test_frame_of_changes_beside_another_sweep(lab: SimpleNamespace) -> None:
    results = [lab.results["natural"], lab.results["two_level"]]
    start = sweeps.sweep_frame(results, 0, lab.energy, show="change")
    assert title(start) == "Nothing is pruned yet: three blocks to go"
    assert not start.figure.data[0].z.any()
    after = sweeps.sweep_frame(results, 1, lab.energy, show="change")
    for result, trace in zip(results, after.figure.data[:4:2], strict=True):
        moved = (result.trace.weights[1] - result.trace.weights[0]).abs()[:, result.order.permutation]
        assert trace.z == pytest.approx(moved.numpy())
        assert trace.z[:, 16:].any(), "columns still free have moved"
    final = [result.relative_error for result in results]
    assert after.data.iloc[-1, 1:].tolist() == pytest.approx(final, rel=1e-3)
    end = title(sweeps.sweep_frame(results, 3, lab.energy))
    assert end == f"After 3 of 3 blocks, Two-level has {100 * (1 - final[1] / final[0]):.1f} % less error than Natural"


def test_a_plugins_order_can_be_shown_under_either_budget(lab: SimpleNamespace) -> None:
    result = lab.results["natural"]
    own = replace(result, order=replace(result.order, name="my_order"), budget="layer")
    line = sweeps.sweep_frame([own], 1, lab.energy).figure.data[-1]
    assert (line.name, line.marker.symbol[-5:]) == ("My order, layer budget", "-open")


def test_film_has_a_frame_a_step(lab: SimpleNamespace) -> None:
    result = lab.results["natural"]
    figure = sweeps.sweep_film([result], lab.energy).figure
    assert [frame.name for frame in figure.frames] == ["0", "1", "2", "3"]
    assert all(frame.data[0].z.dtype == np.uint8 for frame in figure.frames)
    # Plotly merges by number from frame to frame, so what one frame leaves out stays as it was in another.
    assert len({(len(frame.data), len(frame.layout.annotations)) for frame in figure.frames}) == 1
    assert (figure.frames[3].data[0].z == 0).sum() == 480
    assert (figure.frames[0].data[0].z == 0).sum() == 0, "a small weight is not a pruned one"


def test_film_of_many_blocks_stays_small(lab: SimpleNamespace) -> None:
    weights = torch.rand(87, 300, 344)
    trace = rose.SweepTrace(weights, torch.ones(86), torch.ones(86), torch.full((86,), 2.0), torch.zeros(86))
    order = rose.Order(torch.arange(344), (4,) * 86, "natural")
    result = replace(lab.results["natural"], trace=trace, order=order, weight=weights[-1])
    drawing = sweeps.sweep_film([result, result], 100.0)
    assert len(drawing.figure.frames) == 33
    assert len(drawing.figure.to_json()) < 2_000_000
    assert drawing.caption.endswith("33 of 87 steps are kept.")


def test_position_curve() -> None:
    table = pd.DataFrame({"position": [2, 0, 1], "relative_error": [0.33, 0.22, 0.25]})
    drawing = orders.position_curve(table, block=25, base="two_level", place=2)
    assert title(drawing) == "Pruned last, block 25 leaves 50.0 % more error than pruned first"
    assert drawing.figure.data[0].x.tolist() == [1, 2, 3]
    assert list(drawing.figure.data[1].x) == [3]
    assert drawing.figure.data[1].name == "its place in two-level order"
    assert drawing.figure.layout.yaxis.range[0] == 0


def test_order_bars_compare_with_natural() -> None:
    table = pd.DataFrame(
        [(o, s, e * s) for o, e in (("natural", 0.1), ("two_level", 0.08)) for s in (0.6, 0.7, 0.8)],
        columns=["order", "sparsity", "relative_error"],
    )
    drawing = orders.order_bars(table)
    assert title(drawing) == "ROSE's order leaves 20.0 % less error than SparseGPT"
    levels = [shape.y0 for shape in drawing.figure.layout.shapes]
    assert levels == pytest.approx([0.06, 0.07, 0.08])
    assert list(drawing.figure.layout.xaxis.ticktext) == ["60 %", "70 %", "80 %"]
    layered = orders.order_bars(table, budget="layer")
    assert title(layered) == "Two-level, layer budget leaves 20.0 % less error than Natural, layer budget"
    assert "layer budget; dashed: Natural, layer budget" in below(layered)


def test_matrix_separates_order_and_budget() -> None:
    table = pd.DataFrame(
        [("natural", "block", 0.2), ("natural", "layer", 0.18), ("global", "block", 0.24), ("global", "layer", 0.15)],
        columns=["order", "budget", "relative_error"],
    )
    drawing = orders.order_budget_matrix(table)
    heat = drawing.figure.data[0]
    assert heat.z.tolist() == [pytest.approx([0, -0.1]), pytest.approx([0.2, -0.25])]
    assert heat.zmin == -heat.zmax == pytest.approx(-0.25)
    assert heat.colorbar.tickformat == style.PERCENT  # a sign would be before 0, too
    printed = [[re.sub(r"</?span.*?>", "", text) for text in row] for row in heat.text]
    assert printed == [["1.000<br>SparseGPT", "0.900"], ["1.200", "0.750<br>ROSE global"]]
    assert "#ffffff" in heat.text[1][1], "on the dark end of the scale"
    assert "#000000" in heat.text[0][0], "on its light middle"
    assert title(drawing) == "ROSE global has the least error, 0.750 of SparseGPT's"
    assert "budget alone (in natural order) 10.0 %, both together 25.0 %." in drawing.caption
    with pytest.raises(rose.RoseError, match="choose a sparsity above 0"):
        orders.order_budget_matrix(table.assign(relative_error=0.0))


def test_each_error_stands_with_its_own_bits() -> None:
    assert savings.bits_and_zeros(OF_BITS).caption == (
        "Compared are half the weights at 4 bits, 0.0110 at 3.25 bits a weight, and all of them at 3 bits, 0.0100 at "
        "3.25 bits a weight. Beside them: half the weights unrounded, 0.00900 at 9.00 bits a weight; all of them at 4 "
        "bits, 0.00200 at 4.25 bits a weight."
    )


def test_a_solver_that_has_ended_is_told_by_its_own_end() -> None:
    steps = pd.DataFrame({"step": ["a", "b"], "is_complete": True, "relative_error": [0.3, 0.2]})
    ways = {
        "sweep": ("One sweep", steps[:1].assign(work=1.0)),
        "admm": ("ADMM", steps.assign(work=[10.0, 27.0])),
        "stages": ("Five stages", steps.assign(work=[30.0, 49.5], relative_error=0.4)),
    }
    ended, reached = (sweeps.solver_race(ways, work, held_out=False) for work in (49.5, 27.0))
    assert title(ended) == "By its end, after 27 products, ADMM has 33.3 % less error than one sweep"
    assert title(reached) == "After 27 products ADMM has 33.3 % less error than one sweep"
    ways["stages"][1].loc[0, ["is_complete", "relative_error"]] = False, 0.003  # has removed few weights yet
    caption = sweeps.solver_race(ways, 49.5, held_out=False).caption
    assert caption == "Lowest error at the full sparsity: One sweep 0.300, ADMM 0.200, Five stages 0.400."


# Checks


def test_measures_are_relative_and_their_disagreement_is_printed() -> None:
    measures = [ErrorMeasures("sparsegpt", 2.0, 2.5, 2.0, 10.0), ErrorMeasures("wanda", 3.0, 3.0, None, 10.0)]
    drawing = check.error_measures(measures)
    assert drawing.figure.data[0].y.tolist() == [0.2, 0.3]
    assert np.isnan(drawing.figure.data[2].y[1])
    assert title(drawing) == "Three measurements of the error differ by at most 0.200"
    assert [a.text for a in drawing.figure.layout.annotations] == ["0.200 apart", "0 apart"]


def test_held_out_curve_says_how_far_the_fit_goes_beyond_its_tokens() -> None:
    points = [CurvePoint(256, 0.02, 0.09, 0.10, True), CurvePoint(512, 0.03, 0.06, 0.01)]
    drawing = check.held_out_curve(points, method="sparsegpt")
    assert title(drawing) == "With 512 tokens, held-out error is 2.00 times the calibration error"
    held_out, calibration = drawing.figure.data
    assert held_out.y.tolist() == [0.09, 0.06]
    assert calibration.y.tolist() == [0.02, 0.03]
    assert drawing.caption.endswith("Damping had to be raised at one point.")
    assert "Held-out error falls from 0.0900 at 256 tokens to 0.0600 at 512; there" in drawing.caption
    alone = check.held_out_curve([CurvePoint(256, 0.02, None, 0.01)])
    assert "Nothing was held out" in alone.caption


def test_an_error_that_does_not_fall_throughout_is_not_told_as_falling() -> None:
    points = [
        CurvePoint(256, 0.02, 0.194, 0.01),
        CurvePoint(512, 0.03, 0.224, 0.01),
        CurvePoint(1024, 0.04, 0.133, 0.01),
    ]
    assert check.held_out_curve(points).caption.startswith(
        "Held-out error falls from 0.194 at 256 tokens to 0.133 at 1 024, not throughout: up from 0.194 at 256 to "
        "0.224 at 512; there"
    )


def test_sparsity_says_who_kept_the_promise() -> None:
    good = RealisedSparsity("sparsegpt", "block", 3, 0.7, 0.7, 0, 0, 0, (7, 10))
    bad = RealisedSparsity("wanda", "row", 24, 0.7, 0.65, 2, 0, 0, (7, 10))
    assert title(check.sparsity_by_method([good])) == "SparseGPT removed what was requested"
    drawing = check.sparsity_by_method([good, bad])
    assert title(drawing) == "One of two methods removed what was requested"
    assert "two weights (Wanda, per row)" in drawing.caption
    assert title(check.sparsity_by_method([bad, bad])) == "None of two methods removed what was requested"
    assert list(drawing.figure.data[1].text) == ["70 %", "65 %"]
    assert check.sparsity_by_method([good]).caption == "Each of 3 units has exactly the count asked for."
    rounded = RealisedSparsity("wanda", "row", 24, 0.7, 403 / 576, 0, 0, 0, (403, 576))
    assert check.sparsity_by_method([good, rounded]).caption == (
        "Each of 27 units has exactly the count asked for. Wanda: 403 of 576 weights a row is the whole number nearest "
        "to 70 %."
    )


def test_a_map_of_verdicts_marks_what_is_wrong_and_shows_the_worst_of_experts() -> None:
    places = [(0, "up_proj"), (0, "experts.0.gate"), (0, "experts.1.gate"), (1, "up_proj")]
    table = pd.DataFrame(places, columns=["block_index", "projection"]).assign(
        layer=lambda x: "model.layers." + x["block_index"].astype(str) + "." + x["projection"],
        verdict=["mask without compensation", "mask without compensation", "zeros lost", "mask without compensation"],
        reason="<i>Why",
        is_wrong=[False, False, True, True],
    )
    drawing = checkpoint.verdict_map(table, "Two are wrong")
    heat, over, *drawn = drawing.figure.data
    assert heat.y == ("up_proj", "experts.*.gate")
    assert heat.z[:, 0].tolist() == [1, 0]  # of two verdicts here, the worst is 0
    assert over.text[0] == "mask without compensation<br>&lt;i&gt;Why"
    legend = [one.name for one in drawn if one.showlegend is not False]
    assert legend == ["zeros lost 1", "mask without compensation 3, 1 of them marked"]
    marked = {one.name: list(zip(one.x, one.y, strict=True)) for one in drawn if one.showlegend is False}
    assert marked == {"zeros lost": [(0, "experts.*.gate")], "mask without compensation": [(1, "up_proj")]}
    assert drawing.caption == f"Layers by verdict: {'; '.join(legend)}."


def test_compensation_is_measured_by_a_refit_of_its_mask() -> None:
    def told(recovered: float) -> str:
        return title(checkpoint.compensation_bars(COSTS.copy().where(COSTS.index != "recovered", recovered)))

    assert told(0.67) == "Compensation recovered 67 % of what a refit would"
    assert told(1.02) == "Compensation recovered all that a refit of this mask would"
    assert told(0.004) == "Compensation recovered 0.4 % of what a refit would"
    assert told(-0.5) == "The layer is worse than its mask without compensation: error 0.100 against 0.200"
    assert told(float("nan")) == "A refit would take less than 2 % off the error of the mask alone, 0.200"


def test_damping_strip_marks_what_was_raised(records: pd.DataFrame) -> None:
    drawing = check.damping_strip(records, 0.01)
    assert title(drawing) == "One of twelve layers needed more damping than requested"
    raised = drawing.figure.data[1]
    assert list(raised.customdata) == ["model.layers.2.self_attn.q_proj"]
    assert raised.marker.symbol != drawing.figure.data[0].marker.symbol
    assert drawing.data["raised"].sum() == 1
    of_an_expert = check.damping_strip(records.assign(is_damping_raised=False), 0.01)
    assert title(of_an_expert) == "None of twelve layers needed more damping than requested"


# Whole-model runs


def test_a_map_shows_what_a_method_saves_in_every_layer(records: pd.DataFrame) -> None:
    drawing = methods.layer_map(records, "rose")
    assert title(drawing).startswith("ROSE has less error than SparseGPT on two of twelve layers")
    saved = drawing.data.set_index("layer")["saved_rose"]
    assert saved["model.layers.3.self_attn.o_proj"] == pytest.approx(1 - 0.12 / 0.13)
    assert saved["model.layers.0.self_attn.q_proj"] == 0
    alone = methods.layer_map(records, "sparsegpt", column="held_out_error")
    assert title(alone).startswith("Held-out error of SparseGPT is highest in 3 · self_attn.")
    with pytest.raises(rose.RoseError, match="No error has been measured yet"):
        methods.layer_map(records, "wanda")


def test_dumbbells_are_only_drawn_where_methods_differ(records: pd.DataFrame) -> None:
    drawing = methods.layer_differences(records)
    assert list(drawing.figure.data[1].y) == ["1 · self_attn.o_proj", "3 · self_attn.o_proj"]
    said = "Against SparseGPT: ROSE has the lower error in two of twelve layers, and the same in ten; over the two"
    assert title(drawing).startswith(said)
    spread = records.assign(relative_error=records["relative_error"] * 10.0 ** records["block_index"])
    assert "log scale" in below(methods.layer_differences(spread))
    with pytest.raises(rose.RoseError, match="no differences"):
        methods.layer_differences(records[records["projection"] == "mlp.down_proj"])


def test_perplexity_uses_a_log_axis_only_where_it_must() -> None:
    drawing = methods.perplexity_bars(perplexities(SparseGPT=32.2, ROSE=31.0), dense=20.7)
    assert title(drawing) == "ROSE has the lowest perplexity, 31.0; chance is not ruled out"
    assert drawing.figure.layout.yaxis.range[0] == 0
    assert drawing.figure.layout.shapes[0].y0 == 20.7
    drawing = methods.perplexity_bars(perplexities(SparseGPT=32.2, Magnitude=5e4, Wanda=np.inf), dense=20.7)
    assert drawing.figure.layout.yaxis.type == "log"
    assert "log scale" in below(drawing)
    assert drawing.figure.data[0].text[2] == "∞"
    assert "an infinite one has no bar" in below(drawing)
    assert "no bar" not in below(methods.perplexity_bars(perplexities(SparseGPT=32.2, Magnitude=5e4)))
    equal = methods.perplexity_bars(perplexities(SparseGPT=31.0, ROSE=31.0))
    assert title(equal) == "SparseGPT and ROSE are identical by construction: perplexity 31.0"
    near = methods.perplexity_bars(perplexities(SparseGPT=23.12, ROSE=23.08), dense=23.1)
    assert list(near.figure.data[0].text) == ["23.12", "23.08"]
    assert title(near).startswith("ROSE has the lowest perplexity, 23.08")
    assert "dashed: dense, 23.10" in below(near)


def perplexities(**values: float) -> list[Result]:
    return [Result(name, name.lower(), value) for name, value in values.items()]


def test_timeline_has_room_for_all_layers_and_tells_projections_apart_that_end_alike(records: pd.DataFrame) -> None:
    done = records[records["method"] == "rose"].head(5)
    drawing = methods.progress_timeline(done, 210)
    assert title(drawing) == "Five of 210 layers are pruned"
    assert list(drawing.figure.layout.xaxis.range) == [0, 211]
    start = methods.progress_timeline(records.head(0), 210)
    assert title(start) == "None of 210 layers are pruned"
    assert start.caption == "No layer is done yet."
    names = ["transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj"]
    drawing = methods.progress_timeline(pd.DataFrame({"layer": names, "relative_error": 0.1, "seconds": 1.0}), 2)
    assert [marks.name for marks in drawing.figure.data] == ["attn.c_proj", "mlp.c_proj"]


# Lessons


def test_worked_example_prints_every_number() -> None:
    plan = plan_from_importance(EXAMPLE, sparsity=1 / 3, block_size=3)
    drawing = losses.number_matrix(
        plan.importance,
        plan.block_width,
        removed=plan.potential_loss > 0,
        column_loss=plan.column_loss,
        block_loss=plan.block_loss,
    )
    printed = [a.text for a in drawing.figure.layout.annotations]
    assert [text.removeprefix("<s>").removesuffix("</s>") for text in printed[:36]] == [
        f"{value:.1f}" for value in EXAMPLE.flatten().tolist()
    ]
    assert sum(text.startswith("<s>") for text in printed) == 12
    assert printed[36:45] == ["1.4", "2.2", "1.1", "0.7", "0.9", "1.0", "3.9", "4.2", "3.5"]
    assert printed[45:] == ["<b>4.7</b>", "<b>2.6</b>", "<b>11.6</b>"]
    assert title(drawing) == "The largest importance S is 6.7 in row 3, column 7"


def test_strength_curve_says_where_the_layer_becomes_columnar() -> None:
    drawing = orders.strength_curve([(2, 0.7, 0.9), (0, 0.1, 1.0), (1, 0.4, 0.97)], 2)
    assert title(drawing) == "At strength 2.00, two-level order saves 10.0 % of the error"
    assert list(drawing.figure.data[0].marker.symbol) == ["circle-open", "circle-open", "circle"]
    assert drawing.caption.endswith("the layer counts as columnar from strength 2.00 on.")


# What is not there is not explained


def test_without_drift_nothing_is_said_to_arise_or_to_be_cancelled() -> None:
    none = DRIFTS[DRIFTS["target"] == "dense"].assign(drift=0.0, passed_on=0.0, arisen=0.0, cancelled=0.0)
    assert title(drift.drift_shares(none)) == "No drift arises in any decoder block"
    assert title(drift.cancelled_shares(none)) == "No decoder block has received drift that it could cancel"
    apart = none.assign(passed_on=0.1, arisen=0.1, drift=0.2)
    assert title(drift.cancelled_shares(apart)).endswith("neither cancel what they receive nor add to it")


def test_which_run_cancels_most_is_told_with_digits_that_show_it() -> None:
    table = DRIFTS.assign(passed_on=1.0, cancelled=DRIFTS["target"].map({"layer": 0.0367, "dense": 0.0371}))
    drawing = drift.cancelled_shares(table)
    said = "target dense cancels the most: 3.71 % of the drift passed on; chance is not ruled out"
    assert title(drawing).endswith(said)
    assert "target layer 3.67 %; SparseGPT, 0.7, target dense 3.71 %" in drawing.caption
    alone = drift.cancelled_shares(table[table["target"] == "dense"])
    assert title(alone).endswith("target dense cancels: 3.71 % of the drift passed on")


def test_one_layer_far_off_leaves_the_others_their_colours() -> None:
    ratios = np.array([66.06, 1.2, 0.8, 1.0, 0.5, 0.0])
    rows = pd.DataFrame({"block_index": np.arange(6), "projection": "up", "first": 0.1, "second": 0.1 * ratios})
    rows["layer"] = [f"layers.{block}.up" for block in range(6)]
    drawing = maps.run_difference(rows, ("A", "B"), "error", as_share=True)
    heat, hidden = drawing.figure.data
    assert heat.zmax == -heat.zmin == pytest.approx(np.log(2))
    assert heat.z[0] == pytest.approx(np.log([2, 1.2, 0.8, 1, 0.5, 0.5]), abs=1e-6)
    assert list(hidden.text) == ["+6506.0 %", "+20.0 %", "−20.0 %", "0.0 %", "−50.0 %", "−100.0 %"]
    assert list(heat.colorbar.ticktext) == ["−50 %", "−20 %", "0 %", "+20 %", "+100 %"]
    assert heat.colorbar.tickvals[0] == pytest.approx(np.log(0.5))
    assert "the scale ends at −50.0 % and +100 %, two layers beyond" in below(drawing)
    assert "beyond" not in below(maps.run_difference(rows[1:4], ("A", "B"), "error", as_share=True))


def test_a_change_from_nothing_has_no_share() -> None:
    """Such as of a run at sparsity 0."""
    rows = pd.DataFrame({"layer": ["layers.0.up", "layers.1.up"], "block_index": [0, 1], "projection": "up"})
    drawing = maps.run_difference(rows.assign(first=0.0, second=0.1), ("A", "B"), "error", as_share=True)
    assert drawing.caption == "Of two layers B is higher in two."
    assert "blank: two layers in which A has 0" in below(drawing)


def test_experts_of_two_runs_share_a_row_with_the_largest() -> None:
    """Hundreds of rows of pixels each would make a picture of ten thousand."""
    kinds = ["self_attn.o_proj", *(f"mlp.experts.{expert}.up_proj" for expert in range(128))]
    rows = pd.DataFrame([(f"layers.{b}.{kind}", b, kind) for b in (0, 1) for kind in kinds])
    rows = rows.set_axis(["layer", "block_index", "projection"], axis=1)
    rows["first"], rows["second"] = 0.1, 0.2
    rows.loc[7, "second"] = 0.9
    two, apart = ("A", "B"), (rows.assign(value=rows["first"]), rows.assign(value=rows["second"]))
    for drawing in (
        maps.run_maps(rows, two, "error"),
        maps.maps_apart(apart, two, "error"),
        maps.run_difference(rows, two, "error"),
        maps.run_difference(rows, two, "error", as_share=True),
    ):
        assert "of experts the largest" in below(drawing)
        assert drawing.figure.layout.height < 700
        *_, heat, marked = drawing.figure.data
        assert heat.z.shape == (2, 2)
        assert "layers.0.mlp.experts.6.up_proj" in marked.customdata
        assert len(drawing.data) >= len(rows)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([0.9, 0.85, 0.94, 0.95], "in four of ten layers, and the same in six; over the four that differ, on average"),
        ([0.9, 1.1], "in one of ten layers, and the same in eight; over the two that differ, on average no clear"),
        ([0.9], "in one of ten layers, and the same in nine; there it is 10 % lower"),
        ([0.9] * 10, "in all ten layers; on average it is 10 % lower"),
    ],
)
def test_layers_that_are_identical_do_not_blur_the_verdict_on_those_that_differ(ratios: list[float], said: str) -> None:
    rows = pd.DataFrame({"first": 1.0, "second": ratios + [1.0] * (10 - len(ratios))})
    assert f"B has the lower error {said}" in verdicts.says_layers(rows, ("A", "B"), "error")


def test_of_one_layer_there_is_no_average() -> None:
    rows = pd.DataFrame({"first": [1.0], "second": [0.5]})
    said = verdicts.says_layers(rows, ("A", "B"), "error")
    assert said == "B has the lower error in the one layer; there it is 50 % lower"


def test_whiskers_are_told_of_only_where_there_are_any() -> None:
    assert "Whiskers" in sensitivity.damage_bars(BLOCK_DAMAGES).caption
    assert "Whiskers" not in sensitivity.damage_bars(BLOCK_DAMAGES.assign(standard_error=np.nan)).caption


def test_axes_of_close_values_have_ticks() -> None:
    close = DAMAGES.assign(held_out_error=np.linspace(0.125, 0.142, len(DAMAGES)))
    axis = sensitivity.damage_scatter(close).figure.layout.xaxis
    assert (axis.type, axis.tickvals) == ("log", (0.125, 0.13, 0.135, 0.14, 0.145))
    assert axis.ticktext[1] == "0.13"
    assert sensitivity.damage_scatter(DAMAGES).figure.layout.xaxis.dtick == "D2"


def test_decoder_blocks_that_were_not_measured_stay_empty() -> None:
    drawing = savings.head_map(HEADS.replace({"block_index": {0: 0, 1: 5, 2: 18}}), marked_block=5)
    (cells,), axis = drawing.figure.data, drawing.figure.layout.xaxis
    assert list(cells.x) == list(range(19))
    assert np.flatnonzero(~np.isnan(cells.z).any(0)).tolist() == [0, 5, 18]
    assert axis.dtick == 2
    (bars,) = sensitivity.damage_bars(BLOCK_DAMAGES.assign(block_index=[0, 5, 18])).figure.data
    assert bars.width == 0.8


def test_experts_are_one_series_of_units() -> None:
    kinds = [f"mlp.experts.{number}.up_proj" for number in range(len(DAMAGES))]
    drawn = sensitivity.damage_scatter(DAMAGES.assign(projection=kinds)).figure
    assert [one.name for one in drawn.data] == ["mlp.experts.*.up_proj"]
    assert not drawn.layout.showlegend


def test_few_units_are_no_scatter() -> None:
    with pytest.raises(
        rose.RoseError,
        match="takes five units that each cost the model something; three measured so far do",
    ):
        sensitivity.damage_scatter(BLOCK_DAMAGES)


def test_damage_of_what_is_restored_is_what_it_gives_back() -> None:
    drawing = sensitivity.damage_scatter(DAMAGES, restore=True)
    assert "that restoring it alone gives back" in below(drawing)
    assert "0 · mlp.up_proj gives back most" in drawing.caption
    assert "one not lowering the loss" in drawing.caption


def test_tuning_that_has_ended_for_nothing_is_not_told_as_if_it_went_on() -> None:
    curve = pd.DataFrame([(0, 1.0, 0.9), (5, 9.0, 1.2)], columns=["step", "seconds", "held_out"])
    assert title(methods.tuning_curve(curve, 5, dense=None)).startswith("No step is better than the start")
    assert title(methods.tuning_curve(curve, 40, dense=None)).startswith("No step so far is better than the start")


def test_captions_name_no_column_of_a_mask_that_has_not_changed_and_no_others_of_one_channel() -> None:
    mask = np.zeros((4, 6), bool)
    caption = sweeps.mask_changes(mask, mask, solver="ADMM", step="step 3", since="step 2").caption
    assert caption == "0 weights removed and 0 put back since step 2."
    large, one = np.zeros((50, 60), bool), np.zeros((50, 60), bool)
    one[3, 4] = True
    drawing = sweeps.mask_changes(one, large, solver="ADMM", step="step 3", since="step 2")
    assert title(drawing) == "ADMM, step 3: 0.033 % of the mask changed since step 2"  # not 0.0 %
    table = pd.DataFrame({"channel": [3, 1], "alone": [0.1, 0.2], "together": [0.1, 0.5]})
    assert savings.channel_curve(table, 1, block=0).caption == "At the line the error is 0.100."
    both = savings.channel_curve(table, 2, block=0).caption
    assert both.endswith(
        "add up to 0.300, because channels that are removed together cannot compensate for one another."
    )


def test_accuracies_are_ranked_over_the_tasks_that_all_models_answered() -> None:
    rows = [("piqa", 100, 0.5, 0.05, "A", "rose"), ("boolq", 100, 0.9, 0.03, "A", "rose")]
    rows += [("piqa", 100, 0.8, 0.04, "B", "sparsegpt"), ("boolq", 200, 0.1, 0.02, "B", "sparsegpt")]
    table = pd.DataFrame(rows, columns=["task", "questions", "accuracy", "accuracy_error", "run", "method"])
    drawn = methods.accuracy_bars(table)
    assert "B answers 80.0 % correctly, mean over one task that all models answered" in drawn.alt
    assert "answered no task in common" in methods.accuracy_bars(table.drop(index=0)).alt
