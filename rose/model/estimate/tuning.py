"""Memory that tuning takes besides the two models; docs/tuning.md derives it."""

from __future__ import annotations

from rose.model.network.network import Network

# Bytes for each trained weight: float32 where the model stores 16 bits, the gradient, Adam's two moments, and the best
# and the first weights; a mask.
PER_WEIGHT = 4 + 4 + 8 + 4 + 4 + 1
# Activations that a decoder block keeps for its backward pass, in hidden widths and in widths of its widest layer, of
# float32 numbers a token.
HIDDEN_KEPT, WIDEST_KEPT = 24, 8
LOGITS_KEPT = 3  # of one window: the model's, the dense model's, and their gradient


def tuning_memory(network: Network, length: int, weights: int) -> int:
    """Bytes at the peak for windows of `length` tokens and so many trained weights."""
    hidden = network.config.hidden_size
    widest = max(max(layer.weight.shape) for layer in network.layers)
    of_token = len(network.blocks) * (HIDDEN_KEPT * hidden + WIDEST_KEPT * widest)
    return PER_WEIGHT * weights + 4 * length * (of_token + LOGITS_KEPT * network.config.vocab_size)
