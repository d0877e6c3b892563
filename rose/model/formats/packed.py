"""The packed format: pruned weights as a bitmask and the kept values, in safetensors files; exact to the bit.

The metadata say `format: rose-packed` and hold, as JSON under `tensors`, the facts of every tensor. A *plain* tensor is
stored under its name. Others are stored in parts, as uint8 under NAME:PART, row by row. Leading dimensions are joined.
If `flipped`, the last two are exchanged, so that input columns come last.

- mask: one bit per weight, the highest of a byte first; 1 = kept.
- sparse: plane0, plane1, ... hold the bytes of the kept values, the lowest first. Values are rotated by one bit to the
left, so that the highest byte of bfloat16 and float32 is the exponent, which compresses well.
- grid: codes, int8, of the kept weights. Then scale0 and scale1 hold the bytes of float16 scales as above, for each row
and `group` columns: a weight is code · scale.
- signs: one bit for each removed weight, where some are −0.

Parts that zstd makes smaller are listed under `zstd`; a compressed mask of 2:4 needs 2.6 bits a group, indices need 4.
docs/lab-notes/shipping.md has a reader.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import zstandard
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rose.errors import RoseError
from rose.layer.rounding import coarsest_grid, per_column
from rose.tensor_files import digest

FORMAT, VERSION = "rose-packed", "1"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
INTEGERS: dict[int, tuple[torch.dtype, Any]] = {
    2: (torch.int16, np.dtype("<u2")),
    4: (torch.int32, np.dtype("<u4")),
}  # by bytes of a number
LEAST_ZEROS = 0.05  # of a tensor that is packed although it is on no grid
LARGE = 2**20  # numbers of a tensor that is mapped on its own, so that its pages leave memory with it
FLIPPED = 0.97  # of the size of the other mask: less is no pattern along the columns, but chance
MOST_DIMENSIONS, LARGEST = 16, 2**48  # of a tensor, and numbers along a dimension
LEVEL = 3  # of zstd; higher levels save nothing here, because nothing repeats
# What `decode` raises for damaged facts or parts.
DAMAGED = (ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, zstandard.ZstdError)

Bytes = np.ndarray  # uint8, 1-D


@dataclass(frozen=True)
class Packed:
    """A tensor in parts: its `facts` in the file, without the checksum, and `parts`, name -> uint8, (bytes,)."""

    facts: dict[str, Any]
    parts: dict[str, Bytes]

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(map(len, self.parts.values()))


def encode(tensor: Tensor) -> Packed | None:
    """A tensor in parts; None for vectors, and where parts would not be smaller."""
    if tensor.dtype not in NAMES or tensor.ndim < 2 or not tensor.numel():
        return None
    tensor = tensor.detach().cpu()
    zeros = float((tensor == 0).float().mean())
    grids = {flipped: coarsest_grid(_matrix(tensor, flipped)) for flipped in (False, True)} if zeros < 1 else {}
    flipped = next((flipped for flipped, coded in grids.items() if coded), None)
    if flipped is None and zeros < LEAST_ZEROS:
        return None
    masks = {
        side: _squeezed(np.packbits((_matrix(tensor, side) != 0).numpy()))
        for side in ((False, True) if flipped is None else (flipped,))
    }
    if flipped is None:
        flipped = len(masks[True][0]) < FLIPPED * len(masks[False][0])
    matrix, coded = _matrix(tensor, flipped), grids.get(flipped)
    bits, nonzero = _bits(matrix), (matrix != 0).numpy()
    parts = _planes("plane", bits[nonzero])
    if coded is not None:
        parts = {"codes": coded.codes.numpy()[nonzero].view(np.uint8)}
        parts |= _planes("scale", _bits(coded.scales.half()).ravel())
    if (removed := bits[~nonzero]).any():
        parts["signs"] = np.packbits(removed != 0)
    squeezed = {"mask": masks[flipped]} | {name: _squeezed(part) for name, part in parts.items()}
    facts = {"kind": "sparse", "dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "flipped": flipped}
    if coded is not None:
        facts |= {"kind": "grid", "group": matrix.shape[1] // coded.scales.shape[1]}
    facts["zstd"] = [name for name, (_, smaller) in squeezed.items() if smaller]
    packed = Packed(facts, {name: part for name, (part, _) in squeezed.items()})
    return packed if packed.size < tensor.nbytes else None


def decode(facts: Mapping[str, Any], parts: Mapping[str, Bytes]) -> Tensor:
    """The tensor of such parts. Raises RoseError where the free memory is too small, because a small file may describe
    any size, and any of `DAMAGED` for damaged facts or parts."""
    shape, dtype = tuple(map(int, facts["shape"])), DTYPES[facts["dtype"]]
    laid_out = (*shape[:-2], shape[-1], shape[-2]) if facts["flipped"] else shape
    count, width = math.prod(shape), laid_out[-1]
    if 3 * count * dtype.itemsize > psutil.virtual_memory().available:
        raise RoseError(f"There is too little memory to unpack a tensor of shape {shape}; free some, if it is sound.")

    def part(name: str, size: int) -> Bytes:
        data = parts[name]
        if name in facts["zstd"]:
            if zstandard.frame_content_size(data.tobytes()) != size:  # to which zstd would open it, whatever the limit
                raise ValueError(f"{name} does not open to {size} bytes")
            data = np.frombuffer(zstandard.ZstdDecompressor().decompress(data.tobytes()), np.uint8)
        if len(data) != size:
            raise ValueError(f"{name} has {len(data)} bytes instead of {size}")
        return data

    nonzero = np.unpackbits(part("mask", -(-count // 8)), count=count).astype(bool)
    number = int(nonzero.sum())
    _, unsigned = INTEGERS[dtype.itemsize]
    bits = np.zeros(count, unsigned)
    if "signs" in parts:
        negative = np.unpackbits(part("signs", -(-(count - number) // 8)), count=count - number)
        bits[~nonzero] = negative.astype(unsigned) << (8 * dtype.itemsize - 1)
    if facts["kind"] == "grid":
        groups = count // int(facts["group"])
        scales = _joined([part(f"scale{byte}", groups) for byte in range(2)]).view(np.float16)
        codes = np.zeros(count, np.int8)
        codes[nonzero] = part("codes", number).view(np.int8)
        scale = per_column(torch.from_numpy(scales.astype(np.float32)).view(count // width, -1), width)
        bits[nonzero] = _bits((torch.from_numpy(codes).view(-1, width) * scale).to(dtype)).ravel()[nonzero]
    else:
        bits[nonzero] = _joined([part(f"plane{byte}", number) for byte in range(dtype.itemsize)])
    tensor = torch.from_numpy(bits.view(f"<i{dtype.itemsize}")).view(dtype).view(laid_out)
    return tensor.transpose(-1, -2).contiguous() if facts["flipped"] else tensor


def _matrix(tensor: Tensor, flipped: bool) -> Tensor:
    return (tensor.transpose(-1, -2) if flipped else tensor).flatten(0, -2).contiguous()


def _bits(tensor: Tensor) -> np.ndarray:
    integer, unsigned = INTEGERS[tensor.itemsize]
    return tensor.contiguous().view(integer).numpy().view(unsigned)


def _planes(name: str, bits: np.ndarray) -> dict[str, Bytes]:
    rotated = (bits << 1 | bits >> (8 * bits.itemsize - 1)).astype(bits.dtype)
    columns = rotated.view(np.uint8).reshape(-1, bits.itemsize)
    return {f"{name}{byte}": columns[:, byte].copy() for byte in range(bits.itemsize)}


def _joined(planes: list[Bytes]) -> np.ndarray:
    rotated = np.stack(planes, 1).view(f"<u{len(planes)}").ravel()
    return (rotated >> 1 | rotated << (8 * len(planes) - 1)).astype(rotated.dtype)


def _squeezed(part: Bytes) -> tuple[Bytes, bool]:
    """A part as stored, and whether zstd has made it smaller."""
    smaller = np.frombuffer(zstandard.ZstdCompressor(level=LEVEL).compress(part.tobytes()), np.uint8)
    return (smaller, True) if len(smaller) < len(part) else (part, False)


class TensorFile:
    """The tensors of a safetensors file, packed or not, one at a time; a context manager. Raises RoseError for a packed
    file of a later version, or a damaged one; OSError and SafetensorError for no whole safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = safe_open(path, "pt")
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self.is_packed = self.metadata.get("format") == FORMAT
        self.facts: dict[str, dict[str, Any]] = {}
        self.source_metadata: dict[str, str] = {}  # of the file that was packed
        self._parts: dict[str, list[str]] = {}  # of each tensor that is stored in parts
        if self.is_packed:
            self._read_facts()

    def _read_facts(self) -> None:
        if self.metadata.get("version") != VERSION:
            raise RoseError(
                f"{self.path} is packed in version {self.metadata.get('version', ''):.20} of the format, and this "
                f"program reads {VERSION}; update it."
            )
        if self.metadata.get("digest") != digest_of_facts(self.metadata):
            raise damaged(self.path, "its header differs from its checksum")
        try:
            self.facts = json.loads(self.metadata["tensors"])
            self.source_metadata = json.loads(self.metadata["source"])
            for facts in self.facts.values():
                _check_facts(facts)
            if not all(isinstance(text, str) for text in self.source_metadata.values()):
                raise TypeError("metadata that are no text")
        except (*DAMAGED, AttributeError) as problem:
            raise damaged(self.path, f"its header does not say what each tensor is ({problem})") from problem
        self._parts = {name: [] for name in self.facts if self._is_encoded(name)}
        stored = set(self._file.keys())
        for key in stored:
            name, _, part = key.rpartition(":")
            if name in self._parts:
                self._parts[name].append(part)
            elif key not in self.facts or key in self._parts:
                raise damaged(self.path, f"it stores {key}, which its header does not describe")
        for name in self.facts:
            if "mask" not in self._parts[name] if name in self._parts else name not in stored:
                raise damaged(self.path, f"it lacks {name}, which its header describes")

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.__exit__(None, None, None)

    def names(self) -> list[str]:
        return list(self.facts) if self.is_packed else list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        if self._is_encoded(name):
            return tuple(self.facts[name]["shape"])
        shape = tuple(self._file.get_slice(name).get_shape())
        if len(shape) > MOST_DIMENSIONS or max(shape, default=0) > LARGEST:  # even beside a size of 0
            raise damaged(self.path, f"{name} has {len(shape)} dimensions of up to {max(shape)} numbers")
        return shape

    def kind(self, name: str) -> str:
        """The number format before packing, as safetensors names it, such as "BF16"."""
        return self.facts[name]["dtype"] if self._is_encoded(name) else self._file.get_slice(name).get_dtype()

    def tensor(self, name: str) -> Tensor:
        """A tensor as it was before packing, compared with its checksum."""
        if not self.is_packed:
            return self._file.get_tensor(name)
        try:
            if self._is_encoded(name):
                parts = {part: self._file.get_tensor(f"{name}:{part}").numpy() for part in self._parts[name]}
                tensor = decode(self.facts[name], parts)
            else:
                tensor = self._file.get_tensor(name)
        except RoseError:  # which is a ValueError, too
            raise
        except (SafetensorError, *DAMAGED) as problem:
            raise damaged(self.path, f"{name} cannot be unpacked ({problem})") from problem
        if digest({name: tensor}) != self.facts[name]["sha256"]:
            raise damaged(self.path, f"{name} differs from its checksum")
        return tensor

    def runs(self, name: str, rows: int) -> Iterator[Tensor]:
        """As `tensor`, in runs of this number of rows, 0 for all; packed tensors are decoded whole."""
        shape = self.shape(name)
        if self.is_packed or not shape or not rows:
            yield self.tensor(name)
            return
        opened = safe_open(self.path, "pt") if math.prod(shape) > LARGE else nullcontext(self._file)
        with opened as file:
            view = file.get_slice(name)
            for start in range(0, shape[0], rows):
                yield view[start : start + rows]

    def packed_bytes(self, name: str) -> int | None:
        """Bytes of a tensor's parts; None where it is stored plainly."""
        if not self._is_encoded(name):
            return None
        return sum(math.prod(self._file.get_slice(f"{name}:{part}").get_shape()) for part in self._parts[name])

    def _is_encoded(self, name: str) -> bool:
        return self.is_packed and self.facts[name]["kind"] != "plain"


def _check_facts(facts: Mapping[str, Any]) -> None:
    """Raises ValueError, TypeError or LookupError for facts that describe no tensor."""
    if not isinstance(facts["sha256"], str) or facts["kind"] not in ("plain", "sparse", "grid"):
        raise ValueError(f"a tensor of kind {facts['kind']!r:.40}")
    if facts["kind"] == "plain":
        return
    _ = DTYPES[facts["dtype"]], facts["flipped"]
    if len(facts["shape"]) < 2 or not all(type(size) is int and size > 0 for size in facts["shape"]):
        raise ValueError(f"a shape {facts['shape']!r:.40}")
    if not all(isinstance(part, str) for part in facts["zstd"]):
        raise ValueError("parts without a name")


def digest_of_facts(metadata: Mapping[str, str]) -> str:
    """SHA-256 of all metadata."""
    rest = sorted((name, text) for name, text in metadata.items() if name != "digest")
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def damaged(path: Path, how: str) -> RoseError:
    return RoseError(f"{path} is damaged: {how}; restore the file, or pack its folder again.")
