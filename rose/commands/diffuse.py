"""`rose diffuse prune | slim | sample | evaluate`: a diffusion model pruned, made smaller, drawn with, measured."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

import rose
from rose.commands import options as shared
from rose.commands import terminal
from rose.diffusion.calibration import check_packages
from rose.diffusion.evaluation import PICTURES, check_garments, check_pictures, classes_in_turn, is_garments
from rose.diffusion.garments import GARMENTS
from rose.diffusion.loading import PACKAGED, check_installed
from rose.diffusion.pictures import write_sheet
from rose.diffusion.pruning import SPARSITY
from rose.diffusion.steps import PACKAGES, STEP_WEIGHTS, STEPS, WEIGHTS, check_steps
from rose.diffusion.trajectory import Conditions
from rose.files import expand
from rose.layer.defaults import BLOCK_SIZE
from rose.layer.methods import make_settings
from rose.model.load.models import DTYPES
from rose.model.network.residence import pick_device
from rose.output import check_file, check_output, write_file
from rose.rows import finite
from rose.structured.plan import SlimSettings
from rose.wording import count, percent, whole

PER_ROW = 10  # pictures in a sheet


def add_parser(commands: Any) -> None:
    """Adds `diffuse` and its commands."""
    diffuse = commands.add_parser("diffuse", help="prune a diffusion model, draw with it, measure it")
    own = diffuse.add_subparsers(action=type(commands), required=True, metavar="prune | slim | sample | evaluate")

    parser = own.add_parser("prune", help="prune a pipeline's transformer or UNet and save the pipeline")
    add = parser.add_argument
    _add_drawing(parser)
    shared.add(parser, "method")
    shared.add(parser, "sparsity", default=str(SPARSITY))
    _add_calibration(parser)
    shared.add(parser, "layers")
    add("--block-size", type=int, help=f"columns per block (default: {BLOCK_SIZE}, fewer in a small model)")
    shared.add(parser, "damping threshold order budget option")
    shared.add(parser, "output", help="new folder for the pipeline")
    parser.set_defaults(run=prune)

    parser = own.add_parser("slim", help="make a transformer smaller: take heads and channels out")
    _add_drawing(parser)
    of_parts = [name for name, one in rose.STRUCTURED.items() if one.select is not None]
    shared.add(parser, "method", default=SlimSettings.method, help=f"{', '.join(of_parts)} {shared.DEFAULT}")
    shared.add(parser, "ratio")
    _add_calibration(parser)
    shared.add(parser, "parts recovery")
    shared.add(parser, "damping", help=shared.COVARIANCE)
    shared.add(parser, "multiple")
    shared.add(parser, "output", help="new folder for the pipeline")
    parser.set_defaults(run=slim)

    parser = own.add_parser("sample", help="draw pictures into a PNG file")
    add = parser.add_argument
    _add_drawing(parser)
    add("--classes", metavar="A,B", help=f"of the packaged model: {', '.join(GARMENTS)}")
    add("--prompts", type=expand, metavar="FILE.txt", help="what to draw, one prompt a line")
    add("--count", type=int, default=10, help="pictures, classes in turn (default: %(default)s)")
    add("--beside", metavar="MODEL", help="draw the same from the same noise in a row above")
    add("--output", type=expand, required=True, metavar="FILE.png")
    parser.set_defaults(run=sample)

    parser = own.add_parser("evaluate", help="drift, denoising loss and Fréchet distance (packaged model)")
    add = parser.add_argument
    _add_drawing(parser)
    add("--dense", default=PACKAGED, metavar="MODEL", help="to measure the drift from (default: %(default)s)")
    add("--count", type=int, default=PICTURES, help="pictures (default: %(default)s)")
    add("--output", type=expand, metavar="FILE.json", help="write the scores to this file")
    parser.set_defaults(run=evaluate)


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default=PACKAGED, help="packaged name, Hub id or folder (default: %(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="number format of the weights (default: %(default)s)")
    add("--steps", type=int, default=STEPS, help="denoising steps (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    add("--guidance", type=float, help="guidance scale (default: the pipeline's own)")


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    says = "how much each denoising step counts (default: %(default)s)"
    add("--step-weights", choices=STEP_WEIGHTS, default=WEIGHTS, help=says)
    says = "groups of layers, pruned one after another (default: %(default)s)"
    add("--packages", type=int, default=PACKAGES, help=says)
    add("--prompts", type=expand, metavar="FILE.txt", help="calibration prompts, one a line")
    add("--samples", type=int, default=50, help="calibration pictures (default: %(default)s)")


def prune(options: argparse.Namespace, console: Console) -> None:
    chosen = shared.run_options(options)
    make_settings(**chosen | {"block_size": options.block_size or BLOCK_SIZE})
    report = _changed(options, console, "Pruning", rose.prune_diffusion, chosen | {"layers": options.layers})
    terminal.print_table(report.layers[["layer", "sparsity", "relative_range", "relative_error"]], "Layers")
    terminal.say(*report.remarks)
    summary = report.summary
    convolutions = summary["convolutions_left_dense"]
    terminal.say(
        f"{summary['layers']} layers, {100 * summary['removed_fraction']:.1f} % of their weights removed, "
        f"mean relative error {summary['mean_relative_error']:.4f}, {summary['columnar_layers']} columnar, "
        f"{summary['seconds']:.0f} s",
        f"These layers hold {100 * summary['weights'] / summary['denoiser_weights']:.0f} % of the denoiser's "
        f"{whole(summary['denoiser_weights'])} weights; embeddings, modulation and {convolutions} convolution"
        f"{'' if convolutions == 1 else 's'} ({whole(summary['convolution_weights_left_dense'])} weights) stay dense",
        f"Pipeline, report.json and layers.csv are in {options.output}",
    )


def slim(options: argparse.Namespace, console: Console) -> None:
    settings = shared.pick(options, ("method", "ratio", "parts", "recovery", "damping", "multiple"))
    SlimSettings(**settings)
    report = _changed(options, console, "Slimming", rose.prune_diffusion_structured, settings)
    shown = ["layer", "kept_units", "units", "relative_error", "unrecovered_error"]
    terminal.print_table(report.layers[shown], "Parts")
    terminal.say(*report.remarks)
    summary = report.summary
    terminal.say(
        f"{whole(summary['parameters'])} parameters before, {whole(summary['kept_parameters'])} after: "
        f"{100 * summary['removed_fraction']:.1f} % of {' and '.join(summary['parts'])} taken out, "
        f"{summary['seconds']:.0f} s",
        f"Pipeline, report.json and layers.csv are in {options.output}, for rose.load_diffusion",
    )


def _changed(
    options: argparse.Namespace,
    console: Console,
    title: str,
    change: Callable[..., rose.RunReport],
    settings: Mapping[str, Any],
) -> rose.RunReport:
    """Loads the pipeline, changes it with a progress bar, and writes it with its report."""
    check_installed()
    check_output(options.output)
    rose.step_weights(options.step_weights, options.steps)
    check_packages(options.packages)
    wanted = _read_prompts(options.prompts)
    pipeline = _load(options, options.model, console)
    conditions = _conditions(pipeline, wanted, None, options.samples)
    how = shared.pick(options, ("steps", "step_weights", "packages", "guidance", "seed"))
    with terminal.bar(console, title) as follow:
        report = change(pipeline, conditions, **how, progress=follow, **settings)
    report = report.with_summary(**shared.origin(options))
    with console.status(escape(f"Writing {options.output}")):
        rose.save_diffusion(pipeline.to("cpu"), options.output, report=report)
    return report


def sample(options: argparse.Namespace, console: Console) -> None:
    check_installed()
    check_steps(options.steps)
    check_file(options.output)
    if options.prompts is not None and options.classes is not None:
        raise rose.RoseError("--prompts and --classes both say what to draw; leave one of them out.")
    wanted, classes = _read_prompts(options.prompts), _read_classes(options.classes)
    rows = []
    for name in ([options.beside] if options.beside else []) + [options.model]:
        pipeline = _load(options, name, console)
        conditions = _conditions(pipeline, wanted, classes, options.count)
        how = shared.pick(options, ("steps", "seed", "guidance"))
        with terminal.bar(console, f"Drawing with {name}") as follow:
            rows.append(rose.draw_pictures(pipeline, conditions, **how, tick=follow))
    parts = zip(*(row.split(PER_ROW) for row in rows), strict=True)  # the same pictures of all models below each other
    write_sheet(options.output, [row for part in parts for row in part])
    above = f", those of {options.beside} above" if options.beside else ""
    what = ""
    if is_garments(pipeline):
        names = [GARMENTS[one] for one in conditions[:PER_ROW] if isinstance(one, int)]  # of a row, from left to right
        what = f": {', '.join(names)}{', and so on' if len(conditions) > PER_ROW else ''}"
    terminal.say(f"{options.output} has {count(len(rows[0]), 'picture')}{above}{what}")


def evaluate(options: argparse.Namespace, console: Console) -> None:
    check_installed()
    check_steps(options.steps)
    check_pictures(options.count)
    if options.output:
        check_file(options.output)
    given = {"pictures": options.count} | shared.pick(options, ("steps", "seed", "guidance"))
    pipeline = _load(options, options.model, console)
    check_garments(pipeline)
    with terminal.bar(console, f"Drawing with {options.dense}") as follow:
        dense = rose.evaluation_trajectory(_load(options, options.dense, console), **given, tick=follow)
    with terminal.bar(console, f"Drawing with {options.model}") as follow:
        scores = rose.evaluate_diffusion(pipeline, dense, **given, tick=follow)
    if options.output:
        write_file(options.output, json.dumps(finite(asdict(scores)), indent=1) + "\n")
    drift = " ".join(f"{value:.3f}" for value in scores.drift)
    losses = (f"{t}: {value:.4f}" for t, value in zip(scores.loss_times, scores.loss, strict=True))
    terminal.say(
        f"Drift from {options.dense} by step: {drift}",
        f"Denoising loss by t: {', '.join(losses)}",
        f"Fréchet distance {scores.frechet:.3f} over {scores.pictures} pictures; the classifier recognizes "
        f"{percent(scores.accuracy, 0)}; {scores.seconds:.0f} s",
    )


def _load(options: argparse.Namespace, name: str, console: Console) -> Any:
    with console.status(escape(f"Loading {name}")):
        return rose.load_diffusion(name, dtype=options.dtype).to(pick_device())


def _conditions(pipeline: Any, prompts: list[str] | None, classes: list[int] | None, count: int) -> Conditions:
    """What to draw: prompts or classes in turn, `count` in all."""
    if count < 1:
        raise rose.RoseError(f"At least one picture must be drawn, not {count}.")
    if prompts is not None:
        return [prompts[k % len(prompts)] for k in range(count)]
    if hasattr(pipeline, "tokenizer"):
        raise rose.RoseError(
            f"{type(pipeline).__name__} draws from prompts; give --prompts FILE.txt, one prompt a line."
        )
    if classes is None:
        return classes_in_turn(count)
    return [classes[k % len(classes)] for k in range(count)]


def _read_prompts(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        raise rose.RoseError(
            f"The prompts in {path} cannot be read; give a text file with one prompt a line."
        ) from problem
    if not lines:
        raise rose.RoseError(f"{path} holds no prompt; write one a line.")
    return lines


def _read_classes(text: str | None) -> list[int] | None:
    """Names of garments, or numbers as classes of other models have them."""
    if text is None:
        return None
    known = {name.lower(): number for number, name in enumerate(GARMENTS)}
    parts = [part.strip().lower() for part in text.split(",") if part.strip()]
    for part in parts:
        if part not in known and not part.isdecimal():
            raise rose.RoseError(f"There is no class {part!r}; choose from {', '.join(GARMENTS)}, or give its number.")
    if not parts:
        raise rose.RoseError("--classes names nothing; give at least one, or leave it out for all.")
    return [known[part] if part in known else int(part) for part in parts]
