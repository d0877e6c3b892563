"""Parameters that a model's files hold in other pieces or under other names, such as single experts.

transformers has conversions for whole models (`get_model_conversion_mapping`). Here they are applied to one parameter
at a time, so that streamed models read and write the same files as other programs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

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


class Conversion:
    """How the parameters of one model are made from the tensors of its files.

    Attributes:
        pieces: name in the model -> names in the files, in the order of joining.
    """

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
