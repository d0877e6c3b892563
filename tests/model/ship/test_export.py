"""GGUF files of tiny models, read by transformers and llama.cpp: logits, zeros, and a tokenizer that reads alike."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import transformers
from gguf import GGUFReader, dequantize
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerFast

import rose
from rose import cli
from rose.layer.pattern import Grid
from rose.layer.rounding import choose_scales
from rose.model.network.layers import prunable_layers
from rose.model.ship import export
from rose.model.ship.export import Type, embedding_type, export_gguf
from rose.model.ship.families import family_of
from rose.output import PARTIAL
from rose.wording import size
from tests.layer.helpers import round_to
from tests.llama_cpp import ask
from tests.model.families import make_from, make_model
from tests.refusals import refused
from tests.tiny import byte_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip
CONFIGURATIONS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama, biases": lambda: transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
    # transformers takes head dimensions of 128 and 256, and 1024 positions of GPT-2, whatever a file says.
    "qwen3": lambda: transformers.Qwen3Config(**{**SIZES, "head_dim": 128, "num_attention_heads": 2}),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**SIZES, "num_hidden_layers": 6, "head_dim": 256, "num_attention_heads": 2}, sliding_window=8
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=1024, bos_token_id=0, eos_token_id=0
    ),
}
TOKENS = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(0))
TEXT = "a rose is a rose is a rose by any other name, roses are red " * 5


def without(weight: Tensor, share: float) -> Tensor:
    return torch.where(weight.abs() < weight.abs().float().quantile(share).to(weight.dtype), 0, weight)


def on_grid(weight: Tensor, bits: int, group: int) -> Tensor:
    grid = Grid(bits, group)
    return round_to(weight.float(), choose_scales(weight.float(), grid), grid).to(weight.dtype)


@cache
def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and their merges, 290 tokens; ids from there on are in no text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bytes_: dict[str, Any] = {"special_tokens": ["<pad>"], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    core.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=290, show_progress=False, **bytes_))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<pad>")


def save(configuration: PretrainedConfig, folder: Path, bits: int | None) -> Any:
    """A pruned model, on a grid where bits are given; biases and norms are random too."""
    model = make_from(configuration)
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.ndim == 1 or "embed" in name:
            generator = torch.Generator().manual_seed(number)
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator)).copy_(parameter.half().float())
    for layer in prunable_layers(model):
        weight = without(layer.weight.detach().float(), 0.5)
        layer.write(weight if bits is None else on_grid(weight, bits, 32))
    model.save_pretrained(folder)
    merging_tokenizer().save_pretrained(folder)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("family", CONFIGURATIONS)
@pytest.mark.parametrize(("kind", "bits"), [("f16", None), ("q4_0", 4), ("q8_0", 8)])
def test_the_exported_file_computes_what_the_model_does(kind, bits, family, tmp_path):
    model = save(CONFIGURATIONS[family](), tmp_path / "model", bits)
    made = export_gguf(str(tmp_path / "model"), tmp_path / "model.gguf", kind, embeddings="f32")
    loaded, tokenizer = rose.load_model(str(tmp_path / "model.gguf"))
    expected, exported = logits(model), logits(loaded)
    if bits:
        assert torch.equal(exported, expected)
        assert not made.rounded
        assert len(made.exact) == len(prunable_layers(model))
    else:
        assert torch.allclose(exported, expected, atol=3e-3 * float(expected.abs().max()))
    assert made.zeros >= sum(int((layer.weight == 0).sum()) for layer in prunable_layers(model))
    text = "A rose, 1234 roses.\n\n  it's\té"
    assert tokenizer(text).input_ids == merging_tokenizer()(text).input_ids
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.gguf"]


def test_the_rounding_error_of_f16_is_reported(tmp_path):
    """The error is over the rounded layers: one of fourteen here."""
    model = save(CONFIGURATIONS["llama"](), tmp_path / "model", None)
    first, *others = prunable_layers(model)
    for layer in others:
        layer.write(layer.weight.half().float())
    model.save_pretrained(tmp_path / "model")
    made = export_gguf(str(tmp_path / "model"), tmp_path / "model.gguf", "f16")
    missed = (first.weight.half().float() - first.weight).square().sum() / first.weight.square().sum()
    assert made.error == pytest.approx(float(missed), rel=1e-3)
    assert (made.rounded, made.embeddings) == ([f"{first.name}.weight"], ["lm_head.weight to f16"])
    assert not export_gguf(str(tmp_path / "model"), tmp_path / "q4_0.gguf", "q4_0").exact


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_embeddings_have_the_types_that_llama_cpp_gives_them(family, tmp_path):
    """The head, and an embedding that is also the head, have eight bits in a file of four; none is larger than said."""
    save(CONFIGURATIONS[family](), tmp_path / "model", 4)
    tied, head = family != "llama", {} if family != "llama" else {"output.weight": "Q8_0"}
    for kind, embeddings, expected in (
        ("q4_0", "auto", {"token_embd.weight": "Q8_0" if tied else "Q4_0"} | head),
        ("q8_0", "auto", dict.fromkeys(["token_embd.weight", *head], "Q8_0")),
        ("f16", "auto", dict.fromkeys(["token_embd.weight", *head], "F16")),
        ("q4_0", "f32", dict.fromkeys(["token_embd.weight", *head], "F32")),
    ):
        path, sentences = tmp_path / f"{kind}-{embeddings}.gguf", list[str]()
        made = export_gguf(str(tmp_path / "model"), path, kind, embeddings=embeddings, announce=sentences.append)
        tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
        assert {name: tensors[name].tensor_type.name for name in expected} == expected
        rounded = [name.rpartition(" ")[2] for name in made.embeddings if not name.endswith("f16")]
        assert rounded == [stored.lower() for stored in expected.values() if stored.startswith("Q")]
        assert (made.embedding_error > 0) == bool(made.embeddings)
        bytes_ = sum(tensor.n_bytes for tensor in tensors.values())
        assert sentences[0].startswith(f"The weights will take {size(bytes_)}: ")
    assert embedding_type(Type.Q4_0, True, 4096) == Type.Q8_0
    assert embedding_type(Type.Q8_0, False, 48) == embedding_type(Type.Q4_0, True, 48) == Type.F16


@pytest.mark.parametrize("kind", ["f16", "q4_0"])
def test_exports_write_only_beside_the_output(kind, tmp_path, monkeypatch):
    """Room is asked for there, for gathered tensors and for the file; what a killed export has left goes."""
    (tmp_path / f"{PARTIAL}dead").mkdir()
    save(CONFIGURATIONS["llama"](), tmp_path / "model", 4)
    asked: list[Any] = []
    monkeypatch.setattr(export, "check_room", lambda place, needed: asked.append((place, needed)))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    export_gguf(str(tmp_path / "model"), tmp_path / "a.gguf", kind)
    ((place, needed),) = asked
    matrices = sum(tensor.n_bytes for tensor in GGUFReader(tmp_path / "a.gguf").tensors if len(tensor.shape) > 1)
    assert place == tmp_path / "a.gguf"
    assert 2 * matrices < needed < 2.1 * matrices
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "model"]


def test_bad_exports_are_refused(tmp_path, capsys):
    save(CONFIGURATIONS["llama"](), tmp_path / "model", None)
    make_model("opt").save_pretrained(tmp_path / "opt")
    merging_tokenizer().save_pretrained(tmp_path / "opt")
    (tmp_path / "there.gguf").write_text("a file of mine")
    for folder, more, message in (
        ("model", ["--type", "q4_1"], "type must be one of f16, q8_0, q4_0, not 'q4_1'"),
        ("model", ["--output", str(tmp_path / "there.gguf")], "already exists; choose another name"),
        ("model", ["--output", str(tmp_path / "a.bin")], "must end in .gguf, not"),
        ("opt", [], "opt models cannot be exported"),
    ):
        assert cli.main(["export", str(tmp_path / folder), *more]) == 2
        assert message in capsys.readouterr().err
    says = "removed weights would not stay zero"
    refused(says, export_gguf, str(tmp_path / "model"), tmp_path / "model.gguf", "q4_k")
    assert (tmp_path / "there.gguf").read_text() == "a file of mine"
    byte_tokenizer().save_pretrained(tmp_path / "model")
    refused("This tokenizer has no merges", export_gguf, str(tmp_path / "model"), tmp_path / "model.gguf", "f16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "opt", "there.gguf"]


@pytest.mark.parametrize(
    ("family", "other"),
    [("llama", "gelu_pytorch_tanh"), ("qwen2", "gelu"), ("gemma3", "silu"), ("gpt2", "quick_gelu"), ("gpt2", "gelu")],
)
def test_activations_that_llama_cpp_does_not_compute_are_refused(family, other):
    config = CONFIGURATIONS[family]()
    setattr(config, family_of(config).field, other)
    refused(rf"llama.cpp computes .*, not {other}; use transformers", family_of, config)


def test_the_tokenizer_of_a_file_is_taken_over(tmp_path):
    """By the command, and again from the file that it has written."""
    save(CONFIGURATIONS["llama"](), tmp_path / "model", 4)
    assert cli.main(["export", str(tmp_path / "model"), "--type", "q4_0", "--to", "gguf"]) == 0
    first = tmp_path / "model-q4_0.gguf"
    for others in ("[]", "{}", "<html>"):  # reports of other programs
        (tmp_path / "model/report.json").write_text(others)
        first.unlink()
        export_gguf(str(tmp_path / "model"), first, "q4_0")
    (tmp_path / "model/report.json").write_text('{\n "version": ')  # of ours, what is left
    with pytest.raises(rose.RoseError, match=r"is damaged \(.*\); bring back a whole one"):
        export_gguf(str(tmp_path / "model"), tmp_path / "again.gguf", "q4_0")
    made = export_gguf(str(first), tmp_path / "again.gguf", "q4_0")
    assert made.vocabulary == first.name
    assert cli.main(["export", str(first), "--type", "q4_0"]) == 0
    assert (tmp_path / "model-q4_0-q4_0.gguf").is_file()
    first_fields, second_fields = (GGUFReader(path).fields for path in (first, tmp_path / "again.gguf"))
    names = [name for name in {*first_fields, *second_fields} if name.startswith("tokenizer.")]
    assert all(first_fields[name].contents() == second_fields[name].contents() for name in names)


@pytest.mark.parametrize("changed", ["nothing", "chat template", "tokenizer"])
def test_a_changed_tokenizer_wins_over_that_of_the_source_file(changed, tmp_path):
    save(CONFIGURATIONS["llama"](), tmp_path / "model", 4)
    first = tmp_path / "first.gguf"
    export_gguf(str(tmp_path / "model"), first, "q4_0")
    model, tokenizer = rose.load_model(str(first))
    if changed == "chat template":
        tokenizer.chat_template = "a template of mine"
    if changed == "tokenizer":
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(5)
    report = rose.prune_model(model, TOKENS, sparsity=0.5, block_size=16, layers=["*.0.*"])
    rose.save_model(model, tokenizer, tmp_path / "pruned", report=report.with_recipe(model=str(first)))
    made = export_gguf(str(tmp_path / "pruned"), tmp_path / "second.gguf", "f16")
    assert made.vocabulary == ("tokenizer.json" if changed == "tokenizer" else first.name)
    caution = f"The folder's {changed} is in the file; first.gguf has another."
    assert (caution in made.remarks("f16")) == (changed != "nothing")
    again = rose.load_model(str(tmp_path / "second.gguf"))[1]
    assert (again.chat_template, again.eos_token) == (tokenizer.chat_template, tokenizer.eos_token)
    assert again("A rose, 1234 roses.").input_ids == tokenizer("A rose, 1234 roses.").input_ids


def test_named_templates_and_tokens_without_a_row_are_exported(tmp_path):
    save(CONFIGURATIONS["llama"](), tmp_path / "model", None)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = {"default": "all", "tool_use": "tools"}
    tokenizer.add_tokens([f"<{number}>" for number in range(len(tokenizer), 301)])  # of 300 rows
    tokenizer.save_pretrained(tmp_path / "model")
    made = export_gguf(str(tmp_path / "model"), tmp_path / "model.gguf", "f16")
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == "all"
    assert fields["tokenizer.chat_template.tool_use"].contents() == "tools"
    assert "Left out, as the model has no row for them: tokens <300>." in made.remarks("f16")


def test_byte_fallback_tokenizers_are_exported(tmp_path):
    """As of LLaMA 2 and Gemma: scores stand for the order of merges."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(Regex("\n"), "isolated")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<bos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    core.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=310, special_tokens=special, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<bos>")
    sizes = SIZES | {"vocab_size": 312, "num_hidden_layers": 1, "sliding_window": 8, "query_pre_attn_scalar": 16}
    make_from(transformers.Gemma3TextConfig(**sizes)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    export_gguf(str(tmp_path / "model"), tmp_path / "model.gguf", "f16")
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "model.gguf").fields.items()}
    types = fields["tokenizer.ggml.token_type"]
    assert (types[0], types[2], types[-1]) == (2, 3, 5)  # the trainer makes bytes special
    scores, tokens = fields["tokenizer.ggml.scores"], fields["tokenizer.ggml.tokens"]
    merged = ["".join(pair) for pair in json.loads(core.to_str())["model"]["merges"]]
    by_score = [token for _, token in sorted(zip(scores, tokens, strict=True), key=lambda entry: -entry[0])]
    assert by_score[: len(merged)] == merged


SAMPLE = "a rose is a rose, 1234 roses.\n\n  it's\té"
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
    tokens = merging_tokenizer()(SAMPLE).input_ids
    for number, (family, kind) in enumerate((family, kind) for family in MADE for kind in FILES):
        source, path = folder / f"{number}", folder / f"{number}.gguf"
        models[family, kind] = save(MADE[family](), source, FILES[kind][0])
        export_gguf(str(source), path, kind)
        for tensor in GGUFReader(path).tensors:  # embeddings are rounded, as llama.cpp does
            if tensor.name in EMBEDDINGS:
                weight: Any = getattr(models[family, kind], EMBEDDINGS[tensor.name])().weight
                weight.data.copy_(torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)))
        tasks.append({"path": str(path), "prompts": [tokens, SAMPLE], "generate": 4, "threads": 1})
    by_key = {}
    for (key, model), reply in zip(models.items(), ask(tasks), strict=True):
        with torch.no_grad():
            losses = -model(input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(0)
        by_key[key] = losses, torch.from_numpy(reply["losses"]), reply
    return by_key


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("family", MADE)
def test_llama_cpp_computes_what_the_model_does(family, kind, answers):
    losses, (after_tokens, after_text), reply = answers[family, kind]
    assert reply["counts"] == [len(merging_tokenizer()(SAMPLE).input_ids)] * 2
    assert torch.equal(after_tokens, after_text)
    assert (after_tokens - losses).abs().mean() < FILES[kind][1] * losses.std()
    assert reply["said"]


WIDE = SIZES | {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 8, "num_key_value_heads": 4}
GEMMA3 = WIDE | {"num_hidden_layers": 6, "sliding_window": 8, "query_pre_attn_scalar": 16}
SLIMMED: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**WIDE),
    "qwen2": lambda: transformers.Qwen2Config(**WIDE),
    "qwen3": lambda: transformers.Qwen3Config(**WIDE),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GEMMA3),
}


@pytest.mark.parametrize("family", SLIMMED)
def test_llama_cpp_reads_a_slimmed_model(family, tmp_path):
    """By default no family gets heads or biases that llama.cpp does not read there, and rows are whole blocks."""
    model = make_from(SLIMMED[family]())
    tokens = merging_tokenizer()(SAMPLE, return_tensors="pt").input_ids
    report = rose.prune_structured(model, tokens.repeat(4, 1), ratio=0.2)
    assert not [remark for remark in report.summary["remarks"] if "llama.cpp" in remark]
    rose.save_model(model, merging_tokenizer(), tmp_path / "model")
    assert not export_gguf(str(tmp_path / "model"), tmp_path / "4.gguf", "q4_0").unfit
    export_gguf(str(tmp_path / "model"), tmp_path / "16.gguf", "f16")
    (answer,) = ask([{"path": str(tmp_path / "16.gguf"), "prompts": [SAMPLE], "generate": 4, "threads": 1}])
    with torch.no_grad():
        losses = -model(input_ids=tokens).logits[0, -1].log_softmax(0)
    assert (torch.from_numpy(answer["losses"][0]) - losses).abs().mean() < FILES["f16"][1] * losses.std()


@pytest.mark.parametrize(
    ("family", "recovery", "unread"),
    [("qwen2", "none", "another number of heads"), ("qwen3", "exact", "biases behind")],
)
def test_shapes_that_llama_cpp_does_not_read_are_remarked_on(family, recovery, unread):
    options: dict[str, Any] = {"ratio": 0.1, "parts": ["heads"], "recovery": recovery}
    report = rose.prune_structured(make_from(SLIMMED[family]()), TOKENS, **options)
    assert report.summary["remarks"][-1].startswith(f"llama.cpp and vLLM do not read {unread}")


def test_a_second_export_to_the_same_file_is_refused(tmp_path):
    save(CONFIGURATIONS["llama"](), tmp_path / "model", None)
    task, tries = (str(tmp_path / "model"), tmp_path / "model.gguf", "f16"), []

    def follow(*_: Any) -> None:
        if not tries:
            tries.append("second")
            begun = Mock(side_effect=AssertionError)
            tries.append(refused("is being written by another process", export_gguf, *task, begun))

    export_gguf(*task, follow)
    assert len(tries) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.gguf"]
