"""`rose app`; and the one place where this package reaches for the app, which comes with it and is no part of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from rich.console import Console

from rose.errors import RoseError
from rose.recipe.tools import App


def run(spec: App, _console: Console, more: Sequence[str]) -> None:
    """Serves the app in this process until it is stopped."""
    server = app_module("server", "The app", ("streamlit", "plotly"))
    sys.argv = ["rose app", f"--server.port={spec.port}", *more]
    server.main()


def app_script() -> Path:
    """Where the app's entry point lies, installed beside this package or in a checkout; RoseError where it does not."""
    home = Path(__file__).parents[2]
    for path in (home / "rose_explorer" / "app" / "main.py", home / "app" / "main.py"):
        if path.is_file():
            return path
    raise RoseError("The app is not installed with this package; run it from a checkout with `make app`.")


def app_module(name: str, what: str, needed: Sequence[str]) -> ModuleType:
    """A module of the app, imported on demand, as `rose` works without the app and its packages.

    Raises RoseError if the app or a needed package is missing; `what` begins the sentence.
    """
    home = app_script().parents[1]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise RoseError(f"{what} needs {' and '.join(missing)}; install them with `pip install 'rose-explorer[app]'`.")
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))  # installed, the package `app` lies where nobody else's import finds it
    return import_module(f"app.{name}")
