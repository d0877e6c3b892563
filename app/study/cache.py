"""Results kept on disk, so that the app's next start on the same set-up shows them in seconds.

The folder is ROSE_CACHE where that is set (empty: nothing is kept), else rose-explorer in the user's cache folder. It
has a folder for each calibration, named by a digest of all that its statistics depend on, and in it

    block-00007.safetensors      statistics of one decoder block's layers
    study-DIGEST.safetensors     what was measured with them

Files hold digests of themselves: a damaged one is treated as missing, and its content is computed again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

import rose
from app.study.setup import MEASURED, Setup
from rose.model.calibration import DATASETS
from rose.model.capture import BlockStatistics
from rose.model.checkpoint import blocks_of
from rose.model.durable import DamagedFile, read_tensors, write_tensors
from rose.model.loading import identify
from rose.model.structure import PrunableLayer
from rose.paths import expand

logger = logging.getLogger(__name__)

VARIABLE = "ROSE_CACHE"
LIMIT = 3 * 10**9  # bytes of everything that is kept; the calibrations used longest ago go first


@dataclass(frozen=True)
class Files:
    """What the names of a model and a text stood for at one moment; None for what was not on this machine.

    A name stays while its file is replaced: results belong to files.
    """

    model: str | None
    text: str | None


def files_of(setup: Setup) -> Files:
    """What this set-up's names stand for now."""
    return Files(model_identity(setup.model), _text_identity(setup.text))


def folder_of(setup: Setup, files: Files) -> Path | None:
    """Where the statistics of this set-up's calibration are or would be; None where they cannot be kept."""
    root = _root()
    if root is None or files.model is None or files.text is None:
        return None
    return root / _digest(_version(), files.model, files.text, *map(str, setup.calibration_key))


def read_study(folder: Path, setup: Setup) -> tuple[list[rose.LayerRecord], dict[str, float]] | None:
    """What was measured for exactly this set-up: records, and condition numbers by layer."""
    try:
        _, facts = read_tensors(_study_path(folder, setup))
        folder.touch()  # used just now
    except (DamagedFile, OSError):
        return None
    return [rose.LayerRecord(**record) for record in json.loads(facts["records"])], json.loads(facts["condition"])


def write_study(
    folder: Path, setup: Setup, records: Sequence[rose.LayerRecord], condition: Mapping[str, float]
) -> None:
    """Keeps what was measured; where the disk does not take it, says so in the log and goes on."""
    texts = json.dumps([dataclasses.asdict(record) for record in records])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(_study_path(folder, setup), {}, records=texts, condition=json.dumps(dict(condition)))
    except (OSError, SafetensorError) as problem:
        logger.warning("Results are not kept for the next start: %s", problem)


def read_blocks(folder: Path, layers: Sequence[PrunableLayer]) -> list[BlockStatistics] | None:
    """Statistics of these layers by decoder block; None where they are not there, or not whole."""
    try:
        blocks = [_read_block(folder, index, chosen) for index, chosen in blocks_of(layers).items()]
    except DamagedFile:
        return None
    return blocks


def write_blocks(folder: Path, blocks: Sequence[BlockStatistics]) -> None:
    """Keeps statistics, and makes room for them; where the disk does not take them, says so in the log and goes on."""
    size = sum(tensor.numel() * tensor.itemsize for block in blocks for tensor in _pack(block)[0].values())
    if size > LIMIT:
        logger.info("Statistics of %.1f GB are too large to be kept for the next start", size / 1e9)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _make_room(folder, size)
        for block in blocks:
            tensors, owners = _pack(block)
            write_tensors(_block_path(folder, block.block_index), tensors, owners=json.dumps(owners))
    except (OSError, SafetensorError) as problem:
        logger.warning("Statistics are not kept for the next start: %s", problem)


def _pack(block: BlockStatistics) -> tuple[dict[str, Tensor], dict[str, dict[str, int]]]:
    """Tensors of a block's statistics, and for each stream which layer reads which of them: sharing survives."""
    tensors: dict[str, Tensor] = {}
    owners = {}
    for stream, found in (("calibration", block.calibration), ("held_out", block.held_out)):
        groups = list({id(one): one for one in found.values()}.values())
        owners[stream] = {name: groups.index(one) for name, one in found.items()}
        for number, one in enumerate(groups):
            tensors |= {f"{stream}.{number}.{part}": tensor for part, tensor in one.pack().items()}
    return tensors, owners


def _read_block(folder: Path, index: int, layers: list[PrunableLayer]) -> BlockStatistics:
    tensors, facts = read_tensors(_block_path(folder, index))
    streams = {}
    for stream, owners in json.loads(facts["owners"]).items():
        groups = {
            number: rose.InputStatistics.unpack(
                {part: tensors[f"{stream}.{number}.{part}"] for part in ("panels", "sum", "tokens")}
            )
            for number in set(owners.values())
        }
        streams[stream] = {name: groups[number] for name, number in owners.items()}
    return BlockStatistics(index, layers, streams["calibration"], streams["held_out"])


def _make_room(folder: Path, size: int) -> None:
    """Removes whole calibrations, the one used longest ago first, until so many more bytes are within the limit."""
    others = sorted((one for one in folder.parent.iterdir() if one.is_dir() and one != folder), key=_used)
    sizes = {one: sum(file.stat().st_size for file in one.iterdir()) for one in others}
    for one in others:
        if sum(sizes.values()) + size <= LIMIT:
            return
        shutil.rmtree(one, ignore_errors=True)
        del sizes[one]


def _used(folder: Path) -> float:
    return folder.stat().st_mtime


def _root() -> Path | None:
    named = os.environ.get(VARIABLE)
    if named is not None:
        return expand(named) if named else None
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "rose-explorer"


def model_identity(name: str) -> str | None:
    """Tells a model from any other or later one; None where it is not on this machine, or just being written."""
    try:
        return identify(name)
    except OSError:
        return None


def _text_identity(text: str) -> str | None:
    """Tells a calibration text from any other or later one; None where there is no such file."""
    if text == "packaged":
        return f"{text} of Python {sys.version}"
    if text in DATASETS:
        return text
    try:
        state = expand(text).resolve().stat()
    except OSError:
        return None
    return f"{text} {state.st_size} {state.st_mtime_ns}"


@cache
def _version() -> str:
    """Of all code that results depend on, as on disk, and of torch and transformers."""
    found = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for path in _sources():
        found.update(path.read_bytes())
    return found.hexdigest()


def _sources() -> list[Path]:
    """Every file of rose and of this room, and those of the methods that a study measures with."""
    methods = [inspect.getsourcefile(rose.METHODS[method].prune) for method, _ in MEASURED.values()]
    rooms = [Path(rose.__file__).parent, Path(__file__).parent]
    return [*sorted(path for room in rooms for path in room.rglob("*.py")), *(Path(one) for one in methods if one)]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _study_path(folder: Path, setup: Setup) -> Path:
    return folder / f"study-{_digest(repr(setup))}.safetensors"


def _block_path(folder: Path, index: int) -> Path:
    return folder / f"block-{index:05d}.safetensors"
