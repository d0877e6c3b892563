"""What all tests share: no network, a deterministic hypothesis profile, and the packaged model, loaded once."""

import os

# Before transformers is imported: a test that reaches for the network must fail, not wait.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["ROSE_CACHE"] = ""  # what one test measured must not be there for the next, nor for the user

import hypothesis
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rose

# Derandomized, so that a run says the same thing twice; `--hypothesis-profile=search` looks for new trouble.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=40)
hypothesis.settings.register_profile("search", deadline=None, max_examples=400)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def packaged() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The packaged SmolLM2-135M in float32 and its tokenizer. Shared: copy the model before changing it."""
    return rose.load_model("smollm2-135m")
