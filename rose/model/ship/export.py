"""Models as GGUF files, which llama.cpp and many other programs run; zeros stay zeros."""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, LlamaFileType
from torch import Tensor

from rose.errors import RoseError
from rose.files import reachable
from rose.interrupt import stop_point
from rose.layer.rounding import coarsest_grid
from rose.model.formats.gguf import Reader, dequantized
from rose.model.load.models import load_model, load_tokenizer, stored_dtype
from rose.model.network.layers import prunable_layers
from rose.model.packaged import PACKAGED
from rose.model.ship.families import Family, copy_vocabulary, family_of, fields_of, write_template, write_vocabulary
from rose.output import check_file, check_room, new_file
from rose.report import report_beside
from rose.wording import listing, size, whole

TYPES = {"f16": Type.F16, "q8_0": Type.Q8_0, "q4_0": Type.Q4_0}
FILE_TYPES = {
    Type.F16: LlamaFileType.MOSTLY_F16, Type.Q8_0: LlamaFileType.MOSTLY_Q8_0, Type.Q4_0: LlamaFileType.MOSTLY_Q4_0,
}  # fmt: skip
BITS = {Type.Q8_0: 8, Type.Q4_0: 4}  # the widest code of each type
FLOATS = {Type.F16: torch.float16, Type.BF16: torch.bfloat16}  # narrower than float32; the first that is exact counts
BLOCK = 32  # weights of a row that share a scale
EMBEDDINGS = ("auto", "f32")  # as llama.cpp stores them in files of the type, or exact
HEAD, POSITIONS = "output.weight", "position_embd.weight"  # names in GGUF files
LAYERS, EMBEDDED, OTHERS = GROUPS = "layers", "embeddings", "norms and biases"
Follow = Callable[[float, str], None]  # told the share that is done, and of which tensor


@dataclass(frozen=True)
class Entry:
    """A parameter of the model: its name and format in the file, and what lays it out as the file does."""

    name: str
    key: str
    type: Type
    group: str
    bytes: int
    arrange: Callable[[], Tensor]


@dataclass
class Exported:
    """What an export has written."""

    size: int = 0
    zeros: int = 0  # weights that are zero in the model and in the file, where all of them are compared
    # exact, rounded: layers that the file holds exactly in its type, and layers that it holds rounded
    exact: list[str] = field(default_factory=list)
    rounded: list[str] = field(default_factory=list)
    # layers whose rows are not whole blocks of 32; they are stored as floats, exactly
    unfit: list[str] = field(default_factory=list)
    embeddings: list[str] = field(default_factory=list)  # embeddings that were rounded, with their types
    # error, embedding_error: ‖W − Ŵ‖²/‖W‖² over the rounded layers, and over the rounded embeddings
    error: float = 0.0
    embedding_error: float = 0.0
    vocabulary: str = "tokenizer.json"
    # a sentence where the tokenizer or chat template differs from the GGUF file that the model came from
    differs: str = ""
    # tokens that were added to the tokenizer without a row in the model's embedding
    left_out: list[str] = field(default_factory=list)

    def remarks(self, kind: str) -> list[str]:
        """Sentences on the weights in a file of this type."""
        remarks = [f"Read back: all {whole(self.zeros)} zeros are there."]
        if self.exact:
            remarks.append(f"{len(self.exact)} layers are exact in {kind}.")
        if self.rounded:
            error = f"relative squared error {self.error:.2e}"
            remarks.append(f"{len(self.rounded)} layers were rounded to {kind}, without compensation: {error}.")
        if self.embeddings:
            error = f"relative squared error {self.embedding_error:.2e}"
            remarks.append(f"Rounded too: {', '.join(self.embeddings)}; {error}. --embeddings f32 keeps them exact.")
        if self.differs:
            remarks.append(self.differs)
        if self.left_out:
            remarks.append(f"Left out, as the model has no row for them: tokens {listing(self.left_out)}.")
        if self.unfit:
            remarks.append(f"{len(self.unfit)} layers stay as they are: their rows are not whole blocks of 32.")
        return remarks


def export_gguf(
    name: str,
    output: Path,
    kind: str,
    follow: Follow | None = None,
    *,
    embeddings: str = "auto",
    announce: Callable[[str], object] | None = None,
) -> Exported:
    """Writes a model as a GGUF file, whole or not at all, and reads it back: every zero must be there.

    Args:
        name: as for `load_model`; the model must fit into memory.
        kind: format of the linear layers: "f16", "q8_0" or "q4_0".
        embeddings: "auto", the format that llama.cpp gives them in such a file (see `embedding_type`), or "f32".
        announce: called with a sentence on the file's size before it is written.

    Raises RoseError: unknown formats, a family or tokenizer that is not exported, or a file that is already there, has
    another suffix than .gguf, or cannot be written.
    """
    if kind not in TYPES:
        raise RoseError(
            f"The type must be {', '.join(TYPES)}, not {kind}: others, such as q4_1 and the k-quants, store an offset, "
            "and removed weights would not stay zero."
        )
    if embeddings not in EMBEDDINGS:
        raise RoseError(f"Embeddings must be {' or '.join(EMBEDDINGS)}, not {embeddings}.")
    if output.suffix != ".gguf":
        raise RoseError(f"Programs recognize a GGUF file by its name, which must end in .gguf, not {output}.")
    check_file(output)
    model, tokenizer = load_model(name, dtype=stored_dtype(name))
    family = family_of(model.config)
    entries = list(_entries(model, family, TYPES[kind], embeddings))
    check_room(output, 2 * sum(entry.bytes for entry in entries))  # tensors are gathered first, then copied
    if announce:
        sizes = Counter[str]()
        for entry in entries:
            sizes[f"{entry.group} in {entry.type.name.lower()}"] += entry.bytes
        parts = [f"{part} {size(count)}" for part, count in sizes.most_common()]
        announce(f"The weights will take {size(sizes.total())}: {', '.join(parts)}.")
    exported = Exported()
    architecture = gguf.MODEL_ARCH_NAMES[family.architecture]
    with new_file(output) as temporary:
        with (
            contextlib.closing(GGUFWriter(str(temporary), architecture, use_temp_file=True)) as writer,
            tempfile.SpooledTemporaryFile(dir=str(temporary.parent)) as writer.temp_file,  # /tmp may be too small
        ):
            writer.add_name(Path(name).name)
            _describe(writer, name, model, tokenizer, kind, exported)
            for number, entry in enumerate(entries):
                stop_point()
                if follow:
                    follow(number / len(entries), entry.name)
                writer.add_tensor(entry.key, encode(entry.arrange(), entry.type), raw_dtype=entry.type)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        _compare(temporary, entries, TYPES[kind], exported)
    exported.size = output.stat().st_size
    return exported


def gguf_size(name: str, model: Any, tokenizer: Any, kind: str, title: str) -> int:
    """Bytes of the file that `export_gguf` would write of a model in memory, without reading its weights. `name`: where
    the model comes from, as for `load_model`; `title`: of the folder that would be exported. Raises RoseError for a
    family or tokenizer that is not exported."""
    family = family_of(model.config)
    entries = list(_entries(model, family, TYPES[kind], "auto"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.gguf"
        with contextlib.closing(GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[family.architecture])) as writer:
            writer.add_name(title)
            _describe(writer, name, model, tokenizer, kind, Exported())
            for entry in entries:
                shape = [1] * entry.arrange().ndim  # whose numbers take the same bytes
                writer.add_tensor_info(entry.key, shape, np.dtype(np.float32), entry.bytes, Type.F32)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            writer.flush()
            sizes = [path.stat().st_size, *(entry.bytes for entry in entries)]
    return sum(GGUFWriter.ggml_pad(size, writer.data_alignment) for size in sizes)


def _describe(writer: GGUFWriter, name: str, model: Any, tokenizer: Any, kind: str, exported: Exported) -> None:
    """Writes everything but the model's name and its tensors."""
    writer.add_file_type(FILE_TYPES[TYPES[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    family_of(model.config).describe(writer, model.config)
    _add_vocabulary(writer, name, model, tokenizer, exported)


def _entries(model: Any, family: Family, kind: Type, embeddings: str) -> Iterator[Entry]:
    """Every parameter of a model, tied ones once, with its type in a file of this kind."""
    names = gguf.get_tensor_name_map(family.architecture, model.config.num_hidden_layers)
    layers = {f"{layer.name}.weight" for layer in prunable_layers(model)}
    keys = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        if (key := keys[name]) is None:
            raise RoseError(f"GGUF files have no name for {name} in this family; use transformers instead.")
        arrange = partial(family.arrange, name, parameter.detach(), model.config)
        weight, group = arrange(), LAYERS if name in layers else OTHERS if parameter.ndim == 1 else EMBEDDED
        if group == OTHERS or key == POSITIONS:
            stored = Type.F32
        elif group == LAYERS:
            fits = (
                float_type
                for float_type, dtype in FLOATS.items()
                if torch.equal(weight.to(dtype).float(), weight.float())
            )
            stored = kind if kind == Type.F16 or weight.shape[1] % BLOCK == 0 else next(fits, Type.F32)
        else:
            is_head = key == HEAD or HEAD not in keys.values()
            stored = Type.F32 if embeddings == "f32" else embedding_type(kind, is_head, weight.shape[1])
        block, block_bytes = gguf.GGML_QUANT_SIZES[stored]
        yield Entry(name, key, stored, group, weight.numel() // block * block_bytes, arrange)


def embedding_type(kind: Type, is_head: bool, columns: int) -> Type:
    """The format of an embedding in a file of this kind, by llama.cpp's rule (`llama_tensor_get_type_impl`).

    llama.cpp stores the output head of a q4_0 file, and an embedding that is also the head, as Q6_K, or as Q8_0 if rows
    are not whole blocks of 256. The gguf package cannot write Q6_K, so they get Q8_0. Rows of half blocks stay F16.
    """
    if kind == Type.F16 or columns % BLOCK:
        return Type.F16
    return Type.Q8_0 if is_head else kind


def encode(weight: Tensor, kind: Type) -> np.ndarray:
    """A tensor in the format of a GGUF file: numbers, or bytes (out, bytes a row). Weights on a grid whose groups are
    whole blocks are stored exactly; others are rounded. Raises RoseError for weights that are too large for f16."""
    if kind in BITS:
        coded = coarsest_grid(weight)
        if coded is None or coded.grid.bits > BITS[kind]:
            return gguf.quantize(np.ascontiguousarray(weight.float().numpy()), kind)
        rows, columns = weight.shape
        scales = coded.scales.repeat_interleave(columns // BLOCK // coded.scales.shape[1], dim=1)
        steps = scales.half().numpy()[..., None].view(np.uint8)  # (rows, blocks, 2)
        codes = coded.codes.view(rows, -1, BLOCK).numpy()
        if kind == Type.Q4_0:
            low, high = np.split((codes + 8).astype(np.uint8), 2, axis=2)
            codes = low | high << 4
        return np.concatenate([steps, codes.view(np.uint8)], axis=2).reshape(rows, -1)
    values = weight.float().contiguous()
    if kind == Type.F16:
        values = values.half()
        if not bool(values.isfinite().all()):
            raise RoseError("Some weights are too large for f16, which ends at 65504; choose q8_0.")
    return values.bfloat16().view(torch.uint8).numpy() if kind == Type.BF16 else values.numpy()


def _add_vocabulary(writer: GGUFWriter, name: str, model: Any, tokenizer: Any, exported: Exported) -> None:
    """Copies the vocabulary of the GGUF file that the model came from, by its report, where it is the same and has a
    token for each row. If the folder's tokenizer or chat template differs, the folder's is written."""
    rows, report = model.get_input_embeddings().weight.shape[0], report_beside(reachable(name))
    origin = str(report.summary.get("model", name)) if report else name
    path = PACKAGED[origin].path() if origin in PACKAGED else reachable(origin)
    source = Reader(str(path)) if path and path.suffix == ".gguf" and path.is_file() else None
    tokens = source.get_field("tokenizer.ggml.tokens") if source else None
    if path and source and tokens is not None and len(tokens.data) == rows:
        is_same = is_same_template = True  # of the file itself
        if reachable(name).is_dir():
            other = load_tokenizer(str(path))
            is_same = fields_of(tokenizer, rows) == fields_of(other, rows)
            is_same_template = tokenizer.chat_template == other.chat_template
        if not is_same_template or not is_same:
            part = "chat template" if is_same else "tokenizer"
            exported.differs = f"The folder's {part} is in the file; {path.name} has another."
        if is_same:
            copy_vocabulary(writer, source, with_template=is_same_template)
            if not is_same_template:
                write_template(writer, tokenizer)
            exported.vocabulary = path.name
            return
    write_vocabulary(writer, tokenizer, rows)
    write_template(writer, tokenizer)
    exported.left_out = sorted(token for token, number in tokenizer.get_vocab().items() if number >= rows)


def _compare(path: Path, entries: list[Entry], kind: Type, exported: Exported) -> None:
    """Reads a file back and notes what is exact and what was rounded; raises RoseError where a zero is lost."""
    written = {tensor.name: tensor for tensor in Reader(str(path)).tensors}
    missed, energy = dict.fromkeys(GROUPS, 0.0), dict.fromkeys(GROUPS, 0.0)  # by group
    for entry in entries:
        stop_point()
        read, weight = torch.from_numpy(np.array(dequantized(written[entry.key]))), entry.arrange().float()
        removed = weight == 0
        is_exact = torch.equal(read, weight)
        if bool((read[removed] != 0).any()) or not (is_exact or entry.type in BITS or entry.type == Type.F16):
            raise RoseError(
                f"{entry.name} in the file differs from the model, so the file was not kept; please report this."
            )
        if weight.ndim == 1:
            continue
        exported.zeros += int(removed.sum())
        if entry.group == LAYERS:
            names = exported.unfit if entry.type != kind else exported.exact if is_exact else exported.rounded
            names.append(entry.name)
        elif not is_exact:
            exported.embeddings.append(f"{entry.name} to {entry.type.name.lower()}")
        if not is_exact:
            missed[entry.group] += float((weight - read).double().square().sum())
            energy[entry.group] += float(weight.double().square().sum())
    exported.error, exported.embedding_error = (
        missed[group] / energy[group] if energy[group] else 0.0 for group in (LAYERS, EMBEDDED)
    )
