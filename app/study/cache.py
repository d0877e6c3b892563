"""Results kept on disk, so that the app's next start on the same set-up shows them in seconds.

The folder is ROSE_CACHE where that is set (empty: nothing is kept), else rose-explorer in the user's cache folder. It
has a folder for each calibration, named by a digest of all that its statistics depend on, and in it (nothing else in
there is ever removed)

    block-00007.safetensors      statistics of one decoder block's layers
    study-DIGEST.safetensors     the results measured with them

Files hold digests of themselves: a damaged file counts as missing, and its content is computed again.

One finished study comes with the app, `example.safetensors` beside this file: records of all layers of the
packaged model on the start page's settings, statistics of its most columnar layers, and the heads that can be rotated.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

import rose
from app.study.setup import Setup
from rose.files import TEMPORARY, expand
from rose.layer.basis import HeadLayout
from rose.model.load.models import identify
from rose.model.load.tokens import DATASETS, packaged_text
from rose.model.network.layers import PrunableLayer, by_block
from rose.model.walk.walk import BlockStatistics
from rose.tensor_files import DamagedFile, read_tensors, write_tensors

logger = logging.getLogger(__name__)

VARIABLE = "ROSE_CACHE"
EXAMPLE = Path(__file__).with_name("example.safetensors")
LIMIT = 3 * 10**9  # bytes of everything that is kept; the least recently used calibrations go first
DIGITS = 32  # of a digest in a name
_FOLDER = re.compile(f"[0-9a-f]{{{DIGITS}}}")
_FILE = re.compile(rf"(block-\d{{5,}}|study-[0-9a-f]{{{DIGITS}}})\.safetensors({TEMPORARY})?")


@dataclass(frozen=True)
class Files:
    """Identities of a model's and a text's files at one moment; None for a file that is not on this machine.

    Results belong to files, not to names, under which a file may be replaced.
    """

    model: str | None
    text: str | None


STREAMS = ("calibration", "held_out")
LayerStatistics = dict[str, rose.InputStatistics]  # by layer, of one stream


@dataclass(frozen=True)
class Kept:
    """What was measured of one set-up before.

    `is_exact`: on exactly the text that the set-up's name stands for here. The packaged text comes with Python, and
    changes a little from one release to the next.
    """

    records: list[rose.LayerRecord]  # one per layer and method
    condition: dict[str, float]  # of the damped Hessian, by layer
    forecast: dict[str, dict[str, float]]  # errors foretold before any sweep, by layer and name in `setup.FORETOLD`
    calibration: LayerStatistics = dataclasses.field(default_factory=dict)  # of some layers, for the example
    held_out: LayerStatistics = dataclasses.field(default_factory=dict)
    heads: dict[str, HeadLayout] = dataclasses.field(default_factory=dict)  # that can be rotated, for the example
    is_exact: bool = True
    made_with: str = ""  # versions, for people


def files_of(setup: Setup) -> Files:
    text: str | None = setup.text
    if setup.text == "packaged":
        text = f"{text} of Python {sys.version}"
    elif setup.text not in DATASETS:
        try:
            state = expand(setup.text).resolve().stat()
            text = f"{text} {state.st_size} {state.st_mtime_ns}"
        except OSError:
            text = None
    return Files(model_identity(setup.model), text)


def folder_of(setup: Setup, files: Files) -> Path | None:
    """Where the statistics of this set-up's calibration are or would be; None where they cannot be kept."""
    chosen = os.environ.get(VARIABLE)
    if chosen == "" or files.model is None or files.text is None:
        return None
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "rose-explorer"
    root = expand(chosen or usual)
    if str(root).startswith("~"):  # nobody's home: in a container, a user may have none
        return None
    return root / _digest(_version(), files.model, files.text, *map(str, setup.calibration_key))


def recall(setup: Setup, files: Files) -> Kept | None:
    """The results on disk for this set-up and these files: the user's own, else the packaged example."""
    folder = folder_of(setup, files)
    return (read_study(folder, setup) if folder else None) or read_example(setup)


def read_study(folder: Path, setup: Setup) -> Kept | None:
    try:
        _, facts = read_tensors(_study_path(folder, setup))
    except DamagedFile:
        return None
    with contextlib.suppress(OSError):  # it may be there to be read only
        folder.touch()  # used just now
    return Kept(*_read_records(facts))


def write_study(
    folder: Path,
    setup: Setup,
    records: Sequence[rose.LayerRecord],
    condition: Mapping[str, float],
    forecast: Mapping[str, dict[str, float]],
) -> None:
    """Keeps what was measured; if it cannot be written, logs that and goes on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(_study_path(folder, setup), {}, **_write_records(records, condition, forecast))
    except (OSError, SafetensorError) as problem:
        logger.warning("Results are not kept for the next start: %s", problem)


def _write_records(
    records: Sequence[rose.LayerRecord], condition: Mapping[str, float], forecast: Mapping[str, dict[str, float]]
) -> dict[str, str]:
    texts = {"records": [dataclasses.asdict(record) for record in records]}
    return {name: json.dumps(part) for name, part in (texts | {"condition": condition, "forecast": forecast}).items()}


def _read_records(facts: Mapping[str, str]) -> tuple[list[rose.LayerRecord], dict[str, float], dict[str, Any]]:
    records = [rose.LayerRecord(**record) for record in json.loads(facts["records"])]
    return records, json.loads(facts["condition"]), json.loads(facts.get("forecast", "{}"))


@cache
def _example() -> tuple[dict[str, Tensor], dict[str, str]] | None:
    try:
        return read_tensors(EXAMPLE)
    except DamagedFile as problem:
        logger.warning("The example cannot be shown: %s", problem)
        return None


def read_example(setup: Setup) -> Kept | None:
    """The study that comes with the app; None for any other set-up, or where its file is damaged."""
    if setup != Setup() or (example := _example()) is None:
        return None
    tensors, facts = example
    if Setup(**json.loads(facts["setup"])) != setup:
        return None
    layers = json.loads(facts["layers"])
    streams = _unpack(tensors, dict(zip(layers, layers, strict=True)))  # no two of them read the same tensor
    heads = {name: HeadLayout(width, tuple(group)) for name, (width, group) in json.loads(facts["heads"]).items()}
    return Kept(*_read_records(facts), *streams, heads, facts["text"] == text_digest(), facts["made_with"])


def write_example(study: Kept, path: Path) -> None:
    """Writes what `read_example` reads."""
    write_tensors(
        path,
        _pack(study.calibration, study.held_out)[0],
        setup=json.dumps(dataclasses.asdict(Setup())),
        layers=json.dumps(list(study.calibration)),
        heads=json.dumps({name: (layout.width, layout.group) for name, layout in study.heads.items()}),
        text=text_digest(),
        made_with=study.made_with,
        **_write_records(study.records, study.condition, study.forecast),
    )


@cache
def text_digest() -> str:
    return _digest(packaged_text())


def read_blocks(folder: Path, layers: Sequence[PrunableLayer]) -> list[BlockStatistics] | None:
    """Statistics of these layers by decoder block; None where they are missing or damaged."""
    blocks = []
    try:
        for index, chosen in by_block(layers).items():
            tensors, facts = read_tensors(_block_path(folder, index))
            blocks.append(BlockStatistics(index, chosen, *_unpack(tensors, json.loads(facts["leaders"]))))
    except DamagedFile:
        return None
    return blocks


def write_blocks(folder: Path, blocks: Sequence[BlockStatistics]) -> None:
    """Keeps statistics, and makes room for them; if they cannot be written, logs that and goes on."""
    size = sum(tensor.nbytes for block in blocks for tensor in _pack(block.calibration, block.held_out)[0].values())
    if size > LIMIT:
        logger.info("Statistics of %.1f GB are too large to be kept for the next start", size / 1e9)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _make_room(folder, size)
        for block in blocks:
            tensors, leaders = _pack(block.calibration, block.held_out)
            write_tensors(_block_path(folder, block.block_index), tensors, leaders=json.dumps(leaders))
    except (OSError, SafetensorError) as problem:
        logger.warning("Statistics are not kept for the next start: %s", problem)


def _pack(*streams: LayerStatistics) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of both streams, and by layer the first that reads the same tensor, under whose name they are."""
    tensors: dict[str, Tensor] = {}
    leaders: dict[str, str] = {}
    for stream, statistics in zip(STREAMS, streams, strict=True):
        leader_of: dict[int, str] = {}
        for layer, statistics_of_layer in statistics.items():
            leaders[layer] = leader_of.setdefault(id(statistics_of_layer), layer)
        for layer in leader_of.values():
            tensors |= {f"{stream}.{layer}.{part}": tensor for part, tensor in statistics[layer].pack().items()}
    return tensors, leaders


def _unpack(tensors: Mapping[str, Tensor], leaders: Mapping[str, str]) -> tuple[LayerStatistics, LayerStatistics]:
    """Both streams, as `_pack` was given them: layers that shared their statistics go on sharing them."""

    def read(stream: str) -> LayerStatistics:
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            layer, _, part = name.removeprefix(f"{stream}.").rpartition(".")
            if name.startswith(stream):
                parts.setdefault(layer, {})[part] = tensor
        shared = {leader: rose.InputStatistics.unpack(packed) for leader, packed in parts.items()}
        return {layer: shared[leader] for layer, leader in leaders.items() if leader in shared}

    return read(STREAMS[0]), read(STREAMS[1])


def _make_room(folder: Path, size: int) -> None:
    """Removes whole calibrations, the least recently used first, until this many more bytes fit within the limit."""
    folders = [other for other in folder.parent.iterdir() if other != folder and _is_calibration(other)]
    folders.sort(key=lambda other: other.stat().st_mtime)  # see `read_study`
    sizes = {other: sum(file.stat().st_size for file in other.iterdir()) for other in folders}
    for other in folders:
        if sum(sizes.values()) + size <= LIMIT:
            return
        shutil.rmtree(other, ignore_errors=True)
        del sizes[other]


def _is_calibration(folder: Path) -> bool:
    """Whether this is a folder of ours, and holds nothing else: people name folders that hold their own things too."""
    if folder.is_symlink() or not folder.is_dir() or not _FOLDER.fullmatch(folder.name):
        return False
    names = [file.name for file in folder.iterdir()]
    return bool(names) and all(map(_FILE.fullmatch, names))


def model_identity(name: str) -> str | None:
    """Identifies a model's files; None where it is not on this machine, or just being written."""
    try:
        return identify(name)
    except OSError:
        return None


@cache
def _version() -> str:
    """A digest of all code that results depend on, and of the versions of torch and transformers."""
    digest = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for path in _sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sources() -> list[Path]:
    rooms = [Path(rose.__file__).parent, Path(__file__).parent]
    return sorted(path for room in rooms for path in room.rglob("*.py"))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:DIGITS]


def _study_path(folder: Path, setup: Setup) -> Path:
    return folder / f"study-{_digest(repr(setup))}.safetensors"


def _block_path(folder: Path, index: int) -> Path:
    return folder / f"block-{index:05d}.safetensors"
