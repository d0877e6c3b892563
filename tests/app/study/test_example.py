"""The packaged example study matches a measurement, and another text replaces it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

import rose
from app.study import cache
from app.study.setup import MEASURED, Setup
from app.study.study import Calibration, LoadedModel, Study
from rose.layer.profile import SPARSITIES, block_sizes
from tests.app.tiny_study import finish

FIRST = "model.layers.0.self_attn.o_proj"
# Rounding differs from one machine to the next; on the text of another Python release only the size of a number stays.
SAME, SIMILAR = 2e-3, 0.3


@pytest.fixture(scope="module")
def kept() -> cache.Kept:
    example = cache.read_example(Setup())
    assert example is not None, "make it by python -m tests.benchmarks.example_study studies"
    return example


def record_of(kept: cache.Kept, layer: str, name: str) -> rose.LayerRecord:
    return next(record for record in kept.records if (record.layer, record.method) == (layer, name))


def test_example_holds_every_layer_and_is_small(kept):
    assert len(kept.records) == 210 * len(MEASURED)
    assert set(kept.condition) == {record.layer for record in kept.records}
    assert cache.FINISHED[Setup()].stat().st_size < 5e6
    best = max(kept.records, key=lambda record: record.relative_range)
    assert best.layer in kept.calibration
    assert set(kept.profiles) == set(kept.condition) == set(kept.draws)
    assert (kept.head_width, {len(shares) for of in kept.draws.values() for shares in of.values()}) == (64, {2})


def test_ranges_of_the_example_s_grid_are_its_records(kept):
    row, column = SPARSITIES.index(0.7), block_sizes(kept.head_width).index(128)
    for record in kept.records:
        if record.method == "sparsegpt":
            ranges = kept.profiles[record.layer].ranges[row, column].tolist()
            expected = record.relative_range, record.range_low, record.range_high
            # Of wide layers some rows are looked at, and float16 has three digits.
            assert ranges == pytest.approx(expected, abs=0.03), record.layer


def test_example_errors_follow_from_its_statistics(kept, packaged):
    assert set(kept.held_out) == set(kept.calibration)
    for layer, statistics in kept.calibration.items():
        weight = packaged[0].get_submodule(layer).weight
        result = rose.prune_layer(weight, statistics, **MEASURED["two_level"])
        record = record_of(kept, layer, "two_level")
        computed = (result.relative_error, result.plan.relative_range, result.plan.column_variation)
        stored = (record.relative_error, record.relative_range, record.column_variation)
        assert stored == pytest.approx(computed, rel=SAME)


def test_fresh_measurement_matches_the_example(kept, packaged):
    model, tokenizer = packaged
    tokens, _ = Setup().draw(tokenizer)
    statistics = rose.collect_statistics(model, tokens, layers=[FIRST])[FIRST]
    result = rose.prune_layer(model.get_submodule(FIRST).weight, statistics, method="sparsegpt")
    record = record_of(kept, FIRST, "sparsegpt")
    near = SAME if kept.is_exact else SIMILAR
    assert record.relative_error == pytest.approx(result.relative_error, rel=near)
    assert record.relative_range == pytest.approx(result.plan.relative_range, rel=near, abs=0 if kept.is_exact else 0.1)


def test_other_setups_and_damaged_files_have_no_example(tmp_path):
    assert cache.read_example(Setup(seed=1)) is None
    damaged = tmp_path / "example.safetensors"
    damaged.write_bytes(cache.FINISHED[Setup()].read_bytes()[:-1])
    assert cache.read(damaged) is None


@pytest.fixture(scope="module")
def tiny(text: Path, loaded: LoadedModel) -> tuple[Setup, LoadedModel]:
    return Setup(model="tiny", calibration=str(text), samples=4, length=32, held_out=2, block_size=16), loaded


def errors(study: Study) -> list[tuple[str, str, float]]:
    return [(record.layer, record.method, record.relative_error) for record in study.measurements.records]


def test_another_text_is_measured_again(tiny, monkeypatch):
    setup, loaded = tiny
    fresh = finish(Study(setup, lambda: loaded, Calibration()))
    wrong = [replace(record, relative_error=9.0) for record in fresh.measurements.records]
    conditions = dict.fromkeys(fresh.layer_names, 1.0)
    monkeypatch.setattr(cache, "recall", lambda *_: cache.Kept(wrong, conditions, text="another", made_with="then"))
    study = Study(setup, lambda: loaded, Calibration())
    assert study.restore()
    assert study.job.status == "kept"
    assert study.is_example
    assert set(study.records()["relative_error"]) == {9.0}
    finish(study)
    assert errors(study) == errors(fresh)
    assert study.layer_names == fresh.layer_names


@pytest.mark.parametrize(("wrong", "value"), [("down_proj", math.nan), ("up_proj", 1e20)])  # of its own; of its inputs
def test_unmeasurable_layers_are_omitted_on_request(tiny, wrong, value):
    setup, loaded = tiny
    bad = "model.layers.2.mlp.down_proj"  # the last one: nothing reads what comes out of it
    weight = loaded.model.get_submodule(f"model.layers.2.mlp.{wrong}").weight
    before = float(weight[0, 0])
    weight.data[0, 0] = value
    try:
        study = finish(Study(setup, lambda: loaded, Calibration()), "failed")
        assert study.can_go_on
        others = Study(setup, lambda: loaded, Calibration())
        others.go_on = True
        finish(others)
        assert set(others.failed) == {bad}
        assert set(others.records()["layer"]) == {name for name in others.layer_names if name != bad}
    finally:
        weight.data[0, 0] = before
