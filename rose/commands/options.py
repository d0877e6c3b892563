"""Options that several commands take, and what they stand for: a model, calibration tokens, windows, settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from torch import Tensor

import rose
from rose.commands import terminal
from rose.layer.methods import BUDGETS
from rose.layer.order import order_names
from rose.model.estimate.memory import Memory
from rose.model.load.models import DTYPES, parse_dtype
from rose.model.load.tokens import BOS, SOURCES, check_seed, load_calibration
from rose.model.network.precision import COMPUTE
from rose.model.run.allocation import ALLOCATIONS, DENSITY_SPREAD
from rose.model.run.settings import TARGETS, RunOptions
from rose.report import versions

TEXTS = f"{', '.join(SOURCES)}, or a .txt or .jsonl file"


def pick(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The options of these names."""
    return {name: getattr(options, name) for name in names}


def origin(options: argparse.Namespace) -> dict[str, Any]:
    """What a report says of where it comes from: model, text, by what command and with which programs."""
    names = ("model", "dtype", "calibration", "seed", "bos", "command")
    return pick(options, (name for name in names if name in options)) | {"made_with": versions()}


# ---- the model


def add_model(parser: argparse.ArgumentParser, *, stream: bool = False, compute: str | None = None) -> None:
    """`compute`: the default of --compute, where the command takes it."""
    add = parser.add_argument
    add("--model", default="smollm2-135m", help="packaged name, Hub id, folder or .gguf file (default: %(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="of the weights (default: %(default)s)")
    add("--trust-remote-code", action="store_true", help="run Python code from the model's repository")
    if stream:
        says = "read decoder blocks from safetensors files one at a time, for big models"
        add("--stream", action="store_true", help=says)
    if compute:
        says = "number format of matrix products in forward passes; auto: bfloat16 where this processor can"
        add("--compute", choices=COMPUTE, default=compute, help=f"{says} (default: %(default)s)")


def load(options: argparse.Namespace, console: Console, name: str | None = None, **more: Any) -> tuple[Any, Any]:
    """The model and its tokenizer; of another name, one that is read as this one."""
    if "seed" in options:
        check_seed(options.seed)
    more |= pick(options, (given for given in ("dtype", "trust_remote_code", "stream") if given in options))
    with console.status(escape(f"Loading {name or options.model}")):
        model, tokenizer = rose.load_model(name or options.model, **more)
    return model, tokenizer


def tell_memory(options: argparse.Namespace, estimate: Callable[..., Memory], model: Any, console: Console) -> None:
    """Prints the memory that a streamed run will need."""
    if not options.stream:
        return
    peak = estimate(
        model,
        samples=options.samples + options.held_out,
        length=options.length,
        dtype=parse_dtype(options.dtype),
        on_disk=getattr(options, "checkpoint", None) is not None,
        dense_targets=getattr(options, "target", "layer") == "dense",
        held_out=options.held_out > 0,
    ).peak
    console.print(f"Streaming: about {peak / 1e9:.1f} GB at the peak, besides Python and its libraries")


# ---- texts


def add_calibration(parser: argparse.ArgumentParser, *, seeds: bool = False) -> None:
    """`seeds`: several draws of windows, not one."""
    add = parser.add_argument
    add("--calibration", default="packaged", metavar="TEXT", help=f"{TEXTS} (default: packaged)")
    add("--samples", type=int, default=32, help="calibration windows (default: %(default)s)")
    add("--length", type=int, default=1024, help="tokens per window (default: %(default)s)")
    if seeds:
        add("--seeds", default="0,1,2", metavar="A,B", help="of the windows (default: %(default)s)")
    else:
        add("--seed", type=int, default=0, help="of the random windows (default: %(default)s)")
    says = "further windows to measure errors on, 0 for none (default: %(default)s)"
    add("--held-out", type=int, default=4, help=says)
    add_bos(parser)


def add_bos(parser: argparse.ArgumentParser) -> None:
    says = "begin windows with the beginning-of-sequence token: auto, where the tokenizer puts it in front of a"
    parser.add_argument("--bos", choices=BOS, default="auto", help=f"{says} user's text (default: %(default)s)")


def add_windows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--windows", type=int, help="evaluate only the first so many windows (default: all)")


def calibration(options: argparse.Namespace, tokenizer: Any, seed: int) -> tuple[Tensor, Tensor | None]:
    """Calibration and held-out windows, which do not overlap where the text is long enough."""
    sizes = pick(options, ("samples", "held_out", "length", "bos"))
    return load_calibration(options.calibration, tokenizer, seed=seed, **sizes)


def windows(options: argparse.Namespace, text: str, tokenizer: Any) -> Tensor:
    """The windows of a text to evaluate on."""
    sizes = {"samples": options.windows} | pick(options, ("length", "bos"))
    return rose.load_tokens(text, tokenizer, seed=None, split="test", **sizes)


def perplexity(model: Any, windows: Tensor, console: Console, what: str, compute: str = "float32") -> float:
    """Perplexity, with a progress bar."""
    with terminal.bar(console, what, total=len(windows)) as follow:
        return rose.perplexity(model, windows, compute=compute, progress=follow)


# ---- how to prune


def add_pruning(parser: argparse.ArgumentParser, sparsity: str = "0.7") -> None:
    add = parser.add_argument
    add("--sparsity", default=sparsity, help='ratio, or N:M such as "2:4" (default: %(default)s)')
    add("--layers", nargs="+", metavar="NAME", help="only these layers; * matches any part")
    add("--block-size", type=int, default=128, help="columns per block (default: %(default)s)")
    add("--damping", type=float, default=0.01, help="of the mean Hessian diagonal (default: %(default)s)")
    add("--threshold", type=float, default=0.5, help="columnar above this relative range (default: %(default)s)")


def run_options(options: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `rose.prune_model`: those of them that the command has, options of the method among them."""
    chosen = pick(options, (name for name in vars(options) if name in RunOptions.__optional_keys__))
    return chosen | ({"options": method_options(options.option)} if "option" in options else {})


def add_method(parser: argparse.ArgumentParser, default: str) -> None:
    says = f"{', '.join(rose.METHODS)} (default: %(default)s)"
    parser.add_argument("--method", default=default, help=says)


def add_order(parser: argparse.ArgumentParser) -> None:
    says = f"override the method's order: {', '.join(order_names())}, random:SEED"
    parser.add_argument("--order", help=says)
    parser.add_argument("--budget", choices=BUDGETS, help="override the method's budget")


def add_option(parser: argparse.ArgumentParser) -> None:
    says = "an option of the method, see `models`"
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=says)


def method_options(texts: Sequence[str]) -> dict[str, str]:
    """Reads NAME=VALUE; the method itself says which names and values it takes."""
    pairs = [text.partition("=") for text in texts]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise rose.RoseError(f"--option takes NAME=VALUE, not {name + equals + value!r}.")
    return {name.strip(): value.strip() for name, _, value in pairs}


def add_walk(parser: argparse.ArgumentParser) -> None:
    """How layers share the sparsity, and in what order and towards what they are pruned."""
    parser.add_argument(
        "--allocation",
        default="uniform",
        metavar="RULE",
        help=f"how layers share the sparsity: {', '.join(ALLOCATIONS)}; sensitivity:ALPHA sets how far layers may "
        f"differ, sensitivity is sensitivity:{DENSITY_SPREAD:g}; damage:FOLDER goes by what `rose damage` has measured "
        "(default: %(default)s)",
    )
    add_target(parser, "dense", "dense")
    parser.add_argument(
        "--true-sequential",
        action="store_true",
        help="with target layer, calibrate each layer on the pruned ones before it in its decoder block, as dense "
        "always does; faster, for more memory",
    )
    parser.add_argument(
        "--min-expert-tokens",
        type=int,
        default=1,
        metavar="N",
        help="leave experts dense that fewer calibration tokens are routed to (default: %(default)s)",
    )


def add_target(parser: argparse.ArgumentParser, default: str | None, says: str) -> None:
    parser.add_argument(
        "--target",
        choices=TARGETS,
        default=default,
        help="what each layer is to put out: what the dense model does there, or, as in the papers, what its own "
        f"weights do on the pruned inputs (default: {says})",
    )
    parser.add_argument(
        "--target-damping",
        type=float,
        metavar="MU",
        help="of the correction towards the dense model, relative to the mean Hessian diagonal (default: by the "
        "numbers of tokens and of decoder blocks to prune)",
    )


# ---- lists


def split(text: str, option: str) -> list[str]:
    """The parts of A,B,C, each once."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise rose.RoseError(f"{option} names nothing; give at least one, or leave it out.")
    return list(dict.fromkeys(parts))
