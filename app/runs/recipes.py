"""What a page does, as commands for a terminal and as a script."""

import shlex
from collections.abc import Sequence
from typing import Any

from app.runs.request import HELD_OUT, PruneRequest
from app.study.setup import Setup
from rose.files import expand


def command_lines(setup: Setup, request: PruneRequest) -> str:
    """Commands that prune and evaluate as this request does, one per copy; each keeps a checkpoint in any case."""
    lines = []
    for case in request.cases:
        output = str(request.output(case)) if request.keep == "folder" else case.name
        options = {
            **_calibration(setup),
            "--method": case.method,
            "--sparsity": case.sparsity,
            **({} if case.bits is None else {"--bits": case.bits, "--group": case.group}),
            "--target": case.target,
            **_engine(setup, request.threshold),
        }
        if (damping := request.damping_of(case.target)) is not None:
            options["--target-damping"] = damping
        same_length = request.evaluate != HELD_OUT and request.window_length == setup.length
        if same_length:
            options |= {"--evaluate": request.evaluate, "--windows": request.windows}
        options["--output"] = output
        if request.true_sequential and case.target == "layer":  # dense targets always are
            options["--true-sequential"] = []
        if request.layer_patterns:
            options["--layers"] = request.layer_patterns
        lines.append(_command("prune", options))
        if request.evaluate != HELD_OUT and not same_length:
            options = {"--model": output, "--text": request.evaluate}
            options |= {"--length": request.window_length, "--windows": request.windows}
            lines.append(_command("evaluate", options))
    return "\n".join(lines)


def analyze_command(setup: Setup, methods: Sequence[str], threshold: float) -> str:
    options = {
        **_calibration(setup),
        "--sparsity": setup.sparsity,
        **_engine(setup, threshold),
        "--methods": ",".join(methods),
        "--compute": "float32",  # as a study does
        "--output": "study/",
    }
    if setup.layer_patterns:
        options["--layers"] = setup.layer_patterns
    return _command("analyze", options)


def _calibration(setup: Setup) -> dict[str, Any]:
    return {
        "--model": setup.model,
        "--dtype": setup.dtype,
        "--calibration": setup.text,
        "--samples": setup.samples,
        "--length": setup.length,
        "--seed": setup.seed,
        "--held-out": setup.held_out,
    }


def _engine(setup: Setup, threshold: float) -> dict[str, Any]:
    return {"--block-size": setup.block_size, "--damping": setup.damping, "--threshold": threshold}


def _command(name: str, options: dict[str, Any]) -> str:
    """A command line; an option's value may be a list, an empty one for an option without a value."""
    parts = ["python", "-m", "rose", name]
    for option, value in options.items():
        values = value if isinstance(value, list) else [f"{value:g}" if isinstance(value, float) else str(value)]
        parts += [option, *values]
    return shlex.join(parts)


def python_code(setup: Setup, request: PruneRequest) -> str:
    """A script that does what this request does; it keeps every checkpoint where the request keeps any."""
    imports, reads = ["import copy"], ["load_calibration"]
    amounts = f"sparsity in {list(request.sparsities)}"
    options = f"block_size={setup.block_size}, damping={setup.damping}, threshold={request.threshold},"
    indent = "\n" + 16 * " "
    if "layer" in request.targets:
        options += f"{indent}true_sequential={request.true_sequential},"
    if request.bits != (None,):
        imports.append("from itertools import product")
        amounts = f"sparsity, bits in product({list(request.sparsities)}, {list(request.bits)})"
        options += f"{indent}bits=bits, group={request.group!r} if bits else None,"
    if request.target_damping is not None:
        options += f'{indent}target_damping={request.target_damping} if target == "dense" else None,'
    imports.append("")
    if request.evaluate == HELD_OUT:
        reads, drawn = ["load_apart", *reads], "tokens"
        if setup.held_out:  # which other windows are kept apart from, too
            imports.append("import torch")
            drawn = "torch.cat([tokens, held_out])"
        windows = (
            f"load_apart({setup.text!r}, tokenizer, samples={request.windows}, held_out=0, "
            f"length={request.window_length}, seed={setup.seed}, apart_from={drawn})[0]"
        )
    else:
        windows = (
            f"rose.load_tokens({request.evaluate!r}, tokenizer, samples={request.windows}, "
            f'length={request.window_length}, seed=None, split="test")'
        )
    imports += ["import rose", f"from rose.model.load.tokens import {', '.join(reads)}"]
    continued = shown = ""
    if request.prompt.strip():
        imports.append("from rose.model.measure.generation import continue_prompt")
        call = f"continue_prompt(model, tokenizer, {request.prompt!r}, new_tokens={request.new_tokens})"
        continued = f"\n\ndef continued(model):\n    return repr({call})\n\n\n"
        shown = ", continued({})"
    save = f"            rose.save_model(model, tokenizer, {_output(request)}, report=report)\n"
    lines = "\n".join(imports)
    return f"""{lines}

dense, tokenizer = rose.load_model({setup.model!r}, dtype={setup.dtype!r})
tokens, held_out = load_calibration(
    {setup.text!r}, tokenizer, samples={setup.samples}, held_out={setup.held_out}, length={setup.length}, \
seed={setup.seed}
)
windows = {windows}
{continued}print("dense", rose.perplexity(dense, windows){shown.format("dense")})
for {amounts}:
    for method in {list(request.methods)}:
        for target in {list(request.targets)}:
            model = copy.deepcopy(dense)
            report = rose.prune_model(
                model, tokens, held_out=held_out, method=method, sparsity=sparsity, target=target, \
layers={request.layer_patterns},
                {options}
            )
            print(method, sparsity, rose.perplexity(model, windows), report.summary{shown.format("model")})
{save if request.keep != "none" else ""}"""


def _output(request: PruneRequest) -> str:
    output = f"{expand(request.folder)}/"
    name = (f"{output!r} + " if request.keep == "folder" else "") + 'f"{method}-{sparsity}".replace(":", "-")'
    if any(request.bits):
        name += ' + (f"-{bits}bits" if bits else "")'
    if "layer" in request.targets:
        name += ' + ("-layer" if target == "layer" else "")'
    return name
