"""What all tests share: no network, a deterministic hypothesis profile, and the packaged model, loaded once."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

# Before transformers is imported: a test that reaches for the network must fail, not wait.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["ROSE_COMPUTE"] = "float32"  # numbers that tests pin must not depend on what the processor is good at
os.environ["ROSE_CACHE"] = ""  # what one test measured must not be there for the next, nor for the user

import hypothesis
import pytest
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rose
from rose.model.load import tokens

# Derandomized, so that a run says the same thing twice; `--hypothesis-profile=search` looks for new trouble.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=40)
hypothesis.settings.register_profile("search", deadline=None, max_examples=400)
hypothesis.settings.load_profile("suite")

# Below this folder, in the order in which they are run; of the last two, a file takes a minute and more.
LONG = ("browser", "test_notebooks.py", "seams", "faults")


@pytest.fixture(scope="session")
def packaged() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The packaged SmolLM2-135M in float32 and its tokenizer. Shared: copy the model before changing it."""
    return rose.load_model("smollm2-135m")


@pytest.fixture(scope="session", autouse=True)
def encoded_once() -> Iterator[None]:
    """The packaged text, which hundreds of tests calibrate on, is encoded once by equal tokenizers."""
    encode, packaged_text = tokens._encode, tokens.packaged_text()
    known: dict[str, Tensor] = {}

    def encode_once(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
        if text != packaged_text or not tokenizer.is_fast:
            return encode(tokenizer, text)
        key = tokenizer.backend_tokenizer.to_str()
        if key not in known:
            known[key] = encode(tokenizer, text)
        return known[key]

    with mock.patch.object(tokens, "_encode", encode_once):
        yield


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share their preparation stay on one worker; the long groups come first."""
    items.sort(key=lambda item: LONG.index(_part(item)) if _part(item) in LONG else len(LONG))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def _part(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).parts[0]


def _group(item: pytest.Item) -> str:
    """A file; browser tests are two groups, of which one measures on the server; each notebook is one."""
    part = _part(item)
    if part == "browser":
        return f"{part}, measured" if "measured" in item.fixturenames else part  # type: ignore[attr-defined]
    return item.name if part == "test_notebooks.py" else str(item.path)
