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
    model: nn.Module,
    tokens: Tensor,
    *,
    compute: str = "float32",
    progress: Callable[[float], Any] | None = None,
) -> float:
    """exp of the mean negative log-likelihood of every token given those before it in its window.

    Windows do not overlap and each starts without context, the field's protocol (GPTQ, SparseGPT, Wanda).

    Args:
        model: a transformers causal language model; moved to the device and back.
        tokens: (windows, length) int64, as from `load_tokens(..., seed=None)`.
        compute: as for `prune_model`; float32 unless asked otherwise, because this is a measurement.
        progress: called with the share done, 0 to 1, after each decoder block; not with a `Progress`, as a measurement
            has no stages. May raise to stop.

    Raises:
        RoseError: tokens that do not fit the model, or windows in which there is nothing to predict.
    """
    return perplexity_of(window_losses(model, tokens, compute=compute, progress=progress))


def perplexity_of(losses: Tensor) -> float:
    """exp of the mean of what `window_losses` returns."""
    mean = float(losses.mean())
    return math.inf if mean >= 700 else math.exp(mean)


@torch.no_grad()
def window_losses(
    model: nn.Module,
    tokens: Tensor,
    *,
    compute: str = "float32",
    progress: Callable[[float], Any] | None = None,
) -> Tensor:
    """Mean negative log-likelihood a token of each window, (windows,) float64, in nats; arguments as for `perplexity`.

    Two models are compared window by window: what makes a text hard is the same for both, so their difference varies
    far less than either of them.
    """
    network = Network(model)
    network.check_in_memory()
    network.check_tokens(tokens, "Perplexity")
    device = network.device
    precision = Precision.of(compute, network.dtype, device)
    vocabulary: int = model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    batch = max(1, LOGIT_ELEMENTS // (vocabulary * tokens.shape[1]))
    done: list[Tensor] = []

    def tell(share: float) -> None:
        if progress:
            progress((sum(map(len, done)) + share * len(windows)) / len(tokens))

    def behind(index: int) -> Callable[..., None]:  # a batch alone may take eight seconds
        return lambda *_args: tell((index + 1) / (len(network.blocks) + 1))

    hooks = [
        block.register_forward_hook(behind(index)) for index, block in enumerate(network.blocks if progress else ())
    ]
    with evaluating(model, device), hooked(hooks):
        for windows in tokens.split(batch):
            windows = windows.to(device).long()
            with precision.computing(device):
                logits = model(input_ids=windows, use_cache=False).logits[:, :-1]
            stop_point()  # what follows takes a second
            # (tokens, vocabulary): along the last, contiguous dimension the CPU takes a quarter of the time.
            losses = nn.functional.cross_entropy(
                logits.float().flatten(0, 1), windows[:, 1:].flatten(), reduction="none"
            )
            done.append(losses.double().view(len(windows), -1).mean(1).cpu())
            tell(0.0)
    return torch.cat(done)
