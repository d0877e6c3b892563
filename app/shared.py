"""Models, calibrations and studies, shared by all browser sessions. The only place with `st.cache_*`."""

import gc
import math
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVar

import streamlit as st
from torch import nn

import rose
from app.jobs import Run, is_busy, return_memory
from app.runs.checked import CheckpointRun, setup_of
from app.runs.damage import DamageRun
from app.runs.diffusion import DenseModel
from app.runs.pruning import PruningRun
from app.study import cache as disk
from app.study.setup import Setup
from app.study.study import Calibration, LoadedModel, Study, held_by
from rose.files import expand
from rose.model.load.models import is_hub_id, load_skeleton
from rose.recipe.steps import CheckCopies, Damage

IDLE = 600.0  # seconds without a page before memory is freed
KEPT_STUDIES = 4
OLDER_BYTES = 10**9  # of statistics and results, held by all studies but the newest
KEPT_MODELS = 2
KEPT_RUNS = 8
KEPT_MEASUREMENTS = 16  # of each kind
KEPT_REPORTS = 40
ASKED_ON_START = "; the page Start has a button that asks the Hub for it"
R = TypeVar("R", bound=Run)
Key = tuple[str | None, ...]

# Runs that sessions have started, the latest last: one object for all sessions.
studies: Callable[[], dict[Setup, Study]] = cache(dict)
prunings: Callable[[], dict[str, PruningRun]] = cache(dict)  # by the name that links use
damages: Callable[[], dict[Key, DamageRun]] = cache(dict)
checks: Callable[[], dict[Key, CheckpointRun]] = cache(dict)
reports: Callable[[], deque[rose.RunReport]] = cache(partial(deque, maxlen=KEPT_REPORTS))  # of pruned copies
start_lock = threading.Lock()  # held while it is decided whether work begins: two sessions may ask at one moment
_calibrations: weakref.WeakValueDictionary[tuple, Calibration] = weakref.WeakValueDictionary()  # studies hold them


@st.cache_resource(max_entries=KEPT_MODELS, show_spinner=False)
def _loaded_model(name: str, dtype: str, stream: bool) -> LoadedModel:
    before = disk.model_identity(name)
    model, tokenizer = rose.load_model(name, dtype=dtype, stream=stream)
    is_here = expand(name).exists()  # else loading downloads the files
    return LoadedModel(model, tokenizer, threading.Lock(), before if is_here else disk.model_identity(name))


def load(name: str, dtype: str, *, stream: bool = False) -> LoadedModel:
    """The model of this name, from memory unless its files have changed since it was read."""
    loaded = _loaded_model(name, dtype, stream)
    if loaded.identity != disk.model_identity(name):
        _loaded_model.clear(name, dtype, stream)
        loaded = _loaded_model(name, dtype, stream)
    return loaded


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
    measured = studies()
    if chosen not in measured and disk.recall(chosen, disk.files_of(chosen)) is not None:
        with start_lock:
            restored = _new(chosen)
            if chosen not in measured and restored.restore():
                measured[chosen] = restored
    return measured.get(chosen)


_asked = [time.monotonic()]  # when a page or a part of one was last drawn
_times_let_go = [0]


def seen() -> int:
    """A page, or a part of one, is drawn: somebody is there. Returns how often memory was given back so far."""
    _asked[0] = time.monotonic()
    return _times_let_go[0]


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
    """Drops the models, and studies that ended early or come back from disk; an open page keeps their numbers."""
    with start_lock:
        for chosen, study in list(studies().items()):
            is_kept = study.job.status in ("done", "kept") and disk.recall(chosen, disk.files_of(chosen)) is not None
            if is_kept or study.job.status in ("failed", "cancelled"):
                del studies()[chosen]
                study.let_go()
    _times_let_go[0] += 1
    _loaded_model.clear()
    gc.unfreeze()  # what the first session, there when imports were frozen, has left is garbage only now
    return_memory()
    gc.freeze()


def start(chosen: Setup, viewer: str, *, go_on: bool = False) -> None:
    """Starts this set-up's study for a session, or joins a running or finished study; see `Study.go_on`."""
    with start_lock:
        running = studies()
        current = running.pop(chosen, None)
        if current is None or current.job.is_over or is_outdated(current):
            current, fresh = _new(chosen), True
        else:
            fresh = current.job.status == "kept"
        current.job.watch(viewer)
        running[chosen] = current
        if fresh:
            current.go_on = go_on
            _forget(running)
            current.job.start()


def _forget(studies: dict[Setup, Study]) -> None:
    """Drops the oldest studies, which hold a model and statistics; they are read from disk when a page needs them."""
    newest: list[Study] = []
    for study in reversed(list(studies.values())):
        if study.job.status == "kept" and study.loaded is None:
            continue  # it holds neither
        models = {(recent.setup.model, recent.setup.dtype, recent.files.model) for recent in [*newest, study]}
        is_large = newest and held_by([*newest[1:], study]) > OLDER_BYTES
        if study.job.status != "running" and (len(newest) >= KEPT_STUDIES or len(models) > KEPT_MODELS or is_large):
            del studies[study.setup]
        else:
            newest.append(study)


def keep_pruning(run: PruningRun) -> str:
    """Keeps a run where all sessions find it, and drops those that ended longest ago; returns its name."""
    runs, name = prunings(), uuid.uuid4().hex[:8]
    with start_lock:  # none may be tuned from now on that is dropped
        runs[name] = run
        _drop_ended(runs, KEPT_RUNS)
    return name


def _drop_ended(runs: dict[Any, R], limit: int) -> None:
    """Drops runs beyond `limit`: runs without files first, then the oldest."""
    ended = [(run._folder is not None, key) for key, run in list(runs.items()) if not run.is_at_work]
    ended.sort(key=lambda entry: entry[0])
    for _, key in ended[: max(0, len(runs) - limit)]:
        runs.pop(key).discard()


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

    return _join(damages(), key_of(request), make, viewer)


def start_check(request: CheckCopies, viewer: str) -> CheckpointRun:
    """As `start_damage`, for a check of a checkpoint."""
    setup = setup_of(request)
    load_dense = partial(load, setup.model, setup.dtype, stream=setup.stream)
    return _join(checks(), key_of(request), lambda _: CheckpointRun(request, load_dense), viewer)


def _join(runs: dict[Key, R], key: Key, make: Callable[[R | None], R], viewer: str) -> R:
    """Starts a run for a session, or joins a running or finished run; `make` gets a run that ended early."""
    with start_lock:
        current = runs.pop(key, None)
        if current is None or current.job.is_over:
            current = make(current)
            current.job.watch(viewer)
            current.job.start()
        runs[key] = current
        _drop_ended(runs, KEPT_MEASUREMENTS)
    return current


@cache
def set_imports_apart() -> None:
    """Takes the 400 000 objects of torch and transformers out of garbage collection, once per process.

    A collection that looks at them stops all threads for 0.3 s; without them it takes milliseconds, and comes often.
    """
    gc.collect()
    gc.freeze()


@st.cache_resource(show_spinner=False)
def dense_diffusion() -> DenseModel:
    """The packaged diffusion model and the pictures it has drawn, for all sessions; needs diffusers."""
    return DenseModel(rose.load_diffusion())
