"""Runs of several processes: torchrun -m tests.model.distributed_runs FOLDER; with a number, that many are forked."""

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

import rose
from rose import cli
from rose.model.measure.perplexity import PLAIN_ENGLISH  # short, as every process encodes it
from rose.model.walk import forward
from rose.model.workers import Workers, process_group
from rose.tensor_files import digest
from tests.model.families import LENGTH, make_model, make_tokens, stop_at
from tests.pretend import on_cpu, pretend_cuda

OPTIONS: dict[str, Any] = {"sparsity": 0.5, "block_size": 16, "held_out": make_tokens(5, seed=3)}
CALIBRATION = ["--calibration", str(PLAIN_ENGLISH), "--samples", "7", "--length", "24", "--held-out", "4"]
CALIBRATION += ["--block-size", "16", "--sparsity", "0.5"]
# A mask that is revised twenty times, as the default method does, spreads what rounding does to near ties.
SWEPT = ["--method", "rose"]
SAMPLES = 7  # not a multiple of two or three


def statistics() -> dict[str, Any]:
    """Tokens seen, and by layer the sum of the Hessian and the mean input; from a sum over processes."""
    every = rose.collect_statistics(make_model("llama"), make_tokens(SAMPLES))
    of_block = {name: statistics for name, statistics in every.items() if name.startswith("model.layers.1.")}
    numbers = [torch.cat([statistics.hessian.flatten(), statistics.mean]) for statistics in of_block.values()]
    return {
        "tokens": {name: statistics.tokens for name, statistics in of_block.items()},
        "errors": torch.cat(numbers).tolist(),
    }


def prune(family: str, dtype: torch.dtype = torch.float32, **options: Any) -> dict[str, Any]:
    """Errors, positions of the zeros of every layer, and whether all processes have the same model."""
    model = make_model(family).to(dtype)
    report = rose.prune_model(model, make_tokens(SAMPLES), **OPTIONS | options)
    return {
        "same": Workers.here().all_agree(digest(model.state_dict())),
        "layers": report.layers["layer"].tolist(),
        "errors": report.layers["relative_error"].tolist(),
        "held_out": report.layers["held_out_error"].fillna(-1.0).tolist(),  # none came to some experts
        "sparsity": report.layers["sparsity"].tolist(),
        "masks": {layer.name: layer.weight.eq(0).flatten().int().tolist() for layer in rose.prunable_layers(model)},
    }


def slim(family: str, **options: Any) -> dict[str, Any]:
    model = make_model(family)
    options = {"ratio": 0.3, "multiple": 4, "target": "dense", "held_out": OPTIONS["held_out"]} | options
    report = rose.prune_structured(model, make_tokens(SAMPLES), **options)
    table = report.layers
    return {
        "same": Workers.here().all_agree(digest(model.state_dict())),
        "kept": table[["layer", "kept_units"]].to_numpy().tolist(),
        "errors": table["relative_error"].tolist(),
        "held_out": table["held_out_error"].tolist(),
        "drift": [row["drift"] for row in report.summary["drift"]],
        "parameters": report.summary["kept_parameters"],
    }


def pretended() -> dict[str, Any]:
    """The same on pretended GPUs, whose tensors alone nccl would send."""
    sent: list[str] = []

    def over_nccl(send: Callable[..., None]) -> Callable[..., None]:
        def sending(tensor: torch.Tensor, *more: Any) -> None:
            assert tensor.is_cuda, f"{send.__name__} of a tensor that is not on the GPU"
            sent.append(send.__name__)
            send(on_cpu(tensor), *more)

        return sending

    nccl = {name: over_nccl(getattr(dist, name)) for name in ("all_reduce", "broadcast")}
    with pretend_cuda(), mock.patch.multiple(dist, **nccl):
        prune("llama")  # gaps and drift are sent too
        slim("llama")
        result = prune("llama", method="rose_dealt", allocation="owl", target="layer")
    return result | {"sent": sorted(set(sent))}


def refused(work: Callable[[], Any]) -> str:
    """The message that every process gets."""
    try:
        work()
        message = "nothing was wrong"
    except rose.RoseError as problem:
        message = str(problem)
    assert Workers.here().all_agree(message)
    return message


def broken_model() -> Any:
    model = make_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    return model


def analyzed() -> dict[str, Any]:
    records = list(rose.analyze_model(make_model("gemma3"), make_tokens(SAMPLES), **OPTIONS))
    errors = [[record.relative_error, record.held_out_error] for record in records]
    return {"layers": [[record.layer, record.method] for record in records], "errors": errors}


# By number of processes; one process does them all.
RUNS: dict[int, dict[str, Callable[[], dict[str, Any]]]] = {
    2: {
        "statistics": statistics,
        "pruned llama": lambda: prune("llama"),
        # Of one decoder block the correction is damped so little that it amplifies the rounding of bfloat16.
        "pruned bfloat16": lambda: prune("llama", torch.bfloat16, layers=["*.0.*"], target_damping=1.0),
        "pruned experts": lambda: prune("sparse_experts", layers=["*.0.*"]),
        "pruned on GPUs": pretended,
        "slimmed llama": lambda: slim("llama"),
        "slimmed gpt2": lambda: slim("gpt2", allocation="cost", target="layer"),
    },
    3: {
        "analyzed": analyzed,
        "pruned gpt2": lambda: prune("gpt2"),
        "pruned in true sequence": lambda: prune("llama", true_sequential=True),
        "pruned experts": lambda: prune("sparse_experts", layers=["*.1.*"], target="layer"),
        "slimmed by similarity": lambda: slim("llama", method="slimllm", allocation="similarity"),
        "slimmed in depth": lambda: slim("gemma3", method="depth", ratio=0.25),
    },
}


def resumed(folder: Path) -> list[dict[str, Any]]:
    """A run that was stopped and resumed, and an undisturbed one."""
    options, stop = {"checkpoint": folder / "kept", "allocation": "owl"}, stop_at("calibrate", 2)
    with suppress(rose.Cancelled):
        prune("gemma3", **options, progress=stop)
        raise AssertionError("was not stopped")
    return [prune("gemma3", **options), prune("gemma3", allocation="owl")]


def refusals(folder: Path) -> dict[str, str]:
    given, workers, seen = make_tokens(SAMPLES), Workers.here(), rose.InputStatistics(4)
    # As where experts are routed: what one process's tokens have reached, another's have not.
    seen.update(torch.ones(2, 4))
    reached = {f"expert{min(workers.place, 1)}": seen}
    return {
        "too_few": refused(lambda: prune("llama", held_out=make_tokens(1))),
        "other_run": refused(lambda: prune("llama", checkpoint=folder / "kept")),
        "broken": refused(lambda: rose.prune_model(broken_model(), given, **OPTIONS)),
        "broken_slim": refused(lambda: rose.prune_structured(broken_model(), given, ratio=0.3, multiple=4)),
        "parted": refused(lambda: workers.sum_statistics(reached)),
    }


def results(runs: int) -> dict[str, dict[str, Any]]:
    """What the runs of so many processes come to, here."""
    torch.set_num_threads(1)
    forward.BATCH_TOKENS = 2 * LENGTH + 5
    return {name: run() for name, run in RUNS[runs].items()}


def main(folder: Path) -> int:
    with process_group():
        workers = Workers.here()
        written: dict[str, Any] = {"processes": workers.count, "results": results(workers.count)}
        written |= {"resumed": resumed(folder)} | refusals(folder)
        if workers.place == 0:
            (folder / "found.json").write_text(json.dumps(written))
        model = ["--model", str(folder / "model"), "--stream"]
        slimmed = cli.main(["slim", *model, *CALIBRATION[:-4], "--ratio", "0.3", "--output", str(folder / "slim")])
        return slimmed or cli.main(["prune", *model, *CALIBRATION, *SWEPT, "--output", str(folder / "out")])


def fork(folder: Path, count: int) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(count):
        if (child := os.fork()) == 0:
            os.environ |= told | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            status = 1
            try:
                status = main(folder)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(status)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)


if __name__ == "__main__":
    here = Path(sys.argv[1])
    sys.exit(fork(here, int(sys.argv[2])) if sys.argv[2:] else main(here))
