"""GGUF files read by llama.cpp: it computes what the model does, of every family that is exported, and reads text
alike."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from gguf import GGUFReader, dequantize

import rose
from rose.model.ship.export import export_gguf
from tests.llama_cpp import ask
from tests.model.families import make_from
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
EMBEDDINGS = {"token_embd.weight": "get_input_embeddings", "output.weight": "get_output_embeddings"}
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
        for tensor in GGUFReader(path).tensors:  # embeddings are rounded, as llama.cpp does
            if tensor.name in EMBEDDINGS:
                weight: Any = getattr(models[family, kind], EMBEDDINGS[tensor.name])().weight
                weight.data.copy_(torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)))
        tasks.append({"path": str(path), "prompts": [tokens, TEXT], "generate": 4, "threads": 1})
    found = {}
    for (key, model), said in zip(models.items(), ask(tasks), strict=True):
        with torch.no_grad():
            own = -model(input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(0)
        found[key] = own, torch.from_numpy(said["losses"]), said
    return found


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("family", MADE)
def test_llama_cpp_computes_what_the_model_does(family, kind, answers):
    own, (after_tokens, after_text), said = answers[family, kind]
    assert said["counts"] == [len(merging_tokenizer()(TEXT).input_ids)] * 2
    assert torch.equal(after_tokens, after_text)
    assert (after_tokens - own).abs().mean() < FILES[kind][1] * own.std()
    assert said["said"]


WIDE = SIZES | {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 8, "num_key_value_heads": 4}
SLIMMED: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**WIDE),
    "qwen2": lambda: transformers.Qwen2Config(**WIDE),
    "qwen3": lambda: transformers.Qwen3Config(**WIDE),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **WIDE | {"num_hidden_layers": 6}, sliding_window=8, query_pre_attn_scalar=16
    ),
}


@pytest.mark.parametrize("family", SLIMMED)
def test_llama_cpp_reads_what_slimming_leaves_by_itself(family, tmp_path):
    """By default no family gets heads or biases that llama.cpp does not read there, and rows are whole blocks."""
    model = make_from(SLIMMED[family]())
    tokens = merging_tokenizer()(TEXT, return_tensors="pt").input_ids
    report = rose.prune_structured(model, tokens.repeat(4, 1), ratio=0.2)
    assert not [remark for remark in report.summary["remarks"] if "llama.cpp" in remark]
    rose.save_model(model, merging_tokenizer(), tmp_path / "model")
    assert not export_gguf(str(tmp_path / "model"), tmp_path / "4.gguf", "q4_0").unfit
    export_gguf(str(tmp_path / "model"), tmp_path / "16.gguf", "f16")
    (answer,) = ask([{"path": str(tmp_path / "16.gguf"), "prompts": [TEXT], "generate": 4, "threads": 1}])
    with torch.no_grad():
        own = -model(input_ids=tokens).logits[0, -1].log_softmax(0)
    assert (torch.from_numpy(answer["losses"][0]) - own).abs().mean() < FILES["f16"][1] * own.std()


@pytest.mark.parametrize(
    ("family", "recovery", "unread"),
    [("qwen2", "none", "another number of heads"), ("qwen3", "exact", "biases behind")],
)
def test_shapes_that_llama_cpp_does_not_read_are_remarked_on(family, recovery, unread):
    tokens = merging_tokenizer()(TEXT, return_tensors="pt").input_ids
    report = rose.prune_structured(make_from(SLIMMED[family]()), tokens, ratio=0.1, parts=["heads"], recovery=recovery)
    assert report.summary["remarks"][-1].startswith(f"llama.cpp and vLLM do not read {unread}")
