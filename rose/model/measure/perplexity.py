"""Perplexity on windows of tokens; and of one text the loss on each token, which perplexity averages, and its
continuation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rose.errors import RoseError
from rose.interrupt import stop_point
from rose.model.load.tokens import first_token, load_tokens
from rose.model.network.network import Network
from rose.model.network.residence import evaluating
from rose.model.network.stand_ins import hooked

LOGIT_ELEMENTS = 2**27  # 512 MB of float32 logits at a time
TOP = 10  # of the likeliest next tokens
PLAIN_ENGLISH = Path(__file__).with_name("plain_english.txt")  # written for this project, in the public domain
ENGLISH_LENGTH = 128  # tokens of its windows
CHUNK = 128  # positions whose logits become probabilities at a time: a vocabulary has 10⁵ of them


def perplexity(
    model: nn.Module, tokens: Tensor, *, compute: str = "float32", progress: Callable[[float], Any] | None = None
) -> float:
    """exp of the mean negative log-likelihood of every token given those before it in its window.

    Windows do not overlap and each starts without context, the field's protocol (GPTQ, SparseGPT, Wanda).

    Args:
        model: a transformers causal language model; moved to the device and back.
        tokens: (windows, length) int64, as from `load_tokens(..., seed=None)`.
        compute: as for `prune_model`; by default float32, because this is a measurement.
        progress: called with the share done, 0 to 1 (not a `Progress`), after each decoder block; may raise to stop.

    Raises:
        RoseError: tokens that do not fit the model, or windows with nothing to predict.
    """
    return perplexity_of(window_losses(model, tokens, compute=compute, progress=progress))


def plain_english(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Windows of a text that calibrates nothing, (windows, at most 128) int64."""
    length = min(ENGLISH_LENGTH, Network(model).positions or ENGLISH_LENGTH)
    return load_tokens(str(PLAIN_ENGLISH), tokenizer, samples=None, length=length, seed=None)


def perplexity_of(losses: Tensor) -> float:
    mean = float(losses.mean())
    return math.inf if mean >= 700 else math.exp(mean)


@torch.no_grad()
def window_losses(
    model: nn.Module | Network,
    tokens: Tensor,
    *,
    compute: str = "float32",
    progress: Callable[[float], Any] | None = None,
) -> Tensor:
    """Mean negative log-likelihood a token of each window, (windows,) float64, in nats; arguments as for `perplexity`.

    Two models are compared window by window: their differences vary far less than the losses.
    """
    network = model if isinstance(model, Network) else Network(model)
    network.check_in_memory()
    network.check_tokens(tokens, "Perplexity")
    body: Any = network.model
    precision = network.precision(compute)
    batch = max(1, LOGIT_ELEMENTS // (body.get_output_embeddings().weight.shape[0] * tokens.shape[1]))
    done: list[Tensor] = []

    def tell(share: float) -> None:
        if progress:
            progress((sum(map(len, done)) + share * len(windows)) / len(tokens))

    def after(index: int) -> Callable[..., None]:  # a batch alone may take eight seconds
        return lambda *_args: tell((index + 1) / (len(network.blocks) + 1))

    blocks = enumerate(network.blocks if progress else ())
    hooks = [block.register_forward_hook(after(index)) for index, block in blocks]
    with evaluating(body, network.device), hooked(hooks):
        for windows in tokens.split(batch):
            windows = windows.to(network.device).long()
            with precision.computing(network.device):
                logits = body(input_ids=windows, use_cache=False).logits[:, :-1]
            stop_point()  # the rest takes a second
            # (tokens, vocabulary): along the last, contiguous dimension the CPU takes a quarter of the time.
            flat, targets = logits.float().flatten(0, 1), windows[:, 1:].flatten()
            losses = nn.functional.cross_entropy(flat, targets, reduction="none")
            done.append(losses.double().view(len(windows), -1).mean(1).cpu())
            tell(0.0)
    return torch.cat(done)


@dataclass(frozen=True)
class EncodedText:
    """A text as a model reads it."""

    tokens: Tensor  # (1, length) int64, with the beginning-of-sequence token if the tokenizer puts one
    # the text of each token; together the text. Empty for the beginning-of-sequence token, and for all but the first
    # of several tokens that make one character
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """A model's expectations while it read a text."""

    # (length − 1,) float64, −log p of each token but the first, in nats; their mean is the log of `rose.perplexity`
    # on the same window
    losses: Tensor
    likely: Tensor  # (length, TOP) int64, the likeliest next tokens after each token, in order
    chances: Tensor  # (length, TOP) float64, their probabilities


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, *, limit: int | None = None) -> EncodedText:
    """The text as tokens, at most `limit`, beginning as the windows of `rose.load_tokens`.

    Raises RoseError for too few or many tokens, or a tokenizer that does not tell their characters.
    """
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
        pieces.append(text[place:end])  # with spaces and other characters that the tokenizer skips
        place = end
    return EncodedText(torch.tensor([begin + ids]), tuple(pieces))


@torch.no_grad()
def read_text(model: nn.Module, tokens: Tensor) -> Reading:
    """The loss of every token and the likeliest next tokens in a text, (1, length) int64 tokens."""
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
            targets = following[start : start + CHUNK]
            losses.append(-logs[: len(targets)].gather(1, targets[:, None])[:, 0].double().cpu())
            best = logs.topk(min(TOP, logs.shape[1]))
            likely.append(best.indices.cpu())
            chances.append(best.values.double().exp().cpu())
    return Reading(torch.cat(losses), torch.cat(likely), torch.cat(chances))


@torch.no_grad()
def continue_prompt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, *, new_tokens: int = 40
) -> str:
    """The most likely next tokens, one after another (greedy), without the prompt.

    Raises RoseError for an empty prompt, or a continuation that is longer than the model allows.
    """
    if not prompt.strip() or new_tokens < 1:
        raise RoseError("Give a prompt of at least one word, and ask for at least one new token.")
    # Not with all special tokens: some tokenizers end every text with one, and then nothing goes on.
    ids: torch.Tensor = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    if (first := first_token(tokenizer)) is not None:
        ids = torch.cat([ids.new_tensor([[first]]), ids], dim=1)
    network = Network(model)
    network.check_length(ids.shape[1] + new_tokens)
    network.check_tokens(ids)

    def stop(_ids: torch.Tensor, _scores: torch.Tensor, **_options: Any) -> torch.Tensor:
        stop_point()
        return torch.zeros(1, dtype=torch.bool, device=_ids.device)

    device = next(model.parameters()).device
    configured = model.generation_config  # its settings, such as a penalty for earlier tokens, are left out
    model.generation_config = GenerationConfig(eos_token_id=configured.eos_token_id)
    try:
        output = model.generate(  # type: ignore[operator]
            input_ids=ids.to(device),
            attention_mask=torch.ones_like(ids).to(device),
            max_new_tokens=new_tokens,
            do_sample=False,
            stopping_criteria=[stop],
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
    finally:
        model.generation_config = configured
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
