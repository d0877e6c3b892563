"""The checks on Explore are those of the engine, and name failures."""

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

import rose
from app.registry import Registry
from app.study.cache import Files
from app.study.checking import Findings, LayerCheckRequest, LayerChecks
from app.study.study import Study
from rose.model.measure.layer_checks import CHECKS, check_layers
from tests.app.study.test_checking import METHODS
from tests.app.tiny_study import (
    BLOCK,
    COLUMNAR,
    START,
    finish,
    latest,
    measured_study,
    open_page,
    place,
    texts,
    tiny_model,
    titles,
)


@pytest.fixture(scope="module")
def findings(study: Study) -> Findings:
    return finish(LayerChecks(study, LayerCheckRequest(COLUMNAR, METHODS, "rose", 0.5))).findings


@pytest.fixture(autouse=True)
def alone(empty_registry: Registry, study: Study) -> None:
    """Without the checks that another test has made."""
    place(study)


def start(app: AppTest) -> LayerChecks:
    """Presses the button; the run that it has begun."""
    app.button(key="check-start").click().run()
    return latest(LayerChecks)


def trust(study: Study) -> AppTest:
    return open_page(START, study, section="Errors of the methods")


def all_layers(study: Study) -> AppTest:
    return open_page(START, study, section="Data")


def checks_of(app: AppTest) -> pd.DataFrame:
    """The table of all layers' checks."""
    return next(table.value for table in app.main.dataframe if "What did not pass" in table.value)


def test_run_shows_the_engine_s_result(study, findings):
    app = trust(study)
    app.multiselect(key="check_methods").set_value(list(METHODS)).run()
    start(app).job.wait(240)
    app.run()
    shown = app.table[-1].value
    assert len(shown) == 4 + 3 * len(METHODS)
    for method, check in findings.checks():
        row = shown[(shown["Of"] == rose.METHODS[method].label) & (shown["Check"] == check.name)].iloc[0]
        assert {"look": "review"}.get(check.status, check.status) in row["Status"]
        if check.name != "Measures agree":  # a rounding error has no digits to compare
            assert row["Found"].replace("\u202f", " ") == check.finding
        assert row["To pass"] == check.limit
    assert "times the calibration error" in titles(app)[-1]


def test_all_layers_are_judged_by_the_chosen_methods(study):
    app = all_layers(study)
    for methods in (["sparsegpt", "two_level"], ["rose_global"]):
        app.multiselect(key="trust_methods").set_value(methods).run()
        shown = checks_of(app)
        assert len(shown) == 21
        of_row = shown[list(CHECKS)].apply(lambda row: "◐ review" if "◐ review" in set(row) else "✓ pass", axis=1)
        assert list(shown["Status"]) == list(of_row) == sorted(of_row, key="✓ pass".__eq__)
        records = study.records()
        options = {"sparsity": "0.7", "block_size": BLOCK, "damping": 0.01}
        judged = check_layers(records[records["method"].isin(methods)], study.calibration.blocks, **options)
        assert (shown["Status"] == "◐ review").sum() == (judged["status"] == "look").sum()


def test_checks_show_where_inputs_become_infinite():
    model = tiny_model()
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("inf")  # spoils all inputs after decoder block 1
    failing = measured_study(samples=11, model=model, status="failed")
    app = all_layers(failing)
    shown = checks_of(app).set_index("Layer")
    assert shown.loc["2 · q_proj", "Finite inputs"] == "✗ fail"
    assert "64 input columns saw NaN or infinity" in shown.loc["2 · q_proj", "What did not pass"]
    assert shown.loc["0 · q_proj", "Finite inputs"] == "✓ pass"
    assert "The run stopped early" in texts(app)


def test_run_goes_on_while_other_pages_are_visited(study):
    app = trust(study)
    with study.loaded.lock:  # the run waits for the model
        run = start(app)
        run.job._watchers.clear()
        app.switch_page("views/learn.py").run()
        assert run.job._watchers
        assert "Checks of 1 · o_proj" in texts(app)
    run.job.wait(240)
    assert run.job.status == "done"
    app.run()
    assert "Checks of 1 ·" not in texts(app)


def test_one_press_cancels_for_all_who_watch(study):
    app = trust(study)
    with study.loaded.lock:
        run = start(app)
        run.job.watch("another session")
        app.button(key="checks-cancel").click()
        run.job.check = lambda: None  # the step at work goes on meanwhile
        app.run()
        assert app.button(key="checks-stopping").label == "Cancelling …"
        del run.job.check
    run.job.wait(240)
    assert run.job.status == "cancelled"
    assert "Cancelled. No results were kept, and nothing was changed." in texts(app.run())


def test_checks_of_replaced_files_are_hidden(study):
    app = trust(study)
    start(app).job.wait(240)
    app.run()
    assert not [button for button in app.button if button.key == "check-start"]
    measured_study().files = Files("another file", "text")  # the same set-up, measured anew
    app.run()
    assert app.button(key="check-start")
