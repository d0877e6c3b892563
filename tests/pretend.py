"""A CUDA device that is not there: tensors that say they are on it, computed on the processor.

`with pretend_cuda():` lets code take its paths for a GPU on a machine without one. The CPU's kernels compute, and a
call that mixes devices fails as on a GPU. Kernels, memory and streams of a real GPU are not tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda", 0)
# Allowed between devices: copies, and indices on the CPU.
MIXING = {"to", "copy_", "__getitem__", "__setitem__", "__set__"}
AS_IT_IS = {"device", "_parse_to", "_has_compatible_shallow_copy_type"}  # read what to move, and how
TO_NUMPY = {"numpy", "__array__"}


class PretendTensor(Tensor):
    """On `CUDA` for all who ask; `held` is the tensor behind it, or of a view the part of its memory."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        made: PretendTensor = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=CUDA)
        made.held = held
        return made

    @classmethod
    def __torch_function__(cls, func: Any, _types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, _args: tuple = (), _kwargs: dict | None = None) -> Any:
        raise AssertionError(f"{func} was called on a pretended tensor behind PyTorch's Python functions")


def is_there(tensor: Tensor) -> bool:
    return "held" in tensor.__dict__


def compute(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """One PyTorch function, on the tensors behind those given."""
    name = func.__name__
    if name in AS_IT_IS:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    tensors = list(tensors_in((args, kwargs)))
    there = [x for x in tensors if is_there(x)]
    if name == "__get__" and there:
        answers = {"device": CUDA, "is_cuda": True, "is_cpu": False, "data": args[0]}
        if func.__self__.__name__ in answers:
            return answers[func.__self__.__name__]
    if name in TO_NUMPY and there:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
    if there and name not in MIXING and any(not is_there(x) and x.dim() for x in tensors):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found cuda:0 and cpu")
    device = target(name, args, kwargs)
    generator = kwargs.get("generator")
    if device == "cuda" and generator is not None:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    real_args, real_kwargs = each(on_cpu, (args, kwargs))
    result = func(*real_args, **real_kwargs)
    if (device == "cpu" and there) or (device == "cuda" and not there):
        result = result.clone() if any(result is x for x in tensors_in((real_args, real_kwargs))) else result  # moved
    if device == "cpu" or (device is None and not there):
        return result
    operands = {id(x.held): x for x in there}  # what works in place returns what it was given
    return each(lambda x: operands[id(x)] if id(x) in operands else wrap(x), result)


def target(name: str, args: tuple, kwargs: dict[str, Any]) -> str | None:
    """The kind of device that a call names, None where it names none."""
    if name in ("cpu", "cuda"):
        return name
    if name == "to":
        for argument in (*args[1:], kwargs.get("device"), kwargs.get("other")):
            if isinstance(argument, Tensor):
                return "cuda" if is_there(argument) else "cpu"
            if isinstance(argument, str | torch.device):
                return torch.device(argument).type
        return None
    named = kwargs.get("device")
    return None if named is None else torch.device(named).type


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(entry)


def each(do: Callable[[Any], Any], value: Any) -> Any:
    """`do` for everything in tuples, lists and dictionaries; PyTorch's own trees are ten times slower."""
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return type(value)([each(do, entry) for entry in value])  # type: ignore[call-arg]
    if isinstance(value, dict):
        return {key: each(do, entry) for key, entry in value.items()}
    return do(value)


def wrap(value: Any) -> Any:
    return PretendTensor(value) if isinstance(value, Tensor) else value


def on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor) and is_there(value):
        return value.__dict__["held"]
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value.startswith("cuda") else value


class Factories(TorchFunctionMode):
    """Calls without a pretended tensor among their arguments that name the device."""

    def __torch_function__(self, func: Any, _types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(func, args, kwargs or {})


@contextmanager
def pretend_cuda() -> Iterator[torch.device]:
    """While this lasts, PyTorch has one CUDA device, the one given."""
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # or else modules write into parameters' memory
    try:
        with (
            mock.patch("torch.cuda.is_available", return_value=True),
            mock.patch("torch.cuda.get_device_name", return_value="Pretended GPU"),
            Factories(),
        ):
            yield CUDA
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)
