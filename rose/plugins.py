"""Methods and orders from outside this package: files that somebody names, and installed packages.

A plugin is a Python module that calls `rose.register` or `rose.register_order` when it is imported. The command line
and the app load plugins when they start, from two places:

- every file named by the environment variable ROSE_PLUGINS, separated as in PATH;
- every installed package with an entry point in the group "rose.plugins", which names a module.

A file runs with all rights of whoever starts the program, so files are never searched for: only those named are loaded.
"""

import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import Any

from rose.errors import RoseError, failing
from rose.files import expand
from rose.layer.registry import METHODS, ORDER_NAMES

VARIABLE = "ROSE_PLUGINS"
GROUP = "rose.plugins"
_loaded: set[str] = set()  # files and entry points; each is run once in a process
_lock = threading.RLock()  # the app's sessions start in threads of their own, and a plugin may load others


def load_plugins(*files: str | Path) -> None:
    """Loads these files, those named by ROSE_PLUGINS, and installed plugins, each once.

    Raises RoseError: a plugin is missing, fails, registers nothing, or takes the name of something registered before.
    It leaves nothing behind; those loaded before it stay. In Python an `import` of a plugin does as well.
    """
    for file in files:
        if not isinstance(file, str | Path):
            raise RoseError(f"A plugin is the path of one .py file, not {file!r}.")
    paths = [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    with _lock:
        for name in [*paths, *files]:
            path = expand(name).resolve()
            _load_once(str(path), partial(_run_file, path))
        for entry in _installed():
            # What was imported before has registered then.
            _load_once(f"{entry.name} ({entry.value})", entry.load, is_new=entry.module not in sys.modules)


@cache
def _installed() -> EntryPoints:
    """Cached, because it reads the metadata of every installed package."""
    return entry_points(group=GROUP)


def _load_once(name: str, load: Callable[[], object], *, is_new: bool = True) -> None:
    if name in _loaded:
        return
    before = set(_loaded)
    _loaded.add(name)  # at once: a plugin may itself ask for all plugins
    try:
        with _additions_only(name, is_new):
            load()
    except BaseException:
        _loaded.intersection_update(before)
        raise


def _run_file(path: Path) -> None:
    if path.suffix != ".py" or not path.is_file():
        raise RoseError(f"There is no plugin file {path}; give the path of a .py file.")
    name = f"rose_plugin_{path.stem}_{len(_loaded)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        # Not by the loader: its bytecode of a text that was changed within a second, and is as long, is taken for its.
        exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise


@contextmanager
def _additions_only(name: str, is_new: bool) -> Iterator[None]:
    """Lets the body add to the registries. They are restored if the body fails, replaces an entry, or adds nothing."""
    from rose.layer.order import ORDERS  # with torch, which a program without plugins does not need yet

    registries: tuple[dict[str, Any], ...] = (METHODS, ORDERS)
    before = [dict(registry) for registry in registries]
    try:
        with failing(f"The plugin {name}"):
            yield
        for now, then in zip(registries, before, strict=True):
            for old in then:
                if now.get(old) is not then[old]:
                    raise RoseError(f"The plugin {name} takes the name {old!r}, which is in use; choose another.")
        if is_new and [len(registry) for registry in registries] == [len(registry) for registry in before]:
            raise RoseError(f"The plugin {name} registers no method and no order; see rose.register.")
    except BaseException:
        for registry, then in zip(registries, before, strict=True):
            registry.clear()
            registry.update(then)
        ORDER_NAMES[:] = ORDERS
        raise
