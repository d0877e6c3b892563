"""What a page does, as commands for a terminal and as a script."""

from __future__ import annotations

import shlex
from pathlib import Path

from app.request import HELD_OUT, Request, run_name
from app.setup import Setup


def command_lines(setup: Setup, request: Request) -> str:
    """Commands that prune and evaluate as this request does, one per pair."""
    lines = []
    for method, sparsity in request.pairs:
        output = str(request.target(method, sparsity)) if request.keep == "folder" else run_name(method, sparsity)
        options = {
            "--model": setup.model,
            "--dtype": setup.dtype,
            "--calibration": setup.text,
            "--samples": setup.samples,
            "--length": setup.length,
            "--seed": setup.seed,
            "--held-out": setup.held_out,
            "--method": method,
            "--sparsity": sparsity,
            "--block-size": setup.block_size,
            "--damping": setup.damping,
            "--threshold": request.threshold,
        }
        same_length = request.evaluate != HELD_OUT and request.window_length == setup.length
        if same_length:
            options |= {"--evaluate": request.evaluate, "--windows": request.windows}
        options["--output"] = output
        words = [
            f"{name} {shlex.quote(f'{value:g}' if isinstance(value, float) else str(value))}"
            for name, value in options.items()
        ]
        if request.true_sequential:
            words.append("--true-sequential")
        if request.layer_patterns:
            words.append("--layers " + " ".join(shlex.quote(name) for name in request.layer_patterns))
        lines.append("python -m rose prune " + " ".join(words))
        if request.evaluate != HELD_OUT and not same_length:
            lines.append(
                f"python -m rose evaluate --model {shlex.quote(output)} --text {shlex.quote(request.evaluate)} "
                f"--length {request.window_length} --windows {request.windows}"
            )
    return "\n".join(lines)


def python_code(setup: Setup, request: Request) -> str:
    """A script that does what this request does."""
    if request.evaluate == HELD_OUT:
        windows = (
            f"per_sample = held_out.shape[1] // {request.window_length}\n"
            f"windows = held_out[:, : per_sample * {request.window_length}]"
            f".reshape(-1, {request.window_length})[:{request.windows}]\n"
        )
    else:
        windows = (
            f"windows = rose.load_tokens({request.evaluate!r}, tokenizer, samples={request.windows}, "
            f'length={request.window_length}, seed=None, split="test")\n'
        )
    output = Path(request.folder).expanduser() if request.keep == "folder" else None
    folder = 'f"{method}-{sparsity}"' if output is None else f'f"{output}/{{method}}-{{sparsity}}"'
    folder += '.replace(":", "-")'
    return (
        "import copy\n\nimport rose\n\n"
        f"dense, tokenizer = rose.load_model({setup.model!r}, dtype={setup.dtype!r})\n"
        f"drawn = rose.load_tokens({setup.text!r}, tokenizer, samples={setup.samples + setup.held_out}, "
        f"length={setup.length}, seed={setup.seed})\n"
        f"tokens, held_out = drawn[:{setup.samples}], "
        + (f"drawn[{setup.samples}:]\n" if setup.held_out else "None\n")
        + windows
        + 'print("dense", rose.perplexity(dense, windows))\n'
        f"for sparsity in {list(request.sparsities)}:\n"
        f"    for method in {list(request.methods)}:\n"
        "        model = copy.deepcopy(dense)\n"
        "        report = rose.prune_model(\n"
        "            model, tokens, held_out=held_out, method=method, sparsity=sparsity, "
        f"layers={request.layer_patterns},\n"
        f"            block_size={setup.block_size}, damping={setup.damping}, threshold={request.threshold},\n"
        f"            true_sequential={request.true_sequential},\n"
        "        )\n"
        "        print(method, sparsity, rose.perplexity(model, windows), report.summary)\n"
        f"        rose.save_model(model, tokenizer, {folder}, report=report)\n"
    )
