"""Text generation: dense and pruned models continue the same prompt, which shows what perplexity cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rose.errors import RoseError
from rose.interrupt import stop_point
from rose.model.load.tokens import first_token
from rose.model.network.network import Network


@torch.no_grad()
def continue_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    new_tokens: int = 40,
) -> str:
    """The most likely next tokens, one after another (greedy), without the prompt; the same for the same model and
    prompt.

    Raises RoseError for an empty prompt, or one that with its continuation is longer than the model allows.
    """
    if not prompt.strip() or new_tokens < 1:
        raise RoseError("Give a prompt of at least one word, and ask for at least one new token.")
    # Not with all special tokens: some tokenizers end every text with one, and then nothing goes on.
    encoded = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    ids: torch.Tensor = encoded["input_ids"]
    if (first := first_token(tokenizer)) is not None:
        ids = torch.cat([ids.new_tensor([[first]]), ids], dim=1)
    # The model never reads the last new token, but prompt and continuation together must fit into its context.
    network = Network(model)
    network.check_length(ids.shape[1] + new_tokens)
    network.check_tokens(ids)

    def stop(_ids: torch.Tensor, _scores: torch.Tensor, **_more: Any) -> torch.Tensor:
        stop_point()
        return torch.zeros(1, dtype=torch.bool, device=_ids.device)

    device = next(model.parameters()).device
    with _greedy(model):
        output = model.generate(  # type: ignore[operator]
            input_ids=ids.to(device),
            attention_mask=torch.ones_like(ids).to(device),
            max_new_tokens=new_tokens,
            do_sample=False,
            stopping_criteria=[stop],
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


@contextmanager
def _greedy(model: PreTrainedModel) -> Iterator[None]:
    """Without what a model's own settings change of the most likely tokens, such as a penalty for those it has had."""
    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id)
    try:
        yield
    finally:
        model.generation_config = own
