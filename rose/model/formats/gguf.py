"""GGUF files, read one tensor at a time: loading needs little more memory than the weights.

transformers parses the metadata several times and makes several float32 copies of a tensor. Here metadata are parsed
once, and each tensor is converted and released before the next. Names and configurations come from transformers.
"""

import contextlib
import logging
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf
import numpy as np
import torch
from gguf.gguf_reader import ReaderTensor
from torch import Tensor, nn
from transformers import CONFIG_MAPPING
from transformers import modeling_gguf_pytorch_utils as reading

from rose.errors import RoseError
from rose.interrupt import stop_point
from rose.wording import whole

Parsed = dict[str, dict[str, Any]]  # "config", "tokenizer", ..., as transformers has them; "tensors" where asked for
logger = logging.getLogger(__name__)
PIECE = 2**20  # numbers dequantized at once
# Limits of a header, whose entries take a hundred times their bytes once read. ggml limits the length of a name.
MOST_FIELDS, MOST_ITEMS, MOST_TENSORS, MOST_ALIGNMENT, LONGEST_NAME = 2**16, 2**22, 2**17, 2**16, 64

# Options of configurations that a file says by its tensors alone, with the layers that then have biases.
BIASES = {
    "attention_bias": {"attn_q", "attn_k", "attn_v", "attn_output"},
    "mlp_bias": {"ffn_gate", "ffn_up", "ffn_down"},
}
SCALES = "rope_freqs.weight"
DERIVED = (SCALES, ".attn_rot_embd.weight")  # ends of names of tensors that the configuration determines


@contextlib.contextmanager
def frugal_reading() -> Iterator[None]:
    """Lets transformers read GGUF files through this module. Not for several threads at a time."""
    file = _File()
    with (
        patch.object(gguf, "GGUFReader", file.reader),
        patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),  # asked for once a module
        patch.object(reading, "load_gguf_checkpoint", file.load),
    ):
        yield


def read_tensors(
    tensors: Sequence[ReaderTensor],
    architecture: str,
    config: dict[str, Any],
    model: nn.Module,
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """All weights of a GGUF file that a model has, by name in the model; the largest are read first, to save memory.
    `architecture`: as in the file, such as "qwen2moe"; `config`: in transformers' terms; of `model` only names and
    sizes are read. Raises RoseError for a tensor that the model has no place for."""
    processor = reading.TENSOR_PROCESSORS.get(architecture, reading.TensorProcessor)(config=config)
    names = reading.get_gguf_hf_weights_map(model, processor)
    _check_tensors(tensors, names, model)
    awaited = Counter(names.values())  # gate and up of experts: two tensors in a file, a single parameter in a model
    weights: dict[str, Tensor] = {}
    for tensor in sorted(tensors, key=lambda tensor: -tensor.n_elements):
        stop_point()
        result = processor.process(
            weights=dequantized(tensor),
            name=tensor.name,
            tensor_key_mapping=names,
            parsed_parameters={"tensors": weights},  # where processors put what they merge or split, in float32
        )
        if result.name in names:
            # Float32 values of the file are a view of its pages: the tensor needs its own memory.
            writable = result.weights if result.weights.flags.writeable else np.copy(result.weights)
            weights[names[result.name]] = torch.from_numpy(writable).to(dtype or torch.float32)
            del writable  # before the next tensor is dequantized
        elif (merged := names.get(tensor.name.removesuffix(".weight"))) in weights:
            awaited[merged] -= 1
            if awaited[merged] == 0:
                weights[merged] = weights[merged].to(dtype)
        del result
    return weights


@dataclass(frozen=True)
class Place:
    """The place of a GGUF file's tensor in a model, and how it is converted."""

    name: str  # in the model
    shape: tuple[int, ...]
    order: np.ndarray | None  # the file's rows in the model's order; None where more than the order differs
    convert: Callable[..., np.ndarray] | None = None  # gives the whole tensor


@patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))  # asked for once a module
def places_in(model: Any, tensors: Sequence[ReaderTensor], architecture: str) -> dict[str, Place]:
    """The places of tensors in a model, by name in the file, by the rules of `read_tensors`. Tensors that the model
    lacks, merges with others, or has in another size have no place."""
    processor = reading.TENSOR_PROCESSORS.get(architecture, reading.TensorProcessor)(config=model.config.to_dict())
    names, weights, places = reading.get_gguf_hf_weights_map(model, processor), model.state_dict(), {}
    for tensor in tensors:
        name = names.get(tensor.name, "")
        if name in weights and weights[name].numel() == tensor.n_elements:
            convert = partial(_in_model, processor, tensor)
            rows = np.arange(len(tensor.data), dtype=np.float32).reshape(-1, *[1] * (len(tensor.shape) - 1))
            order = rows[:0]
            with contextlib.suppress(ValueError), np.errstate(all="ignore"):  # some need rows of more than one number
                order = convert(rows)
            is_order = len(tensor.shape) > 1 and np.array_equal(np.sort(order, 0), rows)
            numbers = order.reshape(-1).astype(np.int64) if is_order else None
            places[tensor.name] = Place(name, tuple(weights[name].shape), numbers, convert)
    return places


def _in_model(processor: Any, tensor: ReaderTensor, numbers: np.ndarray | None = None) -> np.ndarray:
    """Numbers in place of a tensor's, or its own, as a model has them."""
    values = dequantized(tensor) if numbers is None else numbers
    return processor.process(weights=values, name=tensor.name, parsed_parameters={"tensors": {}}).weights


def _check_tensors(tensors: Sequence[ReaderTensor], names: dict[str, str], model: nn.Module) -> None:
    """Raises RoseError for a tensor that would be ignored, because the model would then compute something else, and
    where tensors and metadata disagree on the number of weights."""
    names_in_file = [tensor.name for tensor in tensors]
    # Of LLaMA 3.1 and later, for long contexts; transformers does not read it.
    if any(name.endswith(SCALES) for name in names_in_file):
        logger.warning(
            "The GGUF file scales positions (%s), which is ignored, so outputs differ; get it as safetensors.",
            SCALES,
        )
    unplaced = [name for name in names_in_file if not {name, name.removesuffix(".weight")} & names.keys()]
    if strange := [name for name in unplaced if not name.endswith(DERIVED)]:
        raise RoseError(
            f"The GGUF file holds {len(strange)} tensors that {type(model).__name__} has no place for, such as "
            f"{strange[0]}; without them it would compute something else. Get the model as safetensors."
        )
    sizes = Counter[str]()
    for tensor in tensors:
        sizes[names.get(tensor.name) or names.get(tensor.name.removesuffix(".weight"), "")] += tensor.n_elements
    for name, weight in model.named_parameters():
        if name in sizes and sizes[name] != weight.numel():
            raise RoseError(
                f"{name} has {whole(sizes[name])} weights in the GGUF file, but {whole(weight.numel())} by its "
                "metadata, which belong to another model, or were changed; get the file again."
            )


def dequantized(tensor: ReaderTensor, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
    """Float32 values of some rows in PyTorch's order of axes; in pieces, as the library needs twice the memory."""
    data, kind = tensor.data[rows], tensor.tensor_type
    step = len(tensor.data) * PIECE // tensor.n_elements
    if data.ndim == 1 or step >= len(data):
        return gguf.dequantize(data, kind)
    values = np.empty((len(data), *tensor.shape[::-1][1:]), np.float32)
    for start in range(0, len(data), max(step, 1)):
        stop_point()
        piece = slice(start, start + max(step, 1))
        values[piece] = gguf.dequantize(data[piece], kind)
    return values


class Reader(gguf.GGUFReader):
    """The library's reader with checks: counts must fit the file, and tensors must lie one behind the other as ggml
    requires; raises RoseError for a damaged header. Fields are views of a plain array, and vocabularies are read in one
    go, which takes a tenth of the time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.items = 0  # of all fields that are lists
        super().__init__(path)

    @property  # type: ignore[override]
    def data(self) -> np.ndarray:
        return self._data

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._data = mapped.view(np.ndarray)

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
        start, count = int(offset), int(count)
        if start + count * np.dtype(dtype).itemsize > len(self._data):
            raise self._damaged("its header goes on beyond its end")
        return super()._get(start, dtype, count, override_order)

    def _build_fields(self, offs: int, count: int) -> int:
        return super()._build_fields(offs, self._bounded("fields", count, MOST_FIELDS))

    def _build_tensor_info(self, offs: int, count: int) -> tuple[int, list[Any]]:
        return super()._build_tensor_info(offs, self._bounded("tensors", count, MOST_TENSORS))

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        kinds, start = gguf.GGUFValueType, orig_offs + 12  # behind the type of the items and their number
        if raw_type != kinds.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = kinds(int(self._get(orig_offs, np.uint32)[0]))
        count = int(self._get(orig_offs + 4, np.uint64)[0])
        self.items = self._bounded("items of fields", self.items + count, MOST_ITEMS)
        parts: list[Any]
        if kind == kinds.ARRAY:
            raise self._damaged("a field holds lists of lists, which ggml does not read")
        if self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        if kind == kinds.STRING:
            parts, end = self._texts(start, count)
        else:
            numbers = self._get(start, self.gguf_scalar_to_np[kind], count)
            parts, end = list(numbers.reshape(-1, 1)), start + numbers.nbytes
        return end - orig_offs, parts, [*range(count)], [kinds.ARRAY, kind] if count else [kinds.ARRAY]

    def _texts(self, start: int, count: int) -> tuple[list[memoryview], int]:
        """This number of texts, each behind its length, and where they end."""
        data, texts = self._data.data, []
        for _ in range(count):
            begin = start + 8
            start = begin + int.from_bytes(data[start:begin], sys.byteorder)
            if start > len(data):
                raise self._damaged("a text goes on beyond its end")
            texts.append(data[begin:start])
        return texts, start

    def _build_tensors(self, start_offs: int, fields: Sequence[Any]) -> None:
        alignment, end = int(self.alignment), 0
        if alignment > MOST_ALIGNMENT:
            raise self._damaged(f"its tensors begin at multiples of {alignment} bytes")
        for field in fields:
            *_, sizes, (number,), (offset,) = field.parts
            shape, name = [int(size) for size in sizes], f"{field.name:.{LONGEST_NAME}}"
            if number not in set(gguf.GGMLQuantizationType):
                raise self._damaged(f"{name} is of the unknown type {number}")
            block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
            if not 1 <= len(shape) <= 4 or 0 in shape or shape[0] % block:
                raise self._damaged(f"{name} is of shape {tuple(shape[:5])}, which its type does not have")
            start = -(-end // alignment) * alignment
            if int(offset) != start:
                raise self._damaged(f"{name} is at {offset}, not at {start}, where the tensors before it end")
            end = start + math.prod(shape) // block * block_bytes
            if int(start_offs) + end > len(self._data):
                raise self._damaged(f"{name} goes on beyond its end")
        if (rest := len(self._data) - int(start_offs) - end) >= alignment and fields:
            raise self._damaged(f"{rest} bytes follow its last tensor")
        super()._build_tensors(start_offs, list(fields))

    def _bounded(self, items: str, count: int, most: int) -> int:
        if count > most:
            raise self._damaged(f"it says that there are {count} {items}, and {whole(most)} are the most")
        return int(count)

    def _damaged(self, how: str) -> RoseError:
        return RoseError(f"{self.path} is damaged: {how}; get the file again.")


def check_file(path: Path) -> None:
    """Raises as `Reader`, whose checks transformers lacks."""
    state = path.stat()
    _check_file(path, state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(8)
def _check_file(path: Path, *_state: int) -> None:
    try:
        Reader(str(path))
    except RoseError:
        raise
    except (ValueError, KeyError, OverflowError) as problem:
        raise RoseError(f"{path} is damaged: {problem}; get the file again.") from problem


class _File:
    """The file that transformers is reading."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._parsed: Parsed = {}
        self._tensors: Sequence[ReaderTensor] = []
        self._architecture = ""
        self._load = reading.load_gguf_checkpoint

    def reader(self, path: str) -> Reader:
        """Replaces `gguf.GGUFReader` and remembers the tensors."""
        reader = Reader(path)
        parts = reader.get_field("split.count")
        if parts is not None and (number := parts.contents()) > 1:
            raise RoseError(
                f"{path} is one of {number} parts of a model; join them (llama-gguf-split --merge FIRST WHOLE)."
            )
        self._tensors, self._architecture = reader.tensors, reading.read_field(reader, "general.architecture")[0]
        return reader

    def load(
        self,
        path: str,
        return_tensors: bool = False,
        model_to_load: nn.Module | None = None,
        torch_dtype: torch.dtype | None = None,
    ) -> Parsed:
        """Replaces transformers' `load_gguf_checkpoint`; returns copies, which callers may change."""
        if path != self._path:
            self._parsed, self._path = self._load(path), path
            config, parts = self._parsed["config"], [tensor.name.split(".") for tensor in self._tensors]
            biased = {name[2] for name in parts if name[0] == "blk" and name[-1] == "bias"}
            for option, layers in BIASES.items():
                if biased & layers and hasattr(CONFIG_MAPPING[config["model_type"]], option):
                    config[option] = True
        parsed = {part: dict(entries) for part, entries in self._parsed.items()}
        if return_tensors and model_to_load is not None:
            parsed["tensors"] = read_tensors(
                self._tensors, self._architecture, parsed["config"], model_to_load, torch_dtype
            )
        return parsed
