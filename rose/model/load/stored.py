"""The tensors of a checkpoint folder, packed or not."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rose.errors import RoseError
from rose.model.formats.packed import DTYPES, TensorFile
from rose.model.network.layers import LOW_RANK_FILE

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PACKED = ".packed.safetensors"


def check_merged(folder: Path) -> None:
    """Raises RoseError for a folder with an adapter (LoRA), which transformers would apply silently."""
    if not (folder / "adapter_config.json").is_file():
        return
    owner, way_out = "and not the model that it belongs to", ""
    if (folder / "config.json").is_file():
        owner, way_out = "beside a model", " Where the model is merged already, take adapter_config.json out."
    raise RoseError(
        f"The folder {folder} holds an adapter, {owner}; merge the two first (in peft: model.merge_and_unload(), then "
        "save_pretrained of the result and of the tokenizer), and give the merged model's folder." + way_out
    )


def check_is_checkpoint(folder: Path) -> None:
    """Raises RoseError for a folder without a model."""
    check_merged(folder)
    if not (folder / "config.json").is_file():
        raise RoseError(f"The folder {folder} holds no config.json, so it is not a checkpoint; choose another folder.")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files with a checkpoint's weights, or the packed ones.

    Raises:
        RoseError: some are missing, their index is damaged, or there are both a file of all weights and shards.
    """
    paths = [_stored(folder / name) for name in names_of_weights(folder)]
    if (whole := _stored(folder / WHOLE)).exists():  # as transformers has it; of shards that are gone, the index stays
        if both := next((path.name for path in paths if path != whole and path.exists()), None):
            raise RoseError(
                f"{folder} holds both {whole.name} and, by {INDEX}, {both}, of two models maybe; take the old one out."
            )
        return [whole]
    if missing := next((path.name for path in paths if not path.exists()), None):
        raise RoseError(_says_missing(folder, missing))
    return paths


def names_of_weights(folder: Path) -> list[str]:
    """Unpacked names of a checkpoint's weight files, by its index. Raises RoseError for a damaged index."""
    index = folder / INDEX
    if not index.exists():
        return [WHOLE]
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise RoseError(f"{index} cannot be read ({problem}); restore it.") from problem


def _stored(path: Path) -> Path:
    return path if path.exists() or not packed(path).exists() else packed(path)


def _says_missing(folder: Path, missing: str) -> str:
    if (folder / INDEX).exists():
        return f"{folder} lacks {missing}, which {INDEX} names; get it again."
    if there := min((path.name for path in folder.glob("*.safetensors")), default=None):
        return f"{folder} holds {there}, but not {missing} or {INDEX}, which list the weights; get that file too."
    return f"{folder} lacks {missing}; only safetensors can be streamed or packed."


def unused_files(folder: Path) -> list[str]:
    """Names of safetensors files that do not belong to a checkpoint, such as a second copy; raises as
    `weight_files`."""
    used = {*weight_files(folder), folder / LOW_RANK_FILE}
    return sorted(path.name for path in folder.glob("*.safetensors") if path not in used)


def packed(path: Path) -> Path:
    """The packed name of a weight file."""
    return path.with_name(path.name.removesuffix(".safetensors") + PACKED)


def is_packed(folder: Path) -> bool:
    """Whether a folder's weights are packed."""
    return any(folder.glob(f"*{PACKED}")) and any(str(path).endswith(PACKED) for path in weight_files(folder))


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, as before packing: path, number format such as "BF16", and shape."""

    path: Path
    kind: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint by name, from the headers of its files; raises as `weight_files`."""
    stored: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        with TensorFile(path) as file:
            stored |= {name: StoredTensor(path, file.kind(name), file.shape(name)) for name in file.names()}
    return stored


def safetensors_of(folder: Path) -> dict[str, StoredTensor]:
    """As `stored_tensors`, but empty where a folder has no safetensors at all."""
    return stored_tensors(folder) if any(folder.glob("*.safetensors")) else {}


def number_formats(stored: Mapping[str, StoredTensor]) -> dict[torch.dtype, list[str]]:
    """Number formats of weights, the most frequent first -> tensors in that format."""
    names: dict[torch.dtype, list[str]] = {}
    numbers: Counter[torch.dtype] = Counter()
    for name, tensor in stored.items():
        if (dtype := DTYPES.get(tensor.kind)) is not None:
            names.setdefault(dtype, []).append(name)
            numbers[dtype] += tensor.count
    return {dtype: names[dtype] for dtype, _ in numbers.most_common()}


class Snapshot:
    """The state of files at one moment, to detect later changes."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._states = {path: _state(path) for path in paths}

    def check(self, path: Path) -> None:
        """Raises RoseError unless size, modification time and header are unchanged; OSError for a missing file."""
        if _state(path) != self._states[path]:
            raise RoseError(
                f"{path} has been changed by another program since this run began to read it; run again once nothing "
                "writes to it."
            )

    def check_all(self) -> None:
        """As `check`, for every file."""
        for path in self._states:
            self.check(path)


def _state(path: Path) -> tuple[int, int, int, bytes]:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        header = file.read(min(int.from_bytes(file.read(8), "little"), status.st_size))
    return status.st_size, status.st_mtime_ns, status.st_ino, hashlib.sha256(header).digest()


class _Later:
    """A tensor that is read when transformers indexes it."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def __getitem__(self, _all: Any) -> Tensor:
        with TensorFile(self.path) as file:
            return file.tensor(self.name)


def for_transformers(folder: Path) -> dict[str, Any]:
    """Arguments for a model class's `from_pretrained` that read the weights of a folder one tensor at a time."""
    if not is_packed(folder):
        return {"pretrained_model_name_or_path": folder}
    later = {name: _Later(tensor.path, name) for name, tensor in stored_tensors(folder).items()}
    return {"pretrained_model_name_or_path": None, "state_dict": later}
