"""Text generation: dense and pruned models continue the same prompt, which shows more than perplexity."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rose.errors import RoseError
from rose.interrupt import stop_point
from rose.model.load.tokens import first_token
from rose.model.network.network import Network


@torch.no_grad()
def continue_prompt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, *, new_tokens: int = 40
) -> str:
    """The most likely next tokens, one after another (greedy), without the prompt.

    Raises RoseError for an empty prompt, or one that with its continuation is longer than the model allows.
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
    configured = model.generation_config  # with the model's own settings, such as a penalty for earlier tokens
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
