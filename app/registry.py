"""What all sessions of a server share: one registry with one budget in bytes. No Streamlit here.

Beyond the budget, entries give back what can be made again, the least recently used first. If that is not enough,
entries are dropped in the same order. An entry in use is left alone. Work whose model does not fit waits until other
work ends.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from torch import Tensor, nn

import rose
from app import jobs
from app.jobs import Run, Shared, current, waiting

T = TypeVar("T")
R = TypeVar("R", bound=Run)
Key = tuple[type, Hashable]
PLAIN = 1000  # bytes of an object without arrays, a guess


class Registry:
    """Models, studies, runs and results, by type and name.

    `budget` limits the bytes of all entries, in memory and in temporary files. An entry that `comes_back` is dropped as
    soon as memory is needed. A run gives back a part by `free()`, and all by `discard()`. An entry whose `loaded` is
    another entry holds that entry.
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.lock = threading.RLock()  # held while it is decided whether work begins: two sessions may ask at a time
        self.times_freed = 0
        self._entries: dict[Key, Any] = {}
        self._used: dict[Key, int] = {}  # when, by a count of all uses
        self._uses = itertools.count()

    def get(self, kind: type[T], name: Hashable) -> T | None:
        """The entry, which counts as used now, and so does the entry that it holds."""
        with self.lock:
            entry = self._entries.get((kind, name))
            if entry is not None:
                model = getattr(entry, "loaded", None)
                for key, other in self._entries.items():
                    if other is entry or (model is not None and other is model):
                        self._used[key] = next(self._uses)
            return entry

    def all(self, kind: type[T]) -> dict[Any, T]:
        """The entries of a type by name, the latest last; they do not count as used."""
        with self.lock:
            return {name: entry for (of, name), entry in self._entries.items() if of is kind}

    def put(self, kind: type[T], name: Hashable, entry: T) -> T:
        """Adds an entry as the latest, in place of an entry of its name, and makes room for it."""
        with self.lock:
            if self._entries.get((kind, name)) is not entry:
                self.remove(kind, name)
            self._entries[kind, name] = entry
            self.get(kind, name)
            self.make_room(latest=entry)
        return entry

    def remove(self, kind: type, name: Hashable) -> None:
        """Drops an entry; what is in use goes on, and its files go after that."""
        with self.lock:
            entry = self._entries.pop((kind, name), None)
            self._used.pop((kind, name), None)
            self._free(entry)
            if isinstance(entry, Run):
                entry.discard()

    def join(self, kind: type[R], name: Hashable, make: Callable[[R | None], R], viewer: str) -> R:
        """Starts work for a session, or joins work that goes on or is done; `make` gets work that ended early."""
        with self.lock:
            run = self.get(kind, name)
            is_new = run is None or run.job.is_over
            if run is None or is_new:
                run = self.put(kind, name, make(run))
            run.job.watch(viewer, owns=True)
            if is_new or run.job.status == "kept":
                run.job.start()
        return run

    def total(self) -> int:
        """Bytes of all entries."""
        with self.lock:
            return held(self._entries.values())

    def make_room(self, size: float = 0.0, latest: Any = None) -> bool:
        """Lets entries go, all but `latest`, until `size` more bytes fit; says whether they do."""
        with self.lock:
            oldest_first = sorted(self._used, key=self._used.__getitem__)
            for let_go in (self._give_back, self.remove) if size <= self.budget else (self._give_back,):
                for key in oldest_first:
                    if self.total() + size <= self.budget:
                        return True
                    entry = self._entries.get(key)
                    if entry is not None and entry is not latest and not self._is_in_use(entry):
                        let_go(*key)
            return self.total() + size <= self.budget

    def wait_for_room(self, size: float) -> None:
        """Makes room for a model; the work of this thread waits until other work no longer uses its models."""
        job = current()
        if job is None:
            self.make_room(size)
            return
        with waiting(job, "Waiting for memory that other runs use") as wait:
            while not self.make_room(size) and self._holds_what_is_in_use():
                wait()
                time.sleep(jobs.POLL)

    def give_back(self) -> None:
        """Gives back all that is not in use and can be made again."""
        with self.lock:
            for key, entry in list(self._entries.items()):
                if key in self._entries and not self._is_in_use(entry):
                    self._give_back(*key)

    def _give_back(self, kind: type, name: Hashable) -> None:
        entry = self._entries[kind, name]
        if getattr(entry, "comes_back", False):
            self.remove(kind, name)
        else:
            self._free(entry)

    def _free(self, entry: Any) -> None:
        """Frees an entry and all that holds it, unless it is in use."""
        if entry is None or self._is_in_use(entry):
            return
        for held_by in (entry, *self._holders(entry)):
            self.times_freed += getattr(held_by, "loaded", None) is not None  # a page may show what it held
            if isinstance(held_by, Run):
                held_by.free()

    def _holders(self, entry: Any) -> list[Any]:
        return [other for other in self._entries.values() if getattr(other, "loaded", None) is entry]

    def _is_in_use(self, entry: Any) -> bool:
        return any(getattr(each, "is_in_use", False) for each in (entry, *self._holders(entry)))

    def _holds_what_is_in_use(self) -> bool:
        return any(getattr(entry, "comes_back", False) and self._is_in_use(entry) for entry in self._entries.values())


def held(entries: Iterable[Any]) -> int:
    """Bytes of all arrays, tables and files of these entries, however deep; what several of them share counts once."""
    sizes: dict[Any, int] = {}
    stack = list(entries)
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            if not value.is_meta:  # a view counts only its own elements
                place = value.untyped_storage().data_ptr()
                sizes[place] = max(sizes.get(place, 0), value.nbytes)
        elif id(value) in sizes or isinstance(value, (str, int, float, type(None))):
            continue
        elif isinstance(value, pd.DataFrame):
            sizes[id(value)] = int(value.memory_usage(deep=True).sum())
        elif isinstance(value, np.ndarray):
            sizes[id(value)] = value.nbytes
        elif isinstance(value, Mapping):
            sizes[id(value)] = 0
            stack += list(value.values())  # it may grow meanwhile
        elif isinstance(value, (list, tuple)):
            sizes[id(value)] = 8 * len(value)
            stack += value
        elif isinstance(value, nn.Module):
            sizes[id(value)] = 0
            stack += [*value.parameters(), *value.buffers()]
        elif is_dataclass(value) or isinstance(value, (Shared, rose.InputStatistics)):
            sizes[id(value)] = PLAIN + getattr(value, "bytes_on_disk", 0)
            stack += vars(value).values()
    return sum(sizes.values())
