"""The page Layer sensitivity: estimates, progress, cancel and resume, and results."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import rose
from app import shared, words
from app.runs.damage import DamageRun, layer_of, recipe_of
from app.study.setup import Setup
from rose.model.measure.damage import WHOLE, rank_correlation
from tests.app.tiny_study import ended, figures, finish, latest, open_on, texts, titles

PAGE, HERE = "views/prune.py", {"prune_section": "Layer sensitivity"}


@pytest.fixture(scope="module")
def setup(folder: Path) -> Setup:
    return Setup(model=str(folder), samples=3, length=32, held_out=2, block_size=16, sparsity="0.5")


def run_of(setup: Setup, **chosen: str) -> DamageRun:
    return ended(shared.registry.get(DamageRun, shared.key_of(recipe_of(setup, **chosen))))


@pytest.mark.usefixtures("empty_registry")
def test_example_is_replaced_by_measurements(setup):
    app = open_on(setup, PAGE, **HERE, damage_units="Layers")
    assert "Example: each layer pruned alone by SparseGPT at 0.7" in texts(app)
    assert len(figures(app)) == 2
    assert "of memory." in texts(app)
    app.button(key="damage-start").click().run()
    run = run_of(setup, units="layers")
    app.run()
    damage_map, scatter = titles(app)
    table = run.table
    top = table.loc[table["damage"].idxmax()]
    assert f"Sensitivity is highest in {words.short_layer(top['unit'])}:" in damage_map
    assert f"Rank correlation {rank_correlation(table)}" in scatter
    marks = [len(trace["customdata"]) for trace in json.loads(figures(app)[0])["data"] if trace["type"] == "scatter"]
    assert marks[0] == len(table) == 21
    assert "Example" not in texts(open_on(setup, PAGE, **HERE, damage_units="Layers"))  # another session finds it
    for damage, has_share in ((0.03, True), (0.01, False)):  # chance may have made the second
        run.records = (*run.records[:-1], replace(run.records[-1], damage=damage, standard_error=0.01))
        shown = texts(app.run())
        assert f"the layers cost {damage:.4f} nats per token (standard error 0.010)" in shown
        assert ("% of that" in shown) is has_share


def test_cancelled_run_resumes(setup):
    request = recipe_of(setup)
    run = DamageRun(request, lambda: shared.load(setup.model, setup.dtype))
    tell = run.job.tell

    def stop(progress: rose.Progress) -> None:
        tell(progress)
        if progress.layers_done == 2:
            run.job.leave("test")

    run.job.tell = stop  # type: ignore[method-assign]
    finish(run, "cancelled")
    assert [record.unit for record in run.records] == ["model.layers.0", "model.layers.1"]
    shared.registry.put(DamageRun, shared.key_of(request), run)
    app = open_on(setup, PAGE, **HERE)
    assert "Cancelled after two units; what is measured is kept." in app.warning[0].value
    bars = json.loads(figures(app)[0])
    assert bars["layout"]["xaxis"]["range"] == [-0.6, 2.6]  # room for the third, still to come
    app.button(key="damage-start").click().run()
    rest = run_of(setup)
    assert [record.unit for record in rest.records] == [*(f"model.layers.{i}" for i in range(3)), WHOLE]
    assert rest.records[:2] == run.records
    assert len(rest.table) == 3


def test_restoring_units_gives_dense_weights_back(setup, tmp_path):
    model, tokenizer = rose.load_model(setup.model)
    tokens, held_out = setup.draw(tokenizer)
    report = rose.prune_model(model, tokens, sparsity=0.5, block_size=16, held_out=held_out)
    rose.save_model(model, tokenizer, tmp_path / "pruned", report=report)
    app = open_on(setup, PAGE, **HERE, damage_how="Restore alone")
    assert app.button(key="damage-start").disabled
    assert "prune one under What you get and keep its checkpoint" in texts(app)
    app.text_input(key="damage_path").set_value(str(tmp_path / "pruned")).run()
    app.button(key="damage-start").click().run()
    run = run_of(setup, restore=str(tmp_path / "pruned"))
    app.run()
    assert "Changed together, the decoder blocks give back" in texts(app)
    dense, _ = rose.load_model(setup.model)
    assert run.records[-1].loss == pytest.approx(math.log(rose.perplexity(dense, held_out)), rel=1e-5)
    (tmp_path / "pruned" / "config.json").touch()  # pruned again
    assert app.run().button(key="damage-start").label.startswith("Measure sensitivity")


@pytest.mark.usefixtures("empty_registry")
def test_only_rose_uses_the_chosen_threshold(setup):
    asked = {}
    for method in ("rose", "sparsegpt"):
        app = open_on(setup, PAGE, **HERE, threshold="0.1", damage_method=rose.METHODS[method].label)
        app.button(key="damage-start").click().run()
        run = latest(DamageRun)
        run.job.wait(240)
        asked[method] = run.request
    assert {method: request.threshold for method, request in asked.items()} == {"rose": 0.1, "sparsegpt": 0.5}
    assert r"Only layers named \*.o_proj are changed" in texts(open_on(setup, PAGE, **HERE, layers="*.o_proj"))


def test_block_maps_to_its_layer_of_the_chosen_projection():
    layers = [f"model.layers.{block}.{name}" for block in (1, 11) for name in ("self_attn.q_proj", "mlp.up_proj")]
    assert layer_of("model.layers.1", layers, "model.layers.11.mlp.up_proj") == "model.layers.1.mlp.up_proj"
    assert layer_of("model.layers.11", layers, None) == "model.layers.11.self_attn.q_proj"
    assert layer_of(layers[1], layers, layers[2]) == layers[1]
