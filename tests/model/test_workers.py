"""Two processes under torchrun, and three that were forked, find what one finds, but for rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rose
from rose import cli
from rose.model import workers as distributed
from rose.model.network.layers import PrunableLayer
from rose.model.walk import forward
from tests.model import distributed_runs
from tests.model.distributed_runs import CALIBRATION, SWEPT
from tests.tiny import save_tiny_llama

pytestmark = pytest.mark.timeout(1800)  # processes that wait for one another take long on a busy machine
ROOT = Path(__file__).parents[2]
Found = tuple[dict[str, Any], Path, str]


@pytest.fixture(scope="module", params=[2, 3])
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What `tests.model.distributed_runs` found, its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("several")
    save_tiny_llama(folder / "model", blocks=2, hidden=32)
    runs = ["-m", "tests.model.distributed_runs", str(folder)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, *runs] if request.param == 2 else [*runs, str(request.param)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-8000:]
    found = json.loads((folder / "found.json").read_text())
    assert found["processes"] == request.param
    return found, folder, done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "BATCH_TOKENS", forward.BATCH_TOKENS)  # put back afterwards
        return json.loads(json.dumps(distributed_runs.everything(tmp_path_factory.mktemp("alone"))))


RUNS = ("llama", "gpt2", "bfloat16", "true_sequential", "pretended", "experts", "experts_apart")
NUMBERS = {"errors", "held_out", "drift"}


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        *(("pruned", run) for run in RUNS),
        *(("slimmed", run) for run in ("llama", "similarity", "gpt2", "depth")),
        *[("statistics", "llama"), ("rotated", "llama"), ("analyzed", "gemma3")],
    ],
)
def test_several_processes_match_one(kind, run, several, alone):
    found, expected = several[0][kind][run], alone[kind][run]
    assert found.keys() == expected.keys()
    assert found.pop("same", True)
    for name, value in found.items():
        if name == "masks":
            for layer, mask in value.items():  # rounding breaks near ties
                assert (torch.tensor(mask) == torch.tensor(expected[name][layer])).float().mean() > 0.98, layer
        elif name in NUMBERS:
            tolerance = {"rtol": 3e-2 if run == "bfloat16" else 1e-3, "atol": 1e-3 if kind == "statistics" else 0}
            torch.testing.assert_close(torch.tensor(value), torch.tensor(expected[name]), **tolerance)
        elif name != "sent":
            assert value == expected[name], name


def test_gpus_send_only_tensors_of_their_own(several):
    assert several[0]["pruned"]["pretended"]["sent"] == ["all_reduce", "broadcast"]


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
    gone_on, undisturbed = several[0]["gone_on"]
    assert gone_on == undisturbed
    names = {path.name for path in (several[1] / "kept").iterdir() if not path.name.startswith("block")}
    assert names == {"allocation.safetensors", "drift.json", "lock", "run.json"}


def test_errors_reach_every_process(several):
    found = several[0]
    assert f"1 held-out samples cannot be divided over {found['processes']} processes" in found["too_few"]
    assert "belongs to another run" in found["other_run"]
    assert found["broken"].startswith("model.layers.1.mlp.up_proj: W holds NaN")
    assert "did not reach the same layers" in found["parted"]
    assert found["broken_slim"].startswith("model.layers.1.mlp.down_proj: ")


def test_only_one_process_writes_and_prints(several, tmp_path):
    _, folder, printed = several
    assert printed.count("14 layers, 50.00 % of their weights removed") == 1
    assert printed.count("of the decoder blocks taken out") == 1
    arguments = ["prune", "--model", str(folder / "model"), *CALIBRATION, *SWEPT, "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    one = load_file(tmp_path / "out" / "model.safetensors")
    # The processes streamed the model, and wrote it in shards.
    other = dict(pair for file in (folder / "out").glob("*.safetensors") for pair in load_file(file).items())
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert (weight.eq(0) == other[name].eq(0)).float().mean() > 0.98, name
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
