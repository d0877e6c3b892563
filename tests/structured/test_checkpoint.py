"""Slimming that was stopped or killed goes on to the same bits, in memory and streamed."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import rose
from rose.tensor_files import digest
from tests.model.families import make_model, make_tokens, on_meta, save
from tests.model.run.test_checkpoint import stop_at
from tests.structured.test_streaming import OPTIONS, figures

pytestmark = pytest.mark.usefixtures("small_batches")
ROOT = Path(__file__).parents[2]


def slim(family: str, folder: Path | None, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[str, Any]:
    """Slims a dense tiny model; returns the digest of its weights, and what its report says."""
    model = make_model(family).to(dtype)
    report = rose.prune_structured(model, make_tokens(), checkpoint=folder, **OPTIONS | options)
    return digest(model.state_dict()), figures(report)


def interrupt(folder: Path, family: str = "gemma3", **options: Any) -> None:
    with pytest.raises(rose.Cancelled):
        slim(family, folder, progress=stop_at("prune", 2 if family == "gemma3" else 1), **options)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2", {}),  # stores its weights transposed, and has biases
        ("llama", {"method": "slimllm", "allocation": "similarity"}),
        ("llama", {"allocation": "cost", "target": "layer", "held_out": None}),
        ("llama", {"dtype": torch.bfloat16}),
    ],
)
def test_going_on_gives_the_same_weights_and_report(family, options, tmp_path):
    expected = slim(family, None, **options)
    interrupt(tmp_path, family, **options)
    assert slim(family, tmp_path, **options) == expected


def test_finished_blocks_are_not_run_again_and_prices_not_computed_again(tmp_path):
    expected = slim("gemma3", None)
    interrupt(tmp_path)
    events: list[rose.Progress] = []
    assert slim("gemma3", tmp_path, progress=events.append) == expected
    assert {event.stage for event in events} <= {"embed", "calibrate", "propagate", "prune", "done"}
    assert {event.block_index for event in events} == {2, 3}
    assert not list(tmp_path.glob("activations*"))
    events.clear()
    assert slim("gemma3", tmp_path, progress=events.append) == expected
    assert {event.stage for event in events} == {"done"}


def test_a_streamed_run_goes_on(tmp_path):
    folder, kept = str(save("gemma3", tmp_path / "dense")), tmp_path / "kept"
    expected, report = slim("gemma3", None)
    model, _ = rose.load_model(folder, stream=True)
    with pytest.raises(rose.Cancelled):
        rose.prune_structured(model, make_tokens(), checkpoint=kept, progress=stop_at("calibrate", 2), **OPTIONS)
    (kept / "activations-00002" / "calibration-00000.safetensors").unlink()  # so the reduced blocks run again
    for _ in range(2):  # the second time all is done already
        model, tokenizer = rose.load_model(folder, stream=True)
        again = rose.prune_structured(model, make_tokens(), checkpoint=kept, **OPTIONS)
        assert on_meta(model)
        assert figures(again) == report
    rose.save_model(model, tokenizer, tmp_path / "out")
    assert digest(rose.load_model(str(tmp_path / "out"))[0].state_dict()) == expected


def test_the_blocks_to_drop_are_remembered(tmp_path):
    options: dict[str, Any] = {"method": "depth", "ratio": 0.25}
    expected, _ = slim("gemma3", tmp_path, **options)
    events: list[rose.Progress] = []
    assert slim("gemma3", tmp_path, progress=events.append, **options)[0] == expected
    assert not events


def prune(folder: Path) -> None:
    rose.prune_model(make_model("gemma3"), make_tokens(), sparsity=0.5, block_size=16, checkpoint=folder)


def change_model(folder: Path) -> None:
    rose.prune_structured(make_model("gemma3", seed=1), make_tokens(), checkpoint=folder, **OPTIONS)


@pytest.mark.parametrize(
    ("begun", "other", "message"),
    [
        (interrupt, partial(slim, "gemma3", ratio=0.4), "ratio was 0.3 there and is 0.4 now"),
        (interrupt, partial(slim, "gemma3", parts=["channels"]), r"parts was \['heads', 'channels'\] there"),
        (interrupt, change_model, "the model's weights differ"),
        (interrupt, prune, "that of slim, not of prune"),
        (prune, partial(slim, "gemma3"), "that of prune, not of slim"),
    ],
)
def test_another_run_is_refused(begun, other, message, tmp_path):
    begun(tmp_path)
    with pytest.raises(rose.RoseError, match=message):
        other(tmp_path)
