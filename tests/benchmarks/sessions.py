"""Memory of the app's server while people come and go: python -m tests.benchmarks.sessions [--rounds 10]

Each round eight sessions connect at once, as browsers do, and open every page; two of them measure layers of the
packaged model on windows that no session before has drawn, the others look at the example. Then all of them leave.
Prints the resident memory of app/server.py after a first visit, at its highest in each round, at the end of each round,
and after it was idle; each line as soon as it is known.
"""

from __future__ import annotations

import argparse
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode

import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from app.shared import IDLE
from tests.browser.conftest import SETUP, serve

PAGES = ("", "learn", "layers", "layer", "order_lab", "prune", "structures", "runs", "damage", "text", "check")
MEASURE = "Measure layers"
LEFT = 130.0  # seconds after which Streamlit forgets a session that has left
PATIENCE = 600.0  # seconds for one page, or for one measurement


class Session:
    """One person's connection to the server, by the messages that Streamlit's own pages send."""

    def __init__(self, address: str) -> None:
        stream = f"{address.replace('http', 'ws')}/_stcore/stream"
        self._opened = ExitStack()
        connection = connect(stream, subprotocols=[Subprotocol("streamlit")], max_size=None)
        self._socket = self._opened.enter_context(connection)
        self.buttons: dict[str, str] = {}  # of the page that is open: label -> id
        self.problems: list[str] = []

    def leave(self) -> None:
        self._opened.close()

    def open(self, page: str, query: str, press: str | None = None) -> None:
        """Draws a page; where a button is named, as after a press of it."""
        message = BackMsg()
        asked = message.rerun_script
        asked.query_string, asked.page_name = query, page
        asked.context_info.color_scheme = "light"
        if press:
            pressed = asked.widget_states.widgets.add()
            pressed.id, pressed.trigger_value = self.buttons[press], True
        self.buttons = {}
        self._socket.send(message.SerializeToString())
        while True:
            answer = ForwardMsg()
            content = self._socket.recv(timeout=PATIENCE)
            assert isinstance(content, bytes)
            answer.ParseFromString(content)
            kind = answer.WhichOneof("type")
            if kind == "delta" and answer.delta.WhichOneof("type") == "new_element":
                element = answer.delta.new_element
                if element.WhichOneof("type") == "button":
                    self.buttons[element.button.label] = element.button.id
                elif element.WhichOneof("type") == "exception":
                    self.problems.append(element.exception.message)
            elif kind == "script_finished" and answer.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN:
                return

    def measure(self, query: str) -> None:
        """Starts the study of a set-up, or joins it, and waits for its end."""
        until = time.monotonic() + PATIENCE
        self.open("", query)
        if any(MEASURE in label for label in self.buttons):
            self.open("", query, press=next(label for label in self.buttons if MEASURE in label))
        while any("Cancel" in label or "Stop" in label for label in self.buttons):
            assert time.monotonic() < until, "the study has not ended"
            time.sleep(2)
            self.open("", query)


def visit(address: str, seed: int, measures: bool) -> list[str]:
    """What one person does; returns what went wrong on a page."""
    session = Session(address)
    try:
        query = urlencode({**SETUP, "samples": "2", "length": "128", "held_out": "2", "seed": seed}) if measures else ""
        if measures:
            session.measure(query)
        for page in PAGES:
            session.open(page, query)
        return session.problems
    finally:
        session.leave()


def megabytes(process: psutil.Process) -> int:
    return round(process.memory_info().rss / 1e6)


class Highest:
    """The largest resident memory while a block runs."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._ended = process, threading.Event()
        self.megabytes = 0

    def __enter__(self) -> Highest:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self.megabytes = max(self.megabytes, megabytes(self._process))

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()


def server_of(address: str) -> psutil.Process:
    port = re.sub(r".*:", "", address)
    children = psutil.Process().children(recursive=True)
    return next(child for child in children if f"--server.port={port}" in child.cmdline())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sessions", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--sessions", type=int, default=8, help="of a round, at once (default: %(default)s)")
    parser.add_argument("--wait", type=float, default=10.0, help="seconds between rounds (default: %(default)s)")
    options = parser.parse_args()
    with TemporaryDirectory() as cache, serve(Path(cache) / "log.txt", ROSE_CACHE=cache) as address:
        server = server_of(address)
        visit(address, 0, measures=False)
        print(f"started, one visit: {megabytes(server)} MB", flush=True)
        for number in range(options.rounds):
            began = time.monotonic()
            with Highest(server) as highest, ThreadPoolExecutor(options.sessions) as people:
                seed = 1 + number  # whose windows nobody has measured yet
                visits = [people.submit(visit, address, seed, person < 2) for person in range(options.sessions)]
                problems = [problem for each in visits for problem in each.result()]
            line = f"round {number + 1}: highest {highest.megabytes} MB, at its end {megabytes(server)} MB"
            seconds = time.monotonic() - began
            time.sleep(options.wait)
            after = f"{options.wait:.0f} s later {megabytes(server)} MB"
            print(f"{line}, {after}; {seconds:.0f} s, problems: {problems or 'none'}", flush=True)
        time.sleep(LEFT)
        print(f"{LEFT:.0f} s after all have left: {megabytes(server)} MB", flush=True)
        time.sleep(IDLE)
        print(f"idle for {LEFT + IDLE:.0f} s: {megabytes(server)} MB", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
