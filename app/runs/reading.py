"""A user's own text, read by the dense model and by pruned copies in the background. No Streamlit here."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

import rose
from app import words
from app.jobs import Job, Run, holding
from app.study.setup import Setup
from app.study.study import LoadedModel
from rose.model.measure.perplexity import EncodedText, Reading, encode_text, read_text
from rose.model.network.network import Network

LIMIT = 512  # tokens of a text
SAMPLE = (
    "Pruning removes weights from a trained network. The first heart transplant was performed in Cape Town in 1967 by "
    "Christiaan Barnard. If a train leaves at 9:40 and takes two and a half hours, it arrives at 12:10. She said that "
    "she would rather read the letter herself than have it read to her."
)
MOST = 2  # pruned models beside each other
DENSE = "Dense"
Readings = dict[str, Reading]  # by the name of the model
COLUMNS = ("number", "token", "before")  # of the table of tokens, besides one for each model
CONTEXT = 30  # characters before a token that the table shows


class TextReading(Run):
    """One text read by several models, the dense one first; grows while its job runs."""

    def __init__(self, setup: Setup, text: str, checkpoints: dict[str, Path], load: Callable[[], LoadedModel]) -> None:
        """`checkpoints`: folders of pruned models, by name."""
        super().__init__()
        self.setup, self.text, self.checkpoints, self._load = setup, text, checkpoints, load
        self.encoded: EncodedText | None = None
        self.readings: dict[str, Reading] = {}
        self.vocabulary: dict[int, str] = {}  # texts of tokens that were asked for
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def count(self) -> int:
        """How many models have read the text."""
        return len(self.readings)

    def answers(self, setup: Setup, text: str, checkpoints: dict[str, Path]) -> bool:
        model, other = (self.setup.model, self.setup.dtype), (setup.model, setup.dtype)
        return (model, self.text, [*self.checkpoints.values()]) == (other, text, [*checkpoints.values()])

    def _run(self, job: Job) -> None:
        self._say("Loading the dense model")
        loaded = self._load()
        self._tokenizer = loaded.tokenizer
        positions = Network(loaded.model).positions or LIMIT
        encoded = encode_text(loaded.tokenizer, self.text, limit=min(LIMIT, positions))
        self._say("The dense model reads")
        with holding(loaded.lock, job):
            dense = _read(DENSE, loaded.model, encoded)
        self.encoded, self.readings[DENSE] = encoded, dense
        for number, (name, place) in enumerate(self.checkpoints.items(), 1):
            self.fraction = number / (1 + len(self.checkpoints))
            self._say(f"{name} is loaded and reads")
            self.readings[name] = self._read(name, place, encoded, job)
        self.fraction = 1.0

    def _read(self, name: str, place: Path, encoded: EncodedText, job: Job) -> Reading:
        model, tokenizer = rose.load_model(str(place), dtype=self.setup.dtype)
        job.check()
        if not torch.equal(encode_text(tokenizer, self.text).tokens, encoded.tokens):
            raise rose.RoseError(
                f"{name} splits this text into other tokens than {self.setup.model}. Choose a checkpoint "
                f"pruned from {self.setup.model}, or choose the dense model of {name} in the dialog Measure a model."
            )
        return _read(name, model, encoded)

    def token(self, number: int) -> str:
        if number not in self.vocabulary:
            assert self._tokenizer is not None
            self.vocabulary[number] = str(self._tokenizer.decode([number]))
        return self.vocabulary[number]


def _read(name: str, model: Any, encoded: EncodedText) -> Reading:
    reading = read_text(model, encoded.tokens)
    if reading.losses.isfinite().all():
        return reading
    raise rose.RoseError(f"{name} gives some tokens no number: its activations overflow; choose weights in float32.")


def losses(encoded: EncodedText, reading: Reading) -> np.ndarray:
    """(tokens,) nats; NaN for the first, which nothing predicts."""
    assert len(reading.losses) == len(encoded.pieces) - 1
    return np.concatenate([[np.nan], reading.losses.numpy()])


def token_table(encoded: EncodedText, readings: dict[str, Reading]) -> pd.DataFrame:
    """A row per predicted token: number, token, before, and of every model its loss, of the pruned ones the change."""
    losses_by_model = {name: losses(encoded, reading) for name, reading in readings.items()}
    starts = np.cumsum([0, *(len(piece) for piece in encoded.pieces)])
    text = "".join(encoded.pieces)
    table = pd.DataFrame(
        {
            "number": range(len(encoded.pieces)),
            "token": [token_name(encoded.pieces, number) for number in range(len(encoded.pieces))],
            "before": [visible(text[max(0, start - CONTEXT) : start]) for start in starts[:-1]],
            **losses_by_model,
        }
    )
    for name in [name for name in readings if name != DENSE]:
        table[f"{name} − dense"] = table[name] - table[DENSE]
    return table.iloc[1:].reset_index(drop=True)


def token_name(pieces: Sequence[str], number: int) -> str:
    """The text of a token; of a character that takes several tokens, the character, with ", part 2" for the second."""
    first = number
    while first and not pieces[first]:
        first -= 1
    part = number - first + 1
    return visible(pieces[first]) + (f", part {part}" if part > 1 else "")


def visible(text: str) -> str:
    """Line ends as a sign, so that a token of nothing else can be seen."""
    return text.replace("\n", "↵")


def next_tokens(run: TextReading, number: int, readings: dict[str, Reading]) -> pd.DataFrame:
    """Each model's predictions in the place of a token, counted from 1: rank, and by model its token and chance."""
    columns: dict[str, Any] = {"rank": range(1, next(iter(readings.values())).likely.shape[1] + 1)}
    for name, reading in readings.items():
        columns[name] = [f"“{visible(run.token(int(token)))}”" for token in reading.likely[number - 1]]
        columns[f"{name}, chance"] = reading.chances[number - 1].tolist()
    return pd.DataFrame(columns)


def finding(dense: Reading, name: str, reading: Reading) -> str:
    """ "ROSE, 0.7 is more surprised than the dense model at 61 of 92 tokens; a token costs it 3.8 nats, not 2.9"."""
    gap = (reading.losses - dense.losses).numpy()
    rises, total = int((gap > 0).sum()), len(gap)
    before, after = float(dense.losses.mean()), float(reading.losses.mean())
    ratio = float(np.exp(min(after - before, 700.0)))
    return (
        f"{name} is more surprised than the dense model at {words.word(rises)} of {words.count(total, 'token')}: "
        f"{words.number(after)} nats a token instead of {words.number(before)}, perplexity × {words.number(ratio)}"
    )
