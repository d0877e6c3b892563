"""Running a model one decoder block at a time, on inputs recorded once.

The model's own forward pass builds the arguments of every block (masks, position embeddings); they differ between
blocks where sliding and full attention alternate, so each block's are recorded, with the blocks themselves
replaced by the identity. Equal tensors are stored once.

That is right only where the model calls every block once, in turn, on what the one before it put out. A short pass
of the real model shows whether it does; a family that does not is refused rather than calibrated on wrong inputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from rose.errors import RoseError
from rose.model.network.layers import PrunableLayer
from rose.model.network.network import Network
from rose.model.network.precision import FLOAT32, Precision
from rose.model.network.residual import Writer, find_writers
from rose.model.network.stand_ins import hooked, replaced_forwards

BATCH_TOKENS = 4096  # enough rows to keep the matrix products efficient
TRACED_TOKENS = 8  # enough to see which layers write into the residual stream

Arguments = tuple[tuple, dict[str, Any]]  # positional and keyword arguments of a block, without the hidden states


def run_block(
    block: nn.Module, hidden: Tensor, arguments: Arguments, device: torch.device, precision: Precision = FLOAT32
) -> Tensor:
    """A block's output on one batch, on `device`, for hidden states and other arguments that may be elsewhere."""
    args, kwargs = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, arguments)
    with precision.computing(device):
        output = hidden_of(block(hidden.to(device), *args, **kwargs))
    return output.to(hidden.dtype)


def split_batches(tokens: Tensor) -> Sequence[Tensor]:
    """(samples, length) tokens as the batches that run at once."""
    return tokens.split(max(1, BATCH_TOKENS // tokens.shape[1]))


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written in place; inference tensors do not count it."""
    return 0 if tensor.is_inference() else tensor._version


def no_input(name: str) -> RoseError:
    """For a layer that the model did not call."""
    return RoseError(f"{name} received no input during calibration; leave it out of the layers to prune.")


def hidden_of(output: Any) -> Tensor:
    """The hidden states of what a block returns: a tensor, or a sequence that begins with it."""
    return output[0] if isinstance(output, (tuple, list)) else output


def _split(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Arguments]:
    """A block's arguments as the hidden states and the rest."""
    if args:
        return args[0], (args[1:], dict(kwargs))
    return kwargs["hidden_states"], ((), {name: value for name, value in kwargs.items() if name != "hidden_states"})


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))


def _tensors(arguments: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(arguments)[0] if isinstance(leaf, Tensor)]


@torch.no_grad()
def record_inputs(
    network: Network,
    tokens: Tensor,
    outputs: Sequence[Any],
    keep: Callable[[int, Tensor], None] = lambda _batch, _hidden: None,
    tick: Callable[[], None] = lambda: None,
) -> list[list[Arguments]]:
    """Embeds the tokens and records what every decoder block would be called with: [block][batch] -> arguments besides
    the hidden states.

    Args:
        outputs: from `check_blocks`.
        keep: takes (batch, hidden states) as they come, the inputs of the first decoder block.
        tick: called after each batch; may raise to stop.
    """
    recorder = _Recorder(len(network.blocks), keep)
    stand_ins = [recorder.stand_in(index, output) for index, output in enumerate(outputs)]
    with network.embedding() as body, replaced_forwards(network.blocks, stand_ins):
        for batch in split_batches(tokens):
            body(input_ids=batch.to(next(body.parameters()).device), use_cache=False)
            tick()
    return recorder.arguments


class WriterTrace:
    """What writes into the residual stream of a model's decoder blocks, as a pass over a few of the tokens shows it;
    `outputs` as for `record_inputs`."""

    def __init__(self, network: Network, tokens: Tensor, outputs: Sequence[Any]) -> None:
        self.network = network
        self.hidden: list[Tensor] = []  # of the only batch
        few = tokens[:1, :TRACED_TOKENS]
        self.arguments = record_inputs(network, few, outputs, lambda _batch, hidden: self.hidden.append(hidden))

    def of(self, index: int, block: nn.Module) -> dict[str, Writer]:
        """Writers of a decoder block that is present, by projection; see `find_writers`."""
        hidden = self.hidden[0].clone().to(self.network.device)
        run = partial(run_block, block, hidden, self.arguments[index][0], self.network.device)
        # What layers that are not pruned add to the stream belongs to it all the same.
        every = [layer for layer in self.network.layers if layer.block_index == index]
        return find_writers(block, every, run, hidden)


@torch.no_grad()
def check_blocks(network: Network, tokens: Tensor, layers: Sequence[PrunableLayer] = ()) -> list[Any]:
    """What each block returns in a real forward pass over a few of the tokens, for its stand-in to imitate.

    Raises RoseError where the blocks are not a plain chain, depend on each other through their other arguments, or
    change their input; or where one of `layers`, of which statistics are wanted, is not called.
    """
    few, calls = tokens[:1, :8], []  # of blocks: index, hidden states, other arguments, output
    versions: list[int] = []
    called: set[str] = set()

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        versions.append(version_of(_split(args, kwargs)[0]))

    def after(index: int) -> Callable[..., None]:
        def seen(_module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            hidden, others = _split(args, kwargs)
            if version_of(hidden) != versions[-1]:
                raise RoseError(
                    f"The decoder blocks of {network.family} change the hidden states that they are given, a "
                    "family that is not supported yet; choose another model."
                )
            calls.append((index, hidden, others, output))

        return seen

    hooks: list[Any] = [block.register_forward_pre_hook(before, with_kwargs=True) for block in network.blocks]
    hooks += [block.register_forward_hook(after(k), with_kwargs=True) for k, block in enumerate(network.blocks)]
    # Of experts that are modules of their own, known by their numbers, a few tokens reach only some.
    always = [x for x in layers if not x.is_expert and not any(part.isdigit() for part in x.projection.split("."))]
    hooks += [x.module.register_forward_pre_hook(lambda *_args, name=x.name: called.add(name)) for x in always]
    with hooked(hooks), network.embedding() as body, network.residence.whole():
        body(input_ids=few.to(next(body.parameters()).device), use_cache=False)
    if missing := [layer.name for layer in always if layer.name not in called]:
        raise no_input(missing[0])
    if not _is_chain(network, few, calls):
        raise RoseError(
            f"{network.family} does not simply pass hidden states from one decoder block to the next, "
            "a family that is not supported yet; choose another model."
        )
    return [output for *_, output in calls]


def _is_chain(network: Network, few: Tensor, calls: Sequence[tuple]) -> bool:
    """Whether blocks are a plain chain, by what their calls in a pass over a few tokens were."""
    # Blocks that read the keys and values of earlier ones do so through an object that all passes would share.
    if getattr(network.config, "num_kv_shared_layers", 0):
        return False
    if [index for index, *_ in calls] != list(range(len(network.blocks))):
        return False
    for before, after in pairwise(calls):
        if not _same(hidden_of(before[3]), after[1]) or _hands_on(before, after):
            return False
    recorded = record_inputs(network, few, [output for *_, output in calls])
    return all(
        len(_tensors(real)) == len(_tensors(ours[0])) and all(map(_same, _tensors(real), _tensors(ours[0])))
        for (_, _, real, _), ours in zip(calls, recorded, strict=True)
    )


def _hands_on(before: tuple, after: tuple) -> bool:
    """Whether a block is given what the one before it puts out besides hidden states, such as the tokens that sparse
    attention has picked: a stand-in would give it that of the few tokens."""
    more = [] if isinstance(before[3], Tensor) else _tensors(before[3][1:])
    return any(one is other for one in more for other in _tensors(after[2]))


class _Recorder:
    def __init__(self, count: int, keep: Callable[[int, Tensor], None]) -> None:
        self.keep = keep
        self.arguments: list[list[Arguments]] = [[] for _ in range(count)]
        self.known: list[Tensor] = []

    def stand_in(self, index: int, output: Any) -> Callable[..., Any]:
        """A forward function that records its arguments and returns the hidden states unchanged.

        `output` is something the block once returned: a tensor, or a sequence whose rest is returned again.
        """

        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, others = _split(args, kwargs)
            if index == 0:
                self.keep(len(self.arguments[0]), hidden)
            self.arguments[index].append(self._shared(others))
            return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

        return forward

    def _shared(self, arguments: Any) -> Any:
        leaves, spec = tree_flatten(arguments)
        return tree_unflatten([self._known(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    def _known(self, tensor: Tensor) -> Tensor:
        for other in self.known:
            if _same(other, tensor):
                return other
        self.known.append(tensor)
        return tensor


class Boundaries:
    """What decoder blocks put out in a forward pass over some batches, so that later passes can begin behind any.

    A later pass is the model's own, with the blocks before the first one that changed replaced by what they put out
    before: the same numbers, to the bit, for the price of the blocks that remain and the output head.

    Attributes:
        outputs: [block][batch] -> hidden states after it, of the wanted blocks.
    """

    def __init__(self, network: Network, wanted: Collection[int]) -> None:
        """`wanted`: the decoder blocks whose outputs are kept."""
        self.blocks = network.blocks
        self.outputs: dict[int, list[Tensor]] = {index: [] for index in wanted}
        self._others: dict[int, Any] = {}  # what a block returns besides hidden states, or None

    @contextlib.contextmanager
    def record(self) -> Iterator[None]:
        """While this lasts, a forward pass leaves the outputs of the wanted blocks."""

        def watch(index: int) -> Callable[..., None]:
            def seen(_module: nn.Module, _args: tuple, output: Any) -> None:
                self._others[index] = None if isinstance(output, Tensor) else output[1:]
                if index in self.outputs:
                    self.outputs[index].append(hidden_of(output))

            return seen

        with hooked([block.register_forward_hook(watch(index)) for index, block in enumerate(self.blocks)]):
            yield

    @contextlib.contextmanager
    def resume(self, index: int, watch: Callable[[int, Tensor], None]) -> Iterator[None]:
        """While this lasts, a forward pass over the same batches begins with decoder block `index`, from the kept
        output of the one before it; `watch` takes (batch, hidden states) after it."""
        calls = 0

        def stand_in(number: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden, _ = _split(args, kwargs)
                if number == index - 1:
                    hidden = self.outputs[number][calls].to(hidden.device)
                others = self._others[number]
                return hidden if others is None else (hidden, *others)

            return forward

        def seen(_module: nn.Module, _args: tuple, output: Any) -> None:
            nonlocal calls
            watch(calls, hidden_of(output))
            calls += 1

        stand_ins = [stand_in(number) for number in range(index)]
        with self.blocks[index].register_forward_hook(seen), replaced_forwards(self.blocks[:index], stand_ins):
            yield
