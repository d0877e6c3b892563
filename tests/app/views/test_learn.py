"""The lessons: the paper's digits appear, live numbers are those of `rose.prune_layer`, and pages turn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

import rose
from app.components import as_html
from app.figures.sweeps import sweep_film, sweep_frame
from app.lessons import basis, chain, subjects
from app.lessons import texts as lesson_texts
from app.lessons.chain import ChainDesign
from app.lessons.subjects import LayerDesign
from app.study.study import Study
from rose import wording
from rose.layer.error import quadratic_form
from tests.app.tiny_study import COLUMNAR, figures, measured_study, open_page, texts, titles

pytestmark = pytest.mark.usefixtures("patient")
PAGE = "views/learn.py"
EXAMPLE = json.loads((Path(__file__).parents[2] / "fixtures" / "worked_example.json").read_text())
TITLES = (
    "Importance",
    "Pre-pruning",
    "Losses",
    "Order",
    "Compensation",
    "When order does not matter",
    "Strength",
    "Two effects",
    "Between layers",
    "Sizes",
    "Basis",
    "Three ways to compensate",
)
LABELS = [f"{number} {title}" for number, title in enumerate(TITLES, 1)]


def step(number: int, study: Study | None = None, **query: str) -> AppTest:
    return open_page(PAGE, study, lesson=LABELS[number - 1], **query)


def errors_of(subject: subjects.Subject) -> list[float]:
    return [subject.prune(order, "block", False).relative_error for order in ("natural", "two_level")]


# The worked example


def test_the_example_is_the_papers() -> None:
    assert [list(row) for row in subjects.EXAMPLE_IMPORTANCE] == EXAMPLE["importance"]
    plan = subjects.example()
    assert plan.block_size == EXAMPLE["block_size"]
    assert (plan.permutation + 1).tolist() == EXAMPLE["permutation_one_based"]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_number_of_the_example_is_printed(number: int) -> None:
    app = step(number)
    if number == 4:
        app.button_group(key="lesson_guess").set_value(0).run()
        app.button(key="lesson-reveal").click().run()
    (drawn,) = figures(app)
    for row in EXAMPLE["importance"]:
        for value in row:
            assert f"{value:.1f}" in drawn
    if number >= 3:
        for value in [*EXAMPLE["column_loss"], *EXAMPLE["block_loss"]]:
            assert f"{value:.1f}" in drawn
    if number == 3:
        shown = texts(app)
        assert "B_{3} = 3.9 + 4.2 + 3.5 = 11.6" in shown
        assert r"\frac{11.6 - 2.6}{11.6} = 0.78" in shown
        assert "the layer is columnar" in shown


@pytest.mark.parametrize(("guess", "answer"), [(0, "You said block 1, which would lose 4.7"), (2, "Yes: block 3.")])
def test_predict_then_reveal(guess: int, answer: str) -> None:
    app = step(4)
    assert not any(
        f"<b>{loss:.1f}" in figures(app)[0].encode().decode("unicode_escape") for loss in EXAMPLE["block_loss"]
    )
    assert "would lose most" not in figures(app)[0]
    permutation = r",\,".join(map(str, EXAMPLE["permutation_one_based"]))
    assert permutation not in texts(app)
    assert app.button(key="lesson-reveal").disabled
    app.button_group(key="lesson_guess").set_value(guess).run()
    assert answer not in texts(app)
    app.button(key="lesson-reveal").click().run()
    assert answer in texts(app)
    assert permutation in texts(app)
    assert "Pruned in the order 8, 7, 9, 2, 1, 3, 6, 5, 4" in figures(app)[0].replace("\\u003cbr\\u003e", " ")
    app.button(key="lesson-again").click().run()
    assert permutation not in texts(app)


# Turning pages


def test_buttons_turn_every_page_there_and_back() -> None:
    app = open_page(PAGE)
    assert app.button(key="lesson-previous").disabled
    claims = []
    for label in LABELS:
        assert app.button_group(key="lesson").value == label
        claims.append(app.header[0].value)
        assert len(figures(app)) == 1
        if label != LABELS[-1]:
            app.button(key="lesson-next").click().run()
            assert not app.exception, app.exception
    assert len(set(claims)) == len(LABELS)
    assert app.button(key="lesson-next").disabled
    app.button(key="lesson-previous").click().run()
    assert app.button_group(key="lesson").value == LABELS[-2]


def test_a_link_with_an_unknown_title_opens_the_first_step() -> None:
    assert open_page(PAGE, lesson="99 Nothing").button_group(key="lesson").value == LABELS[0]


# Sweeps


def test_without_a_model_a_generated_layer_stands_in() -> None:
    app = open_page(PAGE, lesson=LABELS[4], seed="9")
    assert "A generated layer" in texts(app)
    app.slider(key="lesson_step").set_value(6).run()
    shown = texts(app)
    errors = errors_of(subjects.generated(LayerDesign(strength=3.0)))
    assert rf"\frac{{{errors[1]:.5f}}}{{{errors[0]:.5f}}}" in shown
    assert f"saves {100 * (1 - errors[1] / errors[0]):.1f} % of the error" in shown


def test_the_end_is_told_only_once_it_has_been_seen() -> None:
    app = step(5)
    assert "saves" not in texts(app)
    app.button_group(key="lesson_bet").set_value("same").run()
    app.slider(key="lesson_step").set_value(5).run()
    assert "saves" not in texts(app)
    app.slider(key="lesson_step").set_value(6).run()
    assert "You said about the same; it is clearly less error." in texts(app)
    app.button(key="lesson-back").click().run()
    assert "saves" in texts(app)
    app.button(key="lesson-next").click().run()
    assert "how will they end?" in app.header[0].value


def test_the_columnar_and_the_flat_layer_of_a_study(study: Study) -> None:
    ranges = study.overview(0.5).set_index("layer")["relative_range"]
    highest, lowest = subjects.examples(study, study.overview(0.5)) or ("", "")
    assert highest == COLUMNAR == ranges.idxmax()
    assert lowest == ranges.idxmin()
    for number, layer in ((5, highest), (6, lowest)):
        app = step(number, study)
        assert layer not in texts(app)  # the generated layer stays the default
        app.button_group(key="lesson_kind").set_value("real").run()
        app.slider(key="lesson_step").set_value(len(study.plan(layer).block_width)).run()
        shown = texts(app)
        result = [
            rose.prune_layer(
                study.weight(layer), study.statistics(layer), order=order, budget="block", sparsity=0.7, block_size=16
            ).relative_error
            for order in ("natural", "two_level")
        ]
        assert rf"\frac{{{result[1]:.5f}}}{{{result[0]:.5f}}}" in shown
        decimals = f"{ranges[layer]:.2f}"
        assert "of 21 measured layers, the" in shown
        assert f"relative range ({decimals})" in shown
    assert "ROSE keeps natural order here, as in all layers that are not columnar, though many" in shown
    assert "This layer is not columnar" in shown


def test_step_play_and_pause(study: Study) -> None:
    app = open_page(PAGE, study, lesson=LABELS[4], lesson_step="2", lesson_kind="Real layer")  # a link opens its step
    assert "2 of 4 blocks pruned" in texts(app)
    app.button(key="lesson-back").click().run()
    assert "1 of 4 blocks pruned" in texts(app)
    app.button(key="lesson-play").click().run()
    assert app.button(key="lesson-play").label == "Pause"
    app.session_state.lesson_ticked = 0.0  # as if the time of a block had passed
    app.run()
    assert "2 of 4 blocks pruned" in texts(app)
    app.slider(key="lesson_step").set_value(1).run()  # what a busy browser still showed, not the hand
    assert app.button(key="lesson-play").label == "Pause"
    assert "2 of 4 blocks pruned" in texts(app)
    app.slider(key="lesson_step").set_value(3).run()  # the hand goes first
    assert app.button(key="lesson-play").label == "Play"
    assert "3 of 4 blocks pruned" in texts(app)
    app.button(key="lesson-play").click().run()
    app.session_state.lesson_ticked = 0.0
    app.run()
    assert app.slider(key="lesson_step").value == 4
    assert app.button(key="lesson-play").label == "Play"  # it has come to the end
    app.button(key="lesson-play").click().run()
    assert app.slider(key="lesson_step").value == 0  # and begins anew


def test_damage_is_split_for_both_orders(study: Study) -> None:
    subject = subjects.real(study, study.plan(COLUMNAR), COLUMNAR)
    natural, ordered = (subject.prune(order, "block", True) for order in ("natural", "two_level"))
    text = lesson_texts.sweep_lesson(subject, natural, ordered, 4, True, None).text
    for result in (natural, ordered):
        trace = result.trace
        assert trace is not None
        share = 100 * (1 - float(trace.error[-1] / trace.lost[-1]))
        assert f"{share:.0f} % was compensated" in text
    assert "All of that came from inside the block" in text
    assert "In natural order, block 3 was just pruned" in text


def test_race_shows_both_errors_and_can_be_taken_along_as_one_file_that_plays(study: Study) -> None:
    subject = subjects.real(study, study.plan(COLUMNAR), COLUMNAR)
    results = (subject.prune("natural", "block", True), subject.prune("two_level", "block", True))
    drawing = sweep_frame(results, 2, subject.energy)
    for result in results:
        assert result.trace is not None
        expected = [
            quadratic_form(weights - study.weight(COLUMNAR), study.statistics(COLUMNAR).hessian) / subject.energy
            for weights in result.trace.weights
        ]
        assert drawing.data[result.order.name].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert drawing.data[result.order.name].iloc[-1] == pytest.approx(result.relative_error, rel=1e-3)
    played = sweep_film(results, subject.energy)
    assert [frame.name for frame in played.figure.frames] == ["0", "1", "2", "3", "4"]
    assert "ArrowRight" in as_html(played)
    assert "<script src" not in as_html(played)  # needs no network


# The generated layer


def test_sliders_change_the_generated_layer() -> None:
    app = step(7)
    before = texts(app)
    app.slider(key="lesson_strength").set_value(0.5).run()
    app.slider(key="lesson_blocks").set_value(4).run()
    errors = errors_of(subjects.generated(LayerDesign(blocks=4, strength=0.5, place=5, seed=2)))
    shown = texts(app)
    assert shown != before
    assert "64 × 64 weights" in shown
    assert rf"\frac{{{errors[1]:.4f}}}{{{errors[0]:.4f}}}" in shown
    for view in ("weights", "loss"):
        app.button_group(key="lesson_view").set_value(view).run()
        assert not app.exception
        assert len(figures(app)) == 1


# Two effects


@pytest.mark.parametrize("source", ["real", "generated"])
def test_compensation_and_budget_apart(study: Study, source: str) -> None:
    app = step(8, study)
    app.button_group(key="lesson_kind").set_value(source).run()
    weight, statistics = (
        (study.weight(COLUMNAR), study.statistics(COLUMNAR))
        if source == "real"
        else subjects.generate(LayerDesign(strength=3.0))
    )

    def error(order: str, budget: str) -> float:
        return rose.prune_layer(
            weight, statistics, order=order, budget=budget, sparsity=0.7, block_size=16
        ).relative_error

    base = error("natural", "block")
    shown, (drawn,) = texts(app), figures(app)
    for order in subjects.SEPARATED:
        for budget in ("block", "layer"):
            assert f"003e{error(order, budget) / base:.3f}" in drawn
    assert f"compensation, block budget}}}} = {error('two_level', 'block') / base:.3f}" in shown
    assert f"budget, natural order}}}} = {error('natural', 'layer') / base:.3f}" in shown


# From layer to layer


def test_layers_compensate_for_the_layers_before_them() -> None:
    app = step(9)
    ends = chain.ends(chain.drifts(ChainDesign()))
    assert ends == sorted(ends, reverse=True)  # each kind of compensation pays
    shown = texts(app)
    for value in ends:
        assert f"**{value:.3g}**" in shown
    assert f"{100 * (1 - ends[2] / ends[1]):.0f} % less" in shown
    assert "fits noise" not in shown
    app.select_slider(key="lesson_chain_tokens").set_value(64).run()
    assert not app.exception, app.exception
    assert f"**{chain.ends(chain.drifts(ChainDesign(tokens=64)))[2]:.3g}**" in texts(app)
    assert "with only 64 tokens, compensation fits noise" in texts(app)
    counts = [int(option) for option in app.select_slider(key="lesson_chain_tokens").options]
    slider = app.slider(key="lesson_chain_sparsity")
    ratios = np.arange(slider.min, slider.max + slider.step / 2, slider.step)
    for design in (ChainDesign(sparsity=float(ratio), tokens=count) for ratio in ratios for count in counts):
        _, inside, between = chain.ends(chain.drifts(design))
        assert between < 0.9 * inside, design  # wherever the sliders stand


def test_kept_weights_are_trained_through_the_loss_and_zeros_stay() -> None:
    design = ChainDesign(layers=2, tokens=512)
    pruned = chain._prune(design, "sparsegpt", "dense")
    tuned = chain._tune(design, pruned)
    assert all(torch.equal(one == 0, other == 0) for one, other in zip(pruned, tuned, strict=True))
    *_, between, after = chain.ends(chain.drifts_tuned(design))
    assert after < 0.7 * between


def test_the_last_kind_is_the_engines_target() -> None:
    """In the first layer both streams are the same, so all that sparsegpt does there is the same for both targets."""
    table = chain.drifts(ChainDesign(layers=2)).set_index(["run", "block_index"])["drift"]
    assert table["Between layers too", 1] == pytest.approx(table["Inside each layer", 1])
    assert table["Between layers too", 2] < table["Inside each layer", 2]


def test_under_a_pattern_of_groups_both_budgets_are_said_to_be_the_same() -> None:
    app = open_page(PAGE, measured_study(sparsity="2:4"), lesson="8 Two effects", lesson_kind="Real layer")
    assert "so both budgets are the same" in texts(app)
    assert "one threshold for the layer" not in texts(app)


# Bases


def test_a_rotation_changes_the_error_and_not_the_model() -> None:
    app = step(11)
    layer = basis.turned()
    assert max(one.moved for one in layer.values()) < 1e-6
    given, learned = (layer[name].errors["sparsegpt"][1] for name in ("given", "learned"))
    assert learned < 0.8 * given
    assert app.button(key="lesson-reveal").disabled
    assert wording.number(learned) not in texts(app), "not told before the guess"
    app.button_group(key="lesson_model").set_value("yes").run()
    app.button_group(key="lesson_error").set_value("less").run()
    app.button(key="lesson-reveal").click().run()
    shown = texts(app)
    assert "You said yes; it does not." in shown
    assert "You said clearly less error: yes." in shown
    assert f"held-out error goes from {wording.number(given)} to {wording.number(learned)}" in shown
    app.select_slider(key="lesson_basis").set_value("random").run()
    assert "In a random basis SparseGPT makes" in titles(app)[0]
    app.button(key="lesson-again").click().run()
    assert "Importance S" in titles(app)[0]
