"""`rose app`; and the one place where this package reaches for the app, which comes with it and is no part of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from rose.errors import RoseError


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("app", help="open the app in a browser; takes options of `streamlit run`, too")
    parser.add_argument("--port", type=int, default=8501, help="on this machine (default: %(default)s)")
    parser.set_defaults(run=run, takes_more=True)


def run(options: argparse.Namespace, _console: Console) -> None:
    """Serves the app on this machine until it is stopped: in this process, whose end then is that of the server."""
    if not 0 < options.port < 65536:
        raise RoseError(f"A port is a number from 1 to 65535, not {options.port}.")
    server = app_module("server", "The app", ("streamlit", "plotly"))
    sys.argv = ["rose app", f"--server.port={options.port}", *options.more]
    server.main()


def app_script() -> Path:
    """Where the app's entry point lies, installed beside this package or in a checkout; RoseError where it does not."""
    home = Path(__file__).parents[2]
    for path in (home / "rose_explorer" / "app" / "main.py", home / "app" / "main.py"):
        if path.is_file():
            return path
    raise RoseError("The app is not installed with this package; run it from a checkout with `make app`.")


def app_module(name: str, what: str, needed: Sequence[str]) -> ModuleType:
    """A module of the app, imported only when it is asked for: `rose` works without the app and what that needs.

    Raises RoseError where the app or one of the `needed` packages is not installed; `what` begins that sentence.
    """
    home = app_script().parents[1]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise RoseError(f"{what} needs {' and '.join(missing)}; install them with `pip install 'rose-explorer[app]'`.")
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))  # installed, the package `app` lies where nobody else's import finds it
    return import_module(f"app.{name}")
