"""The page Start: defaults that run, estimates that match the engine, errors that say what to do, and results."""

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
from tests.app.tiny_study import figures, open_page, texts
from tests.tiny import save_tiny_llama

PAGE = "views/start.py"


# All sessions share studies, tests must not.
pytestmark = pytest.mark.usefixtures("empty_registry")


def small(folder: Path, text_path: Path, **more: str) -> AppTest:
    """The page with a set-up that runs in a second."""
    query = {"model": str(folder), "calibration": str(text_path), "samples": "4", "length": "32", "held_out": "2"}
    return open_page(PAGE, **(query | {"block_size": "16"} | more))


def button(app: AppTest) -> object:
    return app.button(key="measure")


def finish(app: AppTest) -> Study:
    """Waits for the study of this session and draws the page again."""
    study = shared.find(app.session_state["setup"])
    study.job.wait(240)
    app.run()
    return study


def test_page_opens_on_the_example():
    app = open_page(PAGE)
    study = shared.find(Setup())
    assert study.job.status == "kept"
    assert study.loaded is None  # nothing was loaded for it
    assert len(figures(app)) == 1
    assert app.session_state["chosen_layer"] == study.overview(0.5).set_index("layer")["relative_range"].idxmax()
    links = {link.proto.label: link.proto.page for link in app.main.get("page_link")}
    assert "Explore the example" in links
    assert links["Learn how pruning works"] == "learn"
    assert "Sparsity 0.7, blocks of 128, 16 × 512 tokens of Python's reference." in texts(app)
    assert button(app).disabled
    assert "about" not in texts(app)  # nothing is estimated that nobody asked for
    app.selectbox(key="start_layers").set_value("attention").run()
    assert not button(app).disabled
    assert app.session_state["setup"] == Setup()  # only the draft has changed
    assert "**30 layers**, 10 240 tokens" in texts(app)


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
    assert "**21 layers**, 192 tokens" in texts(small(folder, text))


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
    app = small(folder, text)
    app.toggle(key="start_stream").set_value(True).run()
    assert "stay on disk" in texts(app)
    button(app).click().run()
    study = finish(app)
    assert (study.setup.stream, study.job.status) == (True, "done")
    assert "rose prune --stream" in texts(open_page("views/prune.py", **study.setup.to_texts()))


def test_too_little_memory_is_refused_before_the_run(folder, text, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000))
    app = small(folder, text)
    assert "will not fit into memory" in texts(app)
    assert "bfloat16" in texts(app)
    assert button(app).disabled


def test_sparsity_is_changed_and_restored_from_the_sidebar(folder, text):
    app = small(folder, text)
    first = app.session_state["setup"]
    button(app).click().run()
    finish(app)
    app.switch_page("views/layers.py").run()
    app.sidebar.selectbox(key="sparsity_widget").set_value("0.5").run()
    assert app.session_state["setup"] == first  # nothing is done before it is said what it takes
    assert "Not measured at 0.5: 21 layers, about 1 s; their inputs are known." in texts(app.sidebar)
    app.sidebar.button(key="measure-sparsity").click().run()
    second = finish(app).setup
    assert (first.sparsity, second.sparsity) == ("0.7", "0.5")
    assert shared.find(first).calibration is shared.find(second).calibration
    app.sidebar.selectbox(key="sparsity_widget").set_value("0.7").run()
    assert app.session_state["setup"] == first  # known, so that it is shown at once
    app.sidebar.selectbox(key="sparsity_widget").set_value("0.5").run()
    assert app.session_state["setup"] == second
    app.switch_page(PAGE).run()
    assert app.selectbox(key="start_sparsity").value == "0.5"
    app.button(key="recent-0").click().run()
    assert app.session_state["setup"] == first
    assert app.selectbox(key="start_sparsity").value == "0.7"
    assert "sparsity 0.5" in app.button(key="recent-0").label


def test_replaced_files_are_measured_again(tmp_path):
    model, text = save_tiny_llama(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("First one text. " * 50)
    app = small(model, text)
    button(app).click().run()
    first = finish(app)
    assert button(app).disabled
    save_tiny_llama(model, blocks=2)
    text.write_text("Then another one. " * 50)
    app.run()
    assert "The files of this model or text have changed since" in texts(app)
    app.switch_page("views/layers.py").run()
    assert "Its files have changed since" in texts(app.sidebar)  # on every page
    app.switch_page(PAGE).run()
    button(app).click().run()
    second = finish(app)
    assert (len(first.layer_names), len(second.layer_names)) == (21, 14)
    assert second.calibration is not first.calibration
    assert len(shared.skeleton(str(model)).model.layers) == 2
    assert button(app).disabled


def test_dtype_follows_the_stored_model(tmp_path, monkeypatch):
    model, tokenizer = rose.load_model(str(save_tiny_llama(tmp_path / "wide")), dtype="bfloat16")
    rose.save_model(model, tokenizer, tmp_path / "stored")
    monkeypatch.setenv("ROSE_COMPUTE", "bfloat16")
    app = open_page(PAGE)
    for name, expected in (("stored", "bfloat16"), ("wide", "float32"), ("stored", "bfloat16")):
        box = app.selectbox(key="start_model")
        box.options.append(str(tmp_path / name))  # as someone types it
        box.set_value(str(tmp_path / name)).run()
        assert app.session_state["start_dtype"] == expected
    app.selectbox(key="start_dtype").set_value("float32").run()
    assert app.session_state["draft"].dtype == "float32"


def test_edits_survive_a_visit_to_another_page(folder, text):
    app = small(folder, text)
    app.number_input(key="start_samples").set_value(5).run()
    app.selectbox(key="start_sparsity").set_value("2:4").run()
    app.switch_page("views/learn.py").run()
    app.switch_page(PAGE).run()
    assert app.number_input(key="start_samples").value == 5
    assert app.session_state["setup"].sparsity == "2:4"
    assert app.query_params["sparsity"] == "2:4"  # nothing was measured yet, so a link restores the edits


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
    app = small(folder, text, **change)
    messages = [element.value for element in (app.main.warning if runs else app.error)]
    assert any(sentence in message for message in messages), messages
    assert button(app).disabled != runs


def test_retry_finds_a_new_model(tmp_path, text):
    app = small(tmp_path / "late", text)
    assert button(app).disabled
    save_tiny_llama(tmp_path / "late")
    app.run()
    assert button(app).disabled  # the answer is remembered, so that sliders do not ask the network again
    next(button for button in app.button if button.label == "Try again").click().run()
    assert not button(app).disabled
    assert "**21 layers**" in texts(app)


@pytest.mark.parametrize(
    ("choice", "layers", "expected"),
    [("attention", 3, "*.o_proj"), ("block", 7, "model.layers.1.*"), ("own", 6, "*.q_proj *.k_proj")],
)
def test_layer_choices_set_patterns(folder, text, choice, layers, expected):
    app = small(folder, text)
    app.selectbox(key="start_layers").set_value(choice).run()
    if choice == "block":
        app.number_input(key="start_block").set_value(1).run()
    if choice == "own":
        app.text_input(key="start_own").set_value(expected).run()
    assert app.session_state["setup"].layers_text == expected
    assert layer_choice(expected.split())[0] == choice
    words = {3: "Three", 6: "Six", 7: "Seven"}
    assert f"**{words[layers]} layers**" in texts(app)


def test_cancelled_run_can_be_restarted(folder, text, monkeypatch):
    app = small(folder, text, seed="5")
    loaded = shared.load(str(folder), "float32")
    with loaded.lock:  # the run waits for the model
        button(app).click().run()
        study = shared.find(app.session_state["setup"])
        assert study.job.status == "running"
        app.button(key="start-cancel").click().run()
        study.job.wait(240)
    assert study.job.status == "cancelled"
    app.run()
    assert any("Cancelled" in warning.value for warning in app.main.warning)
    assert not button(app).disabled
    button(app).click().run()
    assert finish(app).job.status == "done"


def test_cancelling_run_is_not_joined(folder, text):
    app = small(folder, text, seed="6")
    loaded = shared.load(str(folder), "float32")
    with loaded.lock:  # both runs wait for the model
        button(app).click().run()
        first = shared.find(app.session_state["setup"])
        app.number_input(key="start_seed").set_value(7).run()
        button(app).click().run()
        assert first.job.is_cancelled
        app.button(key="recent-0").click().run()
        assert app.session_state["setup"].seed == 6
    study = finish(app)
    assert study is not first
    assert study.job.status == "done"
