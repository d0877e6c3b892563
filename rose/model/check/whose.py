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
    """The method with the nearest masks to a checkpoint's."""

    name: str
    target: str  # see `Recognized`
    layers: int  # that have its mask, or were compared if it is not the checkpoint's method
    agreement: float  # mean share that the masks have in common
    chance: float
    is_same: bool  # whether it has made nearly all of them
    # By another method with this target, layers in which both remove the very same, as ROSE and SparseGPT do in layers
    # that are not columnar.
    alike: dict[str, int]
    compared: int  # layers with a mask that was compared

    def row(self) -> dict[str, Any]:
        """For a summary."""
        return {name: value for name, value in vars(self).items() if name != "is_same"}


def maker_of(masks: Sequence[Recognized]) -> Maker | None:
    """The method with the nearest masks; None where nothing was compared. Layers in which two methods remove the same
    count for both, so that the others decide."""

    def shared_with(key: Key) -> list[Removal]:
        # A target is tried only while no other has explained the mask.
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
    alike = Counter(method for mask in masks for method in _twins(mask, best))
    agreement, chance = (fmean(getattr(removal, name) for removal in shared) for name in ("jaccard", "chance"))
    return Maker(*best, same if is_same else len(shared), agreement, chance, is_same, dict(alike), len(masks))


def _twins(mask: Recognized, key: Key) -> list[str]:
    """Other methods that remove the very same in a layer."""
    name, target = key if key in mask.tried else (key[0], "layer")
    removal = mask.tried.get((name, target))
    tried = mask.tried.items()
    return [method for (method, aim), other in tried if aim == target and method != name and other == removal]


def says_alike(nearest: dict[str, Any]) -> str:
    """In how many layers the checkpoint's method and the one most like it remove the same; "" without such a method."""
    if not nearest["alike"]:
        return ""
    other, layers = max(nearest["alike"].items(), key=lambda item: item[1])
    text = f"{METHODS[nearest['name']].label} and {METHODS[other].label} remove the same weights in"
    if layers == nearest["compared"]:
        return f"{text} {out_of(layers, layers, 'layer')}, so nothing tells which it was."
    return f"{text} {count(layers, 'layer')} and differ in {word(nearest['compared'] - layers)}."
