"""Models, studies and runs of all browser sessions, in one registry. The only place with `st.cache_*`."""

import gc
import math
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import psutil
import streamlit as st
from torch import nn

import rose
from app.jobs import current, holding, is_busy, return_memory, when_any_ends
from app.registry import Registry
from app.runs.checked import CheckpointRun, setup_of
from app.runs.damage import DamageRun
from app.runs.pruning import PruningRun
from app.study import cache as disk
from app.study.setup import Setup
from app.study.study import Calibration, LoadedModel, Study
from rose.files import expand
from rose.model.load.models import is_hub_id, load_skeleton, parse_dtype
from rose.recipe.steps import CheckCopies, Damage

IDLE = 600.0  # seconds without a page before memory is freed
SHARE = 0.5  # of this machine's memory, which the registry may fill
ASKED_ON_START = "; the dialog Measure a model has a button that asks the Hub for it"
Key = tuple[str | None, ...]

registry = Registry(SHARE * psutil.virtual_memory().total)
when_any_ends.append(lambda: registry.make_room())  # what has become of the budget during the work
_loading = threading.Lock()  # one model is read at a time: transformers changes torch's default dtype meanwhile
_calibrations: weakref.WeakValueDictionary[tuple, Calibration] = weakref.WeakValueDictionary()  # studies hold them


def load(name: str, dtype: str, *, stream: bool = False) -> LoadedModel:
    """The model of this name, from memory unless its files have changed since it was read.

    The work of this thread uses it until the work ends, and waits if it does not fit into memory.
    """
    key, job = (name, dtype, stream), current()
    if (loaded := _present(key)) is not None:
        return loaded
    with nullcontext() if job is None else holding(_loading, job):
        if (loaded := _present(key)) is not None:
            return loaded
        registry.wait_for_room(0 if stream else _size(name, dtype))
        before = disk.model_identity(name)
        model, tokenizer = rose.load_model(name, dtype=dtype, stream=stream)
        identity = before if expand(name).exists() else disk.model_identity(name)  # loading may download the files
        loaded = LoadedModel(model, tokenizer, threading.Lock(), identity)
        loaded.use()
        return registry.put(LoadedModel, key, loaded)


def _present(key: tuple[str, str, bool]) -> LoadedModel | None:
    with registry.lock:
        loaded = registry.get(LoadedModel, key)
        if loaded is not None and loaded.identity == disk.model_identity(key[0]):
            loaded.use()
            return loaded
        registry.remove(LoadedModel, key)
    return None


def _size(name: str, dtype: str) -> int:
    """Bytes of a model's weights; 0 for a model that is not on this machine yet."""
    try:
        return sum(weight.numel() for weight in skeleton(name).parameters()) * parse_dtype(dtype).itemsize
    except rose.RoseError:
        return 0  # loading it says why


@st.cache_resource(max_entries=8, show_spinner=False)
def _skeleton(name: str, identity: str | None) -> nn.Module:
    return load_skeleton(name, offline=True)


def skeleton(name: str) -> nn.Module:
    """The model's structure without weights; RoseError where it is not on this machine: pages ask nobody."""
    identity = disk.model_identity(name)
    if identity is None and is_hub_id(name):
        raise rose.RoseError(f"{name} is not on this machine{ASKED_ON_START}.")
    return _skeleton(name, identity)


def is_outdated(finished: Study) -> bool:
    """Whether the files of its model or text have been replaced since it was begun."""
    return finished.job.status in ("done", "kept") and finished.files != disk.files_of(finished.setup)


def _new(chosen: Setup) -> Study:
    files, key = disk.files_of(chosen), chosen.calibration_key
    calibration = _calibrations.get(key)
    if calibration is None or calibration.files not in (None, files):  # studies of earlier files keep theirs
        calibration = _calibrations[key] = Calibration()
    return Study(chosen, lambda: load(chosen.model, chosen.dtype, stream=chosen.stream), calibration, files)


def find(chosen: Setup) -> Study | None:
    """This set-up's study, running or finished by any session; else what is on disk of it; else None."""
    if (study := registry.get(Study, chosen)) is not None:
        return study
    if disk.recall(chosen, disk.files_of(chosen)) is not None:
        with registry.lock:
            restored = _new(chosen)
            if registry.get(Study, chosen) is None and restored.restore():
                registry.put(Study, chosen, restored)
    return registry.get(Study, chosen)


_asked = [time.monotonic()]  # when a page or a part of one was last drawn


def seen() -> int:
    """A page, or a part of one, is drawn: somebody is there. Returns how often memory was given back so far."""
    _asked[0] = time.monotonic()
    return registry.times_freed


def let_go_when_idle(
    after: float = IDLE,
    *,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], Any] = time.sleep,
    goes_on: Callable[[], bool] = lambda: True,
) -> None:
    """Gives memory back whenever nothing runs and nobody has asked for a page for `after` seconds."""
    given_back = -math.inf
    while goes_on():
        wait(min(after, 30.0))
        if clock() - _asked[0] > after and _asked[0] > given_back and not is_busy():
            let_go()
            given_back = clock()


def let_go() -> None:
    """Gives back models and inputs of layers; an open page keeps its numbers."""
    registry.give_back()
    gc.unfreeze()  # what the first session, there when imports were frozen, has left is garbage only now
    return_memory()
    gc.freeze()


def start(chosen: Setup, viewer: str, *, go_on: bool = False) -> None:
    """Starts this set-up's study for a session, or joins a running or finished study; see `Study.go_on`."""

    def make(_earlier: Study | None) -> Study:
        study = _new(chosen)
        study.go_on = go_on
        return study

    with registry.lock:
        earlier = registry.get(Study, chosen)
        if earlier is not None and is_outdated(earlier):
            registry.remove(Study, chosen)
        elif earlier is not None and earlier.job.status == "kept":
            earlier.go_on = go_on
        registry.join(Study, chosen, make, viewer)


def keep_pruning(run: PruningRun) -> str:
    """Keeps a run where all sessions find it; returns its name."""
    name = uuid.uuid4().hex[:8]
    registry.put(PruningRun, name, run)
    return name


def prunings() -> dict[str, PruningRun]:
    """The runs of all sessions, by the name that links use, the latest last."""
    return registry.all(PruningRun)


def publish(report: rose.RunReport) -> None:
    """Keeps the record of a finished copy where all sessions can compare it."""
    registry.put(rose.RunReport, uuid.uuid4(), report)


def key_of(request: Damage | CheckCopies) -> Key:
    """The recipe and the identities of its files: replaced files are measured anew."""
    if isinstance(request, CheckCopies):
        names = [request.dense, request.pruned[0]]
    else:
        names = [request.model, request.restore or ""]
    return request.model_dump_json(), *(disk.model_identity(name) for name in names if name)


def start_damage(request: Damage, viewer: str) -> DamageRun:
    """Starts a measurement for a session, joins a running or finished one, or continues a stopped measurement."""

    def make(earlier: DamageRun | None) -> DamageRun:
        return DamageRun(request, partial(load, request.model, request.dtype), earlier.records if earlier else ())

    return registry.join(DamageRun, key_of(request), make, viewer)


def start_check(request: CheckCopies, viewer: str) -> CheckpointRun:
    """As `start_damage`, for a check of a checkpoint."""
    setup = setup_of(request)
    load_dense = partial(load, setup.model, setup.dtype, stream=setup.stream)
    return registry.join(CheckpointRun, key_of(request), lambda _: CheckpointRun(request, load_dense), viewer)


@cache
def set_imports_apart() -> None:
    """Takes the 400 000 objects of torch and transformers out of garbage collection, once per process.

    A collection that looks at them stops all threads for 0.3 s; without them it takes milliseconds, and comes often.
    """
    gc.collect()
    gc.freeze()
