"""The tensors of a checkpoint folder, and faults in readable files, refused when a model is loaded."""

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rose.errors import RoseError
from rose.interrupt import stop_point
from rose.model.formats.conversion import Conversion
from rose.model.network.layers import MASKED, decoder_blocks
from rose.model.network.precision import name_of
from rose.wording import count, whole

logger = logging.getLogger(__name__)

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PACKED = "*.packed.safetensors"  # of an earlier version, with bitmasks in place of zeros

# The largest allowed numbers in a configuration, by the names of all families; numbers of experts may be 0.
LARGEST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "depth"), 1000),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 2**20),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), 2**16),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions"), 2**26),
    "num_labels": 2**17,  # for each of which a configuration makes a name
    **dict.fromkeys(("intermediate_size", "ffn_dim", "moe_intermediate_size"), 2**24),
}
FLOATS = ("F", "BF16")  # begin the formats of weights
EXPERTS = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4096)


def check_merged(folder: Path) -> None:
    """Raises RoseError for a folder with an adapter (LoRA), which transformers would apply silently."""
    if (folder / "adapter_config.json").is_file():
        raise RoseError(
            f"The folder {folder} holds an adapter; merge it into its model first (in peft: model.merge_and_unload(), "
            "then save_pretrained of the result and of the tokenizer), or take adapter_config.json out if it is merged."
        )


def check_is_checkpoint(folder: Path) -> None:
    """Raises RoseError for a folder without a model."""
    check_merged(folder)
    if not (folder / "config.json").is_file():
        raise RoseError(f"The folder {folder} holds no config.json, so it is not a checkpoint; choose another folder.")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files with a checkpoint's weights; raises RoseError for a packed folder, a damaged index, or both
    a file of all weights and shards."""
    paths = [folder / name for name in names_of_weights(folder)]
    if (whole := folder / WHOLE).exists():  # as transformers has it; of shards that are gone, the index stays
        if both := next((path.name for path in paths if path != whole and path.exists()), None):
            raise RoseError(
                f"{folder} holds both {whole.name} and, by {INDEX}, {both}, of two models maybe; take the old one out."
            )
        return [whole]
    if any(folder.glob(PACKED)):
        raise RoseError(
            f"{folder} is packed, and packed folders are no longer read; run `rose unpack` of the version that packed "
            "it, and give the folder that it writes."
        )
    return paths


def names_of_weights(folder: Path) -> list[str]:
    """Names of a checkpoint's weight files, by its index. Raises RoseError for a damaged index."""
    index = folder / INDEX
    if not index.is_file():
        return [WHOLE]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if strange := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
            raise ValueError(f"{strange[0]!r} is no name of a safetensors file beside it")
        return names
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise RoseError(f"{index} cannot be read ({problem}); restore it.") from problem


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: path, number format such as "BF16", shape, and bytes in the file."""

    path: Path
    kind: str
    shape: tuple[int, ...]
    stored: int

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns): leading dimensions as one; a vector is one row."""
        columns = self.shape[-1] if self.shape else 1
        return self.count // max(1, columns), columns


def tensors_in(file: Any, path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Names and facts of the tensors in an open safetensors file."""
    for name in file.keys():  # noqa: SIM118  not a dict
        view = file.get_slice(name)
        kind, shape = view.get_dtype(), tuple(view.get_shape())
        bits = re.match(r"[A-Z]+(\d+)", kind)  # of a number in a format such as "BF16" or "F8_E4M3"
        yield name, StoredTensor(path, kind, shape, math.prod(shape) * (int(bits[1]) if bits else 8) // 8)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint by name, from the headers of its files; raises as `weight_files`."""
    stored: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            stored |= dict(tensors_in(file, path))
    return stored


FileState = tuple[int, int, int, bytes]


def state_of(path: Path) -> FileState:
    """Size, modification time, place and header of a file, to detect later changes; raises OSError."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        header = file.read(min(int.from_bytes(file.read(8), "little"), status.st_size))
    return status.st_size, status.st_mtime_ns, status.st_ino, hashlib.sha256(header).digest()


def check_unchanged(path: Path, state: FileState) -> None:
    """Raises RoseError unless a file has this state; OSError for a missing file."""
    if state_of(path) != state:
        raise RoseError(f"{path} has been changed by another program since this run began to read it; run again.")


# Faults


def check_sizes(name: str, config: Mapping[str, Any]) -> None:
    """Raises RoseError for impossible numbers in a configuration, which could take all memory."""
    for field, value in config.items():
        least, most = (0, EXPERTS[field]) if field in EXPERTS else (1, LARGEST.get(field, 0))
        if isinstance(value, Mapping):
            check_sizes(name, value)
        elif most and isinstance(value, int | float) and not (least <= value <= most and value == int(value)):
            raise RoseError(
                f"The configuration of {name} says {field} = {value}; it must be from {least} to {whole(most)}."
            )


def check_stored(name: str, model: nn.Module, stored: Mapping[str, StoredTensor], conversion: Conversion) -> None:
    """Raises RoseError, before memory is taken, for a parameter stored as integers, twice, or in another shape."""
    for parameter_name, parameter in model.named_parameters():
        keys = conversion.pieces.get(parameter_name, [])
        if wrong := next((key for key in keys if not stored[key].kind.startswith(FLOATS)), None):
            raise RoseError(
                f"{wrong} is stored as {stored[wrong].kind} in the files of {name}, but weights are floating-point "
                "numbers; its file is damaged. Get it again."
            )
        if not keys or conversion.is_made(parameter_name):
            continue
        if len(keys) > 1:
            raise RoseError(f"{name} holds one weight under two names, {keys[0]} and {keys[1]}; take one out.")
        if (shape := stored[keys[0]].shape) != parameter.shape:
            raise RoseError(
                f"{keys[0]} is of shape {shape} in the files of {name}, but of {tuple(parameter.shape)} by its "
                "config.json, which belongs to another model, or was changed. Restore that file."
            )


def check_masks_applied(name: str, missing: Collection[str], stored: Collection[str]) -> None:
    """Raises RoseError where files hold `weight_orig` and `weight_mask` of torch.nn.utils.prune, not their product."""
    if any(f"{key}_orig" in stored for key in missing):
        raise RoseError(f"{name} {MASKED} and save the model again.")


def check_all_used(name: str, model: nn.Module, unused: Collection[str]) -> None:
    """Raises RoseError where files hold weights of decoder blocks that the configuration does not name. Masks and
    frequencies in old files are no weights; tensors outside the decoder blocks may be for images or sound."""
    prefix, _ = decoder_blocks(model)
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    starts = (f"{prefix}.", f"{prefix.partition('.')[2]}.")  # files may lack the name of the body
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()  # by its family, as a block for drafts
    extra = sorted(
        key
        for key in unused
        if key.startswith(starts)
        and (key.endswith(".weight") or key.rpartition(".")[0] in layers)
        and not any(re.search(pattern, key) for pattern in ignored)
    )
    if extra:
        raise RoseError(
            f"{name} holds {count(len(extra), 'tensor')} that its configuration does not name, such as {extra[0]}; "
            "apply masks and scales and save the weights alone, or restore config.json."
        )


def check_finite(name: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raises RoseError for NaN and infinity, naming the tensor."""
    for key, tensor in tensors:
        stop_point()
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            raise RoseError(
                f"{name} holds NaN or infinity in {key}; its file is damaged, or "
                f"{name_of(tensor.dtype)} is too narrow for it. Get the file again, or load the model in float32."
            )


def say_rounded(
    name: str, model: nn.Module, formats: Mapping[torch.dtype, Collection[str]], dtype_read: torch.dtype
) -> None:
    """Logs that some tensors are stored in a wider format and were rounded."""
    tensors = model.state_dict()
    rounded = [
        key
        for dtype, keys in formats.items()
        for key in keys
        if key in tensors and tensors[key].dtype == dtype_read and dtype.itemsize > dtype_read.itemsize
    ]
    if rounded and dtype_read == next(iter(formats)):
        logger.warning(
            "%s is read in %s, which rounds %s stored in a wider format, such as %s; float32 keeps all",
            name, name_of(dtype_read), count(len(rounded), "tensor"), rounded[0],
        )  # fmt: skip
