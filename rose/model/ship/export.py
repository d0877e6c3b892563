"""Models as GGUF files, which llama.cpp and many other programs run; zeros stay zeros."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
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
from rose.model.formats.gguf import Reader, dequantized
from rose.model.load.models import load_model, load_tokenizer, stored_dtype
from rose.model.network.layers import prunable_layers
from rose.model.packaged import PACKAGED
from rose.model.ship.blocks import BLOCK, as_type, in_blocks, in_floats, parse_type
from rose.model.ship.families import Family, family_of
from rose.model.ship.packing import Follow
from rose.model.ship.vocabulary import (
    compare_vocabularies,
    copy_vocabulary,
    tokens_in,
    write_template,
    write_vocabulary,
)
from rose.output import check_file, check_room, new_file
from rose.report import report_beside
from rose.wording import listing, whole

FILE_TYPES = {
    Type.F16: LlamaFileType.MOSTLY_F16, Type.Q8_0: LlamaFileType.MOSTLY_Q8_0, Type.Q4_0: LlamaFileType.MOSTLY_Q4_0,
}  # fmt: skip


@dataclass
class Exported:
    """What an export has written.

    Attributes:
        size: bytes of the file.
        zeros: weights that are zero in the model, and in the file: all of them are compared.
        exact: layers whose codes and scales are in the file as they are, or whose weights are exact in f16.
        rounded: layers whose weights were rounded to the type.
        unfit: layers whose rows are no whole blocks of 32, stored as floats.
        besides: other matrices that were rounded, such as embeddings; only f16 rounds them.
        error: ‖W − Ŵ‖²/‖W‖² over the rounded layers; 0 without any.
        vocabulary: where the tokenizer is from.
        differs: where the tokenizer or the chat template is not that of the GGUF file that the model came from, a
            sentence that says so; else "".
        left_out: tokens that were added to the tokenizer without a row in the model's embedding.
    """

    size: int = 0
    zeros: int = 0
    exact: list[str] = field(default_factory=list)
    rounded: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    besides: list[str] = field(default_factory=list)
    error: float = 0.0
    vocabulary: str = "tokenizer.json"
    differs: str = ""
    left_out: list[str] = field(default_factory=list)

    def remarks(self, kind: str) -> list[str]:
        """What became of the weights in a file of this type, sentence by sentence."""
        said = [f"Read back: all {whole(self.zeros)} zeros are there."]
        if self.exact:
            said.append(f"{len(self.exact)} layers are exact in {kind}.")
        if self.rounded:
            error = f"relative squared error {self.error:.2e}"
            said.append(f"{len(self.rounded)} layers were rounded to {kind}, without compensation: {error}.")
        if self.besides:
            said.append(f"Rounded to {kind} too: {', '.join(self.besides)}.")
        if self.differs:
            said.append(self.differs)
        if self.left_out:
            said.append(f"Left out, as the model has no row for them: tokens {listing(self.left_out)}.")
        if self.unfit:
            said.append(f"{len(self.unfit)} layers have rows that are no whole blocks of 32; they stay as they are.")
        return said


def export_gguf(name: str, output: Path, kind: str, follow: Follow | None = None) -> Exported:
    """Writes a model as a GGUF file, whole or not at all, and reads it back: every zero must be there.

    Args:
        name: as for `load_model`; the model must fit into memory.
        kind: of the weights of linear layers: "f16", "q8_0" or "q4_0". With q8_0 and q4_0 all else stays exact.

    Raises:
        RoseError: another type, a family or tokenizer that is not exported, a file that is there already, is named
            otherwise than .gguf, or cannot be written.
    """
    wanted = parse_type(kind)
    if output.suffix != ".gguf":
        raise RoseError(f"Programs know a GGUF file by its name: give one that ends in .gguf, not {output}.")
    check_file(output)
    model, tokenizer = load_model(name, dtype=stored_dtype(name))
    family = family_of(model.config)
    check_room(output, 2 * _size(model, wanted))  # tensors are gathered first, then copied
    done = Exported()
    architecture = gguf.MODEL_ARCH_NAMES[family.architecture]
    with new_file(output) as temporary:
        with (
            contextlib.closing(GGUFWriter(str(temporary), architecture, use_temp_file=True)) as writer,
            tempfile.SpooledTemporaryFile(dir=str(temporary.parent)) as writer.temp_file,  # /tmp may be too small
        ):
            writer.add_name(Path(name).name)
            writer.add_file_type(FILE_TYPES[wanted])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            family.describe(writer, model.config)
            _add_vocabulary(writer, name, model, tokenizer, done)
            _add_tensors(writer, model, family, wanted, done, follow)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        _compare(temporary, model, family, done)
    done.size = output.stat().st_size
    return done


def _size(model: Any, wanted: Type) -> int:
    """Bytes of the weights in a file of this type, at most: with smaller types only layers are in it."""
    block, stored = gguf.GGML_QUANT_SIZES[wanted]
    layers = {f"{layer.name}.weight" for layer in prunable_layers(model)}
    return sum(
        one.numel() * stored // block if wanted == Type.F16 or name in layers else one.nbytes
        for name, one in model.named_parameters()
    )


def _add_vocabulary(writer: GGUFWriter, name: str, model: Any, tokenizer: Any, done: Exported) -> None:
    """That of the GGUF file that the model came from, where it is the same and has a token for each row; where the
    tokenizer or the chat template in the model's folder differs, the folder's."""
    rows, path = model.get_input_embeddings().weight.shape[0], _origin(name)
    source = Reader(str(path)) if path is not None else None
    if path is not None and source is not None and tokens_in(source) == rows:
        is_same = is_same_template = True  # of the file itself
        if reachable(name).is_dir():
            is_same, is_same_template = compare_vocabularies(tokenizer, load_tokenizer(str(path)), rows)
        if not is_same_template or not is_same:
            what = "chat template" if is_same else "tokenizer"
            done.differs = f"The folder's {what} is in the file; that of {path.name} differs."
        if is_same:
            copy_vocabulary(writer, source, with_template=is_same_template)
            if not is_same_template:
                write_template(writer, tokenizer)
            done.vocabulary = path.name
            return
    write_vocabulary(writer, tokenizer, rows)
    write_template(writer, tokenizer)
    done.left_out = sorted(token for token, number in tokenizer.get_vocab().items() if number >= rows)


def _origin(name: str) -> Path | None:
    """The GGUF file that a model came from, by the report beside it, where that is on this machine."""
    report = report_beside(reachable(name))
    of = str(report.summary.get("model", name)) if report else name
    found = PACKAGED[of].path() if of in PACKAGED else reachable(of)
    return found if found and found.suffix == ".gguf" and found.is_file() else None


def _named(model: Any, family: Family) -> Iterator[tuple[str, str, Tensor]]:
    """Name in the file, name in the model, and weight as the file lays it out, of every parameter; tied ones once."""
    config = model.config
    names = gguf.get_tensor_name_map(family.architecture, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise RoseError(f"GGUF files have no name for {name} in this family; pack the folder instead.")
        yield found, name, family.arrange(name, parameter.detach(), config)


def _add_tensors(
    writer: GGUFWriter, model: Any, family: Family, wanted: Type, done: Exported, follow: Follow | None
) -> None:
    layers = {f"{layer.name}.weight" for layer in prunable_layers(model)}
    parameters = len(list(model.parameters()))
    missed = energy = 0.0  # of the rounded layers
    for number, (key, name, weight) in enumerate(_named(model, family)):
        stop_point()
        if follow:
            follow(number / parameters, name)
        if weight.ndim == 1 or key.startswith("position_embd"):
            writer.add_tensor(key, as_type(weight, Type.F32))
            continue
        values, kind, is_exact = _stored(weight, wanted, name in layers)
        writer.add_tensor(key, values, raw_dtype=kind)
        if name in layers:
            (done.unfit if kind != wanted else done.exact if is_exact else done.rounded).append(name)
        elif not is_exact:
            done.besides.append(name)
        if name in layers and not is_exact:
            difference = weight.float() - torch.from_numpy(gguf.dequantize(values, kind))
            missed += float(difference.double().square().sum())
            energy += float(weight.double().square().sum())
    done.error = missed / energy if energy else 0.0


def _stored(weight: Tensor, wanted: Type, is_layer: bool) -> tuple[np.ndarray, Type, bool]:
    """A matrix as a file of the wanted type has it, the type of that, and whether it is exact."""
    if wanted == Type.F16:
        values = as_type(weight, Type.F16)
        return values, Type.F16, bool((torch.from_numpy(values).float() == weight.float()).all())
    if is_layer and weight.shape[1] % BLOCK == 0:
        values, is_exact = in_blocks(weight, wanted)
        return values, wanted, is_exact
    return *in_floats(weight), True


def _compare(path: Path, model: Any, family: Family, done: Exported) -> None:
    """Raises RoseError where a zero of the model is none in the file, or an exact layer differs."""
    written = {tensor.name: tensor for tensor in Reader(str(path)).tensors}
    exact = set(done.exact)
    for key, name, weight in _named(model, family):
        stop_point()
        read = torch.from_numpy(np.array(dequantized(written[key])))
        removed = weight == 0
        done.zeros += int(removed.sum()) if weight.ndim > 1 else 0
        if bool((read[removed] != 0).any()) or (name in exact and not torch.equal(read, weight.float())):
            raise RoseError(f"{name} in the file differs from the model, so the file was not kept; please report this.")
