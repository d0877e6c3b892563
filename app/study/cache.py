"""Results kept on disk, so that the app's next start on the same set-up shows them in seconds.

The folder is ROSE_CACHE where that is set (empty: nothing is kept), else rose-explorer in the user's cache folder. It
has a folder for each calibration, named by a digest of all that its statistics depend on, and in it

    block-00007.safetensors      statistics of one decoder block's layers
    study-DIGEST.safetensors     what was measured with them

Files hold digests of themselves: a damaged one is treated as missing, and its content is computed again.

One finished study comes with the app, `example.safetensors` beside this file: what was measured of all layers of the
packaged model on the start page's own settings, and statistics of its most columnar layers; see `app.study.example`.
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
from rose.files import DamagedFile, expand, read_tensors, write_tensors
from rose.model.load.models import identify
from rose.model.load.tokens import DATASETS, packaged_text
from rose.model.network.layers import PrunableLayer, by_block
from rose.model.walk.walk import BlockStatistics

logger = logging.getLogger(__name__)

VARIABLE = "ROSE_CACHE"
EXAMPLE = Path(__file__).with_name("example.safetensors")
EXAMPLE_FORMAT = "1"  # of that file; other formats are not read
LIMIT = 3 * 10**9  # bytes of everything that is kept; the least recently used calibrations go first


@dataclass(frozen=True)
class Files:
    """Identities of a model's and a text's files at one moment; None for what was not on this machine.

    Results belong to files, not to names, under which a file may be replaced.
    """

    model: str | None
    text: str | None


# By layer: statistics of its calibration inputs, and of its held-out ones.
LayerStatistics = dict[str, tuple[rose.InputStatistics, rose.InputStatistics | None]]


@dataclass(frozen=True)
class Kept:
    """What was measured of one set-up before.

    Attributes:
        records: one per layer and method.
        condition: of the damped Hessian, by layer.
        statistics: of some layers, for the example; a study of the user's own keeps them by decoder block.
        is_exact: whether it was measured on exactly the text that the set-up's name stands for here. The packaged text
            comes with Python, and changes a little from one release to the next.
        made_with: versions, for people.
    """

    records: list[rose.LayerRecord]
    condition: dict[str, float]
    statistics: LayerStatistics = dataclasses.field(default_factory=dict)
    is_exact: bool = True
    made_with: str = ""


def files_of(setup: Setup) -> Files:
    """The files that this set-up names, as they are now."""
    return Files(model_identity(setup.model), _text_identity(setup.text))


def folder_of(setup: Setup, files: Files) -> Path | None:
    """Where the statistics of this set-up's calibration are or would be; None where they cannot be kept."""
    root = _root()
    if root is None or files.model is None or files.text is None:
        return None
    return root / _digest(_version(), files.model, files.text, *map(str, setup.calibration_key))


def recall(setup: Setup, files: Files) -> Kept | None:
    """What is on disk for this set-up and these files: the user's own results, else the packaged example."""
    folder = folder_of(setup, files)
    return (read_study(folder, setup) if folder else None) or read_example(setup)


def read_study(folder: Path, setup: Setup) -> Kept | None:
    """What was measured for exactly this set-up."""
    try:
        _, facts = read_tensors(_study_path(folder, setup))
        folder.touch()  # used just now
    except (DamagedFile, OSError):
        return None
    return Kept(_read_records(facts), json.loads(facts["condition"]))


def _read_records(facts: Mapping[str, str]) -> list[rose.LayerRecord]:
    return [rose.LayerRecord(**record) for record in json.loads(facts["records"])]


def write_study(
    folder: Path, setup: Setup, records: Sequence[rose.LayerRecord], condition: Mapping[str, float]
) -> None:
    """Keeps what was measured; if it cannot be written, logs that and goes on."""
    texts = json.dumps([dataclasses.asdict(record) for record in records])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(_study_path(folder, setup), {}, records=texts, condition=json.dumps(dict(condition)))
    except (OSError, SafetensorError) as problem:
        logger.warning("Results are not kept for the next start: %s", problem)


@cache
def _example() -> tuple[dict[str, Tensor], dict[str, str]] | None:
    try:
        return read_tensors(EXAMPLE)
    except DamagedFile as problem:
        logger.warning("The example cannot be shown: %s", problem)
        return None


def read_example(setup: Setup) -> Kept | None:
    """The study that comes with the app; None for any other set-up, or where its file is damaged."""
    if setup != Setup() or (found := _example()) is None:
        return None
    tensors, facts = found
    if facts["format"] != EXAMPLE_FORMAT or Setup(**json.loads(facts["setup"])) != setup:
        return None
    statistics: LayerStatistics = {}
    for layer in json.loads(facts["layers"]):
        one, other = (_unpack(tensors, f"{stream}.{layer}") for stream in ("calibration", "held_out"))
        statistics[layer] = (one, other)
    is_exact = facts["text"] == text_digest()
    return Kept(_read_records(facts), json.loads(facts["condition"]), statistics, is_exact, facts["made_with"])


def write_example(kept: Kept, path: Path = EXAMPLE) -> None:
    """Writes what `read_example` reads.

    Raises:
        OSError, SafetensorError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for layer, streams in kept.statistics.items():
        for name, one in zip(("calibration", "held_out"), streams, strict=True):
            assert one is not None  # the start page's own settings hold some windows out
            tensors |= {f"{name}.{layer}.{part}": tensor for part, tensor in one.pack().items()}
    write_tensors(
        path,
        tensors,
        format=EXAMPLE_FORMAT,
        setup=json.dumps(dataclasses.asdict(Setup())),
        records=json.dumps([dataclasses.asdict(record) for record in kept.records]),
        condition=json.dumps(kept.condition),
        layers=json.dumps(list(kept.statistics)),
        text=text_digest(),
        made_with=kept.made_with,
    )


@cache
def text_digest() -> str:
    """Identifies the packaged text, which differs between Python releases."""
    return _digest(packaged_text())


def read_blocks(folder: Path, layers: Sequence[PrunableLayer]) -> list[BlockStatistics] | None:
    """Statistics of these layers by decoder block; None where they are missing or damaged."""
    try:
        blocks = [_read_block(folder, index, chosen) for index, chosen in by_block(layers).items()]
    except DamagedFile:
        return None
    return blocks


def write_blocks(folder: Path, blocks: Sequence[BlockStatistics]) -> None:
    """Keeps statistics, and makes room for them; if they cannot be written, logs that and goes on."""
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
    """Tensors of a block's statistics, and which layer reads which of them, by stream, so that layers go on sharing
    them."""
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
        groups = {number: _unpack(tensors, f"{stream}.{number}") for number in set(owners.values())}
        streams[stream] = {name: groups[number] for name, number in owners.items()}
    return BlockStatistics(index, layers, streams["calibration"], streams["held_out"])


def _unpack(tensors: Mapping[str, Tensor], prefix: str) -> rose.InputStatistics:
    return rose.InputStatistics.unpack({part: tensors[f"{prefix}.{part}"] for part in ("panels", "sum", "tokens")})


def _make_room(folder: Path, size: int) -> None:
    """Removes whole calibrations, the least recently used first, until this many more bytes fit within the limit."""
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
    """Identifies a model's files; None where it is not on this machine, or just being written."""
    try:
        return identify(name)
    except OSError:
        return None


def _text_identity(text: str) -> str | None:
    """Identifies a calibration text; None where there is no such file."""
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
    """A digest of all code that results depend on, and of the versions of torch and transformers."""
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
