"""Kept copies as files to take away: a packed folder, or a GGUF file for llama.cpp. No Streamlit here."""

from functools import partial
from pathlib import Path
from typing import BinaryIO

from app.jobs import Job, Run
from app.runs.kept_copies import RESERVE, size_of, zipped
from rose.model.ship.export import export_gguf
from rose.model.ship.packing import pack_folder
from rose.output import check_room

PACKED = "packed"


def gguf_types(bits: int | None) -> tuple[str, ...]:
    """The types of GGUF files that hold such a copy, the smallest last; q4_0 only where it rounds nothing, as it
    would otherwise cost more than pruning with 4 bits does."""
    return ("f16", "q8_0") if bits in (None, 8) else ("f16", "q4_0")


def what_loads(bits: int | None) -> str:
    """Programs that load a copy with this number of bits; None where they were not rounded."""
    return f"transformers; rose packed; llama.cpp as {' or '.join(gguf_types(bits))}"


def forms(bits: int | None) -> dict[str, str]:
    """What a copy can be written as, besides its folder: name -> for people; `bits` of its kept weights."""
    return {PACKED: "Packed folder"} | {kind: f"GGUF, {kind}" for kind in gguf_types(bits)}


class FileRun(Run):
    """A checkpoint written in another form, and read back.

    Attributes:
        folder, form: what is written, and as which of `forms`.
        place: a folder or a file, once it is done.
        found: sentences on it, then.
    """

    def __init__(self, folder: Path, form: str) -> None:
        super().__init__()
        self.folder, self.form = folder, form
        self.place: Path | None = None
        self.found: list[str] = []

    def _run(self, job: Job) -> None:
        self._say("Reading the checkpoint")
        check_room(self._temporary(), size_of(self.folder), RESERVE)
        place = self._temporary() / f"{self.folder.name}-{self.form}"
        if self.form == PACKED:
            self.found = pack_folder(self.folder, place, partial(self._tell, "Packing")).remarks()
        else:
            place = place.with_name(f"{place.name}.gguf")
            exported = export_gguf(str(self.folder), place, self.form, partial(self._tell, "Writing"))
            self.found = exported.remarks(self.form)
        self.place, self.fraction = place, 1.0

    def _tell(self, doing: str, share: float, item: str) -> None:
        self.fraction = share
        self._say(f"{doing} {item}")

    @property
    def name(self) -> str:
        assert self.place is not None
        return f"{self.place.name}.zip" if self.form == PACKED else self.place.name

    @property
    def size(self) -> int:
        """Bytes."""
        assert self.place is not None
        return size_of(self.place) if self.form == PACKED else self.place.stat().st_size

    def open(self) -> BinaryIO:
        assert self.place is not None
        return zipped(self.place) if self.form == PACKED else self.place.open("rb")
