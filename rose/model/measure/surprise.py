"""How surprised a model is by each token of a text: the same loss that perplexity averages, one token at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rose.errors import RoseError
from rose.interrupt import stop_point
from rose.model.load.tokens import first_token
from rose.model.network.network import Network
from rose.model.network.residence import evaluating

TOP = 10  # of the likeliest next tokens
CHUNK = 128  # positions whose logits are turned into probabilities at a time: a vocabulary has 10⁵ of them


@dataclass(frozen=True)
class EncodedText:
    """A text as a model reads it.

    Attributes:
        tokens: (1, length) int64, with the beginning-of-sequence token where the tokenizer puts one.
        pieces: the text of each token; together the text. Empty for the beginning-of-sequence token, and for all but
            the first of several tokens that make one character.
    """

    tokens: Tensor
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What a model expected while it read a text.

    Attributes:
        losses: (length − 1,) float64, −log p of each token but the first given those before it, in nats. Their mean is
            the log of `rose.perplexity` on the same window; nothing predicts the first token.
        likely: (length, TOP) int64, after each token the most likely next ones, the likeliest first.
        chances: (length, TOP) float64, their probabilities.
    """

    losses: Tensor
    likely: Tensor
    chances: Tensor


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, *, limit: int | None = None) -> EncodedText:
    """The text as tokens, `limit` at most, beginning as the windows of `rose.load_tokens` do; raises RoseError for too
    few or many, or a tokenizer that does not say which characters a token stands for."""
    first = first_token(tokenizer)
    if not tokenizer.is_fast:
        raise RoseError(
            "This model's tokenizer does not tell which characters a token stands for; choose another model."
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    begin = [] if first is None else [first]
    count = len(begin) + len(ids)
    if count < 2:
        raise RoseError("Give a text of at least two tokens: nothing predicts the first.")
    if limit is not None and count > limit:
        raise RoseError(f"This text has {count} tokens, more than {limit}; shorten it.")
    pieces, place = [""] * len(begin), 0
    for number, (_, end) in enumerate(spans):
        end = len(text) if number == len(spans) - 1 else max(end, place)
        pieces.append(text[place:end])  # with what a tokenizer leaves out before it, such as spaces
        place = end
    return EncodedText(torch.tensor([begin + ids]), tuple(pieces))


@torch.no_grad()
def read_text(model: nn.Module, tokens: Tensor) -> Reading:
    """Reads a text, (1, length) int64 tokens, and notes the loss of every token and the likeliest next ones."""
    network = Network(model)
    network.check_in_memory()
    network.check_tokens(tokens)
    if tokens.shape[0] != 1 or tokens.shape[1] < 2:
        raise RoseError(f"One text of at least two tokens is read at a time, not {tuple(tokens.shape)}.")
    losses, likely, chances = [], [], []
    with evaluating(model, device := network.device):
        logits = model(input_ids=tokens.to(device), use_cache=False).logits[0]  # (length, vocabulary)
        following = tokens[0, 1:].to(device).long()
        for start in range(0, len(logits), CHUNK):
            stop_point()
            logs = logits[start : start + CHUNK].float().log_softmax(-1)
            wanted = following[start : start + CHUNK]
            losses.append(-logs[: len(wanted)].gather(1, wanted[:, None])[:, 0].double().cpu())
            best = logs.topk(min(TOP, logs.shape[1]))
            likely.append(best.indices.cpu())
            chances.append(best.values.double().exp().cpu())
    return Reading(torch.cat(losses), torch.cat(likely), torch.cat(chances))
