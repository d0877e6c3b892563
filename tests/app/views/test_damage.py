"""The Damage page: it says what it will take, fills, can be stopped and go on, and shows what was measured."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from streamlit.testing.v1 import AppTest

import rose
from app import shared
from app.runs.damage import DamageRequest, DamageRun, layer_of
from app.study.setup import Setup
from rose.model.measure.damage import WHOLE, rank_correlation
from tests.app.tiny_study import ended, figures, finish, open_on, texts, titles

PAGE = "views/damage.py"


@pytest.fixture(scope="module")
def setup(folder: Path) -> Setup:
    return Setup(model=str(folder), samples=3, length=32, held_out=2, block_size=16, sparsity="0.5")


def opened(setup: Setup, **query: str) -> AppTest:
    return open_on(setup, PAGE, **query)


def run_of(setup: Setup, request: DamageRequest) -> DamageRun:
    return ended(shared.damages()[shared.damage_key(setup, request)])


def test_the_page_opens_on_the_example_and_fills_with_what_is_measured(setup: Setup) -> None:
    shared.damages().clear()
    app = opened(setup, damage_units="Layers")
    assert "Example: Each layer pruned alone by SparseGPT at 0.7" in texts(app)
    assert len(figures(app)) == 2
    assert "loss: 2 × 32 held-out tokens" in texts(app)
    button = app.button(key="damage-start")
    assert button.label.startswith("Measure sensitivity, about ")
    button.click().run()
    run = run_of(setup, DamageRequest("layers"))
    app.run()
    assert not app.exception, app.exception
    damage_map, scatter = titles(app)
    table = run.table
    top = table.loc[table["damage"].idxmax()]
    assert f"Sensitivity is highest in {int(top['block_index'])} · {top['projection']}" in damage_map
    assert f"rank correlation {rank_correlation(table)}" in scatter
    marks = [len(trace["customdata"]) for trace in json.loads(figures(app)[0])["data"] if trace["type"] == "scatter"]
    assert marks[0] == len(table) == 21
    assert "All units together cost" in texts(app)
    app.session_state["damage-numbers"] = True
    app.run()
    assert list(app.dataframe[0].value["damage"]) == list(table["damage"])
    assert "all" in set(app.dataframe[1].value["group"])
    app.segmented_control(key="damage_predictor").set_value("drift").run()
    assert f"{rank_correlation(table, 'drift')}" in titles(app)[1]
    assert "Example" not in texts(opened(setup, damage_units="Layers"))  # another session finds it
    for damage, has_share in ((0.03, True), (0.01, False)):  # chance may have made the second
        run._records[-1] = replace(run.records[-1], damage=damage, standard_error=0.01)
        shown = texts(app.run())
        assert f"together cost {damage:.4f} ± 0.010 nats per token" in shown
        assert ("\u00a0% of it" in shown) is has_share


@pytest.mark.parametrize("page", ["damage", "prune"])
def test_what_the_hub_is_asked_for_is_said_before_the_button(
    page: str, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = "This asks huggingface.co for c4; what is not here yet is downloaded."
    assert asked not in texts(open_on(setup, f"views/{page}.py"))
    assert asked in texts(open_on(replace(setup, text="c4"), f"views/{page}.py"))
    if page == "prune":
        both = open_on(replace(setup, text="c4"), "views/prune.py", prune_text="ptb")
        assert "This asks huggingface.co for c4 and ptb;" in texts(both)


def test_a_run_that_was_stopped_goes_on_where_it_was(setup: Setup) -> None:
    """What is in the way of a cancel in a test is speed: here it is stopped by its own callback."""
    request = DamageRequest("blocks")
    run = DamageRun(setup, request, lambda: shared.load(setup.model, setup.dtype))
    tell = run.job.tell

    def stop(progress: rose.Progress) -> None:
        tell(progress)
        if progress.layers_done == 2:
            run.job.leave("test")

    run.job.tell = stop  # type: ignore[method-assign]
    finish(run, "cancelled")
    assert [record.unit for record in run.records] == ["model.layers.0", "model.layers.1"]
    shared.damages()[shared.damage_key(setup, request)] = run
    app = opened(setup)
    assert "Cancelled after two units; what is measured is kept." in app.warning[0].value
    bars = json.loads(figures(app)[0])
    assert [trace["customdata"] for trace in bars["data"]] == [list(run.table["unit"])]
    assert bars["layout"]["xaxis"]["range"] == [-0.6, 2.6]  # room for the third, still to come
    app.button(key="damage-start").click().run()
    rest = run_of(setup, request)
    assert rest is not run
    assert [record.unit for record in rest.records] == [*(f"model.layers.{i}" for i in range(3)), WHOLE]
    assert rest.records[:2] == run.records
    app.run()
    assert not app.exception, app.exception
    assert len(run_of(setup, request).table) == 3


def test_units_of_a_pruned_model_get_their_dense_weights_back(setup: Setup, tmp_path: Path) -> None:
    model, tokenizer = rose.load_model(setup.model)
    tokens, held_out = setup.draw(tokenizer)
    report = rose.prune_model(model, tokens, sparsity=0.5, block_size=16, held_out=held_out)
    rose.save_model(model, tokenizer, tmp_path / "pruned", report=report)
    app = opened(setup, damage_how="Restore alone")
    assert app.button(key="damage-start").disabled
    assert "prune one on the Prune page and keep its checkpoint" in texts(app)
    app.text_input(key="damage_path").set_value("/nowhere").run()
    assert "There is nothing at /nowhere" in texts(app)
    app.text_input(key="damage_path").set_value(str(tmp_path / "pruned")).run()
    app.button(key="damage-start").click().run()
    run = run_of(setup, DamageRequest("blocks", restore=str(tmp_path / "pruned")))
    app.run()
    assert not app.exception, app.exception
    table = run.table
    assert list(table["damage"]) == list(-table["delta_loss"])
    assert "All units together give back" in texts(app)
    dense, _ = rose.load_model(setup.model)
    expected = rose.perplexity(dense, held_out)
    assert run.records[-1].loss == pytest.approx(math.log(expected), rel=1e-5)
    (tmp_path / "pruned" / "config.json").touch()  # pruned again
    assert app.run().button(key="damage-start").label.startswith("Measure sensitivity")


def test_what_cannot_run_is_told_before(setup: Setup) -> None:
    app = opened(setup, held_out="0")
    assert app.button(key="damage-start").disabled
    assert "ask for some on the start page" in texts(app)


def test_the_threshold_of_the_pages_is_that_of_rose_alone(setup: Setup) -> None:
    shared.damages().clear()
    asked = {}
    for method in ("rose", "sparsegpt"):
        app = opened(setup, threshold="0.1", damage_method=rose.METHODS[method].label)
        app.button(key="damage-start").click().run()
        asked[method] = next(reversed(shared.damages()))[1]
        next(reversed(shared.damages().values())).job.wait(240)
    assert {method: request.threshold for method, request in asked.items()} == {"rose": 0.1, "sparsegpt": 0.5}
    assert r"Only layers named \*.o_proj are changed" in texts(opened(setup, layers="*.o_proj"))


def test_blocks_of_which_only_some_layers_are_changed_are_told(setup: Setup) -> None:
    model = shared.skeleton(setup.model)
    some = replace(setup, layers="model.layers.0.* model.layers.[12].*.o_proj")
    assert DamageRequest("blocks").changed(some, model) == (
        "This changes all seven layers of decoder block 0; one of seven layers of decoder blocks 1 and 2."
    )
    assert DamageRequest("blocks").changed(setup, model) == DamageRequest("layers").changed(some, model) == ""


def test_a_decoder_block_stands_for_its_layer_of_the_chosen_projection() -> None:
    layers = [f"model.layers.{block}.{name}" for block in (1, 11) for name in ("self_attn.q_proj", "mlp.up_proj")]
    assert layer_of("model.layers.1", layers, "model.layers.11.mlp.up_proj") == "model.layers.1.mlp.up_proj"
    assert layer_of("model.layers.11", layers, None) == "model.layers.11.self_attn.q_proj"
    assert layer_of(layers[1], layers, layers[2]) == layers[1]
