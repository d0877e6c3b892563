"""The tokenizer of a GGUF file, copied from another file or written from tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter, TokenType

from rose.errors import RoseError
from rose.model.load.tokens import first_token

# Beginnings of the patterns by which byte-level vocabularies split text -> what llama.cpp calls them.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
SPLITS = {CONTRACTIONS + "\\p{N}{1,3}|": "llama-bpe", CONTRACTIONS + "\\p{N}|": "qwen2"}
IDS = {"bos": "add_bos_token_id", "eos": "add_eos_token_id", "unk": "add_unk_token_id", "pad": "add_pad_token_id"}


TEMPLATE = "tokenizer.chat_template"  # begins the names of fields


def copy_vocabulary(writer: GGUFWriter, source: GGUFReader, *, with_template: bool = True) -> None:
    """Writes every tokenizer field of a GGUF file."""
    for name, field in source.fields.items():
        if name.startswith("tokenizer.") and (with_template or not name.startswith(TEMPLATE)):
            inner = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)


def tokens_in(source: GGUFReader) -> int:
    """The size of a file's vocabulary."""
    field = source.get_field("tokenizer.ggml.tokens")
    return 0 if field is None else len(field.data)


def compare_vocabularies(tokenizer: Any, other: Any, size: int) -> tuple[bool, bool]:
    """Whether two fast tokenizers give the same GGUF fields, and whether their chat templates are equal."""
    fields, other_fields = (_fields(each, size) for each in (tokenizer, other))
    return fields == other_fields, tokenizer.chat_template == other.chat_template


class _Fields(dict[str, Any]):
    """Replaces a writer, and keeps the fields."""

    def __getattr__(self, name: str) -> Any:
        return lambda *values: self.__setitem__(name, values)


def _fields(tokenizer: Any, size: int) -> dict[str, Any]:
    fields: Any = _Fields()
    try:
        write_vocabulary(fields, tokenizer, size)
    except RoseError:  # a tokenizer of another type, which can only be copied
        fields["tokenizer"] = tokenizer.backend_tokenizer.to_str()
    return dict(fields)


def write_template(writer: GGUFWriter, tokenizer: Any) -> None:
    if template := tokenizer.chat_template:  # or several, by name
        has_names = isinstance(template, dict)
        writer.add_chat_template([{"name": n, "template": t} for n, t in template.items()] if has_names else template)


def write_vocabulary(writer: GGUFWriter, tokenizer: Any, size: int) -> None:
    """Writes the fields of a fast tokenizer, without its chat template; ids without a token become unused tokens.

    Raises:
        RoseError: a tokenizer that is not BPE, has no merges, or splits text in an unknown way.
    """
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    model = settings["model"]
    if model["type"] != "BPE":
        raise RoseError(f"A tokenizer of type {model['type']} is not exported; only BPE is.")
    added = {entry["id"]: entry for entry in settings["added_tokens"]}
    pieces = {number: token for token, number in model["vocab"].items()} | {
        n: entry["content"] for n, entry in added.items()
    }
    tokens = [pieces.get(number, f"[PAD{number}]") for number in range(size)]
    is_pieces = bool(model.get("byte_fallback"))
    types = [_type(number, pieces, added, model, is_pieces) for number in range(size)]
    merges = [entry if isinstance(entry, str) else " ".join(entry) for entry in model["merges"]]
    if is_pieces:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(tokens, model["merges"]))
        writer.add_add_space_prefix(_prepends(settings))
    elif not merges:
        raise RoseError(
            "This tokenizer has no merges, and programs do not read a GGUF file without them; pack the folder instead."
        )
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_split(settings["pre_tokenizer"]))
        writer.add_token_merges(merges)
    writer.add_token_list([token.encode() for token in tokens])
    writer.add_token_types(types)
    for name, method in IDS.items():
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None and number < size:
            getattr(writer, method)(number)
    writer.add_add_bos_token(first_token(tokenizer) is not None)


def _type(number: int, pieces: dict[int, str], added: dict[int, Any], model: Any, is_pieces: bool) -> int:
    token = pieces.get(number)
    if token is None:
        return TokenType.UNUSED
    if token == model.get("unk_token"):
        return TokenType.UNKNOWN
    if number in added:
        return TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED
    is_byte = is_pieces and len(token) == 6 and token.startswith("<0x")
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _scores(tokens: Iterable[str], merges: Iterable[Any]) -> list[float]:
    """Scores of joined pairs: llama.cpp joins the highest score first, tokenizer.json the first merge."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(ranks) + 1)) for token in tokens]


def _prepends(settings: Any) -> bool:
    """Whether a space is put before a text."""
    text = json.dumps([settings["normalizer"], settings["pre_tokenizer"]], ensure_ascii=False)
    return '"Prepend"' in text or '"prepend_scheme": "first"' in text or '"prepend_scheme": "always"' in text


def _split(pre_tokenizer: Any) -> str:
    """llama.cpp's name for the splitting of text before merges."""
    settings = pre_tokenizer or {"type": None}  # text is not split at all
    parts = settings["pretokenizers"] if settings["type"] == "Sequence" else [settings]
    patterns = [part["pattern"].get("Regex", "") for part in parts if part["type"] == "Split"]
    for pattern in patterns:
        for begins, name in SPLITS.items():
            if pattern.startswith(begins):
                return name
    byte_level = any(part["type"] == "ByteLevel" and part.get("use_regex", True) for part in parts)
    if byte_level and not patterns:
        digits = any(part["type"] == "Digits" and part["individual_digits"] for part in parts)
        return "smollm" if digits else "gpt-2"
    raise RoseError(
        "This tokenizer splits text in a way whose name in GGUF files is not known; pack the folder instead."
    )
