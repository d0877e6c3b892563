"""Checkpoint folders packed and unpacked, one tensor at a time, and sizes of packed models."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import _TYPES
from torch import Tensor, nn

from rose.errors import RoseError
from rose.files import reachable
from rose.interrupt import stop_point
from rose.model.formats.packed import FORMAT, VERSION, TensorFile, damaged, digest_of_facts, encode
from rose.model.load.stored import PACKED, check_is_checkpoint, check_masks_applied, is_packed, packed, weight_files
from rose.model.network.layers import LOW_RANK_FILE
from rose.model.packaged import PACKAGED
from rose.output import PARTIAL, new_folder
from rose.tensor_files import digest

TYPES = {dtype: name for name, dtype in _TYPES.items() if dtype and not dtype.is_complex}
if hasattr(torch, "float8_e8m0fnu"):  # from torch 2.7 on
    TYPES[torch.float8_e8m0fnu] = "F8_E8M0"
ALIGNMENT = 8
_SIZES: dict[str, int | None] = {}  # copies of a model share most of its tensors


class TensorWriter(ExitStack):
    """Gathers tensors in temporary files beside the result; a context manager that removes these files. Tensors of
    wider numbers come first, because readers expect aligned tensors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        # The gathered data by bytes of a number, and by name the header's entry and the count of bytes.
        self._gathered: dict[int, tuple[IO[bytes], dict[str, tuple[dict[str, Any], int]]]] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Raises OSError, and RoseError for an unknown number format."""
        if tensor.dtype not in TYPES:
            raise RoseError(f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}, which is not written.")
        width = tensor.itemsize
        if width not in self._gathered:
            gathered = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115  closed with the writer
            self._gathered[width] = self.enter_context(gathered), {}
        file, entries = self._gathered[width]
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        file.write(data)
        entries[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape)}, len(data)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Writes the file; raises OSError as the disk has it."""
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        offset, gathered = 0, [self._gathered[width] for width in sorted(self._gathered, reverse=True)]
        for _, entries in gathered:
            for name, (entry, size) in entries.items():
                header[name] = {**entry, "data_offsets": [offset, offset + size]}
                offset += size
        text = json.dumps(header, ensure_ascii=False).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        with self.path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for data, _ in gathered:
                data.seek(0)
                shutil.copyfileobj(data, file, 2**24)


WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data"}  # are not copied

Follow = Callable[[float, str], None]  # told the share that is done, and of which file


@dataclass
class PackedSize:
    """Bytes of all tensors before packing (`plain`) and after (`stored`). Also the number of packed tensors (`layers`),
    their weights and bytes, and SHA-256 of each tensor with name, dtype and shape."""

    plain: int = 0
    stored: int = 0
    layers: int = 0
    layer_weights: int = 0
    layer_stored: int = 0
    digests: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, tensor: Tensor, stored: int | None, checksum: str) -> None:
        """Counts a tensor; `stored`: bytes of a packed one, None for a plain one."""
        self.digests[name] = checksum
        self.plain += tensor.nbytes
        self.stored += tensor.nbytes if stored is None else stored
        if stored is not None:
            self.layers += 1
            self.layer_weights += tensor.numel()
            self.layer_stored += stored

    @property
    def digest(self) -> str:
        """SHA-256 of all tensors; packing does not change it."""
        return digest({}, self.digests)

    def remarks(self) -> list[str]:
        """Sentences on a packed copy."""
        if self.layer_share is None:
            return ["No matrix has zeros or lies on a grid, so all are stored as they are."]
        of = f"of their size in bfloat16, {self.layer_stored * 8 / self.layer_weights:.2f} bits a weight"
        return [
            f"{self.layers} matrices that have zeros or lie on a grid take {self.layer_share:.3f} {of}.",
            f"Every tensor was read back and equals the original to the bit; digest {self.digest[:16]}.",
        ]

    @property
    def layer_share(self) -> float | None:
        """Bytes of the packed layers relative to bfloat16; None without packed layers."""
        return self.layer_stored / (2 * self.layer_weights) if self.layer_weights else None


def packed_size(model: nn.Module) -> PackedSize:
    """Sizes of a model in memory, without writing; some seconds a GB. Tied weights count once."""
    sizes = PackedSize()
    for name, tensor in model.named_parameters():
        stop_point()
        checksum = digest({name: tensor})
        sizes.add(name, tensor, packed_bytes(tensor, checksum), checksum)
    return sizes


def packed_bytes(tensor: Tensor, checksum: str) -> int | None:
    """Bytes of a tensor in a packed file, None for a plain tensor; remembered by the tensor's `checksum`."""
    if checksum not in _SIZES:
        packed_tensor = encode(tensor)
        _SIZES[checksum] = packed_tensor.size if packed_tensor else None
    return _SIZES[checksum]


def pack_folder(folder: str | Path, output: str | Path, follow: Follow | None = None) -> PackedSize:
    """Writes a packed copy of a checkpoint folder, whole or not at all, and compares every tensor with the original.
    Configuration, tokenizer and reports are copied. Raises RoseError for no checkpoint, a packed or damaged one, masks
    beside their weights, or an output that is not empty or cannot be written."""
    source = _checkpoint(folder)
    if is_packed(source):
        raise RoseError(f"{folder} is packed already; `rose unpack` makes plain weights of it.")
    return _rewritten(source, output, follow, _pack_file, packed)


def unpack_folder(folder: str | Path, output: str | Path, follow: Follow | None = None) -> PackedSize:
    """Writes a plain copy of a packed folder, equal to the original; as `pack_folder`."""
    source = _checkpoint(folder)
    if not is_packed(source):
        raise RoseError(f"{folder} is not packed; its weights can be used as they are.")

    def plain(path: Path) -> Path:
        return path.with_name(path.name.removesuffix(PACKED) + ".safetensors")

    return _rewritten(source, output, follow, _unpack_file, plain)


def _checkpoint(folder: str | Path) -> Path:
    source = reachable(folder)
    if (source.is_file() and source.suffix == ".gguf") or (str(folder) in PACKAGED and not source.exists()):
        raise RoseError(f"{folder} is a GGUF file, and only folders of safetensors are packed; give such a folder.")
    if source.is_file():
        raise RoseError(f"{folder} is a file; give the checkpoint folder that it belongs to.")
    if not source.is_dir():
        raise RoseError(f"There is no folder {folder}; check the path.")
    check_is_checkpoint(source)
    return source


def _rewritten(
    source: Path,
    output: str | Path,
    follow: Follow | None,
    write: Callable[[Path, Path, PackedSize], None],
    renamed: Callable[[Path], Path],
) -> PackedSize:
    sizes = PackedSize()
    with new_folder(output) as temporary:
        paths = weight_files(source)
        for number, path in enumerate(paths):
            if follow:
                follow(number / len(paths), path.name)
            try:
                write(path, temporary / renamed(path).name, sizes)
            except SafetensorError as problem:  # errors of writing are OSErrors, or are raised in `new_folder`
                raise RoseError(f"{path} cannot be read ({problem}); restore it.") from problem
        for path in list(source.rglob("*")):
            inside = path.relative_to(source)
            is_hidden = any(folder.name.startswith(".") for folder in inside.parents)  # as in .git
            is_weights = path.suffix in WEIGHTS and path != source / LOW_RANK_FILE
            # Names with PARTIAL are written into this folder meanwhile.
            if path.is_file() and not path.name.startswith(PARTIAL) and not is_weights and not is_hidden:
                (temporary / inside.parent).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, temporary / inside)
    return sizes


def _pack_file(path: Path, target: Path, sizes: PackedSize) -> None:
    facts = {}
    with TensorWriter(target) as writer, TensorFile(path) as file:
        names = file.names()
        masked = {name.removesuffix("_orig") for name in names if name.endswith((".weight_orig", ".bias_orig"))}
        check_masks_applied(str(path.parent), masked - {*names}, names)
        for name in file.names():
            stop_point()
            tensor = file.tensor(name)
            packed_tensor, checksum = encode(tensor), digest({name: tensor})
            facts[name] = {**(packed_tensor.facts if packed_tensor else {"kind": "plain"}), "sha256": checksum}
            for part, data in packed_tensor.parts.items() if packed_tensor else ():
                writer.add(f"{name}:{part}", torch.from_numpy(data.copy()))
            if not packed_tensor:
                writer.add(name, tensor)
            sizes.add(name, tensor, packed_tensor.size if packed_tensor else None, checksum)
        metadata = {"format": FORMAT, "version": VERSION, "source": json.dumps(file.metadata)}
        metadata["tensors"] = json.dumps(facts)
        writer.finish(metadata | {"digest": digest_of_facts(metadata)})
    with TensorFile(target) as written:
        for name in written.names():
            stop_point()
            written.tensor(name)  # which compares it with its checksum


def _unpack_file(path: Path, target: Path, sizes: PackedSize) -> None:
    with TensorWriter(target) as writer, TensorFile(path) as file:
        if not file.is_packed:
            raise damaged(path, "its metadata do not say that it is packed")
        for name in file.names():
            stop_point()
            tensor, checksum = file.tensor(name), file.facts[name]["sha256"]
            writer.add(name, tensor)
            sizes.add(name, tensor, file.packed_bytes(name), checksum)
        writer.finish(file.source_metadata)
        with TensorFile(target) as written:
            for name in written.names():
                stop_point()
                if digest({name: written.tensor(name)}) != file.facts[name]["sha256"]:
                    raise damaged(target, f"{name} differs from the original")
