"""A few hundred files that were changed at random; `python -m tests.faults.mutate` reads as many as are asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.mutate import READERS

CASES = 30  # of each reader


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """What the cases of each reader came to; a process of its own reads them, because it forks."""
    call = [sys.executable, "-m", "tests.faults.mutate", "--cases", str(CASES), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=environment)
    assert done.stdout, done.stderr
    return {outcome["reader"]: outcome for outcome in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize("reader", READERS)
def test_a_mutated_file_is_refused_or_read_as_before(reader: str, outcomes: dict[str, dict[str, Any]]) -> None:
    outcome = outcomes[reader]
    assert not outcome["faults"]
    assert sum(outcome["kinds"].values()) == CASES
    assert outcome["kinds"]["refused"] > CASES // 8
