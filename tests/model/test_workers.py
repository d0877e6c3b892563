"""Two processes under torchrun, and three forked ones, match one process except for rounding."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

import rose
from rose import cli
from rose.model import workers as distributed
from rose.model.network.layers import PrunableLayer
from rose.model.walk import forward
from tests.model.distributed_runs import CALIBRATION, RUNS, SWEPT, results
from tests.tiny import save_tiny_llama

pytestmark = pytest.mark.timeout(1800)  # processes that wait for one another take long on a busy machine
Found = tuple[dict[str, Any], Path, str]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Found]:
    """What so many processes found, their folder, and what they printed; they run once."""

    @cache
    def run(count: int) -> Found:
        folder = tmp_path_factory.mktemp("several")
        save_tiny_llama(folder / "model", blocks=2, hidden=32)
        runs = ["-m", "tests.model.distributed_runs", str(folder)]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [sys.executable, *torchrun, *runs] if count == 2 else [sys.executable, *runs, str(count)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=environment)
        assert done.returncode == 0, done.stderr[-8000:]
        written = json.loads((folder / "found.json").read_text())
        assert written["processes"] == count
        return written, folder, done.stdout

    return run


@pytest.fixture(params=[2, 3])
def several(request: pytest.FixtureRequest, started: Callable[[int], Found]) -> Found:
    return started(request.param)


@pytest.fixture(scope="module")
def alone() -> dict[int, dict[str, Any]]:
    """What one process finds in the runs of two and in those of three."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "BATCH_TOKENS", forward.BATCH_TOKENS)  # put back afterwards
        return {count: json.loads(json.dumps(results(count))) for count in RUNS}


@pytest.mark.parametrize(
    ("several", "run"), [(count, run) for count, runs in RUNS.items() for run in runs], indirect=["several"]
)
def test_several_processes_match_one(several, run, alone):
    result, expected = several[0]["results"][run], alone[several[0]["processes"]][run]
    assert result.keys() == expected.keys()
    assert result.pop("same", True)
    for name, value in result.items():
        if name == "masks":
            for layer, mask in value.items():  # rounding breaks near ties
                assert (torch.tensor(mask) == torch.tensor(expected[name][layer])).float().mean() > 0.98, layer
        elif name in ("errors", "held_out", "drift"):
            tolerance = {"rtol": 3e-2 if "bfloat16" in run else 1e-3, "atol": 1e-3 if run == "statistics" else 0}
            torch.testing.assert_close(torch.tensor(value), torch.tensor(expected[name]), **tolerance)
        else:  # over NCCL GPUs send tensors of their own alone
            assert value == (["all_reduce", "broadcast"] if name == "sent" else expected[name]), name


def test_every_process_joins_over_nccl_on_a_gpu_of_its_own(monkeypatch):
    chosen: list[Any] = []
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend, **_settings: chosen.append(backend))
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: chosen.append("left"))
    with distributed.process_group():
        assert chosen == [1, "nccl"]
    assert chosen == [1, "nccl", "left"]


def test_a_stopped_run_resumes_to_the_same_bits(several):
    resumed, undisturbed = several[0]["resumed"]
    assert resumed == undisturbed
    names = {path.name for path in (several[1] / "kept").iterdir() if not path.name.startswith("block")}
    assert names == {"allocation.safetensors", "drift.json", "lock", "run.json"}


def test_errors_reach_every_process(several):
    written = several[0]
    assert f"1 held-out samples cannot be divided over {written['processes']} processes" in written["too_few"]
    assert "belongs to another run" in written["other_run"]
    assert written["broken"].startswith("model.layers.1.mlp.up_proj: W holds NaN")
    assert "did not reach the same layers" in written["parted"]
    assert written["broken_slim"].startswith("model.layers.1.mlp.down_proj: ")


class Unreadable(Exception):
    """Cannot be sent: two arguments make it, and it keeps one."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} {number}")


@pytest.mark.parametrize(
    "problem", [rose.RoseError("Bad."), OSError(28, "Full"), MemoryError(), rose.Cancelled(), Unreadable("part", 3)]
)
def test_any_exception_reaches_every_process(problem, monkeypatch):
    def fail(*_number: int) -> None:
        raise problem

    first, second, sent = distributed.Workers(2, 0), distributed.Workers(2, 1), list[Any]()
    kind, says = type(problem), str(problem)
    if kind is Unreadable:
        kind, says = RuntimeError, "Unreadable: part 3"
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda given: sent.append(pickle.dumps(given)))
    with pytest.raises(type(problem)):
        first.from_first(fail)
    read = {"broadcast_object_list": lambda given: given.__setitem__(slice(2), pickle.loads(sent[-1]))}
    read["all_gather_object"] = lambda values, mine: values.__setitem__(slice(2), [({}, {}), mine])
    with mock.patch.multiple("torch.distributed", **read):
        for work in (lambda: second.from_first(fail), lambda: second.exchange([0, 1], fail)):
            with pytest.raises(kind) as caught:
                work()
            assert str(caught.value) == says


def test_only_one_process_writes_and_prints(several, tmp_path):
    _, folder, printed = several
    assert printed.count("14 layers, 50.00 % of their weights removed") == 1
    assert printed.count("of the decoder blocks taken out") == 1
    arguments = ["prune", "--model", str(folder / "model"), *CALIBRATION, *SWEPT, "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    alone = load_file(tmp_path / "out" / "model.safetensors")
    # The processes streamed the model, and wrote it in shards.
    together = dict(pair for file in (folder / "out").glob("*.safetensors") for pair in load_file(file).items())
    assert alone.keys() == together.keys()
    for name, weight in alone.items():
        assert (weight.eq(0) == together[name].eq(0)).float().mean() > 0.98, name
    report = rose.RunReport.from_json((folder / "out" / "report.json").read_text())
    assert len(report.layers) == 14
    assert report.summary["samples"] == 7


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        (1, [0, 0, 0, 0, 0]),
        (2, [1, 1, 1, 1, 0]),  # the wide one alone costs more than all others
        (3, [1, 2, 1, 2, 0]),  # each factorizes the shared Hessians for itself
    ],
)
def test_layers_are_divided_by_cost(processes, expected):
    shapes, groups = ((8, 16), (8, 16), (16, 16), (16, 16), (16, 48)), [SimpleNamespace() for _ in range(3)]
    linears = [torch.nn.Linear(columns, rows, bias=False) for rows, columns in shapes]
    layers = [PrunableLayer(f"layer{k}", 0, f"layer{k}", linear) for k, linear in enumerate(linears)]
    statistics: Any = {layer.name: groups[k] for layer, k in zip(layers, (0, 0, 1, 1, 2), strict=True)}
    assert distributed.Workers(processes).divide(layers, statistics) == expected


def test_samples_are_divided_without_loss():
    tokens = torch.arange(14).view(7, 2)
    parts = [distributed.Workers(4, number).my_samples(tokens, "calibration") for number in range(4)]
    assert torch.equal(torch.cat(parts), tokens)
    assert [len(part) for part in parts] == [2, 2, 2, 1]


def test_processes_send_half_of_each_hessian():
    statistics = rose.InputStatistics(600)
    statistics.update(torch.randn(40, 600, generator=torch.Generator().manual_seed(0)))
    hessian, mean, sent = statistics.hessian.clone(), statistics.mean.clone(), []

    def twice(tensor: torch.Tensor) -> None:
        sent.append(tensor.numel())
        tensor.mul_(2)

    statistics.sum_over(twice)
    torch.testing.assert_close(statistics.hessian, 2 * hessian)
    torch.testing.assert_close(statistics.mean, mean)
    assert statistics.tokens == 80
    assert sum(sent) < 0.75 * 600**2
