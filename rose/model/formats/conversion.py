"""Checkpoint files whose tensors are split or named differently from the model's parameters.

transformers has conversions for whole models (`get_model_conversion_mapping`). Here they are applied to one parameter
at a time, so that streamed models read and write the same files as other programs. llm-compressor marks every
checkpoint as compressed-tensors, also a model that was only pruned and is stored as plain weights (format "dense").
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from rose.errors import RoseError

METHOD = "compressed-tensors"
DEQUANTIZED = {"fp8", "mxfp8", "mxfp4"}  # quantization methods that transformers undoes while it loads
RECORDS = ("quantization_config", "compression_config", "sparsity_config")  # keys of config.json, by version
PACKED = {"weight_packed", "weight_shape", "weight_scale", "bitmask", "compressed", "row_offsets"}
PLAIN = {"F64", "F32", "F16", "BF16"}


class Conversion:
    """How the parameters of one model are made from the tensors of its files; `pieces`: name in the model -> names in
    the files, in the order of joining."""

    def __init__(self, model: PreTrainedModel, keys: Collection[str]) -> None:
        self.model = model
        mapping = get_model_conversion_mapping(model)
        renamings = [step for step in mapping if isinstance(step, WeightRenaming)]
        self._converters = [step for step in mapping if isinstance(step, WeightConverter)]
        self._patterns: dict[str, str | None] = {}  # [key]: which pattern of a converter it fits
        self.pieces: dict[str, list[str]] = {}
        state = model.state_dict()
        for key in sorted(keys, key=dot_natural_key):
            name, self._patterns[key] = rename_source_key(
                key, renamings, self._converters, model.base_model_prefix, state
            )
            self.pieces.setdefault(name, []).append(key)

    def is_made(self, name: str) -> bool:
        """Whether a parameter differs from the files in more than its name."""
        return self._patterns[self.pieces[name][0]] is not None

    def join(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """One parameter from its pieces; `read` gives a piece by its name in the files."""
        keys = self.pieces[name]
        pattern = self._patterns[keys[0]]
        converter: Any = deepcopy(
            next(converter for converter in self._converters if pattern in converter.source_patterns)
        )
        for key in keys:
            converter.add_tensor(name, key, str(self._patterns[key]), partial(read, key))
        parameters = converter.convert(name, model=self.model, config=self.model.config)[name]
        return parameters[0] if isinstance(parameters, list) else parameters

    def divide(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters by name in the model -> their pieces by name in the files."""
        pieces = revert_weight_conversion(self.model, dict(parameters))
        return {key: piece.contiguous() for key, piece in pieces.items()}


def make_plain(name: str, config: Any, folder: Path | None) -> None:
    """Changes a configuration so that transformers makes plain weights.

    Records of compressed-tensors are removed. Floats of few bits are dequantized on any machine; with a GPU
    transformers would keep them. Without `folder`, the folder of the safetensors files, only the configuration is
    checked. Raises RoseError for weights that are packed, or stored by another method.
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
        raise RoseError(f"{name} is quantized by {method}, which cannot be read; give the model before quantization.")
    nested = [record.get("sparsity_config") or {} for record in records.values()]
    formats = [record.get("format") for record in (*records.values(), *nested)]
    packed = next((name for name in formats if name not in (None, "dense")), None)
    if folder:
        packed = next(_packed_tensors(folder), None)
    if packed:
        raise RoseError(
            f"{name} is stored packed by compressed-tensors ({packed}), which is not read; save it with plain weights, "
            "in llm-compressor by save_pretrained(..., save_compressed=False)."
        )
    for field in records:
        delattr(config, field)


def _packed_tensors(folder: Path) -> Iterator[str]:
    """Names of tensors that only compressed-tensors can read."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  it is no dictionary
                leaf = key.rpartition(".")[2]
                if leaf in PACKED or (leaf == "weight" and file.get_slice(key).get_dtype() not in PLAIN):
                    yield key
