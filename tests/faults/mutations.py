"""Changes sound files at random and reads each in a child process with limits of memory and time.

A seed, a reader's name and a case number determine the change, so that every case can be read again alone. A module
with readers lists them in READERS; `tests.faults.mutate` runs them by command.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import multiprocessing
import os
import resource
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import Pool
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from rose import RoseError
from rose.errors import LONGEST, is_out_of_memory

MEMORY = 2**30  # bytes of address space that a child may take beyond what it begins with
SECONDS = 20.0  # that one case may take, on a busy machine
CASES_OF_A_CHILD = 200  # then a new one begins, so that no case depends on many before it

Change = tuple[str, bytes]  # name of the kind of change, and the changed content
Choice = TypeVar("Choice")

# Values that a program that believes its file does not expect.
NUMBERS: tuple[float, ...] = (
    *(0, 1, -1, 2, 3, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 32),
    *(2**64 - 1, 10**30, 30_000_000, 0.5, -0.5, 1e-320, 1e308, math.inf, -math.inf, math.nan),
)
TEXTS = ("", " ", "\n", "a\nb", "\x00", "\ud800", "x" * 5000, "9" * 5000, "../../x", "=1+1", "nan", "Infinity")
DEEP = "deeper than the recursion limit of Python"  # `change_json_file` writes 100,000 lists in its place
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": None}, [None] * 1000)


@dataclass(frozen=True)
class Reader:
    """A kind of file and the code that reads it."""

    name: str  # on the command line
    write: Callable[[Path], Path]  # (empty folder) -> a sound file, which is then changed; others may stand beside it
    read: Callable[[Path], str]  # (file) -> a text that differs where the content differs; raises RoseError
    change: Callable[[bytes, Random], Change]  # (sound content, random) -> a change
    lawful: frozenset[str] = frozenset()  # changes after which the file says something else, which is no fault


@dataclass(frozen=True)
class Fault:
    """A case that a reader has failed."""

    case: int
    change: str
    kind: str  # "traceback", "different", "message", "memory" or "no answer"
    detail: str  # the error or the text


@dataclass
class Outcome:
    """What all cases of a reader came to: kind -> number of cases, and the cases that are faults."""

    reader: str
    kinds: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def run(reader: Reader, cases: Sequence[int], seed: int = 0) -> Outcome:
    """Reads each changed file in a child process, and counts the outcomes by kind."""
    outcome = Outcome(reader.name)
    with tempfile.TemporaryDirectory() as folder:
        path = reader.write(Path(folder))
        sound = path.read_bytes()
        with _Child(reader.read) as child:
            kind, expected = child.read(path)
            if kind != "read":
                raise RuntimeError(f"the sound file of {reader.name} is not read: {expected}")
            for case in cases:
                change, content = reader.change(sound, Random(f"{seed} {reader.name} {case}"))
                path.with_name("changed").write_bytes(content)  # a process that has mapped the old file keeps it
                os.replace(path.with_name("changed"), path)
                kind, detail = child.read(path)
                if kind == "read":
                    is_lawful = change in reader.lawful
                    kind = "equal" if detail == expected else "lawfully different" if is_lawful else "different"
                outcome.kinds[kind] = outcome.kinds.get(kind, 0) + 1
                if kind not in ("refused", "equal", "lawfully different"):
                    outcome.faults.append(Fault(case, change, kind, detail))
    return outcome


class _Child:
    """A process that reads one file after another; a new one takes its place where it dies or takes too long."""

    def __init__(self, read: Callable[[Path], str]) -> None:
        self._read = read
        self._pool: Pool | None = None
        self._cases = 0

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.terminate()

    def read(self, path: Path) -> tuple[str, str]:
        """What reading came to, and a detail: what was read or the message."""
        if self._pool is None or self._cases == CASES_OF_A_CHILD:
            self.__exit__()
            self._pool = multiprocessing.get_context("fork").Pool(1, _begin, (self._read,))
            self._cases = 0
        self._cases += 1
        try:
            return self._pool.apply_async(_sorted, (path,)).get(SECONDS)
        except multiprocessing.TimeoutError:
            self._pool.terminate()
            self._pool = None
            return "no answer", f"it died, or took more than {SECONDS} s"


def _begin(read: Callable[[Path], str]) -> None:
    """In a child: limits its memory, and keeps the reader, which cannot be sent."""
    global _read
    _read = read
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable()
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


_read: Callable[[Path], str]


def _sorted(path: Path) -> tuple[str, str]:
    try:
        return "read", _read(path)
    except RoseError as problem:
        message = str(problem)
        if any(is_out_of_memory(cause) for cause in _causes(problem)):
            return "memory", message
        is_sentence = message.isprintable() and 0 < len(message) <= LONGEST + 1
        return "refused" if is_sentence else "message", message
    except Exception as problem:
        kind = "memory" if any(map(is_out_of_memory, (problem, *_causes(problem)))) else "traceback"
        return kind, traceback.format_exc()[-3000:]


def _causes(problem: BaseException) -> Iterator[BaseException]:
    while (cause := problem.__cause__ or problem.__context__) is not None:
        yield cause
        problem = cause


KINDS = ("byte", "byte", "byte", "bytes", "cut", "removed", "repeated", "zeros", "appended", "inserted")


def change_bytes(content: bytes, chance: Random, start: int = 0, end: int | None = None) -> Change:
    """Changes, removes, repeats or adds bytes between two places."""
    end = len(content) if end is None else min(end, len(content))
    first, second = sorted(chance.choices(range(start, max(end, start + 1)), k=2))
    near = min(second, first + 64)
    kind = chance.choice(KINDS)
    changed = bytearray(content)
    if kind in ("byte", "bytes"):
        for _ in range(1 if kind == "byte" else chance.randint(2, 16)):
            new = chance.choice([0, 1, 10, 127, 128, 255, chance.randrange(256)])
            place = chance.randrange(start, max(end, start + 1))
            changed[place : place + 1] = bytes([new])
    elif kind == "cut":
        del changed[first:]
    elif kind == "removed":
        del changed[first:near]
    elif kind == "repeated":
        changed[second:second] = content[first : min(second, first + 4096)]
    elif kind == "zeros":
        changed[first:near] = bytes(near - first)
    elif kind == "appended":
        changed += chance.choice([b"\0", b"\n", b"{}", chance.randbytes(100), bytes(4096)])
    else:
        changed[first:first] = chance.randbytes(chance.randint(1, 16))
    return kind, bytes(changed)


def change_json(value: Any, chance: Random, texts: Sequence[str] = TEXTS) -> tuple[str, Any]:
    """The kind of change, and a copy of a JSON value with one entry replaced, removed, repeated or renamed."""
    changed = copy.deepcopy(value)
    places = list(_entries(changed))
    if not places:
        return "replaced", chance.choice(OTHERS)
    owner, key = chance.choice(places)
    kind = chance.choice(["replaced", "replaced", "replaced", "scaled", "removed", "renamed", "exchanged", "nested"])
    if kind == "scaled" and isinstance(owner[key], int | float) and not isinstance(owner[key], bool):
        owner[key] = chance.choice([owner[key] + 1, owner[key] - 1, owner[key] * 2, -owner[key], owner[key] * 1000])
    elif kind == "removed":
        del owner[key]
    elif kind == "renamed" and isinstance(owner, dict):
        owner[chance.choice(texts)] = owner.pop(key)
    elif kind == "exchanged":
        other_owner, other_key = chance.choice(places)
        owner[key], other_owner[other_key] = copy.deepcopy(other_owner[other_key]), copy.deepcopy(owner[key])
    elif kind == "nested":
        owner[key] = chance.choice([[owner[key]], {"": owner[key]}, DEEP])
    else:
        kind = "replaced"
        owner[key] = chance.choice([chance.choice(NUMBERS), chance.choice(texts), copy.deepcopy(chance.choice(OTHERS))])
    return kind, changed


def change_json_file(content: bytes, chance: Random) -> Change:
    """Changes the bytes or, more often, one entry of a JSON file."""
    if chance.random() < 0.25:
        return change_bytes(content, chance)
    kind, changed = change_json(json.loads(content), chance)
    return kind, json.dumps(changed).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key or index) of every entry at every depth."""
    keys: Any = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _entries(value[key])
