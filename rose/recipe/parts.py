"""The fields that specifications share. Each type declares its limits and its line of help once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from unicodedata import category

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rose.errors import RoseError
from rose.files import expand
from rose.layer.pattern import BLOCK_SIZE, DAMPING, METHOD, SPARSITY, THRESHOLD, Pattern, parse_grid, parse_sparsity
from rose.layer.registry import Value, check_order_name, check_threshold, get_method
from rose.model.defaults import OFFLINE, PRUNING, RATE, SOURCES, STORED
from rose.model.packaged import PACKAGED
from rose.model.rules import parse_allocation
from rose.spec import NAMED, Real, Spec, Whole, setting
from rose.structured.defaults import MULTIPLE, RATIO, WHOLE_BLOCKS
from rose.wording import several, text_name

if TYPE_CHECKING:
    from torch import Tensor

    from rose.layer.pattern import Grid

NAMED.update(SOURCES, PACKAGED)
MOST_TOKENS = 2**31  # of one draw; eight bytes each
TEXTS = f"{', '.join(SOURCES)}, or a .txt or .jsonl file"
MAX_SEED = 2**63 - 1
PREVIOUS, BETWEEN = "previous", "between"  # stand for the output of the step before, and its folder


def as_sparsity(value: Any) -> str:
    """ "0.7" for 0.7, "0.70", ".7" and "70%" too, as all of them name the same runs; "2:4" stays."""
    pattern = parse_sparsity(value)
    if pattern.is_grouped:
        return str(pattern)
    ratio = float(pattern.ratio)  # exact for a text such as "33.3%", unlike a division
    return f"{ratio:.12g}" if isinstance(value, str) else repr(ratio).removesuffix(".0")


def _order(name: str) -> str:
    if name != "rose":  # two-level or natural, as the layer is columnar or not
        check_order_name(name)
    return name


def _threshold(value: float) -> float:
    check_threshold(value)
    return value


def _not_empty(text: str) -> str:
    if not text.strip() or any(category(letter) in ("Cc", "Cs") for letter in text):
        raise ValueError("an empty name would be the working folder, and no file has control characters in its name")
    return text


def path_of(value: Any) -> Any:
    """A path with ~ replaced; an empty one would be the working folder."""
    return expand(_not_empty(str(value))) if isinstance(value, str | Path) else value


def names_of(value: Any) -> Any:
    """Reads a list of names, a single name or A,B; drops repeats. None is not a list."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("names nothing")
    return tuple(name for at, name in enumerate(value) if name not in value[:at])


def one_or_several(value: Any) -> Any:
    if isinstance(value, list | tuple) and not value:
        raise ValueError("names nothing")
    return tuple(several(value)) if isinstance(value, str | list | tuple) else value


def _pairs(value: Any) -> Any:
    """Options as a mapping; a list of NAME=VALUE, as a command line has them, becomes one."""
    if not isinstance(value, list | tuple):
        return value
    pairs = [str(text).partition("=") for text in value]
    for name, equals, value_text in pairs:
        if not (name.strip() and equals and value_text.strip()):
            raise RoseError(f"--option takes NAME=VALUE, not {name + equals + value_text!r}.")
    return {name.strip(): value_text.strip() for name, _, value_text in pairs}


def number_in(value: Any) -> Any:
    """A whole number that was written as text, as on a command line."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


Name = Annotated[str, AfterValidator(_not_empty)]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    setting(
        "number format of the weights, and of a copy's; auto: bfloat16 for a checkpoint in it where this machine "
        "computes in it, else float32"
    ),
]
TrustRemoteCode = Annotated[bool, setting("run Python code from the model's repository", changes=False, kept=False)]
Stream = Annotated[
    bool, setting("read decoder blocks from safetensors files one at a time, for big models", changes=False)
]
Compute = Annotated[
    Literal["auto", "float32", "bfloat16"],
    setting("number format of matrix products in forward passes; auto: bfloat16 where this processor can"),
]
TextName = Annotated[Name, setting(TEXTS, metavar="TEXT", path=True)]
Samples = Annotated[Whole, setting("calibration windows", label="Samples", unit="windows", ge=1, le=65536)]
Length = Annotated[Whole, setting("tokens per window", label="Tokens per sample", unit="tokens", ge=2, le=2**20)]
Seed = Annotated[Whole, setting("seed of the random choice of windows", label="Seed", ge=0, le=MAX_SEED)]
HeldOut = Annotated[
    Whole,
    setting(
        "further windows to measure errors on, 0 for none", label="Held-out samples", unit="windows", ge=0, le=65536
    ),
]
Sparsity = Annotated[str, BeforeValidator(as_sparsity), setting('ratio, or N:M such as "2:4"')]
Layers = Annotated[
    tuple[str, ...],
    BeforeValidator(one_or_several),
    setting("only these layers, last of all options; * matches any part, in quotes", form="words", metavar="NAME"),
]
Method = Annotated[
    str, AfterValidator(lambda name: get_method(name).name), setting("a pruning method, see `rose models`")
]
BlockSize = Annotated[Whole, setting("columns per block", label="Block size, columns", unit="columns", ge=1)]
Damping = Annotated[Real, setting("added to the Hessian's diagonal, as a share of its mean", ge=0)]
Order = Annotated[str, AfterValidator(_order), setting("override the method's order: a name, or random:SEED")]
Options = Annotated[
    dict[str, Value],
    BeforeValidator(_pairs),
    setting("an option of the method, see `rose models`", form="pairs", flag="option", metavar="NAME=VALUE"),
]
Allocation = Annotated[
    str,
    setting(
        "how layers share the sparsity: uniform, owl, sensitivity; sensitivity:ALPHA sets how far layers may differ; "
        "damage:FOLDER uses the rows of `rose damage`",
        metavar="RULE",
    ),
]
Target = Annotated[
    Literal["dense", "layer"],
    setting(
        "what each layer is fitted to: dense, the dense model's output at that place; layer, as in the papers, its own "
        "dense output on the pruned inputs"
    ),
]
TargetDamping = Annotated[
    Real,
    setting(
        "damping of the correction towards the dense model, as a share of the mean Hessian diagonal (default: by the "
        "numbers of tokens and of decoder blocks to prune)",
        metavar="MU",
        ge=0,
    ),
]
Windows = Annotated[
    Whole, setting("evaluate on the first N windows only (default: all)", unit="windows", metavar="N", ge=1)
]
Minutes = Annotated[Real, setting("how long tuning may take", unit="minutes", metavar="MINUTES", gt=0)]
Methods = Annotated[
    tuple[str, ...], BeforeValidator(names_of), setting("methods to compare", form="commas", metavar="A,B")
]
Output = Annotated[
    Path, BeforeValidator(path_of), setting("new folder for the result", changes=False, kept=False, metavar="FOLDER")
]
File = Annotated[
    Path, BeforeValidator(path_of), setting("file to write the result to", changes=False, kept=False, metavar="FILE")
]
Checkpoint = Annotated[
    Path,
    BeforeValidator(path_of),
    setting(
        "keep finished decoder blocks here; the same command resumes an interrupted run",
        changes=False,
        kept=False,
        metavar="DIR",
    ),
]


class ModelPart(Spec):
    """Which model, and how its weights are read."""

    model: Annotated[Name, setting("packaged name, Hub id, folder or .gguf file", path=True)] = OFFLINE
    dtype: Dtype = STORED  # type: ignore[assignment]
    trust_remote_code: TrustRemoteCode = False


class TextPart(Spec):
    """Which text calibrates, and how many windows of it."""

    calibration: TextName = "packaged"
    samples: Samples = PRUNING.samples
    length: Length = PRUNING.length
    seed: Seed = 0
    held_out: HeldOut = PRUNING.held_out
    bos: Annotated[
        Literal["auto", "always", "never"],
        setting(
            "begin windows with the beginning-of-sequence token: auto, where the tokenizer puts it in front of a "
            "user's text"
        ),
    ] = "auto"

    def draw(self, tokenizer: Any, warn: Any = None, **changed: int) -> tuple[Tensor, Tensor | None]:
        """Calibration and held-out windows, see `load_calibration`; `changed`: another seed."""
        from rose.model.load.tokens import load_calibration  # with torch

        fields = self.pick(("samples", "held_out", "length", "seed", "bos")) | changed
        return load_calibration(self.calibration, tokenizer, warn=warn, **fields)

    @property
    def drawn(self) -> dict[str, Any]:
        """The windows as reports name them."""
        return self.pick(("calibration", "samples", "length", "seed")) | {"held_out_samples": self.held_out}

    @property
    def tokens(self) -> str:
        """The calibration windows in a sentence: "16 × 512 tokens of Python's reference"."""
        return f"{self.samples} × {self.length} tokens of {text_name(self.calibration)}"

    @property
    def extent(self) -> dict[str, Any]:
        """All windows that are drawn, and their length, for estimates."""
        return {"samples": self.samples + self.held_out, "length": self.length}

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        windows = self.samples + self.held_out
        if windows * self.length > MOST_TOKENS:
            raise RoseError(f"{windows} windows of {self.length} tokens are more than {MOST_TOKENS}; ask for fewer.")
        return self


class SweepPart(Spec):
    """Settings of every pruning method."""

    sparsity: Sparsity = str(SPARSITY)
    layers: Layers | None = None
    block_size: BlockSize = BLOCK_SIZE
    damping: Damping = DAMPING
    threshold: Annotated[Real, AfterValidator(_threshold), setting("a layer is columnar above this relative range")] = (
        THRESHOLD
    )

    @property
    def pattern(self) -> Pattern:
        """The sparsity, parsed."""
        return parse_sparsity(self.sparsity)

    @model_validator(mode="after")
    def _check_pattern(self) -> Self:
        pattern = self.pattern
        pattern.check(pattern.of, self.block_size or BLOCK_SIZE)  # its own groups always fit; the block size may not
        return self


class RoundingPart(Spec):
    """To how many bits kept weights are rounded."""

    bits: Annotated[
        Literal[3, 4, 8] | None,
        BeforeValidator(number_in),
        setting("round kept weights to this many bits, on a grid with an exact zero; see docs/shipping.md"),
    ] = None
    group: Annotated[
        Literal[32, 64, 128, "row"] | None,
        BeforeValidator(number_in),
        setting("input columns that share a scale (default: 64)"),
    ] = None

    @property
    def grid(self) -> Grid | None:
        """The grid of kept weights, None to leave them as they are."""
        return parse_grid(self.bits, self.group)

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        _ = self.grid
        return self


class MethodPart(SweepPart):
    """A method and its options."""

    method: Method = METHOD
    order: Order | None = None
    budget: Annotated[Literal["block", "layer"] | None, setting("override the method's budget")] = None
    options: Options = Field(default_factory=dict)

    @property
    def method_options(self) -> dict[str, Value]:
        """The method's options with all defaults, checked together with the other fields."""
        orders, rounds = self.order is not None or self.budget is not None, getattr(self, "grid", None) is not None
        return get_method(self.method).check_request(self.pattern, options=self.options, orders=orders, rounds=rounds)

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        _ = self.method_options
        return self


class WalkPart(Spec):
    """The walk over the model, and the target of each layer."""

    allocation: Annotated[Allocation, AfterValidator(lambda text: parse_allocation(text).text)] = "uniform"
    target: Target = "dense"
    target_damping: TargetDamping | None = None
    true_sequential: Annotated[
        bool,
        setting(
            "with target layer, calibrate each layer once those before it in its decoder block are pruned, as target "
            "dense always does; faster, but needs more memory"
        ),
    ] = False
    min_expert_tokens: Annotated[
        Whole,
        setting(
            "leave an expert dense if fewer calibration tokens than this are routed to it",
            unit="tokens",
            metavar="N",
            ge=1,
        ),
    ] = 1
    compute: Compute = "auto"

    def towards(self, target: str) -> dict[str, Any]:
        """The target with its fields: only dense has a correction, and only layer can walk in one pass or two."""
        damping, sequential = (self.target_damping, False) if target == "dense" else (None, self.true_sequential)
        return {"target": target, "target_damping": damping, "true_sequential": sequential}

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        check_target_damping(self, self.target)
        return self


def check_target_damping(spec: Any, target: str) -> None:
    """Raises RoseError where a recipe damps a correction that its target does not need."""
    if spec.target_damping is not None and target != "dense":
        raise RoseError("Only target dense has a correction to damp; leave the target's damping out.")


class EvaluationPart(Spec):
    """A text to measure perplexity on, before and after."""

    evaluate: Annotated[TextName, setting("measure perplexity on this text before and after")] | None = None
    windows: Windows | None = None

    @model_validator(mode="after")
    def _check_windows(self) -> Self:
        if self.evaluate is None and self.windows is not None:
            raise RoseError("--windows limits the windows of --evaluate; give --evaluate too, or leave --windows out.")
        return self


class SavingPart(EvaluationPart):
    """Folders of the copy and of an interrupted run."""

    output: Annotated[Output, setting("new folder for the checkpoint")]
    checkpoint: Checkpoint | None = None


class ChangingPart(SavingPart):
    """How a model to be changed is read, and tuned afterwards."""

    stream: Stream = False
    tune: Minutes | None = None

    @model_validator(mode="after")
    def _check_in_memory(self) -> Self:
        if self.stream and self.evaluate is not None:
            raise RoseError("--evaluate needs the whole model in memory; leave it out, or leave --stream out.")
        if self.stream and self.tune is not None:
            raise RoseError("--tune needs both models in memory; leave it out, or leave --stream out.")
        return self


class PruneSettings(WalkPart, RoundingPart, MethodPart):
    """Keywords of `rose.prune_model`."""


class TuneSettings(Spec):
    """Keywords of `rose.tune_model`."""

    minutes: Annotated[Minutes, setting("how long it may take")] | None = None
    epochs: Annotated[Real, setting("or: passes over the windows (default: 1)", gt=0)] | None = None
    loss: Annotated[Literal["kl", "ce"], setting("kl: towards the dense model; ce: by the text's own next tokens")] = (
        "kl"
    )
    rate: Annotated[
        Real | None, setting(f"highest learning rate (default: at most {RATE:g}, by steps and weights)", gt=0)
    ] = None
    batch: Annotated[Whole, setting("windows per step", ge=1)] = 2
    seed: Seed = 0
    compute: Compute = "auto"

    @model_validator(mode="after")
    def _check_end(self) -> Self:
        if self.minutes is not None and self.epochs is not None:
            raise RoseError("Give minutes or epochs, not both: each says when tuning ends.")
        return self


class CutPart(Spec):
    """How heads and channels are taken out."""

    method: Annotated[
        Literal["obs", "slimllm", "wanda", "magnitude", "depth"], setting("a structured method, see `rose models`")
    ] = "obs"
    ratio: Annotated[Real, setting("share of their parameters to take out", gt=0, lt=1)] = RATIO
    parts: Annotated[
        tuple[Literal["heads", "channels"], ...] | None,
        BeforeValidator(one_or_several),
        setting("what may be taken out (default: all that the model offers)", form="words"),
    ] = None
    recovery: Annotated[
        Literal["none", "bias", "linear", "exact"] | None, setting("override how the method repairs what stays")
    ] = None
    damping: Annotated[Damping, setting("added to the inputs' covariance, as a share of its mean diagonal")] = DAMPING
    multiple: Annotated[Whole, setting("kept channels are a multiple of this", ge=1)] = MULTIPLE


class SlimSettings(CutPart):
    """Keywords of `rose.prune_structured`."""

    allocation: Annotated[
        Literal["uniform", "similarity", "cost"], setting("uniform shapes load everywhere; the others only with rose")
    ] = "uniform"
    target: Target | None = "layer"
    target_damping: TargetDamping | None = None

    @model_validator(mode="after")
    def _check_slimming(self) -> Self:
        check_target_damping(self, self.target or "dense")
        if self.method == WHOLE_BLOCKS and (self.parts or self.allocation != "uniform" or self.recovery):
            raise RoseError(
                f"{self.method} drops whole decoder blocks as they are; leave out parts, allocation and recovery."
            )
        return self
