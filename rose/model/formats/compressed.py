"""Checkpoints of llm-compressor: their configuration speaks of compressed-tensors, and their weights are often plain.

A model that was only pruned is saved with its zeros in place (format "dense"), and needs nothing of that package. One
that is packed, as bit masks with the nonzeros or in eight bits and fewer, is refused: see `strip`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rose.errors import RoseError

METHOD = "compressed-tensors"
DEQUANTIZED = {"fp8", "mxfp8", "mxfp4"}  # methods of others whose weights become plain ones
RECORDS = ("quantization_config", "compression_config", "sparsity_config")  # of a configuration; by version
PACKED = {"weight_packed", "weight_shape", "weight_scale", "bitmask", "compressed", "row_offsets"}
PLAIN = {"F64", "F32", "F16", "BF16"}


def strip(name: str, config: Any, folder: Path | None) -> bool:
    """Takes what compressed-tensors has written out of a configuration, so that plain weights load without it.

    Args:
        folder: of the safetensors files; None where they are not on this machine, and the configuration alone tells.

    Returns:
        Whether there was anything.

    Raises:
        RoseError: weights that are packed.
    """
    found = {field: getattr(config, field, None) for field in RECORDS}
    known = {field: one for field, one in found.items() if isinstance(one, Mapping)}
    quantization = known.get("quantization_config", {})
    if not known or quantization.get("quant_method", METHOD) != METHOD:
        return False
    packed = _packed_tensor(folder) if folder else _packed_format(known)
    if packed:
        raise RoseError(
            f"{name} is stored packed by compressed-tensors ({packed}), which is not read; save it with plain weights, "
            "in llm-compressor by save_pretrained(..., save_compressed=False)."
        )
    for field in known:
        delattr(config, field)
    return True


def dequantize(name: str, config: Any) -> None:
    """Lets transformers make plain weights of floats of few bits on any machine; with a GPU it would keep them.

    Raises:
        RoseError: weights that are stored by another method.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        return
    method = found.get("quant_method")
    if method not in DEQUANTIZED:
        raise RoseError(f"{name} is stored in few bits by {method}, which is not read; give what it was made from.")
    config.quantization_config = {**found, "dequantize": True}


def _packed_tensor(folder: Path) -> str | None:
    """The name of a tensor that only the package can read."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  it is no dictionary
                leaf = key.rpartition(".")[2]
                if leaf in PACKED or (leaf == "weight" and file.get_slice(key).get_dtype() not in PLAIN):
                    return key
    return None


def _packed_format(known: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The format that a configuration names, where that is not the plain one."""
    nested = [one.get("sparsity_config") or {} for one in known.values()]
    formats = [one.get("format") for one in (*known.values(), *nested)]
    return next((one for one in formats if one not in (None, "dense")), None)
