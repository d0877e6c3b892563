"""Checkpoints of llm-compressor: their configuration speaks of compressed-tensors, and their weights are often plain.

A model that was only pruned is saved with its zeros in place (format "dense"), and needs nothing of that package. One
that is packed, as bit masks with the nonzeros or in eight bits and fewer, is refused: see `make_plain`.
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
    """Sees to it that transformers makes plain weights, by a change of the configuration.

    What compressed-tensors has written is taken out, so that plain weights load without it. Floats of few bits are
    dequantized on any machine; with a GPU transformers would keep them.

    Args:
        folder: of the safetensors files; None where they are not on this machine, and the configuration alone tells.

    Raises:
        RoseError: weights that are packed, or stored by another method.
    """
    known = {field: one for field in RECORDS if isinstance(one := getattr(config, field, None), Mapping)}
    if not known:
        return
    quantization = known.get("quantization_config", {})
    method = quantization.get("quant_method", METHOD)
    if method in DEQUANTIZED:
        config.quantization_config = {**quantization, "dequantize": True}
        return
    if method != METHOD:
        raise RoseError(f"{name} is stored in few bits by {method}, which is not read; give what it was made from.")
    if packed := _packed_tensor(folder) if folder else _packed_format(known):
        raise RoseError(
            f"{name} is stored packed by compressed-tensors ({packed}), which is not read; save it with plain weights, "
            "in llm-compressor by save_pretrained(..., save_compressed=False)."
        )
    for field in known:
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


def _packed_format(known: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The format that a configuration names, where that is not the plain one."""
    nested = [one.get("sparsity_config") or {} for one in known.values()]
    formats = [one.get("format") for one in (*known.values(), *nested)]
    return next((one for one in formats if one not in (None, "dense")), None)
