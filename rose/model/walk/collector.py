"""Statistics of what layers read in forward passes; layers that read the same tensors share them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.statistics import InputStatistics
from rose.model.network.layers import PrunableLayer
from rose.model.walk.forward import no_input, version_of

LEAVE_OUT = "leave this layer out"  # what every caller can do about a layer that cannot be calibrated


@dataclass(eq=False)
class _Reading:
    """A tensor that layers have read in the batch under way, and the version of its content that they read."""

    inputs: Tensor
    version: int
    readers: list[str]


@dataclass(eq=False)
class _Group:
    """Layers that have read the same tensors in every batch so far."""

    layers: list[str]
    statistics: InputStatistics


class Collector:
    """Forward hooks that gather the inputs of some layers; layers that read the same tensors share statistics.

    Inputs are counted at the end of each batch, when all readers of a tensor are known: routed experts may read the
    router's own tensor in one batch and not in the next. A group whose layers no longer read the same is split.
    `weight` is that of the inputs that come next, see `InputStatistics.update`; `remedy` is what the caller can do
    about an input that cannot be counted. The caller removes the `hooks`.
    """

    def __init__(self, layers: list[PrunableLayer], device: torch.device, remedy: str = LEAVE_OUT) -> None:
        self.device, self.remedy = device, remedy
        self.weight = 1.0
        self.groups: list[_Group] = []
        self.readings: list[_Reading] = []
        self.hooks = [layer.module.register_forward_pre_hook(self._hook(layer.name)) for layer in layers]

    def _hook(self, name: str) -> Callable[..., None]:
        def seen(_module: nn.Module, args: tuple) -> None:
            inputs = args[0]
            version = version_of(inputs)
            for reading in self.readings:
                # A layer called twice on one tensor has read it twice.
                if reading.inputs is inputs and reading.version == version and name not in reading.readers:
                    reading.readers.append(name)
                    return
            self.readings.append(_Reading(inputs, version, [name]))

        return seen

    def end_batch(self) -> None:
        """Counts what was read since the last call; raises RoseError where an input has been overwritten since."""
        for reading in self.readings:
            if version_of(reading.inputs) != reading.version:
                raise RoseError(
                    f"The model overwrites the input of {reading.readers[0]} in place after reading it, so that it "
                    f"cannot be counted; {self.remedy}."
                )
            for group in self._readers(reading):
                group.statistics.update(reading.inputs, self.weight)
        self.readings.clear()

    def _readers(self, reading: _Reading) -> list[_Group]:
        """The groups that together are a tensor's readers, after splitting those of which only some layers are."""
        found: list[_Group] = []
        for group in self.groups:
            readers = [name for name in group.layers if name in reading.readers]
            if readers == group.layers:
                found.append(group)
            elif readers:
                group.layers = [name for name in group.layers if name not in readers]
                found.append(_Group(readers, deepcopy(group.statistics)))
        known = {name for group in (*self.groups, *found) for name in group.layers}
        unseen = [name for name in reading.readers if name not in known]
        if unseen:
            found.append(_Group(unseen, InputStatistics(reading.inputs.shape[-1], self.device)))
        self.groups += [group for group in found if group not in self.groups]
        return found

    def result(self) -> dict[str, InputStatistics]:
        return {name: group.statistics for group in self.groups for name in group.layers}


def statistics_of(layer: PrunableLayer, found: Mapping[str, InputStatistics]) -> InputStatistics:
    """What calibration knows of this layer's input; raises RoseError where it received none."""
    if layer.name not in found:
        raise no_input(layer.name)
    return found[layer.name]
