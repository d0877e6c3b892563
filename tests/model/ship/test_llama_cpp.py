"""GGUF files read by llama.cpp: it computes what the model does, of every family that is exported, and reads text
alike."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from rose.model.ship.export import export_gguf
from tests.model.ship.test_export import CONFIGURATIONS, SIZES, merging_tokenizer, save

CLIENT = Path(__file__).parents[2] / "llama_cpp.py"
TEXT = "a rose is a rose, 1234 roses.\n\n  it's\té"
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
# Beside those that transformers reads again, some of which it would take other heads or positions for granted.
MADE = CONFIGURATIONS | {
    "qwen3, short heads": lambda: transformers.Qwen3Config(**SIZES),
    "llama, positions scaled": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LINEAR),
}
# Type of the file, bits of the weights, and by how much losses may differ, in their standard deviation over tokens:
# beside weights of few bits llama.cpp rounds what enters a layer to eight bits. A query that meets another head's key
# changes them by a tenth and more.
FILES = {"f16": (None, 0.01), "q8_0": (8, 0.04), "q4_0": (4, 0.04)}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """By family and type of file: losses of the model and of llama.cpp after the same tokens, and after the text."""
    folder, models, tasks = tmp_path_factory.mktemp("gguf"), {}, []
    tokens = merging_tokenizer()(TEXT).input_ids
    for number, (family, kind) in enumerate((family, kind) for family in MADE for kind in FILES):
        source, path = folder / f"{number}", folder / f"{number}.gguf"
        models[family, kind] = save(MADE[family](), source, FILES[kind][0])
        export_gguf(str(source), path, kind)
        out = str(path.with_suffix(".npy"))
        tasks.append({"path": str(path), "prompts": [tokens, TEXT], "out": out, "generate": 4, "threads": 1})
    done = subprocess.run([sys.executable, CLIENT], input=json.dumps(tasks), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = {}
    for (key, model), task, line in zip(models.items(), tasks, done.stdout.splitlines(), strict=True):
        with torch.no_grad():
            own = -model(input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(0)
        found[key] = own, torch.from_numpy(np.load(str(task["out"]))), json.loads(line)
    return found


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("family", MADE)
def test_llama_cpp_computes_what_the_model_does(family: str, kind: str, answers: dict[tuple[str, str], Any]) -> None:
    own, (after_tokens, after_text), said = answers[family, kind]
    assert said["counts"] == [len(merging_tokenizer()(TEXT).input_ids)] * 2
    assert torch.equal(after_tokens, after_text)
    assert (after_tokens - own).abs().mean() < FILES[kind][1] * own.std()
    assert said["said"]
