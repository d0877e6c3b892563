"""The things that people run, one specification each; a command of the same name does what it says."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from rose.errors import RoseError
from rose.layer.pattern import METHOD, Pattern, parse_sparsity
from rose.layer.registry import get_method
from rose.layer.settings import Method, SharedSettings, Sparsity, as_sparsity
from rose.model.defaults import CHECK, CHECKED_AGAINST, COMPARED, DAMAGE, DECIDING, PAPERS, PRUNED, SMALLER, TUNING
from rose.model.settings import (
    ChosenLayers,
    Compute,
    Minutes,
    NamedSettings,
    PruneSettings,
    Seed,
    Target,
    TuneSettings,
    WalkSettings,
    check_target_damping,
)
from rose.recipe import parts as part
from rose.spec import Real, Spec, Whole, names_of, one_or_several, setting
from rose.structured.settings import RATIO, WHOLE_BLOCKS, SlimSettings

if TYPE_CHECKING:
    from torch import Tensor

DENSE = "the model before: packaged name, Hub id, folder or .gguf file"
Json = Annotated[part.File, setting("write all results to this file", changes=False, kept=False, flag="json")]


def _seeds(value: Any) -> Any:
    return names_of(str(value) if isinstance(value, int) and not isinstance(value, bool) else value)


class Analyze(ChosenLayers, SharedSettings, part.TextPart, part.ModelPart):
    """Which layers are columnar, and how order changes their error."""

    run: ClassVar[str] = "analyze"

    stream: part.Stream = False
    compute: Compute = "auto"
    methods: part.Methods = ("sparsegpt", "rose")
    split: Annotated[
        bool, setting("measure what of each error the mask costs, and what the sequence of the sweep; takes longer")
    ] = False
    output: Annotated[part.Output, setting("write report.json, layers.csv and layers.parquet")] | None = None

    @property
    def conditions(self) -> str:
        """A count of columnar layers depends on these, beside model and threshold."""
        return f"sparsity {self.sparsity}, blocks of {self.block_size}, {self.tokens}"


class Prune(part.ChangingPart, PruneSettings, part.TextPart, part.ModelPart):
    """Prune a model and save the checkpoint."""

    run: ClassVar[str] = "prune"

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
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


class Slim(part.ChangingPart, SlimSettings, part.TextPart, part.ModelPart):
    """Make a model smaller and faster: take heads, channels or decoder blocks out."""

    run: ClassVar[str] = "slim"

    ratio: Annotated[Real, setting("share of the decoder blocks' parameters to take out", gt=0, lt=1)] = RATIO
    target: Target | None = None
    prune: Annotated[Sparsity, setting("then prune what is left: a ratio, or N:M")] | None = None
    prune_method: Annotated[Method, setting(f"of --prune (default: {METHOD})")] | None = None

    def stages(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keywords of `rose.prune_structured`, and of `rose.prune_model` if any: a damping may apply to it alone."""
        target = self.target or "layer"
        damping = None if self.prune and target == "layer" else self.target_damping
        slimming = self.pick(SlimSettings.fields()) | {"target": target, "target_damping": damping}
        if not self.prune:
            return slimming, {}
        method = {"method": self.prune_method or METHOD, "sparsity": self.prune, "damping": self.damping}
        return slimming, method | {"target": self.target or "dense", "target_damping": self.target_damping}

    @model_validator(mode="after")
    def _check_slimming(self) -> Self:
        if self.prune is None and self.prune_method is not None:
            raise RoseError("--prune-method needs --prune SPARSITY; give it too, or leave --prune-method out.")
        if self.method == WHOLE_BLOCKS:
            also = () if self.prune else ("damping", "target")
            if options := self.given("parts", "allocation", "recovery", "multiple", *also):
                raise RoseError(f"depth drops whole decoder blocks as they are; leave out {options}.")
        elif self.prune is not None:
            pattern = parse_sparsity(self.prune)  # whose groups must divide the widths that are left
            if pattern.is_grouped and self.multiple % pattern.of:
                fitting = f"give --multiple {math.lcm(self.multiple, pattern.of)}"
                raise RoseError(f"--prune {pattern} needs widths divisible by {pattern.of}; {fitting}.")
        check_target_damping(self.target_damping, self.target or ("dense" if self.prune else "layer"))
        return self


class Tune(part.SavingPart, ChosenLayers, TuneSettings, part.TextPart):
    """Train the kept weights of a pruned model; its zeros stay."""

    run: ClassVar[str] = "tune"

    pruned: Annotated[
        part.Name, setting("folder of the pruned model, whoever pruned it", form="place", metavar="PRUNED", path=True)
    ]
    dense: Annotated[part.Name, setting(DENSE, metavar="DENSE", path=True)]
    parts: Annotated[
        Whole, setting("number of parts; the decoder blocks are tuned part by part, with less memory", ge=1)
    ] = 1
    unpruned: Annotated[bool, setting("allow a model without zeros")] = False
    dtype: part.Dtype = "auto"
    trust_remote_code: part.TrustRemoteCode = False
    calibration: Annotated[part.TextName, setting(f"text to train on: {part.TEXTS}")] = "packaged"
    samples: Annotated[part.Samples, setting("windows to train on")] = TUNING.samples
    length: part.Length = TUNING.length
    held_out: Annotated[part.HeldOut, setting("further windows that say which step is kept, 0: the last one")] = (
        TUNING.held_out
    )
    checkpoint: Annotated[
        part.Checkpoint | None, setting("keep weights and progress here; the same command resumes an interrupted run")
    ] = None


class Compare(WalkSettings, ChosenLayers, SharedSettings, part.TextPart, part.ModelPart):
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
        part.Methods,
        setting(
            "METHOD, or METHOD@ORDER/BUDGET to override what a sweep would do; :layer or :dense behind it "
            "gives it a target of its own"
        ),
    ] = COMPARED
    evaluate: Annotated[part.TextName, setting("measure perplexity on this text")]
    windows: part.Windows | None = None
    output: Annotated[part.Output, setting("rows and summaries; the same command resumes an interrupted run")]

    @cached_property
    def pattern(self) -> Pattern:
        """The first sparsity, parsed."""
        return parse_sparsity(self.sparsity[0])


class Damage(part.EvaluationPart, NamedSettings, part.TextPart, part.ModelPart):
    """How much a model's loss rises when one layer or decoder block alone is pruned."""

    run: ClassVar[str] = "damage"

    samples: part.Samples = DAMAGE.samples
    length: part.Length = DAMAGE.length
    held_out: part.HeldOut = DAMAGE.held_out
    order: ClassVar[None] = None  # type: ignore[misc]
    budget: ClassVar[None] = None  # type: ignore[misc]
    units: Annotated[Literal["layers", "blocks"], setting("what is pruned alone, one after another")] = "layers"
    restore: Annotated[
        part.Name | None,
        setting(
            "give the units of this pruned model the dense weights of --model back, instead of pruning",
            metavar="FOLDER",
            path=True,
        ),
    ] = None
    evaluate: Annotated[
        part.TextName | None, setting("measure loss on this text (default: the calibration text's held-out windows)")
    ] = None
    output: Annotated[part.Output, setting("rows.csv and summary.json; the same command resumes an interrupted run")]

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        options = self.given("sparsity", "method", "options", "block_size", "damping", "threshold")
        if self.restore is not None and options:
            raise RoseError(f"--restore restores dense weights instead of pruning; leave {options} out.")
        if self.evaluate is None and self.held_out < 1:
            raise RoseError("Measuring the loss needs windows: give --evaluate TEXT, or --held-out of at least 1.")
        return self


class CheckCopies(part.TextPart):
    """Compare a checkpoint with the dense model it was made from."""

    run: ClassVar[str] = "check"

    dense: Annotated[part.Name, setting(DENSE, form="place", metavar="DENSE", path=True)]
    pruned: Annotated[
        tuple[part.Name, ...],
        BeforeValidator(one_or_several),
        setting("one or more checkpoints made from it, named the same way", form="place", metavar="PRUNED", path=True),
    ]
    dtype: part.Dtype = "float32"  # which holds what either file holds
    trust_remote_code: part.TrustRemoteCode = False
    compute: Compute = "auto"
    stream: part.Stream = False
    calibration: Annotated[
        part.TextName | None,
        setting(f"text to measure errors on: {part.TEXTS} (default: none, judge by the weights alone)"),
    ] = None  # type: ignore[assignment]
    samples: part.Samples = CHECK.samples
    length: part.Length = CHECK.length
    held_out: part.HeldOut = CHECK.held_out
    methods: Annotated[part.Methods, setting("with --calibration, compare with these methods")] = CHECKED_AGAINST
    json_file: Json | None = None

    def windows(self, tokenizer: Any, tokens: Tensor, held_out: Tensor | None) -> Tensor:
        """The held-out windows for perplexity, and up to `DECIDING` more of the text; calibration windows, `tokens`,
        where it has no others."""
        import torch

        from rose.model.load.tokens import load_apart

        assert self.calibration is not None  # or there were no tokens
        drawn = [tokens] if held_out is None else [tokens, held_out]
        options = self.pick(("length", "seed", "bos")) | {"samples": DECIDING, "held_out": 1}
        with suppress(RoseError):  # the text is too short
            drawn.append(load_apart(self.calibration, tokenizer, **options, apart_from=torch.cat(drawn))[0])
        return torch.cat(drawn[1:] or drawn)

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        options = self.given("samples", "length", "seed", "held_out", "bos", "methods")
        if self.calibration is None and options:
            reason = "Without --calibration TEXT, a check looks at weights alone"
            raise RoseError(f"{reason}; give that too, or leave {options} out.")
        for method in self.methods:
            get_method(method)
        return self


class Evaluate(part.ModelPart):
    """Perplexity and zero-shot accuracy of a model."""

    run: ClassVar[str] = "evaluate"

    compute: Annotated[Compute, setting("number format of matrix products in forward passes, for --evaluate")] = (
        "float32"
    )
    evaluate: Annotated[part.TextName, setting(f"text to measure perplexity on: {part.TEXTS}")] | None = None
    length: part.Length = PAPERS.length
    windows: part.Windows | None = None
    bos: Annotated[
        Literal["auto", "always", "never"], setting("begin windows with the beginning-of-sequence token")
    ] = "auto"
    tasks: Annotated[
        tuple[str, ...] | None,
        BeforeValidator(lambda names: one_or_several(names) if names else names),
        setting("measure zero-shot accuracy on these tasks of lm-eval; none named: the usual seven", form="words"),
    ] = None
    task_folder: Annotated[
        part.Name | None,
        setting(
            "take tasks from the YAML files in this folder instead; tasks with code need --trust-remote-code too",
            metavar="FOLDER",
            path=True,
        ),
    ] = None
    limit: Annotated[Whole, setting("only the first N questions of each task", metavar="N", ge=1)] | None = None
    output: Annotated[part.File, setting("write the accuracies to this .csv file")] | None = None
    json_file: Json | None = None

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        if self.evaluate is None and self.tasks is None:
            raise RoseError("Say what to measure: --evaluate for perplexity, --tasks for zero-shot accuracy, or both.")
        options = self.given("windows", "length", "compute")
        if self.evaluate is None and options:
            raise RoseError(
                f"Only the perplexity on --evaluate uses {options}; give --evaluate too, or leave {options} out."
            )
        if self.tasks is None and self.output is not None:
            raise RoseError("--output is the .csv file for accuracies; give --tasks too, or leave --output out.")
        if self.tasks is None and (self.limit is not None or self.task_folder):
            raise RoseError("--limit and --task-folder need --tasks; give --tasks too, or leave them out.")
        return self


class Smaller(part.TextPart, part.ModelPart):
    """A table of ways to make a checkpoint smaller, measured here; writes the best one."""

    run: ClassVar[str] = "smaller"

    model: Annotated[
        part.Name, setting("packaged name, Hub id, folder or .gguf file", form="place", metavar="CHECKPOINT", path=True)
    ]
    samples: part.Samples = SMALLER.samples
    length: part.Length = SMALLER.length
    held_out: Annotated[part.HeldOut, setting("windows of each text that perplexity is measured on", ge=2)] = (
        SMALLER.held_out
    )
    second: Annotated[
        part.TextName | None,
        setting(f"a second text for perplexity: {part.TEXTS} (default: plain English that comes with rose)"),
    ] = None
    minutes: Annotated[Minutes, setting("how long to measure; 8 and 4 bits come first, and in any case")] = 20.0
    tune: Annotated[Minutes, setting("time for each tuned copy")] = 2.0
    write: Annotated[
        part.Name | None,
        setting(
            'the row to write: same-quality, half-the-bytes, twice-as-fast, or a row\'s key such as "bits-4" '
            "(default: the first of these goals that a row reaches)",
            metavar="ROW",
            changes=False,
        ),
    ] = None
    output: Annotated[part.Output, setting("table, record and the written copy; the same command resumes")]


STEPS: tuple[type[Spec], ...] = (Analyze, Prune, Slim, Tune, Compare, Damage, CheckCopies, Evaluate, Smaller)
