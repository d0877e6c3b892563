"""The dialog that measures a model: estimates that match the engine, errors that say what to do, and results."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from streamlit.testing.v1 import AppTest

import rose
from app import shared
from app.study import preflight
from app.study.preflight import layer_choice
from app.study.setup import MEASURED, Setup
from app.study.study import Study
from rose.model.estimate import estimate_cost, estimate_memory, statistics_groups
from rose.model.load.models import load_skeleton
from tests.app.tiny_study import START, figures, open_page, texts
from tests.tiny import save_tiny_llama

# All sessions share studies, tests must not.
pytestmark = pytest.mark.usefixtures("empty_registry")


def dialog(folder: Path, text_path: Path, **more: str) -> AppTest:
    """The dialog with a set-up that runs in a second."""
    query = {"model": str(folder), "calibration": str(text_path), "samples": "4", "length": "32", "held_out": "2"}
    app = open_page(START, **(query | {"block_size": "16"} | more))
    return app.button(key="measure-open").click().run()


def offers(app: AppTest, key: str = "measure") -> bool:
    return key in [button.key for button in app.button]


def measure(app: AppTest) -> AppTest:
    return app.button(key="measure").click().run()


def finish(app: AppTest) -> Study:
    """Waits for the study of this session and draws the page again."""
    study = shared.find(app.session_state["setup"])
    study.job.wait(240)
    app.run()
    return study


def test_app_opens_on_the_example_and_the_dialog_asks_before_work():
    app = open_page(START)
    study = shared.find(Setup())
    assert (study.job.status, study.loaded) == ("kept", None)  # nothing was loaded for it
    assert len(figures(app)) >= 5
    assert "learn" in [link.proto.page for link in app.main.get("page_link")]
    app.button(key="measure-open").click().run()
    assert app.button(key="measure").label == "Show its layers"
    app.selectbox(key="measure_layers").set_value("attention").run()
    assert app.button(key="measure").label == "Measure its layers"
    assert "**30 layers**, 10 240 tokens" in texts(app)
    assert app.session_state["setup"] == Setup()  # nothing has changed yet


def test_estimate_matches_the_engine(folder, text, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40))
    skeleton = load_skeleton(str(folder))
    setup = Setup(model=str(folder), calibration=str(text), samples=4, length=32, held_out=2, block_size=16)
    estimate = preflight.preflight(setup, skeleton)
    cost = estimate_cost(skeleton, samples=6, length=32, sweeps=len(MEASURED), keep_statistics=True)
    assert estimate.cost == cost
    assert estimate.needed == cost.memory + cost.model_memory
    half = preflight.preflight(setup.changed(dtype="bfloat16"), skeleton)
    assert half.needed == cost.memory + cost.model_memory // 2
    assert estimate.available == 2**40
    assert "**21 layers**, 192 tokens" in texts(dialog(folder, text))


def test_weights_can_stay_on_disk(folder, text):
    chosen = Setup(
        model=str(folder), calibration=str(text), samples=4, length=32, held_out=2, block_size=16, stream=True
    )
    skeleton = load_skeleton(str(folder))
    estimate = preflight.preflight(chosen, skeleton)
    statistics = sum(4 * columns**2 for columns in statistics_groups(rose.prunable_layers(skeleton)))
    assert estimate.needed == estimate_memory(skeleton, samples=6, length=32, held_out=True).peak + 2 * statistics
    with pytest.raises(rose.RoseError, match="is no safetensors checkpoint"):
        preflight.preflight(chosen.changed(model="smollm2-135m"), skeleton)
    app = dialog(folder, text)
    app.toggle(key="measure_stream").set_value(True).run()
    assert "stay on disk" in texts(app)
    study = finish(measure(app))
    assert (study.setup.stream, study.job.status) == (True, "done")
    assert "rose prune --stream" in texts(open_page("views/prune.py", **study.setup.to_texts()))


def test_too_little_memory_is_refused_before_the_run(folder, text, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000))
    app = dialog(folder, text)
    assert "will not fit into memory" in texts(app)
    assert "bfloat16" in texts(app)
    assert not offers(app)


def test_studies_at_other_settings_share_inputs_and_stand_in_one_row(folder, text):
    app = dialog(folder, text)
    finish(measure(app))
    first = app.session_state["setup"]
    app.selectbox(key="what_sparsity").set_value("0.5").run()
    app.button(key="measure-what-if").click().run()
    assert app.selectbox(key="measure_sparsity").value == "0.5"
    second = finish(measure(app)).setup
    assert (first.sparsity, second.sparsity) == ("0.7", "0.5")
    assert shared.find(first).calibration is shared.find(second).calibration
    studies = app.pills(key="study_chosen")
    assert any(option.endswith("sparsity 0.5") for option in studies.options)
    studies.set_value(first).run()
    assert app.session_state["setup"] == first


def test_replaced_files_are_measured_again(tmp_path):
    model, text = save_tiny_llama(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("First one text. " * 50)
    app = dialog(model, text)
    first = finish(measure(app))
    save_tiny_llama(model, blocks=2)
    text.write_text("Then another one. " * 50)
    app.switch_page("views/learn.py").run()
    assert "The files of this model or text have changed since" in texts(app)  # on every page
    app.switch_page(START).run()
    app.button(key="measure-open").click().run()
    second = finish(measure(app))
    assert (len(first.layer_names), len(second.layer_names)) == (21, 14)
    assert second.calibration is not first.calibration
    assert len(shared.skeleton(str(model)).model.layers) == 2


def test_dtype_follows_the_stored_model(tmp_path, monkeypatch):
    model, tokenizer = rose.load_model(str(save_tiny_llama(tmp_path / "wide")), dtype="bfloat16")
    rose.save_model(model, tokenizer, tmp_path / "stored")
    monkeypatch.setenv("ROSE_COMPUTE", "bfloat16")
    app = open_page(START)
    app.button(key="measure-open").click().run()
    for name, expected in (("stored", "bfloat16"), ("wide", "float32"), ("stored", "bfloat16")):
        box = app.selectbox(key="measure_model")
        box.options.append(str(tmp_path / name))  # as someone types it
        box.set_value(str(tmp_path / name)).run()
        assert app.session_state["measure_dtype"] == expected


@pytest.mark.parametrize(
    ("change", "sentence", "runs"),
    [
        ({"model": "/no/such/folder"}, "is not a folder, a .gguf file or a Hub id", False),
        ({"calibration": "/no/such/text.txt"}, "There is no file /no/such/text.txt", False),
        ({"model": "owner/unknown"}, "owner/unknown is not on this machine.", False),
        ({"layers": "*.nothing"}, r"No prunable layer is named '\*.nothing'; names look like", False),
        ({"sparsity": "0"}, "Sparsity 0 removes nothing", True),
        ({"block_size": "64"}, "a single block and cannot be columnar", True),
        ({"samples": "2", "length": "8"}, "16 calibration tokens are fewer than the", True),
        ({"calibration": "c4"}, "c4 is not on this machine and HF_HUB_OFFLINE is set", True),
    ],
)
def test_bad_setups_are_explained(folder, text, change, sentence, runs):
    app = dialog(folder, text, **change)
    messages = [element.value for element in (app.warning if runs else app.error)]
    assert any(sentence in message for message in messages), messages
    assert offers(app) == runs


def test_retry_finds_a_new_model(tmp_path, text):
    app = dialog(tmp_path / "late", text)
    assert not offers(app)
    save_tiny_llama(tmp_path / "late")
    app.run()
    assert not offers(app)  # the answer is remembered, so that sliders do not ask the network again
    next(button for button in app.button if button.label == "Try again").click().run()
    assert offers(app)
    assert "**21 layers**" in texts(app)


@pytest.mark.parametrize(
    ("choice", "layers", "expected"),
    [("attention", 3, "*.o_proj"), ("block", 7, "model.layers.1.*"), ("own", 6, "*.q_proj *.k_proj")],
)
def test_layer_choices_set_patterns(folder, text, choice, layers, expected):
    app = dialog(folder, text)
    app.selectbox(key="measure_layers").set_value(choice).run()
    if choice == "block":
        app.number_input(key="measure_block").set_value(1).run()
    if choice == "own":
        app.text_input(key="measure_own").set_value(expected).run()
    words = {3: "Three", 6: "Six", 7: "Seven"}
    assert f"**{words[layers]} layers**" in texts(app)
    assert layer_choice(expected.split())[0] == choice
    app.button(key="only-choose").click().run()
    assert app.session_state["setup"].layers_text == expected


def test_cancelled_run_can_be_restarted(folder, text):
    app = dialog(folder, text, seed="5")
    loaded = shared.load(str(folder), "float32")
    with loaded.lock:  # the run waits for the model
        measure(app)
        study = shared.find(app.session_state["setup"])
        assert study.job.status == "running"
        app.button(key="head-0-cancel").click().run()
        study.job.wait(240)
    assert study.job.status == "cancelled"
    app.run()
    app.button(key="measure-open").click().run()
    assert finish(measure(app)).job.status == "done"
