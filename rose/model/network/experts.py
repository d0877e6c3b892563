"""Experts whose family keeps all of them in fused three-dimensional parameters, shown one matrix at a time.

Since its version 5, transformers holds the experts of a decoder block in two parameters: `gate_up_proj` (experts,
2 · width, hidden) and `down_proj` (experts, hidden, width), or their transposes, gate and up one after the other or
row by row in turn. What distinguishes the families is written on the module: `has_gate`, `has_bias`, `is_transposed`,
`is_concatenated`, `has_post_expert_norm`, `_apply_gate`. That is what transformers' own kernels go by, and so do we:
no family is known here by its name.

Each matrix gets an `ExpertLinear`, whose weight is a view into the parameter. Inside `experts_apart` the experts run
through these one after another, so that a forward hook on one sees the inputs of the tokens that were routed to it,
as a hook on any `nn.Linear` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rose.model.network.stand_ins import replaced_forwards

KNOWN = "rose_experts"  # attribute of a module with fused experts: its `ExpertLinear`s
LAYOUT = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm")


class ExpertLinear(nn.Module):
    """One matrix of one expert, by its name in the module with all experts, such as "3.gate_proj"; the parameter stays
    there."""

    def __init__(self, experts: nn.Module, parameter: str, number: int, name: str, rows: slice) -> None:
        super().__init__()
        self.name, self.number = f"{number}.{name}", number
        self._parameter, self._rows = parameter, rows
        self._experts = (experts,)  # in a tuple, or it would be registered as a part of this module

    @property
    def fused(self) -> nn.Parameter:
        """The parameter of all experts, looked up anew, because those of a streamed model come and go."""
        return getattr(self._experts[0], self._parameter)

    @property
    def weight(self) -> Tensor:
        """W as (out, in), a view."""
        return self.part_of(self.fused)

    def part_of(self, fused: Tensor) -> Tensor:
        """What belongs to this matrix, (out, in), in a tensor of the shape of `fused`."""
        experts: Any = self._experts[0]
        stored = fused[self.number]
        return (stored.T if experts.is_transposed else stored)[self._rows]

    @property
    def bias(self) -> Tensor | None:
        """(out,), a view."""
        experts: Any = self._experts[0]
        return getattr(experts, f"{self._parameter}_bias")[self.number][self._rows] if experts.has_bias else None

    def forward(self, inputs: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The linear map of inputs (tokens, in); `tokens`, their numbers in the batch, is there for hooks to see."""
        return nn.functional.linear(inputs, self.weight, self.bias)


def is_experts(module: nn.Module) -> bool:
    """Whether this module holds fused experts in a layout that can be told."""
    if not all(isinstance(getattr(module, name, None), bool) for name in LAYOUT):
        return False
    found = {name for name, parameter in module.named_parameters(recurse=False) if parameter.ndim == 3}
    return found == {_first(module), "down_proj"}


def _first(experts: Any) -> str:
    return "gate_up_proj" if experts.has_gate else "up_proj"


def expert_layers(experts: Any) -> list[ExpertLinear]:
    """The matrices of these experts, expert by expert, in the order in which they run; always the same objects."""
    if KNOWN not in experts.__dict__:
        first = getattr(experts, _first(experts))
        height = first.shape[2 if experts.is_transposed else 1]
        parts = {"up_proj": slice(None)}
        if experts.has_gate:
            half = height // 2
            gate, up = (
                (slice(half), slice(half, None)) if experts.is_concatenated else (slice(0, None, 2), slice(1, None, 2))
            )
            parts = {"gate_proj": gate, "up_proj": up}
        # Not by setattr: these are views of the module's parameters and no parts of it.
        experts.__dict__[KNOWN] = [
            ExpertLinear(experts, parameter, number, name, rows)
            for number in range(first.shape[0])
            for parameter, name, rows in (
                *((_first(experts), name, rows) for name, rows in parts.items()),
                ("down_proj", "down_proj", slice(None)),
            )
        ]
    return experts.__dict__[KNOWN]


def routers(block: nn.Module) -> set[nn.Module]:
    """Linear layers that say which experts a token goes to, or how much of a shared one it gets.

    Beside the experts, those with one output for each expert, or with a single one, alone or in a module of their own:
    a shared expert, of several layers, may have as many channels as there are experts.
    """
    found: set[nn.Module] = set()
    modules = dict(block.named_modules())
    for name, module in modules.items():
        if is_experts(module):
            number = len(module.down_proj)
            around = modules[name.rpartition(".")[0]]
            for beside in around.children():
                linear = [part for part in beside.modules() if isinstance(part, nn.Linear)]
                found |= set(linear) if len(linear) == 1 and linear[0].out_features in (1, number) else set()
    return found


@contextmanager
def experts_apart(block: nn.Module) -> Iterator[None]:
    """While this lasts, fused experts inside `block` run one by one, through their `ExpertLinear`s."""
    changed = [module for module in block.modules() if is_experts(module)]
    with replaced_forwards(changed, [partial(_run, module) for module in changed]):
        yield


def _run(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The sum of the experts' outputs for each token, weighted by the router, (tokens, hidden); `top_k_index` and
    `top_k_weights` are (tokens, experts of a token)."""
    output = torch.zeros_like(hidden_states)
    layers = expert_layers(experts)
    count = len(layers) // len(experts.down_proj)
    for number in range(len(experts.down_proj)):
        tokens, ranks = torch.where(top_k_index == number)
        if len(tokens):
            *first, down = layers[number * count : (number + 1) * count]
            inputs = hidden_states[tokens]  # one tensor, so that gate and up share statistics
            put_out = down(_activate(experts, [part(inputs, tokens) for part in first]), tokens)
            if experts.has_post_expert_norm:
                put_out = experts.post_expert_norm(put_out)
            weighted = put_out * top_k_weights[tokens, ranks, None]
            output.index_add_(0, tokens, weighted.to(output.dtype))
    return output


def _activate(experts: Any, parts: list[Tensor]) -> Tensor:
    """What the last matrix of an expert reads, from what the first ones put out."""
    if not experts.has_gate:
        return experts.act_fn(parts[0])
    return experts._apply_gate(torch.cat(parts, -1) if experts.is_concatenated else torch.stack(parts, -1).flatten(-2))
