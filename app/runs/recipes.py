"""What a page does, as commands for a terminal and as a script."""

from __future__ import annotations

import shlex

from app.runs.request import HELD_OUT, PruneRequest, run_name
from app.study.setup import Setup
from rose.files import expand


def command_lines(setup: Setup, request: PruneRequest) -> str:
    """Commands that prune and evaluate as this request does, one per copy; each keeps a checkpoint in any case."""
    lines = []
    for case in request.cases:
        method, sparsity, target = case
        output = str(request.output(*case)) if request.keep == "folder" else run_name(*case)
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
            "--target": target,
            "--block-size": setup.block_size,
            "--damping": setup.damping,
            "--threshold": request.threshold,
        }
        if (damping := request.damping_of(target)) is not None:
            options["--target-damping"] = damping
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


def python_code(setup: Setup, request: PruneRequest) -> str:
    """A script that does what this request does; a checkpoint for download is a folder there."""
    if request.evaluate == HELD_OUT:
        windows = (
            f"windows = cut_windows(held_out, {request.windows}, {request.window_length}, first_token(tokenizer))\n"
        )
    else:
        windows = (
            f"windows = rose.load_tokens({request.evaluate!r}, tokenizer, samples={request.windows}, "
            f'length={request.window_length}, seed=None, split="test")\n'
        )
    continues = bool(request.prompt.strip())
    cutting = "from rose.model.load.tokens import cut_windows, first_token\n" if request.evaluate == HELD_OUT else ""
    return (
        f"import copy\n\nimport rose\n{cutting}\n"
        f"dense, tokenizer = rose.load_model({setup.model!r}, dtype={setup.dtype!r})\n"
        f"drawn = rose.load_tokens({setup.text!r}, tokenizer, samples={setup.samples + setup.held_out}, "
        f"length={setup.length}, seed={setup.seed})\n"
        f"tokens, held_out = drawn[:{setup.samples}], "
        + (f"drawn[{setup.samples}:]\n" if setup.held_out else "None\n")
        + windows
        + (_continuation(request) if continues else "")
        + f'print("dense", rose.perplexity(dense, windows){", continued(dense)" if continues else ""})\n'
        f"for sparsity in {list(request.sparsities)}:\n"
        f"    for method in {list(request.methods)}:\n"
        f"        for target in {list(request.targets)}:\n"
        "            model = copy.deepcopy(dense)\n"
        "            report = rose.prune_model(\n"
        "                model, tokens, held_out=held_out, method=method, sparsity=sparsity, target=target, "
        f"layers={request.layer_patterns},\n"
        f"                block_size={setup.block_size}, damping={setup.damping}, threshold={request.threshold},\n"
        f"                true_sequential={request.true_sequential},\n"
        + (
            ""
            if request.target_damping is None
            else f'                target_damping={request.target_damping} if target == "dense" else None,\n'
        )
        + "            )\n"
        "            print(method, sparsity, rose.perplexity(model, windows), report.summary"
        + (", continued(model))\n" if continues else ")\n")
        + ("" if request.keep == "nothing" else _saving(request))
    )


def _continuation(request: PruneRequest) -> str:
    """A function of the script: the prompt continued by the most likely next tokens."""
    return (
        "\n\ndef continued(model):\n"
        f'    ids = tokenizer({request.prompt!r}, return_tensors="pt").input_ids.to(model.device)\n'
        f"    output = model.generate(ids, max_new_tokens={request.new_tokens}, do_sample=False)\n"
        "    return repr(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))\n\n\n"
    )


def _saving(request: PruneRequest) -> str:
    """The line of the script that writes a checkpoint."""
    output = f"{expand(request.folder)}/"
    name = (f"{output!r} + " if request.keep == "folder" else "") + 'f"{method}-{sparsity}".replace(":", "-")'
    if any("%" in sparsity for sparsity in request.sparsities):
        name += '.replace("%", "pct")'
    if "layer" in request.targets:
        name += ' + ("-layer" if target == "layer" else "")'
    return f"            rose.save_model(model, tokenizer, {name}, report=report)\n"
