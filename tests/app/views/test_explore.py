"""The page Explore: numbers of the study, what would be columnar otherwise, the chosen layer, and its sections."""

import json
import re
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from streamlit.testing.v1 import AppTest

import rose
from app import shared, words
from app.results.pairs import difference, differences
from app.study import cache
from app.study.setup import Setup
from app.study.study import Study
from app.study.tables import read_numbers
from rose.layer.columnar import outlier
from rose.model.walk.walk import BlockStatistics
from tests.app.results.made_reports import made_report, made_tuning
from tests.app.tiny_study import (
    BLOCK,
    COLUMNAR,
    START,
    WIDTH,
    figures,
    measured_study,
    open_page,
    place,
    texts,
    tiny_model,
    titles,
)
from tests.model.families import make_model


def session_studies() -> list[Setup]:
    return [setup for setup, file in cache.FINISHED.items() if file.exists()]


pytestmark = pytest.mark.usefixtures("placed")


def findings(app: AppTest) -> list[str]:
    """What the figures are titled with."""
    return [json.loads(figure)["layout"]["meta"]["finding"] for figure in figures(app)]


def data(study: Study, **query: str) -> AppTest:
    """The page with its table."""
    return open_page(START, study, section="Data", **query)


def test_findings_and_table_match_the_study(study):
    app = data(study)
    shown, expected = app.main.dataframe[0].value, study.overview(0.5)
    assert len(shown) == 21
    assert shown["gain"].tolist() == pytest.approx(100 * expected["gain"], nan_ok=True)
    for column in ("relative_range", "range_low", "error_sparsegpt", "error_rose", "held_out_rose_global", "condition"):
        assert shown[column].tolist() == pytest.approx(expected[column].tolist(), nan_ok=True)
    saved = 1 - expected["held_out_rose_global"] / expected["held_out_sparsegpt"]
    assert list(expected["held_out_global_gain"]) == pytest.approx(list(saved))
    assert expected.query("is_columnar")["layer"].tolist() == [COLUMNAR]
    gains, columnar = expected["held_out_gain"], expected["is_columnar"]
    share, rest = (words.percent(gains[some].mean(), 0) for some in (columnar, ~columnar))
    row = expected.set_index("layer").loc[COLUMNAR]
    assert findings(app)[:5] == [
        "One of 21 layers is columnar",
        f"ROSE's order saves {share} there, {rest} elsewhere",
        f"1 · o_proj is columnar: {row['relative_range']:.2f}",
        "ROSE prunes costly blocks first, while many columns can still compensate",
        "Error of the layer's output on text it was not measured on",
    ]
    assert "Block 3 (head 3) would lose" in titles(app)[2]
    bars = json.loads(figures(app)[4])["data"]
    assert [bar["x"][0] for bar in bars] == [row["held_out_sparsegpt"], row["held_out_rose"]]


def test_the_outlying_block_is_the_planted_one(study):
    columns = study.profile(COLUMNAR)
    assert columns is not None
    peak = outlier(columns, BLOCK, study.head_width_of(COLUMNAR))
    assert peak == replace(peak, block=3, is_strong=True, cause="inputs", heads=(3,))
    assert study.head_width_of("model.layers.1.mlp.up_proj") is None
    hessian = study.statistics(COLUMNAR).hessian
    condition = torch.linalg.cond(hessian + 0.01 * hessian.diagonal().mean() * torch.eye(WIDTH), 2)
    shown = study.overview(0.5).set_index("layer").loc[COLUMNAR, "condition"]
    assert shown == pytest.approx(float(condition), rel=1e-3)


def test_what_if_shows_the_ranges_of_other_settings(study):
    app = open_page(START, study)
    own = findings(app)[0]
    app.segmented_control(key="what_block").set_value(32).run()
    app.selectbox(key="what_sparsity").set_value("0.5").run()
    assert (app.query_params["what_block"], app.query_params["what_sparsity"]) == ("32", "0.5")
    heat = json.loads(figures(app)[0])["data"][0]
    rows = heat["y"]
    for projection in ("o_proj", "q_proj"):
        layer = f"model.layers.1.self_attn.{projection}"
        plan = rose.plan_order(study.weight(layer), study.statistics(layer), sparsity=0.5, block_size=32)
        row = study.what_if(0.5, "0.5", 32).set_index("layer").loc[layer]
        assert row["relative_range"] == pytest.approx(plan.relative_range, abs=1e-4)
        assert (row["range_low"], row["range_high"]) == pytest.approx(plan.interval, abs=1e-4)
    assert "self_attn.o_proj" in rows
    assert "errors measured at 70\u202f% and 1 head a block".replace("\u202f", " ") in titles(app)[1]
    assert app.button(key="measure-what-if").label.replace("\u202f", " ") == "Measure errors at 50 %, 2 heads"
    assert "Losses are those at 70" in texts(app)
    again = open_page(START, study, what_block="32", what_sparsity="0.5")
    assert findings(again)[:3] == findings(app)[:3]
    app.segmented_control(key="what_block").set_value(BLOCK).run()
    app.selectbox(key="what_sparsity").set_value("0.7").run()
    assert "what_block" not in app.query_params
    assert findings(app)[0] == own


def test_columns_move_as_rose_prunes(study):
    app = open_page(START, study)
    before = json.loads(figures(app)[2])["data"][3]["y"]["bdata"]
    app.segmented_control(key="columns_as").set_value("As ROSE prunes").run()
    after = json.loads(figures(app)[2])["data"][3]["y"]["bdata"]
    assert before != after
    app.button(key="layer-next").click().run()
    assert app.session_state["chosen_layer"] == study.layer_names[study.layer_names.index(COLUMNAR) + 1]
    assert app.query_params["layer"] == app.session_state["chosen_layer"]


def test_experts_share_rows_or_have_an_axis():
    study = measured_study(samples=1, model=make_model("sparse_experts"))
    assert study.left_dense  # no token came there
    assert len(study.overview(0.5)) == 2 * (4 + 3 * 24) - len(study.left_dense)
    layer = str(study.overview(0.5)["layer"].iloc[0])
    app = open_page(START, study, layer=layer)
    rows = json.loads(figures(app)[0])["data"][0]["y"]
    parts = [f"mlp.experts.*.{part}_proj" for part in ("gate", "up", "down")]
    assert [row for row in rows if "experts" in row] == parts
    app.segmented_control(key="experts").set_value("mlp.experts.*.down_proj").run()
    assert json.loads(figures(app)[0])["data"][0]["y"] == [f"expert {number}" for number in range(24)]
    assert "blank: left out (" in titles(app)[0]
    app = open_page(START, study, layer=study.left_dense[0])
    assert "No calibration token was routed to this expert" in texts(app)


def test_threshold_updates_columnar_layers_at_once(study):
    ranges = study.overview(0.5).set_index("layer")["relative_range"].sort_values(ascending=False)
    threshold = round(float(ranges[ranges <= 0.5].iloc[0]) - 0.01, 2)  # the highest of them turns columnar
    many = int((ranges > threshold).sum())
    app = data(study)
    app.slider(key="threshold_widget").set_value(threshold).run()
    some = words.sentence(words.out_of(many, 21, "layer"))
    assert findings(app)[0].startswith(f"{some} are columnar")
    assert app.query_params["threshold"] == f"{threshold:g}"
    assert app.main.dataframe[0].value["is_columnar"].sum() == many
    app.slider(key="threshold_widget").set_value(1.0).run()
    assert findings(app)[3] == "ROSE keeps the order of a layer that is not columnar"


def test_missing_metrics_are_not_offered():
    app = open_page(START, measured_study(held_out=0))
    offered = app.selectbox(key="metric").options
    assert "Calibration error of ROSE" in offered
    assert not [name for name in offered if name.startswith("Held-out")]
    app = open_page(START, measured_study(sparsity="0"))
    assert not [name for name in app.selectbox(key="metric").options if "saved" in name]
    assert "No layer here has both numbers" in texts(app)
    assert "∞" not in json.dumps(figures(app), ensure_ascii=False)


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ({"loss_map": "Importance"}, "Importance S"),
        ({"loss_map": "Potential loss"}, "Potential loss L of 1 · o_proj"),
        ({"loss_map": "Pre-pruning mask"}, "Pre-pruning mask of 1 · o_proj"),
        ({"loss_map": "Column loss by block"}, "Column loss of 1 · o_proj"),
        ({"loss_map": "Weights"}, "|W| of 1 · o_proj"),
        ({"loss_map": "Hessian diagonal"}, "Hessian diagonal of 1 · o_proj"),
        ({"loss_map": "Hessian spectrum"}, "Eigenvalues of the Hessian of 1 · o_proj"),
        ({"section": "Where order matters"}, "ROSE's order gains on"),
    ],
)
def test_every_section_has_its_picture(study, query, title):
    assert title in titles(open_page(START, study, **query))[-1]


def test_errors_are_those_of_the_study(study):
    app = open_page(START, study, section="Errors of the methods")
    row = study.overview(0.5).set_index("layer").loc[COLUMNAR]
    shown = app.main.dataframe[0].value
    assert list(shown["held_out_error"]) == [row[f"held_out_{name}"] for name in ("sparsegpt", "rose", "rose_global")]
    assert shown["relative_error"].iloc[0] == row["error_sparsegpt"]
    assert "on held-out tokens" in titles(app)[-1]


def test_user_numbers_are_drawn_as_a_map(study, tmp_path):
    path = tmp_path / "scores.csv"
    rows = {name: (-1) ** at * at for at, name in enumerate(study.layer_names)}
    listed = "".join(f"{value},x,{name}\n" for name, value in rows.items())
    path.write_text(f"value,more,layer\n{listed}1,x,[gone](http://a.example)\n")
    app = data(study, metric="Your numbers", own_path=str(path))
    assert findings(app)[0] == f"Your numbers are highest in {words.short_layer(study.layer_names[20])}: 20"
    heat = json.loads(figures(app)[0])["data"][0]
    assert (heat["zmin"], heat["zmax"]) == (-20, 20)  # centred, as some are below 0
    assert r"this model has no such layer: \[gone\]" in texts(app)
    path.write_text("layer,value\n")
    app.run()
    assert "The file names no layer of this model" in texts(app)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name,value\na,1\n", "no columns layer and value"),
        (b"layer,value\na,1\n\nb,nan\n", "Row 2, column value: 'nan' is no finite number"),
        (b"layer,value\na,1e39\n", "Row 1, column value: '1e39' is no finite number"),
        (b"layer,value\na,1\na,2\n", "The layer a is there twice"),
        (b"layer,value\na,1\nb,1,2\n", "cannot be read as CSV (Error tokenizing data"),
        (b"layer,value\na,1,2\n", "more fields than its first line"),
        (b"", "cannot be read as CSV"),
        (b"layer,value\nc,1\n", "names no layer of this model, such as c; its layers are called a"),
        pytest.param(made_report().to_json().encode(), "no report of a tuned model", id="not tuned"),
        ("/nowhere/scores.csv", "There is no file /nowhere/scores.csv"),
    ],
)
def test_bad_number_files_are_refused(content, says):
    with pytest.raises(rose.RoseError, match=re.escape(says)):
        read_numbers(content, ["a", "b"])


def test_tuning_changes_are_read_from_a_report():
    content = made_report(tuned=made_tuning({"a": 0.25, "c": 1.0})).to_json().encode()
    of_layers, unknown = read_numbers(content, ["a", "b"])
    assert (of_layers.to_dict(), unknown) == ({"a": 0.25}, ["c"])


def test_differences_between_study_and_model_are_explained(study):
    table, model, setup = study.overview(0.5), tiny_model(), study.setup
    options = {"sparsity": 0.7, "block_size": setup.block_size, "method": "sparsegpt"}
    tokens, held_out = study.calibration.tokens, study.calibration.held_out
    copy = rose.prune_model(model, tokens, held_out=held_out, target="dense", **options)
    here, there = words.apart(table["held_out_sparsegpt"].mean(), copy.layers["held_out_error"].mean())
    columnar = words.count(int((copy.layers["relative_range"] > 0.5).sum()), "columnar layer")
    assert f"error {there} and {columnar}; in the study of layers {here}" in difference(study, table, copy)
    for asked, name in ((0.7, "another"), (0.5, setup.model)):
        other = SimpleNamespace(setup=setup.changed(model=name), copies=[copy.with_summary(sparsity=asked)])
        assert differences(study, table, other) == []  # type: ignore[arg-type]
    alike = copy.layers.merge(table, on="layer", suffixes=("", "_here"))
    alike = alike.assign(held_out_error=alike["held_out_sparsegpt"], relative_range=alike["relative_range_here"])
    assert difference(study, table, replace(copy, layers=alike[copy.layers.columns])) == ""


def test_results_are_shown_during_the_run(study, monkeypatch):
    go_on, waiting, measure, loaded = threading.Event(), threading.Event(), Study._measure, study.loaded
    assert loaded is not None

    def halt(self: Study, block: BlockStatistics, *more: Any) -> None:
        if block.block_index == 1:
            waiting.set()
            assert go_on.wait(240)
        measure(self, block, *more)

    monkeypatch.setattr(Study, "_measure", halt)
    running = Study(study.setup.changed(seed=9), lambda: loaded, study.calibration)
    place(running)
    running.job.watch("test")
    running.job.start()
    try:
        assert waiting.wait(240)
        app = data(running, metric="Condition number of H")
        assert len(app.main.dataframe[0].value) == 7
        assert "blank: not yet (14 of 21)" in titles(app)[0]
        # On every page, or the run would be stopped as if nobody were there.
        for page in (app, open_page("views/prune.py", running)):
            assert page.button(key="head-0-cancel")
    finally:
        go_on.set()
    running.job.wait(240)
    app.run()
    assert len(app.main.dataframe[0].value) == 21
    assert app.selectbox(key="metric").value == "condition"  # the page kept its state


@pytest.mark.parametrize("setup", session_studies(), ids=lambda setup: setup.model)
def test_finished_studies_open_without_a_model(setup, empty_registry, monkeypatch):
    def nowhere(*_names, **_options):
        raise rose.RoseError("The model is not here.")

    monkeypatch.setattr(shared, "load", nowhere)
    app = open_page(START, **setup.to_texts())
    study = shared.find(setup)
    assert (study.job.status, study.loaded) == ("kept", None)
    assert len(study.overview(0.5)) == len(study.layer_names) > 100
    assert len(figures(app)) >= 5
    assert app.session_state["chosen_layer"] == study.most_columnar()
    if setup != Setup():  # whose weights are not here
        assert app.button(key="measure-here").label == "Measure this model"
        assert re.search("layers (is|are) columnar", findings(app)[0])
