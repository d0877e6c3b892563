"""Experts in fused three-dimensional parameters, presented one matrix at a time.

transformers 5 holds the experts of a decoder block in `gate_up_proj` (experts, 2 · width, hidden) and `down_proj`
(experts, hidden, width), or their transposes, with gate and up concatenated or interleaved. The module's attributes
describe the layout: `has_gate`, `has_bias`, `is_transposed`, `is_concatenated`, `has_post_expert_norm`, `_apply_gate`.
No family is recognized by name.

Each matrix gets an `ExpertLinear`, whose weight is a view of the parameter. Inside `experts_apart` experts run through
these objects, so a forward hook sees the inputs of routed tokens.
"""

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
    """A view of one matrix of one expert, named within its module, such as "3.gate_proj"."""

    def __init__(self, experts: nn.Module, parameter: str, number: int, name: str, rows: slice) -> None:
        super().__init__()
        self.name, self.number = f"{number}.{name}", number
        self._parameter, self._rows = parameter, rows
        self._experts = (experts,)  # in a tuple, or it would be registered as a part of this module

    @property
    def fused(self) -> nn.Parameter:
        """The parameter of all experts, looked up each time because parameters of streamed models are replaced."""
        return getattr(self._experts[0], self._parameter)

    @property
    def weight(self) -> Tensor:
        """W as (out, in), a view."""
        return self.part_of(self.fused)

    def part_of(self, fused: Tensor) -> Tensor:
        """The share of this matrix, (out, in), in a tensor of the shape of `fused`."""
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
    """Whether this module holds fused experts in a supported layout."""
    if not all(isinstance(getattr(module, name, None), bool) for name in LAYOUT):
        return False
    fused = {name for name, parameter in module.named_parameters(recurse=False) if parameter.ndim == 3}
    return fused == {_first(module), "down_proj"}


def _first(experts: Any) -> str:
    return "gate_up_proj" if experts.has_gate else "up_proj"


def expert_layers(experts: Any) -> list[ExpertLinear]:
    """The matrices of these experts, expert by expert, in the order of running; always the same objects."""
    if KNOWN not in experts.__dict__:
        first = getattr(experts, _first(experts))
        height = first.shape[2 if experts.is_transposed else 1]
        parts = {"up_proj": slice(None)}
        if experts.has_gate:
            half = height // 2
            parts = {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}
            if experts.is_concatenated:
                parts = {"gate_proj": slice(half), "up_proj": slice(half, None)}
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
    """Linear layers that choose experts for a token, or weigh a shared expert. They lie beside the experts, alone in
    their module, with one output per expert or a single output."""
    layers: set[nn.Module] = set()
    modules = dict(block.named_modules())
    for name, module in modules.items():
        if is_experts(module):
            number = len(module.down_proj)
            around = modules[name.rpartition(".")[0]]
            for beside in around.children():
                linear = [part for part in beside.modules() if isinstance(part, nn.Linear)]
                layers |= set(linear) if len(linear) == 1 and linear[0].out_features in (1, number) else set()
    return layers


@contextmanager
def experts_apart(block: nn.Module) -> Iterator[None]:
    """Context: fused experts inside `block` run separately, through their `ExpertLinear`s."""
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
            parts = [part(inputs, tokens) for part in first]
            if not experts.has_gate:
                read = experts.act_fn(parts[0])
            else:
                joined = torch.cat(parts, -1) if experts.is_concatenated else torch.stack(parts, -1).flatten(-2)
                read = experts._apply_gate(joined)
            put_out = down(read, tokens)
            if experts.has_post_expert_norm:
                put_out = experts.post_expert_norm(put_out)
            weighted = put_out * top_k_weights[tokens, ranks, None]
            output.index_add_(0, tokens, weighted.to(output.dtype))
    return output
