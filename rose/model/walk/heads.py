"""The heads of a model whose basis can be changed, found by running few tokens; see `rose.model.network.heads`."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from rose.errors import RoseError
from rose.model.network.heads import ValueHeads, find_value_heads
from rose.model.network.layers import head_width
from rose.model.network.network import Network
from rose.model.walk.forward import check_blocks, record_inputs, run_block

PROBED = 8  # tokens


@torch.no_grad()
def value_heads(network: Network, layers: Sequence[str] | None = None) -> list[ValueHeads]:
    """The heads of all output projections among `layers` that can be rotated; the model is not changed.

    Raises RoseError without such layers.
    """
    selected, width = {layer.name for layer in network.select(layers)}, head_width(network.config)
    few = torch.arange(PROBED)[None] % network.config.vocab_size
    outputs = check_blocks(network, few)
    hidden: list[Tensor] = []
    along = record_inputs(network, few, outputs, lambda _batch, states: hidden.append(states))
    alone = record_inputs(network, few.T, outputs)
    # Any hidden states will do except zeros, which padding tokens have.
    states = torch.randn(hidden[0].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    states = states.to(hidden[0].dtype)
    every: list[ValueHeads] = []
    for index, block in enumerate(network.blocks):
        inside = [layer for layer in network.layers if layer.block_index == index]
        if width is None or selected.isdisjoint(layer.name for layer in inside):
            continue
        with network.residence.visit(index, network.device):
            run = partial(run_block, device=network.device)
            run_alone = partial(run, hidden=states.transpose(0, 1), arguments=alone[index][0])
            run_along = partial(run, hidden=states, arguments=along[index][0])
            every += find_value_heads(block, inside, width, run_alone, run_along)
    every = [heads for heads in every if heads.output.name in selected]
    if not every:
        raise RoseError(
            f"In these layers of {network.family} no output projection reads values unchanged, so no heads can be "
            "rotated: a norm, a gate or another operation lies between; choose another model or other layers."
        )
    return every
