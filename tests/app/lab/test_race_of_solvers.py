"""The race of solvers on the page Prune ends at the errors of the methods and can be scrubbed by work."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

import rose
from app.lab.race_of_solvers import LABELS, description, watched
from rose.layer.error import relative_error
from tests.app.tiny_study import COLUMNAR, figures, open_page, texts, titles


def test_solvers_end_at_the_errors_of_the_methods(study):
    weight, held_out = study.weight(COLUMNAR), study.held_out_statistics(COLUMNAR)
    for solver, method in (("admm", "rose_admm"), ("refit", "rose_dealt")):
        result = rose.prune_layer(weight, study.statistics(COLUMNAR), method=method, sparsity=0.7, block_size=16)
        way, error = watched(study, COLUMNAR, solver, "dealt"), relative_error(weight, result.weight, held_out.hessian)
        assert way.table["held_out_error"].iloc[-1] == pytest.approx(error, rel=1e-4)
        assert (way.mask(len(way.table) - 1) == result.mask.numpy()).all()


@pytest.mark.usefixtures("patient")
def test_solvers_are_scrubbed_by_work(study):
    app = open_page("views/prune.py", study, prune_view="How the methods get there")
    assert "Example: solvers on 18 · o_proj, in the study that comes with the app." in texts(app)
    assert len(figures(app)) == 1
    assert not study.knows(("solver", COLUMNAR, "sweep", "natural")), "nothing is computed before somebody asks"
    app.button(key="solvers-begin").click().run()
    assert "iteration 20" in figures(app)[1]  # the mask's changes, below the race
    swept = {f"{LABELS[name]}, natural order" for name in ("sweep", "refit", "stages")}
    assert {line["name"] for line in json.loads(figures(app)[0])["data"]} == swept | {"ADMM"}
    assert "of 1 · o_proj at each step" in titles(app)[0]
    links = [element.proto for element in open_page("views/order_lab.py", study).get("page_link")]
    (link,) = (link_shown for link_shown in links if "Race" in link_shown.label)
    assert (link.page, link.query_string) == ("prune", "prune_view=How+the+methods+get+there")
    slider = app.slider(key="race_work")
    assert (slider.step, slider.proto.format) == (1.0, "%.0f")
    slider.set_value(0.0).run()
    assert "has no mask yet" in texts(app)
    app.pills(key="race_solvers").set_value([]).run()
    assert "Choose at least one solver" in texts(app)


def test_layers_outside_the_run_are_named():
    for layers, is_told in (([COLUMNAR], False), (["model.layers.0.mlp.up_proj"], True)):
        run = SimpleNamespace(copies=[SimpleNamespace(layers=pd.DataFrame({"layer": layers}))])
        assert ("This run did not prune 1 · o_proj" in description(COLUMNAR, run)) is is_told
