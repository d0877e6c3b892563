"""Statistics of layers' inputs in forward passes; layers that read the same tensors share them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.statistics import InputStatistics
from rose.model.network.layers import PrunableLayer
from rose.model.walk.forward import no_input, version_of

LEAVE_OUT = "leave this layer out"  # the remedy that every caller has for a layer that cannot be calibrated


@dataclass(eq=False)
class _Reading:
    """A tensor read in the current batch, the version of its content, and the layers that read it."""

    inputs: Tensor
    version: int
    readers: list[str]


@dataclass(eq=False)
class _Group:
    """Layers that have read the same tensors in every batch so far."""

    layers: list[str]
    statistics: InputStatistics


class Collector:
    """Forward hooks that gather layers' inputs.

    Inputs are counted at the end of each batch, when all readers of a tensor are known: routed experts may read the
    router's own tensor in one batch and not in the next. A group whose layers no longer read the same is split. The
    caller removes the `hooks`.

    Attributes:
        weight: of the next inputs, see `InputStatistics.update`.
        remedy: for messages, the user's way out for an input that cannot be counted.
    """

    def __init__(self, layers: Sequence[PrunableLayer], device: torch.device, remedy: str = LEAVE_OUT) -> None:
        self.device, self.remedy = device, remedy
        self.weight = 1.0
        self.groups: list[_Group] = []
        self.readings: list[_Reading] = []
        self.hooks = [layer.module.register_forward_pre_hook(self._hook(layer.name)) for layer in layers]

    def _hook(self, name: str) -> Callable[..., None]:
        def note(_module: nn.Module, args: tuple) -> None:
            inputs, version = args[0], version_of(args[0])
            for reading in self.readings:
                # A layer called twice on one tensor has read it twice.
                if reading.inputs is inputs and reading.version == version and name not in reading.readers:
                    reading.readers.append(name)
                    return
            self.readings.append(_Reading(inputs, version, [name]))

        return note

    def end_batch(self) -> None:
        """Counts the inputs since the last call; raises RoseError for one that has been overwritten since."""
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
        """The groups that together are a tensor's readers; a group with other layers too is split."""
        groups: list[_Group] = []
        for group in self.groups:
            readers = [name for name in group.layers if name in reading.readers]
            if readers == group.layers:
                groups.append(group)
            elif readers:
                group.layers = [name for name in group.layers if name not in readers]
                groups.append(_Group(readers, deepcopy(group.statistics)))
        grouped = {name for group in (*self.groups, *groups) for name in group.layers}
        new = [name for name in reading.readers if name not in grouped]
        if new:
            groups.append(_Group(new, InputStatistics(reading.inputs.shape[-1], self.device)))
        self.groups += [group for group in groups if group not in self.groups]
        return groups

    def result(self) -> dict[str, InputStatistics]:
        return {name: group.statistics for group in self.groups for name in group.layers}


def statistics_of(layer: PrunableLayer, statistics: Mapping[str, InputStatistics]) -> InputStatistics:
    """The layer's statistics; raises RoseError if it received no input."""
    if layer.name not in statistics:
        raise no_input(layer.name)
    return statistics[layer.name]
