"""Check a checkpoint: planted faults are named with their layer, and results open on other pages."""

import json
import re
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
import torch
from streamlit.testing.v1 import AppTest

import rose
from app import words
from app.forms import widgets
from app.results import html_report
from app.runs import checked
from app.runs.checked import CheckpointRun
from app.study.setup import Setup
from rose.model.network.layers import prunable_layers
from tests.app.tiny_study import BLOCK, ended, figures, latest, open_on, open_page, texts, titles

PAGE = "views/check.py"
BROKEN, LOST = "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"
EXCHANGED = "model.layers.2.self_attn.q_proj"
ROW, COLUMN = 20, 40  # of the group that keeps three weights


@pytest.fixture(scope="module")
def planted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2:4 by magnitude, but for one group of one layer, two exchanged heads of another, and a layer with NaN."""
    model, tokenizer = rose.load_model(str(folder))
    for layer in prunable_layers(model):
        with torch.no_grad():
            groups = layer.module.weight.unflatten(1, (-1, 4))
            groups.scatter_(2, groups.abs().topk(2, largest=False).indices, 0)
            if layer.name == BROKEN:
                layer.module.weight[ROW, COLUMN : COLUMN + 4] = torch.tensor([0.1, 0.2, 0.3, 0.0])
            elif layer.name == LOST:
                layer.module.weight[3, 5] = float("nan")
            elif layer.name == EXCHANGED:
                layer.module.weight[: 2 * BLOCK] = layer.module.weight[: 2 * BLOCK].roll(BLOCK, 0)
    place = tmp_path_factory.mktemp("planted") / "two_of_four"
    rose.save_model(model, tokenizer, place)
    return place


# The page Compare runs offers what was checked, also in tests of its own.
pytestmark = pytest.mark.usefixtures("empty_registry")


def opened(setup: Setup, path: object, **query: str) -> AppTest:
    return open_on(setup, PAGE, check_path=str(path), **query)


def pressed(app: AppTest) -> CheckpointRun:
    """The check that the button begins, once it is over."""
    app.button(key="check-start").click().run()
    run = latest(CheckpointRun)
    ended(run)
    app.run()
    return run


def test_wrong_layers_are_listed_first(setup, planted):
    app = opened(setup, planted, check_on="Weights alone")
    run = pressed(app)
    finding = "Three of 21 layers are wrong: numbers broken (one), part broken (one), pattern broken (one)."
    assert app.error[0].value == f"{finding} Errors and perplexity were not measured."
    first, part, second, rest = (line for line in texts(app).splitlines() if line.startswith("- **"))
    assert app.selectbox(key="check_layer").value == LOST  # the worst
    assert first.startswith("- **1 · q_proj, numbers broken**: 1 of 4 096 weights are NaN or infinite.")
    assert part.startswith("- **2 · q_proj, part broken**: ")
    assert second.startswith("- **0 · up_proj, pattern broken**: 1 of 2 048 groups keep more than 2 of 4 weights;")
    assert rest.startswith("- **mask without compensation, 18 of 21 layers**: 50.0 % zeros, 2:4. Kept weights are")
    assert "Wrong layers lie in decoder blocks 0, 1 and 2" in titles(app)[0]
    for look in ("numbers broken 1", "part broken 1", "pattern broken 1", "mask without compensation 18"):
        assert f'"name":"{look}"' in figures(app)[0]  # in the legend
    app.selectbox(key="check_layer").set_value(BROKEN).run()
    title = titles(app)[-1]
    assert f"Row {ROW} keeps three of columns {COLUMN} to {COLUMN + 3}, where 2:4 allows two" in title
    excerpt = run.excerpts[BROKEN]
    survives = rose.load_model(str(planted), finite=False)[0].get_submodule(BROKEN).weight != 0
    part = survives[excerpt.first_row :, excerpt.first_column :][:24, :64]
    assert (excerpt.removed == ~part.numpy()).all()
    assert excerpt.broken == [(ROW, COLUMN)]
    app.segmented_control(key="check_view").set_value("All numbers").run()
    shown = app.main.dataframe[0].value
    assert list(shown["verdict"][:4]) == [
        "numbers broken",
        "part broken",
        "pattern broken",
        "mask without compensation",
    ]
    again = opened(setup, planted, check_on="Weights alone")  # a link, for somebody else
    assert finding in again.error[0].value


def test_typed_path_replaces_the_kept_copy(setup, planted, monkeypatch):
    copies = {"ROSE at 2:4": planted}
    monkeypatch.setattr(widgets, "kept_checkpoints", lambda _runs, _model: copies)
    app = open_on(setup, PAGE)
    box = app.selectbox(key="check_copy")
    assert box.options == ["ROSE at 2:4", "Another checkpoint"]
    box.options.append("/nowhere")  # as someone types it
    box.set_value("/nowhere").run()
    assert "is not a folder, a .gguf file or a Hub id" in texts(app)
    assert app.text_input(key="check_path").value == "/nowhere"
    app.text_input(key="check_path").set_value("").run()
    assert app.selectbox(key="check_copy").value == "ROSE at 2:4"


def test_check_with_tokens_measures_compensation(setup, pruned_folder):
    app = opened(setup, pruned_folder)
    assert re.search(r"held out through both models: about \d+ s, ", texts(app))
    run = pressed(app)
    layers = run.check.layers.set_index("layer")
    layer = layers["recovered"].astype(float).idxmin()  # compensated for other inputs
    app.selectbox(key="check_layer").set_value(layer).run()
    row = layers.loc[layer]
    assert "When it was made, on 2 × 32 other tokens: perplexity from 20.0 to 24.0" in texts(app)
    title = titles(app)[1]
    told = f"error {words.number(row['error'])} against {words.number(row['mask_error'])}"
    assert f"worse than its mask without compensation: {told}" in title
    bars = json.loads(figures(app)[1])["data"][0]
    methods = [name for name in row.index if name.startswith("error_of_")]
    names = ["mask_error", "error", "possible_error", *methods]
    assert bars["name"] == "held-out tokens"
    assert bars["y"] == pytest.approx([row[f"held_out_{name}"] for name in names])
    app.segmented_control(key="check_view").set_value("Drift").run()
    drift = run.check.summary["drift"]
    assert f"After decoder block 2 the drift is {words.number(drift[-1]['drift'])}" in titles(app)[0]
    finished = checked.record_of(run)
    assert finished.by_layer["target_error"].tolist() == run.check.layers["error"].tolist()
    assert [entry["drift"] for entry in finished.drift] == [entry["drift"] for entry in drift]
    assert finished.number("perplexity_after") == run.check.summary["perplexity_after"]
    assert finished.setup.windows == f"{setup.held_out} × {setup.length} of held out"
    protos = (link.proto for link in app.get("page_link"))
    links = {proto.label: dict(parse_qsl(proto.query_string)) for proto in protos}
    assert (
        links["Read a text with it"]["text_path"]
        == links["Restore each layer alone"]["damage_path"]
        == str(pruned_folder)
    )
    compared = open_page("views/prune.py", **links["Compare it"]).multiselect(key="runs").value
    assert compared == [links["Compare it"]["runs"]]
    assert "(checked)" in compared[0]


def test_equal_verdicts_are_a_sentence_without_a_map(setup, folder, tmp_path):
    model, tokenizer = rose.load_model(str(folder))
    rose.save_model(model, tokenizer, tmp_path / "same")
    app = opened(setup, tmp_path / "same", check_on="Weights alone")
    run = pressed(app)
    assert "- **not pruned, all 21 layers**: All weights are those of the dense model." in texts(app)
    assert [app.success, app.error, app.warning] == [[], [], []]  # no green tick over what was not measured
    assert app.info[0].value.endswith("by the weights alone. Errors and perplexity were not measured.")
    assert not figures(app)
    app.segmented_control(key="check_view").set_value("All numbers").run()
    assert set(app.main.dataframe[0].value["pattern"]) == {"no pattern"}
    assert "<figure " not in html_report.to_html(html_report.check_report(run))
    assert "Read a text with it" in [link.proto.label for link in app.get("page_link")]
    run.request = run.request.changed(pruned=("owner/model",))  # a Hub id
    assert "Read a text with it" not in [link.proto.label for link in app.run().get("page_link")]


def test_two_files_are_compared_inside(setup, folder, pruned_folder):
    asked = {"check_view": "Look inside", "check_dense": str(pruned_folder)}
    app = opened(setup, folder, inspect_beside="true", **asked)
    assert "21 of 30 tensors differ: 0 · " in texts(app)
    assert "The others: 9 equal." in texts(app)
    assert (app.main.dataframe[0].value["Status"] == "differs").sum() == 21
    single = opened(setup, pruned_folder, check_view="Look inside")
    whole = words.size((pruned_folder / "model.safetensors").stat().st_size)  # as Make it smaller counts
    assert f"Nothing stands out: 30 tensors, {whole}, " in texts(single)
    assert len(figures(single)) == 3
    assert single.main.dataframe[0].value.set_index("Tensor")["Zeros"].max() > 1
    assert "singular values" in figures(single.toggle(key="inspect-spectrum").set_value(True).run())[2]


def test_page_opens_on_a_finished_check():
    app = open_page(PAGE)
    assert app.error[0].value.startswith(
        "One of 210 layers is wrong: pattern broken. The copy's perplexity on 8 × 256 held"
    )
    assert "The wrong layer is 18 · " in titles(app)[0]
    assert "where 2:4 allows two" in titles(app)[2]
    compared = next(part.proto.body for part in app.get("html") if "What was compared" in part.proto.body)
    assert "2:4, broken in one group" in compared
    assert "66 % of what a least-squares refit would recover" in compared.replace("\u202f", " ")
    by_weights = open_page(PAGE, check_on="Weights alone").error[0].value
    assert "not measured" in by_weights
    assert "held-out tokens" not in by_weights
