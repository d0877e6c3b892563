"""What a browser session has chosen, and what all sessions share. The only place with `st.cache_*`.

Choices live in `st.session_state`, are mirrored into the URL by `publish`, and are read from it once, when a
session starts. Widgets of single pages may use `bind="query-params"` for choices that only they have.
"""

from __future__ import annotations

import gc
import threading
import uuid
from collections.abc import Callable
from functools import cache
from typing import Literal, cast

import streamlit as st
from torch import nn

import rose
from app import cache as disk
from app.jobs import Job
from app.pruning import PruningRun
from app.request import Request
from app.study import Calibration, LoadedModel, Setup, Study
from rose.model.loading import load_skeleton
from rose.paths import expand

DEFAULT_THRESHOLD = 0.5
RECENT = 5
KEPT_STUDIES = 4
KEPT_MODELS = 2
DRAFT = "draft_"  # in the URL, before the names of choices that were edited since the study


@st.cache_resource(max_entries=KEPT_MODELS, show_spinner=False)
def _loaded_model(name: str, dtype: str) -> LoadedModel:
    before = disk.model_identity(name)
    model, tokenizer = rose.load_model(name, dtype=dtype)
    is_here = expand(name).exists()  # or else it is loading that brings the files
    return LoadedModel(model, tokenizer, threading.Lock(), before if is_here else disk.model_identity(name))


def _load(name: str, dtype: str) -> LoadedModel:
    """The model that the name stands for now, from memory where its files are still those it was read from."""
    loaded = _loaded_model(name, dtype)
    if loaded.identity != disk.model_identity(name):
        _loaded_model.clear(name, dtype)
        loaded = _loaded_model(name, dtype)
    return loaded


@st.cache_resource(max_entries=2, show_spinner=False)
def _kept_calibration(key: tuple) -> Calibration:
    return Calibration()


def _calibration(key: tuple, files: disk.Files) -> Calibration:
    """Of these files; one of earlier files is left to the studies that have it."""
    if _kept_calibration(key).files not in (None, files):
        _kept_calibration.clear(key)
    return _kept_calibration(key)


@st.cache_resource(show_spinner=False)
def _studies() -> dict[Setup, Study]:
    """Every study that somebody started, the one started or joined last at the end."""
    return {}


@st.cache_resource(max_entries=8, show_spinner=False)
def _skeleton(name: str, identity: str | None) -> nn.Module:
    return load_skeleton(name)


def skeleton(name: str) -> nn.Module:
    """The model's structure without weights, for layer names and cost estimates.

    Raises:
        RoseError: no such model.
    """
    return _skeleton(name, disk.model_identity(name))


@st.cache_resource(show_spinner=False)
def _start_lock() -> threading.Lock:
    return threading.Lock()


def viewer() -> str:
    """Names this browser session towards background jobs."""
    return st.session_state.setdefault("viewer", uuid.uuid4().hex)


def start_job(job: Job, tell: Callable[[], str]) -> None:
    """Starts background work of this session, which the sidebar keeps alive on every page.

    Args:
        tell: says, for the sidebar, what it is and how far it is.
    """
    job.watch(viewer())
    job.start()
    st.session_state.jobs = [*running_jobs(), (job, tell)]


def running_jobs() -> list[tuple[Job, Callable[[], str]]]:
    """The work of this session that `start_job` has started and that goes on."""
    started = st.session_state.get("jobs", [])
    st.session_state.jobs = [(job, tell) for job, tell in started if job.status == "running" and not job.is_cancelled]
    return st.session_state.jobs


def leave(job: Job) -> bool:
    """Cancels work for this session; says whether it stops, which it does not while another session watches it."""
    return job.leave(viewer())


@cache
def _set_imports_apart() -> None:
    """Takes the 400 000 objects of torch and transformers out of garbage collection, once per process.

    A collection that looks at them takes 0.3 s in which no other thread runs. Without them it takes milliseconds, and
    comes often enough to clear away what an ended session has left.
    """
    gc.collect()
    gc.freeze()


def begin() -> None:
    """Loads plugins, and reads the URL when a session starts; call it first on every run."""
    _set_imports_apart()
    try:
        rose.load_plugins()
        st.session_state.plugin_problem = ""
    except rose.RoseError as problem:
        st.session_state.plugin_problem = str(problem)
    if "setup" in st.session_state:
        return
    texts = {key: value for key, value in st.query_params.items() if isinstance(value, str)}
    edits = {key.removeprefix(DRAFT): value for key, value in texts.items() if key.startswith(DRAFT)}
    st.session_state.setup, st.session_state.link_problem = Setup(), ""
    try:
        linked, edited = Setup.from_texts(texts), Setup.from_texts(texts | edits)
        linked.check()
        edited.check()
        st.session_state.setup, st.session_state.draft = linked, edited
    except rose.RoseError as problem:
        st.session_state.link_problem = str(problem)
    st.session_state.chosen_layer = texts.get("layer")
    try:
        st.session_state.chosen_threshold = min(1.0, max(0.0, float(texts.get("threshold", DEFAULT_THRESHOLD))))
    except ValueError:
        st.session_state.chosen_threshold = DEFAULT_THRESHOLD


def publish() -> None:
    """Writes the shared choices into the URL, so that a link restores the view."""
    shared = dict(setup().to_texts())
    if layer():
        shared["layer"] = cast(str, layer())
    if threshold() != DEFAULT_THRESHOLD:
        shared["threshold"] = f"{threshold():g}"
    shared |= {DRAFT + name: value for name, value in _edits().items()}
    names = list(Setup.__dataclass_fields__)
    known = {*names, *(DRAFT + name for name in names), "layer", "threshold"}
    for key in known:
        if key in shared:
            if st.query_params.get(key) != shared[key]:
                st.query_params[key] = shared[key]
        elif key in st.query_params:
            del st.query_params[key]


def _edits() -> dict[str, str]:
    """What the draft has otherwise than the set-up; nothing where no link should lead to it, as it cannot run."""
    try:
        draft().check()
    except rose.RoseError:
        return {}
    return draft().changes(setup())


def setup() -> Setup:
    """The set-up this session looks at."""
    return st.session_state.setup


def choose_setup(chosen: Setup) -> None:
    """Looks at another set-up; its study is started by `start`."""
    st.session_state.setup = st.session_state.draft = chosen
    recent = [chosen, *(other for other in recent_setups() if other != chosen)]
    st.session_state.recent = recent[:RECENT]


def draft() -> Setup:
    """The set-up being put together on the start page; that of this session until it is edited."""
    return st.session_state.get("draft", setup())


def choose_draft(edited: Setup) -> None:
    """Keeps an edited set-up. Where nothing has been measured yet, it is also the one that all pages look at."""
    st.session_state.draft = edited
    if study() is None:
        try:
            edited.check()
        except rose.RoseError:
            return
        st.session_state.setup = edited


def recent_setups() -> list[Setup]:
    """Set-ups this session has run, latest first."""
    return st.session_state.get("recent", [])


def study() -> Study | None:
    """The study of the current set-up, running or finished by any session; None where it was never started."""
    return _studies().get(setup())


def is_outdated(finished: Study) -> bool:
    """Whether the files of its model or text have been replaced since it was begun."""
    return finished.job.status == "done" and finished.files != disk.files_of(finished.setup)


def start() -> Study:
    """Starts the study of the current set-up, or joins the one that runs or has finished."""
    chosen = setup()
    with _start_lock():
        studies = _studies()
        current = studies.pop(chosen, None)
        # One that is being cancelled would end under whoever joins it; a new one waits until it has let go.
        ended = current is not None and (current.job.is_cancelled or current.job.status in ("failed", "cancelled"))
        fresh = current is None or ended or is_outdated(current)
        if current is None or fresh:
            files = disk.files_of(chosen)
            calibration = _calibration(chosen.calibration_key, files)
            current = Study(chosen, lambda: _load(chosen.model, chosen.dtype), calibration, files)
        current.job.watch(viewer())
        studies[chosen] = current
        if fresh:
            _forget(studies)
            current.job.start()
    return current


def _forget(studies: dict[Setup, Study]) -> None:
    """Drops the studies that were started longest ago: each holds a model and the statistics of all its layers."""
    newest: list[Study] = []
    for one in reversed(list(studies.values())):
        models = {(kept.setup.model, kept.setup.dtype, kept.files.model) for kept in [*newest, one]}
        if one.job.status != "running" and (len(newest) >= KEPT_STUDIES or len(models) > KEPT_MODELS):
            del studies[one.setup]
        else:
            newest.append(one)


def _let_go(runs: list[PruningRun]) -> None:
    for run in runs:
        run.let_go()


@st.cache_resource(scope="session", on_release=_let_go, show_spinner=False)
def _held() -> list[PruningRun]:
    """The run whose files a connected browser may still ask for; released when the connection ends."""
    return []


def pruning() -> PruningRun | None:
    """This session's latest run over copies of the whole model."""
    run = st.session_state.get("pruning")
    if run is not None and run not in _held():
        run.hold()
        _held()[:] = [run]
    return run


def start_pruning(request: Request) -> None:
    """Prunes copies of the current set-up's model; an earlier run is stopped, and its temporary files go."""
    chosen, earlier = setup(), pruning()
    if earlier is not None:
        leave(earlier.job)
        earlier.discard()
    run = PruningRun(chosen, request, lambda: _load(chosen.model, chosen.dtype))
    st.session_state.pruning = run
    start_job(run.job, lambda: f":material/content_cut: Pruning, {100 * run.fraction:.0f} % done")


def layer() -> str | None:
    """The layer chosen on any page, as a full dotted name."""
    return st.session_state.get("chosen_layer")


def choose_layer(name: str) -> None:
    """Chooses a layer for all pages. Inside a callback, or before the sidebar is drawn, or followed by a rerun."""
    st.session_state.chosen_layer = name


def threshold() -> float:
    """The threshold on the relative range, for all pages."""
    return st.session_state.get("chosen_threshold", DEFAULT_THRESHOLD)


def choose_threshold(value: float) -> None:
    st.session_state.chosen_threshold = value


def theme() -> Literal["light", "dark"]:
    """The colour theme on the viewer's screen; right from the first rerun on."""
    return "dark" if st.context.theme.type == "dark" else "light"
