"""Models are loaded and saved, and every failure is one clear sentence."""

import copy
import json
import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
import torch
import transformers
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.utils import logging

import rose
from rose import output
from rose.errors import Cancelled
from rose.interrupt import stoppable
from rose.model.load import models
from rose.model.load.models import has_tokenizer, load_skeleton, stored_dtype
from rose.model.packaged import PACKAGED, PackagedModel
from rose.tensor_files import digest
from tests.model.families import VOCABULARY, logits, make_model, make_tokens
from tests.refusals import refused
from tests.tiny import byte_tokenizer, edit_config

SETTINGS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template.json")


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: transformers.PreTrainedTokenizerFast) -> Path:
    """A good checkpoint. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    rose.save_model(make_model("llama"), tokenizer, folder)
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "llama"))


@pytest.mark.parametrize("stream", [False, True])
def test_a_vision_model_keeps_its_image_processor(stream, tmp_path):
    """Code that its settings name does not come along."""
    text = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes, folder = {"image_size": 8, "patch_size": 4}, tmp_path / "dense"
    config = transformers.Gemma3Config(text_config=text | heads, vision_config=vision | sizes, mm_tokens_per_image=1)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    code = {"auto_map": {"AutoProcessor": "mine.Processor"}}
    for name in SETTINGS:
        (folder / name).write_text(json.dumps({"name": name, "image_processor": {"size": 8} | code} | code))
    rose.save_model(*rose.load_model(str(folder), stream=stream), tmp_path / "copy")
    for name in SETTINGS:
        assert json.loads((tmp_path / "copy" / name).read_text()) == {"name": name, "image_processor": {"size": 8}}


def test_reading_only_the_language_part_is_reported(tmp_path, caplog):
    text = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "layer_types": ["full_attention"]}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    vision["num_position_embeddings"] = 16
    config = transformers.Qwen3_5Config(text_config=text | heads, vision_config=vision)
    transformers.Qwen3_5ForConditionalGeneration(config).save_pretrained(tmp_path / "seeing")
    byte_tokenizer().save_pretrained(tmp_path / "seeing")
    for stream in (False, True):
        caplog.clear()
        model, _ = rose.load_model(str(tmp_path / "seeing"), stream=stream)
        (message,) = caplog.messages
        assert message.startswith(f"{tmp_path / 'seeing'}: Only the language model of these files was read")
        report = rose.prune_model(model, make_tokens(), method="magnitude", target="layer")
        assert any(map(message.endswith, report.remarks))


def test_licences_are_copied_and_settings_and_code_of_other_models_are_not(checkpoint, tmp_path):
    licences = {"LICENSE": b"Agreed.\r\n\xe9", "USE_POLICY.md": b"Do no harm.", "NOTICE.txt": b"Ours."}
    for name, content in (licences | {"README.md": b"dense", "preprocessor_config.json": b"{}"}).items():
        (checkpoint / name).write_bytes(content)
    edit_config(checkpoint, auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    rose.save_model(*rose.load_model(str(checkpoint)), tmp_path / "copy")
    assert {name: (tmp_path / "copy" / name).read_bytes() for name in licences} == licences
    names = {path.name for path in checkpoint.iterdir()} - {"README.md", "preprocessor_config.json"}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == names
    assert "auto_map" not in json.loads((tmp_path / "copy" / "config.json").read_text())


@pytest.mark.parametrize(
    ("stored", "computes", "read"),
    [
        ("bfloat16", "bfloat16", torch.bfloat16),
        ("bfloat16", "float32", torch.float32),
        ("float16", "bfloat16", torch.float32),
        ("float32", "bfloat16", torch.float32),
    ],
)
def test_weights_keep_a_format_that_the_machine_computes_in(stored, computes, read, saved, tmp_path, monkeypatch):
    model, tokenizer = rose.load_model(str(saved), dtype=stored)
    rose.save_model(model, tokenizer, tmp_path / "out")
    monkeypatch.setenv("ROSE_COMPUTE", computes)
    again, _ = rose.load_model(str(tmp_path / "out"))
    assert {parameter.dtype for parameter in again.parameters()} == {read}
    assert stored_dtype(str(tmp_path / "out")) == getattr(torch, stored)
    assert digest(again.float().state_dict()) == digest(model.float().state_dict())


def test_skeleton_has_the_layers_but_no_weights(saved):
    skeleton, (model, _) = load_skeleton(str(saved)), rose.load_model(str(saved))
    shapes = [{x.name: x.weight.shape for x in rose.prunable_layers(each)} for each in (skeleton, model)]
    assert shapes[0] == shapes[1]
    assert all(parameter.device.type == "meta" for parameter in skeleton.parameters())
    refused("holds no config", load_skeleton, str(saved.parent))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


UP, UNREADABLE = "model.layers.1.mlp.up_proj.weight", "a file is missing, corrupt or of an unknown kind"
MASKS: dict[str, Any] = {f"{UP}_mask": torch.ones(1)}
SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights cut off": (lambda folder: os.truncate(folder / "model.safetensors", 9000), UNREADABLE),
    "no weights": (partial(remove, pattern="*.safetensors"), UNREADABLE),
    "configuration cut off": (lambda folder: (folder / "config.json").write_text("{"), UNREADABLE),
    "tokenizer cut off": (lambda folder: (folder / "tokenizer.json").write_text("{"), UNREADABLE),
    "unknown family": (partial(edit_config, model_type="nonsense"), UNREADABLE),
    "no configuration": (partial(remove, pattern="config.json"), r"holds no config\.json, so it is not a checkpoint"),
    "no tokenizer": (partial(remove, pattern="tokenizer*"), r"has no tokenizer; copy tokenizer\.json and"),
    "other shapes": (
        partial(edit_config, hidden_size=64),
        r"is of shape \(96, 32\) in the files of .* but of \(96, 64\) by its config.json",
    ),
    "missing weight": (
        partial(edit_weights, edit=lambda weights: weights.pop(UP)),
        rf"lacks 1 of the weights .* such as {UP}; it is incomplete, or was saved without its language model head",
    ),
    "masks": (
        partial(edit_weights, edit=lambda weights: weights.update({f"{UP}_orig": weights.pop(UP)} | MASKS)),
        r"call torch\.nn\.utils\.prune\.remove\(layer, \"weight\"\) for every pruned layer",
    ),
    "adapter": (
        lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2"}'),
        r"holds an adapter; merge it into its model first \(in peft: model\.merge_and_unload\(\)",
    ),
    "four bits": (
        partial(edit_config, quantization_config={"quant_method": "gptq", "bits": 4}),
        "is quantized by gptq, which cannot be read; give the model before",
    ),
    "encoder": (
        partial(edit_config, model_type="bert", architectures=["BertForMaskedLM"]),
        "is a bert encoder, not a causal language model; choose a decoder",
    ),
    "encoder-decoder": (partial(edit_config, model_type="t5"), "is a t5 model, not a causal language model"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_broken_checkpoints_are_refused_in_one_sentence(case, checkpoint):
    spoil, message = SPOILT[case]
    spoil(checkpoint)
    refused(message, rose.load_model, str(checkpoint))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./absent", r"is not a folder, a \.gguf file or a Hub id"),
        ("/no/such/model.gguf", "There is no file /no/such/model.gguf; check the path"),
        ("own!er/model", r"is not a folder, a \.gguf file or a Hub id"),
        ("m/lama", r"^There is no folder m/lama\. m/lama is not in the local cache and HF_HUB_OFFLINE is set"),
        ("n/lama", r"^n/lama is not in the local cache and HF_HUB_OFFLINE is set; unset it, or use"),
        ("model.bin", r"is a file, but not a \.gguf file"),
        ("cut.gguf", "is damaged: "),
        ("short.gguf", "is damaged: .* goes on beyond its end; get the file again"),
        (None, "must be a string or a Path, not None"),
    ],
)
def test_a_name_without_a_model_is_refused(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m").mkdir()
    packaged = PACKAGED["smollm2-135m"].path()
    for file, content in (("model.bin", b"x"), ("cut.gguf", b"GG"), ("short.gguf", packaged.read_bytes()[:1_000_000])):
        Path(file).write_bytes(content)
    assert len(refused(message, rose.load_model, name)) < 500


def test_another_tokenizer_can_be_given(checkpoint, saved):
    remove(checkpoint, "tokenizer*")
    _, tokenizer = rose.load_model(str(checkpoint), tokenizer=saved)
    assert tokenizer.encode("a") == rose.load_model(str(saved))[1].encode("a")
    (checkpoint / "tekken.json").touch()
    assert has_tokenizer(str(checkpoint))


def test_a_repository_that_wants_remote_code_is_refused(checkpoint):
    ran = checkpoint / "ran"
    (checkpoint / "custom.py").write_text(f"open({str(ran)!r}, 'w').close()")
    code = {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}
    edit_config(checkpoint, model_type="custom", auto_map=code)
    message = r"needs to run Python code from its repository; .*by trust-remote-code"
    refused(message, rose.load_model, str(checkpoint))
    assert not ran.exists()


def test_too_little_memory_is_refused_before_loading(saved, monkeypatch):
    parameters = sum(p.numel() for p in make_model("llama").parameters())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=parameters * 3))
    message = r"takes in float32 93 kB of memory, and .* are free; load it in bfloat16, or choose a smaller"
    refused(message, rose.load_model, str(saved))
    rose.load_model(str(saved), dtype="bfloat16")  # two bytes each do fit


@pytest.mark.parametrize("kind", ["Python", "torch"])
def test_running_out_of_memory_while_loading_is_reported(kind, saved, monkeypatch):
    def exhausted(*_args: Any, **_options: Any) -> None:
        if kind == "torch":
            torch.empty(10**14)
        raise MemoryError

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", exhausted)
    refused("not enough memory for .*; choose a smaller model or bfloat16", rose.load_model, str(saved))


def http_error(status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError("some long\nexplanation", response=response)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (http_error(404), "There is no model someone/model on the Hub; check the spelling"),
        (http_error(401), "does not let you read someone/model: it does not exist, or needs `hf auth login`"),
        (OSError("We couldn't connect to 'https://…' to load the files"), "The Hub cannot be reached for someone/"),
        (OSError("model is not a local folder and is not a valid model identifier"), "There is no model someone/model"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_problems_of_the_hub_are_reported(problem, message, wrapped, monkeypatch):
    raised = OSError(str(problem)) if wrapped else problem
    raised.__cause__ = problem if wrapped else None
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", Mock(side_effect=raised))
    refused(message, rose.load_model, "someone/model")


def test_packages_are_located_not_imported(monkeypatch, tmp_path):
    package = tmp_path / "surprising_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = PackagedModel("surprising_package", "surprising", "model.gguf", "")
    assert entry.path() is None
    (package / "model.gguf").write_bytes(b"GGUF")
    assert entry.path() == package / "model.gguf"
    assert PackagedModel("absent_package", "absent", "model.gguf", "").path() is None


def test_the_packaged_model_is_pruned_saved_and_loaded(packaged, tmp_path):
    """Loads, generates, is pruned, saved, and loaded by transformers alone with identical logits."""
    model, tokenizer = packaged
    assert type(model).__name__ == "LlamaForCausalLM"
    assert len(rose.prunable_layers(model)) == 210
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=6, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0])
    pruned = copy.deepcopy(model)
    pruned.model.layers, pruned.config.num_hidden_layers = pruned.model.layers[:2], 2
    tokens = rose.load_tokens("packaged", tokenizer, samples=2, length=32)
    report = rose.prune_model(pruned, tokens, sparsity=0.5, layers=["*.layers.1.self_attn.o_proj"])
    rose.save_model(pruned, tokenizer, tmp_path / "pruned", report=report)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype=torch.float32).eval()
    assert torch.equal(logits(again, tokens[:1]), logits(pruned, tokens[:1]))
    assert float(again.model.layers[1].self_attn.o_proj.weight.eq(0).float().mean()) == pytest.approx(0.5, abs=1e-4)
    same = transformers.AutoTokenizer.from_pretrained(tmp_path / "pruned")
    assert same("Hello world")["input_ids"] == tokenizer("Hello world")["input_ids"]


def test_models_are_saved_into_new_empty_linked_and_working_folders(tmp_path, tokenizer, monkeypatch):
    """Links, mount points and the working folder cannot be replaced by another folder."""
    for name in ("empty", "plain", "here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "there" / f"{output.PARTIAL}of-a-killed-run").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "new", tmp_path / "link", Path()):
        rose.save_model(make_model("llama"), tokenizer, folder)
        transformers.AutoModelForCausalLM.from_pretrained(folder.resolve())
        assert (folder / "tokenizer.json").is_file()
        assert [path.name for path in folder.resolve().parent.iterdir() if path.name.startswith(".")] == []
        assert folder.stat().st_mode & 0o777 == (tmp_path / "plain").stat().st_mode & 0o777
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(rose.RoseError, match="already exists and is not an empty folder; choose another output"):
        rose.save_model(make_model("llama"), tokenizer, tmp_path / "empty")


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (OSError(28, "No space left on device"), rose.RoseError),
        (SafetensorError("I/O error: no space"), rose.RoseError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_failed_writing_leaves_no_file(problem, expected, exists, tmp_path, tokenizer, monkeypatch):
    if exists:
        (tmp_path / "out").mkdir()

    # The tokenizer comes last: by then the weights are on the disk.
    monkeypatch.setattr(tokenizer, "save_pretrained", Mock(side_effect=problem))
    with pytest.raises(expected, match=r"^$|could not be written to .*[Nn]o space"):
        rose.save_model(make_model("llama"), tokenizer, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == (["out"] if exists else [])


def test_loading_is_quiet_and_restores_the_logger(saved, capfd):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    rose.load_model(str(saved))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("load", [rose.load_model, load_skeleton])
def test_waiting_for_another_load_can_be_cancelled(saved, load):
    waiting, done, in_time = threading.Event(), threading.Event(), []

    def hold() -> None:
        with models._quiet():
            waiting.set()
            in_time.append(done.wait(10))

    other = threading.Thread(target=hold)
    other.start()
    waiting.wait(60)
    try:
        with stoppable(Mock(side_effect=Cancelled)), pytest.raises(Cancelled):
            load(str(saved))
    finally:
        done.set()
        other.join()
    assert in_time == [True]  # it went before the other one had ended
    assert load(str(saved))


@pytest.mark.parametrize("stream", [False, True])
def test_a_packed_folder_of_an_earlier_version_is_refused_in_a_sentence(checkpoint, stream):
    (checkpoint / "model.safetensors").rename(checkpoint / "model.packed.safetensors")
    says = rf"{checkpoint} is packed, .* run `rose unpack` of the version that packed it, and give the folder"
    refused(says, rose.load_model, str(checkpoint), stream=stream)
