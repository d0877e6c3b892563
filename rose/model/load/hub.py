"""Files from the Hub that a copy needs beside weights and tokenizer: licences, and processor settings for images, video
and sound. Also downloads that can be stopped, and sentences for their errors."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import tqdm
from huggingface_hub.utils._xet import abort_xet_session  # what the library itself does at Ctrl+C
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import (
    IMAGE_PROCESSOR_NAME,
    LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
    PROCESSOR_NAME,
    VIDEO_PROCESSOR_NAME,
)

from rose.interrupt import stop_point_here
from rose.model.defaults import OFFLINE
from rose.model.network.network import PART
from rose.report import LANGUAGE_PART


def stoppable_bars() -> type[tqdm]:
    """A silent progress bar class for `tqdm_class`; each step is a `stop_point` of the calling thread."""
    check = stop_point_here()

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            try:
                check()
            except Exception:
                abort_xet_session()  # its own threads fetch, and no exception would reach them
                raise
            return super().update(n)

    return Bar


logger = logging.getLogger(__name__)

FILES = (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE)
LICENCES = ("LICENSE*", "NOTICE*", "USE_POLICY*")  # LLaMA's wants to go along with every copy
ATTRIBUTE = "rose_processors"  # of a model: the contents by the files' names


def read_processors(model: PreTrainedModel, location: str, **options: Any) -> None:
    """Notes on a model the licences in its folder or on the Hub and, for multimodal models, `FILES`. If the files hold
    more than the language model built from them, that is noted and logged. Raises ValueError for a damaged file;
    options as for transformers' `cached_file`."""
    does_more = model.config.get_text_config() is not model.config
    patterns = [*LICENCES, *(FILES if does_more else ())]
    folder = Path(location)
    if not folder.is_dir():
        folder = Path(snapshot_download(location, allow_patterns=patterns, tqdm_class=stoppable_bars(), **options))
    contents = {path.name: path.read_bytes() for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    for name in contents.keys() & set(FILES):  # without references to Python files, which a copy would lack
        settings = json.loads(contents[name], object_hook=lambda part: {k: part[k] for k in part if k != "auto_map"})
        contents[name] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    setattr(model, ATTRIBUTE, contents)
    stored = PreTrainedConfig.get_config_dict(location, **options)[0]
    if "text_config" in stored and stored.get("model_type") != model.config.model_type:
        setattr(model, PART, True)
        logger.warning("%s: %s", location, LANGUAGE_PART)


def hub_problem(name: str, problem: Exception, text: str) -> str:
    """A sentence that explains a failed download, and what to do."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}
    causes = [problem, problem.__cause__, problem.__context__]
    status = next(
        (c.response.status_code for c in causes if isinstance(c, HfHubHTTPError) and c.response is not None), 0
    )
    if status in (401, 403):
        return f"The Hub does not let you read {name}: it does not exist, or needs `hf auth login` and its licence."
    if status == 404 or "not a valid model identifier" in text:
        return f"There is no model {name} on the Hub; check the spelling, or give a folder or a .gguf file."
    if offline:
        return f"{name} is not in the local cache and HF_HUB_OFFLINE is set; unset it, or use {OFFLINE}."
    if isinstance(problem, (OSError, ConnectionError)) and ("connect" in text.lower() or "internet" in text.lower()):
        return f"The Hub cannot be reached for {name}; check the network, or use {OFFLINE}, which works offline."
    return f"{name} cannot be loaded from the Hub ({text[:200]})."
