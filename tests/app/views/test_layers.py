"""The page Layers: numbers of the study, the threshold, and results during a run."""

import json
import re
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import rose
from app import words
from app.results.pairs import difference, differences
from app.study.study import Study
from app.study.tables import read_numbers
from rose.model.walk.walk import BlockStatistics
from tests.app.results.made_reports import made_report, made_tuning
from tests.app.tiny_study import COLUMNAR, figures, measured_study, open_page, place, texts, tiny_model, titles
from tests.model.families import make_model

pytestmark = pytest.mark.usefixtures("placed")

PAGE = "views/layers.py"


def findings(app: AppTest) -> list[str]:
    """What the figures are titled with."""
    return [json.loads(figure)["layout"]["meta"]["finding"] for figure in figures(app)]


def numbers(study: Study, **query: str) -> AppTest:
    """The page with its table."""
    return open_page(PAGE, study, layers_table="true", **query)


def test_table_and_findings_match_the_study(study):
    app = numbers(study)
    shown, expected = app.main.dataframe[0].value, study.overview(0.5)
    assert len(shown) == 21
    assert shown["gain"].tolist() == pytest.approx(100 * expected["gain"], nan_ok=True)
    for column in ("relative_range", "error_sparsegpt", "error_rose", "held_out_rose_global", "condition"):
        assert list(shown[column]) == list(expected[column])
    saved = 1 - expected["held_out_rose_global"] / expected["held_out_sparsegpt"]
    assert list(expected["held_out_global_gain"]) == pytest.approx(list(saved))
    assert expected.query("is_columnar")["layer"].tolist() == [COLUMNAR]
    assert "**One of 21 layers is columnar** above 0.5: 1 · self_attn.o_proj." in texts(app)
    assert f"{words.sentence(study.setup.conditions)}." in texts(app)
    gains, columnar = expected["held_out_gain"], expected["is_columnar"]
    rule, always = (words.percent(part.sum() / 21).replace("\u202f", " ") for part in (gains[columnar], gains))
    assert f"Over all layers ROSE saves {rule}, two-level order in every layer {always}." in texts(app)
    share, rest = (words.percent(gains[some].mean(), 0) for some in (columnar, ~columnar))
    finding = f"Two-level order saves {share} in one columnar layer, {rest} in the others"
    assert findings(app) == ["One of 21 layers is columnar", finding]
    none = "**None of 21 layers is columnar** above 1 (ROSE's own threshold, 0.5, gives one)."
    assert none in texts(numbers(study, threshold="1"))


def test_experts_share_rows_or_have_an_axis():
    study = measured_study(samples=1, model=make_model("sparse_experts"))
    assert study.left_dense  # no token came there
    assert len(study.overview(0.5)) == 2 * (4 + 3 * 24) - len(study.left_dense)
    layer = str(study.overview(0.5)["layer"].iloc[0])
    app = open_page(PAGE, study, layer=layer)
    rows = json.loads(figures(app)[0])["data"][0]["y"]
    parts = [f"mlp.experts.*.{part}_proj" for part in ("gate", "up", "down")]
    assert [row for row in rows if "experts" in row] == parts
    app.segmented_control(key="experts").set_value("mlp.experts.*.down_proj").run()
    assert json.loads(figures(app)[0])["data"][0]["y"] == [f"expert {number}" for number in range(24)]
    assert "blank: left out (" in titles(app)[0]
    for page in (PAGE, "views/layer.py"):
        app = open_page(page, study, layer=study.left_dense[0])
        assert f"{len(study.expected)} layers measured" in texts(app)
    assert "No calibration token was routed to this expert" in texts(app)
    start = texts(open_page("views/start.py", study, layer=layer))
    assert f"No calibration token was routed to {len(study.left_dense)} layers" in start


def test_threshold_updates_columnar_layers_at_once(study):
    ranges = study.overview(0.5).set_index("layer")["relative_range"].sort_values(ascending=False)
    threshold = round(float(ranges[ranges <= 0.5].iloc[0]) - 0.01, 2)  # the highest of them turns columnar
    many = int((ranges > threshold).sum())
    app = numbers(study)
    app.slider(key="threshold_widget").set_value(threshold).run()
    some = words.sentence(words.out_of(many, 21, "layer"))
    assert f"**{some} are columnar** above {threshold:g} (ROSE's own threshold, 0.5, gives one): " in texts(app)
    assert app.query_params["threshold"] == f"{threshold:g}"
    assert app.main.dataframe[0].value["is_columnar"].sum() == many


def test_missing_metrics_are_not_offered():
    app = open_page(PAGE, measured_study(held_out=0))
    offered = app.selectbox(key="metric").options
    assert "Calibration error of ROSE" in offered
    assert not [name for name in offered if name.startswith("Held-out")]
    app = open_page(PAGE, measured_study(sparsity="0"))
    assert not [name for name in app.selectbox(key="metric").options if "saved" in name]
    assert "No layer here has both numbers" in texts(app)


def test_user_numbers_are_drawn_as_a_map(study, tmp_path):
    path = tmp_path / "scores.csv"
    rows = {name: (-1) ** at * at for at, name in enumerate(study.layer_names)}
    listed = "".join(f"{value},x,{name}\n" for name, value in rows.items())
    path.write_text(f"value,more,layer\n{listed}1,x,[gone](http://a.example)\n")
    app = numbers(study, metric="Your numbers", own_path=str(path))
    assert findings(app)[0] == f"Your numbers are highest in {words.short_layer(study.layer_names[20])}: 20"
    heat = json.loads(figures(app)[0])["data"][0]
    assert (heat["zmin"], heat["zmax"]) == (-20, 20)  # centred, as some are below 0
    assert list(app.main.dataframe[0].value["own"]) == list(rows.values())
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
        app = numbers(running, metric="Condition number of H")
        assert len(app.main.dataframe[0].value) == 7
        assert re.search(r"of seven layers (is|are) columnar\*\* above 0.5", texts(app))
        assert "blank: not yet (14 of 21)" in titles(app)[0]
        assert app.sidebar.button(key="study-cancel")
        # Watched from a page that is about another model too, or it would be stopped as if nobody were there.
        assert open_page("views/diffusion.py", running).sidebar.button(key="study-cancel")
    finally:
        go_on.set()
    running.job.wait(240)
    app.run()
    assert len(app.main.dataframe[0].value) == 21
    assert app.selectbox(key="metric").value == "condition"  # the page kept its state
