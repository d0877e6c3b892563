"""A study matches the engine, can be cancelled and restarted, and shares work with other studies."""

import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import rose
from app.jobs import Job
from app.study import study as study_module
from app.study.setup import MEASURED, Setup
from app.study.study import HOME, Calibration, LoadedModel, Study, held
from rose.model.network.network import Network
from tests.app.tiny_study import finish
from tests.tiny import save_tiny_llama

LAYERS = 21  # seven in each of three decoder blocks
LAYER = "model.layers.1.self_attn.o_proj"


@pytest.fixture(scope="module")
def setup(text: Path) -> Setup:
    return Setup(model="tiny", calibration=str(text), samples=6, length=32, held_out=2, block_size=16, sparsity="0.6")


@pytest.fixture(scope="module")
def load(loaded: LoadedModel) -> Callable[[], LoadedModel]:
    return lambda: loaded


@pytest.fixture(scope="module")
def study(setup: Setup, load: Callable[[], LoadedModel]) -> Study:
    return finish(Study(setup, load, Calibration()))


def test_every_layer_is_measured_by_every_method_as_prune_layer_would(study, setup):
    records = study.records()
    assert records.groupby("method")["layer"].nunique().to_dict() == dict.fromkeys(MEASURED, LAYERS)
    assert study.layer_names == list(records["layer"].unique())
    assert len(records) == LAYERS * len(MEASURED)
    model, tokenizer = study.loaded.model, study.loaded.tokenizer
    tokens = rose.load_tokens(setup.calibration, tokenizer, samples=8, length=32, seed=0)
    statistics = rose.collect_statistics(model, tokens[:6], layers=[LAYER])[LAYER]
    weight = model.get_submodule(LAYER).weight
    for name, how in MEASURED.items():
        expected = rose.prune_layer(weight, statistics, **how, sparsity="0.6", block_size=16)
        row = records[(records["layer"] == LAYER) & (records["method"] == name)].iloc[0]
        assert row["relative_error"] == pytest.approx(expected.relative_error, rel=1e-4)
        assert row["relative_range"] == pytest.approx(expected.plan.relative_range, rel=1e-4)


def test_threshold_selects_the_error_of_rose(study):
    ranges = study.overview(0.5)["relative_range"]
    threshold = float(ranges.median())
    table = study.overview(threshold)
    assert list(table["is_columnar"]) == list(ranges > threshold)
    assert 0 < table["is_columnar"].sum() < LAYERS
    for kind in ("error", "held_out"):
        for _, row in table.iterrows():
            source = "two_level" if row["is_columnar"] else "sparsegpt"
            assert row[f"{kind}_rose"] == row[f"{kind}_{source}"]
    expected = 1 - table["error_two_level"] / table["error_sparsegpt"]
    assert table["gain"].to_numpy() == pytest.approx(expected.to_numpy())
    assert (table["condition"] > 1).all()


def test_results_of_a_layer_are_remembered_by_their_arguments(study):
    assert study.added_damping(LAYER) == pytest.approx(study.prune(LAYER).added_damping, rel=1e-5)
    eigenvalues = study.spectrum(LAYER)
    assert bool((eigenvalues.diff() <= 0).all())
    assert float(eigenvalues.sum()) == pytest.approx(float(study.statistics(LAYER).diagonal.sum()), rel=1e-4)
    assert study.prune(LAYER) is study.prune(LAYER)
    assert study.prune(LAYER, order="natural") is not study.prune(LAYER, order="two_level")
    assert study.plan(LAYER, 0.2) is study.plan(LAYER, 0.2)
    assert study.plan(LAYER, 0.2) is not study.plan(LAYER, 0.3)
    result = study.prune(LAYER, order="two_level", trace=True)
    matrix = study.weight(LAYER).numel()
    least = result.trace.weights.nbytes + 4 * matrix + matrix + 3 * 4 * matrix  # Ŵ, mask, and S, L and H of the plan
    assert least <= held([result]) < 1.1 * least


def test_oldest_results_are_forgotten_by_number_and_size(setup, load, monkeypatch):
    monkeypatch.setattr(study_module, "KEPT_RESULTS", 2)
    study = Study(setup, load, Calibration())
    for key in ("a", "b", "a", "c"):  # asking for a again keeps it
        study.remember(key, lambda: "a text")
    assert list(study._memory) == ["a", "c"]
    monkeypatch.setattr(study_module, "KEPT_RESULTS", 9)
    monkeypatch.setattr(study_module, "KEPT_BYTES", 1000)
    monkeypatch.setattr(study_module, "KEPT_LATEST", 1)
    study = Study(setup, load, Calibration())
    shared = torch.zeros(200)  # 800 bytes
    study.remember("a", lambda: {"one": [shared], "other": (shared.view(2, 100), "text")})
    study.remember("b", lambda: shared)
    assert list(study._memory) == ["a", "b"]  # the same memory twice
    study.remember("c", lambda: torch.zeros(30))
    assert list(study._memory) == ["a", "b", "c"]
    study.remember("d", lambda: torch.zeros(30))  # 1040 with the shared one, whoever holds it
    assert list(study._memory) == ["c", "d"]
    study.remember("e", lambda: torch.zeros(1000))  # alone too large, but asked for just now
    assert list(study._memory) == ["e"]


def test_cancelled_study_can_be_restarted(setup, load):
    calibration = Calibration()
    study = Study(setup, load, calibration)

    def cancel_in_the_second_block(progress: rose.Progress) -> None:
        if progress.block_index == 1:
            study.job.leave("test")
        Job.tell(study.job, progress)

    study.job.tell = cancel_in_the_second_block  # type: ignore[method-assign]
    finish(study, "cancelled")
    assert 0 < len(study.overview(0.5)) < LAYERS
    assert not calibration.complete
    assert not calibration.lock.locked()
    assert not load().lock.locked()
    again = finish(Study(setup, load, calibration))
    assert len(again.overview(0.5)) == LAYERS


def test_overview_uses_one_snapshot_of_records(setup, load, monkeypatch):
    study = Study(setup, load, Calibration())
    before = study.records()
    finish(study)
    monkeypatch.setattr(study, "records", lambda: before)
    assert study.overview(0.5).empty


def test_tables_are_cached_until_they_change(study, setup, load, monkeypatch):
    assert study.records() is study.records()
    table = study.overview(0.5)
    assert study.overview(0.5) is table
    assert study.overview(0.6) is not table
    with monkeypatch.context() as patch:
        patch.setattr(study_module, "cautions", lambda _: ["said"])
        other = Study(setup, load, study.calibration)
        assert other.cautions() == [*study.calibration.cautions, "said"]
        patch.setattr(study_module, "cautions", lambda _: ["said again"])
        assert other.cautions()[-1] == "said"
        assert other.cautions(LAYER)[-1] == "said again"
    assert other.overview(0.5).empty
    finish(other)
    assert other.overview(0.5).equals(table)
    assert other.cautions() == study.cautions()


def test_two_setups_share_a_calibration(study, setup, load, monkeypatch):
    monkeypatch.setattr(rose, "visit_blocks", Mock(side_effect=AssertionError("the model was run again")))
    other = setup.changed(sparsity="0.3", block_size=32)
    second = finish(Study(other, load, study.calibration))
    assert len(second.overview(0.5)) == LAYERS
    assert (second.overview(0.5)["error_sparsegpt"] < study.overview(0.5)["error_sparsegpt"]).all()
    assert second.statistics(LAYER) is study.statistics(LAYER)


def test_streamed_study_matches(setup, tmp_path):
    folder = str(save_tiny_llama(tmp_path / "model"))
    chosen, calibration = setup.changed(model=folder), Calibration()
    whole = finish(Study(chosen, lambda: LoadedModel(*rose.load_model(folder), threading.Lock()), Calibration()))
    streamed = LoadedModel(*rose.load_model(folder, stream=True), threading.Lock())
    study = finish(Study(chosen.changed(stream=True), lambda: streamed, calibration))
    assert study.records().drop(columns="seconds").equals(whole.records().drop(columns="seconds"))
    assert torch.equal(study.weight(LAYER), whole.weight(LAYER))
    assert torch.equal(study.prune(LAYER).weight, whole.prune(LAYER).weight)
    assert all(parameter.is_meta for parameter in streamed.model.model.layers.parameters())
    layer = next(candidate for candidate in rose.prunable_layers(streamed.model) if candidate.name == LAYER)
    with Network(streamed.model).residence.visit(1, HOME):  # its decoder block is in memory
        assert torch.equal(Network(streamed.model).residence.read_weight(layer), whole.weight(LAYER))
    sparser = chosen.changed(stream=True, sparsity="0.3")  # the same statistics
    other = finish(Study(sparser, lambda: streamed, calibration))
    assert len(other.records()) == len(whole.records())
    assert other.records()["relative_error"].mean() < study.records()["relative_error"].mean()
