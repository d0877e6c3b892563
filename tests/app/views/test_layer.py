"""The Layer page: every section draws, the marked block is marked everywhere, and the numbers are the engine's."""

import json
from dataclasses import replace

import pytest
import torch

import rose
from app import words
from app.figures import palette
from app.study.structures import Structures
from app.study.study import Study
from app.study.tables import column_table
from rose.layer.columnar import outlier
from rose.structured.parts import HEADS
from tests.app.tiny_study import (
    BLOCK,
    COLUMNAR,
    WIDTH,
    begun,
    figures,
    measured_study,
    open_page,
    texts,
    tiny_model,
    titles,
)

pytestmark = pytest.mark.usefixtures("placed")

PAGE = "views/layer.py"
PLAIN = "model.layers.0.mlp.gate_proj"


def metrics(app) -> dict[str, tuple[str, str]]:  # type: ignore[no-untyped-def]
    return {metric.label: (metric.value, metric.delta) for metric in app.metric}


def test_key_figures_of_a_columnar_layer(study: Study) -> None:
    app = open_page(PAGE, study)
    plan = rose.plan_order(study.weight(COLUMNAR), study.statistics(COLUMNAR), sparsity=0.7, block_size=BLOCK)
    assert plan.is_columnar
    natural = study.prune(COLUMNAR, method="sparsegpt").relative_error
    ordered = study.prune(COLUMNAR, method="rose").relative_error
    shown = metrics(app)
    spread = "Relative range (block-loss spread)"
    assert shown[spread] == (f"{plan.relative_range:.3f}", f"columnar ({plan.relative_range:.3f} > 0.5)")
    assert shown["Damping used"][0] == "0.01"
    assert shown["Dead columns"][0] == "0"
    one, other = words.apart(natural, ordered)
    assert shown["Calibration error, SparseGPT"][0] == one
    saved = 1 - ordered / natural
    assert shown["Calibration error, ROSE"] == (other, f"{words.percent(abs(saved))} less")
    hessian = study.statistics(COLUMNAR).hessian
    eigenvalues = torch.linalg.eigvalsh(hessian + 0.01 * hessian.diagonal().mean() * torch.eye(WIDTH))
    assert shown["Condition number of H"][0] == words.number(float(eigenvalues[-1] / eigenvalues[0]))
    assert f"{WIDTH} × {WIDTH} weights" in texts(app)
    found = outlier(plan, study.weight(COLUMNAR), study.statistics(COLUMNAR).mean_square.sqrt(), study.heads(COLUMNAR))
    assert found == replace(found, block=3, is_strong=True, cause="inputs", heads=(3,))  # which is planted
    why = f"Columnar because block 3 (head 3) loses {words.number(found.ratio)} times what block {found.other} loses"
    assert f"{why}: its inputs are strong Columns of" in titles(app)[0]
    app = open_page(PAGE, study, threshold="1")  # of all pages
    shown = metrics(app)
    assert shown[spread][1] == f"not columnar ({plan.relative_range:.3f} ≤ 1)"
    assert "Not columnar: block 3 (head 3) loses no more than " in titles(app)[0]
    assert shown["Calibration error, ROSE"] == (shown["Calibration error, SparseGPT"][0], "same as SparseGPT")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (
            {"section": "Why"},
            ["Columns of 1 · self_attn.o_proj; solid: edges of four blocks; dotted: 4 attention"],
        ),
        ({"section": "Weights"}, ["|W| of 1 · self_attn.o_proj"]),
        ({"section": "Weights", "weights_as": "3-D surface"}, ["|W| of 1 · self_attn.o_proj as a surface"]),
        ({"section": "Inputs"}, ["Hessian diagonal of 1 · self_attn.o_proj"]),
        ({"section": "Inputs", "scale": "Logarithmic", "arrange": "Sorted"}, ["logarithmic scale"]),
        ({"section": "Inputs", "hessian": "Spectrum"}, ["Eigenvalues of the Hessian of 1 · self_attn.o_proj"]),
        ({"section": "Losses"}, ["Columnar: relative range", "Column loss of 1 · self_attn.o_proj"]),
        ({"section": "Losses", "loss_map": "Importance"}, ["Columnar", "Importance S"]),
        ({"section": "Losses", "loss_map": "Pre-pruning mask"}, ["Columnar", "Pre-pruning mask of 1 · self"]),
        ({"section": "Losses", "loss_map": "Potential loss"}, ["Columnar", "Potential loss L of 1 · self_attn.o_proj"]),
        ({"section": "Order"}, ["Two-level: pruning starts in block 3"]),
        ({"section": "Error"}, ["less error than SparseGPT"]),
        ({"section": "Compare layers"}, ["has the highest relative range", "error"]),
    ],
)
def test_every_section_draws_only_its_own_figures(study: Study, query: dict[str, str], found: list[str]) -> None:
    """And marks the chosen block in all of them, where there are blocks."""
    app = open_page(PAGE, study, **query)
    drawn = figures(app)
    assert all(part in whole for part, whole in zip(found, titles(app), strict=True)), titles(app)
    if query["section"] not in ("Error", "Compare layers") and "hessian" not in query:
        marked = figures(open_page(PAGE, study, **query, block="Block 1"))
        for before, after in zip(drawn, marked, strict=True):
            assert after.count(palette.MARK) > before.count(palette.MARK)


def test_exact_values_of_the_chosen_block(study: Study) -> None:
    app = open_page(PAGE, study, section="Losses", block="Block 3")
    plan = study.plan(COLUMNAR, 0.5)
    shown = app.main.dataframe[0].value
    assert list(shown["column"]) == list(range(48, 64))
    assert list(shown["position"]) == list(range(16))
    assert list(shown["column_loss"]) == plan.column_loss[48:].tolist()
    assert list(shown["hessian_diagonal"]) == study.statistics(COLUMNAR).diagonal[48:].tolist()
    assert sorted(shown["step"]) == list(range(16))  # the costliest block goes first
    for column, step, rank in zip(shown["column"], shown["step"], shown["rank"], strict=True):
        assert int(plan.permutation[step]) == column
        assert rank == 1 + int((plan.column_loss > plan.column_loss[column]).sum())
    assert f"**Block 3**: columns 48 to 63, block loss {words.number(float(plan.block_loss[3]))}" in texts(app)


def test_a_block_that_this_layer_does_not_have_is_not_marked(study: Study) -> None:
    app = open_page(PAGE, study, layer="model.layers.0.mlp.down_proj", section="Losses", block="Block 5")
    assert app.selectbox(key="block").value == "5"
    app.sidebar.selectbox(key="layer_widget").set_value(COLUMNAR).run()
    assert not app.exception
    assert app.selectbox(key="block").value == "none"


def test_a_column_is_followed(study: Study) -> None:
    app = open_page(PAGE, study, section="Order")
    plan = study.plan(COLUMNAR, 0.5)
    first = int(plan.permutation[0])
    assert any(f"Column {first} (block 3" in caption.value for caption in app.caption)
    app.number_input(key="column").set_value(5).run()
    step = int(plan.permutation.argsort()[5])
    assert any(f"is pruned at step {step}." in caption.value for caption in app.caption)


def test_orders_of_a_layer_that_is_not_columnar(study: Study) -> None:
    app = open_page(PAGE, study, layer=PLAIN, section="Order")
    assert "ROSE leaves the columns as they are" in texts(app)
    assert "stay in their natural order" in titles(app)[0]
    app.segmented_control(key="picture_order").set_value("two_level").run()
    assert "ROSE leaves" not in texts(app)
    order = rose.make_order(study.plan(PLAIN, 0.5), "two_level")
    assert f"with column {int(order.permutation[0])}" in titles(app)[0]


def test_errors_on_calibration_and_held_out_tokens(study: Study) -> None:
    app = open_page(PAGE, study, layer=PLAIN, section="Error")
    row = study.overview(0.5).set_index("layer").loc[PLAIN]
    shown = app.main.dataframe[0].value
    assert list(shown["relative_error"]) == [row["error_sparsegpt"], row["error_sparsegpt"], row["error_rose_global"]]
    assert list(shown["held_out_error"])[2] == row["held_out_rose_global"]
    assert "on held-out tokens" in titles(app)[0]
    assert f"an error of {words.number(row['held_out_two_level'])}" in texts(app)
    app.segmented_control(key="error_on").set_value("calibration").run()
    assert "on calibration tokens" in titles(app)[0]
    assert f"an error of {words.number(row['error_two_level'])}" in texts(app)


def test_without_held_out_tokens_only_calibration_is_offered() -> None:
    app = open_page(PAGE, measured_study(held_out=0), section="Error")
    assert len(app.segmented_control(key="error_on").options) == 1


def test_column_table_of_a_narrow_last_block() -> None:
    weight, inputs = torch.randn(50, 10, generator=torch.Generator().manual_seed(0)).split([10, 40])
    plan = rose.plan_order(weight, inputs.T @ inputs, sparsity=0.5, block_size=4, threshold=0.0)
    table = column_table(plan, rose.make_order(plan, "two_level"), 2)
    assert list(table["column"]) == [8, 9]
    ranks = [1 + int((plan.column_loss > plan.column_loss[column]).sum()) for column in (8, 9)]
    assert list(table["rank"]) == ranks


def test_a_page_that_has_nothing_to_show_yet_is_in_the_url_too(study: Study) -> None:
    app = open_page(PAGE, begun(study))
    app.sidebar.selectbox(key="layer_widget").set_value(PLAIN).run()
    assert f"{words.short_layer(PLAIN)} has not been measured yet" in texts(app)
    assert app.query_params["layer"] == PLAIN


def test_a_gain_that_held_out_tokens_do_not_confirm_is_told(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    said, table = "The two kinds of tokens disagree", study.overview(0.5)
    errors = {"error_sparsegpt": 3e-5, "error_rose": 2.9988e-5, "gain": 0.0004}
    for held_out, is_told in ((0.1, False), (-0.02, True)):
        other = table.assign(held_out_gain=held_out, **errors)
        monkeypatch.setattr(Study, "overview", lambda *_, other=other: other)
        app = open_page(PAGE, study)
        assert (said in texts(app)) is is_told
    assert "ROSE has 2.0 % more error than SparseGPT on held-out tokens, and 0.040 % less on those" in texts(app)
    assert metrics(app)["Calibration error, ROSE"] == ("2.999 × 10⁻⁵", "0.040 % less")


def test_several_layers_are_compared_among_them_the_chosen_one(study: Study) -> None:
    app = open_page(PAGE, study, section="Compare layers")
    known = study.overview(0.5).sort_values("relative_range", ascending=False, kind="stable")["layer"].tolist()
    first = app.multiselect(key="compare").value
    assert first[0] == COLUMNAR
    assert set(first) <= {COLUMNAR, *known[:4]}
    app.multiselect(key="compare").set_value([COLUMNAR, PLAIN]).run()
    assert len(app.main.dataframe[0].value) == 6
    assert len(json.loads(figures(app)[0])["data"][0]["y"]) == 2
    app.multiselect(key="compare").set_value([]).run()
    assert "Choose at least one layer." in texts(app)

    app = open_page(PAGE, study, section="Compare layers")
    lowest = known[-1]
    app.sidebar.selectbox(key="layer_widget").set_value(lowest).run()
    assert app.multiselect(key="compare").value == [lowest, *known[:3]]
    app.multiselect(key="compare").set_value([lowest, known[5]]).run()
    assert app.multiselect(key="compare").value == [lowest, known[5]]
    app.sidebar.selectbox(key="layer_widget").set_value(known[7]).run()
    assert app.multiselect(key="compare").value == [known[7], known[5]]
    app.multiselect(key="compare").set_value([lowest]).run()  # the user may leave the chosen one out
    assert app.multiselect(key="compare").value == [lowest]
    app.session_state["compare"] = ["transformer.h.0.mlp.c_proj"]  # of another model
    app.run()
    assert app.multiselect(key="compare").value[0] == known[7]


def test_a_model_made_smaller_has_the_heads_that_are_left() -> None:
    model = tiny_model()
    tokens = torch.randint(3, model.config.vocab_size, (8, 32), generator=torch.Generator().manual_seed(1))
    rose.prune_structured(model, tokens, ratio=0.4, allocation="cost")
    study = measured_study(samples=10, model=model)
    names = [f"model.layers.{block}.self_attn.o_proj" for block in range(3)]
    heads = [study.heads(name) for name in names]
    assert heads == [part.shape.units for part in Structures(study).parts.values() if part.kind == HEADS]
    fewer = min(range(3), key=heads.__getitem__)
    assert heads[fewer] < 4
    (drawn,) = titles(open_page(PAGE, study, layer=names[fewer], section="Why"))
    assert f"dotted: {heads[fewer]} attention" in drawn


def test_where_nothing_is_removed_no_number_is_nonsense() -> None:
    app = open_page(PAGE, measured_study(sparsity="0"), section="Error")
    assert "would give an error of 0, same as SparseGPT." in texts(app)
    assert {"Held-out error, SparseGPT", "Held-out error, ROSE"} <= {metric.label for metric in app.metric}
    app.segmented_control(key="section").set_value("Losses").run()
    assert not app.exception
    assert "∞" not in json.dumps(figures(app), ensure_ascii=False)
    assert "of every block is 0, and so is the relative range" in texts(app)
