"""`rose diffuse prune | sample`: a diffusion model pruned, and drawn with."""

from typing import Any

from rich.console import Console
from rich.markup import escape

import rose
from rose.commands import terminal
from rose.diffusion.loading import GARMENTS, OWN_CLASS, check_installed, classes_in_turn, load_diffusion, save_diffusion
from rose.diffusion.pruning import prune_diffusion
from rose.diffusion.trajectory import Conditions, distance, draw_pictures, write_sheet
from rose.files import expand
from rose.model.network.residence import pick_device
from rose.model.settings import NamedSettings
from rose.output import check_file, check_output
from rose.recipe.tools import DiffusePrune, DiffuseSample, DrawingPart
from rose.wording import count, number, whole

PER_ROW = 10  # pictures in a sheet


def prune(spec: DiffusePrune, console: Console) -> None:
    check_installed()
    check_output(spec.output)
    prompts = _read_prompts(spec.prompts)
    pipeline = _load(spec, spec.model, console)
    conditions = _conditions(pipeline, prompts, None, spec.samples)
    how = spec.pick(("steps", "step_weights", "packages", "guidance", "seed", *NamedSettings.fields()))
    with terminal.bar(console, "Pruning") as follow:
        report = prune_diffusion(pipeline, conditions, **how, progress=follow).signed(spec)
    with console.status(escape(f"Writing {spec.output}")):
        save_diffusion(pipeline.to("cpu"), spec.output, report=report)
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
        f"Pipeline, report.json and layers.csv are in {spec.output}",
    )


def sample(spec: DiffuseSample, console: Console) -> None:
    check_installed()
    check_file(spec.output)
    if spec.prompts is not None and spec.classes is not None:
        raise rose.RoseError("--prompts and --classes both say what to draw; leave one of them out.")
    prompts, classes = _read_prompts(spec.prompts), _read_classes(spec.classes)
    rows = []
    for name in ([spec.beside] if spec.beside else []) + [spec.model]:
        pipeline = _load(spec, name, console)
        conditions = _conditions(pipeline, prompts, classes, spec.count)
        how = spec.pick(("steps", "seed", "guidance"))
        with terminal.bar(console, f"Drawing with {name}") as follow:
            rows.append(draw_pictures(pipeline, conditions, **how, tick=follow))
    parts = zip(*(row.split(PER_ROW) for row in rows), strict=True)  # pictures of the same noise stand below each other
    write_sheet(spec.output, [row for part in parts for row in part])
    above = f", those of {spec.beside} above" if spec.beside else ""
    drawn = ""
    if type(pipeline).__name__ == OWN_CLASS:
        # Names of the pictures of a row, from left to right.
        names = [GARMENTS[label] for label in conditions[:PER_ROW] if isinstance(label, int)]
        drawn = f": {', '.join(names)}{', and so on' if len(conditions) > PER_ROW else ''}"
    terminal.say(f"{spec.output} has {count(len(rows[0]), 'picture')}{above}{drawn}")
    if spec.beside:
        apart = number(float(distance(rows[1], rows[0])))
        terminal.say(f"Their mean distance from {spec.beside}'s is {apart} of the norm of a picture")


def _load(spec: DrawingPart, name: str, console: Console) -> Any:
    with console.status(escape(f"Loading {name}")):
        return load_diffusion(name, dtype=spec.dtype).to(pick_device())


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


def _read_prompts(path: str | None) -> list[str] | None:
    if path is None:
        return None
    try:
        lines = [line.strip() for line in expand(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        raise rose.RoseError(
            f"The prompts in {path} cannot be read; give a text file with one prompt a line."
        ) from problem
    if not lines:
        raise rose.RoseError(f"{path} holds no prompt; write one a line.")
    return lines


def _read_classes(text: str | None) -> list[int] | None:
    """Classes from names of garments, or from numbers for other models."""
    if text is None:
        return None
    classes = {name.lower(): number for number, name in enumerate(GARMENTS)}
    parts = [part.strip().lower() for part in text.split(",") if part.strip()]
    for part in parts:
        if part not in classes and not part.isdecimal():
            raise rose.RoseError(f"There is no class {part!r}; choose from {', '.join(GARMENTS)}, or give its number.")
    if not parts:
        raise rose.RoseError("--classes names nothing; give at least one, or leave it out for all.")
    return [classes[part] if part in classes else int(part) for part in parts]
