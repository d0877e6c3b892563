"""Results on disk: read back to the bit, only for their own settings, and replaced if damaged."""

import inspect
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import rose
from app.study import cache
from app.study import study as study_module
from app.study.setup import Setup
from app.study.study import Calibration, LoadedModel, Study
from tests.app.tiny_study import finish, numbers_text
from tests.model.run.test_checkpoint import cut, flip, full
from tests.tiny import save_tiny_llama

Runs = Callable[[], tuple[int, int]]
LAYER = "model.layers.1.self_attn.o_proj"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def setup_in(folder: Path) -> Setup:
    """Of a model and a text in this folder: 8 layers, each measured with three methods."""
    model, text = save_tiny_llama(folder / "model", blocks=2, hidden=32), numbers_text(folder)
    setup = Setup(
        model=str(model), calibration=str(text), samples=6, length=32, held_out=2, block_size=16, sparsity="0.6"
    )
    return setup.changed(layers="*.self_attn.*")


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return setup_in(tmp_path)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study that has been measured, and the folder that it was kept in."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.VARIABLE, str(folder / "cache"))
        return run(setup_in(folder)), folder / "cache"


def folder_of(setup: Setup) -> Path | None:
    return cache.folder_of(setup, cache.files_of(setup))


def run(setup: Setup, status: str = "done", watch: Callable[[Study], None] = lambda study: None) -> Study:
    """A study as after a start of the app: nothing is in memory."""

    def load() -> LoadedModel:
        watch(study)
        return LoadedModel(*rose.load_model(setup.model), threading.Lock())

    study = Study(setup, load, Calibration())
    return finish(study, status)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Counts passes through the model, and measurements of layers."""
    visit, measure = Mock(wraps=rose.visit_blocks), Mock(wraps=study_module.measure_layer)
    monkeypatch.setattr(rose, "visit_blocks", visit)
    monkeypatch.setattr(study_module, "measure_layer", measure)
    return lambda: (visit.call_count, measure.call_count)


def same(first: Study, second: Study) -> None:
    assert first.records().equals(second.records())
    assert first.overview(0.5).equals(second.overview(0.5))
    for read in (Study.statistics, Study.held_out_statistics):
        for a, b in ((read(first, name), read(second, name)) for name in first.layer_names):
            assert a.tokens == b.tokens
            assert all(map(torch.equal, (a.hessian, a.mean), (b.hessian, b.mean)))


def test_second_start_measures_nothing_and_shows_the_same(setup, runs, monkeypatch):
    first = run(setup)
    assert runs() == (1, 3 * 8)
    monkeypatch.setattr(Path, "touch", Mock(side_effect=PermissionError("a cache to be read only")))
    seen: list[tuple[int, bool]] = []
    second = run(setup, watch=lambda study: seen.append((len(study.overview(0.5)), study.has(LAYER))))
    assert runs() == (1, 3 * 8)
    assert seen == [(8, False)]  # the overview is there before the model is loaded
    same(first, second)
    assert second.prune(LAYER).relative_error == first.prune(LAYER).relative_error
    q, k = (f"model.layers.1.self_attn.{x}_proj" for x in "qk")
    assert second.statistics(q) is second.statistics(k)  # what shared a Hessian still does
    assert second.statistics(q) is not second.statistics(LAYER)
    other = run(setup.changed(sparsity="0.3"))  # shares the statistics
    assert runs() == (1, 2 * 3 * 8)
    assert other.records()["sparsity"].max() < 0.4


@pytest.mark.parametrize(
    "change",
    [
        lambda setup: setup.changed(seed=1),
        lambda setup: setup.changed(layers="*.o_proj"),
        lambda setup: (Path(setup.calibration).write_text("Some other text. " * 300), setup)[1],
        lambda setup: (save_tiny_llama(Path(setup.model), blocks=1, hidden=32), setup)[1],
    ],
)
def test_changed_dependencies_are_measured_again(change, setup, runs):
    run(setup)
    run(change(setup))
    assert runs()[0] == 2


def test_results_belong_to_the_loaded_files(setup, runs):
    def load() -> LoadedModel:
        loaded = LoadedModel(*rose.load_model(setup.model), threading.Lock())
        save_tiny_llama(Path(setup.model), blocks=1, hidden=32)
        return loaded

    assert len(finish(Study(setup, load, Calibration())).overview(0.5)) == 8
    assert len(run(setup).overview(0.5)) == 4
    assert runs()[0] == 2


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
@pytest.mark.parametrize(("pattern", "expected"), [("block-00001*", (1, 0)), ("study-*", (0, 3 * 8))])
def test_damaged_files_are_replaced(pattern, expected, harm, first, root, runs):
    study, cached = first
    shutil.copytree(cached, root)
    (path,) = root.rglob(pattern)
    harm(path)
    second = run(study.setup)
    assert runs() == expected
    assert len(second.records()) == len(study.records())
    assert second.overview(0.5)["error_rose"].tolist() == study.overview(0.5)["error_rose"].tolist()
    third = run(study.setup)  # the damage has been mended
    assert runs() == expected
    same(second, third)


def test_full_disk_is_logged_and_a_cancelled_study_keeps_nothing(setup, root, monkeypatch, caplog):
    run(setup, "cancelled", watch=lambda study: study.job.leave("test"))
    assert not list(root.rglob("*.safetensors"))
    monkeypatch.setattr(cache, "write_tensors", full)
    assert len(run(setup).overview(0.5)) == 8
    assert "No space left on device" in caplog.text
    assert not list(root.rglob("*.safetensors"))


def test_least_recently_used_calibration_is_removed(setup, root, monkeypatch):
    folders = []
    for seed in range(3):
        run(setup.changed(seed=seed))
        folders.append(folder_of(setup.changed(seed=seed)))
        os.utime(folders[-1], (seed, seed))
    size = sum(path.stat().st_size for path in folders[0].iterdir())
    run(setup)  # seed 0 is used again
    monkeypatch.setattr(cache, "LIMIT", int(3.5 * size))
    run(setup.changed(seed=3))
    assert [folder.exists() for folder in folders] == [True, False, True]
    monkeypatch.setattr(cache, "LIMIT", size // 2)
    run(setup.changed(seed=4))
    large = folder_of(setup.changed(seed=4))
    assert [path.name.partition("-")[0] for path in large.iterdir()] == ["study"]  # records are small


def test_foreign_files_are_kept(setup, root, monkeypatch):
    ours = root / ("a" * 32)
    theirs = [root / "thesis", root / ("b" * 32), root / ("c" * 32)]
    for folder, name in zip([ours, *theirs], ["block-00000", "block-00000", "photo", "study-1"], strict=True):
        folder.mkdir(parents=True)
        (folder / f"{name}.safetensors").write_bytes(b"1" * 1000)
    (theirs[2] / "deeper").mkdir()
    monkeypatch.setattr(cache, "LIMIT", 500)
    cache._make_room(root / "new", 1)
    assert [path for path in (ours, *theirs) if path.exists()] == theirs


def test_cache_folder_follows_the_environment(setup, monkeypatch, tmp_path):
    monkeypatch.setenv(cache.VARIABLE, "")
    assert folder_of(setup) is None
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = folder_of(setup)
    assert folder.parent == tmp_path / "rose-explorer"
    assert folder_of(setup.changed(model="owner/not-on-this-machine")) is None
    assert folder_of(setup.changed(calibration="missing.txt")) is None
    monkeypatch.setattr(cache, "_version", lambda: "of other code")
    assert folder_of(setup) not in (folder, None)


def test_version_covers_all_dependencies():
    for part in (rose.prune_layer, rose.visit_blocks, rose.METHODS["rose"].prune, Setup, Study, cache.keep_blocks):
        assert Path(inspect.getfile(part)) in cache._sources(), part
