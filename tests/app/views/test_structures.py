"""The Structures page: its numbers are the engine's, and a smaller copy is made, compared and handed out."""

import json
import re
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import rose
from app.runs import tuning
from app.runs.checkpoints import size_of
from app.runs.copies import dense_record, measured_perplexity
from app.runs.slimming import Slimming, Speedup
from app.runs.tuning import Tuning
from app.study.setup import Setup
from app.study.structures import Structures
from app.study.study import LoadedModel, Study
from rose.recipe.parts import SlimSettings
from rose.structured import parts
from rose.structured.parts import CHANNELS, HEADS, Shape
from rose.structured.problem import set_cost
from tests.app.tiny_study import figures, finish, measured_study, open_page, texts, tiny_model, tune_one_epoch
from tests.tiny import byte_tokenizer

pytestmark = pytest.mark.usefixtures("placed")
PAGE = "views/structures.py"


def test_costs_are_those_of_the_engine(study: Study) -> None:
    known = Structures(study)
    part = known.parts[HEADS, 1]
    problem = known.problem(part)
    row = known.head_costs().query("block_index == 1 and head == 2").iloc[0]
    kept = torch.tensor([True, True, False, True])
    assert row["cost"] == pytest.approx(set_cost(problem, kept) / problem.energy, rel=1e-3)
    channels = known.channel_costs(1)
    assert sorted(channels["channel"]) == list(range(96))
    assert channels["together"].is_monotonic_increasing
    gone = torch.ones(96, dtype=torch.bool)
    gone[channels["channel"].iloc[:20].tolist()] = False
    mlp = known.problem(known.parts[CHANNELS, 1])
    assert channels["together"].iloc[19] == pytest.approx(set_cost(mlp, gone) / mlp.energy, rel=1e-2)


def test_the_order_of_channels_is_read_once(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each channel would take minutes where there are tens of thousands."""
    known, reads = Structures(study), []
    found = known.priced(known.parts[CHANNELS, 1])

    class Order:
        def __len__(self) -> int:
            return len(found.order)

        def tolist(self) -> list[int]:
            reads.append(1)
            return found.order.tolist()

    monkeypatch.setattr(known, "priced", lambda _part: replace(found, order=Order()))
    assert len(known.channel_costs(1)) == 96
    assert len(reads) == 1


def test_recoveries_and_trade_off(study: Study) -> None:
    known = Structures(study)
    table = known.recovered(known.parts[CHANNELS, 0], Shape(1, 48))
    errors = table[table["tokens"] == "calibration"]["relative_error"].tolist()
    assert errors == sorted(errors, reverse=True)
    assert set(table["tokens"]) == {"calibration", "held-out"}
    trade = known.trade_off([0.0, 0.2, 0.4])
    assert trade["error"].tolist() == sorted(trade["error"])
    assert trade["removed"].tolist() == pytest.approx([0, 0.2, 0.4], abs=0.02)


def test_few_tokens_are_said_beside_the_costs(study: Study) -> None:
    assert "calibration tokens are fewer" not in texts(open_page(PAGE, study))
    short = measured_study(samples=1)  # of 32 tokens, for 64 and 96 columns
    assert "layers calibration tokens are fewer than columns" in texts(open_page(PAGE, short))


@pytest.mark.parametrize("view", ["Heads", "Channels", "Swaps", "Recovery", "Trade-off", "Make it smaller"])
def test_every_part_of_the_page_draws(study: Study, view: str) -> None:
    app = open_page(PAGE, study, structures_view=view)
    if view in ("Heads", "Channels", "Recovery", "Trade-off"):
        (figure,) = figures(app)
        assert json.loads(figure)["data"]
    elif view == "Swaps":
        assert "Errors are relative, after least squares" in texts(app)
    else:
        assert app.button(key="slim-start").label == "Make a smaller copy"
        assert re.search(
            r"About \d+ (s|min), with perplexity, text and speed of both models. Memory .* [\d.]+ (kB|MB) for its cal",
            texts(app),
        )


def test_the_decoder_block_chosen_here_is_chosen_on_every_page(study: Study) -> None:
    app = open_page(PAGE, study, structures_view="Channels")
    assert app.selectbox(key="structures_block").value == 1
    app.selectbox(key="structures_block").set_value(2).run()
    assert app.query_params["layer"] == "model.layers.2.self_attn.o_proj"


SPEED = "tokens_per_second"


def raises(*_what: object, **_more: object) -> None:
    raise rose.RoseError("No space left.")


def test_a_smaller_copy_is_compared_and_written(monkeypatch: pytest.MonkeyPatch, study: Study) -> None:
    model = tiny_model()
    before = [parameter.clone() for parameter in model.parameters()]
    tokens = (study.calibration.tokens, study.calibration.held_out)
    monkeypatch.setattr(Setup, "draw", lambda *_: tokens)
    loaded = LoadedModel(model, byte_tokenizer(), threading.Lock())
    run = finish(Slimming(study.setup, SlimSettings(ratio=0.3), lambda: loaded))
    _, slim = run.models
    parameters, speed = ([model.summary[name] for model in run.models] for name in ("kept_parameters", SPEED))
    assert parameters[1] < parameters[0] == sum(p.numel() for p in before)
    held_out, said = tokens[1], slim.summary
    assert held_out is not None
    assert (said["windows"], said["window_length"], said["evaluated_on"]) == (2, 32, "held out")
    assert said["perplexity_before"] == pytest.approx(rose.perplexity(model, held_out))
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    folder = run.checkpoints[slim.name]
    assert size_of(folder) > 4 * parameters[1]

    # Tuned, it stands beside the two, and a second tuning takes the first one's place.
    monkeypatch.setattr(tuning, "load_apart", lambda *_text, **_sizes: tokens)
    tune_one_epoch(monkeypatch, 1e-3)
    for _ in range(2):
        last = run.tuning = finish(Tuning(run, slim.name, 3.0, lambda: loaded))
    tuned = run.models[2]
    assert [one.name for one in run.models] == ["Dense", "obs, 30 % out", "obs, 30 % out, tuned"]
    assert [tuned.summary[name] for name in ("kept_parameters", SPEED)] == [parameters[1], speed[1]]
    assert tuned.perplexity < slim.perplexity
    assert tuned.summary["tuned"]["kept_step"] > 0
    assert tuned.summary["environment"] == tuned.summary["tuned"]["environment"]
    assert "mean_relative_error" not in tuned.summary
    assert "tuned" not in slim.summary
    assert folder.exists()
    place = run.checkpoints[tuned.name]
    assert place.name == "slim-obs-0.3-tuned"
    assert tuned.summary["tuned"]["losses_before"] == said["losses_after"]
    assert "tuned_before" not in tuned.summary
    assert rose.perplexity(rose.load_model(str(place))[0], held_out) == pytest.approx(tuned.perplexity)
    with monkeypatch.context() as patch:
        patch.setattr(rose, "save_model", raises)
        assert finish(Tuning(run, slim.name, 3.0, lambda: loaded), "failed").job.message == "No space left."
    assert rose.load_model(str(place))
    app = open_page(PAGE, study, structures_view="Make it smaller")
    run.copies[1] = tuned.with_summary(remarks=["It has taken another share than asked."])
    tuned.layers["is_damping_raised"] = True
    app.session_state["slimming"] = run
    app.run()
    assert not app.exception
    assert len(run.models[2].remarks) > 1
    for remark in run.models[2].remarks:
        assert remark in texts(app)
    assert app.button(key="slim-tune-start").label == "Tune for 3 minutes"
    assert tuning.says(last) in texts(app)
    assert re.search(r"steps? in .* takes? perplexity from .* times that before tuning \(", tuning.says(last))
    assert run.speedup is not None
    assert run.speedup.turns >= 5
    assert speed[1] / speed[0] == pytest.approx(run.speedup.ratio.value)  # the table says what the sentence does
    assert run.speedup.says() in texts(app)
    assert "held-out tokens; that of Prune is on others, so not comparable." in texts(app)
    assert "the curve is on those, so not comparable with perplexity above" in texts(app)
    for label in ("obs, 30 % out", "obs, 30 % out, tuned"):
        moved = f"{label} takes perplexity on held-out windows from .* times the dense model's .*95 % interval"
        assert re.search(moved, texts(app))
    run.discard()
    assert not place.exists()


def test_a_copy_that_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch, study: Study) -> None:
    loaded = LoadedModel(tiny_model(), None, threading.Lock())  # type: ignore[arg-type]
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(Setup, "draw", lambda *_: pytest.fail("has read a text first"))
    run = finish(Slimming(study.setup, SlimSettings(), lambda: loaded), "failed")
    assert "of memory, and 1 kB are free" in run.job.message


def test_a_cancelled_run_ends(monkeypatch: pytest.MonkeyPatch, study: Study) -> None:
    monkeypatch.setattr(Setup, "draw", lambda *_: (study.calibration.tokens, None))
    loaded = LoadedModel(tiny_model(), None, threading.Lock())  # type: ignore[arg-type]

    def stop(*_args: object, **_options: object) -> None:
        raise rose.Cancelled

    monkeypatch.setattr(rose, "prune_structured", stop)
    assert finish(Slimming(study.setup, SlimSettings(), lambda: loaded), "cancelled").models == []


def test_a_cut_in_a_model_of_more_channels_is_no_cut_in_this_one(study: Study) -> None:
    app = open_page(PAGE, study, structures_view="Heads")
    app.session_state["structures_cut"] = 500
    app.segmented_control(key="structures_view").set_value("Channels").run()
    assert not app.exception
    assert app.slider(key="structures_cut").value == 24


def test_decoder_blocks_of_different_shapes_have_no_trade_off_of_uniform_ones() -> None:
    model = tiny_model()
    tokens = torch.randint(3, model.config.vocab_size, (8, 32), generator=torch.Generator().manual_seed(1))
    rose.prune_structured(model, tokens, ratio=0.3, allocation="cost")
    app = open_page(PAGE, measured_study(samples=9, model=model), structures_view="Trade-off")
    assert not app.exception
    assert "The decoder blocks of this model differ in shape" in texts(app)


@pytest.mark.parametrize("view", ["Channels", "Trade-off"])
def test_where_heads_alone_can_go_the_page_draws_what_there_is(view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_MLP", ())  # a family whose MLPs are not known
    config = LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3)
    config.num_attention_heads = config.num_key_value_heads = 4
    config.head_dim, config.pad_token_id, config.bos_token_id, config.eos_token_id = 16, 0, 1, 2
    study = measured_study(model=AutoModelForCausalLM.from_config(config).eval())
    known = Structures(study)
    assert known.kinds == (HEADS,)
    assert known.trade_off([0.0, 0.2, 0.3, 0.5])["heads"].tolist() == [4, 3, 3, 2]
    app = open_page(PAGE, study, structures_view=view)
    assert not app.exception
    said = "channels cannot be removed; heads can" if view == "Channels" else "keeps 3 query heads. Speed-up"
    assert said in texts(app)


def test_windows_that_stand_out_are_said_of_each_smaller_model(study: Study) -> None:
    run = Slimming(study.setup, SlimSettings(), lambda: None)  # type: ignore[arg-type,return-value]
    dense, odd = (4.0, 4.1, 4.2, 4.1), (4.1, 4.2, 6.5, 4.2)
    even = tuple(loss + 0.1 for loss in dense)
    measured = [measured_perplexity(torch.tensor(losses).double()) for losses in (dense, odd, even)]
    before = {name.replace("after", "before"): value for name, value in measured[0].items()}
    run.copies = [
        replace(dense_record(before | after), called=name) for name, after in zip("AB", measured[1:], strict=True)
    ]
    (first, *cautions), (second, *none) = run.perplexities()
    assert first.startswith("A takes perplexity on held-out windows from 60.3 to ")
    assert cautions[0].startswith("In one of four windows the loss rose")
    assert "1.11 times the dense model's" in second
    assert not none


@pytest.mark.parametrize(
    ("slim", "said"),
    [
        ([0.10, 0.09, 0.095, 0.1, 0.09], "It reads a prompt of 128 tokens 1.05"),
        ([0.01, 0.011, 0.01, 0.012, 0.01], "cannot be told"),  # ten times as fast, with a fifth taken out
        ([0.09, 0.12, 0.08, 0.11, 0.09], "cannot be told"),  # one pair this way, another that way
    ],
)
def test_a_speed_is_told_only_where_it_is_clear_and_possible(slim: list[float], said: str) -> None:
    found = Speedup.of([0.105, 0.095, 0.1, 0.104, 0.095], slim, bound=1.25)
    assert said in found.says()


@pytest.mark.parametrize("view", ["Heads", "Channels", "Swaps", "Recovery", "Trade-off", "Make it smaller"])
def test_a_part_of_the_page_needs_no_more_layers_than_it_shows(view: str) -> None:
    study = measured_study(layers="*.o_proj")
    app = open_page(PAGE, study, structures_view=view)
    assert not app.exception
    asks = "This needs layers that were not measured: 0 · mlp.down_proj, and two more layers" in texts(app)
    assert asks == (view in ("Channels", "Trade-off"))
    assert asks == ("Measure all layers" in [link.proto.label for link in app.get("page_link")])
    if view in ("Heads", "Recovery"):
        assert figures(app)
