"""A safetensors file written a tensor at a time: the library's own function wants all of them in memory at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from rose.errors import RoseError

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.bool: "BOOL",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
if hasattr(torch, "float8_e8m0fnu"):  # from torch 2.7 on
    TYPES[torch.float8_e8m0fnu] = "F8_E8M0"
ALIGNMENT = 8


class TensorWriter:
    """Gathers tensors beside the file that `finish` makes of them.

    Tensors of wider numbers go first, as readers want each at a multiple of the size of its numbers. As a context
    manager, it closes and removes what it has gathered, whatever happens.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._gathered: dict[int, BinaryIO] = {}  # by bytes of a number
        self._entries: dict[int, list[tuple[str, dict[str, Any], int]]] = {}  # name, what the header says, bytes

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for width, file in self._gathered.items():
            file.close()
            self._place(width).unlink(missing_ok=True)

    def add(self, name: str, tensor: Tensor) -> None:
        """Raises OSError as the disk has it, RoseError for a format that is not known here."""
        if tensor.dtype not in TYPES:
            raise RoseError(f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}, which is not written.")
        width = tensor.itemsize
        if width not in self._gathered:
            self._gathered[width] = self._place(width).open("wb")
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._gathered[width].write(data)
        entry = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape)}
        self._entries.setdefault(width, []).append((name, entry, len(data)))

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Writes the file; raises OSError as the disk has it."""
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        offset, widths = 0, sorted(self._gathered, reverse=True)
        for width in widths:
            for name, entry, size in self._entries[width]:
                header[name] = {**entry, "data_offsets": [offset, offset + size]}
                offset += size
        text = json.dumps(header, ensure_ascii=False).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        with self.path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for width in widths:
                self._gathered[width].close()
                with self._place(width).open("rb") as data:
                    shutil.copyfileobj(data, file, 2**24)

    def _place(self, width: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{width}")
