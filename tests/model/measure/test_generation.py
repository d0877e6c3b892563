"""Greedy continuation equals the most likely token of a plain forward pass, taken again and again."""

from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

import rose
from rose.model.measure.text import continue_prompt
from tests.tiny import save_tiny_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder: Path = save_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return rose.load_model(str(folder))


@torch.no_grad()
def test_equals_repeated_forward_passes(tiny):
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


def test_what_a_model_would_change_of_the_likeliest_tokens_is_left_out(tiny):
    model, tokenizer = tiny
    expected = continue_prompt(model, tokenizer, "Hello", new_tokens=8)
    own = GenerationConfig(repetition_penalty=1.8, temperature=0.3, do_sample=True, eos_token_id=tokenizer.eos_token_id)
    before, model.generation_config = model.generation_config, own
    try:
        assert continue_prompt(model, tokenizer, "Hello", new_tokens=8) == expected
        assert model.generation_config is own
    finally:
        model.generation_config = before


def test_a_prompt_ends_where_its_text_ends(tmp_path):
    """This tokenizer puts a token in front of every text and one behind it, after which nothing would go on."""
    model, tokenizer = rose.load_model(str(save_tiny_llama(tmp_path, bos=True)))
    encoded = tokenizer("Hello")["input_ids"]
    assert (encoded[0], encoded[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    ids = torch.tensor([encoded[:-1]])
    for _ in range(6):
        ids = torch.cat([ids, model(ids).logits[0, -1].argmax().view(1, 1)], dim=1)
    new = ids[0, len(encoded) - 1 :].tolist()
    ended = new.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in new else len(new)
    assert ended
    expected = tokenizer.decode(new[:ended], skip_special_tokens=True)
    assert continue_prompt(model, tokenizer, "Hello", new_tokens=6) == expected


@pytest.mark.parametrize(
    ("prompt", "new_tokens", "words"),
    [(" ", 5, "at least one word"), ("Hello", 0, "at least one new token"), ("Hello", 300, "longer than the model's")],
)
def test_what_cannot_be_continued_is_refused(tiny, prompt, new_tokens, words):
    with pytest.raises(rose.RoseError, match=words):
        continue_prompt(*tiny, prompt, new_tokens=new_tokens)
