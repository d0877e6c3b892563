"""Starts the app, which is installed beside this package: nothing here imports it."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from rose.errors import RoseError

NEEDED = ("streamlit", "plotly")


def app_script() -> Path:
    """Where the app's entry point lies: installed beside this package, or in a checkout.

    Raises:
        RoseError: neither.
    """
    home = Path(__file__).parents[1]
    for path in (home / "rose_explorer" / "app" / "main.py", home / "app" / "main.py"):
        if path.is_file():
            return path
    raise RoseError("The app is not installed with this package; run it from a checkout with `make app`.")


def serve(port: int) -> int:
    """Serves the app on this machine until it is stopped; returns the server's exit status.

    Raises:
        RoseError: no such port, or the app, or what it needs, is not installed.
    """
    if not 0 < port < 65536:
        raise RoseError(f"A port is a number from 1 to 65535, not {port}.")
    script = app_script()
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise RoseError(f"The app needs {' and '.join(missing)}; install them with `pip install 'rose-explorer[app]'`.")
    return subprocess.run([sys.executable, str(script.with_name("server.py")), f"--server.port={port}"]).returncode
