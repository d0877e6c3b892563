"""How the ratio of a model is spread over its layers; the total comes out exact whatever the layers' sizes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rose.errors import RoseError

OUTLIER_FACTOR = 5.0  # M of OWL
OWL_SPREAD = 0.08  # λ of OWL
DENSITY_SPREAD = 0.1  # α of the sensitivity-aware allocation, where none is given


def outlier_share(scores: Sequence[Tensor]) -> float:
    """Share of importances above 5 times their mean, over all matrices of one decoder block (OWL, Yin et al.
    2024, equation 1)."""
    size = sum(score.numel() for score in scores)
    mean = sum(float(score.double().sum()) for score in scores) / size
    return sum(int((score > OUTLIER_FACTOR * mean).sum()) for score in scores) / size


def owl_ratios(shares: Sequence[float], ratio: float) -> list[float]:
    """Ratios in a band of 2λ around the target, falling with the outlier share (OWL, Yin et al. 2024, section 3.2).

    Args:
        shares: outlier share that each layer goes by, its decoder block's.
        ratio: the target.
    """
    low, high = min(shares), max(shares)
    if high == low:
        return [ratio] * len(shares)
    scaled = [2 * OWL_SPREAD * (share - low) / (high - low) for share in shares]
    mean = sum(scaled) / len(scaled)
    return [ratio - value + mean for value in scaled]


def sensitivity_ratios(sensitivities: Sequence[float], ratio: float, spread: float = DENSITY_SPREAD) -> list[float]:
    """Densities from 1 − ratio − α to 1 − ratio + α, linear in the rank of the sensitivity (Shao et al. 2024,
    section 3.3). Ties by position; a single layer gets the target.

    Args:
        sensitivities: of each layer, |mean trace of the loss Hessian| / size; larger = keep more.
        ratio: the target.
        spread: α.
    """
    last = len(sensitivities) - 1
    if last < 1:
        return [ratio] * len(sensitivities)
    ranked = sorted(range(last + 1), key=lambda i: sensitivities[i])
    ratios = [0.0] * (last + 1)
    for rank, layer in enumerate(ranked):
        ratios[layer] = ratio + spread * (1 - 2 * rank / last)
    return ratios


def exact_ratios(wanted: Sequence[float], sizes: Sequence[int], ratio: float) -> list[float]:
    """Shifts ratios by one amount, within 0 to 1, so that round(ratio · total) weights go in all.

    Each ratio returned is a whole number of weights over the layer's size, so a method that counts over the layer
    meets the total exactly; one that counts per row or block rounds there, as it does anyway.

    Args:
        wanted: a ratio for each layer, which may lie outside 0 to 1.
        sizes: number of weights of each layer.
        ratio: of all weights together.

    Raises:
        RoseError: a ratio outside 0 to 1.
    """
    if not 0 <= ratio <= 1:
        raise RoseError(f"The ratio must be a number from 0 to 1, not {ratio!r}.")
    total = round(ratio * sum(sizes))

    def removed(shift: float) -> list[float]:
        return [min(max(want + shift, 0.0), 1.0) * size for want, size in zip(wanted, sizes, strict=True)]

    # What goes in all rises with the shift, from nothing to everything.
    low, high = -max(wanted), 1 - min(wanted)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(removed(middle)) < total else (low, middle)
    exact = removed(high)
    counts = [int(count) for count in exact]
    # Largest remainders first; a layer that is already full cannot take one more.
    by_remainder = sorted(range(len(sizes)), key=lambda i: counts[i] - exact[i])
    missing = total - sum(counts)
    while missing:
        step = 1 if missing > 0 else -1
        for i in by_remainder if step > 0 else reversed(by_remainder):
            if missing and 0 <= counts[i] + step <= sizes[i]:
                counts[i] += step
                missing -= step
    return [count / size for count, size in zip(counts, sizes, strict=True)]
