"""Losses of tokens average to the perplexity; greedy continuations match plain forward passes."""

import math

import pytest
import torch
from transformers import GenerationConfig

import rose
from rose.model.measure import perplexity as text_module
from rose.model.measure.perplexity import continue_prompt, encode_text, read_text
from tests.model.families import make_model, make_tokens
from tests.refusals import refused
from tests.tiny import BOS, byte_tokenizer, save_tiny_llama


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("chunk", [7, 1000])
@torch.no_grad()
def test_losses_average_to_perplexity_and_likely_tokens_are_those_of_the_model(family, chunk, monkeypatch):
    monkeypatch.setattr(text_module, "CHUNK", chunk)
    model, tokens = make_model(family), make_tokens()[:1]
    reading = read_text(model.train(), tokens)
    assert model.training
    assert math.exp(float(reading.losses.mean())) == pytest.approx(rose.perplexity(model, tokens), rel=1e-5)
    chances = model.eval()(tokens).logits[0].double().softmax(-1)
    expected = chances.topk(10)
    assert torch.equal(reading.likely, expected.indices)
    torch.testing.assert_close(reading.chances, expected.values, rtol=1e-5, atol=1e-8)
    of_tokens = chances[:-1].gather(1, tokens[0, 1:, None])[:, 0]
    torch.testing.assert_close(reading.losses, -of_tokens.log(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bos", [False, True])
def test_pieces_make_the_text(bos, tmp_path):
    text = "A rose — “Ünïcode” 🌹\n\n  in two lines. "
    encoded = encode_text(byte_tokenizer(bos), text)
    assert "".join(encoded.pieces) == text
    assert len(encoded.pieces) == encoded.tokens.shape[1] == len(text.encode()) + bos
    assert (int(encoded.tokens[0, 0]) == BOS) is bos
    model, tokenizer = rose.load_model(str(save_tiny_llama(tmp_path, blocks=1, bos=bos)))
    reading = read_text(model, encode_text(tokenizer, text).tokens)
    assert len(reading.losses) == len(encoded.pieces) - 1  # with BOS in front, every token of the text is predicted


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    return rose.load_model(str(save_tiny_llama(tmp_path_factory.mktemp("tiny"))))


def test_sampling_settings_of_a_model_are_ignored(tiny, monkeypatch):
    model, tokenizer = tiny
    expected = continue_prompt(model, tokenizer, "Hello", new_tokens=8)
    sampling = GenerationConfig(
        repetition_penalty=1.8, temperature=0.3, do_sample=True, eos_token_id=tokenizer.eos_token_id
    )
    monkeypatch.setattr(model, "generation_config", sampling)
    assert continue_prompt(model, tokenizer, "Hello", new_tokens=8) == expected
    assert model.generation_config is sampling


@pytest.mark.parametrize("bos", [False, True])
@torch.no_grad()
def test_a_continuation_equals_repeated_forward_passes(bos, tmp_path):
    """The tokenizer with BOS puts a token behind every text too, after which nothing would go on."""
    model, tokenizer = rose.load_model(str(save_tiny_llama(tmp_path, bos=bos)))
    encoded = tokenizer("Hello")["input_ids"]
    ids = torch.tensor([encoded[: len(encoded) - bos]])
    for _ in range(8):
        ids = torch.cat([ids, model(ids).logits[0, -1].argmax().view(1, 1)], dim=1)
    new = ids[0, len(encoded) - bos :].tolist()
    ended = new.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in new else len(new)
    assert ended
    assert continue_prompt(model, tokenizer, "Hello", new_tokens=8) == tokenizer.decode(new[:ended])


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda _: encode_text(byte_tokenizer(), "a"), "at least two tokens"),
        (lambda _: encode_text(byte_tokenizer(), "roses", limit=4), "has 5 tokens, more than 4; shorten it"),
        (lambda _: encode_text(byte_tokenizer(bos=True), "rose", limit=4), "has 5 tokens, more than 4"),
        (lambda _: read_text(make_model("llama"), make_tokens()), "One text of at least two tokens"),
        (lambda tiny: continue_prompt(*tiny, " ", new_tokens=5), "at least one word"),
        (lambda tiny: continue_prompt(*tiny, "Hello", new_tokens=0), "at least one new token"),
        (lambda tiny: continue_prompt(*tiny, "Hello", new_tokens=300), "longer than the model's"),
    ],
)
def test_bad_texts_and_prompts_are_refused(tiny, work, message):
    refused(message, work, tiny)
