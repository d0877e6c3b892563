"""Running a model one decoder block at a time, on inputs recorded once.

The model's own forward pass builds the arguments of every block (masks, position embeddings), which differ if sliding
and full attention alternate. They are recorded with the blocks replaced by the identity; equal tensors are stored once.
So a model must call every block once, in turn, on the output of the block before. A short pass of the real model checks
this; other families are refused.
"""

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

BATCH_TOKENS = 4096  # enough rows for efficient matrix products
TRACED_TOKENS = 8  # enough to find the layers that write into the residual stream

Arguments = tuple[tuple, dict[str, Any]]  # positional and keyword arguments of a block, without the hidden states


def run_block(
    block: nn.Module, hidden: Tensor, arguments: Arguments, device: torch.device, precision: Precision = FLOAT32
) -> Tensor:
    """A block's output on one batch, on `device`; hidden states and arguments may be elsewhere."""
    args, kwargs = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, arguments)
    with precision.computing(device):
        output = hidden_of(block(hidden.to(device), *args, **kwargs))
    return output.to(hidden.dtype)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written in place; inference tensors do not count this."""
    return 0 if tensor.is_inference() else tensor._version


def no_input(name: str) -> RoseError:
    """The error for a layer that the model did not call."""
    return RoseError(f"{name} received no input during calibration; leave it out of the layers to prune.")


def hidden_of(output: Any) -> Tensor:
    """The hidden states in a block's output: a tensor, or a sequence that begins with it."""
    return output[0] if isinstance(output, (tuple, list)) else output


def _split(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Arguments]:
    if args:
        return args[0], (args[1:], dict(kwargs))
    return kwargs["hidden_states"], ((), {name: value for name, value in kwargs.items() if name != "hidden_states"})


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))


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
    """Embeds the tokens and returns every decoder block's arguments besides the hidden states, [block][batch].

    Args:
        outputs: from `check_blocks`.
        keep: takes (batch, hidden states), the inputs of the first decoder block.
        tick: called after each batch; may raise to stop.
    """
    arguments: list[list[Arguments]] = [[] for _ in outputs]
    unique: list[Tensor] = []

    def stored_once(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        equal = next((tensor for tensor in unique if _same(tensor, value)), None)
        if equal is None:
            unique.append(equal := value)
        return equal

    def stand_in(index: int, output: Any) -> Callable[..., Any]:
        """Records its arguments; returns the hidden states unchanged, in a sequence if `output` is one."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, rest = _split(args, kwargs)
            if index == 0:
                keep(len(arguments[0]), hidden)
            leaves, spec = tree_flatten(rest)
            arguments[index].append(tree_unflatten(list(map(stored_once, leaves)), spec))
            return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

        return forward

    stand_ins = [stand_in(index, output) for index, output in enumerate(outputs)]
    with network.embedding() as body, replaced_forwards(network.blocks, stand_ins):
        for batch in tokens.split(max(1, BATCH_TOKENS // tokens.shape[1])):
            body(input_ids=batch.to(next(body.parameters()).device), use_cache=False)
            tick()
    return arguments


def writer_trace(
    network: Network, tokens: Tensor, outputs: Sequence[Any]
) -> Callable[[int, nn.Module], dict[str, Writer]]:
    """A function that finds the layers of a decoder block in memory that write into the residual stream, by a pass over
    a few tokens; see `find_writers`. `outputs` from `check_blocks`."""
    states: list[Tensor] = []  # of the only batch
    arguments = record_inputs(
        network, tokens[:1, :TRACED_TOKENS], outputs, lambda _batch, hidden: states.append(hidden)
    )

    def writers(index: int, block: nn.Module) -> dict[str, Writer]:
        hidden = states[0].clone().to(network.device)
        run = partial(run_block, block, hidden, arguments[index][0], network.device)
        # Layers that are not pruned write into the stream, too.
        return find_writers(block, [layer for layer in network.layers if layer.block_index == index], run, hidden)

    return writers


@torch.no_grad()
def check_blocks(network: Network, tokens: Tensor, layers: Sequence[PrunableLayer] = ()) -> list[Any]:
    """Each block's output in a real forward pass over a few of the tokens, whose form its stand-in imitates.

    Raises RoseError for blocks that are not a plain chain, depend on each other through other arguments or change
    their input, and for `layers` that are not called.
    """
    few, calls = tokens[:1, :8], []  # of blocks: index, hidden states, other arguments, output
    versions: list[int] = []
    called: set[str] = set()

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        versions.append(version_of(_split(args, kwargs)[0]))

    def after(index: int, _module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        hidden, rest = _split(args, kwargs)
        if version_of(hidden) != versions[-1]:
            raise RoseError(
                f"The decoder blocks of {network.family} change their input hidden states in place, which is not "
                "supported; choose another model."
            )
        calls.append((index, hidden, rest, output))

    hooks: list[Any] = [block.register_forward_pre_hook(before, with_kwargs=True) for block in network.blocks]
    hooks += [
        block.register_forward_hook(partial(after, k), with_kwargs=True) for k, block in enumerate(network.blocks)
    ]
    # A few tokens reach only some experts. Experts that are modules have numbers in their names.
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
    # Blocks that read keys and values of earlier blocks read them from an object, which all passes would share.
    if getattr(network.config, "num_kv_shared_layers", 0):
        return False
    if [index for index, *_ in calls] != list(range(len(network.blocks))):
        return False
    for (*_, output), (_, hidden, rest, _) in pairwise(calls):
        # Other outputs may go into the next block, such as the tokens that sparse attention picked. A stand-in would
        # pass on the outputs of the few tokens.
        further = [] if isinstance(output, Tensor) else _tensors(output[1:])
        if not _same(hidden_of(output), hidden) or any(a is b for a in further for b in _tensors(rest)):
            return False
    recorded = record_inputs(network, few, [output for *_, output in calls])
    return all(
        len(_tensors(real)) == len(_tensors(ours[0])) and all(map(_same, _tensors(real), _tensors(ours[0])))
        for (_, _, real, _), ours in zip(calls, recorded, strict=True)
    )


class Boundaries:
    """Decoder blocks' outputs in a forward pass over some batches, so that later passes can begin behind any block.

    A later pass is the model's own, with the blocks before the first changed block replaced by their earlier outputs.
    It gives the same numbers to the bit, and runs only the remaining blocks and the output head.

    Attributes:
        outputs: [block][batch] -> hidden states after it, of the blocks in `indices`.
    """

    def __init__(self, network: Network, indices: Collection[int]) -> None:
        self.blocks = network.blocks
        self.outputs: dict[int, list[Tensor]] = {index: [] for index in indices}
        self._rest: dict[int, Any] = {}  # a block's outputs besides hidden states, or None

    @contextlib.contextmanager
    def record(self) -> Iterator[None]:
        """A context in which a forward pass stores the outputs."""

        def note(index: int, _module: nn.Module, _args: tuple, output: Any) -> None:
            self._rest[index] = None if isinstance(output, Tensor) else output[1:]
            if index in self.outputs:
                self.outputs[index].append(hidden_of(output))

        with hooked([block.register_forward_hook(partial(note, index)) for index, block in enumerate(self.blocks)]):
            yield

    @contextlib.contextmanager
    def resume(self, index: int, watch: Callable[[int, Tensor], None]) -> Iterator[None]:
        """A context in which a forward pass over the same batches begins with decoder block `index`, on the stored
        output of the block before. `watch` takes (batch, hidden states) after it."""
        calls = 0

        def stand_in(number: int, *args: Any, **kwargs: Any) -> Any:
            hidden, _ = _split(args, kwargs)
            if number == index - 1:
                hidden = self.outputs[number][calls].to(hidden.device)
            rest = self._rest[number]
            return hidden if rest is None else (hidden, *rest)

        def after(_module: nn.Module, _args: tuple, output: Any) -> None:
            nonlocal calls
            watch(calls, hidden_of(output))
            calls += 1

        stand_ins = [partial(stand_in, number) for number in range(index)]
        with self.blocks[index].register_forward_hook(after), replaced_forwards(self.blocks[:index], stand_ins):
            yield
