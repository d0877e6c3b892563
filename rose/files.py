"""Paths, and files that are written whole or not at all: to a temporary name, forced to the disk, then renamed."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rose.errors import RoseError
from rose.wording import size

LARGEST = 500 * 10**6  # bytes of a table or a report
LONGEST_NAME = 255  # bytes of a file's name
TEMPORARY = ".tmp"  # ends names of unfinished files


def expand(name: str | Path) -> Path:
    """The path with ~ or ~user replaced; the ~ of an unknown user stays, so that opening it fails."""
    return Path(os.path.expanduser(name))


def beside(folder: Path, ending: str) -> Path:
    """A path beside the folder, with the folder's name and this ending; `.` and `..` are resolved first."""
    whole = folder.resolve()
    return (whole if folder.name in ("", "..") else folder).parent / f"{whole.name}{ending}"


def as_text(name: str | Path) -> str:
    """A name or a path as text; raises RoseError for other types."""
    if not isinstance(name, (str, os.PathLike)):
        raise RoseError(f"A name or a path must be a string or a Path, not {name!r:.100}.")
    return os.fspath(name)


def reachable(name: str | Path) -> Path:
    """The expanded path, whether it exists or not. Raises RoseError: the name is impossible, not UTF-8, or not
    accessible, or a link on the path leads nowhere."""
    path = expand(as_text(name))
    try:
        str(path).encode()
    except UnicodeError as problem:
        raise RoseError(f"The name {str(path)!a:.200} is not UTF-8; choose or make another.") from problem
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as problem:
        for link in (path, *path.parents):
            if link.is_symlink() and not link.exists():
                place = f"{link} is a link to {os.readlink(link)}, which does not exist"
                raise RoseError(f"{place}; make that, or choose another path.") from problem
    except (OSError, ValueError) as problem:
        why = getattr(problem, "strerror", None) or problem
        raise RoseError(f"{str(name)[:200]} cannot be looked up ({why}); check the path.") from problem
    return path


def check_foreign(folder: Path, ours: Sequence[str], holds: str) -> None:
    """Raises RoseError if a name in the folder matches no pattern of ours; `holds`: what ours are."""
    if any(not any(map(item.match, ours)) for item in folder.iterdir()):
        raise RoseError(f"{folder} is not empty and holds no {holds}; choose another folder.")


def check_small(path: str | Path) -> None:
    """Raises RoseError unless this is a file small enough to read at once."""
    place = reachable(path)
    if not place.is_file():
        raise RoseError(f"There is no file {path}; check the path.")
    if place.stat().st_size > LARGEST:
        raise RoseError(f"{path} is larger than {size(LARGEST)}, so it is not a table or a report.")


@contextmanager
def replacing(path: Path, temporary: Path) -> Iterator[None]:
    """Renames `temporary` to `path` after the body; removes it if the body fails."""
    try:
        yield
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all. Raises OSError; an existing file then stays as it was."""
    ending = f"{secrets.token_hex(4)}{TEMPORARY}"  # other writers have names of their own
    begins = os.fsdecode(os.fsencode(path.name)[: LONGEST_NAME - len(ending)])
    temporary = path.with_name(begins + ending)
    with replacing(path, temporary), temporary.open("xb") as file:
        file.write(content)


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, to the disk, as a rename may reach it before the content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


READ_AGAIN = "what is whole is kept, and the same command goes on from there."
GOES_ON = "make room or choose another folder. What it holds so far is kept, and the same command resumes from there."


@contextmanager
def explained(folder: Path, remedy: str = GOES_ON, done: str = "written") -> Iterator[None]:
    """Turns errors of the file system into one RoseError."""
    try:
        yield
    except (OSError, SafetensorError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise RoseError(f"The checkpoint in {folder} cannot be {done} ({reason}); {remedy}") from problem
