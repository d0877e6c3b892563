"""Running a model one decoder block at a time, on inputs recorded once.

The model's own forward pass builds the arguments of every block (masks, position embeddings); they differ between
blocks where sliding and full attention alternate, so each block's are recorded, with the blocks themselves
replaced by the identity. Equal tensors are stored once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from rose.errors import RoseError
from rose.model.structure import decoder_blocks

BATCH_TOKENS = 4096  # enough rows to keep the matrix products efficient


def pick_device() -> torch.device:
    """CUDA where there is one, then MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@dataclass
class BlockInputs:
    """Inputs of the decoder block that is next to run.

    Attributes:
        hidden: one (batch, length, hidden) tensor per batch of samples.
        arguments: [block][batch] -> (positional, keyword) arguments besides the hidden states.
    """

    hidden: list[Tensor]
    arguments: list[list[tuple[tuple, dict[str, Any]]]]

    def run(self, block: nn.Module, index: int, batch: int, device: torch.device) -> Tensor:
        """One block's output on one batch, on `device`."""
        args, kwargs = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, self.arguments[index][batch])
        output = block(self.hidden[batch].to(device), *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def record_inputs(model: nn.Module, tokens: Tensor, tick: Callable[[], None] = lambda: None) -> BlockInputs:
    """Embeds the tokens and records what every decoder block would be called with.

    Args:
        model: a transformers causal language model.
        tokens: (samples, length) int64.
        tick: called after each batch; may raise to stop.

    Raises:
        RoseError: tokens outside the vocabulary, or of another shape.
    """
    check_tokens(model, tokens)
    _, blocks = decoder_blocks(model)
    body = getattr(model, "base_model", model)  # without the output head
    was_training = model.training
    model.eval()
    try:
        returns_tuple = _returns_tuple(body, blocks, tokens)
        recorder = _Recorder(len(blocks))
        with _replaced(blocks, [recorder.stand_in(i, returns_tuple) for i in range(len(blocks))]):
            for batch in tokens.split(max(1, BATCH_TOKENS // tokens.shape[1])):
                body(input_ids=batch.to(next(model.parameters()).device), use_cache=False)
                tick()
    finally:
        model.train(was_training)
    return BlockInputs(recorder.hidden, recorder.arguments)


def check_tokens(model: nn.Module, tokens: Tensor) -> None:
    """Raises RoseError unless tokens are a (samples, length) int64 tensor that the model can embed."""
    if tokens.ndim != 2 or tokens.numel() == 0 or tokens.is_floating_point():
        raise RoseError(f"Tokens must be a (samples, length) integer tensor, but the shape is {tuple(tokens.shape)}.")
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = text.vocab_size
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
        raise RoseError(
            f"Token {int(tokens.max())} is outside the model's vocabulary of {vocabulary}; use the model's tokenizer."
        )
    limit = getattr(text, "max_position_embeddings", None) or 0
    if limit and tokens.shape[1] > limit:
        raise RoseError(
            f"Samples of {tokens.shape[1]} tokens are longer than the model's {limit} positions; ask for less."
        )


def _returns_tuple(body: nn.Module, blocks: nn.ModuleList, tokens: Tensor) -> bool:
    """Whether the blocks of this family return a tuple, seen on a few tokens of a real forward pass."""
    seen: list[bool] = []
    hook = blocks[0].register_forward_hook(lambda _m, _a, output: seen.append(isinstance(output, tuple)))
    try:
        body(input_ids=tokens[:1, :8].to(next(body.parameters()).device), use_cache=False)
    finally:
        hook.remove()
    return seen[0]


class _Recorder:
    def __init__(self, count: int) -> None:
        self.hidden: list[Tensor] = []
        self.arguments: list[list[tuple[tuple, dict[str, Any]]]] = [[] for _ in range(count)]
        self.known: list[Tensor] = []

    def stand_in(self, index: int, returns_tuple: bool) -> Callable[..., Any]:
        """A forward function that records its arguments and returns the hidden states unchanged."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            kwargs = dict(kwargs)
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if index == 0:
                self.hidden.append(hidden)
            self.arguments[index].append(self._shared((args[1:], kwargs)))
            return (hidden,) if returns_tuple else hidden

        return forward

    def _shared(self, arguments: Any) -> Any:
        leaves, spec = tree_flatten(arguments)
        return tree_unflatten([self._known(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    def _known(self, tensor: Tensor) -> Tensor:
        for other in self.known:
            if other is tensor or (
                other.shape == tensor.shape and other.dtype == tensor.dtype and torch.equal(other, tensor)
            ):
                return other
        self.known.append(tensor)
        return tensor


@contextlib.contextmanager
def _replaced(blocks: nn.ModuleList, forwards: list[Callable[..., Any]]) -> Iterator[None]:
    """Replaces the blocks' forward functions for a while."""
    for block, forward in zip(blocks, forwards, strict=True):
        block.forward = forward
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own shows again
