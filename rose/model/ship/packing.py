"""Checkpoint folders packed and unpacked, a tensor at a time; what that saves, with and without writing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from rose.errors import RoseError
from rose.files import reachable
from rose.interrupt import stop_point
from rose.model.formats.low_rank import FILE as LOW_RANK
from rose.model.formats.packed import FORMAT, VERSION, TensorFile, damaged, digest_of_facts, encode
from rose.model.load.soundness import check_masks_applied
from rose.model.load.stored import PACKED, check_is_checkpoint, is_packed, packed, weight_files
from rose.model.packaged import PACKAGED
from rose.model.ship.writing import TensorWriter
from rose.output import PARTIAL, new_folder
from rose.tensor_files import digest

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data"}  # are not copied

Follow = Callable[[float, str], None]  # told the share that is done, and of which file


@dataclass(frozen=True)
class PackedSize:
    """What packing makes of a model.

    Attributes:
        plain: bytes of all tensors as they are.
        stored: bytes of all tensors packed; those that packing would not make smaller stay as they are.
        layers: how many tensors are packed.
        layer_weights: how many weights those have.
        layer_stored: bytes that those take.
        digest: SHA-256 of the tensors, of their names, dtypes and shapes: the same before and after.
    """

    plain: int
    stored: int
    layers: int
    layer_weights: int
    layer_stored: int
    digest: str

    def remarks(self) -> list[str]:
        """What a copy that was packed takes, sentence by sentence."""
        if self.layer_share is None:
            return ["No matrix has zeros or lies on a grid, so all are stored as they are."]
        of = f"of what they take in bfloat16, {self.layer_stored * 8 / self.layer_weights:.2f} bits a weight"
        return [
            f"{self.layers} matrices that have zeros or lie on a grid take {self.layer_share:.3f} {of}.",
            f"Every tensor was read back and is equal to the bit; digest {self.digest[:16]}.",
        ]

    @property
    def layer_share(self) -> float | None:
        """Of the bytes that the packed layers take in bfloat16, whatever their format; None where none is packed."""
        return self.layer_stored / (2 * self.layer_weights) if self.layer_weights else None


class _Sizes:
    """The sum over tensors, told one by one."""

    def __init__(self) -> None:
        self.plain = self.stored = self.layers = self.layer_weights = self.layer_stored = 0
        self.digests: dict[str, str] = {}

    def add(self, name: str, tensor: Tensor, stored: int | None, checksum: str) -> None:
        """stored: bytes of a tensor that is packed, None for one that is not."""
        self.digests[name] = checksum
        self.plain += tensor.nbytes
        self.stored += tensor.nbytes if stored is None else stored
        if stored is not None:
            self.layers += 1
            self.layer_weights += tensor.numel()
            self.layer_stored += stored

    def result(self) -> PackedSize:
        whole = digest({}, self.digests)
        return PackedSize(self.plain, self.stored, self.layers, self.layer_weights, self.layer_stored, whole)


def packed_size(model: nn.Module) -> PackedSize:
    """What packing would make of a model in memory, without writing anything; some seconds a GB. Tied weights count
    once."""
    sizes = _Sizes()
    for name, tensor in model.named_parameters():
        stop_point()
        found = encode(tensor)
        sizes.add(name, tensor, found.size if found else None, digest({name: tensor}))
    return sizes.result()


def pack_folder(folder: str | Path, output: str | Path, follow: Follow | None = None) -> PackedSize:
    """Writes a packed copy of a checkpoint folder, whole or not at all, and reads every tensor back to compare it.

    Each file of its weights becomes a packed one; configuration, tokenizer and reports are copied.

    Raises:
        RoseError: no checkpoint there, packed already, damaged, masks beside their weights, an output that is not empty
            or cannot be written.
    """
    source = _checkpoint(folder)
    if is_packed(source):
        raise RoseError(f"{folder} is packed already; `rose unpack` makes plain weights of it.")
    return _rewritten(source, output, follow, _pack_file, packed)


def unpack_folder(folder: str | Path, output: str | Path, follow: Follow | None = None) -> PackedSize:
    """Writes a plain copy of a packed folder, which any program loads, equal to what was packed; as `pack_folder`."""
    source = _checkpoint(folder)
    if not is_packed(source):
        raise RoseError(f"{folder} is not packed; its weights can be used as they are.")
    return _rewritten(source, output, follow, _unpack_file, _plain)


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


def _plain(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(PACKED) + ".safetensors")


def _rewritten(
    source: Path,
    output: str | Path,
    follow: Follow | None,
    write: Callable[[Path, Path, _Sizes], None],
    renamed: Callable[[Path], Path],
) -> PackedSize:
    sizes = _Sizes()
    with new_folder(output) as temporary:
        paths = weight_files(source)
        for number, path in enumerate(paths):
            if follow:
                follow(number / len(paths), path.name)
            try:
                write(path, temporary / renamed(path).name, sizes)
            except SafetensorError as problem:  # those of writing are OSErrors, or end up in `new_folder`
                raise RoseError(f"{path} cannot be read ({problem}); restore it.") from problem
        for path in _besides_weights(source):
            place = temporary / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    return sizes.result()


def _besides_weights(source: Path) -> list[Path]:
    """What else a model needs: also in folders, such as code and further chat templates, but hidden ones (.git)."""
    return [
        path
        for path in source.rglob("*")
        if path.is_file()
        and not path.name.startswith(PARTIAL)  # of what is written into this folder
        and (path.suffix not in WEIGHTS or path == source / LOW_RANK)
        and not any(folder.name.startswith(".") for folder in path.relative_to(source).parents)
    ]


def _pack_file(path: Path, target: Path, sizes: _Sizes) -> None:
    facts = {}
    with TensorWriter(target) as writer, TensorFile(path) as file:
        check_masks_applied(str(path.parent), _without_masks(file.names()), file.names())
        for name in file.names():
            stop_point()
            tensor = file.tensor(name)
            found, checksum = encode(tensor), digest({name: tensor})
            facts[name] = {**(found.facts if found else {"kind": "plain"}), "sha256": checksum}
            for part, data in found.parts.items() if found else ():
                writer.add(f"{name}:{part}", torch.from_numpy(data.copy()))
            if not found:
                writer.add(name, tensor)
            sizes.add(name, tensor, found.size if found else None, checksum)
        metadata = {"format": FORMAT, "version": VERSION, "source": json.dumps(file.metadata)}
        metadata["tensors"] = json.dumps(facts)
        writer.finish(metadata | {"digest": digest_of_facts(metadata)})
    with TensorFile(target) as written:
        for name in written.names():
            stop_point()
            written.tensor(name)  # which compares it with its checksum


def _without_masks(stored: Collection[str]) -> set[str]:
    """What torch.nn.utils.prune has put away as weights and masks."""
    return {name.removesuffix("_orig") for name in stored if name.endswith((".weight_orig", ".bias_orig"))} - {*stored}


def _unpack_file(path: Path, target: Path, sizes: _Sizes) -> None:
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
                    raise damaged(target, f"{name} differs from what was packed")
