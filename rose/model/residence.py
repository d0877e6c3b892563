"""Where decoder blocks are kept between uses: in memory, or, for a model larger than that, in its files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from rose.model.durable import digest
from rose.model.structure import PrunableLayer, decoder_blocks

ATTRIBUTE = "rose_residence"  # of a model whose blocks are not in memory


class Residence:
    """Decoder blocks in memory. One at a time moves to the device and back."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        _, self.blocks = decoder_blocks(model)

    @property
    def scratch(self) -> Path | None:
        """Folder that must keep what is pruned, because memory does not; None where memory does."""
        return None

    @contextmanager
    def visit(self, index: int, device: torch.device) -> Iterator[nn.Module]:
        """One decoder block, whole, on the device and in evaluation mode: calibration is without dropout."""
        block = self.blocks[index]
        home, was_training = next(block.parameters()).device, block.training
        block.to(device).eval()
        try:
            yield block
        finally:
            block.train(was_training).to(home)

    def whole(self) -> AbstractContextManager[None]:
        """While this lasts, the model's forward pass works, decoder blocks included; slowly where they are in files."""
        return nullcontext()

    def embedding(self) -> AbstractContextManager[None]:
        """While this lasts, everything but the decoder blocks and the head works."""
        return nullcontext()

    def overlay(
        self, pruned: Callable[[int], Mapping[str, Tensor]], finished: Collection[int], checkpoint: Path | None
    ) -> None:
        """Says where the pruned weights of a decoder block are found; memory has them already.

        Args:
            pruned: decoder block -> weights by layer name.
            finished: decoder blocks that have such; grows with the run.
            checkpoint: the folder that keeps them for good, if one does.

        Raises:
            RoseError: another run has pruned this model, whose weights would be lost.
        """

    def read_weight(self, layer: PrunableLayer) -> Tensor:
        """W of one layer, (out, in), dense; not to be changed. Works while another thread visits its decoder block."""
        return layer.weight

    def fingerprint(self) -> str:
        """Identifies these weights."""
        return digest(self.model.state_dict())


def residence_of(model: nn.Module) -> Residence:
    """The model's own residence, or memory."""
    return getattr(model, ATTRIBUTE, None) or Residence(model)


def is_streamed(model: nn.Module) -> bool:
    """Whether the model's decoder blocks stay in files; see `load_model`."""
    return hasattr(model, ATTRIBUTE)
