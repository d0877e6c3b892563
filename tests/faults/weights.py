"""Readers of model files, for `tests.faults.mutations`: GGUF, safetensors and configurations."""

import json
import struct
import tempfile
from collections import namedtuple
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import gguf
import torch
from safetensors.torch import load_file, save_file

import rose
from rose.model.load.streaming import BlockFiles
from rose.model.network.network import Network
from rose.tensor_files import digest
from tests.faults.mutations import KINDS, NUMBERS, TEXTS, Change, Reader, change_bytes, change_json, change_json_file
from tests.model.formats.test_gguf import dense, write
from tests.tiny import save_tiny_llama

DTYPES = ("F32", "F16", "BF16", "F64", "I32", "I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "U32", "F4", "x" * 5000)
# Fields of configurations by which something may be built; the tiny model's own come besides.
FIELDS = (
    *("num_labels", "id2label", "num_experts", "num_local_experts", "head_dim", "n_positions", "n_layer", "depth"),
    *("vision_config", "text_config", "audio_config", "layer_types", "pruned_heads", "quantization_config", "dtype"),
    *("architectures", "auto_map", "rope_parameters", "rope_scaling", "sliding_window", "tie_word_embeddings"),
)


def write_folder(folder: Path) -> Path:
    """A checkpoint of which half of the weights are zero; returns its weight file."""
    save_tiny_llama(folder, blocks=2, hidden=32)
    path = folder / "model.safetensors"
    pruned = {name: tensor * (tensor > 0) if tensor.ndim > 1 else tensor for name, tensor in load_file(path).items()}
    save_file(pruned, path, {"format": "pt"})
    return path


def read_whole(path: Path) -> str:
    model, _ = rose.load_model(path if path.suffix == ".gguf" else path.parent)
    return digest(model.state_dict())


def read_streamed(path: Path) -> str:
    model, _ = rose.load_model(path.parent, stream=True)
    residence = Network(model).residence
    assert isinstance(residence, BlockFiles)
    parts = {}
    for index in range(len(residence.blocks)):
        with residence.visit(index, torch.device("cpu")) as block:
            parts |= {f"{index}.{name}": tensor.clone() for name, tensor in block.state_dict().items()}
    with residence.embedding():
        embedding = model.get_input_embeddings().weight.clone()
    return digest(parts | {"embedding": embedding, "head": residence.read("lm_head.weight")})


Place = namedtuple("Place", "kind start size")  # of a number in the header of a GGUF file


@cache
def places(content: bytes) -> tuple[list[Place], int, int]:
    """All numbers of a sound header, and where the descriptions of tensors begin and end."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        reader = gguf.GGUFReader(file.name)
    fields = [Place("version", 4, 4), Place("count of tensors", 8, 8), Place("count of fields", 16, 8)]

    def add(start: int, parts: list[Any], kinds: list[str]) -> None:
        for part, kind in zip(parts, kinds, strict=True):
            if kind and part.nbytes:
                fields.append(Place(kind, start, part.nbytes))
            start += part.nbytes

    for field in list(reader.fields.values())[3:]:
        values = len(field.parts) - 3
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            kinds = ["type of items", "count of items", *["value"] * (values - 2)]
        elif field.types[0] == gguf.GGUFValueType.STRING:
            kinds = ["length of a text", ""]
        else:
            kinds = ["value"]
        add(field.offset, field.parts, ["length of a key", "", "type of a value", *kinds])
    for tensor in reader.tensors:
        kinds = ["length of a name", "", "count of dimensions", "", "type", "offset"]
        add(tensor.field.offset, tensor.field.parts, kinds)
        first = tensor.field.offset + sum(part.nbytes for part in tensor.field.parts[:3])
        fields += [Place("dimension", first + 8 * number, 8) for number in range(len(tensor.shape))]
    return fields, reader.tensors[0].field.offset, reader.data_offset


def change_gguf(content: bytes, chance: Random) -> Change:
    numbers, tensors, data = places(content)
    if chance.random() < 0.3:
        start, end = chance.choice([(0, tensors), (tensors, data), (tensors, data), (data, len(content))])
        kind, changed = change_bytes(content, chance, start, end)
        if start == data and kind not in ("cut", "appended"):
            return "weights", changed
        return f"{kind} of {'fields' if not start else 'tensors'}", changed
    kind = chance.choice(sorted({place.kind for place in numbers}))
    place = chance.choice([place for place in numbers if place.kind == kind])
    old = int.from_bytes(content[place.start : place.start + place.size], "little")
    other = chance.choice([place for place in numbers if place.kind == kind])
    near = old + chance.choice([-64, -32, -31, -16, -8, -4, -1, 1, 4, 8, 16, 31, 32, 64, 4096])
    scaled = old * chance.choice([2, 3, 2**16])
    there = int.from_bytes(content[other.start : other.start + other.size], "little")
    odd = chance.choice([int(number) for number in NUMBERS if number == number and abs(number) < 2**64])
    new = chance.choice([near, scaled, old // 2, there, odd, chance.randrange(40)])
    number = (new % 2 ** (8 * place.size)).to_bytes(place.size, "little")
    return kind, content[: place.start] + number + content[place.start + place.size :]


def parts_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its data."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def change_safetensors(content: bytes, chance: Random) -> Change:
    header, data = parts_of(content)
    kind = chance.choice(["bytes", "length", "dtype", "shape", "offsets", "header", "header", "cut", "duplicate"])
    names = [name for name in header if name != "__metadata__"]
    tensor = header[chance.choice(names)]
    if kind == "bytes":
        end = len(content) - len(data)
        kind, changed = change_bytes(content, chance, 8, end)
        return f"{kind} of the header", changed
    if kind == "length":
        number = int(chance.choice([n for n in NUMBERS if n == n and 0 <= n < 2**64])) + chance.randint(-1, 1)
        return kind, struct.pack("<Q", number % 2**64) + content[8:]
    if kind == "dtype":
        tensor["dtype"] = chance.choice(DTYPES)
    elif kind == "shape":
        shape = tensor["shape"]
        shapes = [shape[::-1], [*shape, 1], [shape[0] * 2, *shape[1:]], [0, *shape], [], [2**32, 2**32]]
        tensor["shape"] = chance.choice([*shapes, [2**63, 2, *shape]])
    elif kind == "offsets":
        step = chance.choice([-4, -1, 1, 4, 8, 2**40])
        start, end = tensor["data_offsets"]
        tensor["data_offsets"] = chance.choice([[start + step, end + step], [start, end + step], [end, start], [0, 0]])
    elif kind == "header":
        kind, header = change_json(header, chance, (*TEXTS, *DTYPES, chance.choice(names)))
    elif kind == "cut":
        return kind, content[: chance.randrange(len(content))]
    else:
        text = json.dumps(header)
        name = chance.choice(names)
        return kind, joined((text[:-1] + f", {json.dumps(name)}: {json.dumps(tensor)}}}").encode(), data)
    return kind, joined(header, data)


def change_configuration(content: bytes, chance: Random) -> Change:
    if chance.random() < 0.3:
        return change_json_file(content, chance)
    config = json.loads(content)
    field = chance.choice([*config, *FIELDS, *FIELDS])
    value = chance.choice([*NUMBERS, *NUMBERS, *TEXTS, None, [], {}, True])
    if chance.random() < 0.2:
        config[chance.choice(["vision_config", "text_config", "audio_config"])] = {field: value}
    else:
        config[field] = value
    return field, json.dumps(config).encode()


# Changes after which a file says something else, and says it soundly: two tensors of one shape that change places.
LAWFUL = frozenset(("weights", "value", "exchanged", *(f"{kind} of fields" for kind in KINDS)))
READERS = [
    Reader("gguf", lambda folder: write(folder / "tiny.gguf", "llama", dense), read_whole, change_gguf, LAWFUL),
    Reader("safetensors", write_folder, read_whole, change_safetensors, LAWFUL),
    Reader("streamed", write_folder, read_streamed, change_safetensors, LAWFUL),
    Reader("configuration", lambda x: write_folder(x).with_name("config.json"), read_whole, change_configuration),
]
