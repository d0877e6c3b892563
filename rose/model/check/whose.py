"""Whose masks a checkpoint has: the layers decide together, and by those alone in which methods differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rose.layer.change import Removal
from rose.layer.registry import METHODS
from rose.model.check.costs import SAME_MASK, Recognized
from rose.wording import count, out_of, word

MOST = 0.8  # share of the layers that must have a method's mask before the checkpoint is called that method's
EQUAL = 1e-4  # difference of two means over layers that tells nothing
Key = tuple[str, str]  # method and target


@dataclass(frozen=True)
class Maker:
    """The method that the masks of a checkpoint are nearest to.

    Attributes:
        name, target: of it; see `Recognized`.
        layers: how many layers have its mask, or were compared where it is not the checkpoint's.
        agreement, chance: means of what the masks have in common.
        is_same: whether it has made nearly all of them.
        alike: in how many layers another method of this target removes the very same, by its name; such as ROSE and
            SparseGPT in layers that are not columnar. They tell nothing of these two.
        compared: how many layers have a mask that was compared.
    """

    name: str
    target: str
    layers: int
    agreement: float
    chance: float
    is_same: bool
    alike: dict[str, int]
    compared: int

    def row(self) -> dict[str, Any]:
        """For a summary."""
        return {name: value for name, value in vars(self).items() if name != "is_same"}


def maker_of(masks: Sequence[Recognized]) -> Maker | None:
    """The method nearest to the masks of these layers; None where nothing was compared.

    A layer in which two methods remove the same counts for both alike, so that those in which they differ decide.
    """

    def shared_with(key: Key) -> list[Removal]:
        # Targets are tried only where nothing else has the mask.
        removals = (mask.tried.get(key) or mask.tried.get((key[0], "layer")) for mask in masks)
        return [removal for removal in removals if removal]

    tried = dict.fromkeys(key for mask in masks for key in mask.tried)
    candidates = [key for key in tried if 2 * len(shared_with(key)) > len(masks)]  # others were given up
    if not candidates:
        return None

    # Of two whose masks are equally near, up to chance, the simpler one, which stands first.
    means = {key: fmean(removal.jaccard for removal in shared_with(key)) for key in candidates}
    best = next(key for key, mean in means.items() if mean > max(means.values()) - EQUAL)
    shared = shared_with(best)
    same = sum(removal.jaccard >= SAME_MASK for removal in shared)
    is_same = same >= MOST * len(masks)
    return Maker(
        name=best[0],
        target=best[1],
        layers=same if is_same else len(shared),
        agreement=fmean(removal.jaccard for removal in shared),
        chance=fmean(removal.chance for removal in shared),
        is_same=is_same,
        alike=dict(Counter(method for mask in masks for method in _twins(mask, best))),
        compared=len(masks),
    )


def _twins(mask: Recognized, key: Key) -> list[str]:
    """Other methods that remove the very same in a layer."""
    name, target = key if key in mask.tried else (key[0], "layer")
    removal = mask.tried.get((name, target))
    return [
        method
        for (method, other_target), other in mask.tried.items()
        if other_target == target and method != name and other == removal
    ]


def says_alike(nearest: dict[str, Any]) -> str:
    """Of a checkpoint's method: in how many layers the method most like it removes the same; "" where none does."""
    if not nearest["alike"]:
        return ""
    other, layers = max(nearest["alike"].items(), key=lambda item: item[1])
    names = f"{METHODS[nearest['name']].label} and {METHODS[other].label}"
    if layers == nearest["compared"]:
        return f"{names} remove the same weights in {out_of(layers, layers, 'layer')}, so nothing tells which it was."
    apart = nearest["compared"] - layers
    return f"{names} remove the same weights in {count(layers, 'layer')} and differ in {word(apart)}."
