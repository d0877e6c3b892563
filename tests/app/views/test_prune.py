"""The Prune page: the numbers of the run stand on it, the way from choices to results, and what it refuses."""

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

import rose
from app import session, shared
from app import words as app_words
from app.results import html_report, shipping
from app.runs import tuning
from app.runs.copies import file_name
from app.runs.pruning import PruningRun
from app.runs.tuning import Tuning
from app.study.setup import Setup
from rose import verdicts
from rose.layer.defaults import RECOMMENDED
from rose.model.defaults import TUNING
from rose.model.ship.packing import packed_size
from rose.recipe import Recipe
from rose.recipe.steps import Prune
from rose.report import read_runs
from tests.app.tiny_study import ended, figures, open_on, texts, titles, tune_one_epoch

PAGE = "views/prune.py"
Events = tuple[threading.Event, threading.Event]


def opened(setup: Setup, **query: str) -> AppTest:
    return open_on(setup, PAGE, **query)


def pruned(app: AppTest, status: str = "done") -> tuple[AppTest, PruningRun]:
    app.button(key="prune-start").click().run()
    run = ended(shared.prunings()[app.session_state["pruning"]], status)
    app.run()
    assert not app.exception, app.exception
    return app, run


@pytest.fixture
def halt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Events]]:
    """Stops a run at the step of this message; gives what is set when it is there, and what makes it go on."""
    original, halted, go_on = PruningRun._say, threading.Event(), threading.Event()

    def at(message: str) -> Events:
        def say(run: PruningRun, doing: str) -> None:
            original(run, doing)
            if doing == message:
                halted.set()
                assert go_on.wait(240)

        monkeypatch.setattr(PruningRun, "_say", say)
        return halted, go_on

    yield at
    go_on.set()


def name_of(app: AppTest) -> str:
    """The run in the URL."""
    return str(app.query_params["run"])


def view(app: AppTest, name: str) -> AppTest:
    app.segmented_control(key="prune_view").set_value(name).run()
    assert not app.exception, app.exception
    return app


def of_models(app: AppTest) -> pd.DataFrame:
    """The table of perplexities and errors, which is not the first: What to ship has one of sizes."""
    return next(table.value for table in app.table if "Model" in table.value)


def add_merge(checkpoint: Path | None) -> None:
    """One for the tokenizer of single bytes, which no GGUF file can hold without any."""
    assert checkpoint is not None
    path = checkpoint / "tokenizer.json"
    known = json.loads(path.read_text())
    vocabulary = known["model"]["vocab"]
    one, other, *_, last = sorted(piece for piece in vocabulary if len(piece) == 1)
    vocabulary[one + other] = vocabulary.pop(last)
    known["model"]["merges"] = [[one, other]]
    path.write_text(json.dumps(known))


def test_the_url_finds_a_run_again(setup: Setup) -> None:
    words = {"prune_methods": "SparseGPT", "prune_layers": "*.0.self_attn.*", "prune_prompt": ""}
    app, run = pruned(opened(setup, **words, prune_bits="4 bits", prune_group="row"))
    again = opened(setup, run=name_of(app))
    shown = of_models(again)
    assert shown["Model"].tolist() == ["Dense", "SparseGPT at 0.7, 4 bits"]
    summary = run.copies[0].summary
    assert shown["By rounding"].tolist()[1] == app_words.number(summary["mean_rounding_error"])
    (size,) = again.table[0].value.to_dict("records")
    assert size["Copy"] == "SparseGPT at 0.7, 4 bits"
    assert size["What loads it"].endswith("q4_0, pruned layers exact")
    exact = packed_size(rose.load_model(str(run.kept(run.copies[0])))[0])
    assert (size["Checkpoint"], size["Packed"]) == (app_words.size(exact.plain), app_words.size(exact.stored))
    assert (summary["plain_bytes"], summary["packed_bytes"]) == (exact.plain, exact.stored)
    report = html_report.report_of(run.copies)
    assert not any("It takes" in one for one in report.findings)  # a single copy is no choice
    (form,) = (one for one in again.segmented_control if one.key == f"ship_as_{file_name(run.copies[0])}")
    add_merge(run.kept(run.copies[0]))
    form.set_value("q4_0").run()
    again.button(key=f"ship-write-{file_name(run.copies[0])}").click().run()
    assert run.file is not None
    ended(run.file)
    again.run()
    assert "layers are exact in q4_0" in texts(again)
    elsewhere = opened(setup)
    assert "Results appear here as soon as" in texts(elsewhere)
    button = elsewhere.button(key=f"prune-run-{name_of(app)}")
    assert button.label.endswith("SparseGPT at 0.7, done")
    button.click().run()
    assert len(of_models(elsewhere)) == 2
    label = f"Below is a run of {setup.model} in float32, calibrated on 4 × 32 tokens of packaged text, seed 0"
    assert label not in view(opened(replace(setup, sparsity="0.5"), run=name_of(app)), "Texts").info[0].value
    assert label in view(opened(replace(setup, seed=1), run=name_of(app)), "Texts").info[0].value


def assert_one_verdict(app: AppTest, run: PruningRun, folder: Path) -> None:
    """Titles, captions and texts of the page, its report, and the report of the saved runs say the same of who wins."""
    verdict = verdicts.says_ranking(verdicts.rank([copy.result for copy in run.copies]))
    titles = [json.loads(drawn)["layout"]["meta"]["finding"] for drawn in figures(app)]
    assert len(titles) == 2
    assert titles[0] == verdict
    here = html_report.report_of(run.copies)
    for at, report in enumerate(run.copies):
        report.save(folder / "saved" / str(at))
    saved = html_report.report_of(read_runs(str(folder / "saved")))
    said = [*titles, texts(app)]
    page = texts(app).replace("\N{WORD JOINER}", "")
    for advice in shipping.advise([copy.result for copy in run.copies]):
        for sentence in filter(None, [*advice.reasons(), advice.sure()]):
            assert sentence in page
            assert any(sentence in finding for finding in here.findings), sentence
    for report in (here, saved):
        bars = next(one for one in report.drawings if "Bar chart of perplexity" in one.alt)
        shown = re.sub(r" \(\w\)", "", " ".join([*report.findings, bars.figure.layout.meta["finding"], bars.caption]))
        assert shown.count(verdict) == 2  # the first finding, and the title
        said.append(shown)
    winners = re.compile(
        r"[^.;:]*(?:(?:has|have|share) the lowest|No clear difference|identical by construction)[^.;:]*"
    )
    for claim in winners.findall(" ; ".join(said)):
        assert claim.strip() in verdict, claim


def test_a_run_from_choices_to_results(setup: Setup, tmp_path: Path) -> None:
    app = opened(setup)
    assert "Three copies, 21 layers each: about" in texts(app)
    app.multiselect(key="prune_methods").set_value(["sparsegpt", "rose"]).run()
    assert "Two copies, 21 layers each: about" in texts(app)
    assert "Results appear here as soon as" in texts(app)
    app.text_input(key="prune_sparsities").set_value("0.5 2:4").run()
    app.number_input(key="prune_windows").set_value(3).run()
    app.number_input(key="prune_length").set_value(16).run()
    app.number_input(key="prune_new_tokens").set_value(5).run()
    app.selectbox(key="prune_keep").set_value("folder").run()
    assert "Give the path of a folder for the checkpoints." in texts(app)
    assert app.button(key="prune-start").disabled
    app.text_input(key="prune_folder").set_value(str(tmp_path / "out")).run()
    assert "Four copies, 21 layers each" in texts(app)
    app, run = pruned(app)

    shown = of_models(app)
    models = [run.dense, *run.copies]
    assert list(shown["Model"]) == ["Dense", "SparseGPT at 0.5", "ROSE at 0.5", "SparseGPT at 2:4", "ROSE at 2:4"]
    assert run.dense is not None
    for row, outcome in zip(shown.to_dict("records"), models, strict=True):
        assert outcome is not None
        assert row["Perplexity"] == f"{outcome.perplexity:.2f}"
        assert row["× dense"] == f"{outcome.perplexity / run.dense.perplexity:.2f}"
        if outcome is not run.dense:
            assert row["Mean error, calibration"] == app_words.number(outcome.summary["mean_relative_error"])
            assert row["Mean error, held-out"] == app_words.number(outcome.summary["mean_held_out_error"])
            assert row["Removed of these layers"] == "50.00 %"
    assert "Perplexity on 3 × 16 tokens of held-out windows" in texts(app)
    assert_one_verdict(app, run, tmp_path)

    app = view(app, "Layers")
    (drawn,) = json.loads(figures(app)[0])["data"][:1]
    assert drawn["type"] == "heatmap"  # of every layer, by one method
    assert app.segmented_control(key="prune_layers_error").value == "held-out"
    assert app.segmented_control(key="prune_map_method").options == ["SparseGPT", "ROSE"]

    app = view(app, "Texts")
    codes = [block.value for block in app.code]
    for outcome in models:
        assert outcome is not None
        assert outcome.summary["continuation"] in codes
        assert f"**{outcome.name}**, perplexity {outcome.perplexity:.2f}" in texts(app)

    app = view(app, "Downloads")
    for outcome in run.copies:
        assert rose.load_model(str(run.kept(outcome)))
    assert len(app.get("download_button")) == 1 + 2 + 3 * 4 + 2 + 1  # a recipe, two recommended copies, and a report


def test_the_recipes_shown_ask_for_what_was_chosen(setup: Setup) -> None:
    app = opened(setup, prune_sparsities="0.6", prune_layers="*.o_proj", prune_text="ptb", prune_windows="5")
    for place, method in enumerate(["sparsegpt", "rose", RECOMMENDED]):
        app.selectbox(key="prune-recipe-of").select_index(place).run()
        (asked,) = Recipe.parse(app.code[0].value, "output=x").steps
        assert isinstance(asked, Prune)
        assert (asked.method, asked.sparsity, asked.layers) == (method, "0.6", ("*.o_proj",))
        assert (asked.evaluate, asked.windows) == ("ptb", 5)
        assert not asked.true_sequential
    always = app.toggle(key="prune-always-sequential")  # as dense targets are
    assert always.disabled
    assert always.value
    app.button_group(key="prune_targets").set_value(["layer", "dense"]).run()
    app.toggle(key="prune_true_sequential").set_value(True).run()
    for place in range(2):
        app.selectbox(key="prune-recipe-of").select_index(place).run()
        (asked,) = Recipe.parse(app.code[0].value, "output=x").steps
        assert asked.true_sequential == (asked.target == "layer")


def test_only_chosen_layers_and_a_zip(setup: Setup) -> None:
    app = opened(setup, prune_layers="model.layers.1.*", prune_windows="1", prune_prompt="")
    app.selectbox(key="prune_keep").set_value("all").run()
    app.multiselect(key="prune_methods").set_value(["rose_global"]).run()
    app.button_group(key="prune_targets").set_value(["layer"]).run()
    app.toggle(key="prune_true_sequential").set_value(True).run()
    assert "One copy, seven layers" in texts(app)
    app, run = pruned(app)
    assert [len(outcome.layers) for outcome in run.copies] == [7]
    assert all(outcome.summary["true_sequential"] for outcome in run.copies)
    archive = run.kept(run.copies[0])
    assert archive is not None
    assert archive.exists()
    assert len(view(app, "Downloads").get("download_button")) == 1 + 2 + 3 + 2

    # The next run replaces this one, and its file goes.
    app.selectbox(key="prune_keep").set_value("none").run()
    app, _ = pruned(app)
    assert not archive.exists()
    assert "checkpoint not kept" in texts(app)


@pytest.mark.parametrize(
    ("query", "words"),
    [({"prune_sparsities": "0.5 3:7"}, "3:7 needs a block size divisible by 7"), ({"model": "no-such"}, "no-such")],
)
def test_what_cannot_run_is_refused_with_a_sentence(setup: Setup, query: dict[str, str], words: str) -> None:
    app = opened(setup, **query)
    assert words in app.warning[0].value
    assert app.button(key="prune-start").disabled


def test_a_failing_run_says_why(setup: Setup) -> None:
    app, _ = pruned(opened(setup, prune_text="a file", prune_path="/nowhere/text.txt"), "failed")
    assert "There is no file /nowhere/text.txt" in app.error[0].value
    assert not app.button(key="prune-start").disabled


def test_the_layers_of_the_copy_at_work_are_shown_with_their_data(setup: Setup, halt: Callable[[str], Events]) -> None:
    halted, _ = halt("Perplexity of SparseGPT at 0.7")
    app = opened(setup, prune_layers="model.layers.1.*.o_proj", prune_prompt="", prune_windows="1")
    app.button(key="prune-start").click().run()
    assert halted.wait(240)
    app.session_state["prune-timeline"] = True
    app.session_state["prune-timeline-figure-downloads"] = True
    app.run()
    assert not app.exception, app.exception
    assert "The one layer is pruned" in figures(app)[0]
    assert [button.label for button in app.get("download_button")] == [
        "Download",
        "Table, CSV",
        "Table, JSON",
        "Figure, HTML",
    ]


def test_a_run_that_fails_late_shows_what_was_finished(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    prune_model = rose.prune_model

    def failing(*arguments: Any, **options: Any) -> rose.RunReport:
        if options["method"] == "rose":
            raise rose.RoseError("No factor was found.")
        return prune_model(*arguments, **options)

    monkeypatch.setattr(rose, "prune_model", failing)
    app = opened(setup, prune_layers="model.layers.1.*", prune_windows="1", prune_prompt="")
    app.selectbox(key="prune_keep").set_value("all").run()
    app, run = pruned(app, "failed")
    assert "No factor was found." in app.error[0].value
    assert "One model finished before that" in texts(app)
    assert list(of_models(app)["Model"]) == ["Dense", "SparseGPT at 0.7"]
    archive = run.kept(run.copies[0])
    assert archive is not None
    assert archive.exists()
    assert len(view(app, "Downloads").get("download_button")) == 1 + 2 + 3 + 2


def test_a_model_that_is_finished_while_the_page_is_drawn_does_no_harm(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, run = pruned(opened(setup, prune_layers="model.layers.1.*.o_proj", prune_windows="1"))
    finished = list(run.copies)
    for section in ("Perplexity", "Layers", "Texts", "Downloads"):
        reads = itertools.count(1)
        copies = property(lambda _run, reads=reads: finished[: next(reads)])
        with monkeypatch.context() as patch:
            patch.setattr(PruningRun, "copies", copies, raising=False)
            view(app, section)
        assert next(reads) > 2, f"{section} reads them only once"


def test_a_run_that_ends_while_the_page_is_drawn_leaves_no_button_disabled(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, halt: Callable[[str], Events]
) -> None:
    halted, go_on = halt("Loading the model")
    original, seen = session.sees_at_work, []

    def ends_then(run: PruningRun | None) -> bool:
        seen.append(original(run))
        if seen[-1] and run is not None:
            go_on.set()
            run.job.wait(240)
        return seen[-1]

    monkeypatch.setattr(session, "sees_at_work", ends_then)
    app = opened(setup, prune_layers="model.layers.1.*.o_proj", prune_windows="1")
    app.button(key="prune-start").click().run()
    assert halted.is_set()
    assert seen == [False, True, False]
    assert not app.button(key="prune-start").disabled


def test_without_held_out_tokens_their_error_is_not_offered(setup: Setup) -> None:
    setup = replace(setup, held_out=0)
    app, _ = pruned(opened(setup, prune_text="packaged", prune_windows="1", prune_layers="model.layers.1.*.o_proj"))
    app = view(app, "Layers")
    assert app.segmented_control(key="prune_layers_error").options == ["calibration"]
    assert len(figures(app)) == 1


@pytest.mark.parametrize(("dtype", "size"), [("float32", "538 MB"), ("bfloat16", "269 MB")])
def test_a_copy_is_as_large_as_its_type_makes_it(dtype: str, size: str) -> None:
    assert f"Memory besides the model: {size} for the copy being pruned" in texts(opened(Setup(dtype=dtype)))


def test_a_cancelled_run_is_called_so(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run cancels itself when it comes to the second copy, as a person would by the button."""
    original = PruningRun._say

    def say(run: PruningRun, doing: str) -> None:
        original(run, doing)
        if doing.startswith("Pruning by ROSE"):
            for viewer in list(run.job._watchers):
                run.job.leave(viewer)
            run.job._cancelled.set()

    monkeypatch.setattr(PruningRun, "_say", say)
    app, _ = pruned(opened(setup, prune_prompt="", prune_windows="1"), "cancelled")
    assert "Cancelled after one model; the numbers of finished models are below" in texts(app)
    assert list(of_models(app)["Model"]) == ["Dense", "SparseGPT at 0.7"]


def test_a_run_cancelled_before_its_first_copy_has_no_results(setup: Setup, halt: Callable[[str], Events]) -> None:
    halted, go_on = halt("Perplexity of the dense model")
    app = opened(setup, prune_prompt="", threshold="0.2")
    assert "above **0.2**, as chosen" in texts(app)
    app.button(key="prune-start").click().run()
    run = shared.prunings()[app.session_state["pruning"]]
    assert halted.wait(240)
    app.run()
    app.button(key="prune-cancel").click().run()
    assert app.button(key="prune-stopping").disabled
    go_on.set()
    run.job.wait(240)
    app.run()
    shown = texts(app)
    assert "Cancelled before a copy was finished" in shown
    assert "This run ended before a model was evaluated" in shown


def test_another_persons_run_is_neither_stopped_nor_deleted(setup: Setup, halt: Callable[[str], Events]) -> None:
    query = {"prune_methods": "Magnitude", "prune_layers": "model.layers.1.*.o_proj", "prune_prompt": ""}
    halted, go_on = halt("Perplexity of the dense model")
    app = opened(setup, **query, prune_windows="1", prune_task_folder="/elsewhere")
    assert app.text_input(key="prune-task-folder").value == ""  # none that a link names is read
    app.button(key="prune-start").click().run()
    run = shared.prunings()[name_of(app)]
    assert halted.wait(240)
    other = opened(setup, **query, prune_windows="1", run=name_of(app))
    other.button(key="prune-cancel").click().run()
    assert "it goes on for them" in other.toast[0].value
    assert not run.job.is_cancelled
    go_on.set()
    ended(run)
    pruned(other.run())
    kept = run.kept(run.copies[0])
    assert kept is not None
    assert kept.exists()
    pruned(app.run())
    assert not kept.exists()


def test_both_targets_are_pruned_and_shown_and_have_recipes(setup: Setup) -> None:
    app = opened(setup, prune_layers="model.layers.[01].*", prune_windows="1", prune_prompt="")
    app.multiselect(key="prune_methods").set_value(["sparsegpt"]).run()
    assert "target: dense" in app.code[0].value
    app.button_group(key="prune_targets").set_value([]).run()
    assert "Choose at least one target" in app.warning[0].value
    app.button_group(key="prune_targets").set_value(["dense", "layer"]).run()
    assert "Two copies, 14 layers each" in texts(app)
    app.number_input(key="prune_target_damping").set_value(2.5).run()
    assert "target_damping: 2.5" in app.code[0].value
    app.selectbox(key="prune-recipe-of").select_index(1).run()
    assert "target_damping: null" in app.code[0].value
    app, run = pruned(app)
    shown = of_models(app).to_dict("records")
    assert [row["Model"] for row in shown] == ["Dense", "SparseGPT at 0.7", "SparseGPT at 0.7, target layer"]
    report = run.copies[0]
    assert shown[1]["Against dense, held-out"] == app_words.number(report.layers["held_out_target_error"].mean())
    assert shown[2]["Against dense, held-out"] == "–"
    assert [report.summary["target"] for report in list(shared.reports())[-2:]] == ["dense", "layer"]
    assert report.layers["target_damping"].eq(2.5).all()

    app = view(app, "Layers")
    app.segmented_control(key="prune_layers_against").set_value("dense model's output").run()
    assert "Errors against the dense model's output on" in texts(app)
    app.segmented_control(key="prune_layers_target").set_value("layer").run()
    assert "are measured only with that target" in texts(app)


def test_tasks_are_offered_only_where_they_can_be_run(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(setup, prune_tasks="piqa, boolq piqa", prune_questions="7")
    assert app.text_input(key="prune_tasks").value == "piqa, boolq piqa"
    monkeypatch.setattr("rose.model.measure.zero_shot.is_installed", lambda: False)
    app = opened(setup)
    assert "run: pip install -r requirements-eval.txt" in texts(app)
    assert not [box for box in app.text_input if box.key == "prune_tasks"]
    app, _ = pruned(opened(setup, prune_methods="Magnitude", prune_layers="model.layers.1.*.o_proj", prune_prompt=""))
    assert [button.proto.label for button in app.get("download_button")] == [
        *("Download", "Checkpoint, 606 kB", "Report, HTML")
    ]
    assert "No zero-shot tasks were asked for" in texts(view(app, "Zero-shot"))


def test_while_ones_own_run_goes_on_no_other_is_begun(setup: Setup) -> None:
    _, other = pruned(opened(setup, prune_layers="model.layers.0.*.o_proj", prune_windows="1", prune_prompt=""))
    app, own = pruned(opened(setup, prune_layers="model.layers.1.*.o_proj", prune_windows="1", prune_prompt=""))
    own.job.status = "running"
    name = next(name for name, run in shared.prunings().items() if run is other)
    app.button(key=f"prune-run-{name}").click().run()
    assert app.button(key="prune-start").disabled
    assert "Your own run goes on" in texts(app)
    own.job.status = "done"


def test_what_is_left_is_tuned(setup: Setup, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rose.model.load.tokens.TUNING", TUNING._replace(samples=16))
    tune_one_epoch(monkeypatch, 1e-4)
    query = {"prune_methods": "SparseGPT", "prune_prompt": "", "prune_windows": "1", "tune_minutes": "0.5"}
    app, run = pruned(opened(replace(setup, text=str(text)), **query))
    assert "About 30 s with evaluation, and " in texts(app)
    assert app.button(key="tune-start").label == "Tune for 0.5 minutes"
    app.button(key="tune-start").click().run()
    assert isinstance(run.tuning, Tuning)
    ended(run.tuning)
    app.run()
    assert not app.exception, app.exception
    tuned = "SparseGPT at 0.7, tuned 8 steps"
    assert list(of_models(app)["Model"]) == ["Dense", "SparseGPT at 0.7", tuned]
    assert of_models(app)["Mean error, held-out"].tolist()[2] == "–"
    assert tuning.says(run.tuning).split(" s ")[0] in texts(app)
    assert "weights are zero, as before." in texts(app)
    assert any("Held-out perplexity is" in title for title in titles(app))
    assert [copy.name for copy in run.copies if run.kept(copy)] == ["SparseGPT at 0.7", tuned]
    app.session_state["tune-moved"] = True
    app.run()
    assert any("Change by tuning of every layer" in title for title in titles(app)), titles(app)
    for section in ("Layers", "Downloads"):
        view(app, section)
