"""A token's surprise is the loss that perplexity averages, and the text comes back whole from its tokens."""

import math

import pytest
import torch

import rose
from rose.model.measure import text as text_module
from rose.model.measure.text import encode_text, read_text
from tests.model.families import make_model, make_tokens
from tests.tiny import BOS, byte_tokenizer, save_tiny_llama


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_losses_average_to_perplexity(family, chunk, monkeypatch):
    monkeypatch.setattr(text_module, "CHUNK", chunk)
    model, tokens = make_model(family), make_tokens()[:1]
    reading = read_text(model, tokens)
    assert len(reading.losses) == tokens.shape[1] - 1
    assert math.exp(float(reading.losses.mean())) == pytest.approx(rose.perplexity(model, tokens), rel=1e-5)


@torch.no_grad()
def test_likely_tokens_are_those_of_the_model():
    model, tokens = make_model("llama"), make_tokens()[:1]
    reading = read_text(model.train(), tokens)
    assert model.training
    chances = model.eval()(tokens).logits[0].double().softmax(-1)
    expected = chances.topk(10)
    assert torch.equal(reading.likely, expected.indices)
    torch.testing.assert_close(reading.chances, expected.values, rtol=1e-5, atol=1e-8)
    of_token = chances[4, tokens[0, 5]]
    assert float(reading.losses[4]) == pytest.approx(-math.log(float(of_token)), rel=1e-5)


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


def test_what_cannot_be_read_is_refused():
    tokenizer = byte_tokenizer()
    with pytest.raises(rose.RoseError, match="at least two tokens"):
        encode_text(tokenizer, "a")
    with pytest.raises(rose.RoseError, match="has 5 tokens, more than 4; shorten it"):
        encode_text(tokenizer, "roses", limit=4)
    with pytest.raises(rose.RoseError, match="has 5 tokens, more than 4"):
        encode_text(byte_tokenizer(bos=True), "rose", limit=4)
    with pytest.raises(rose.RoseError, match="One text of at least two tokens"):
        read_text(make_model("llama"), make_tokens())
