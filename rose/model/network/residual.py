"""Layers that write into the residual stream, found by tracing one decoder block.

A corrected target needs to know which layers' outputs a block adds to the stream. It also needs the stream just
before: the block's input, or a norm of it, and earlier outputs. The block runs once on a few tokens while every
addition is traced (`TorchDispatchMode`). Values are identified by their storage, so views count as the output.
Attention and MLP may be sequential or parallel, sums may have any order, and a constant may multiply the output before
the addition. Norms of the stream may become the stream (OPT-350M), or lie between a layer and the stream (Gemma). Any
other module there counts as a norm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rose.model.network.experts import is_experts
from rose.model.network.layers import PrunableLayer
from rose.model.network.stand_ins import hooked

add, mul, aten = torch.ops.aten.add, torch.ops.aten.mul, torch.ops.aten
ADDITIONS = (add.Tensor, aten.add_.Tensor)
PRODUCTS = (mul.Tensor, mul.Scalar, aten.mul_.Tensor, aten.mul_.Scalar)
COPIES = (aten.clone.default, aten._to_copy.default)


@dataclass(frozen=True)
class Term:
    """An output that is added to the stream, `scale` times; `module` is a name inside the decoder block."""

    module: str
    scale: float = 1.0


@dataclass(frozen=True)
class Writer:
    """How one layer writes into the residual stream: `base` is the beginning of the stream, "" for the block's input,
    or the module (a norm) with that output; `before` are the terms added before the layer runs; `term` is the layer's
    output, or the output of the norm behind it."""

    base: str
    before: tuple[Term, ...]
    term: Term


@dataclass(frozen=True)
class _Value:
    """A tensor of the stream (with `base`), or on its way into it."""

    base: str | None
    terms: tuple[Term, ...] = ()


def find_writers(
    block: nn.Module, layers: Sequence[PrunableLayer], run: Callable[[], Any], hidden: Tensor
) -> dict[str, Writer]:
    """The layers of a decoder block that write into the residual stream, by projection; empty where none is found.
    `layers` must be all linear layers; `run` calls the block on `hidden`, (samples, length, hidden)."""
    trace = _Trace(hidden)
    names = {layer.projection for layer in layers}
    # The output of routed experts is a term of the stream that no single layer writes; it is not a stream.
    inside = {
        name: module
        for name, module in block.named_modules()
        if name and not any(is_experts(part) for part in module.modules())
    }
    hooks = [module.register_forward_hook(trace.after(name, name in names)) for name, module in inside.items()]
    with hooked(hooks), torch.no_grad(), trace:
        run()
    return {name: writer for name, writer in trace.writers.items() if name in names}


class _Trace(TorchDispatchMode):
    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.shape = hidden.shape
        self.alive: list[Tensor] = []  # so that no storage is used twice
        self.values: dict[int, _Value] = {}
        self.order: list[str] = []  # of the layers as they run
        self.layer_of: dict[str, str] = {}  # module whose output is a term -> layer
        self.writers: dict[str, Writer] = {}
        self._note(hidden, _Value(""))

    def after(self, name: str, is_layer: bool) -> Callable[..., None]:
        """A forward hook for one module of the block."""

        def seen(_module: nn.Module, args: tuple, output: Any) -> None:
            if not isinstance(output, Tensor) or output.numel() != self.shape.numel():
                return
            if is_layer:
                self.order.append(name)
                self.layer_of[name] = name
                self._note(output, _Value(None, (Term(name),)))
            elif args and isinstance(args[0], Tensor) and self._value(output) is None:
                self._through(name, self._value(args[0]), output)

        return seen

    def _through(self, name: str, read: _Value | None, output: Tensor) -> None:
        """Notes the output of a module, such as a norm, that has read the stream or a layer's output."""
        if read is None:
            return
        if read.base is not None:
            self._note(output, _Value(name))
        elif len(read.terms) == 1 and read.terms[0].module in self.layer_of:
            self.layer_of[name] = self.layer_of[read.terms[0].module]
            self._note(output, _Value(None, (Term(name),)))

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if not isinstance(output, Tensor):
            return output
        if function in ADDITIONS:
            self._add(args, kwargs or {}, output)
        elif function in PRODUCTS and not (isinstance(args[1], Tensor) and args[1].numel() > 1):
            self._scale(args, output)
        elif function in COPIES and (value := self._value(args[0])) is not None:
            self._note(output, value)
        return output

    def _add(self, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        values = [self._value(arg) for arg in args[:2]]
        if values[0] is None or values[1] is None or kwargs.get("alpha", 1) != 1:
            return
        value, added = (values[1], values[0]) if values[1].base is not None else (values[0], values[1])
        if added.base is not None:
            return  # two values of the stream
        terms = value.terms + added.terms
        self._note(output, replace(value, terms=terms))
        if value.base is None:
            return
        # A layer that ran later may be added first, so an earlier layer may turn out to have more terms before it.
        ran = {term: self.order.index(self.layer_of[term.module]) for term in terms}
        for term in terms:
            earlier = tuple(other for other in terms if ran[other] < ran[term])
            self.writers[self.layer_of[term.module]] = Writer(value.base, earlier, term)

    def _scale(self, args: tuple, output: Tensor) -> None:
        value = self._value(args[0])
        if value is not None and value.base is None:
            scale = float(args[1])
            self._note(output, replace(value, terms=tuple(replace(t, scale=t.scale * scale) for t in value.terms)))

    def _value(self, tensor: Any) -> _Value | None:
        if not isinstance(tensor, Tensor) or tensor.numel() != self.shape.numel():
            return None
        return self.values.get(tensor.untyped_storage().data_ptr())

    def _note(self, tensor: Tensor, value: _Value) -> None:
        self.alive.append(tensor)
        self.values[tensor.untyped_storage().data_ptr()] = value
