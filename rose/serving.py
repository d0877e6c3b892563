"""Hands over to the app, which comes with this package and is no part of it: it is imported only when asked for."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
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
    _require("The app", NEEDED)
    return subprocess.run([sys.executable, str(script.with_name("server.py")), f"--server.port={port}"]).returncode


def write_report(folders: Sequence[str], output: Path) -> list[str]:
    """Writes finished runs as an HTML file that needs no network; returns its findings.

    Raises:
        RoseError: plotly or the app is not installed, or what `app.runs.html_report.write_report` says.
    """
    home = app_script().parents[1]
    _require("A report", ("plotly", "scipy"))
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))  # installed, the package `app` lies where nobody else's import finds it
    return importlib.import_module("app.runs.html_report").write_report(folders, output)


def _require(what: str, needed: Sequence[str]) -> None:
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise RoseError(f"{what} needs {' and '.join(missing)}; install them with `pip install 'rose-explorer[app]'`.")
