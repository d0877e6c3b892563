"""Greedy continuation equals the most likely token of a plain forward pass, taken again and again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rose
from rose.model.generation import continue_prompt
from tests.tiny import save_tiny_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder: Path = save_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return rose.load_model(str(folder))


@torch.no_grad()
def test_equals_repeated_forward_passes(tiny: tuple) -> None:
    model, tokenizer = tiny
    ids = tokenizer("Hello", return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(8):
        best = model(ids).logits[0, -1].argmax().view(1, 1)
        ids = torch.cat([ids, best], dim=1)
        if int(best) == tokenizer.eos_token_id:
            break
    expected = tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    assert continue_prompt(model, tokenizer, "Hello", new_tokens=8) == expected


def test_can_be_stopped_before_any_token(tiny: tuple) -> None:
    ticks = 0

    def stop() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 3:
            raise rose.Cancelled

    with pytest.raises(rose.Cancelled):
        continue_prompt(*tiny, "Hello", new_tokens=50, tick=stop)
    assert ticks == 3


@pytest.mark.parametrize(
    ("prompt", "new_tokens", "words"),
    [(" ", 5, "at least one word"), ("Hello", 0, "at least one new token"), ("Hello", 300, "longer than the model's")],
)
def test_what_cannot_be_continued_is_refused(tiny: tuple, prompt: str, new_tokens: int, words: str) -> None:
    with pytest.raises(rose.RoseError, match=words):
        continue_prompt(*tiny, prompt, new_tokens=new_tokens)
