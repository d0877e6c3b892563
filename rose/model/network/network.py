"""A language model's decoder blocks, where they are kept, its prunable layers and device, each looked up once.

Norms identify the model of a result. Pruning and slimming leave norms of the input embeddings unchanged, while norms of
decoder blocks also distinguish pruned copies.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rose.errors import RoseError
from rose.layer.pattern import Grid, Pattern
from rose.model.network.layers import (
    PrunableLayer,
    check_prunable,
    decoder_blocks,
    head_width,
    matching,
    prunable_layers,
    text_config,
)
from rose.model.network.precision import Precision
from rose.model.network.residence import ATTRIBUTE, Residence, evaluating, pick_device
from rose.verdicts import is_same_model
from rose.wording import sentence

PARTS = 8
NORMS, WEIGHTS = "embedding_norms", "weight_norms"  # as files call them
PART = "is_language_part"  # of a model that is only the language model of its files, and in a report
PADDING = 8  # a run of one token is padding where it is longer than this, and than this part of a window


class Network:
    """The structure of a model for a run, during which it must not change; `device`: of forward passes;
    `is_streamed`: whether decoder blocks stay in files."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.device, self.family = pick_device(), type(model).__name__
        self.config: Any = text_config(model)
        self.is_streamed = hasattr(model, ATTRIBUTE)

    @cached_property
    def prefix(self) -> str:
        """The dotted name of the decoder blocks; see `decoder_blocks`."""
        return decoder_blocks(self.model)[0]

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        return decoder_blocks(self.model)[1]

    @cached_property
    def residence(self) -> Residence:
        """Where the decoder blocks are kept between uses."""
        return getattr(self.model, ATTRIBUTE, None) or Residence(self.model, self.blocks)

    @cached_property
    def layers(self) -> list[PrunableLayer]:
        """Every layer that can be pruned, see `prunable_layers`."""
        return prunable_layers(self.model)

    @property
    def head_width(self) -> int | None:
        """Columns of an attention head; None where the configuration does not say."""
        return head_width(self.config)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The format that the decoder blocks' weights are stored in."""
        return next(self.blocks.parameters()).dtype

    def precision(self, compute: str = "float32") -> Precision:
        """The number formats of a run on this network; raises RoseError for impossible ones."""
        return Precision.of(compute, self.dtype, self.device)

    def environment(self, compute: str = "float32") -> str:
        """The environment of such a run in words."""
        return self.precision(compute).environment(self.device)

    def select(self, layers: Sequence[str | PrunableLayer] | None) -> list[PrunableLayer]:
        """The layers of these names, see `matching`."""
        return matching(self.layers, layers)

    def to_prune(
        self, layers: Sequence[str] | None, pattern: Pattern, block_size: int, grid: Grid | None = None
    ) -> list[PrunableLayer]:
        """As `select`, and refuses layers that cannot be pruned, or rounded to a grid: see `check_prunable`."""
        selected = matching(self.layers, layers)
        check_prunable(selected, self.layers, pattern, block_size, grid)
        return selected

    def check_in_memory(self) -> None:
        """Raises RoseError for a streamed model, where whole passes are needed."""
        if self.is_streamed:
            raise RoseError("This needs the whole model in memory; load it without streaming.")

    def check_weights(self) -> None:
        """Raises RoseError for weights outside memory, except in streamed models: skeletons, or offloaded by
        accelerate."""
        if not self.is_streamed and any(parameter.is_meta for parameter in self.model.parameters()):
            raise RoseError(
                f"Weights of this {self.family} are not in memory, as on the meta device, or where accelerate offloads "
                "them; load the whole model, or, where it is larger than memory, by rose.load_model with stream=True."
            )

    def check_tokens(self, tokens: Tensor, measure: str = "", name: str = "tokens") -> None:
        """Raises RoseError unless tokens, called `name`, are a (samples, length) int64 tensor that the model can embed.
        A sample needs two tokens if `measure` needs next tokens. Also checks weights, see `check_weights`."""
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
        if measure and tokens.shape[1] < 2:
            raise RoseError(f"{measure} needs windows of at least 2 tokens; give longer ones.")

    @property
    def positions(self) -> int | None:
        """The longest sample, in tokens; None where the model knows no limit."""
        return getattr(self.config, "max_position_embeddings", None) or None

    def check_length(self, length: int) -> None:
        """Raises RoseError for samples longer than the model's positions."""
        if self.positions and length > self.positions:
            raise RoseError(
                f"Samples of {length} tokens are longer than the model's {self.positions} positions; ask for less."
            )

    def bos_in_front(self, tokens: Tensor) -> int | None:
        """The model's beginning-of-sequence token if every sample, (samples, length), begins with it; otherwise
        None."""
        bos = getattr(self.config, "bos_token_id", None)
        first = tokens[0, 0].item()
        return int(first) if first == bos and bool((tokens[:, 0] == first).all()) else None

    @contextmanager
    def embedding(self) -> Iterator[nn.Module]:
        """Context: the model without its head, in evaluation mode and ready to embed tokens."""
        with evaluating(self.model), self.residence.embedding():
            yield getattr(self.model, "base_model", self.model)

    def embedding_norms(self) -> list[float]:
        """Norms of eight parts of the input embeddings, for reports."""
        body: Any = self.model
        self.check_weights()
        with self.residence.embedding():
            parts = body.get_input_embeddings().weight.detach().chunk(PARTS)
            return [float(f"{float(part.float().norm()):.6g}") for part in parts]

    def weight_norms(self) -> list[float]:
        """Norms of the decoder blocks' weights, in up to eight runs of blocks; every weight is read once."""
        squares = []
        for index in range(len(self.blocks)):
            with self.residence.visit(index, torch.device("cpu")) as block:
                norms = [torch.linalg.vector_norm(each.detach(), dtype=torch.float32) for each in block.parameters()]
                squares.append(torch.stack(norms).double().square().sum())
        return [float(f"{float(part.sum().sqrt()):.6g}") for part in torch.stack(squares).chunk(PARTS)]


def padding(tokens: Tensor) -> dict[str, int]:
    """For a report: how many windows, (samples, length), begin or end in a run of one token, like padding; nothing
    if at most half do."""
    whole = tokens.shape[1]
    runs = [(row == row[:, :1]).cumprod(1).sum(1) for row in (tokens, tokens.flip(1))]
    padded = int((torch.maximum(*runs) > max(PADDING, whole / PADDING)).sum())
    return {"padded_windows": padded} if 2 * padded > len(tokens) else {}


def read_norms(path: Path, name: str = NORMS) -> list[float]:
    """`Network.embedding_norms`, or other norms, from a JSON report; none where it lacks them."""
    try:
        return [float(norm) for norm in json.loads(path.read_text())[name]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def check_same_model(network: Network, norms: Sequence[float], sentence: str) -> None:
    """Raises RoseError unless the model has these `embedding_norms`; `sentence` is the beginning of the error."""
    if not is_same_model(network.embedding_norms(), norms):
        raise RoseError(f"{sentence}: their input embeddings differ; give the model that it was made from.")
