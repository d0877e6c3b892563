"""A language model looked up once: its decoder blocks and where they live, its prunable layers, the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.bits import Grid
from rose.layer.pattern import Pattern
from rose.model.network.layers import (
    PrunableLayer,
    check_prunable,
    decoder_blocks,
    matching,
    prunable_layers,
    text_config,
)
from rose.model.network.residence import ATTRIBUTE, Residence, evaluating, pick_device
from rose.wording import sentence

PADDING = 8  # a run of one token is padding where it is longer than this, and than this part of a window


class Network:
    """What a run needs to know of a model, made once and handed on. The model's structure must not change meanwhile.

    Attributes:
        model: a transformers causal language model.
        device: what passes run on.
        config: of the language model, see `text_config`.
        is_streamed: whether decoder blocks stay in files; see `rose.load_model`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.device = pick_device()
        self.config: Any = text_config(model)
        self.is_streamed = hasattr(model, ATTRIBUTE)

    @cached_property
    def _found(self) -> tuple[str, nn.ModuleList]:
        return decoder_blocks(self.model)

    @property
    def prefix(self) -> str:
        """The dotted name of the decoder blocks; see `decoder_blocks`."""
        return self._found[0]

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        return self._found[1]

    @cached_property
    def residence(self) -> Residence:
        """Where the decoder blocks are kept between uses."""
        return getattr(self.model, ATTRIBUTE, None) or Residence(self.model, self.blocks)

    @cached_property
    def layers(self) -> list[PrunableLayer]:
        """Every layer that can be pruned, see `prunable_layers`."""
        return prunable_layers(self.model)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The format that the decoder blocks' weights are stored in."""
        return next(self.blocks.parameters()).dtype

    @property
    def family(self) -> str:
        """The name of the model's class, for messages."""
        return type(self.model).__name__

    def select(self, layers: Sequence[str | PrunableLayer] | None) -> list[PrunableLayer]:
        """The layers of these names, see `matching`."""
        return matching(self.layers, layers)

    def to_prune(
        self, layers: Sequence[str] | None, pattern: Pattern, block_size: int, grid: Grid | None = None
    ) -> list[PrunableLayer]:
        """As `select`, with layers that cannot be pruned, or rounded to a grid, refused: see `check_prunable`."""
        selected = matching(self.layers, layers)
        check_prunable(selected, self.layers, pattern, block_size, grid)
        return selected

    def check_in_memory(self) -> None:
        """Raises RoseError for a model whose decoder blocks stay in files, where whole passes are needed."""
        if self.is_streamed:
            raise RoseError("This needs the whole model in memory; load it without streaming.")

    def check_weights(self) -> None:
        """Raises RoseError for weights that are neither in memory nor read block by block as they are needed, as those
        of a skeleton or of a model that accelerate has offloaded."""
        if not self.is_streamed and any(parameter.is_meta for parameter in self.model.parameters()):
            raise RoseError(
                f"Weights of this {self.family} are not in memory, as on the meta device, or where accelerate offloads "
                "them; load the whole model, or, where it is larger than memory, by rose.load_model with stream=True."
            )

    def check_tokens(self, tokens: Tensor, what: str = "", name: str = "tokens") -> None:
        """Raises RoseError unless tokens, called `name`, are a (samples, length) int64 tensor that the model can embed;
        where `what` is to be told of next tokens, of at least two a sample. Then work begins: see `check_weights`."""
        self.check_weights()
        called = sentence(name)
        if not isinstance(tokens, Tensor) or tokens.is_meta:
            raise RoseError(f"{called} must be a tensor with values; rose.load_tokens gives such.")
        if tokens.ndim != 2 or tokens.numel() == 0 or tokens.dtype not in (torch.int64, torch.int32):
            raise RoseError(
                f"{called} must be whole numbers of shape (samples, length), not {tokens.dtype} of "
                f"{tuple(tokens.shape)}; rose.load_tokens gives such."
            )
        vocabulary = self.config.vocab_size
        lowest, highest = (int(bound) for bound in tokens.aminmax())
        if lowest < 0 or highest >= vocabulary:
            wrong = lowest if lowest < 0 else highest
            raise RoseError(
                f"Token {wrong} is outside the model's vocabulary of {vocabulary}; use its tokenizer, and no padding. "
                "Tokens that were added to it need rows in the embedding: resize_token_embeddings of transformers."
            )
        self.check_length(tokens.shape[1])
        if what and tokens.shape[1] < 2:
            raise RoseError(f"{what} needs windows of at least 2 tokens; give longer ones.")

    @property
    def positions(self) -> int | None:
        """The longest sample, in tokens; None where the model knows no limit."""
        return getattr(self.config, "max_position_embeddings", None) or None

    def check_length(self, length: int) -> None:
        """Raises RoseError for samples that are longer than the model has positions; a skeleton knows as much."""
        if self.positions and length > self.positions:
            raise RoseError(
                f"Samples of {length} tokens are longer than the model's {self.positions} positions; ask for less."
            )

    def bos_in_front(self, tokens: Tensor) -> int | None:
        """The model's beginning-of-sequence token where every sample, (samples, length), begins with it, else None."""
        known = getattr(self.config, "bos_token_id", None)
        first = tokens[0, 0].item()
        return int(first) if first == known and bool((tokens[:, 0] == first).all()) else None

    @contextmanager
    def embedding(self) -> Iterator[nn.Module]:
        """The model without its output head, in evaluation mode and ready to embed tokens."""
        with evaluating(self.model), self.residence.embedding():
            yield getattr(self.model, "base_model", self.model)


def padding(tokens: Tensor) -> dict[str, int]:
    """For a report: how many windows, (samples, length), begin or end in a run of one and the same token, as padding
    does; nothing where most do not."""
    whole = tokens.shape[1]
    runs = [(row == row[:, :1]).cumprod(1).sum(1) for row in (tokens, tokens.flip(1))]
    padded = int((torch.maximum(*runs) > max(PADDING, whole / PADDING)).sum())
    return {"padded_windows": padded} if 2 * padded > len(tokens) else {}
