"""The place of decoder blocks between uses: in memory, or, for larger models, in files."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.interrupt import is_stoppable, stop_point
from rose.model.network.layers import PrunableLayer
from rose.model.network.stand_ins import hooked
from rose.tensor_files import digest

ATTRIBUTE = "rose_residence"  # of a model whose blocks are not in memory


def pick_device() -> torch.device:
    """CUDA if available, otherwise the CPU. MPS lacks float64, which sums of errors need."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def evaluating(module: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """Context: a module is in evaluation mode, and on the device if given, with a `stop_point` after each decoder
    block and each expert module."""
    home, modes = next(module.parameters()).device, {part: part.training for part in module.modules()}
    parts = [part for parts in module.modules() if isinstance(parts, nn.ModuleList) for part in parts]
    try:
        module.eval()
        if device is not None:
            module.to(device)  # which a device without room for it does in part
        with hooked([part.register_forward_hook(lambda *_: stop_point()) for part in parts] if is_stoppable() else []):
            yield
    finally:
        for part, was_training in modes.items():  # who trains may keep some modules out of it
            part.training = was_training
        if device is not None:
            module.to(home)


@contextmanager
def gradients_only_of(module: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Context: only these parameters have gradients, initially none, whatever the caller's gradient mode. Raises
    RoseError for a model made in `torch.inference_mode`."""
    if any(parameter.is_inference() for parameter in module.parameters()):
        raise RoseError(
            "The model was made in torch.inference_mode, which allows no gradients; load it outside of that."
        )
    before = {parameter: (parameter.requires_grad, parameter.grad) for parameter in module.parameters()}
    for parameter in before:
        parameter.requires_grad_(False).grad = None
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter, (flag, gradient) in before.items():
            parameter.requires_grad_(flag).grad = gradient


def leave(_index: int) -> None:
    """Leaves a decoder block unchanged, for `Residence.overlay`."""


class Residence:
    """Decoder blocks in memory, moved to the device one at a time."""

    def __init__(self, model: nn.Module, blocks: nn.ModuleList) -> None:
        self.model, self.blocks = model, blocks

    @property
    def scratch(self) -> Path | None:
        """Folder for pruned weights; None where memory keeps them."""
        return None

    @contextmanager
    def visit(self, index: int, device: torch.device) -> Iterator[nn.Module]:
        """Context: one decoder block, whole, on the device and in evaluation mode."""
        with evaluating(self.blocks[index], device):
            yield self.blocks[index]

    def whole(self) -> AbstractContextManager[None]:
        """Context: the model's forward pass works, slowly where decoder blocks are in files."""
        return nullcontext()

    def embedding(self) -> AbstractContextManager[None]:
        """Context: everything but decoder blocks and head works."""
        return nullcontext()

    def overlay(self, revise: Callable[[int], None], finished: Collection[int], checkpoint: Path | None) -> None:
        """Lays a run's changes over the decoder blocks in files; blocks in memory have them already. `revise` changes
        the block of this index, just read; `finished` are the changed blocks; `checkpoint` keeps the changes, if given.
        Raises RoseError where another run has pruned this model, whose weights would be lost."""

    def withdraw(self) -> None:
        """Drops the overlay."""

    def make_permanent(self, revise: Callable[[int], None], identity: str) -> None:
        """Makes `revise` permanent: later runs begin with its result. Parameters already have their new shapes and
        names; `identity` identifies the change."""

    def check_renumbering(self) -> None:
        """Raises RoseError where decoder blocks cannot be left out of the files that will be written."""

    def renumber(self, numbers: Sequence[int]) -> None:
        """Only these decoder blocks remain, in this order."""

    def read_weight(self, layer: PrunableLayer) -> Tensor:
        """W of one layer, (out, in), dense and read-only; works while another thread visits its block."""
        return layer.weight

    def fingerprint(self) -> str:
        """Identifies these weights."""
        return digest(self.model.state_dict())
