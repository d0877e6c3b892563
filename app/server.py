"""Serves the app: python app/server.py [options of `streamlit run`].

Streamlit reads a page's modules when the first browser asks for it. Here torch, transformers and plotly are read while
the server starts, so that the first page does not wait for them. What other pages' first visits need is read next.
"""

import importlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

FIRST = ("numpy", "PIL.ImageFile", "streamlit.material_icon_names")  # which every first picture needs
MODULES = ("app.session", "app.sidebar", "app.figures.maps")
LATER = ("streamlit.emojis", "app.lab.basis", "app.lab.race_of_solvers", "app.results.prune_results")
HOME = Path(__file__).parent
SPARE = 4 * 2**30  # bytes of free memory from which on the example's model and layer are read before a page needs them
WAIT = 5.0  # seconds: the first page of who comes with the server has the processor for itself


def wait_for_pages(seconds: float = 0.3, times: int = 15) -> None:
    """Leaves the processor to a page that is drawn, and to the browser, which shows the page in these seconds.

    Goes on if somebody waits for work, which may need what is read ahead.
    """
    from app.jobs import is_busy

    for _ in range(times):
        if is_busy() or all(thread.name != "ScriptRunner.scriptThread" for thread in threading.enumerate()):
            return
        time.sleep(seconds)


def read_ahead() -> None:
    """Loads ahead for first visits: this machine's speed, finished runs, and the example's model and layer."""
    import psutil

    from app import shared
    from app.jobs import return_memory
    from app.lab import your_order
    from app.results import pairs
    from app.runs import example
    from app.study.setup import Setup
    from app.study.study import InputsRun
    from rose.interrupt import stoppable
    from rose.layer.pattern import THRESHOLD
    from rose.model.estimate import matmul_rate
    from rose.model.network.precision import bfloat16_gain

    time.sleep(WAIT / 2)  # the browser draws
    setup = Setup()
    steps: list[Callable[[], Any]] = [partial(importlib.import_module, name) for name in LATER]
    steps.append(lambda: pairs.cautions_of(example.pruning().copies))  # which the records keep
    steps += [partial(shared.skeleton, setup.model), matmul_rate, bfloat16_gain]
    for step in steps:
        wait_for_pages()
        step()
    study = shared.find(setup)
    layer = study and study.most_columnar()  # which Layer and Order lab open on
    if study and layer and study.has_stored(layer) and psutil.virtual_memory().available > SPARE:
        wait_for_pages()
        with stoppable(partial(wait_for_pages, 0.01, 1)):  # not longer: a page may wait for the model
            study.collect(layer, InputsRun(study, layer))
        return_memory()
        study.overview(THRESHOLD)
        your_order.opening(study, layer, "light")


def read_modules() -> None:
    """Once somebody sees a first picture, or nobody comes; also looks after memory from then on."""
    first = importlib.import_module("app.first")
    if first.drawn.wait(WAIT):
        time.sleep(first.PAUSE)
    for name in MODULES:
        importlib.import_module(name)
    first.ready.set()
    threading.Thread(target=read_ahead, daemon=True).start()  # its failure must not stop the return of memory
    importlib.import_module("app.shared").let_go_when_idle()


def accept_own_pages_only() -> None:
    """Lets only pages of the server's own address, port included, or of named addresses talk to it.

    Streamlit (1.67) takes pages of every port of this machine, and asks a web service for its other addresses.
    """
    from streamlit.web.server import server_util
    from streamlit.web.server.starlette import starlette_websocket

    def is_named(url: str) -> bool:
        return server_util.allow_all_cross_origin_requests() or server_util.is_allowed_origin(url)

    starlette_websocket.is_url_from_allowed_origins = is_named


def main() -> None:
    sys.path.insert(0, str(HOME.parent))  # in place of this folder, whose modules are app.…
    sys.setswitchinterval(0.0005)  # seconds: a page waits so long for each turn while another thread computes
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while it is read; it has its own handler later
    from streamlit.web import cli  # at first: Plotly, which it reads, trips over a pandas that a thread has half read

    for name in FIRST:
        importlib.import_module(name)
    importlib.import_module("app.first").pictures()
    accept_own_pages_only()
    threading.Thread(target=read_modules, daemon=True).start()
    sys.argv = ["streamlit", "run", str(HOME / "main.py"), *sys.argv[1:]]
    cli.main()


if __name__ == "__main__":
    main()
