"""Output folders and files: checked before long work, written whole or not at all."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from rose.errors import RoseError
from rose.files import reachable, sync
from rose.wording import size

LAST = ("config.json", "model_index.json")  # what makes a folder a checkpoint
PARTIAL = ".rose-partial-"  # begins names of unfinished folders; the next run clears folders of killed runs


def check_output(folder: str | Path) -> None:
    """Raises RoseError, before long work, unless this is a new or empty folder that can be written."""
    path = _at_home(folder)
    if folder == "":
        raise RoseError("The output folder has no name; give one.")
    with _refusing(f"Nothing can be written to {folder}"):
        if path.exists() and (not path.is_dir() or any(not item.name.startswith(PARTIAL) for item in path.iterdir())):
            raise RoseError(f"{folder} already exists and is not an empty folder; choose another output folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path if path.exists() else path.parent).close()


def check_room(path: str | Path, needed: int, reserve: int = 0) -> None:
    """Raises RoseError, before long work, unless `needed` bytes are free at the path, besides a reserve."""
    free = max(0, shutil.disk_usage(_nearest(reachable(path))).free - reserve)
    if needed > free:
        problem = f"{path} will take about {size(needed)}, and {size(free)} are free there"
        raise RoseError(f"{problem}; make room, or choose another place.")


def check_folder(folder: str | Path) -> None:
    """Raises RoseError, before long work, unless files can be written into this folder, which may be new."""
    with _refusing(f"Nothing can be written to {folder}"):
        tempfile.TemporaryFile(dir=_nearest(_at_home(folder))).close()


def check_file(path: Path) -> None:
    """Raises RoseError, before long work, unless a new file of this name can be written."""
    if reachable(path).is_dir() or not path.absolute().parent.is_dir():
        raise RoseError(f"{path} cannot be written: name a file in a folder that exists.")
    if path.exists():
        raise RoseError(f"{path} already exists; choose another name, or remove it.")
    with _refusing(f"{path} cannot be written"):
        tempfile.TemporaryFile(dir=path.absolute().parent).close()


@contextlib.contextmanager
def _refusing(sentence: str) -> Iterator[None]:
    """Turns OSError into a RoseError that begins with this sentence."""
    try:
        yield
    except OSError as problem:
        raise RoseError(f"{sentence} ({problem.strerror}); choose another folder.") from problem


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file that becomes this new one at the end, or is removed where that is not reached. Meanwhile no
    other process can begin to make it. Raises RoseError: as `check_file`; another process makes it; it does not fit."""
    check_file(path)
    try:
        with temporary_folder(path.absolute().parent, claims=path.name) as folder:
            temporary = folder / path.name
            yield temporary
            sync(temporary)
            check_file(path)
            path.open("xb").close()  # what has come meanwhile is not replaced
            os.replace(temporary, path)
    except Timeout as problem:
        raise RoseError(f"{path} is being written by another process; choose another name, or wait.") from problem
    except OSError as problem:
        raise RoseError(f"{path} cannot be written ({problem.strerror or problem}); make room.") from problem


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a new file, bytes or a text as UTF-8, whole or not at all; raises as `new_file`."""
    with new_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes this one at the end, or is removed where that is not reached.

    An existing folder stays, as it may be a mount point, a link or the working folder. Files are then moved into it,
    and the files that make it a checkpoint come last. Raises RoseError as `check_output`, or where the files do not
    fit."""
    check_output(folder)
    path = reachable(folder)
    try:
        # On the file system that it will be on.
        with temporary_folder(path if path.exists() else path.parent) as temporary:
            mode = temporary.stat().st_mode & 0o666  # of any new file; libraries make some that only their owner reads
            yield temporary
            for path_inside in temporary.rglob("*"):
                if path_inside.is_file():
                    path_inside.chmod(mode)
                    sync(path_inside)
            if path.exists():
                check_output(folder)  # nothing may have come meanwhile that would be replaced
                _move_into(path, temporary)
            else:
                temporary.rename(path)
                sync(path.parent)
    except (OSError, SafetensorError) as problem:
        is_full = getattr(problem, "errno", errno.ENOSPC) in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space" if is_full else "choose another folder"
        raise RoseError(f"The checkpoint could not be written to {folder} ({problem}); {advice}.") from problem


@contextlib.contextmanager
def temporary_folder(place: Path, mode: int = 0o777, claims: str = "") -> Iterator[Path]:
    """A folder inside `place`, removed at the end, or after a kill when the next folder is made. `claims` is a name
    that one process at a time may make. Raises OSError; filelock.Timeout: another process has the claim."""
    for path in place.glob(f"{PARTIAL}*.lock"):  # what killed runs have left: folders that no living process has locked
        if path.is_symlink():
            continue  # to a file that the lock would empty
        with contextlib.suppress(OSError), FileLock(path, blocking=False):  # held, or of another user
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)
    for path in place.glob(f"{PARTIAL}*"):
        if path.is_dir() and not Path(f"{path}.lock").exists():
            shutil.rmtree(path, ignore_errors=True)
    token = hashlib.sha256(os.fsencode(claims)).hexdigest()[:16] if claims else secrets.token_hex(4)
    temporary = place / f"{PARTIAL}{token}"
    # The system releases it when the process ends, however it ends; a thread other than this one may do so before.
    with FileLock(f"{temporary}.lock", thread_local=False, timeout=1 if claims else -1) as lock:
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed since
            temporary.mkdir(mode)
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)


def _move_into(path: Path, temporary: Path) -> None:
    """Moves all that is in a folder into an empty one; leaves that empty where it is stopped."""
    moved = []
    try:
        for item in sorted(temporary.iterdir(), key=lambda item: item.name in LAST):
            moved.append(path / item.name)
            os.replace(item, moved[-1])
        sync(path)
    except BaseException:
        for item in moved:
            shutil.rmtree(item) if item.is_dir() else item.unlink(missing_ok=True)
        raise


def _at_home(folder: str | Path) -> Path:
    """As `reachable`; RoseError for the home of nobody, or a folder called ~ would be made where the program works."""
    path = reachable(folder)
    if str(path).startswith("~"):
        raise RoseError(f"{folder} is in a home folder that this system does not know; write the path out.")
    return path


def _nearest(path: Path) -> Path:
    """This path, or the nearest folder above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
