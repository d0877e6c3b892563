"""The Layers page: numbers are the study's, the threshold decides at once, results arrive while a run goes on."""

import json
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from streamlit.testing.v1 import AppTest

import rose
from app import shared, words
from app.figures import palette
from app.study.own_numbers import read_numbers
from app.study.study import Study
from rose.model.walk.walk import BlockStatistics
from tests.app.results.made_reports import made_report, made_tuning
from tests.app.tiny_study import COLUMNAR, figures, measured_study, open_page, texts, tiny_model, titles
from tests.model.families import make_model

pytestmark = pytest.mark.usefixtures("placed")

PAGE = "views/layers.py"


def findings(app: AppTest) -> list[str]:
    """What the figures are titled with."""
    return [json.loads(figure)["layout"]["meta"]["finding"] for figure in figures(app)]


def test_the_table_is_that_of_the_study_and_the_figures_say_what_stands_out(study: Study) -> None:
    app = open_page(PAGE, study)
    shown, expected = app.main.dataframe[0].value, study.overview(0.5)
    assert len(shown) == 21
    for column in ("relative_range", "gain", "error_sparsegpt", "error_rose", "held_out_rose_global", "condition"):
        assert list(shown[column]) == list(expected[column])
    columnar = expected.query("is_columnar")["layer"]
    assert COLUMNAR in set(columnar)
    named = ", ".join(words.short_layer(layer) for layer in columnar)
    some = words.sentence(words.out_of(len(columnar), 21, "layer"))
    assert f"**{some} {'is' if len(columnar) == 1 else 'are'} columnar** above 0.5: {named}." in texts(app)
    on_map, on_scatter = findings(app)
    highest = expected.set_index("layer")["relative_range"].idxmax()
    assert on_map.startswith(f"Relative range is highest in {words.short_layer(str(highest))}, ")
    better = words.word(int((expected["held_out_gain"] > 0).sum()))
    assert on_scatter.startswith(f"Two-level order lowers the held-out error of {better} of 21 layers")
    assert "**None of 21 layers is columnar** above 1." in texts(open_page(PAGE, study, threshold="1"))


def test_experts_share_rows_or_have_an_axis_of_their_own() -> None:
    study = measured_study(samples=1, model=make_model("sparse_experts"))
    assert study.left_dense  # no token came there
    measured = study.overview(0.5)
    assert len(measured) == 2 * (4 + 3 * 24) - len(study.left_dense)
    layer = str(measured["layer"].iloc[0])
    app = open_page(PAGE, study, layer=layer)
    rows = json.loads(figures(app)[0])["data"][0]["y"]
    assert [row for row in rows if "experts" in row] == [
        f"mlp.experts.*.{part}_proj" for part in ("gate", "up", "down")
    ]
    kinds = app.multiselect(key="filter_projection")
    assert len(kinds.options) == 7
    kinds.set_value(["mlp.experts.*.gate_proj"]).run()
    assert len(app.main.dataframe[0].value) == measured["layer"].str.endswith("gate_proj").sum()
    app.segmented_control(key="experts").set_value("mlp.experts.*.down_proj").run()
    assert not app.exception
    rows = json.loads(figures(app)[0])["data"][0]["y"]
    assert rows == [f"expert {number}" for number in range(24)]
    assert "not yet" not in titles(app)[0]
    assert "blank: left out (" in titles(app)[0]
    for page in (PAGE, "views/layer.py"):
        app = open_page(page, study, layer=study.left_dense[0])
        assert f"{len(study.expected)} layers measured" in texts(app)
    assert "No calibration token was routed to this expert" in texts(app)
    assert f"No calibration token was routed to {len(study.left_dense)} layers" in texts(
        open_page("views/start.py", study, layer=layer)
    )


def test_what_was_pruned_before_is_said() -> None:
    model = tiny_model()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight[:, ::2] = 0
    study = measured_study(model=model)
    assert "more than 5 % of the weights were zero before pruning" in texts(open_page(PAGE, study))


def test_filters_choose_what_the_scatter_and_the_table_show(study: Study) -> None:
    app = open_page(PAGE, study)
    app.multiselect(key="filter_projection").set_value(["self_attn.o_proj"]).run()
    assert set(app.main.dataframe[0].value["projection"]) == {"self_attn.o_proj"}
    assert "3 of 21 layers pass the filter." in texts(app)
    assert "of three layers, the one columnar layer among them" in findings(app)[1]
    app.slider(key="filter_range").set_value((0.99, 1.0)).run()
    assert "use fewer filters" in texts(app)


def test_the_threshold_tells_at_once_which_layers_flip(study: Study) -> None:
    ranges = study.overview(0.5).set_index("layer")["relative_range"].sort_values(ascending=False)
    below = ranges[ranges <= 0.5]
    threshold = round(float(below.iloc[0]) - 0.01, 2)  # the highest of them turns columnar
    flipped = [layer for layer in study.layer_names if threshold < ranges[layer] <= 0.5]
    assert flipped
    app = open_page(PAGE, study)
    app.slider(key="threshold_widget").set_value(threshold).run()
    said = texts(app)
    some = words.sentence(words.out_of(int((ranges > threshold).sum()), 21, "layer"))
    assert f"**{some} are columnar** above {threshold:g}" in said
    more = f"That is {words.count(len(flipped), 'layer more', 'layers more')} than at the default 0.5: "
    assert words.short_layer(flipped[0]) in said.split(more)[1]
    assert app.query_params["threshold"] == f"{threshold:g}"
    shown = app.main.dataframe[0].value
    assert shown["is_columnar"].sum() == (ranges > threshold).sum()


@pytest.mark.parametrize(
    "metric", ["Condition number of H", "Error saved by two-level order", "Error", "Held-out error"]
)
def test_the_map_shows_what_was_chosen(study: Study, metric: str) -> None:
    app = open_page(PAGE, study, metric=metric)
    column = {"Condition number of H": "condition", "Error saved by two-level order": "gain"}.get(metric)
    column = column or {"Error": "error_rose", "Held-out error": "held_out_rose"}[metric]
    values = study.overview(0.5).set_index("layer")[column]
    if column == "gain":
        better, worse = int((values > 0).sum()), int((values < 0).sum())
        assert findings(app)[0] == (
            f"Two-level order has less error than SparseGPT on {words.word(better)} of 21 layers, more on "
            f"{words.word(worse) if worse else 'none'}"
        )
        return
    top = f"{words.short_layer(str(values.idxmax()))}, {words.number(values.max())}"
    assert findings(app)[0].endswith(top)


def test_the_error_of_another_method_can_be_shown(study: Study) -> None:
    app = open_page(PAGE, study, metric="Error", metric_method=palette.method_style("rose_global").label)
    highest = study.overview(0.5)["error_rose_global"].max()
    assert findings(app)[0].startswith("Relative error of ROSE global is highest")
    assert findings(app)[0].endswith(words.number(highest))


def test_numbers_that_no_layer_has_are_explained() -> None:
    app = open_page(PAGE, measured_study(held_out=0), metric="Held-out error")
    assert "There are no held-out samples in this set-up" in texts(app)
    assert len(figures(app)) == 1  # the scatter stays
    said = texts(open_page(PAGE, measured_study(sparsity="0"), metric="Error saved by two-level order"))
    assert "SparseGPT makes no error in any layer at this sparsity" in said
    assert "There are no held-out samples" not in said


def test_ones_own_numbers_are_drawn_as_one_more_map(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    rows = {name: (-1) ** at * at for at, name in enumerate(study.layer_names)}
    listed = "".join(f"{value},x,{name}\n" for name, value in rows.items())
    path.write_text(f"value,more,layer\n{listed}1,x,[gone](http://a.example)\n")
    app = open_page(PAGE, study, metric="Your numbers", own_path=str(path))
    assert findings(app)[0] == f"Your number is highest in {words.short_layer(study.layer_names[20])}, 20.0"
    heat = json.loads(figures(app)[0])["data"][0]
    assert (heat["zmin"], heat["zmax"]) == (-20, 20)  # centred, as some are below 0
    assert list(app.main.dataframe[0].value["own"]) == list(rows.values())
    assert r"this model has no such layer: \[gone\]" in texts(app)
    path.write_text("layer,value\n")
    app.run()
    assert "The file names no layer of this model" in texts(app)
    assert "Give a file above" in texts(app)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name,value\na,1\n", "no columns layer and value"),
        (b"layer,value\na,1\n\nb,nan\n", "Line 4, column value: 'nan' is no finite number"),
        (b"layer,value\na,1e39\n", "Line 2, column value: '1e39' is no finite number"),
        (b"layer,value\na,1_0\n", "Line 2, column value: '1_0' is no finite number"),
        (b"layer,value\na,1\na,2\n", "Line 3, column layer: a is there twice"),
        (b"layer,value\na\n", "Line 2 has 1 fields, and the first line 2"),
        (b"layer,value\nc,1\n", "names no layer of this model, such as c; its layers are called a"),
        pytest.param(made_report().to_json().encode(), "no report of a tuned model", id="not tuned"),
        (b'{"summary": {"tuned": {"change": {"a": 1}}}, "layers": []}', "is a report of version 0.1.0"),
        (b"\xff\xfe", "cannot be read as text"),
        ("/nowhere/scores.csv", "There is no file /nowhere/scores.csv"),
    ],
)
def test_a_file_of_numbers_that_cannot_be_is_refused(content: bytes | str, says: str) -> None:
    with pytest.raises(rose.RoseError, match=re.escape(says)):
        read_numbers(content, ["a", "b"])


def test_a_report_says_how_far_tuning_moved_layers() -> None:
    content = made_report(tuned=made_tuning({"a": 0.25, "c": 1.0})).to_json().encode()
    known, unknown = read_numbers(content, ["a", "b"])
    assert (known.to_dict(), unknown) == ({"a": 0.25}, ["c"])


def test_a_layer_chosen_here_is_chosen_on_all_pages(study: Study) -> None:
    app = open_page(PAGE, study)
    other = "model.layers.2.mlp.down_proj"
    app.selectbox(key="layers_pick").set_value(other).run()
    app.run()
    assert app.sidebar.selectbox(key="layer_widget").value == other
    assert app.query_params["layer"] == other
    app.switch_page("views/layer.py").run()
    assert "2 · mlp.down_proj" in texts(app)


def test_results_arrive_while_the_run_goes_on(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, waiting, measure, loaded = threading.Event(), threading.Event(), Study._measure, study.loaded
    assert loaded is not None

    def halt(self: Study, block: BlockStatistics, *more: Any) -> None:
        """After the first decoder block, until it is told to go on."""
        if block.block_index == 1:
            waiting.set()
            assert go_on.wait(240)
        measure(self, block, *more)

    monkeypatch.setattr(Study, "_measure", halt)
    running = Study(replace(study.setup, seed=9), lambda: loaded, study.calibration)
    shared.studies()[running.setup] = running
    running.job.watch("test")
    running.job.start()
    try:
        assert waiting.wait(240)
        app = open_page(PAGE, running, metric="Error saved by two-level order")
        assert len(app.main.dataframe[0].value) == 7
        assert re.search(r"of seven layers (is|are) columnar\*\* above 0.5", texts(app))
        assert "blank: not yet (14 of 21)" in titles(app)[0]
        assert app.sidebar.button(key="study-cancel")
        links = [one.proto for one in open_page("views/start.py", running).main.get("page_link")]
        top = running.overview(0.5).nlargest(3, "relative_range")
        said = [f"{words.short_layer(row.layer)}, {row.relative_range:.3f}" for row in top.itertuples()]
        assert [one.label for one in links if one.page == "layer"] == said
        assert [one.query_string for one in links if one.page == "layer"] == [f"layer={name}" for name in top["layer"]]
        # Watched from a page that is about another model too, or it would be stopped as if nobody were there.
        assert open_page("views/diffusion.py", running).sidebar.button(key="study-cancel")
    finally:
        go_on.set()
    running.job.wait(240)
    app.run()
    assert len(app.main.dataframe[0].value) == 21
    assert app.segmented_control(key="metric").value == "gain"  # the page kept its state
    assert "21 layers measured" in app.sidebar.caption[-1].value
