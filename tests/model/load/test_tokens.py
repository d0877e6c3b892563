"""Token windows from the packaged text, from files, and from imitated datasets."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import rose
from rose.model.load import tokens as calibration
from rose.model.load.tokens import DATASETS, is_downloaded, load_text, load_tokens, packaged_text
from tests.refusals import refused

WORDS = 1000


def word_level(special: dict[str, int]) -> Tokenizer:
    words = {f"w{i}": i for i in range(WORDS)} | {"[UNK]": WORDS} | special
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return core


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; "w17" is token 17, so that windows show where they come from."""
    return PreTrainedTokenizerFast(tokenizer_object=word_level({}), unk_token="[UNK]")


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "words.txt"
    path.write_text(" ".join(f"w{i}" for i in range(WORDS)))
    return str(path)


def are_runs(tokens: Tensor) -> bool:
    """Whether every window is an unbroken piece of the text w0 w1 w2 …"""
    return bool((tokens.diff(dim=1) == 1).all())


@pytest.mark.parametrize(("samples", "length"), [(10, 100), (9, 100), (20, 50), (3, 333), (500, 2)])
def test_random_windows_do_not_overlap(text, tokenizer, samples, length):
    for seed in range(5):
        tokens = rose.load_tokens(text, tokenizer, samples=samples, length=length, seed=seed)
        assert tokens.shape == (samples, length)
        assert are_runs(tokens)
        assert len(tokens.unique()) == samples * length


def test_more_windows_than_fit_are_drawn_independently_and_reported(text, tokenizer, caplog):
    rose.load_tokens(text, tokenizer, samples=10, length=100)
    assert not caplog.text
    tokens = rose.load_tokens(text, tokenizer, samples=40, length=100)
    assert "40 windows of 100 overlap" in caplog.text
    assert tokens.shape == (40, 100)
    assert are_runs(tokens)
    assert tokens[:, 0].min() < 200 < 700 < tokens[:, 0].max()


def test_seeds_reproduce_and_differ(text, tokenizer):
    draws = [rose.load_tokens(text, tokenizer, samples=5, length=50, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    state = torch.get_rng_state()
    rose.load_tokens(text, tokenizer, samples=5, length=50, seed=3)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers are touched


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (None, {"length": 1001}, "has 1000 tokens, fewer than one window of 1001; ask for shorter"),
        (None, {"samples": 11, "length": 100, "seed": None}, "has 1000 tokens, too few for 11 windows of 100"),
        (None, {"samples": 0}, "number of windows must be a whole number of at least 1, not 0"),
        (None, {"length": 1}, "at least 2 tokens, not 1"),
        (None, {"samples": None}, "give seed=None with samples=None"),
        (None, {"bos": "always"}, "tokenizer has no beginning-of-sequence token; choose"),
        ("wikitext3", {}, r"Unknown text .*give one of wikitext2, c4, ptb, packaged, or a \.txt"),
        ("absent.txt", {}, r"There is no file .*; check the path"),
        ("binary.txt", {}, r"binary\.txt is not UTF-8 text .*; save it as UTF-8"),
        ("bad.jsonl", {}, r'bad\.jsonl, line 3 is not a JSON object with a "text"'),
        ("c4", {}, r'cannot be loaded \(reset by peer\); check the network, or give a .txt file or "packaged"'),
    ],
)
def test_impossible_windows_and_texts_are_refused(text, tokenizer, source, options, message, tmp_path, monkeypatch):
    def rows() -> Any:
        yield {"text": "w1"}
        raise ConnectionError("reset\nby peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_options: rows())
    monkeypatch.chdir(tmp_path)
    Path("binary.txt").write_bytes(b"\xff\xfe\x00\x9f")
    Path("bad.jsonl").write_text('{"text": "w1"}\n\nnot json\n{"text": "w2"}\n')
    options = {"samples": 1, "length": 10, "tokenizer": tokenizer} | options
    refused(message, rose.load_tokens, text if source is None else source, options.pop("tokenizer"), **options)


FIRST = WORDS + 1


@pytest.mark.parametrize(
    ("template", "bos", "begins"),
    [
        ("[BOS] $A", "auto", True),
        ("[BOS] $A [EOS]", "auto", True),
        ("$A [EOS]", "auto", False),
        ("$A", "auto", False),
        ("$A", "always", True),
        ("[BOS] $A", "always", True),
        ("[BOS] $A [EOS]", "never", False),
    ],
)
def test_windows_begin_with_the_requested_tokens(text, template, bos, begins):
    special = {"[BOS]": FIRST, "[EOS]": FIRST + 1}
    core = word_level(special)
    core.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(special.items()))
    names = {"unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    drawn = rose.load_tokens(text, tokenizer, samples=7, length=50, bos=bos)
    in_order = rose.load_tokens(text, tokenizer, samples=None, length=101, seed=None, bos=bos)
    tokens, held_out = load_tokens(text, tokenizer, samples=5, held_out=2, length=50, seed=0, bos=bos)
    assert held_out is not None
    assert torch.equal(torch.cat([tokens, held_out]), drawn)
    assert drawn.shape == (7, 50)
    for windows in (drawn, in_order):
        assert bool((windows[:, 0] == FIRST).all()) == begins
        assert windows[:, int(begins) :].max() < WORDS  # no other special token
        assert are_runs(windows[:, int(begins) :])
    assert torch.equal(in_order[:, int(begins) :].flatten(), torch.arange(1000 if begins else 909))


def test_packaged_text_is_english_and_long(packaged):
    text = packaged_text()
    assert len(text) > 300_000
    assert text == load_text("packaged")
    assert text.count(" the ") > 2000
    tokens = rose.load_tokens("packaged", packaged[1], samples=4, length=32)
    assert tokens.shape == (4, 32)
    assert packaged[1].decode(tokens[0]) in packaged[1].decode(packaged[1](text)["input_ids"])


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", b"\xef\xbb\xbfhello", "hello"),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "hello"}\n', "hello"),
        ("a.jsonl", b'{"text": "w1 w2"}\n\n{"text": "w3"}\r\n   \n{"text": ""}\n{"text": "w4"}', "w1 w2|w3||w4"),
        # Raw U+2028 and U+0085 are legal within JSON strings, and common in web text.
        ("a.jsonl", '{"text": "a\u2028b"}\n{"text": "c\u0085d"}'.encode(), "a\u2028b|c\u0085d"),
        ("a.jsonl", b'{"text": "cut \\ud83d"}\n{"text": "whole \\ud83d\\ude00"}\n', "cut \ufffd|whole \U0001f600"),
    ],
)
def test_a_file_is_read_as_its_texts_with_empty_lines_between(name, content, text, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert load_text(str(tmp_path / name)) == text.replace("|", "\n\n")


@pytest.mark.parametrize(
    ("source", "split", "rows", "text", "asked"),
    [
        ("wikitext2", "test", ["w1", "", "w3 w4"], "w1\n\n\n\nw3 w4", ("Salesforce/wikitext", "wikitext-2-raw-v1")),
        ("ptb", "test", ["w1 w2", "w3"], "w1 w2 w3", ("ptb-text-only/ptb_text_only", "penn_treebank")),
        ("c4", "train", ["w1 w2", "w3"], "w1 w2\n\nw3", ("allenai/c4", None)),
        ("c4", "validation", ["w1 w2", "w3"], "w1 w2\n\nw3", ("allenai/c4", None)),
    ],
)
def test_dataset_rows_are_joined(source, split, rows, text, asked, monkeypatch):
    calls: list[tuple[tuple, dict[str, Any]]] = []
    column = "sentence" if source == "ptb" else "text"

    def load(*arguments: Any, **options: Any) -> Any:
        calls.append((arguments, options))
        table = [{column: row} for row in rows]
        return iter(table) if options.get("streaming") else datasets.Dataset.from_list(table)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_text(source, split=split) == text
    ((arguments, options),) = calls
    assert arguments == asked
    assert options.pop("split") == split
    shard = {"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"}
    streamed = {"streaming": True, "data_files": {split: shard.get(split)}}
    assert options == {"wikitext2": {}, "ptb": {"revision": "refs/convert/parquet"}, "c4": streamed}[source]


@pytest.mark.parametrize(("source", "is_kept"), [("wikitext2", True), ("ptb", True), ("c4", False)])
def test_cached_datasets_are_recognized_by_repository(source, is_kept, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert not is_downloaded(source)
    (tmp_path / f"datasets--{DATASETS[source].repository.replace('/', '--')}").mkdir()
    assert is_downloaded(source) == is_kept  # what is streamed leaves no file


@pytest.mark.parametrize(("samples", "held_out"), [(7, 4), (30, 1)])
def test_held_out_windows_are_disjoint_from_calibration(text, tokenizer, samples, held_out):
    for length in (50, 120):  # a thousand words in all, each once
        tokens, others = load_tokens(text, tokenizer, samples=samples, held_out=held_out, length=length, seed=1)
        assert (tokens.shape, others.shape) == ((samples, length), (held_out, length))
        assert set(tokens.flatten().tolist()).isdisjoint(others.flatten().tolist())
    message, sizes = "too few to calibrate on windows of 300 and to hold 3 others out", {"held_out": 3, "length": 300}
    refused(message, load_tokens, text, tokenizer, samples=1, seed=0, **sizes)
    refused("give a seed", load_tokens, text, tokenizer, samples=2, length=50, seed=None, held_out=1)
    assert load_tokens(text, tokenizer, samples=2, length=50, held_out=0)[1] is None


@pytest.mark.parametrize("separator", [" ", "\n\n"])
def test_long_texts_are_cut_into_tokens_part_by_part(separator, tmp_path, tokenizer, monkeypatch):
    path = tmp_path / "words.txt"
    path.write_text(separator.join(f"w{i}" for i in range(WORDS)))
    whole = rose.load_tokens(str(path), tokenizer, samples=None, seed=None, length=50)
    monkeypatch.setattr(calibration, "PART", 60 if separator != " " else 10**6)
    parts = rose.load_tokens(str(path), tokenizer, samples=None, seed=None, length=50)
    assert torch.equal(whole, parts)
    monkeypatch.setattr(calibration, "PART", 61)
    assert len(calibration._encode(tokenizer, path.read_text())) >= WORDS  # a word may be cut, none is lost
