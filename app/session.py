"""The choices of a browser session: set-up, layer, threshold, and the work that it has started.

Choices live in `st.session_state`, are mirrored into the URL by `publish`, and are read from it once, when a
session starts. Widgets of single pages may use `bind="query-params"` for choices that only they have.
"""

import math
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.web.server.starlette.starlette_app_utils import decode_xsrf_token_string
from streamlit.web.server.starlette.starlette_server_config import XSRF_COOKIE_NAME

import rose
from app import shared, words
from app.jobs import Job, Run
from app.runs.copies import CopyRun, Tuning
from app.runs.kept_copies import FileRun
from app.runs.pruning import PruneRequest, PruningRun
from app.study.cache import FINISHED
from app.study.setup import CHOSEN, Setup
from app.study.study import Study
from rose.layer.pattern import THRESHOLD
from rose.recipe.steps import Damage

RECENT = 5
PRUNING = "content_cut: Pruning"
TUNING = "model_training: Tuning"
WRITING = "folder_zip: Writing a file"


def viewer() -> str:
    """This session, see `Job.watch`; Streamlit's cookie identifies its browser."""
    if "viewer" not in st.session_state:
        browser, _ = decode_xsrf_token_string(st.context.cookies.get(XSRF_COOKIE_NAME, ""))
        session = uuid.uuid4().hex
        st.session_state.viewer = f"{browser.hex() if browser else session}/{session}"
    return st.session_state.viewer


def follow(run: Run, label: str) -> None:
    """Watches background work, which the head of every page keeps alive and tells of from now on.

    `label` begins with the name of an icon.
    """
    run.job.watch(viewer())
    if all(run is not other for other, _ in running()):
        st.session_state.running = [*running(), (run, label)]


def run_in(slot: str) -> Any:
    """This session's latest run in a slot; None without one, or where it was dropped for later work."""
    return shared.registry.get(Run, (viewer(), slot))


def start_run(slot: str, make: Callable[[], Run], label: str) -> None:
    """Callback: starts work in a slot of the session; the session leaves earlier work in the slot."""
    earlier = run_in(slot)
    for work in () if earlier is None else (earlier, *getattr(earlier, "begun", ())):
        leave(work.job)
    _begin(shared.registry.put(Run, (viewer(), slot), make()), label)


def _begin(run: Run, label: str) -> None:
    follow(run, label)
    run.job.start()


def running() -> list[tuple[Run, str]]:
    """The work of this session that is still running, with its labels."""
    started = st.session_state.get("running", [])
    going_on = [(run, label) for run, label in started if run.job.status == "running" and not run.job.is_cancelled]
    st.session_state.running = going_on
    return going_on


def leave(job: Job) -> bool:
    return job.leave(viewer())


def begin() -> None:
    """Comes first on every run: loads plugins, and reads the URL of a new session, or its layer if it has changed."""
    shared.set_imports_apart()
    shared.seen()
    try:
        rose.load_plugins()
        st.session_state.plugin_problem = ""
    except rose.RoseError as problem:
        st.session_state.plugin_problem = str(problem)
    texts = {key: value for key, value in st.query_params.items() if isinstance(value, str)}
    there = texts.get("layer")
    if "setup" not in st.session_state:
        _read_link(texts)
    elif there and there != st.session_state.get("published_layer", there):
        choose_layer(there)  # the browser's Back and Forward: a URL other than the one last written
    elif not there and (context := get_script_run_ctx()) is not None and context.is_history_navigation:
        st.session_state.chosen_layer = None  # the browser went back to before one was chosen


def _read_link(texts: dict[str, str]) -> None:
    """Reads the URL of a new session; wrong values keep their defaults, and the page says so."""
    st.session_state.setup, problems = Setup.read(texts)
    st.session_state.chosen_layer = st.session_state.linked_layer = texts.get("layer")
    # Without a run in the link, the latest that this browser has started: its results are in front after a reload.
    started_here = (name for name, run in reversed(list(shared.prunings().items())) if run.job.is_by(viewer()))
    st.session_state.pruning, st.session_state.own_pruning = texts.get("run") or next(started_here, None), None
    text = texts.get("threshold", str(THRESHOLD))
    try:
        read = float(text)
    except ValueError:
        read = math.nan
    if math.isnan(read):
        problems.append(f"The link has threshold={text!r}, which is not a number.")
        read = THRESHOLD
    st.session_state.chosen_threshold = min(1.0, max(0.0, read))
    name, run = st.session_state.pruning, pruning()
    if name is not None and run is None:
        problems.append(f"This server no longer has the run {name!r} of the link.")
        st.session_state.pruning = None
    elif run is not None and run.job.is_by(viewer()):
        st.session_state.own_pruning = name  # the page was reloaded
    st.session_state.link_problem = " ".join(problems)


def publish() -> None:
    """Writes the shared choices into the URL, so that a link restores the view: all that nobody chose is left out."""
    chosen, name = setup().to_texts(), None if st.session_state.get("layer_by_default") else layer()
    if name is not None:
        chosen["layer"] = name
    if threshold() != THRESHOLD:
        chosen["threshold"] = f"{threshold():g}"
    if st.session_state.get("pruning"):
        chosen["run"] = st.session_state.pruning
    for key in (*CHOSEN, "layer", "threshold", "run"):  # always in this order: one view has one link
        if key not in chosen:
            st.query_params.pop(key, None)
        elif st.query_params.get(key) != chosen[key]:
            st.query_params[key] = chosen[key]
    st.session_state.published_layer = name


def setup() -> Setup:
    return st.session_state.setup


def choose_setup(chosen: Setup) -> None:
    """Looks at another set-up; its study is started by `start`. A study at work goes on."""
    if chosen == setup():
        return
    former = study()
    if former is not None and former.job.status == "running":
        follow(former, f"grid_on: Measuring {words.plain(former.setup.model)}")
    st.session_state.setup = chosen
    st.session_state.link_problem = ""
    recent = st.session_state.get("recent", [])
    st.session_state.recent = [chosen, *(other for other in recent if other != chosen)][:RECENT]


def studies() -> list[Setup]:
    """Set-ups to look at: those that come with the app, what this browser has measured, and what it looks at."""
    own = [study.setup for study in shared.registry.all(Study).values() if study.job.is_by(viewer())]
    finished = [study for study, file in FINISHED.items() if file.exists()]
    return list(dict.fromkeys([*finished, *own, *st.session_state.get("recent", []), setup()]))


def ask_for_model(chosen: Setup | None = None) -> None:
    """Callback: opens the dialog with the settings of a set-up."""
    st.session_state.update(choosing=True, form_setup=chosen or setup(), form_is_new=True)


def measure(chosen: Setup) -> None:
    """Looks at a set-up and starts its study."""
    choose_setup(chosen)
    start()


def start(*, go_on: bool = False) -> None:
    """Starts the study of the current set-up, or joins a running or finished study; see `shared.start`."""
    shared.start(setup(), viewer(), go_on=go_on)


def study() -> Study | None:
    """The study of the current set-up, running, finished by any session, or kept on disk; None without one."""
    return shared.find(setup())


def sees_at_work(run: Run | None) -> bool:
    """Whether a run, or the tuning of its copies, goes on; the app's `main` draws the page again once it has ended."""
    both = (run, getattr(run, "tuning", None))
    seen = [work for work in both if work is not None and work.job.status == "running"]
    st.session_state.setdefault("seen_at_work", []).extend(seen)
    return bool(seen)


def pruning(slot: str = "pruning") -> PruningRun | None:
    """The server's pruning run that the page shows, or, in the slot "own_pruning", that this session started."""
    run = shared.registry.get(PruningRun, st.session_state.get(slot) or "")
    if run is not None:  # after a reload, or a link, it is not followed yet
        for work, label in ((run, PRUNING), (run.tuning, TUNING), (run.file, WRITING)):
            if work is not None and work.job.status == "running":
                follow(work, label)
    return run


def follow_pruning(name: str) -> None:
    """Looks at another of the server's runs; the files of this session's own stay."""
    st.session_state.pruning = name
    st.session_state.link_problem = ""


def start_pruning(request: PruneRequest) -> None:
    """Prunes copies of the current set-up's model; the session leaves its own earlier run."""
    earlier = pruning("own_pruning")
    if earlier is not None:
        leave(earlier.job)
    chosen = setup()
    run = PruningRun(chosen, request, lambda: shared.load(chosen.model, chosen.dtype), shared.publish)
    name = st.session_state.own_pruning = shared.keep_pruning(run)
    follow_pruning(name)
    _begin(run, PRUNING)


def start_tuning(run: CopyRun, name: str, minutes: float) -> None:
    """Tunes a kept copy of a finished run, unless a session tunes a copy of it already."""
    with shared.registry.lock:
        if run.is_tuning:
            return
        try:
            tuning = Tuning(run, name, minutes, lambda: shared.load(run.setup.model, run.setup.dtype))
        except rose.RoseError as problem:
            st.toast(words.plain(problem), icon=":material/warning:")
            return
        run.begin("tuning", tuning)
    _begin(tuning, TUNING)


def start_file(run: PruningRun, folder: Path, form: str) -> None:
    """Writes the checkpoint of a kept copy in another form, one at a time; the run's earlier file goes."""
    with shared.registry.lock:
        if run.file is not None and run.file.job.status == "running":
            return
        file = FileRun(folder, form)
        run.begin("file", file)
    _begin(file, WRITING)


def start_damage(request: Damage) -> None:
    """Measures damage, or joins such a run."""
    follow(shared.start_damage(request, viewer()), "healing: Measuring sensitivity")


def layer() -> str | None:
    return st.session_state.get("chosen_layer")


def choose_layer(name: str, *, by_default: bool = False) -> None:
    """Chooses a layer for all pages; `by_default`, until more has been measured."""
    if not by_default:
        st.session_state.link_problem = ""  # has been read
        by_default = name == layer() and st.session_state.get("layer_by_default", False)
    st.session_state.chosen_layer = name
    st.session_state.layer_by_default = by_default


def keep_layer(study: Study) -> str | None:
    """The chosen layer, if it is there; else the most columnar layer until a person chooses."""
    names = study.layer_names
    if names and (layer() not in names or (st.session_state.get("layer_by_default") and study.is_measured)):
        choose_layer(study.most_columnar() or names[0], by_default=True)
    linked = st.session_state.pop("linked_layer", None)
    if linked is not None and names and linked not in names:
        st.session_state.link_problem += (
            f" The link asks for the layer {linked}, which was not measured here; another layer is shown."
        )
    return layer() if names else None


def threshold() -> float:
    return st.session_state.get("chosen_threshold", THRESHOLD)


def theme() -> Literal["light", "dark"]:
    """The colour theme on the viewer's screen; right from the first rerun on."""
    return "dark" if st.context.theme.type == "dark" else "light"
