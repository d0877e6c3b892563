"""Where decoder blocks are kept between uses: in memory, or, for a model larger than that, in its files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.interrupt import is_stoppable, stop_point
from rose.model.network.layers import PrunableLayer
from rose.model.network.stand_ins import hooked
from rose.tensor_files import digest

ATTRIBUTE = "rose_residence"  # of a model whose blocks are not in memory


def pick_device() -> torch.device:
    """CUDA where there is one, else the CPU. Not MPS: it has no float64, in which errors are summed."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def evaluating(module: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """While this lasts, a module is in evaluation mode, without dropout, and on the device if one is given.

    Behind each of its decoder blocks, and each expert that is a module, stands a `stop_point`.
    """
    home, modes = next(module.parameters()).device, {one: one.training for one in module.modules()}
    parts = [part for one in module.modules() if isinstance(one, nn.ModuleList) for part in one]
    try:
        module.eval()
        if device is not None:
            module.to(device)  # which a device without room for it does in part
        with hooked([part.register_forward_hook(_behind) for part in parts] if is_stoppable() else []):
            yield
    finally:
        for one, was_training in modes.items():  # who trains may keep some modules out of it
            one.training = was_training
        if device is not None:
            module.to(home)


@contextmanager
def gradients_only_of(module: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """While this lasts, only these parameters have gradients, and none to begin with; then all is as it was. A caller's
    `torch.no_grad` or `torch.inference_mode` has no effect meanwhile; raises RoseError where the model was made in the
    latter."""
    if any(one.is_inference() for one in module.parameters()):
        raise RoseError(
            "The model was made in torch.inference_mode, which allows no gradients; load it outside of that."
        )
    before = {one: (one.requires_grad, one.grad) for one in module.parameters()}
    for one in before:
        one.requires_grad_(False).grad = None
    for one in parameters:
        one.requires_grad_(True)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for one, (flag, gradient) in before.items():
            one.requires_grad_(flag).grad = gradient


def _behind(*_args: Any) -> None:
    stop_point()


def leave(_index: int) -> None:
    """Leaves a decoder block as it is in the files, for `Residence.overlay`."""


class Residence:
    """Decoder blocks in memory. One at a time moves to the device and back."""

    def __init__(self, model: nn.Module, blocks: nn.ModuleList) -> None:
        self.model, self.blocks = model, blocks

    @property
    def scratch(self) -> Path | None:
        """Folder that must keep what is pruned, because memory does not; None where memory does."""
        return None

    @contextmanager
    def visit(self, index: int, device: torch.device) -> Iterator[nn.Module]:
        """One decoder block, whole, on the device and in evaluation mode: calibration is without dropout."""
        with evaluating(self.blocks[index], device):
            yield self.blocks[index]

    def whole(self) -> AbstractContextManager[None]:
        """While this lasts, the model's forward pass works, decoder blocks included; slowly where they are in files."""
        return nullcontext()

    def embedding(self) -> AbstractContextManager[None]:
        """While this lasts, everything but the decoder blocks and the head works."""
        return nullcontext()

    def overlay(self, revise: Callable[[int], None], finished: Collection[int], checkpoint: Path | None) -> None:
        """Says how to lay what a run has made of a decoder block over the one in the files; memory has it already.

        `revise` changes the decoder block of this index, which has just been read; `finished` are those that the run
        has changed so far; `checkpoint` is the folder that keeps the changes for good, if one does. Raises RoseError
        where another run has pruned this model, whose weights would be lost.
        """

    def withdraw(self) -> None:
        """Drops the overlay: decoder blocks are again what they were before the run."""

    def settle(self, revise: Callable[[int], None], identity: str) -> None:
        """Drops the overlay too, but from now on decoder blocks are what `revise` makes of them, and later runs begin
        there. The model's parameters have their later shapes and names already. `identity` identifies the change."""

    def check_renumbering(self) -> None:
        """Raises RoseError where decoder blocks cannot be left out of the files that will be written."""

    def renumber(self, kept: Sequence[int]) -> None:
        """The model has only these of its decoder blocks left, in this order."""

    def read_weight(self, layer: PrunableLayer) -> Tensor:
        """W of one layer, (out, in), dense; not to be changed. Works while another thread visits its decoder block."""
        return layer.weight

    def fingerprint(self) -> str:
        """Identifies these weights."""
        return digest(self.model.state_dict())
