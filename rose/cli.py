"""Command line: python -m rose models | analyze | prune | slim | compare | damage | evaluate | report | diffuse | app.

Exit status: 0 done, 2 bad input (one line that says what and what to do), 130 cancelled. What the commands do is in
`commands`.
"""

from __future__ import annotations

import argparse
import io
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from rich.console import Console

import rose
from rose import commands
from rose.diffusion import commands as diffusion
from rose.layer.methods import BUDGETS
from rose.layer.order import order_names
from rose.model.load.models import DTYPES
from rose.model.load.tokens import BOS, SOURCES
from rose.model.measure.damage import UNITS
from rose.model.measure.zero_shot import TASKS
from rose.model.network.precision import COMPUTE, DEFAULT
from rose.model.run.allocation import ALLOCATIONS, DENSITY_SPREAD
from rose.model.run.settings import TARGETS
from rose.model.workers import choose_gpu, launched_place, process_group
from rose.structured.allocation import ALLOCATIONS as SLIM_ALLOCATIONS
from rose.structured.parts import PARTS
from rose.structured.problem import RECOVERIES


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    rank, processes = launched_place()
    console = Console(stderr=True, quiet=rank > 0, markup=False)  # progress and remarks; results go to standard output
    name = "rose" if processes == 1 else f"rose, process {rank + 1} of {processes}"
    options = argparse.Namespace()
    try:
        choose_gpu()
        rose.load_plugins()  # first, because help texts list methods and orders
        options = _parser().parse_args(arguments)
        options.command = shlex.join(["rose", *(sys.argv[1:] if arguments is None else arguments)])  # for the report
        with process_group() if options.divided else nullcontext(), _silence() if rank > 0 else nullcontext():
            options.run(options, console)
    except rose.RoseError as problem:
        said = Console(stderr=True)
        said.print(f"{name}: {problem}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        kept = getattr(options, "checkpoint", None) or getattr(options, "rows", None)
        left = f"the same command resumes from {kept}" if kept else "nothing was written"
        console.print(f"rose: cancelled; {left}", highlight=False, soft_wrap=True)
        return 130
    return 0


def _silence() -> redirect_stdout:
    """For all but the first of several processes, which prints the results."""
    return redirect_stdout(io.StringIO())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rose", description="One-shot pruning of language models, and its analysis.")
    parser.set_defaults(divided=False)  # whether the processes of a launcher work on one thing together
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    models = subparsers.add_parser(
        "models", help="list the models that work offline, the pruning methods and the orders"
    )
    models.set_defaults(run=commands.models)

    analyze = subparsers.add_parser("analyze", help="which layers are columnar, and how order changes their error")
    _model_options(analyze)
    _stream_option(analyze)
    _compute_option(analyze)
    _calibration_options(analyze)
    _pruning_options(analyze)
    analyze.add_argument(
        "--methods", default="sparsegpt,rose", metavar="A,B", help="methods to compare (default: %(default)s)"
    )
    analyze.add_argument("--output", type=Path, metavar="FOLDER", help="write report.json, layers.csv, layers.parquet")
    analyze.set_defaults(run=commands.analyze, divided=True)

    prune = subparsers.add_parser("prune", help="prune a model and save the checkpoint")
    _model_options(prune)
    _stream_option(prune)
    _compute_option(prune)
    _calibration_options(prune)
    _pruning_options(prune)
    prune.add_argument("--method", default=rose.RECOMMENDED, help=f"{', '.join(rose.METHODS)} (default: %(default)s)")
    prune.add_argument("--order", help=f"override the method's order: {', '.join(order_names())}, random:SEED")
    prune.add_argument("--budget", choices=BUDGETS, help="override the method's budget")
    prune.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the method, see `models`"
    )
    _walk_options(prune)
    prune.add_argument("--evaluate", metavar="TEXT", help="measure perplexity on this text before and after")
    _window_options(prune)
    prune.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="new folder for the checkpoint")
    _checkpoint_option(prune)
    prune.set_defaults(run=commands.prune, divided=True)

    slim = subparsers.add_parser("slim", help="make a model smaller and faster: take heads, channels or blocks out")
    _model_options(slim)
    _stream_option(slim)
    _calibration_options(slim)
    slim.add_argument("--method", default="obs", help=f"{', '.join(rose.STRUCTURED)} (default: %(default)s)")
    slim.add_argument(
        "--ratio", type=float, default=0.2, help="share of the decoder blocks' parameters (default: %(default)s)"
    )
    slim.add_argument("--parts", nargs="+", choices=PARTS, help="what may go (default: all that the model offers)")
    slim.add_argument(
        "--allocation",
        choices=SLIM_ALLOCATIONS,
        default="uniform",
        help="uniform shapes load everywhere; the others only with rose (default: %(default)s)",
    )
    slim.add_argument("--recovery", choices=RECOVERIES, help="override how the method repairs what stays")
    slim.add_argument(
        "--damping", type=float, default=0.01, help="of the mean diagonal of the inputs (default: %(default)s)"
    )
    slim.add_argument(
        "--multiple", type=int, default=8, help="kept channels are a multiple of this (default: %(default)s)"
    )
    _target_options(slim, None, "layer; dense for what --prune does then")
    slim.add_argument("--prune", metavar="SPARSITY", help="then prune what is left: a ratio, or N:M")
    slim.add_argument("--prune-method", metavar="METHOD", help=f"by this (default: {rose.RECOMMENDED})")
    slim.add_argument("--evaluate", metavar="TEXT", help="measure perplexity on this text before and after")
    _window_options(slim)
    slim.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="new folder for the checkpoint")
    _checkpoint_option(slim)
    slim.set_defaults(run=commands.slim, divided=True)

    compare = subparsers.add_parser("compare", help="compare methods over sparsities and calibration seeds")
    _model_options(compare)
    _compute_option(compare)
    _calibration_options(compare, seeds=True)
    _pruning_options(compare, sparsity="0.5,0.6,0.7")
    compare.add_argument(
        "--methods",
        default=f"magnitude,wanda,sparsegpt,rose,rose_global,{rose.RECOMMENDED}",
        metavar="A,B",
        help="METHOD, or METHOD@ORDER/BUDGET to override what a sweep would do; with :layer or :dense behind it for a "
        "target of its own (default: %(default)s)",
    )
    _walk_options(compare)
    compare.add_argument("--evaluate", required=True, metavar="TEXT", help="measure perplexity on this text")
    _window_options(compare)
    compare.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="rows and summaries; the same command resumes an interrupted run",
    )
    compare.set_defaults(run=commands.compare)

    damage = subparsers.add_parser("damage", help="what the model loses by each layer or decoder block alone")
    _model_options(damage)
    _calibration_options(damage)
    _pruning_options(damage)
    damage.add_argument("--method", default="rose", help=f"{', '.join(rose.METHODS)} (default: %(default)s)")
    damage.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the method, see `models`"
    )
    damage.add_argument(
        "--units", choices=UNITS, default="layers", help="prune layers or decoder blocks alone (default: %(default)s)"
    )
    damage.add_argument(
        "--restore",
        metavar="FOLDER",
        help="give the units of this pruned model the dense weights of --model back, instead of pruning",
    )
    damage.add_argument(
        "--evaluate",
        metavar="TEXT",
        help="measure loss on this text (default: the calibration text's held-out windows)",
    )
    _window_options(damage)
    damage.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="rows.csv and summary.json; the same command resumes an interrupted run",
    )
    damage.set_defaults(run=commands.damage, samples=16, length=512, held_out=8)

    evaluate = subparsers.add_parser("evaluate", help="perplexity and zero-shot accuracy of a model")
    _model_options(evaluate)
    _compute_option(evaluate, "float32")
    evaluate.add_argument("--text", metavar="TEXT", help=f"measure perplexity on it: {_text_help()}")
    evaluate.add_argument("--length", type=int, default=2048, help="tokens per window (default: %(default)s)")
    _window_options(evaluate)
    _bos_option(evaluate)
    evaluate.add_argument(
        "--tasks",
        nargs="*",
        metavar="TASK",
        help=f"measure zero-shot accuracy on these tasks of lm-eval; none named: {', '.join(TASKS)}",
    )
    evaluate.add_argument("--task-folder", metavar="FOLDER", help="take tasks from the YAML files in it instead")
    evaluate.add_argument("--limit", type=int, metavar="N", help="only the first N questions of each task")
    evaluate.add_argument("--output", type=Path, metavar="FILE.csv", help="write the accuracies there")
    evaluate.set_defaults(run=commands.evaluate)

    report = subparsers.add_parser("report", help="write a finished run, or two side by side, as one HTML file")
    report.add_argument("folders", nargs="+", metavar="FOLDER", help="that analyze, prune or slim has written")
    report.add_argument("--output", type=Path, required=True, metavar="FILE.html", help="needs no network to be read")
    report.set_defaults(run=commands.report)

    diffusion.add_parser(subparsers)

    app = subparsers.add_parser("app", help="open the app in a browser")
    app.add_argument("--port", type=int, default=8501, help="on this machine (default: %(default)s)")
    app.set_defaults(run=commands.app)
    return parser


def _text_help() -> str:
    return f"{', '.join(SOURCES)}, or a .txt or .jsonl file"


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="smollm2-135m",
        help="packaged name, Hub id, folder or .gguf file (default: %(default)s)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default: %(default)s)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code from the model's repository")


def _compute_option(parser: argparse.ArgumentParser, default: str = DEFAULT) -> None:
    parser.add_argument(
        "--compute",
        choices=COMPUTE,
        default=default,
        help="number format of matrix products in forward passes; auto: bfloat16 where this processor gains from it "
        "(default: %(default)s)",
    )


def _stream_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stream", action="store_true", help="read decoder blocks from safetensors files one at a time, for big models"
    )


def _checkpoint_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="keep finished decoder blocks here; the same command resumes an interrupted run",
    )


def _calibration_options(parser: argparse.ArgumentParser, seeds: bool = False) -> None:
    parser.add_argument("--calibration", default="packaged", metavar="TEXT", help=f"{_text_help()} (default: packaged)")
    parser.add_argument("--samples", type=int, default=32, help="calibration windows (default: %(default)s)")
    parser.add_argument("--length", type=int, default=1024, help="tokens per window (default: %(default)s)")
    if seeds:
        parser.add_argument("--seeds", default="0,1,2", metavar="A,B", help="of the windows (default: %(default)s)")
    else:
        parser.add_argument("--seed", type=int, default=0, help="of the random windows (default: %(default)s)")
    parser.add_argument(
        "--held-out",
        type=int,
        default=4,
        help="further windows to measure errors on, 0 for none (default: %(default)s)",
    )
    _bos_option(parser)


def _bos_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bos",
        choices=BOS,
        default="auto",
        help="begin windows with the beginning-of-sequence token: auto, where the tokenizer puts it in front of a "
        "user's text (default: %(default)s)",
    )


def _pruning_options(parser: argparse.ArgumentParser, sparsity: str = "0.7") -> None:
    parser.add_argument("--sparsity", default=sparsity, help='ratio, or N:M such as "2:4" (default: %(default)s)')
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="only these layers; * matches any part")
    parser.add_argument("--block-size", type=int, default=128, help="columns per block (default: %(default)s)")
    parser.add_argument(
        "--damping", type=float, default=0.01, help="of the mean Hessian diagonal (default: %(default)s)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="columnar above this relative range (default: %(default)s)"
    )


def _walk_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allocation",
        default="uniform",
        metavar="RULE",
        help=f"how layers share the sparsity: {', '.join(ALLOCATIONS)}; sensitivity:ALPHA sets how far layers may "
        f"differ, sensitivity is sensitivity:{DENSITY_SPREAD:g}; damage:FOLDER goes by what `rose damage` has measured "
        "(default: %(default)s)",
    )
    _target_options(parser, "dense", "dense")
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


def _target_options(parser: argparse.ArgumentParser, default: str | None, says: str) -> None:
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


def _window_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--windows", type=int, help="evaluate only the first so many windows (default: all)")
