"""The fields that specifications share. Each type declares its limits and its line of help once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from unicodedata import category

from pydantic import AfterValidator, BeforeValidator, model_validator

from rose.errors import RoseError
from rose.files import expand
from rose.model.defaults import OFFLINE, PRUNING, SOURCES, STORED
from rose.model.packaged import PACKAGED
from rose.model.settings import Minutes, Seed
from rose.spec import NAMED, Spec, Whole, names_of, setting
from rose.wording import text_name

if TYPE_CHECKING:
    from torch import Tensor

NAMED.update(SOURCES, PACKAGED)
MOST_TOKENS = 2**31  # of one draw; eight bytes each
TEXTS = f"{', '.join(SOURCES)}, or a .txt or .jsonl file"


def _not_empty(text: str) -> str:
    if not text.strip() or any(category(letter) in ("Cc", "Cs") for letter in text):
        raise ValueError("an empty name would be the working folder, and no file has control characters in its name")
    return text


def path_of(value: Any) -> Any:
    """A path with ~ replaced; an empty one would be the working folder."""
    return expand(_not_empty(str(value))) if isinstance(value, str | Path) else value


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
TextName = Annotated[Name, setting(TEXTS, metavar="TEXT", path=True)]
Samples = Annotated[Whole, setting("calibration windows", label="Samples", unit="windows", ge=1, le=65536)]
Length = Annotated[Whole, setting("tokens per window", label="Tokens per sample", unit="tokens", ge=2, le=2**20)]
HeldOut = Annotated[
    Whole,
    setting(
        "further windows to measure errors on, 0 for none", label="Held-out samples", unit="windows", ge=0, le=65536
    ),
]
Windows = Annotated[
    Whole, setting("evaluate on the first N windows only (default: all)", unit="windows", metavar="N", ge=1)
]
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
        """Calibration and held-out windows, see `load_tokens`; `changed`: another seed."""
        from rose.model.load.tokens import load_tokens  # with torch

        fields = self.pick(("samples", "held_out", "length", "seed", "bos")) | changed
        return load_tokens(self.calibration, tokenizer, warn=warn, **fields)

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
