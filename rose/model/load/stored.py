"""Where the tensors of a checkpoint folder are, packed or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from rose.errors import RoseError
from rose.model.formats.packed import TensorFile

INDEX = "model.safetensors.index.json"
PACKED = ".packed.safetensors"


def check_merged(folder: Path) -> None:
    """Raises RoseError for a folder with an adapter (LoRA and its like), which transformers would apply unasked."""
    if not (folder / "adapter_config.json").is_file():
        return
    what, way_out = "and not the model that it belongs to", ""
    if (folder / "config.json").is_file():
        what, way_out = "beside a model", " Where the model is merged already, take adapter_config.json out."
    raise RoseError(
        f"The folder {folder} holds an adapter, {what}; merge the two first (in peft: model.merge_and_unload(), then "
        "save_pretrained of the result and of the tokenizer), and give the merged model's folder." + way_out
    )


def check_is_checkpoint(folder: Path) -> None:
    """Raises RoseError for a folder without a model."""
    check_merged(folder)
    if not (folder / "config.json").is_file():
        raise RoseError(f"The folder {folder} holds no config.json, so it is not a checkpoint; choose another folder.")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a checkpoint's weights, packed ones where there are no others.

    Raises:
        RoseError: some are missing, or their index is damaged.
    """
    index = folder / INDEX
    names = ["model.safetensors"]
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise RoseError(f"{index} cannot be read ({problem}); restore it.") from problem
    paths = [folder / name for name in names]
    paths = [path if path.exists() or not packed(path).exists() else packed(path) for path in paths]
    missing = next((path.name for path in paths if not path.exists()), None)
    if missing:
        raise RoseError(f"{folder} lacks {missing}; only safetensors can be streamed or packed.")
    return paths


def packed(path: Path) -> Path:
    """What a weight file is called once it is packed."""
    return path.with_name(path.name.removesuffix(".safetensors") + PACKED)


def is_packed(folder: Path) -> bool:
    """Whether a folder's weights are packed."""
    return any(folder.glob(f"*{PACKED}")) and any(str(path).endswith(PACKED) for path in weight_files(folder))


def where(folder: Path) -> dict[str, Path]:
    """Names of all tensors -> the file that has each."""
    found: dict[str, Path] = {}
    for path in weight_files(folder):
        with TensorFile(path) as file:
            found.update(dict.fromkeys(file.names(), path))
    return found


class _Later:
    """A tensor that is read when transformers asks for all of it."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def __getitem__(self, _all: Any) -> Tensor:
        with TensorFile(self.path) as file:
            return file.tensor(self.name)


def for_transformers(folder: Path) -> dict[str, Any]:
    """The arguments by which a model class's `from_pretrained` reads the weights of a folder, one tensor at a time."""
    if not is_packed(folder):
        return {"pretrained_model_name_or_path": folder}
    later = {name: _Later(path, name) for name, path in where(folder).items()}
    return {"pretrained_model_name_or_path": None, "state_dict": later}
