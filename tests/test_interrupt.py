"""Ctrl+C while a program imports: a process sends it to itself when it comes to torch."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

TORCH = "import os, signal; os.kill(os.getpid(), signal.SIGINT); raise SystemExit('it went on')"
SCRIPT = "import sys; from rose.cli import main; sys.exit(main())"  # as installers write it
LIBRARY = "try: import rose; rose.load_model\nexcept KeyboardInterrupt: print('mine')"


@pytest.mark.parametrize(
    ("call", "status", "said"),
    [
        (["-m", "rose", "models"], 130, "rose: cancelled; nothing was written\n"),
        (["{folder}/rose", "models"], 130, "rose: cancelled; nothing was written\n"),
        (["-c", LIBRARY], 0, "mine\n"),
    ],
    ids=["module", "script", "library"],
)
def test_an_interrupted_import(call: list[str], status: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(TORCH)
    (tmp_path / "rose").write_text(SCRIPT)
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    command = [sys.executable, *(word.format(folder=tmp_path) for word in call)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # shells ignore it in the background
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, preexec_fn=heard)
    assert (done.returncode, done.stdout + done.stderr) == (status, said)
