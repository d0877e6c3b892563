"""Token samples from a dataset, a file, or the Python language reference."""

import itertools
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rose.errors import RoseError, check_choice, is_whole
from rose.files import reachable
from rose.interrupt import stop_point
from rose.model.defaults import BOS, PAPERS, SOURCES, TUNING, Draw
from rose.wording import whole

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
Warn = Callable[[str], object]  # where a sentence of doubt goes


def packaged_text() -> str:
    """The Python language reference as plain text: 450 kB of English without network or a file of ours."""
    from pydoc_data import topics

    return "\n\n".join(text for _, text in sorted(topics.topics.items()))


class Dataset(NamedTuple):
    """A text on the Hub: its data set, the column of texts, their separator, and whether it is streamed."""

    repository: str
    configuration: str | None
    revision: str | None = None
    column: str = "text"
    joint: str = "\n\n"
    is_streamed: bool = False


DATASETS = {
    "wikitext2": Dataset("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "c4": Dataset("allenai/c4", None, is_streamed=True),
    "ptb": Dataset("ptb-text-only/ptb_text_only", "penn_treebank", "refs/convert/parquet", "sentence", " "),
}
MOST_TEXTS = 8000  # of a streamed dataset
MATCH = 16  # tokens that are the same text
PART = 2**24  # characters that are cut into tokens at once


def tuning_draw(length: int) -> Draw:
    """Windows for tuning after a run on windows of this length; never longer ones."""
    return TUNING._replace(length=min(TUNING.length, length))


def _dataset_text(source: str, split: str) -> str:
    import datasets  # slow to import, and not needed for files

    dataset = DATASETS[source]
    arguments: dict[str, Any] = {"revision": dataset.revision} if dataset.revision else {}
    if dataset.is_streamed:  # the first texts of one shard: all of C4 is 300 GB, 128 samples of 2048 tokens need 1 MB
        shard = "train.00000-of-01024" if split == "train" else "validation.00000-of-00008"
        arguments = {"data_files": {split: f"en/c4-{shard}.json.gz"}, "streaming": True}
    try:
        rows = datasets.load_dataset(dataset.repository, dataset.configuration, split=split, **arguments)
        texts = itertools.islice(rows, MOST_TEXTS) if dataset.is_streamed else rows
        return dataset.joint.join(row[dataset.column] for row in texts)
    except Exception as problem:  # the library raises many kinds, some only while rows stream in
        reason = " ".join(str(problem).split())[:150]
        raise RoseError(
            f'The dataset {source} cannot be loaded ({reason}); check the network, or give a .txt file or "packaged".'
        ) from problem


def is_downloaded(source: str) -> bool:
    """Whether the files of a dataset are in the local cache."""
    dataset = DATASETS[source]
    folder = repo_folder_name(repo_id=dataset.repository, repo_type="dataset")
    return not dataset.is_streamed and (Path(constants.HF_HUB_CACHE) / folder).is_dir()


def load_text(source: str, split: str = "train") -> str:
    """The text of a source: "wikitext2", "c4", "ptb", "packaged", or a .txt or .jsonl file with a "text" per line.
    `split` is "train", "validation" or "test" for datasets. Raises RoseError for an unknown source, an unreadable file,
    or a dataset out of reach."""
    check_choice("The split", split, SPLITS)
    if source == "packaged":
        return packaged_text()
    if (path := text_file(source)) is None:
        return _dataset_text(source, split)
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows marks files
    except OSError as problem:
        raise RoseError(f"The file {path} cannot be read ({problem.strerror}); check the path.") from problem
    except UnicodeDecodeError as problem:
        raise RoseError(f"The file {path} is not UTF-8 text ({problem.reason}); save it as UTF-8.") from problem
    return _join_jsonl(path, text) if path.suffix.lower() == ".jsonl" else text


def text_file(source: str) -> Path | None:
    """The file of a source; None for a named source. Raises RoseError for an unknown or missing source."""
    if source in SOURCES:
        return None
    path = reachable(source) if isinstance(source, (str, Path)) else None
    if path is None or path.suffix.lower() not in (".txt", ".jsonl"):
        raise RoseError(f"Unknown text {source!r}; give one of {', '.join(SOURCES)}, or a .txt or .jsonl file.")
    if not path.is_file():
        raise RoseError(f"There is no file {path}; check the path.")
    return path


def _join_jsonl(path: Path, content: str) -> str:
    texts = []
    # Not splitlines: it also splits at U+2028 and its like, which may stand inside a JSON string.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            if not isinstance(text, str):
                raise TypeError("not a string")
        except (ValueError, KeyError, TypeError, RecursionError) as problem:
            raise RoseError(f'{path}, line {number} is not a JSON object with a "text".') from problem
        # Half of a pair of surrogates, where something was cut off, is no character.
        texts.append(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return "\n\n".join(texts)


def first_token(tokenizer: PreTrainedTokenizerBase, bos: str = "auto") -> int | None:
    """The beginning-of-sequence token at the start of every window; None for windows without it. `bos`: "auto", as the
    tokenizer encodes a user's text; "always"; or "never". Raises RoseError for another choice, or "always"
    where the tokenizer has no BOS token."""
    check_choice("bos", bos, BOS)
    token = tokenizer.bos_token_id
    if bos == "never":
        return None
    if bos == "always":
        if token is None:
            raise RoseError('This tokenizer has no beginning-of-sequence token; choose bos "auto" or "never".')
        return int(token)
    # Only what stands in front matters: some tokenizers append an end-of-sequence token as well.
    with_special, plain = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    puts_in_front = token is not None and with_special[:1] == [token] != plain[:1]
    return int(token) if puts_in_front else None


@overload
def load_tokens(
    source: str, tokenizer: PreTrainedTokenizerBase, *, samples: int | None = ..., length: int = ...,
    seed: int | None = ..., split: str = ..., bos: str = ..., held_out: None = None, warn: Warn | None = ...,
) -> Tensor: ...  # fmt: skip


@overload
def load_tokens(
    source: str, tokenizer: PreTrainedTokenizerBase, *, samples: int = ..., length: int = ..., seed: int = ...,
    split: str = ..., bos: str = ..., held_out: int, warn: Warn | None = ...,
) -> tuple[Tensor, Tensor | None]: ...  # fmt: skip


def load_tokens(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int | None = PAPERS.samples,
    length: int = PAPERS.length,
    seed: int | None = 0,
    split: str = "train",
    bos: str = "auto",
    held_out: int | None = None,
    warn: Warn | None = None,
) -> Tensor | tuple[Tensor, Tensor | None]:
    """Windows of a text as token ids, (samples, length) int64; with `held_out`, a pair: these and (held_out, length)
    further windows, None for 0, as commands and the app draw them.

    A seed makes windows random, and disjoint if the text is long enough. With `seed=None` they follow one another. All
    windows are drawn together and the last ones held out, so that no held-out window overlaps another. Of a text too
    short for that, the end is held out.

    Args:
        source, split: see `load_text`.
        samples: number of windows; None, with `seed=None`, for all.
        length: tokens per window, at least 2.
        bos: whether windows begin with a beginning-of-sequence token, see `first_token`; it counts towards `length`.
        held_out: number of further windows; needs a seed.
        warn: gets a sentence where windows overlap; the log by default.

    Raises RoseError for bad numbers, an unreadable source, or a text that is too short.
    """
    if held_out is not None:
        _check_held_out(samples, held_out, seed)
    check_windows(samples, length)
    if samples is None and seed is not None:
        raise RoseError("All windows of a text come in order: give seed=None with samples=None.")
    first = first_token(tokenizer, bos)
    ids = _encode(tokenizer, load_text(source, split))
    cut = partial(_cut, source, first=first, length=length, warn=warn)
    if held_out is None:
        return cut(ids, samples=samples, seed=seed)
    assert samples is not None
    width, windows = length - (first is not None), samples + held_out
    if not held_out or len(ids) >= windows * width:
        tokens = cut(ids, samples=windows, seed=seed)
        return tokens[:samples], tokens[samples:] if held_out else None
    at = len(ids) - held_out * width
    if at < width:
        raise _too_short(f"{source} has {len(ids)} tokens", held_out, length)
    return cut(ids[:at], samples=samples, seed=seed), cut(ids[at:], samples=held_out, seed=None)


def _check_held_out(samples: Any, held_out: Any, seed: int | None) -> None:
    if not (all(map(is_whole, (samples, held_out))) and samples >= 1 and held_out >= 0):
        raise RoseError(f"Calibration needs at least 1 sample and 0 held-out ones, not {samples!r} and {held_out!r}.")
    if seed is None:
        raise RoseError("Held-out windows are drawn with the others; give a seed.")


def check_windows(samples: int | None, length: int) -> None:
    """Raises RoseError for impossible numbers of windows or tokens."""
    if not (is_whole(length) and length >= 2):
        raise RoseError(f"The length of windows must be a whole number of at least 2 tokens, not {length!r}.")
    if samples is not None and not (is_whole(samples) and samples >= 1):
        raise RoseError(f"The number of windows must be a whole number of at least 1, not {samples!r}.")


def _cut(
    source: str,
    ids: Tensor,
    *,
    first: int | None,
    samples: int | None,
    length: int,
    seed: int | None,
    warn: Warn | None = None,
) -> Tensor:
    """Windows of token ids, see `load_tokens`."""
    width = length if first is None else length - 1  # of the text
    most = len(ids) // width
    extent, advice = f"{source} has {len(ids)} tokens", "shorter ones, or give a longer text"
    if most == 0:
        raise RoseError(f"{extent}, fewer than one window of {length}; ask for {advice}.")
    if seed is None and samples is not None and samples > most:
        raise RoseError(f"{extent}, too few for {samples} windows of {length}; ask for fewer or {advice}.")
    if seed is None:
        starts = torch.arange(most if samples is None else samples) * width
    else:
        assert samples is not None
        generator, slack = torch.Generator().manual_seed(seed), len(ids) - samples * width
        if slack < 0:
            extent = f"{source} has {whole(len(ids))} tokens"
            (warn or logger.warning)(f"{extent}, so its {whole(samples)} windows of {length} overlap.")
            starts = torch.randint(len(ids) - width + 1, (samples,), generator=generator)
        else:  # disjoint windows leave `slack` tokens as gaps: sorted draws place the gaps, a shuffle the windows
            gaps = torch.randint(slack + 1, (samples,), generator=generator).sort().values
            starts = (gaps + torch.arange(samples) * width)[torch.randperm(samples, generator=generator)]
    windows = ids[starts[:, None] + torch.arange(width)].long()
    return windows if first is None else torch.nn.functional.pad(windows, (1, 0), value=first)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """A text as token ids, (tokens,) int32; in parts, because tokenizers take some hundred bytes per character."""
    parts: list[Tensor] = []
    start = 0
    while start < len(text) or not parts:
        stop_point()
        end = start + PART
        if end < len(text) and (paragraph := text.rfind("\n\n", start, end)) >= 0:
            end = paragraph + 2
        ids = tokenizer(text[start:end], add_special_tokens=False, verbose=False)["input_ids"]
        parts.append(torch.tensor(ids, dtype=torch.int32))
        start = end
    return torch.cat(parts)


def check_text(source: str, held_out: int, length: int) -> None:
    """Raises RoseError, before there is a tokenizer, for a missing text, or a file with fewer bytes than
    `load_tokens` needs tokens."""
    path = text_file(source)
    # A token has at least one byte; a window may begin with a beginning-of-sequence token.
    if path is not None and (size := path.stat().st_size) < (held_out + 1) * (length - 1):
        raise _too_short(f"{path} has {size} bytes", held_out, length)


def _too_short(extent: str, held_out: int, length: int) -> RoseError:
    more_windows = f" and to hold {held_out} others out" if held_out else ""
    return RoseError(
        f"{extent}, too few to calibrate on windows of {length}{more_windows}; "
        "ask for fewer or shorter windows, or give a longer text."
    )


def load_apart(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int,
    held_out: int,
    length: int,
    seed: int,
    apart_from: Tensor,
    bos: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Training and held-out windows that share no text with each other or with `apart_from`.

    The text is cut into windows from its start. Windows with a run of `MATCH` tokens from `apart_from`, (windows,
    tokens), are left out; the rest is drawn at random. Returns at most (samples, length) and (held_out, length) int64;
    the latter never above a quarter of all. Raises RoseError as `load_tokens`, or for a text without two such windows.
    """
    windows = load_tokens(source, tokenizer, samples=None, length=length, seed=None, bos=bos)
    width = min(MATCH, length, apart_from.shape[1])
    windows = windows[~torch.isin(_runs(windows, width), _runs(apart_from, width)).any(1)]
    if len(windows) < 2:
        raise RoseError(
            f"{source} has {len(windows)} windows of {length} tokens that are not used already, too few; give a "
            "longer text or shorter windows, or evaluate on another text."
        )
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    reserved = min(held_out, max(1, len(windows) // 4))
    return windows[order[reserved : reserved + samples]], windows[order[:reserved]]


def _runs(windows: Tensor, width: int) -> Tensor:
    """A number for the `width` tokens from each place of each window: (windows, tokens − width + 1)."""
    places = windows.shape[1] - width + 1
    numbers = torch.zeros(windows.shape[0], places, dtype=torch.int64)
    for at in range(width):
        numbers = numbers * 6364136223846793005 + windows[:, at : at + places] + 1
    return numbers
