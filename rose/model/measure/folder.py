"""A folder that stores the rows of a measurement as they come, so that an interrupted one resumes there."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Generic

from filelock import FileLock
from torch import Tensor, nn

from rose.errors import RoseError
from rose.files import TEMPORARY, check_foreign, reachable, write_atomically
from rose.model.network.network import NORMS, WEIGHTS, Network, check_same_model, read_norms
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
    """

    kind: ClassVar[type]
    key: ClassVar[tuple[str, ...]]
    holds: ClassVar[tuple[str, str]]
    summaries: ClassVar[tuple[str, ...]]

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        """Opens a folder, new or begun with the same settings; raises RoseError for others."""
        self.folder = reachable(folder)
        self._settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self._lock = FileLock(self.folder / ".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / ".lock").exists():
                self._check_ours()  # before anything is left in it
            with self._lock:
                self._check_ours()
                for name in (SETTINGS, ROWS, *self.summaries):
                    for unfinished in self.folder.glob(f"{name}?*{TEMPORARY}"):  # of a killed process
                        unfinished.unlink()
                if not (self.folder / ROWS).exists():  # a command that failed before any measurement left others
                    self._write_settings()
                self._check_settings()
                self.rows = self._read()
                if self.rows:  # a killed command may have added a row without its summary
                    self._write(self.summarize(dict(self._settings)))
        except OSError as problem:
            raise RoseError(f"The folder {folder} cannot be used ({problem.strerror}); choose another.") from problem

    def _check_ours(self) -> None:
        """Refuses a folder with anything in it that a measurement has not written."""
        stored = self._stored()
        either = stored | self._settings
        is_begun = all(either[name] is None for name in (stored.keys() ^ self._settings.keys()) - KNOWN)
        if is_begun and (self.folder / ROWS).exists():
            return
        ours = [".lock", f"{SETTINGS}?*{TEMPORARY}"]
        if is_begun:  # settings are written first
            ours += [f"{SETTINGS}*", "recipe.yaml*", *(f"{name}*" for name in self.summaries), f"{ROWS}*"]
        check_foreign(self.folder, ours, self.holds[0])

    def _stored(self) -> dict[str, Any]:
        """settings.json; nothing where it is missing or damaged."""
        with suppress(ValueError, RecursionError, FileNotFoundError):
            if isinstance(stored := json.loads((self.folder / SETTINGS).read_text()), dict):
                return stored
        return {}

    def _check_settings(self) -> None:
        before, now = self._stored(), self._settings
        for name in sorted((before.keys() | now.keys()) - KNOWN):
            if before.get(name) != now.get(name):
                old, new = ("not given" if settings.get(name) is None else settings[name] for settings in (before, now))
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
        network = Network(model)
        norms, weights = network.embedding_norms(), network.weight_norms()
        with self._writing():
            if self.rows:
                path, other = self.folder / SETTINGS, f"The rows in {self.folder} are those of another"
                check_same_model(network, read_norms(path), f"{other} model")
                if not is_same_model(weights, read_norms(path, WEIGHTS)):
                    raise RoseError(
                        f"{other} model: its weights differ, for example by pruning or tuning; give the model that "
                        "was measured, or choose another folder."
                    )
                before = self._stored().get(DIGESTS) or {}
                if name := next((name for name in before.keys() & digests.keys() if before[name] != digests[name]), ""):
                    raise RoseError(f"{other} text: the {name} tokens differ; choose another folder.")
                digests = before | digests  # a text that the folder does not know is not refused
            self._write_settings(**{NORMS: norms, WEIGHTS: weights, DIGESTS: digests})

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
            self._write(self.summarize(dict(self._settings)))

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

    def _write_settings(self, **settings: Any) -> None:
        self._write({SETTINGS: json.dumps(self._settings | settings, indent=1, sort_keys=True)})
