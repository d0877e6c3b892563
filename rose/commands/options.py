"""Options that several commands take, and what they stand for: a model, calibration tokens, windows, settings."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from torch import Tensor

import rose
from rose.commands import terminal
from rose.environment import versions
from rose.files import expand, reachable
from rose.layer.defaults import BITS, BLOCK_SIZE, BUDGETS, DAMPING, GROUPS, METHOD, SPARSITY, THRESHOLD
from rose.layer.methods import Settings
from rose.layer.registry import order_names
from rose.model.defaults import ALLOCATIONS, BOS, COMPUTE, DENSITY_SPREAD, OFFLINE, PRUNING, SOURCES, STORED, TARGETS
from rose.model.estimate.duration import estimate_cost, sweeps_of
from rose.model.estimate.memory import Memory, check_free, largest
from rose.model.load.models import DTYPES, PACKAGED, parse_dtype, read_as, stored_dtype
from rose.model.load.tokens import check_calibration, check_seed, check_text, check_windows, load_calibration, text_file
from rose.model.measure.perplexity import window_losses
from rose.model.network.network import Network
from rose.model.network.precision import DEFAULT as AUTO
from rose.model.network.precision import name_of
from rose.model.run.rotation import check_samples, rotate_heads
from rose.model.run.settings import RunOptions
from rose.model.workers import Workers
from rose.structured.defaults import PARTS, RECOVERIES
from rose.structured.plan import SlimSettings
from rose.verdicts import mean_ratio
from rose.wording import duration, listing, size

logger = logging.getLogger(__name__)

DEFAULT = "(default: %(default)s)"
LONG = 10.0  # seconds from which on a run is told how long it will take
COVARIANCE = (
    f"added to the inputs' covariance, as a share of its mean diagonal {DEFAULT}"  # damping, of units taken out
)
TARGET = (
    "what each layer is fitted to: dense, the dense model's output at that place; layer, as in the papers, its own "
    "dense output on the pruned inputs"
)
TEXTS = f"{', '.join(SOURCES)}, or a .txt or .jsonl file"
# Groups of options, to be added by `add`.
MODEL = "model dtype trust-remote-code"
TEXT = "calibration samples length seed held-out bos"
SWEEP = "sparsity layers block-size damping threshold"
WALK = "allocation target target-damping true-sequential min-expert-tokens"
TEXT_OPTIONS = ("calibration", "evaluate", "text")
CHECKPOINT = "evaluate windows output checkpoint"


def _known() -> dict[str, dict[str, Any]]:
    """Every option that several commands take; made when it is asked for, as plugins add methods and orders."""
    known: dict[str, dict[str, Any]] = {}

    def one(name: str, says: str, **more: Any) -> None:
        kind = type(more.get("default"))
        known[name] = {"help": says, **({"type": kind} if kind in (int, float) else {}), **more}

    one("model", f"packaged name, Hub id, folder or .gguf file {DEFAULT}", default=OFFLINE)
    says = "number format of the weights, and of a copy's; auto: bfloat16 for a checkpoint in it where this machine"
    one("dtype", f"{says} computes in it, else float32 {DEFAULT}", choices=(STORED, *DTYPES), default=STORED)
    one("trust-remote-code", "run Python code from the model's repository", action="store_true")
    says = "read decoder blocks from safetensors files one at a time, for big models"
    one("stream", says, action="store_true")
    says = "number format of matrix products in forward passes; auto: bfloat16 where this processor can"
    one("compute", f"{says} {DEFAULT}", choices=COMPUTE, default=AUTO)
    one("calibration", f"{TEXTS} {DEFAULT}", default="packaged", type=absolute, metavar="TEXT")
    one("samples", f"calibration windows {DEFAULT}", default=PRUNING.samples)
    one("length", f"tokens per window {DEFAULT}", default=PRUNING.length)
    one("seed", f"seed of the random choice of windows {DEFAULT}", default=0)
    one("held-out", f"further windows to measure errors on, 0 for none {DEFAULT}", default=PRUNING.held_out)
    says = "begin windows with the beginning-of-sequence token: auto, where the tokenizer puts it in front of a user's"
    one("bos", f"{says} text {DEFAULT}", choices=BOS, default="auto")
    one("sparsity", f'ratio, or N:M such as "2:4" {DEFAULT}', default=str(SPARSITY))
    one("layers", "only these layers, last of all options; * matches any part, in quotes", nargs="+", metavar="NAME")
    one("block-size", f"columns per block {DEFAULT}", default=BLOCK_SIZE)
    one("damping", f"added to the Hessian's diagonal, as a share of its mean {DEFAULT}", default=DAMPING)
    says = "round kept weights to this many bits, on a grid with an exact zero; see docs/shipping.md"
    one("bits", f"{says} (default: no rounding)", type=int, choices=BITS)
    one("group", "input columns that share a scale (default: 64)", choices=[str(one) for one in GROUPS])
    one("threshold", f"a layer is columnar above this relative range {DEFAULT}", default=THRESHOLD)
    says = "rotate attention heads first, where that lowers the error of their output projection; the model's output "
    says += "does not change"
    one("rotate", says, choices=("heads",))
    one("method", f"{', '.join(rose.METHODS)} {DEFAULT}", default=METHOD)
    one("order", f"override the method's order: {', '.join(order_names())}, random:SEED")
    one("budget", "override the method's budget", choices=BUDGETS)
    one("option", "an option of the method, see `models`", action="append", default=[], metavar="NAME=VALUE")
    says = (
        f"how layers share the sparsity: {', '.join(ALLOCATIONS)}; sensitivity:ALPHA sets how far layers may differ, "
    )
    says += f"sensitivity is sensitivity:{DENSITY_SPREAD:g}; damage:FOLDER goes by what `rose damage` has measured"
    one("allocation", f"{says} {DEFAULT}", default="uniform", metavar="RULE")
    one("target", f"{TARGET} {DEFAULT}", choices=TARGETS, default="dense")
    says = "damping of the correction towards the dense model, as a share of the mean Hessian diagonal (default: by the"
    one("target-damping", f"{says} numbers of tokens and of decoder blocks to prune)", type=float, metavar="MU")
    says = (
        "with target layer, calibrate each layer once those before it in its decoder block are pruned, as target dense"
    )
    one("true-sequential", f"{says} always does; faster, but needs more memory", action="store_true")
    says = f"leave an expert dense if fewer calibration tokens than this are routed to it {DEFAULT}"
    one("min-expert-tokens", says, default=1, metavar="N")
    one("ratio", f"share of their parameters to take out {DEFAULT}", default=SlimSettings.ratio)
    one("parts", "what may be taken out (default: both)", nargs="+", choices=PARTS)
    one("recovery", "override how the method repairs what stays", choices=RECOVERIES)
    one("multiple", f"kept channels are a multiple of this {DEFAULT}", default=SlimSettings.multiple)
    one("evaluate", "measure perplexity on this text before and after", type=absolute, metavar="TEXT")
    one("windows", "evaluate on the first N windows only (default: all)", type=int, metavar="N")
    says = "then train the kept weights for so many minutes, zeros stay; see `rose tune`"
    one("tune", says, type=float, metavar="MINUTES")
    one("output", "new folder for the checkpoint", type=expand, required=True, metavar="FOLDER")
    says = "keep finished decoder blocks here; the same command resumes an interrupted run"
    one("checkpoint", says, type=expand, metavar="DIR")
    return known


def add(parser: argparse.ArgumentParser, names: str, **changes: Any) -> None:
    """Adds options that several commands take, by their names; `changes` are of what `add_argument` is told."""
    known = _known()
    for name in names.split():
        parser.add_argument(f"--{name}", **known[name] | changes)


def pick(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The options of these names."""
    return {name: getattr(options, name) for name in names}


def changed(options: argparse.Namespace, usual: Mapping[str, Any]) -> list[str]:
    """The options, as one writes them, that have another value than the usual one."""
    return [f"--{name.replace('_', '-')}" for name, value in usual.items() if getattr(options, name) != value]


def absolute(name: str) -> str:
    """A text or model as it is known in every folder: a file or folder on this disk by its whole path."""
    if name in SOURCES or name in PACKAGED or not reachable(name).exists():
        return name
    whole = expand(name).absolute()
    plain = Path(os.path.normpath(whole))
    return str(plain if plain.exists() and plain.samefile(whole) else whole)  # behind a link, .. may lead elsewhere


def absolutes(options: argparse.Namespace, names: str) -> dict[str, str]:
    """Those of these options that are given, each as `absolute`: a folder that holds them is read from anywhere."""
    return {name: absolute(given) for name in names.split() if (given := getattr(options, name, None)) is not None}


def origin(options: argparse.Namespace) -> dict[str, Any]:
    """What a report says of where it comes from: model, text, by what command and with which programs."""
    names = ("model", "dtype", "calibration", "seed", "bos", "rotate", "command", "text_cautions")
    known = pick(options, (name for name in names if name in options)) | {"made_with": versions()}
    return known | absolutes(options, "model")


def load(options: argparse.Namespace, console: Console, name: str | None = None, **more: Any) -> tuple[Any, Any]:
    """The model and its tokenizer; of another name, one that is read as this one. Texts and their windows are checked
    first, and at once whether the model takes windows so long."""
    _check_texts(options)
    settle_dtype(options, name or options.model)
    more |= pick(options, (given for given in ("dtype", "trust_remote_code", "stream") if given in options))
    with console.status(escape(f"Loading {name or options.model}")):
        model, tokenizer = rose.load_model(name or options.model, **more)
    if "length" in options and any(getattr(options, text, None) is not None for text in TEXT_OPTIONS):
        Network(model).check_length(options.length)
    return model, tokenizer


def settle_dtype(options: argparse.Namespace, name: str) -> None:
    """Puts the number format that this model is read in where --dtype leaves it open, in the first process for all."""
    if options.dtype == STORED:
        options.dtype = name_of(Workers.here().from_first(lambda: read_as(STORED, stored_dtype(name))))


def _check_texts(options: argparse.Namespace) -> None:
    """Raises RoseError for a text that there is not, and for numbers of windows that cannot be."""
    if "seed" in options:
        check_seed(options.seed)
    for text in TEXT_OPTIONS:
        if (given := getattr(options, text, None)) is not None:
            text_file(given)
    if "held_out" in options:
        check_calibration(options.samples, options.held_out, options.length)
        if options.calibration is not None and "epochs" not in options:  # `tune` makes do with two windows
            check_text(options.calibration, options.held_out, options.length)
        if getattr(options, "rotate", None):
            check_samples(options.samples)
    if getattr(options, "evaluate", "") is None and options.windows is not None:
        raise rose.RoseError("--windows counts those of --evaluate; give that too, or leave it out.")
    if "windows" in options:
        check_windows(options.windows, options.length)


def tell_cost(
    options: argparse.Namespace,
    what: str,
    seconds: float,
    estimates: Sequence[Callable[..., Memory]],
    model: Any,
    console: Console,
    *,
    besides: int = 0,
) -> None:
    """Prints what a long run, or one that streams, will take, and what is not counted.

    Args:
        seconds: of one process.
        estimates: of memory, of which the largest counts; none where it is not told.
        besides: bytes that the run takes whatever the estimate.

    Raises:
        RoseError: that much memory is not free.
    """
    left_out = _not_counted(options)
    is_long = seconds >= (LONG / 10 if left_out else LONG) and Workers.here().count == 1
    taken = [duration(seconds)] if is_long else []
    if estimates:
        given = drawn_sizes(options) | {"dtype": parse_dtype(options.dtype), "held_out": options.held_out > 0}
        given["on_disk"] = getattr(options, "checkpoint", None) is not None
        most = largest(estimate(model, **given) for estimate in estimates)
        streams = getattr(options, "stream", False)
        needed = besides + (most.peak if streams else most.besides_weights)
        where = "at the peak, besides Python and its libraries" if streams else "besides the model"
        if Network(model).device.type == "cpu" and Workers.here().count == 1:
            advice = "give fewer --samples, a shorter --length, or a larger machine"
            check_free(f"{what} takes, {where}, about", needed, advice)
        if is_long or streams:
            taken.append(f"{size(needed)} {where}")
    if taken:
        but = _but(options, left_out) if is_long else ""
        console.print(f"{what}: about {' and '.join(taken)}, by estimate{but}", soft_wrap=True)


def _not_counted(options: argparse.Namespace) -> list[str]:
    """What a run does that its estimate of time leaves out."""
    given = vars(options)
    does = {
        "finding outliers": given.get("allocation") == "owl",
        "measuring sensitivities": str(given.get("allocation")).startswith("sensitivity"),
        "rotating heads": given.get("rotate"),
        "measuring perplexity": "tune" in given and given.get("evaluate"),  # `damage` and `compare` count it
        "tuning": given.get("tune"),
    }
    return [what for what, is_done in does.items() if is_done]


def _but(options: argparse.Namespace, left_out: Sequence[str]) -> str:
    """What an estimate leaves out, and whether an interrupted run has done some of it."""
    kept = getattr(options, "rows", getattr(options, "checkpoint", None))
    begun = kept is not None and any(found for name in ("rows.csv", "block-*") for found in kept.glob(name))
    counted = f" without {listing(left_out, len(left_out))}" if left_out else ""
    return counted + (f"; less, as {kept} holds some of it already" if begun else "")


def pruning_seconds(options: argparse.Namespace, model: Any, method: str, target: str) -> float:
    """How long pruning by this method will take, by estimate."""
    passes = 1 if options.true_sequential and target != "dense" else 2
    sizes = drawn_sizes(options) | pick(options, ("layers", "compute"))
    sweeps = sweeps_of([method], options.bits)
    return estimate_cost(model, sweeps=sweeps, passes=passes, target=target, **sizes).seconds


def drawn_sizes(options: argparse.Namespace) -> dict[str, Any]:
    """How much text will be read for calibration, as estimates take it: held-out windows, too."""
    return {"samples": options.samples + options.held_out, "length": options.length}


def calibration(options: argparse.Namespace, tokenizer: Any, seed: int) -> tuple[Tensor, Tensor | None]:
    """Calibration and held-out windows, which do not overlap where the text is long enough; else the log and `origin`
    say so."""
    sizes = pick(options, ("samples", "held_out", "length", "bos"))
    options.text_cautions = []

    def warn(said: str) -> None:
        logger.warning(said)
        options.text_cautions.append(said)

    return load_calibration(options.calibration, tokenizer, seed=seed, warn=warn, **sizes)


def rotate(
    options: argparse.Namespace, model: Any, tokens: Tensor, settings: Sequence[Settings], console: Console
) -> None:
    """Rotates heads where that is asked for and lowers the errors of these settings' methods; says where it did."""
    if not options.rotate:
        return
    sizes = pick(options, ("layers", "compute"))
    with terminal.bar(console, "Rotating heads") as follow:
        tried = rotate_heads(model, tokens, by=settings, progress=follow, **sizes)
    turned = tried[tried["rotated"]]
    said = f"Rotated the heads of {len(turned)} of {len(tried)} output projections; the model's output is unchanged."
    if (ratio := mean_ratio(turned["error"], turned["rotated_error"])) is not None:
        said += " On calibration samples kept back for this test, their error is on average "
        said += f"{ratio.value:.3f} times that before."
    console.print(said, soft_wrap=True)


def windows(options: argparse.Namespace, text: str, tokenizer: Any) -> Tensor:
    """The windows of a text to evaluate on."""
    sizes = {"samples": options.windows} | pick(options, ("length", "bos"))
    return rose.load_tokens(text, tokenizer, seed=None, split="test", **sizes)


def losses(model: Any, windows: Tensor, console: Console, what: str, compute: str = "float32") -> Tensor:
    """`window_losses`, with a progress bar."""
    with terminal.bar(console, what, total=len(windows)) as follow:
        return window_losses(model, windows, compute=compute, progress=follow)


def run_options(options: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `rose.prune_model`: those of them that the command has, options of the method among them."""
    chosen = pick(options, (name for name in vars(options) if name in RunOptions.__optional_keys__))
    return chosen | ({"options": method_options(options.option)} if "option" in options else {})


def method_options(texts: Sequence[str]) -> dict[str, str]:
    """Reads NAME=VALUE; the method itself says which names and values it takes."""
    pairs = [text.partition("=") for text in texts]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise rose.RoseError(f"--option takes NAME=VALUE, not {name + equals + value!r}.")
    return {name.strip(): value.strip() for name, _, value in pairs}


def split(text: str, option: str) -> list[str]:
    """The parts of A,B,C, each once."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise rose.RoseError(f"{option} names nothing; give at least one, or leave it out.")
    return list(dict.fromkeys(parts))
