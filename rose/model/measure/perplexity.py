"""Perplexity of a causal language model on windows of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rose.interrupt import stop_point
from rose.model.network.network import Network
from rose.model.network.precision import Precision
from rose.model.network.residence import evaluating
from rose.model.network.stand_ins import hooked

LOGIT_ELEMENTS = 2**27  # 512 MB of float32 logits at a time


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
    precision = Precision.of(compute, network.dtype, network.device)
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
