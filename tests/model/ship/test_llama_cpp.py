"""GGUF files read by llama.cpp: it computes what the model does, of every family that is exported, and reads text
alike."""

from typing import Any

import pytest
import torch
import transformers

from rose.model.ship.export import export_gguf
from tests.llama_cpp import ask
from tests.model.ship.test_export import CONFIGURATIONS, SIZES, merging_tokenizer, save

TEXT = "a rose is a rose, 1234 roses.\n\n  it's\té"
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
# Beside those that transformers reads again, two whose heads and positions it would not take from the file.
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
        tasks.append({"path": str(path), "prompts": [tokens, TEXT], "generate": 4, "threads": 1})
    found = {}
    for (key, model), said in zip(models.items(), ask(tasks), strict=True):
        with torch.no_grad():
            own = -model(input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(0)
        found[key] = own, torch.from_numpy(said["losses"]), said
    return found


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("family", MADE)
def test_llama_cpp_computes_what_the_model_does(family: str, kind: str, answers: dict[tuple[str, str], Any]) -> None:
    own, (after_tokens, after_text), said = answers[family, kind]
    assert said["counts"] == [len(merging_tokenizer()(TEXT).input_ids)] * 2
    assert torch.equal(after_tokens, after_text)
    assert (after_tokens - own).abs().mean() < FILES[kind][1] * own.std()
    assert said["said"]
