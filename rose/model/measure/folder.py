"""A folder that keeps the rows of a measurement as they come, so that an interrupted one resumes there."""

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
KNOWN = {NORMS, WEIGHTS, DIGESTS}  # settings that tell the model and the texts, which nobody gives


class MeasurementFolder(Generic[Record]):
    """Files: settings.json, rows.csv (a line per row), and summaries that are written anew with each row.

    Several processes may add rows at once; a lock lets them write one after another.

    Attributes:
        kind: the dataclass of a row.
        key: the fields that tell a row, whoever has measured it.
        holds: what such a folder holds, and what each of its rows, for people.
        summaries: names of the files besides settings.json and rows.csv.
        rows: those that are there.
        norms: `embedding_norms` of their model, where it is known.
    """

    kind: ClassVar[type]
    key: ClassVar[tuple[str, ...]]
    holds: ClassVar[tuple[str, str]]
    summaries: ClassVar[tuple[str, ...]]

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        """Opens the folder of a measurement with these settings, new or begun.

        Raises:
            RoseError: it belongs to one with other settings, or cannot be read or written.
        """
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
                if self.rows:  # a command that was killed may have added a row and not what all rows come to
                    self._write(self.summarize(json.loads(self._settings)))
        except OSError as problem:
            raise RoseError(f"The folder {folder} cannot be used ({problem.strerror}); choose another.") from problem

    def _claim(self) -> None:
        self._check_ours()
        for name in ("settings.json", "rows.csv", *self.summaries):
            for unfinished in self.folder.glob(f"{name}?*{TEMPORARY}"):  # of a process that was killed
                unfinished.unlink()
        if (self.folder / "rows.csv").exists():
            self._check_settings()
            self.norms = read_norms(self.folder / "settings.json")
        else:  # of a command that failed before it had measured anything, there may be others
            write_atomically(self.folder / "settings.json", self._settings.encode())

    def _check_ours(self) -> None:
        """Refuses a folder with anything in it that a measurement has not written."""
        is_begun = self._is_begun()
        if is_begun and (self.folder / "rows.csv").exists():
            return
        own = [".lock", f"settings.json?*{TEMPORARY}"]
        if is_begun:  # without settings nothing else is there yet: they are written first
            own += ["settings.json*", "recipe.yaml*", *(f"{name}*" for name in self.summaries), "rows.csv*"]
        if any(not any(map(item.match, own)) for item in self.folder.iterdir()):
            raise RoseError(f"{self.folder} is not empty and holds no {self.holds[0]}; choose another folder.")

    def _is_begun(self) -> bool:
        """Whether settings of such a measurement are there, whatever they say."""
        try:
            known = json.loads((self.folder / "settings.json").read_text())
        except (ValueError, RecursionError, FileNotFoundError):
            return False
        ours = json.loads(self._settings)
        return isinstance(known, dict) and all(
            (known | ours)[name] is None for name in (known.keys() ^ ours.keys()) - KNOWN
        )

    def _check_settings(self) -> None:
        before, asked = _given((self.folder / "settings.json").read_text()), _given(self._settings)
        for name in sorted(before.keys() | asked.keys()):
            if before.get(name) != asked.get(name):
                was, now = (known.get(name, "not given") for known in (before, asked))
                raise RoseError(
                    f"{self.folder} holds a {self.holds[0]} with other settings: {name.replace('_', '-')} was {was} "
                    f"there and is {now} now; choose another folder."
                )

    def _read(self) -> list[Record]:
        path = self.folder / "rows.csv"
        return read_records(path, self.kind, self.holds[1]) if path.exists() else []

    def summarize(self, settings: dict[str, Any]) -> dict[str, str]:
        """What `rows` come to: the content of each of `summaries`, by name."""
        raise NotImplementedError

    def know(self, model: nn.Module, texts: Mapping[str, Tensor]) -> None:
        """Keeps which model and texts they are, before any row: whatever kills the command, rows have their model.

        `texts`: tokens of any shape, by what they are for; a file of the same name may hold others by now.

        Raises:
            RoseError: the rows are those of another model or text, or the folder cannot be written any more.
        """
        digests = {name: digest({"tokens": tokens}) for name, tokens in texts.items()}
        self.norms, weights = embedding_norms(model), weight_norms(model)
        with self._writing():
            if self.rows:
                self._check_model(model, weights)
                digests = self._check_texts(digests)
            known_now = json.loads(self._settings) | {NORMS: self.norms, WEIGHTS: weights, DIGESTS: digests}
            self._write({"settings.json": json.dumps(known_now, indent=1, sort_keys=True)})

    def _check_texts(self, digests: dict[str, str]) -> dict[str, str]:
        """What is known of texts, with these; of what a folder does not tell, nothing is refused."""
        known = json.loads((self.folder / "settings.json").read_text()).get(DIGESTS) or {}
        for name in known.keys() & digests.keys():
            if known[name] != digests[name]:
                raise RoseError(
                    f"The rows in {self.folder} are those of another text: the {name} tokens differ; choose another "
                    "folder."
                )
        return known | digests

    def _check_model(self, model: nn.Module, weights: list[float]) -> None:
        known = read_norms(self.folder / "settings.json")
        check_same_model(model, known, f"The rows in {self.folder} are those of another model")
        if not is_same_model(weights, read_norms(self.folder / "settings.json", WEIGHTS)):
            raise RoseError(
                f"The rows in {self.folder} are those of another model: its weights differ, as those of a pruned or "
                "tuned copy do; give the model that was measured, or choose another folder."
            )

    def add(self, *rows: Record) -> None:
        """Keeps more rows, beside those that other processes have added, and updates the other files.

        Raises:
            RoseError: the folder cannot be written any more.
        """
        with self._writing():
            tell = attrgetter(*self.key)
            known = set(map(tell, self.rows))
            new = [row for row in rows if tell(row) not in known]
            self.rows += new
            if new:
                text = records_table(self.rows, self.kind).to_csv(index=False)
                self._write({"rows.csv": text})
            self._write(self.summarize(json.loads(self._settings)))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Meanwhile no other process writes, and `rows` are those that are there."""
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


def _given(settings: str) -> dict[str, Any]:
    """Settings of a file but for those that are left to their defaults, the model and the texts."""
    return {name: value for name, value in json.loads(settings).items() if value is not None and name not in KNOWN}
