"""Killed commands resume to the same result and clear their leftovers; `python -m tests.faults` kills more often."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from rose.output import PARTIAL, new_folder
from tests.faults.kills import COMMANDS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1800)  # the first test waits for all commands, on a busy machine for long
KILLS = {"prune": 5, "slim": 4, "damage": 4, "compare": 3, "tune": 3, "diffuse": 1}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each command came to; one process kills them all, as it takes seconds to start."""
    call = [sys.executable, "-m", "tests.faults", *(f"{name}:{kills}" for name, kills in KILLS.items()), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path_factory.mktemp("kills"))}
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout, done.stderr
    return {outcome["command"]: outcome for outcome in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_killed_command_resumes_to_the_same_result(command: str, outcomes: dict[str, dict[str, Any]]) -> None:
    outcome = outcomes[command]
    assert outcome["kills"] >= KILLS[command]
    assert outcome["same"] == outcome["ended"] >= 1
    assert not outcome["leftovers"]


def test_files_of_killed_runs_are_removed_and_files_of_running_ones_stay(tmp_path: Path) -> None:
    for name in ("dead", "alive", "unlocked"):
        (tmp_path / f"{PARTIAL}{name}").mkdir()
        (tmp_path / f"{PARTIAL}{name}" / "model.safetensors").write_bytes(b"...")
    (tmp_path / f"{PARTIAL}dead.lock").touch()
    with FileLock(tmp_path / f"{PARTIAL}alive.lock"), new_folder(tmp_path / "new") as folder:
        (folder / "config.json").write_text("{}")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]
    left = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")}
    assert left == {"new", f"{PARTIAL}alive"}
