"""What all tests share: no network, a deterministic hypothesis profile, and the packaged model, loaded once."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

# Before transformers is imported: a test that reaches for the network must fail, not wait.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["ROSE_COMPUTE"] = "float32"  # numbers that tests pin must not depend on what the processor is good at
os.environ["ROSE_CACHE"] = ""  # what one test measured must not be there for the next, nor for the user

import hypothesis
import pytest

import rose  # and nothing that imports torch: pytest-xdist's controller, which runs no test, reads this file too

# Until tests are collected: what imports make stays, and looking through it takes a tenth of the time of all tests.
gc.disable()

# Derandomized, so that a run says the same thing twice; `--hypothesis-profile=search` looks for new trouble.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=40)
hypothesis.settings.register_profile("search", deadline=None, max_examples=400)
hypothesis.settings.load_profile("suite")

# Paths below this folder, the longest groups of tests first, so that no worker begins one when the others end.
LONG = ("browser", "test_notebooks.py", "faults", "model/check", "model/test_workers.py", "seams", "test_cli.py")


@pytest.fixture(scope="session")
def packaged() -> tuple[Any, Any]:
    """The packaged SmolLM2-135M in float32 and its tokenizer. Shared: copy the model before changing it."""
    return rose.load_model("smollm2-135m")


@pytest.fixture(scope="session", autouse=True)
def encoded_once() -> Iterator[None]:
    """The packaged text, which hundreds of tests calibrate on, is encoded once by equal tokenizers."""
    from rose.model.load import tokens

    encode, packaged_text = tokens._encode, tokens.packaged_text()
    encodings: dict[str, Any] = {}

    def encode_once(tokenizer: Any, text: str) -> Any:
        if text != packaged_text or not tokenizer.is_fast:
            return encode(tokenizer, text)
        key = tokenizer.backend_tokenizer.to_str()
        if key not in encodings:
            encodings[key] = encode(tokenizer, text)
        return encodings[key]

    with mock.patch.object(tokens, "_encode", encode_once):
        yield


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share their preparation stay on one worker; the long groups come first."""
    items.sort(key=lambda item: next((k for k, long in enumerate(LONG) if _place(item).startswith(long)), len(LONG)))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def _place(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).as_posix()


def _group(item: pytest.Item) -> str:
    """A file, but one group has the only browser, one imports diffusers, and one loads the packaged model."""
    place = _place(item)
    others = "packaged" if "packaged" in item.fixturenames else place  # type: ignore[attr-defined]
    return next((name for name in ("browser", "diffusion") if name in place), others)
