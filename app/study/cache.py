"""Results kept on disk, so that the app's next start on the same set-up shows them in seconds.

The folder is ROSE_CACHE where that is set (empty: nothing is kept), else rose-explorer in the user's cache folder. It
has a folder for each calibration, named by a digest of all that its statistics depend on, and in it (nothing else in
there is ever removed)

    block-00007.safetensors      statistics of one decoder block's layers
    study-DIGEST.safetensors     the results measured with them

Files hold digests of themselves: a damaged file counts as missing, and its content is computed again.

`finished/` beside this file has finished studies in the same format, made by `tests.benchmarks.example_study`.
"""

import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

import rose
from app.study.setup import Setup
from rose.files import TEMPORARY, expand
from rose.layer.basis import HeadLayout
from rose.layer.profile import Profile
from rose.model.load.models import identify
from rose.model.load.tokens import DATASETS, packaged_text
from rose.model.network.layers import PrunableLayer, by_block
from rose.model.walk.walk import BlockStatistics
from rose.tensor_files import DamagedFile, read_tensors, write_tensors

logger = logging.getLogger(__name__)

VARIABLE = "ROSE_CACHE"
MODELS = (Setup().model, "Qwen/Qwen2.5-Coder-0.5B-Instruct", "Qwen/Qwen2.5-Coder-1.5B-Instruct")
FINISHED = {  # the studies that come with the app, by set-up; of two models the weights do not come along
    Setup(model=model): Path(__file__).with_name("finished") / f"{model.rpartition('/')[2].lower()}.safetensors"
    for model in MODELS
}
LIMIT = 3 * 10**9  # bytes of everything that is kept; the least recently used calibrations go first
DIGITS = 32  # of a digest in a name
BLOCK = "block-{:05d}.safetensors"
STREAMS, PROFILE = ("calibration", "held_out"), "profile"
FACTS = ("records", "condition", "forecast", "heads", "leaders", "draws")  # JSON in the header of a file
_FILE = re.compile(rf"(block-\d{{5,}}|study-[0-9a-f]{{{DIGITS}}})\.safetensors({TEMPORARY})?")
LayerStatistics = dict[str, rose.InputStatistics]  # by layer, of one stream


@dataclass(frozen=True)
class Files:
    """Identities of a model's and a text's files, as names may get other files; None for a file that is not here."""

    model: str | None
    text: str | None


@dataclass(frozen=True)
class Kept:
    """The content of a file: a study, or the statistics of a decoder block."""

    records: list[rose.LayerRecord] = field(default_factory=list)  # one per layer and method
    condition: dict[str, float] = field(default_factory=dict)  # of the damped Hessian, by layer
    # Held-out errors forecast before any sweep, by layer and name in `setup.FORETOLD`.
    forecast: dict[str, dict[str, float]] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)  # by layer
    # Shares of SparseGPT's held-out error saved in further draws of text, by layer and name in `setup.MEASURED`.
    draws: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    head_width: int | None = None  # of the model, in columns
    # Statistics of a decoder block, or of some layers of the example; then the example's heads that can be rotated.
    calibration: LayerStatistics = field(default_factory=dict)
    held_out: LayerStatistics = field(default_factory=dict)
    heads: dict[str, HeadLayout] = field(default_factory=dict)
    text: str = ""  # digest of the packaged text that a finished study was measured on
    made_with: str = ""  # versions, for people

    @property
    def is_exact(self) -> bool:
        """Whether the text is the set-up's: the packaged text comes with Python and changes a little with it."""
        return self.text in ("", text_digest())


def files_of(setup: Setup) -> Files:
    text: str | None = setup.calibration
    if setup.calibration == "packaged":
        text = f"{text} of Python {sys.version}"
    elif setup.calibration not in DATASETS:
        try:
            state = expand(setup.calibration).resolve().stat()
            text = f"{text} {state.st_size} {state.st_mtime_ns}"
        except OSError:
            text = None
    return Files(model_identity(setup.model), text)


def folder_of(setup: Setup, files: Files) -> Path | None:
    """Where the statistics of this set-up's calibration are or would be; None where they cannot be kept."""
    chosen = os.environ.get(VARIABLE)
    if chosen == "" or files.model is None or files.text is None:
        return None
    root = expand(chosen or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "rose-explorer")
    if str(root).startswith("~"):  # nobody's home: in a container, a user may have none
        return None
    return root / _digest(_version(), files.model, files.text, *map(str, setup.calibration_key))


def recall(setup: Setup, files: Files) -> Kept | None:
    """The results on disk for this set-up and these files: the user's own, else the packaged example."""
    folder = folder_of(setup, files)
    study = read(_study_path(folder, setup)) if folder else None
    if folder and study:
        with suppress(OSError):  # it may be there to be read only
            folder.touch()  # used just now
    return study or read_example(setup)


def read(path: Path) -> Kept | None:
    """The content of a file from `write`; None where it is missing or damaged."""
    try:
        tensors, facts = read_tensors(path)
    except DamagedFile:
        return None
    records, condition, forecast, heads, leaders, draws = (json.loads(facts.get(name, "{}")) for name in FACTS)
    packed: dict[str, dict[str, Tensor]] = {}  # by stream and leader
    for name, tensor in tensors.items():
        place, _, part = name.rpartition(".")
        packed.setdefault(place, {})[part] = tensor
    streams: dict[str, LayerStatistics] = {stream: {} for stream in STREAMS}
    profiles: dict[str, Profile] = {}
    for place, parts in packed.items():
        stream, _, layer = place.partition(".")
        if stream == PROFILE:
            profiles[layer] = Profile.unpack(parts)
        else:
            streams[stream][layer] = rose.InputStatistics.unpack(parts)
    for of in streams.values():
        of |= {layer: of[leader] for layer, leader in leaders.items() if leader in of}
    return Kept(
        [rose.LayerRecord(**record) for record in records],
        condition,
        forecast,
        profiles,
        draws,
        int(facts["head_width"]) if facts.get("head_width") else None,
        heads={layer: HeadLayout(width, tuple(group)) for layer, (width, group) in heads.items()},
        text=facts.get("text", ""),
        made_with=facts.get("made_with", ""),
        **streams,
    )


def write(path: Path, content: Kept) -> None:
    """Writes whatever there is; layers that share their statistics share tensors, under the name of the first layer."""
    tensors: dict[str, Tensor] = {}
    leaders: dict[str, str] = {}
    for stream in STREAMS:
        leader_of: dict[int, str] = {}
        for layer, statistics in getattr(content, stream).items():
            leader = leader_of.setdefault(id(statistics), layer)
            if leader != layer:
                leaders[layer] = leader
            else:
                tensors |= {f"{stream}.{layer}.{part}": tensor for part, tensor in statistics.pack().items()}
    for layer, profile in content.profiles.items():
        tensors |= {f"{PROFILE}.{layer}.{part}": tensor for part, tensor in profile.pack().items()}
    heads = {layer: (layout.width, layout.group) for layer, layout in content.heads.items()}
    records = [asdict(record) for record in content.records]
    parts = records, content.condition, content.forecast, heads, leaders, content.draws
    texts = {name: json.dumps(part) for name, part in zip(FACTS, parts, strict=True)}
    texts["head_width"] = str(content.head_width or "")
    write_tensors(path, tensors, text=content.text, made_with=content.made_with, **texts)


def keep_study(folder: Path, setup: Setup, study: Kept) -> None:
    with _written_in(folder):
        write(_study_path(folder, setup), study)


@cache
def _finished(path: Path) -> Kept | None:
    if (study := read(path)) is None:
        logger.warning("The study %s is missing or damaged, so it cannot be shown", path)
    return study


def read_example(setup: Setup) -> Kept | None:
    """The study of this set-up that comes with the app; None for any other, or where its file is damaged."""
    return _finished(FINISHED[setup]) if setup in FINISHED else None


@cache
def text_digest() -> str:
    return _digest(packaged_text())


def read_blocks(folder: Path, layers: Sequence[PrunableLayer]) -> list[BlockStatistics] | None:
    """Statistics of these layers by decoder block; None where they are missing or damaged."""
    blocks = []
    for index, chosen in by_block(layers).items():
        if (stored := read(folder / BLOCK.format(index))) is None:
            return None
        blocks.append(BlockStatistics(index, chosen, stored.calibration, stored.held_out))
    return blocks


def keep_blocks(folder: Path, blocks: Sequence[BlockStatistics]) -> None:
    """Keeps statistics, and makes room for them."""
    streams = [stream for block in blocks for stream in (block.calibration, block.held_out)]
    every = {id(statistics): statistics for stream in streams for statistics in stream.values()}
    size = sum(tensor.nbytes for statistics in every.values() for tensor in statistics.pack().values())
    if size > LIMIT:
        logger.info("Statistics of %.1f GB are too large to be kept for the next start", size / 1e9)
        return
    with _written_in(folder):
        _make_room(folder, size)
        for block in blocks:
            content = Kept(calibration=block.calibration, held_out=block.held_out)
            write(folder / BLOCK.format(block.block_index), content)


@contextmanager
def _written_in(folder: Path) -> Iterator[None]:
    """Makes the folder; if it or a file in it cannot be written, logs that and goes on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as problem:
        logger.warning("Results are not kept for the next start: %s", problem)


def _make_room(folder: Path, size: int) -> None:
    """Removes whole calibrations, the least recently used first, until this many more bytes fit within the limit."""
    folders = [other for other in folder.parent.iterdir() if other != folder and _is_calibration(other)]
    folders.sort(key=lambda other: other.stat().st_mtime)  # see `recall`
    sizes = {other: sum(file.stat().st_size for file in other.iterdir()) for other in folders}
    for other in folders:
        if sum(sizes.values()) + size <= LIMIT:
            return
        shutil.rmtree(other, ignore_errors=True)
        del sizes[other]


def _is_calibration(folder: Path) -> bool:
    """Whether this is a folder of ours, and holds nothing else: people name folders that hold their own things too."""
    if folder.is_symlink() or not folder.is_dir() or not re.fullmatch(f"[0-9a-f]{{{DIGITS}}}", folder.name):
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
    digest = sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for path in _sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sources() -> list[Path]:
    rooms = [Path(rose.__file__).parent, Path(__file__).parent]
    return sorted(path for room in rooms for path in room.rglob("*.py"))


def _digest(*parts: str) -> str:
    return sha256("\n".join(parts).encode()).hexdigest()[:DIGITS]


def _study_path(folder: Path, setup: Setup) -> Path:
    return folder / f"study-{_digest(repr(setup))}.safetensors"
