"""Memory that tuning takes besides the two models; docs/tuning.md has it by part."""

from __future__ import annotations

import torch

from rose.model.network.network import Network

# Bytes for each trained weight: its gradient, Adam's two moments, the best and the first weights, and two masks; a
# float32 copy where the model stores 16 bits, and a bfloat16 one of the dense model's.
PER_WEIGHT, PER_COPY, PER_ROUNDED = 4 + 8 + 4 + 4 + 2, 4, 2
TOGETHER = 1024  # tokens of one pass: each pass rounds all weights anew, but logits take more memory than all else
# Activations that a decoder block keeps for its backward pass, in hidden widths and in widths of its widest layer, of
# float32 numbers a token.
HIDDEN_KEPT, WIDEST_KEPT = 6, 2
PER_FROZEN = 2  # for each weight of a layer that is not trained, where its 16 bits become 32 for products in float32
LOGITS_KEPT = 3  # of one pass: the model's, the dense model's, and their gradient


def tuning_memory(network: Network, length: int, weights: int, *, rounds: bool = False) -> int:
    """Bytes at the peak for windows of `length` tokens and so many trained weights; `rounds`: see `Precision`."""
    tokens = max(length, TOGETHER)
    hidden = network.config.hidden_size
    widest = max(max(layer.weight.shape) for layer in network.layers)
    of_token = len(network.blocks) * (HIDDEN_KEPT * hidden + WIDEST_KEPT * widest)
    stored = network.dtype == torch.float32
    per_weight = PER_WEIGHT + PER_ROUNDED + (0 if stored else PER_COPY)
    frozen = 0 if stored or rounds else sum(layer.weight.numel() for layer in network.layers) - weights
    activations = 4 * tokens * (of_token + LOGITS_KEPT * network.config.vocab_size)
    return per_weight * weights + PER_FROZEN * frozen + activations
