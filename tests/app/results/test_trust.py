"""Trust, on Layer and on Layers: what it says is what the engine gives, and trouble is called by its name."""

import re

import pandas as pd
import pytest
import torch
from streamlit.testing.v1 import AppTest

import rose
from app import jobs, words
from app.study.checking import Findings, LayerCheckRequest, LayerChecks
from app.study.study import Study
from rose.model.measure.layer_checks import CHECKS, check_layers
from tests.app.study.test_checking import METHODS, checked
from tests.app.tiny_study import BLOCK, COLUMNAR, begun, figures, measured_study, open_page, texts, tiny_model, titles
from tests.model.families import make_model

PAGE, ALL = "views/layer.py", "views/layers.py"

pytestmark = pytest.mark.usefixtures("placed")


@pytest.fixture(scope="module")
def findings(study: Study) -> Findings:
    return checked(study, LayerCheckRequest(COLUMNAR, METHODS, "rose", 0.5))


def check_layers_of(study: Study) -> dict[str, str]:
    """The verdicts of the page Layers."""
    blocks = study.calibration.blocks
    table = check_layers(study.records(), blocks, sparsity="0.7", block_size=BLOCK, damping=0.01)
    return dict(zip(table["layer"], table["status"], strict=True))


def start(app: AppTest) -> LayerChecks:
    """Presses the button; the run that it has begun."""
    app.button(key="check-start").click().run()
    (run,) = app.session_state["check_runs"].values()
    return run


def trust(study: Study, view: str = "Checks", layer: str = COLUMNAR) -> AppTest:
    return open_page(PAGE, study, layer, section="Trust", trust=view)


def all_layers(study: Study) -> AppTest:
    return open_page(ALL, study, layers_view="Trust")


def opened(study: Study, view: str) -> AppTest:
    """The section in this view, after the button was pressed and the run has ended."""
    app = trust(study, view)
    start(app).job.wait(240)
    app.run()
    assert not app.exception, app.exception
    return app


def table(app: AppTest) -> pd.DataFrame:
    return app.table[0].value


def view(app: AppTest, name: str) -> pd.DataFrame:
    """Turns to this view, which draws one figure; its table."""
    app.segmented_control(key="trust").set_value(name).run()
    assert not app.exception, app.exception
    assert len(figures(app)) == 1
    return table(app)


def test_before_the_run_the_inputs_are_judged_and_the_cost_is_told(study: Study) -> None:
    app = trust(study)
    names = ["Damping as asked", "Enough tokens", "Finite inputs", "Live columns", "Over-fitting"]
    assert sorted(table(app)["Check"]) == names
    assert "256 tokens for 64 columns" in list(table(app)["Found"])
    for cell in table(app)["Status"]:  # a word and an icon, not only a colour
        assert re.fullmatch(r":\w+-badge\[:material/\w+: (pass|review|fail)\]", cell)
    looks = sum("review" in cell for cell in table(app)["Status"])  # of over-fitting, as on Layers
    judged = check_layers_of(study)[COLUMNAR]
    assert (looks > 0) == (judged == "look")
    said = "one needs review, four pass" if looks else "none needs review, five pass"
    assert f"**Five checks: none fails, {said}**" in texts(app)
    assert "Prunes by four methods, then runs 8 × 32 tokens" in texts(app)
    assert re.search(r"about \d+ s, [\d.]+ kB of memory", texts(app))
    app.multiselect(key="check_methods").set_value([]).run()
    assert "Choose at least one method above." in texts(app)


def test_the_sections_of_a_run_show_what_the_engine_found(study: Study, findings: Findings) -> None:
    app = opened(study, "Checks")
    shown = table(app)
    assert len(shown) == 4 + 3 * len(METHODS)
    for method, check in findings.checks():
        row = shown[(shown["Of"] == rose.METHODS[method].label) & (shown["Check"] == check.name)].iloc[0]
        assert {"look": "review"}.get(check.status, check.status) in row["Status"]
        if check.name != "Measures agree":  # a rounding error has no digits to compare
            assert row["Found"] == check.finding
        assert row["To pass"] == check.limit
    statuses = [check.status for _, check in findings.checks()]
    needs = ["none needs", "one needs", "two need", "three need", "four need"]
    passed, looks = words.word(4 + statuses.count("pass")), needs[statuses.count("look")]
    assert f"**16 checks: none fails, {looks} review, {passed} pass**" in texts(app)

    shown = view(app, "Three measures")
    for row, measures, held_out in zip(
        shown.itertuples(index=False), findings.measures, findings.held_out, strict=True
    ):
        assert measures.direct is not None
        assert [float(cell) for cell in row[2:5]] == pytest.approx(
            [measures.quadratic_form, measures.sweep_sum, measures.direct], rel=1e-4
        )
        assert row[6] == words.number(measures.relative_error)
        assert held_out is not None
        assert row[7] == words.number(held_out)
    assert "within 0.001: **all four methods**" in texts(app)

    shown = view(app, "Over-fitting")
    assert list(shown["Calibration tokens"]) == ["32", "64", "128", "256"]
    for cell, point in zip(shown["Held-out error"], findings.curve, strict=True):
        assert point.held_out_error is not None
        assert cell == words.number(point.held_out_error)

    shown = view(app, "Sparsity")
    assert list(shown["Promised per"]) == ["block", "block", "layer", "row"]
    assert list(shown["Units"]) == ["4", "4", "1", "64"]
    assert set(shown["Largest deviation, weights"]) == {"0"}
    assert list(shown["Removed"]) == ["70.020\u00a0%", "70.020\u00a0%", "69.995\u00a0%", "70.312\u00a0%"]


def test_nothing_held_out_is_said() -> None:
    app = opened(measured_study(held_out=0), "Over-fitting")
    assert "Nothing was held out in this set-up" in texts(app)
    assert set(table(app)["Held-out error"]) == {"not measured"}


def test_all_layers_are_judged_by_one_rule(study: Study) -> None:
    """The title, the map, the table and what is said beside them count alike."""
    app = all_layers(study)
    shown = app.main.dataframe[0].value
    assert len(shown) == 21
    assert set(shown["Finite inputs"]) == {"✓ pass"}
    of_row = shown[list(CHECKS)].apply(lambda row: "◐ review" if "◐ review" in set(row) else "✓ pass", axis=1)
    assert list(shown["Status"]) == list(of_row) == sorted(of_row, key="✓ pass".__eq__)
    looks, over = (int((shown[name] == "◐ review").sum()) for name in ("Status", "Over-fitting"))
    needs = f"{words.word(looks)} need{'s' if looks == 1 else ''} review" if looks else "none needs review"
    assert f"21 layers: none fails, {needs}, {words.word(21 - looks)} pass" in titles(app)[0]
    assert any("Over-fitting: on" in info.value for info in app.info) == bool(over)
    said = texts(app)
    assert re.search(
        r"Removed weights of all 63 results are within [\d.]+ weights of what the sparsity 0.7 asks for", said
    )
    assert "No damping had to be raised" in said
    assert len(figures(app)) == 1
    app.toggle(key="check_only").set_value(True).run()
    if looks:
        assert len(app.main.dataframe[0].value) == looks
    else:
        assert "Every layer passes every check." in [element.value for element in app.success]


def test_a_run_that_broke_off_at_bad_inputs_shows_where() -> None:
    """Infinite weights in decoder block 1 spoil all inputs after it."""
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    failing = measured_study(samples=11, model=model, status="failed")
    app = all_layers(failing)
    shown = app.main.dataframe[0].value.set_index("Layer")
    assert shown.loc["2 · self_attn.q_proj", "Finite inputs"] == "✗ fail"
    assert "64 input columns saw NaN or infinity" in shown.loc["2 · self_attn.q_proj", "What did not pass"]
    assert shown.loc["0 · self_attn.q_proj", "Finite inputs"] == "✓ pass"
    assert "The run stopped early" in texts(app)


def test_a_run_goes_on_while_other_pages_are_visited(study: Study) -> None:
    assert study.loaded is not None
    app = trust(study)
    with study.loaded.lock:  # the run waits for the model
        run = start(app)
        run.job._watchers.clear()
        app.switch_page("views/learn.py").run()
        assert run.job._watchers
        assert "Checks of 1 · self_attn.o_proj" in texts(app.sidebar)
    run.job.wait(240)
    assert run.job.status == "done"
    app.run()
    assert "Checks of" not in texts(app.sidebar)


def test_a_run_that_ended_unwatched_is_told_apart_from_one_that_was_cancelled(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert study.loaded is not None
    app = trust(study)
    with study.loaded.lock:
        run = start(app)
        monkeypatch.setattr(jobs, "ABANDONED_AFTER", 0.0)
        run.job.wait(240)
    app.run()
    assert "No page had been open for 90 s, so this was stopped." in texts(app)


def test_one_press_cancels_for_all_who_watch(study: Study) -> None:
    assert study.loaded is not None
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


def test_experts_are_judged_by_their_own_tokens_and_damping() -> None:
    study = measured_study(samples=2, model=make_model("mixtral"))
    records = study.records()
    few = records[records["tokens"] < records["columns"]].drop_duplicates("layer")
    low, high = few["tokens"].min(), few["tokens"].max()
    assert 0 < low < high < 64
    said = texts(all_layers(study))
    assert f"{low:g} to {high:g} calibration tokens are fewer than the columns of {words.word(len(few))} of" in said
    assert "No damping had to be raised" in said
    assert few["damping"].min() > 0.01
    (shown,) = [one for one in trust(study, layer=few["layer"].iloc[0]).metric if one.label == "Damping used"]
    assert (float(shown.value) > 0.01, shown.delta) == (True, "")


def test_of_many_layers_that_failed_the_first_are_named_and_the_others_counted() -> None:
    study = measured_study(samples=7)
    study.failed = {f"model.layers.0.mlp.experts.{expert}.up_proj": "No token." for expert in range(128)}
    for app in (all_layers(study), open_page("views/start.py", study)):
        last, more = (error.value for error in app.main.error[4:])
        assert last == "0 · mlp.experts.4.up_proj could not be measured: No token."
        assert more == "123 other layers could not be measured either."


def test_layers_whose_inputs_are_still_to_come_are_counted(study: Study) -> None:
    other = begun(study)
    other.calibration.blocks = study.calibration.blocks[:1]
    assert "Judged so far: seven of 21 layers" in texts(all_layers(other))
    assert "Judged so far" not in texts(all_layers(study))


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("running", "The first layers appear here as soon as they are measured."),
        ("cancelled", "The run ended before its first decoder block was measured. Start it again on the start page."),
        ("failed", "was measured: The text cannot be read. Start it again on the start page."),
    ],
)
def test_all_layers_before_the_first_block_waits_or_says_what_to_do(study: Study, status: str, says: str) -> None:
    """Names are known before any block is, and the page is drawn once, not without end."""
    other = begun(study)
    other.job.status, other.job.message = status, "The text cannot be read."  # type: ignore[assignment]
    assert says in texts(all_layers(other))


def test_what_was_found_on_files_that_were_replaced_is_not_shown(study: Study) -> None:
    app = trust(study)
    start(app).job.wait(240)
    app.run()
    assert not [button for button in app.button if button.key == "check-start"]
    measured_study()  # the same set-up, measured anew
    app.run()
    assert app.button(key="check-start")
