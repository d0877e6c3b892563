"""Whose masks a checkpoint has: the layers decide together, and by those alone in which methods differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rose.layer.change import Removal
from rose.layer.registry import METHODS
from rose.model.check.costs import SAME_MASK, Recognized
from rose.wording import count

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
        told_by: in how many layers no other method does.
    """

    name: str
    target: str
    layers: int
    agreement: float
    chance: float
    is_same: bool
    alike: dict[str, int]
    told_by: int

    def row(self) -> dict[str, Any]:
        """For a summary."""
        return {name: value for name, value in vars(self).items() if name != "is_same"}


def maker_of(known: Sequence[Recognized]) -> Maker | None:
    """The method nearest to the masks of these layers; None where nothing was compared.

    A layer in which two methods remove the same counts for both alike, so that those in which they differ decide.
    """

    def shared_with(key: Key) -> list[Removal]:
        # Targets are tried only where nothing else has the mask.
        return [found for one in known if (found := one.tried.get(key) or one.tried.get((key[0], "layer")))]

    tried = dict.fromkeys(key for one in known for key in one.tried)
    candidates = [key for key in tried if 2 * len(shared_with(key)) > len(known)]  # others were given up
    if not candidates:
        return None

    # Of two whose masks are equally near, up to chance, the simpler one, which stands first.
    means = {key: fmean(one.jaccard for one in shared_with(key)) for key in candidates}
    best = next(key for key, mean in means.items() if mean > max(means.values()) - EQUAL)
    shared = shared_with(best)
    same = sum(one.jaccard >= SAME_MASK for one in shared)
    is_same = same >= MOST * len(known)
    twins = [_twins(one, best) for one in known]
    alike = {method: sum(method in names for names in twins) for names in twins for method in names}
    return Maker(
        name=best[0],
        target=best[1],
        layers=same if is_same else len(shared),
        agreement=fmean(one.jaccard for one in shared),
        chance=fmean(one.chance for one in shared),
        is_same=is_same,
        alike=alike,
        told_by=sum(not names for names in twins),
    )


def _twins(one: Recognized, key: Key) -> list[str]:
    """Other methods that remove the very same in a layer."""
    name, target = key if key in one.tried else (key[0], "layer")
    own = one.tried.get((name, target))
    return [method for (method, aim), found in one.tried.items() if aim == target and method != name and found == own]


def says_alike(nearest: dict[str, Any]) -> str:
    """Of a checkpoint's method: where others do the same, as a sentence; "" where none does."""
    if not nearest["alike"]:
        return ""
    other, layers = max(nearest["alike"].items(), key=lambda item: item[1])
    names = f"{METHODS[nearest['name']].label} and {METHODS[other].label}"
    if not nearest["told_by"]:
        return f"{names} are the same in all {layers} layers."
    others = nearest["told_by"]
    tell = "one tells" if others == 1 else f"{others} tell"
    return f"{names} are the same in {count(layers, 'layer')}; the other {tell} them apart."
