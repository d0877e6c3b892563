"""The page Layer: every picture is drawn, marks the chosen block, and has the numbers of the engine."""

import json
from dataclasses import replace
from urllib.parse import parse_qs

import pytest
import torch

import rose
from app import words
from app.figures import palette
from app.forms import prune_choices
from app.study.structures import Structures
from app.study.tables import column_table
from rose.layer.columnar import outlier
from rose.structured.parts import HEADS
from tests.app.tiny_study import BLOCK, COLUMNAR, WIDTH, figures, measured_study, open_page, texts, tiny_model, titles

pytestmark = pytest.mark.usefixtures("placed")

PAGE = "views/layer.py"


def test_key_figures_of_a_columnar_layer(study):
    app = open_page(PAGE, study, layer_more="true")
    plan = rose.plan_order(study.weight(COLUMNAR), study.statistics(COLUMNAR), sparsity=0.7, block_size=BLOCK)
    row = study.overview(0.5).set_index("layer").loc[COLUMNAR]
    first, second = words.apart(row["held_out_sparsegpt"], row["held_out_rose"])
    saved = row["held_out_gain"]
    assert f"**columnar**, relative range {plan.relative_range:.3f} > 0.5" in texts(app)
    way = "less" if saved > 0 else "more"
    errors = f"SparseGPT **{first}**, ROSE **{second}**, {words.percent(abs(saved))} {way}.".replace("\u202f", " ")
    assert f"Held-out error: {errors}" in texts(app)
    numbers = dict(app.table[0].value.itertuples(index=False))
    hessian = study.statistics(COLUMNAR).hessian
    condition = torch.linalg.cond(hessian + 0.01 * hessian.diagonal().mean() * torch.eye(WIDTH), 2)
    assert numbers["Condition number of the damped H"] == words.number(float(condition))
    natural = study.prune(COLUMNAR, method="sparsegpt").relative_error
    assert f"SparseGPT {words.number(natural)}" in numbers["Calibration error"]
    peak = outlier(plan, study.weight(COLUMNAR), study.statistics(COLUMNAR).mean_square.sqrt(), study.heads(COLUMNAR))
    assert peak == replace(peak, block=3, is_strong=True, cause="inputs", heads=(3,))  # which is planted
    assert "Columnar because block 3 (head 3) loses" in titles(app)[0]


def test_link_to_prune_requests_the_layers_and_settings_of_the_study(study):
    app = open_page(PAGE, study)
    (link,) = (link for link in app.get("page_link") if link.proto.label.startswith("Prune this layer"))
    query = parse_qs(link.proto.query_string)
    asked = {"prune_layers": [COLUMNAR], "prune_methods": ["SparseGPT", "ROSE"]}
    assert query.items() >= (asked | {"prune_targets": [prune_choices.TARGETS["layer"]]}).items()


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ({"section": "Why"}, ["Columnar because block 3"]),
        ({"section": "Hessian diagonal"}, ["Hessian diagonal of 1 · self_attn.o_proj"]),
        ({"section": "Hessian diagonal", "arrange": "Sorted, log"}, ["logarithmic scale"]),
        ({"section": "Losses"}, ["Column loss of 1 · self_attn.o_proj"]),
        ({"section": "Losses", "loss_map": "Importance"}, ["Importance S"]),
        ({"section": "Losses", "loss_map": "Pre-pruning mask"}, ["Pre-pruning mask of 1 · self"]),
        ({"section": "Losses", "loss_map": "Potential loss"}, ["Potential loss L of 1 · self_attn.o_proj"]),
        ({"section": "Order and prices"}, ["Two-level: pruning starts in block 3", "the same mean log price"]),
        ({"more": "Weights"}, ["Columnar", "|W| of 1 · self_attn.o_proj"]),
        ({"more": "Blocks"}, ["Columnar because", "Columnar: relative range"]),
    ],
)
def test_every_picture_marks_the_block(study, query, shown):
    app = open_page(PAGE, study, **query, **({"layer_more": "true"} if "more" in query else {}), block="Block 2")
    for title, part in zip(titles(app), shown, strict=True):
        assert part in title
    assert all(palette.MARK in figure for figure in figures(app))


def test_spectrum_and_errors_match_the_study(study):
    app = open_page(PAGE, study, section="Error", layer_more="true", more="Spectrum")
    row = study.overview(0.5).set_index("layer").loc[COLUMNAR]
    shown = app.main.dataframe[0].value
    assert list(shown["held_out_error"]) == [row[f"held_out_{name}"] for name in ("sparsegpt", "rose", "rose_global")]
    assert shown["relative_error"].iloc[0] == row["error_sparsegpt"]
    assert "on held-out tokens" in titles(app)[0]
    assert "Eigenvalues of the Hessian of 1 · self_attn.o_proj" in titles(app)[1]


def test_block_choice_is_reset_for_another_layer(study):
    app = open_page(PAGE, study, layer="model.layers.0.mlp.down_proj", section="Losses", block="Block 5")
    assert app.selectbox(key="block").value == "5"
    app.sidebar.selectbox(key="layer_widget").set_value(COLUMNAR).run()
    assert app.selectbox(key="block").value == "none"


def test_column_table_of_a_narrow_last_block():
    weight, inputs = torch.randn(50, 10, generator=torch.Generator().manual_seed(0)).split([10, 40])
    plan = rose.plan_order(weight, inputs.T @ inputs, sparsity=0.5, block_size=4, threshold=0.0)
    table = column_table(plan, rose.make_order(plan, "two_level"), 2)
    assert list(table["column"]) == [8, 9]
    assert list(table["rank"]) == [1 + int((plan.column_loss > plan.column_loss[column]).sum()) for column in (8, 9)]


def test_model_made_smaller_has_the_heads_that_are_left():
    model = tiny_model()
    tokens = torch.randint(3, model.config.vocab_size, (8, 32), generator=torch.Generator().manual_seed(1))
    rose.prune_structured(model, tokens, ratio=0.4, allocation="cost")
    study = measured_study(samples=10, model=model)
    names = [f"model.layers.{block}.self_attn.o_proj" for block in range(3)]
    heads = [study.heads(name) for name in names]
    assert heads == [part.shape.units for part in Structures(study).parts.values() if part.kind == HEADS]
    fewer = min(range(3), key=heads.__getitem__)
    assert heads[fewer] < 4
    assert f"dotted: {heads[fewer]} attention" in titles(open_page(PAGE, study, layer=names[fewer]))[0]


def test_numbers_are_finite_at_sparsity_0():
    app = open_page(PAGE, measured_study(sparsity="0"), section="Losses", layer_more="true", more="Blocks")
    assert "SparseGPT **0**, ROSE **0**, the same by construction." in texts(app)
    assert "∞" not in json.dumps(figures(app), ensure_ascii=False)
