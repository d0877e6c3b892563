"""Files of tensors that say of themselves whether they are whole, and digests of tensors."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rose.files import TEMPORARY, replacing


class DamagedFile(Exception):
    """A file is missing, truncated, or differs from the written file."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **facts: str) -> None:
    """Writes a safetensors file, whole or not at all, with texts and a digest of everything in its header. Raises
    OSError or SafetensorError; an existing file then stays as it was."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    temporary = path.with_name(path.name + TEMPORARY)
    with replacing(path, temporary):
        save_file(plain, temporary, {**facts, "digest": digest(plain, facts)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and texts of a file from `write_tensors`. Raises DamagedFile: not whole, or not what was written."""
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (OSError, SafetensorError) as problem:
        raise DamagedFile(f"{path} cannot be read ({problem})") from problem
    if facts.pop("digest", "") != digest(tensors, facts):
        raise DamagedFile(f"{path} does not hold what was written")
    return tensors, facts


def facts_of(path: Path) -> dict[str, str]:
    """The texts in the header of a file from `write_tensors`, not checked."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def digest(tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, whatever the order of the mapping."""
    checksum = hashlib.sha256(repr(sorted((facts or {}).items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        checksum.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        checksum.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return checksum.hexdigest()
