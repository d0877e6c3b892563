"""A folder that stores the rows of a measurement as they come, so that an interrupted one resumes there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Generic

from filelock import FileLock
from torch import Tensor, nn

from rose.errors import RoseError
from rose.files import TEMPORARY, reachable, write_atomically
from rose.model.network.identity import NORMS, WEIGHTS, check_same_model, embedding_norms, read_norms, weight_norms
from rose.rows import Record, read_records, records_table
from rose.tensor_files import digest
from rose.verdicts import is_same_model

DIGESTS = "text_digests"
KNOWN = {NORMS, WEIGHTS, DIGESTS}  # settings that identify model and texts, which nobody gives
SETTINGS, ROWS = "settings.json", "rows.csv"


class MeasurementFolder(Generic[Record]):
    """Files: settings.json, rows.csv (a line per row), and summaries that are written anew with each row.

    Several processes may add rows at once; a lock lets them write one after another.

    Attributes:
        kind: the dataclass of a row.
        key: the fields that identify a row.
        holds: for messages, the folder's and the rows' content.
        summaries: names of the files besides settings.json and rows.csv.
        norms: `embedding_norms` of the measured model, if known.
    """

    kind: ClassVar[type]
    key: ClassVar[tuple[str, ...]]
    holds: ClassVar[tuple[str, str]]
    summaries: ClassVar[tuple[str, ...]]

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        """Opens a folder, new or begun with the same settings; raises RoseError for others."""
        self.folder = reachable(folder)
        self._settings = json.dumps(dict(settings), indent=1, sort_keys=True)
        self._lock = FileLock(self.folder / ".lock")
        self.norms: list[float] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / ".lock").exists():
                self._check_ours()  # before anything is left in it
            with self._lock:
                self._claim()
                self.rows = self._read()
                if self.rows:  # a killed command may have added a row without its summary
                    self._write(self.summarize(json.loads(self._settings)))
        except OSError as problem:
            raise RoseError(f"The folder {folder} cannot be used ({problem.strerror}); choose another.") from problem

    def _claim(self) -> None:
        self._check_ours()
        for name in (SETTINGS, ROWS, *self.summaries):
            for unfinished in self.folder.glob(f"{name}?*{TEMPORARY}"):  # of a killed process
                unfinished.unlink()
        if (self.folder / ROWS).exists():
            self._check_settings()
            self.norms = read_norms(self.folder / SETTINGS)
        else:  # a command that failed before any measurement may have left others
            write_atomically(self.folder / SETTINGS, self._settings.encode())

    def _check_ours(self) -> None:
        """Refuses a folder with anything in it that a measurement has not written."""
        is_begun = self._is_begun()
        if is_begun and (self.folder / ROWS).exists():
            return
        ours = [".lock", f"{SETTINGS}?*{TEMPORARY}"]
        if is_begun:  # settings are written first
            ours += [f"{SETTINGS}*", "recipe.yaml*", *(f"{name}*" for name in self.summaries), f"{ROWS}*"]
        if any(not any(map(item.match, ours)) for item in self.folder.iterdir()):
            raise RoseError(f"{self.folder} is not empty and holds no {self.holds[0]}; choose another folder.")

    def _is_begun(self) -> bool:
        try:
            stored = json.loads((self.folder / SETTINGS).read_text())
        except (ValueError, RecursionError, FileNotFoundError):
            return False
        ours = json.loads(self._settings)
        return isinstance(stored, dict) and all(
            (stored | ours)[name] is None for name in (stored.keys() ^ ours.keys()) - KNOWN
        )

    def _check_settings(self) -> None:
        before, now = _chosen((self.folder / SETTINGS).read_text()), _chosen(self._settings)
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                old, new = (settings.get(name, "not given") for settings in (before, now))
                raise RoseError(
                    f"{self.folder} holds a {self.holds[0]} with other settings: {name.replace('_', '-')} was {old} "
                    f"there and is {new} now; choose another folder."
                )

    def _read(self) -> list[Record]:
        path = self.folder / ROWS
        return read_records(path, self.kind, self.holds[1]) if path.exists() else []

    def summarize(self, settings: dict[str, Any]) -> dict[str, str]:
        raise NotImplementedError

    def know(self, model: nn.Module, texts: Mapping[str, Tensor]) -> None:
        """Stores the identity of model and texts before any row; `texts`: tokens of any shape, by purpose.

        Raises RoseError for rows of another model or text, or a folder that cannot be written any more.
        """
        digests = {name: digest({"tokens": tokens}) for name, tokens in texts.items()}
        self.norms, weights = embedding_norms(model), weight_norms(model)
        with self._writing():
            if self.rows:
                self._check_model(model, weights)
                digests = self._check_texts(digests)
            settings = json.loads(self._settings) | {NORMS: self.norms, WEIGHTS: weights, DIGESTS: digests}
            self._write({SETTINGS: json.dumps(settings, indent=1, sort_keys=True)})

    def _check_texts(self, digests: dict[str, str]) -> dict[str, str]:
        """The stored digests with these; a text that the folder does not know is not refused."""
        stored = json.loads((self.folder / SETTINGS).read_text()).get(DIGESTS) or {}
        for name in stored.keys() & digests.keys():
            if stored[name] != digests[name]:
                raise RoseError(
                    f"The rows in {self.folder} are those of another text: the {name} tokens differ; choose another "
                    "folder."
                )
        return stored | digests

    def _check_model(self, model: nn.Module, weights: list[float]) -> None:
        path = self.folder / SETTINGS
        check_same_model(model, read_norms(path), f"The rows in {self.folder} are those of another model")
        if not is_same_model(weights, read_norms(path, WEIGHTS)):
            raise RoseError(
                f"The rows in {self.folder} are those of another model: its weights differ, as those of a pruned or "
                "tuned copy do; give the model that was measured, or choose another folder."
            )

    def add(self, *rows: Record) -> None:
        """Adds rows that no process has added yet, and updates the other files.

        Raises RoseError if the folder cannot be written any more.
        """
        with self._writing():
            key = attrgetter(*self.key)
            keys = set(map(key, self.rows))
            new = [row for row in rows if key(row) not in keys]
            self.rows += new
            if new:
                self._write({ROWS: records_table(self.rows, self.kind).to_csv(index=False)})
            self._write(self.summarize(json.loads(self._settings)))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """While this lasts, no other process writes, and `rows` are current."""
        try:
            with self._lock:
                self._check_settings()  # another command may have begun here since
                self.rows = self._read()
                yield
        except OSError as problem:
            raise RoseError(
                f"{self.folder} cannot be written ({problem.strerror}); make room. Rows so far are kept, and the same "
                "command resumes from there."
            ) from problem

    def _write(self, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            write_atomically(self.folder / name, text.encode())


def _chosen(settings: str) -> dict[str, Any]:
    """Settings without defaults, the model and the texts."""
    return {name: value for name, value in json.loads(settings).items() if value is not None and name not in KNOWN}
