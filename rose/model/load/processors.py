"""What turns pictures, films and sounds into inputs: settings in files beside the weights, which a copy needs, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, cached_file

FILES = (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME)
ATTRIBUTE = "rose_processors"  # of a model: the contents by the files' names


def read_processors(model: PreTrainedModel, location: str, **options: Any) -> None:
    """Notes on a model that does more than read text what these files of its folder, or on the Hub, say.

    Raises ValueError for a damaged file; options as for transformers' `cached_file`.
    """
    if model.config.get_text_config() is model.config:
        return
    lenient = dict.fromkeys(("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors"), False)
    found = {name: cached_file(location, name, **options, **lenient) for name in FILES}
    contents = {name: Path(path).read_text(encoding="utf-8") for name, path in found.items() if path is not None}
    setattr(model, ATTRIBUTE, {name: json.loads(text, object_hook=_without_code) for name, text in contents.items()})


def _without_code(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that name no Python files, which a copy would not bring along."""
    return {name: value for name, value in settings.items() if name != "auto_map"}


def write_processors(model: PreTrainedModel, folder: Path) -> None:
    """Writes what `read_processors` has noted; raises OSError as the disk has it."""
    for name, settings in getattr(model, ATTRIBUTE, {}).items():
        (folder / name).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
