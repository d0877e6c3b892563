"""Models larger than memory: decoder blocks are read from safetensors files one at a time, and written shard by shard.

Parameters stay on PyTorch's meta device. A block's parameters are read for its turn and then released. A folder keeps
pruned weights (see `run.checkpoint`), which replace the dense weights at the next reading.
"""

import copy
import hashlib
import json
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rose.errors import RoseError
from rose.model.formats.conversion import Conversion
from rose.model.load import stored
from rose.model.load.stored import INDEX, StoredTensor
from rose.model.network.layers import PrunableLayer, decoder_blocks, named_layers
from rose.model.network.residence import ATTRIBUTE, Residence, evaluating, leave
from rose.output import temporary_folder

SHARD = 2**26  # numbers of those outside the decoder blocks that are written to one file, if they are several tensors
DESCRIPTIONS = ("config.json", "generation_config.json", INDEX, "*.py")  # of a model, besides its weights
SAMPLES, SAMPLE_BYTES = 64, 2**16  # of a shard, for its fingerprint: reading all of 140 GB would take minutes


_EMPTYING = threading.Lock()


@contextmanager
def empty_parameters() -> Iterator[None]:
    """New parameters are on the meta device, in this thread alone. Accelerate patches `nn.Module` for all threads, so
    a model that another thread loads meanwhile would lose its weights; and two threads at once would leave the patch.
    """
    thread = threading.get_ident()
    with _EMPTYING:
        ordinary = nn.Module.register_parameter
        with init_empty_weights(include_buffers=False):
            empty = nn.Module.register_parameter

            def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
                (empty if threading.get_ident() == thread else ordinary)(self, name, param)

            nn.Module.register_parameter = register  # type: ignore[method-assign]
            yield


def build_streamed(
    config: Any, folder: Path, dtype: torch.dtype, trust_remote_code: bool, scratch: str | Path | None, finite: bool
) -> Any:
    """A model whose weights stay in the safetensors files of `folder`; arguments as for `load_model`. Raises RoseError
    for missing files, quantized files, or tensors that are missing or have other names than in the model;
    SafetensorError and OSError for a damaged file."""
    if getattr(config, "quantization_config", None) is not None:
        raise RoseError(f"{folder} holds quantized weights, which cannot be streamed; load the model whole.")
    with empty_parameters():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    model.tie_weights()  # emptying separates them, and a tied head must not count twice
    residence = BlockFiles(model, folder, dtype, scratch, finite)
    is_tied = getattr(config, "tie_word_embeddings", False)
    tied = model.get_expanded_tied_weights_keys(all_submodels=True) if is_tied else {}
    pairs = [(name, residence.keys[to][0]) for name, to in tied.items() if to in residence.keys]
    if any(a in residence.files and not torch.equal(residence.read(a), residence.read(b)) for a, b in pairs):
        config.tie_word_embeddings = False  # the files count, as where they are loaded whole
        return build_streamed(config, folder, dtype, trust_remote_code, scratch, finite)
    body = {id(parameter) for parameter in model.base_model.parameters()}
    for name, parameter in model.named_parameters():  # a tied head may be absent
        if id(parameter) not in body and name not in residence.names:
            raise RoseError(f"{folder} lacks {name}; it is incomplete, or was saved without its head. Get it again.")
    used = {key for keys in residence.keys.values() for key in keys}
    stored.check_all_used(str(folder), model, residence.files.keys() - used)
    setattr(model, ATTRIBUTE, residence)
    return model


class BlockFiles(Residence):
    """Decoder blocks in the safetensors files of a checkpoint folder.

    Attributes:
        keys: name in the model -> names in the files; several for joined pieces, such as single experts.
        files: name in the files -> stored tensor.
        names: of tensors, in the files and in the model.
    """

    def __init__(
        self, model: PreTrainedModel, folder: Path, dtype: torch.dtype, scratch: str | Path | None, finite: bool
    ) -> None:
        prefix, blocks = decoder_blocks(model)
        super().__init__(model, blocks)
        self.prefix, self.folder, self.dtype = prefix, folder, dtype
        self.files = stored.stored_tensors(folder)
        described = [path for pattern in DESCRIPTIONS for path in folder.glob(pattern)]
        self._states = {path: stored.state_of(path) for path in {*self.paths, *described}}
        self._conversion = Conversion(model, self.files)
        self.names = self.files.keys() | self._conversion.pieces.keys()
        self.keys = _match(model, self.files, self._conversion)
        inside = {key for name, keys in self.keys.items() if name.startswith(f"{prefix}.") for key in keys}
        self._outside = [key for key in self.files if key not in inside]  # embeddings, head, last norm
        self._scratch_in, self._finite = scratch, finite
        for name, buffer in model.named_buffers():  # stay in memory; those that a checkpoint holds are read from it
            key = next(iter(self._conversion.pieces.get(name, [name])))
            if key in self.files and name in model.state_dict():
                buffer.copy_(self.read(key))
        self._revise: Callable[[int], None] = leave
        self._checkpoint: Path | None = None  # of the run that pruned it, where there was one
        self._finished: Collection[int] = ()
        self._settled: list[Callable[[int], None]] = []
        self._identity = ""  # of all that was settled
        self._added: dict[str, nn.Parameter] = {}  # parameters that the files lack, on the meta device
        self._numbers = list(range(len(self.blocks)))  # of the decoder blocks in the files

    @cached_property
    def paths(self) -> list[Path]:
        """The weight files."""
        return sorted({tensor.path for tensor in self.files.values()})

    @cached_property
    def scratch(self) -> Path:
        opened = ExitStack()
        weakref.finalize(self, opened.close)
        return opened.enter_context(temporary_folder(Path(self._scratch_in or tempfile.gettempdir()), 0o700))

    @contextmanager
    def visit(self, index: int, device: torch.device) -> Iterator[nn.Module]:
        block = self.blocks[index]
        with self._present(block, f"{self.prefix}.{index}.", device):
            for revise in (*self._settled, self._revise):
                revise(index)
            for name, absent in self._added.items():  # zeros for parameters that files and revisions lack
                owner, _, leaf = name.rpartition(".")
                if name.startswith(f"{self.prefix}.{index}."):
                    parameters = self.model.get_submodule(owner)._parameters
                    if parameters[leaf] is None:
                        zeros = torch.zeros(absent.shape, dtype=absent.dtype, device=device)
                        parameters[leaf] = nn.Parameter(zeros, requires_grad=False)
            with evaluating(block, device):  # which moves the buffers too
                yield block

    @contextmanager
    def whole(self) -> Iterator[None]:
        def begin(opened: ExitStack, index: int, *_: Any) -> None:
            opened.enter_context(self.visit(index, torch.device("cpu")))

        def end(opened: ExitStack, *_: Any) -> None:
            opened.close()

        with ExitStack() as after:
            for index, block in enumerate(self.blocks):
                opened = after.enter_context(ExitStack())
                after.callback(block.register_forward_pre_hook(partial(begin, opened, index)).remove)
                after.callback(block.register_forward_hook(partial(end, opened)).remove)
            yield

    @contextmanager
    def embedding(self) -> Iterator[None]:
        body: Any = self.model.base_model
        inside = {id(parameter) for parameter in self.blocks.parameters()}
        with self._present(body, _name_of(self.model, body), torch.device("cpu"), without=inside):
            yield

    def overlay(self, revise: Callable[[int], None], finished: Collection[int], checkpoint: Path | None) -> None:
        if self._finished and (checkpoint is None or checkpoint != self._checkpoint):
            raise RoseError("This streamed model has been pruned already; save it, and load what was saved.")
        self._revise, self._finished, self._checkpoint = revise, finished, checkpoint

    def withdraw(self) -> None:
        self._revise, self._finished, self._checkpoint = leave, (), None

    def make_permanent(self, revise: Callable[[int], None], identity: str) -> None:
        self.withdraw()
        self._settled.append(revise)
        self._identity += identity
        for name, parameter in self.blocks.named_parameters(prefix=self.prefix):
            if name not in self.keys:
                weight = self.keys[name.removesuffix("bias") + "weight"][0]
                self.keys[name] = [weight.removesuffix("weight") + "bias"]
            elif name not in self._added:
                continue
            self._added[name] = parameter  # of the size that it has now

    def renumber(self, numbers: Sequence[int]) -> None:
        _, self.blocks = decoder_blocks(self.model)
        self._numbers = [self._numbers[old] for old in numbers]
        self._settled = [partial(lambda revise, index: revise(numbers[index]), revise) for revise in self._settled]
        self._identity += f"blocks {list(numbers)}"
        keys, added = self.keys, self._added
        self.keys = {name: in_files for name, in_files in keys.items() if not name.startswith(f"{self.prefix}.")}
        self._added = {}
        for name, _ in self.blocks.named_parameters(prefix=self.prefix):
            number, rest = self._place(name)
            old = f"{self.prefix}.{numbers[number]}.{rest}"
            self.keys[name] = keys[old]
            if old in added:
                self._added[name] = added[old]

    def check_renumbering(self) -> None:
        stored = self.model.state_dict()
        for name, _ in self.blocks.named_buffers(prefix=self.prefix):
            if name in stored:
                raise RoseError(
                    f"{type(self.model).__name__} stores {name} beside its weights, so its decoder blocks cannot be "
                    "renumbered in files; load it whole."
                )

    def read_weight(self, layer: PrunableLayer) -> Tensor:
        # A twin: parameters of the block itself come and go with whoever visits it.
        twin = copy.deepcopy(self.blocks[layer.block_index])
        with self._present(twin, f"{self.prefix}.{layer.block_index}.", torch.device("cpu")):
            parts = dict(named_layers(twin))
            return replace(layer, module=parts[layer.projection]).weight.clone()

    def fingerprint(self) -> str:
        """SHA-256 of dtype, and of header, size and samples of every file."""
        checksum = hashlib.sha256((str(self.dtype) + self._identity).encode())
        for path in self.paths:
            size = path.stat().st_size
            checksum.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                checksum.update(file.read(int.from_bytes(file.read(8), "little")))
                for number in range(SAMPLES):
                    file.seek(number * max(size - SAMPLE_BYTES, 0) // (SAMPLES - 1))
                    checksum.update(file.read(SAMPLE_BYTES))
        return checksum.hexdigest()

    @contextmanager
    def _present(
        self, module: nn.Module, prefix: str, device: torch.device, without: Collection[int] = ()
    ) -> Iterator[None]:
        """Reads the parameters of a module and releases them afterwards; `without`: ids of parameters to leave out."""
        before = [(owner, dict(owner._parameters)) for owner in module.modules()]
        try:
            for owner_name, owner in module.named_modules():
                for leaf, parameter in list(owner._parameters.items()):
                    name = prefix + (f"{owner_name}." if owner_name else "") + leaf
                    if parameter is None or not parameter.is_meta or id(parameter) in without:
                        continue
                    owner._parameters[leaf] = None
                    if name not in self._added:
                        value = self._parameter(name, parameter.dtype).to(device)
                        owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)
            yield
        finally:
            for owner, parameters in before:  # those that were added meanwhile go too
                owner._parameters.clear()
                owner._parameters.update(parameters)

    def _parameter(self, name: str, dtype: torch.dtype) -> Tensor:
        """One parameter, joined from its pieces if necessary."""
        read = partial(self.read, dtype=dtype)
        return self._conversion.join(self._original(name), read) if self._is_joined(name) else read(self.keys[name][0])

    def _is_joined(self, name: str) -> bool:
        original = self._original(name)
        return self.keys[name] == self._conversion.pieces.get(original) and self._conversion.is_made(original)

    def _place(self, name: str) -> tuple[int, str]:
        """The decoder block of a parameter, and its name there."""
        number, _, rest = name.removeprefix(f"{self.prefix}.").partition(".")
        return int(number), rest

    def _original(self, name: str) -> str:
        """The name of a parameter before decoder blocks were renumbered."""
        if not name.startswith(f"{self.prefix}."):
            return name
        number, rest = self._place(name)
        return f"{self.prefix}.{self._numbers[number]}.{rest}"

    def split_keys(self) -> tuple[list[list[str]], list[list[str]]]:
        """Names in the model of each decoder block's parameters, and in the files of the rest, in groups for shards."""
        blocks: list[list[str]] = [[] for _ in self.blocks]
        for name in self.keys:
            if name.startswith(f"{self.prefix}."):
                blocks[self._place(name)[0]].append(name)
        groups: list[list[str]] = []
        room = 0
        for key in self._outside:
            needed = self.files[key].count
            if needed > room:
                groups.append([])
                room = SHARD
            groups[-1].append(key)
            room -= needed
        return blocks, groups

    def divide(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters by name in the model -> tensors by name in the files."""
        joined = {name: value for name, value in parameters.items() if self._is_joined(name)}
        whole = {self._written(name): value for name, value in parameters.items() if name not in joined}
        return whole | (self._conversion.divide(joined) if joined else {})

    def _written(self, name: str) -> str:
        """The name in the files, with the block's new number."""
        number, _ = self._place(name)
        return self.keys[name][0].replace(f".{self._numbers[number]}.", f".{number}.", 1)

    def read(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """As `read_several`, one tensor."""
        return self.read_several([key], dtype)[key]

    def read_several(self, keys: Collection[str], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Copies of tensors of the files, in the model's dtype or another; raises RoseError for a file that was damaged
        or removed meanwhile. A file is opened once for all its tensors, because headers may be long. It is closed then,
        because pages of an open file would stay in memory beside the copies."""
        copies: dict[str, Tensor] = {}
        by_file: dict[Path, list[str]] = {}
        for key in keys:
            by_file.setdefault(self.files[key].path, []).append(key)
        for path, inside in by_file.items():
            try:
                with safe_open(path, "pt") as file:
                    tensors = {key: file.get_tensor(key) for key in inside}
                    stored.check_unchanged(path, self._states[path])
                    if self._finite:
                        stored.check_finite(str(path), tensors.items())
                    for key, tensor in tensors.items():
                        target = (dtype or self.dtype) if tensor.is_floating_point() else tensor.dtype
                        copies[key] = tensor.to(target, copy=True)
            except (OSError, SafetensorError) as problem:
                raise RoseError(f"{path} cannot be read any more ({problem}); restore it.") from problem
        return copies

    def check_unchanged(self) -> None:
        """Raises RoseError where a file of the checkpoint has changed since this model was built."""
        try:
            for path, state in self._states.items():
                stored.check_unchanged(path, state)
        except OSError as problem:
            raise RoseError(f"{self.folder} has lost a file since this run began ({problem}); restore it.") from problem


def _name_of(model: nn.Module, part: nn.Module) -> str:
    """The dotted name of a module and a final dot; "" for the model itself."""
    name = next(name for name, module in model.named_modules() if module is part)
    return f"{name}." if name else ""


def _match(model: PreTrainedModel, files: Mapping[str, StoredTensor], conversion: Conversion) -> dict[str, list[str]]:
    """Names in the body of the model -> names in the files, with or without the body's prefix."""
    body: Any = model.base_model
    prefix = _name_of(model, body)
    matched = {}
    for name, _ in body.named_parameters():
        name = prefix + name
        key = name if name in files else name.removeprefix(prefix)
        keys = [key] if key in files else conversion.pieces.get(name, [])
        if not keys:
            raise RoseError(f"The files have no tensor named {name}; load the model whole, and save it once.")
        matched[name] = keys
    return matched


def write_streamed(model: PreTrainedModel, folder: Path) -> None:
    """Writes a streamed model in its present state: a shard for each decoder block, others for the rest, an index.
    Tensors keep their names in the files, so tied weights stay tied. Raises OSError and SafetensorError."""
    stream: BlockFiles = getattr(model, ATTRIBUTE)
    blocks, rest = stream.split_keys()
    shards, size = len(blocks) + len(rest), 0
    weights: dict[str, str] = {}
    for number, keys in enumerate([*blocks, *rest]):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        if number < len(blocks):
            with stream.visit(number, torch.device("cpu")):
                tensors = stream.divide({name: model.get_parameter(name).detach() for name in keys})
        else:
            tensors = stream.read_several(keys)
        save_file(tensors, folder / file, {"format": "pt"})
        size += sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
        weights |= dict.fromkeys(tensors, file)
        del tensors  # before the next ones are read
    index = {"metadata": {"total_size": size}, "weight_map": weights}
    (folder / INDEX).write_text(json.dumps(index, indent=1))
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    for name in ("generation_config.json", *(path.name for path in stream.folder.glob("*.py"))):
        if (stream.folder / name).exists():
            shutil.copyfile(stream.folder / name, folder / name)
    stream.check_unchanged()
