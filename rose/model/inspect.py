"""Contents and differences of files of tensors: safetensors (one file or shards) and GGUF, without a model.

Tensors of GGUF files have the names and the order of rows of the model that they are loaded into. Tensors are read in
runs of rows, so that no file and no large tensor is whole in memory. The numbers come from `rose.model.check.change`.
"""

import hashlib
import json
import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rose.errors import RoseError
from rose.files import reachable
from rose.interrupt import stop_point
from rose.model.check import change as changes
from rose.model.check.change import FactsOf, WeightChange, WeightFacts, change_by_rows, weight_facts
from rose.model.check.verdicts import says_parts, says_pattern
from rose.model.formats.gguf import Place, Reader, dequantized, places_in
from rose.model.load.models import load_skeleton
from rose.model.load.stored import StoredTensor, tensors_in, weight_files
from rose.model.packaged import PACKAGED
from rose.wording import count, listing, number, out_of, percent, sentence, size, whole

Tell = Callable[[float, str], object]  # the share done, and the name of the current tensor
RUN = 2**21  # numbers that are read at once
LARGE = 2**20  # numbers of a tensor that is mapped on its own, so that its pages leave memory with it
SPECTRAL = 4096  # of the shorter side of a matrix whose spectrum is computed
WHOLE = 2**25  # numbers of the largest tensor that is searched for parts that differ
LONGEST_TEXT = 10**5  # characters of a text that are shown
TEXTS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
PATTERNS = ("chat_template*", "LICENSE*", "NOTICE*", "README*")
ROUNDING = 2**-8  # change of the norm above which weights were not only rounded to 16 bits
PRUNED = 0.01  # a pattern of fewer zeros is chance
SAME, ROUNDED, DIFFERS, OTHER_SHAPE = "equal", "rounded", "differs", "other shape"
ADDED, GONE, RENAMED = "added", "gone", "renamed"
INTEGERS = ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL")


class TensorFiles(ExitStack):
    """The tensors of a checkpoint folder or of one file, by name; a context manager. Raises RoseError unless it is a
    folder with safetensors, a .safetensors or a .gguf file, undamaged."""

    def __init__(self, place: str | Path) -> None:
        super().__init__()
        packaged = PACKAGED[str(place)].path() if str(place) in PACKAGED else None
        self.place = packaged or reachable(place)
        self.tensors: dict[str, StoredTensor] = {}
        self.stored_as: dict[str, str] = {}  # names in the file, of GGUF
        self._pieces: dict[str, Callable[[], Iterator[Tensor]]] = {}  # runs of rows by tensor
        self._metadata: dict[str, str] = {}
        try:
            if self.place.suffix == ".gguf" and self.place.is_file():
                self._read_gguf()
            else:
                self._read_safetensors()
        except RoseError:  # which is a ValueError, too
            raise
        except (OSError, SafetensorError, ValueError, LookupError, OverflowError) as problem:
            raise RoseError(f"{place} cannot be read ({problem}); get the file again.") from problem

    def _read_gguf(self) -> None:
        reader, places = Reader(str(self.place)), {}
        with suppress(RoseError, NotImplementedError):  # without a known model, names are the file's
            model = load_skeleton(str(self.place))
            places = places_in(model, reader.tensors, str(reader.fields["general.architecture"].contents()))
        for tensor in reader.tensors:
            shape, order = tuple(int(size) for size in reversed(tensor.shape)), np.arange(len(tensor.data))
            place = places.get(tensor.name) or Place(tensor.name, shape, order)
            kind, stored = tensor.tensor_type.name, int(tensor.n_bytes)
            self.tensors[place.name] = StoredTensor(self.place, kind, place.shape, stored)
            self._pieces[place.name] = partial(_gguf_runs, tensor, place)
            self.stored_as[place.name] = tensor.name
        for name, field in reader.fields.items():
            value = field.contents() if len(field.data) == 1 else f"{whole(len(field.data))} items"
            self._metadata[name] = str(value)

    def _read_safetensors(self) -> None:
        if not self.place.is_dir() and self.place.suffix != ".safetensors":
            raise RoseError(f"{self.place} is not a folder, .safetensors file or .gguf file; give one of these.")
        for path in weight_files(self.place) if self.place.is_dir() else [self.place]:
            file = self.enter_context(safe_open(path, "pt"))
            self._metadata |= file.metadata() or {}
            for name, entry in tensors_in(file, path):
                if name in self.tensors:
                    raise RoseError(
                        f"{name} is in {self.tensors[name].path.name} and in {path.name}; take one of them out."
                    )
                self._pieces[name] = partial(_runs, file, name, entry)
                self.tensors[name] = entry

    @property
    def size(self) -> int:
        """Bytes of the files, with what they hold besides tensors."""
        return sum(path.stat().st_size for path in {entry.path for entry in self.tensors.values()})

    def has_weights(self, name: str) -> bool:
        """Whether a tensor holds weights: not integers, which are indices or codes."""
        return self.tensors[name].kind not in INTEGERS and self.tensors[name].count > 0

    def runs(self, name: str) -> Iterator[Tensor]:
        """A tensor as a matrix, see `StoredTensor.matrix`, in runs of rows, (rows, columns) float32. Raises RoseError
        where the file is damaged, or of a kind that is not read."""
        entry = self.tensors[name]
        try:
            for run in self._pieces[name]():
                stop_point()
                yield run.float().reshape(-1, entry.matrix[1])
        except (OSError, SafetensorError, NotImplementedError) as problem:
            raise RoseError(f"{name} cannot be read ({problem}); get {entry.path.name} again.") from problem

    def matrix(self, name: str) -> Tensor:
        """All rows of `runs`."""
        return torch.cat(list(self.runs(name)))

    def texts(self) -> dict[str, str]:
        """Texts beside and within the weights by title: configuration, tokenizer, chat template, licence and metadata.
        None of them is run, and long ones are cut."""
        texts = {}
        if self.place.is_dir():
            paths = [self.place / name for name in TEXTS]
            paths += [path for pattern in PATTERNS for path in sorted(self.place.glob(pattern))]
            for path in paths:
                if path.is_file():
                    with path.open("rb") as file:
                        texts[path.name] = file.read(LONGEST_TEXT).decode(errors="replace")
        metadata = dict(self._metadata)
        for name, title in (("tokenizer.chat_template", "chat template"), ("general.license", "licence")):
            if name in metadata:
                texts[title] = metadata.pop(name)[:LONGEST_TEXT]
        if metadata:
            texts["metadata"] = "\n".join(f"{name}: {value:.1000}" for name, value in metadata.items())[:LONGEST_TEXT]
        return texts


def _runs(file: Any, name: str, entry: StoredTensor) -> Iterator[Tensor]:
    if len(entry.shape) < 2:
        yield file.get_tensor(name)
        return
    step = max(1, RUN * entry.shape[0] // max(1, entry.count))
    opened = safe_open(entry.path, "pt") if entry.count > LARGE else nullcontext(file)
    with opened as mapped:
        view = mapped.get_slice(name)
        for start in range(0, entry.shape[0], step):
            yield view[start : start + step]


def _gguf_runs(tensor: Any, place: Place) -> Iterator[Tensor]:
    if place.order is None:
        assert place.convert is not None
        yield torch.from_numpy(np.array(place.convert()))
        return
    step = max(1, len(tensor.data) * RUN // tensor.n_elements) if len(place.shape) > 1 else len(tensor.data)
    for start in range(0, len(tensor.data), step):
        yield torch.from_numpy(np.array(dequantized(tensor, place.order[start : start + step])))
    mapping = tensor.data
    while isinstance(mapping, np.ndarray):
        mapping = mapping.base
    if hasattr(mapping, "madvise"):  # pages of the file that were read leave memory
        mapping.madvise(mmap.MADV_DONTNEED)


def inspect_file(files: TensorFiles, tell: Tell = lambda _share, _name: None) -> pd.DataFrame:
    """Describes every tensor in a row; `tell` may raise to stop.

    Returns:
        name, stored_as (the name in the file), kind, shape, file, numbers, stored (bytes), bits (stored, a number),
        true_bits (of the apparent grid, or 16 where 32 hold no more), zeros, sparsity, pattern, not_finite, norm,
        largest, largest_at, zero_rows, zero_columns, odd_rows, odd_columns (0 of vectors), says (on faults), and
        norms (on odd rows and columns). Tensors of integers have the first eight.
    """
    rows, done, total = [], 0, sum(entry.count for entry in files.tensors.values()) or 1
    for name, entry in files.tensors.items():
        tell(done / total, name)
        facts = weight_facts(files.runs(name), entry.matrix) if files.has_weights(name) else None
        rows.append(_row(name, files.stored_as.get(name, name), entry, facts))
        done += entry.count
    return pd.DataFrame(rows)


def _row(name: str, stored_as: str, entry: StoredTensor, facts: WeightFacts | None) -> dict[str, Any]:
    bits = 8 * entry.stored / max(1, entry.count)
    row: dict[str, Any] = {
        "name": name, "stored_as": stored_as, "kind": entry.kind, "shape": " × ".join(map(whole, entry.shape)),
        "file": entry.path.name, "numbers": entry.count, "stored": entry.stored, "bits": bits,
    }  # fmt: skip
    if facts is None:
        return row | {"says": "", "norms": ""}
    true_bits = min(bits, 16.0) if facts.format_of_16_bits else bits
    if facts.grid is not None and facts.shape[0] > 1:  # the levels of the grid, and a scale of 16 bits
        true_bits = min(bits, math.log2(facts.grid.levels) + 16 / (facts.grid.group or facts.shape[1]))
    row |= {"true_bits": true_bits, "zeros": facts.zeros, "sparsity": facts.sparsity, "pattern": str(facts.pattern)}
    row |= {"not_finite": facts.not_finite, "norm": facts.norm, "largest": facts.largest}
    counted = ("zero_rows", "zero_columns", "odd_rows", "odd_columns")
    row |= {name: len(getattr(facts, name)) if min(facts.shape) > 1 else 0 for name in counted}
    row |= {"largest_at": ", ".join(map(str, facts.largest_at))}
    return row | dict(zip(("says", "norms"), _remarks(facts), strict=True))


def says_file(table: pd.DataFrame, whole_size: int, name: Callable[[str], str] = str) -> list[str]:
    """Sentences on whether anything stands out in files of `whole_size` bytes, by `inspect_file`; `name` shows the name
    of a tensor."""
    stored, numbers = float(table["stored"].sum()), max(1, int(table["numbers"].sum()))
    unusual, odd = table[table["says"] != ""], int((table["norms"] != "").sum())
    total = f"{size(whole_size)}, {number(8 * stored / numbers)} bits a number"
    if unusual.empty:
        absent = "no NaN or infinity, no empty rows or columns, no broken pattern"
        texts = [f"Nothing stands out: {count(len(table), 'tensor')}, {total}, {absent}."]
    else:
        names, verb = listing([name(each) for each in unusual["name"]]), "stands" if len(unusual) == 1 else "stand"
        texts = [f"{sentence(out_of(len(unusual), len(table), 'tensor'))} {verb} out: {names}. In all {total}."]
    if odd:
        times = f"above {changes.STANDS_OUT:.0f} times the median or below a quarter of it"
        texts.append(f"Some norms of rows or columns are {times} in {count(odd, 'tensor')}; this alone is no fault.")
    return texts


def _remarks(facts: WeightFacts) -> tuple[str, str]:
    """Sentences on faults of a tensor, and on rows and columns with unusual norms; "" for none."""
    texts, unusual = [f"{count(facts.not_finite, 'number')} NaN or infinite."] if facts.not_finite else [], []
    if facts.zeros == facts.size:
        return " ".join([*texts, "All numbers are zero."]), ""
    if facts.pattern.broken:
        texts.append(f"{count(facts.pattern.broken, 'group')} with more than {facts.pattern.keep} nonzeros.")
    if min(facts.shape) > 1:
        for axis, norms in (("row", facts.row_norms), ("column", facts.column_norms)):
            empty, odd = getattr(facts, f"zero_{axis}s"), getattr(facts, f"odd_{axis}s")
            texts += [f"{_span(axis, empty)} {'is' if len(empty) == 1 else 'are'} zero."] if empty else []
            if odd:
                times = {place: float(norms[place] / norms[norms > 0].median()) for place in odd}
                most = max(odd, key=lambda place: abs(math.log(times[place])))
                many = f" have unusual norms; {axis} {whole(most)}" if len(odd) > 1 else ""
                unusual.append(f"{_span(axis, odd)}{many} has {number(times[most])} times the median norm.")
    return " ".join(texts), " ".join(unusual)


def _span(axis: str, places: Sequence[int]) -> str:
    """ "Row 3", "Columns 1, 2, 7 and 40 others"."""
    return f"{axis.capitalize()}{'s' if len(places) > 1 else ''} {listing([whole(place) for place in places])}"


def tree(table: pd.DataFrame) -> pd.DataFrame:
    """The tensors of `inspect_file`, one row for all names that differ only by the number of a decoder block or expert.

    Returns:
        name ("model.layers.*.mlp.up_proj.weight"), stored_as, tensors, shape, kind, stored, bits, true_bits, sparsity
        (lowest and highest), and pattern.
    """
    rows = []
    names = {key: table[key].str.replace(r"(?<=\.)\d+(?=\.)", "*", regex=True) for key in ("name", "stored_as")}
    groups = table.assign(**names)
    groups = groups.reindex(columns=list(dict.fromkeys([*groups, "true_bits", "sparsity", "pattern"])))
    for (name, shape, kind), group in groups.groupby(["name", "shape", "kind"], sort=False):
        shares = [percent(float(share)) for share in (group["sparsity"].min(), group["sparsity"].max())]
        patterns = map(says_pattern, group["pattern"][group["sparsity"] >= PRUNED])
        row = {"name": name, "stored_as": group["stored_as"].iloc[0], "tensors": len(group), "shape": shape}
        row |= {"kind": kind, "stored": int(group["stored"].sum())}
        row |= {"bits": float(group["bits"].mean()), "true_bits": float(group["true_bits"].mean())}
        row |= {"zeros": " to ".join(dict.fromkeys(shares)), "pattern": " ".join(dict.fromkeys(patterns))}
        rows.append(row)
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class TensorLook:
    """One tensor for pictures."""

    facts: WeightFacts  # its numbers, with norms of rows and columns
    map: np.ndarray  # largest magnitudes of blocks, (rows, columns) float32; `block`: rows and columns of a block
    block: tuple[int, int]
    # counts, edges: a histogram of the finite numbers, (bins,) and (bins + 1,)
    counts: np.ndarray
    edges: np.ndarray


def look_at(files: TensorFiles, name: str, cells: int = 512, bins: int = 101) -> TensorLook:
    """Map and histogram of one tensor, which is read twice; `cells`: the most a side."""
    rows, columns = files.tensors[name].matrix
    high, wide = -(-rows // cells), -(-columns // cells)
    gathered, largest = FactsOf((rows, columns)), torch.zeros(-(-rows // high), -(-columns // wide))
    at = 0
    for run in files.runs(name):
        values = torch.nn.functional.pad(gathered.add(run).abs(), (0, -columns % wide)).unflatten(1, (-1, wide)).amax(2)
        places = (torch.arange(at, at + len(run)) // high)[:, None].expand_as(values)
        largest.scatter_reduce_(0, places, values, "amax")
        at += len(run)
    facts = gathered.result()
    limit = facts.largest or 1.0
    counts, edges = np.zeros(bins, np.int64), np.linspace(-limit, limit, bins + 1)
    for run in files.runs(name):
        counts += np.histogram(run.numpy(), edges)[0]
    return TensorLook(facts, largest.numpy(), (high, wide), counts, edges)


def spectrum(files: TensorFiles, name: str) -> Tensor:
    """Singular values of a matrix, the largest first. Raises RoseError where both sides are above `SPECTRAL`."""
    if min(files.tensors[name].matrix) > SPECTRAL:
        raise RoseError(f"{name} is too large for a spectrum; choose a matrix with a side of at most {SPECTRAL}.")
    return torch.linalg.svdvals(torch.nan_to_num(files.matrix(name), 0, 0, 0))


def compare_files(before: TensorFiles, after: TensorFiles, tell: Tell = lambda _share, _name: None) -> pd.DataFrame:
    """How every tensor of two files differs, a row each; `tell` may raise to stop.

    Returns:
        name, other_name (in `after`; it differs for a renamed tensor), stored_as (the name in the file), status,
        moved_to (another file), moved (share of the nonzeros that differ), change (‖V − W‖/‖W‖ over V's nonzeros),
        cosine, slope, zeros_before, zeros, rows and columns (how many have changed), and says.
    """
    names = {name: name for name in before.tensors if name in after.tensors} | _renamed(before, after)
    rows, done = [], 0
    total = sum(entry.count for entry in before.tensors.values()) or 1
    for name, entry in before.tensors.items():
        tell(done / total, name)
        done += entry.count
        rows.append(_compared(before, after, name, names.get(name)))
    added = [name for name in after.tensors if name not in names.values()]
    rows += [{"name": name, "other_name": name, "status": ADDED, "says": ""} for name in added]
    stored_as = before.stored_as | after.stored_as
    rows = [row | {"stored_as": stored_as.get(row["name"], row["name"])} for row in rows]
    columns = ["name", "other_name", "stored_as", "status", "moved_to", "moved", "change", "cosine", "slope"]
    return pd.DataFrame(rows, columns=[*columns, "zeros_before", "zeros", "rows", "columns", "says"])


def _renamed(before: TensorFiles, after: TensorFiles) -> dict[str, str]:
    """Equal tensors under other names, among tensors that only one file has."""
    added = [name for name in after.tensors if name not in before.tensors and after.has_weights(name)]
    removed = [name for name in before.tensors if name not in after.tensors and before.has_weights(name)]
    names = {_content(after, name): name for name in added} if removed else {}
    contents = {name: _content(before, name) for name in removed} if names else {}
    return {name: names.pop(content) for name, content in contents.items() if content in names}


def _content(files: TensorFiles, name: str) -> bytes:
    """A digest of a tensor's shape and numbers, whatever their format."""
    checksum = hashlib.sha256(repr(files.tensors[name].shape).encode())
    for run in files.runs(name):
        checksum.update(run.contiguous().numpy().data)
    return checksum.digest()


def _both(before: TensorFiles, after: TensorFiles, name: str, other: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Runs of two tensors of one shape, of the same lengths in any formats."""
    second = after.runs(other)
    pruned: Tensor | None = None
    for dense in before.runs(name):
        while len(dense) and (pruned := next(second, None) if pruned is None else pruned) is not None:
            rows = min(len(dense), len(pruned))
            yield dense[:rows], pruned[:rows]
            dense, pruned = dense[rows:], pruned[rows:] if len(pruned) > rows else None


def difference_of(before: TensorFiles, after: TensorFiles, name: str, other: str | None = None) -> WeightChange:
    """How one tensor of weights differs from another of its shape, by row and column too, see `WeightChange`. Only
    tensors of up to `WHOLE` numbers are searched for parts that stand out. NaN and infinity of the first count as 0."""
    entry, other = before.tensors[name], other or name
    pairs = ((torch.nan_to_num(dense, 0, 0, 0), pruned) for dense, pruned in _both(before, after, name, other))
    if entry.count <= WHOLE:
        dense, pruned = torch.nan_to_num(before.matrix(name), 0, 0, 0), after.matrix(other)
        return change_by_rows([(dense, pruned)], entry.matrix, lambda: (dense, pruned))
    return change_by_rows(pairs, entry.matrix)


def _compared(before: TensorFiles, after: TensorFiles, name: str, other: str | None) -> dict[str, Any]:
    entry = before.tensors[name]
    if other is None:
        return {"name": name, "other_name": "", "status": GONE, "says": ""}
    there = after.tensors[other]
    row = {"name": name, "other_name": other, "says": ""}
    if before.place.is_dir() and after.place.is_dir() and there.path.name != entry.path.name:
        row["moved_to"] = there.path.name
    if entry.shape != there.shape:
        return row | {"status": OTHER_SHAPE, "says": f"{entry.shape} here, {there.shape} there."}
    if name != other:
        return row | {"status": RENAMED}
    if not (before.has_weights(name) and after.has_weights(name)):
        is_same = entry.kind == there.kind and all(torch.equal(*runs) for runs in _both(before, after, name, name))
        return row | {"status": SAME if is_same else DIFFERS}
    change = difference_of(before, after, name)
    status, remark = DIFFERS if not change.is_untouched else ROUNDED if change.rounded else SAME, says_change(change)
    if status == DIFFERS and change.change < ROUNDING:
        formats = [changes.rounded_to(second, first) for first, second in _both(before, after, name, name)]
        if all(formats):
            status, remark = ROUNDED, f"Rounded to {formats[0]} in the first."
    shares = ("moved", "change", "cosine", "slope", "zeros_before", "zeros")
    return row | {"status": status} | {field: getattr(change, field) for field in shares} | {
        "rows": int((change.row_change > 0).sum()), "columns": int((change.column_change > 0).sum()),
        "says": remark,
    }  # fmt: skip


def says_differences(table: pd.DataFrame, name: Callable[[str], str] = str) -> str:
    """Which tensors of two files differ, by the table of `compare_files`; `name` shows the name of a tensor."""
    differing = table.loc[table["status"].isin((DIFFERS, OTHER_SHAPE)), "name"]
    verb = "differs" if len(differing) == 1 else "differ"
    names = f": {listing([name(each) for each in differing])}" if len(differing) else ""
    rest = table["status"].replace(ROUNDED, "equal but for rounding").drop(differing.index).value_counts()
    rest_text = f" The others: {', '.join(f'{size} {status}' for status, size in rest.items())}." if len(rest) else ""
    moved = int(table["moved_to"].notna().sum())
    elsewhere = f" {sentence(count(moved, 'tensor'))} in a file of another name." if moved else ""
    return f"{sentence(out_of(len(differing), len(table), 'tensor'))} {verb}{names}.{rest_text}{elsewhere}"


def says_change(change: WeightChange) -> str:
    """How a tensor differs from another one, as sentences; "" where it does not."""
    if change.is_untouched:
        return f"Rounded to {change.rounded}." if change.rounded else ""
    texts = [f"{count(change.not_finite, 'number')} NaN or infinite."] if change.not_finite else []
    if change.zeros != change.zeros_before:
        texts.append(f"{percent(change.zeros_before / change.size)} zeros become {percent(change.sparsity)}.")
    if change.fate:
        texts.append(f"It {change.fate}.")
    elif change.moved:
        texts.append(f"{percent(change.moved)} of the nonzeros moved, by {percent(change.change)} of their norm.")
    return " ".join([*texts, says_parts(change.misfits)]).strip()


def to_json(table: pd.DataFrame, texts: Mapping[str, str]) -> str:
    """Rows and texts as JSON."""
    rows = json.loads(table.to_json(orient="records", double_precision=10))
    return json.dumps({"tensors": rows, "texts": dict(texts)}, indent=1)
