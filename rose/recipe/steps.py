"""The things that people run, one specification each; a command of the same name does what it says."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rose.errors import RoseError
from rose.layer.pattern import METHOD, RECOMMENDED, SPARSITY, Pattern, parse_sparsity
from rose.layer.registry import get_method
from rose.model.defaults import CHECK, CHECKED_AGAINST, COMPARED, DAMAGE, PAPERS, PRUNED, SMALLER, TUNING
from rose.recipe.parts import (
    TEXTS,
    Checkpoint,
    Compute,
    Dtype,
    EvaluationPart,
    File,
    HeldOut,
    Layers,
    Length,
    Method,
    MethodPart,
    Methods,
    Minutes,
    ModelPart,
    Name,
    Output,
    PruneSettings,
    Ratio,
    Rotate,
    RoundingPart,
    Samples,
    SavingPart,
    Seed,
    SlimSettings,
    Sparsity,
    Stream,
    SweepPart,
    Target,
    TextName,
    TextPart,
    TrustRemoteCode,
    TuneSettings,
    WalkPart,
    Windows,
    as_sparsity,
    check_target_damping,
    names_of,
    one_or_several,
)
from rose.recipe.spec import Spec, Whole, setting
from rose.structured.defaults import RATIO, WHOLE_BLOCKS

DENSE = "the model before: packaged name, Hub id, folder or .gguf file"
Json = Annotated[File, setting("write all results to this file", changes=False, kept=False, flag="json")]


def _seeds(value: Any) -> Any:
    return tuple(names_of(str(value))) if isinstance(value, str | int) and not isinstance(value, bool) else value


class Analyze(SweepPart, TextPart, ModelPart):
    """Which layers are columnar, and how order changes their error."""

    run: ClassVar[str] = "analyze"

    stream: Stream = False
    compute: Compute = "auto"
    rotate: Rotate | None = None
    methods: Methods = ("sparsegpt", "rose")
    output: Annotated[Output, Field(description="write report.json, layers.csv and layers.parquet")] | None = None


class Prune(SavingPart, EvaluationPart, PruneSettings, TextPart, ModelPart):
    """Prune a model and save the checkpoint."""

    run: ClassVar[str] = "prune"

    method: Method = RECOMMENDED
    stream: Stream = False
    rotate: Rotate | None = None
    tune: Minutes | None = None

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        check_in_memory(self.stream, self.evaluate, self.tune)
        if self.tune is not None and self.bits is not None:
            raise RoseError(
                "--tune would move weights off the grid of --bits; leave --bits out, and then round what was tuned "
                f"(rose prune --model {self.output} --sparsity 0 --bits {self.bits}), which keeps its zeros."
            )
        if self.tune is not None and self.pattern.ratio < PRUNED:
            raise RoseError(
                f"--tune trains what pruning has kept, and sparsity {self.sparsity} prunes less than "
                f"{100 * PRUNED:g} %; leave one of them out. `rose tune` takes a model that is pruned already."
            )
        return self


class Slim(SavingPart, EvaluationPart, SlimSettings, TextPart, ModelPart):
    """Make a model smaller and faster: take heads, channels or decoder blocks out."""

    run: ClassVar[str] = "slim"

    stream: Stream = False
    ratio: Annotated[Ratio, Field(description="share of the decoder blocks' parameters to take out")] = RATIO
    target: Target | None = None
    prune: Annotated[Sparsity, Field(description="then prune what is left: a ratio, or N:M")] | None = None
    prune_method: Annotated[Method, Field(description=f"of --prune (default: {RECOMMENDED})")] | None = None
    tune: Minutes | None = None

    @model_validator(mode="after")
    def _check_slimming(self) -> Self:
        check_in_memory(self.stream, self.evaluate, self.tune)
        if self.prune is None and self.prune_method is not None:
            raise RoseError("--prune-method needs --prune SPARSITY; give it too, or leave --prune-method out.")
        if self.method == WHOLE_BLOCKS:
            self._check_whole_blocks()
        elif self.prune is not None:
            check_multiple(self.multiple, parse_sparsity(self.prune))
        check_target_damping(self.target or ("dense" if self.prune else "layer"), self.target_damping)
        return self

    def _check_whole_blocks(self) -> None:
        """Raises RoseError for fields that do not apply when whole decoder blocks are dropped."""
        meaningless = {"parts", "allocation", "recovery", "multiple"} | (set() if self.prune else {"damping", "target"})
        options = [f"--{name}" for name in self.given if name in meaningless]
        if options:
            raise RoseError(f"depth drops whole decoder blocks as they are; leave out {', '.join(options)}.")


class Tune(SavingPart, EvaluationPart, TuneSettings, TextPart):
    """Train the kept weights of a pruned model; its zeros stay."""

    run: ClassVar[str] = "tune"

    pruned: Annotated[
        Name, setting("folder of the pruned model, whoever pruned it", form="place", metavar="PRUNED", path=True)
    ]
    dense: Annotated[
        Name, setting("the model before: packaged name, Hub id, folder or .gguf file", metavar="DENSE", path=True)
    ]
    parts: Annotated[
        Whole, setting("number of parts; the decoder blocks are tuned part by part, with less memory", ge=1)
    ] = 1
    unpruned: Annotated[bool, setting("allow a model without zeros")] = False
    dtype: Dtype = "auto"
    trust_remote_code: TrustRemoteCode = False
    calibration: Annotated[TextName, Field(description=f"text to train on: {TEXTS}")] = "packaged"
    samples: Annotated[Samples, Field(description="windows to train on")] = TUNING.samples
    length: Length = TUNING.length
    held_out: Annotated[HeldOut, Field(description="further windows that say which step is kept, 0: the last one")] = (
        TUNING.held_out
    )
    layers: Layers | None = None
    checkpoint: (
        Annotated[
            Checkpoint, Field(description="keep weights and progress here; the same command resumes an interrupted run")
        ]
        | None
    ) = None


class Compare(WalkPart, RoundingPart, SweepPart, TextPart, ModelPart):
    """Compare methods over sparsities and calibration seeds."""

    run: ClassVar[str] = "compare"

    sparsity: Annotated[
        tuple[Annotated[str, BeforeValidator(as_sparsity)], ...],
        BeforeValidator(names_of),
        setting('ratios, or N:M such as "2:4"', form="commas", metavar="A,B"),
    ] = ("0.5", "0.6", "0.7")  # type: ignore[assignment]
    seeds: Annotated[
        tuple[Seed, ...],
        BeforeValidator(_seeds),
        setting("seeds of the random choice of windows, a draw each", form="commas", metavar="A,B"),
    ] = (0, 1, 2)
    methods: Annotated[
        Methods,
        Field(
            description="METHOD, or METHOD@ORDER/BUDGET to override what a sweep would do; :layer or :dense behind it "
            "gives it a target of its own"
        ),
    ] = COMPARED
    evaluate: Annotated[TextName, Field(description="measure perplexity on this text")]
    windows: Windows | None = None
    output: Annotated[Output, Field(description="rows and summaries; the same command resumes an interrupted run")]

    @property
    def pattern(self) -> Pattern:
        """The first sparsity, parsed."""
        return parse_sparsity(self.sparsity[0])


class Damage(MethodPart, TextPart, ModelPart):
    """How much a model's loss rises when one layer or decoder block alone is pruned."""

    run: ClassVar[str] = "damage"

    samples: Samples = DAMAGE.samples
    length: Length = DAMAGE.length
    held_out: HeldOut = DAMAGE.held_out
    sparsity: Sparsity = str(SPARSITY)
    method: Method = METHOD
    order: ClassVar[None] = None  # type: ignore[misc]
    budget: ClassVar[None] = None  # type: ignore[misc]
    units: Annotated[Literal["layers", "blocks"], setting("what is pruned alone, one after another")] = "layers"
    restore: (
        Annotated[
            Name,
            setting(
                "give the units of this pruned model the dense weights of --model back, instead of pruning",
                metavar="FOLDER",
                path=True,
            ),
        ]
        | None
    ) = None
    evaluate: (
        Annotated[
            TextName, Field(description="measure loss on this text (default: the calibration text's held-out windows)")
        ]
        | None
    ) = None
    windows: Windows | None = None
    output: Annotated[
        Output, Field(description="rows.csv and summary.json; the same command resumes an interrupted run")
    ]

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        of_pruning = ("sparsity", "method", "options", "block_size", "damping", "threshold")
        options = [self.fields()[name].option for name in self.given if name in of_pruning]
        if self.restore is not None and options:
            raise RoseError(f"--restore restores dense weights instead of pruning; leave {' and '.join(options)} out.")
        if self.evaluate is None and self.windows is not None:
            raise RoseError("--windows limits the windows of --evaluate; give --evaluate too, or leave --windows out.")
        if self.evaluate is None and self.held_out < 1:
            raise RoseError("Measuring the loss needs windows: give --evaluate TEXT, or --held-out of at least 1.")
        return self


class CheckCopies(TextPart):
    """Compare a checkpoint with the dense model it was made from."""

    run: ClassVar[str] = "check"

    dense: Annotated[
        Name,
        setting(
            "the model before: packaged name, Hub id, folder or .gguf file", form="place", metavar="DENSE", path=True
        ),
    ]
    pruned: Annotated[
        tuple[Name, ...],
        BeforeValidator(one_or_several),
        setting("one or more checkpoints made from it, named the same way", form="place", metavar="PRUNED", path=True),
    ]
    dtype: Dtype = "float32"  # which holds what either file holds
    compute: Compute = "auto"
    trust_remote_code: TrustRemoteCode = False
    stream: Stream = False
    calibration: (
        Annotated[
            TextName,
            Field(description=f"text to measure errors on: {TEXTS} (default: none, judge by the weights alone)"),
        ]
        | None
    ) = None  # type: ignore[assignment]
    samples: Samples = CHECK.samples
    length: Length = CHECK.length
    held_out: HeldOut = CHECK.held_out
    methods: Annotated[Methods, Field(description="with --calibration, compare with these methods")] = CHECKED_AGAINST
    json_file: Json | None = None

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        needs_text = {"samples", "length", "seed", "held_out", "bos", "methods"}
        options = [
            f"--{name.replace('_', '-')}" for name in type(self).fields() if name in needs_text & self.model_fields_set
        ]
        if self.calibration is None and options:
            reason = "Without --calibration TEXT, a check looks at weights alone"
            raise RoseError(f"{reason}; give that too, or leave {' and '.join(options)} out.")
        for method in self.methods:
            get_method(method)
        return self


class Evaluate(ModelPart):
    """Perplexity and zero-shot accuracy of a model."""

    run: ClassVar[str] = "evaluate"

    compute: Annotated[Compute, Field(description="number format of matrix products in forward passes, for --text")] = (
        "float32"
    )
    text: Annotated[TextName, Field(description=f"text to measure perplexity on: {TEXTS}")] | None = None
    length: Length = PAPERS.length
    windows: Windows | None = None
    bos: Annotated[
        Literal["auto", "always", "never"], setting("begin windows with the beginning-of-sequence token")
    ] = "auto"
    tasks: (
        Annotated[
            tuple[str, ...],
            BeforeValidator(one_or_several),
            setting("measure zero-shot accuracy on these tasks of lm-eval; none named: the usual seven", form="words"),
        ]
        | None
    ) = None
    task_folder: (
        Annotated[
            Name,
            setting(
                "take tasks from the YAML files in this folder instead; tasks with code need --trust-remote-code too",
                metavar="FOLDER",
                path=True,
            ),
        ]
        | None
    ) = None
    limit: Annotated[Whole, setting("only the first N questions of each task", metavar="N", ge=1)] | None = None
    output: Annotated[File, Field(description="write the accuracies to this .csv file")] | None = None
    json_file: Json | None = None

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        if self.text is None and self.tasks is None:
            raise RoseError("Say what to measure: --text for perplexity, --tasks for zero-shot accuracy, or both.")
        options = [f"--{name}" for name in ("windows", "length", "compute") if name in self.model_fields_set]
        if self.text is None and options:
            raise RoseError(
                f"{' and '.join(options)} belong to the perplexity on --text; give that too, or leave them out."
            )
        if self.tasks is None and self.output is not None:
            raise RoseError("--output is the .csv file for accuracies; give --tasks too, or leave --output out.")
        if self.tasks is None and (self.limit is not None or self.task_folder):
            raise RoseError("--limit and --task-folder need --tasks; give --tasks too, or leave them out.")
        return self


class Smaller(TextPart, ModelPart):
    """A table of ways to make a checkpoint smaller, measured here; writes the best one."""

    run: ClassVar[str] = "smaller"

    model: Annotated[
        Name, setting("packaged name, Hub id, folder or .gguf file", form="place", metavar="CHECKPOINT", path=True)
    ]
    samples: Samples = SMALLER.samples
    length: Length = SMALLER.length
    held_out: Annotated[HeldOut, Field(description="windows of each text that perplexity is measured on", ge=2)] = (
        SMALLER.held_out
    )
    second: (
        Annotated[
            TextName,
            Field(description=f"a second text for perplexity: {TEXTS} (default: source code of Python's library)"),
        ]
        | None
    ) = None
    minutes: Annotated[Minutes, Field(description="how long to measure; the most promising rows come first")] = 20.0
    tune: Annotated[Minutes, Field(description="time for each tuned copy")] = 2.0
    write: (
        Annotated[
            Name,
            setting(
                'the row to write: same-quality, half-the-bytes, twice-as-fast, or a row\'s key such as "bits-4" '
                "(default: the first of these goals that a row reaches)",
                metavar="ROW",
                changes=False,
            ),
        ]
        | None
    ) = None
    output: Annotated[Output, Field(description="table, record and the written copy; the same command resumes")]


def check_in_memory(stream: bool, evaluate: str | None, tune: float | None) -> None:
    """Raises RoseError for a streamed model that is to be evaluated or tuned."""
    if stream and evaluate is not None:
        raise RoseError("--evaluate needs the whole model in memory; leave it out, or leave --stream out.")
    if stream and tune is not None:
        raise RoseError("--tune needs both models in memory; leave it out, or leave --stream out.")


def check_multiple(multiple: int, pattern: Pattern) -> None:
    """Raises RoseError where slimming will leave widths that N:M does not divide."""
    if pattern.is_grouped and multiple % pattern.of:
        fitting = math.lcm(multiple, pattern.of)
        raise RoseError(f"--prune {pattern} needs widths divisible by {pattern.of}; give --multiple {fitting}.")


STEPS: tuple[type[Spec], ...] = (Analyze, Prune, Slim, Tune, Compare, Damage, CheckCopies, Evaluate, Smaller)
