"""Checkpoints of llm-compressor, whose configuration names compressed-tensors although their weights are often plain.

A model that was only pruned has its zeros in place (format "dense") and needs no such package. Packed ones are refused.
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


def make_plain(name: str, config: Any, folder: Path | None) -> None:
    """Changes a configuration so that transformers makes plain weights.

    Records of compressed-tensors are removed. Floats of few bits are dequantized on any machine; with a GPU
    transformers would keep them. Without `folder`, the folder of the safetensors files, only the configuration is
    checked.

    Raises:
        RoseError: weights that are packed, or stored by another method.
    """
    records = {field: record for field in RECORDS if isinstance(record := getattr(config, field, None), Mapping)}
    if not records:
        return
    quantization = records.get("quantization_config", {})
    method = quantization.get("quant_method", METHOD)
    if method in DEQUANTIZED:
        config.quantization_config = {**quantization, "dequantize": True}
        return
    if method != METHOD:
        raise RoseError(f"{name} is stored in few bits by {method}, which is not read; give what it was made from.")
    if packed := _packed_tensor(folder) if folder else _packed_format(records):
        raise RoseError(
            f"{name} is stored packed by compressed-tensors ({packed}), which is not read; save it with plain weights, "
            "in llm-compressor by save_pretrained(..., save_compressed=False)."
        )
    for field in records:
        delattr(config, field)


def _packed_tensor(folder: Path) -> str | None:
    """The name of a tensor that only the package can read."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  it is no dictionary
                leaf = key.rpartition(".")[2]
                if leaf in PACKED or (leaf == "weight" and file.get_slice(key).get_dtype() not in PLAIN):
                    return key
    return None


def _packed_format(records: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The format in a configuration, unless it is the plain one."""
    nested = [record.get("sparsity_config") or {} for record in records.values()]
    formats = [record.get("format") for record in (*records.values(), *nested)]
    return next((record for record in formats if record not in (None, "dense")), None)
