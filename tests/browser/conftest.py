"""What the browser tests share: the app on a free port, a headless Chromium, and one measured set-up."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.tiny import save_tiny_llama

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 120_000  # milliseconds: every wait ends with what it waits for, so a busy machine only takes longer
expect.set_options(timeout=PATIENCE)
OpenPage = Callable[..., Page]

# A columnar layer with its whole decoder block, and attention of the first one: twelve layers, measured in seconds.
LAYERS = "model.layers.18.* model.layers.5.self_attn.o_proj model.layers.0.self_attn.*"
SETUP = {"layers": LAYERS, "samples": "4", "length": "256", "held_out": "2"}
COLUMNAR_LAYER = "model.layers.18.self_attn.o_proj"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker("browser")
        item.add_marker(pytest.mark.timeout(1800))
        if CHROMIUM is None:
            item.add_marker(pytest.mark.skip(reason="no Chromium on this machine: install Debian's chromium"))


@contextmanager
def serve(log: Path, **environment: str) -> Iterator[str]:
    """The app, as `make app` serves it but on a free port, and its address. It may not have shown a traceback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "app/server.py", f"--server.port={port}", "--server.headless=true"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(2400):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise AssertionError(f"The app did not start:\n{log.read_text()}")
        yield address
    finally:
        process.terminate()
        process.wait(240)
    assert "Traceback" not in log.read_text(), log.read_text()


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(tmp_path_factory.mktemp("server") / "log.txt") as address:
        yield address


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


class Visitor:
    """A page of the app at 1280 × 800. Many tests use one: a new page compiles all scripts, for three seconds."""

    def __init__(self, browser: Browser, server: str) -> None:
        self.server, self.errors = server, list[str]()
        self.page = browser.new_context().new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.context.on("request", lambda request: self.errors.extend(_elsewhere(request.url, server)))

    def come(self, path: str, query: str, scheme: str) -> Page:
        self.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        self.page.set_viewport_size({"width": 1280, "height": 800})
        self.page.goto(f"{self.server}/{path}?{query}")
        settle(self.page)
        return self.page

    def go(self) -> None:
        """Leaves, and forgets. No page may show or raise an exception, or ask anybody but the server."""
        shown = self.page.get_by_test_id("stException").all_inner_texts()
        for other in self.page.context.pages[1:]:
            other.close()
        self.page.goto(f"{self.server}/_stcore/health")  # of the same origin, so the page's process is kept
        self.page.evaluate("localStorage.clear(); sessionStorage.clear()")
        assert not shown, shown
        assert not self.errors, self.errors


@pytest.fixture(scope="package")
def visitors() -> list[Visitor]:
    """Those who have been here and can come again."""
    return []


@pytest.fixture
def open_page(server: str, browser: Browser, visitors: list[Visitor]) -> Iterator[OpenPage]:
    """`open_page("prune", query, scheme="dark")`: a settled page in its own session; `first`: without a history."""
    here: list[Visitor] = []

    def opener(path: str = "", query: str = "", scheme: str = "light", *, first: bool = False) -> Page:
        here.append(Visitor(browser, server) if first or not visitors else visitors.pop())
        return here[-1].come(path, query, scheme)

    yield opener
    for visitor in here:
        visitor.go()
        visitors.append(visitor)


def _elsewhere(url: str, server: str) -> list[str]:
    """What is wrong with a request: nothing with those to the server and those that leave no page."""
    return [] if url.startswith((f"{server}/", "data:", "blob:")) else [f"The page asked for {url}"]


@pytest.fixture(scope="package")
def measured(server: str, browser: Browser) -> str:
    """Query string of a measured set-up: all sessions share its study, so a page shows results at once."""
    query = urlencode(SETUP)
    page = browser.new_page()
    page.goto(f"{server}/?{query}")
    measure(page)
    page.close()
    return query


def settle(page: Page) -> None:
    """Waits until the script has run to its end and everything it sent is on screen."""
    done = page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]')
    expect(done).to_be_attached()
    # The element tree follows a moment after the state; a run that was asked for by this one shows up by then.
    page.wait_for_timeout(250)
    expect(done).to_be_attached()
    expect(page.get_by_test_id("stSkeleton")).to_have_count(0)


def measure(page: Page) -> None:
    """Opens the dialog on Explore, presses its button, and waits until all layers are measured."""
    page.get_by_role("button", name="Measure a model").click()
    page.get_by_role("dialog").get_by_role("button", name=re.compile("its layers$")).click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".st-key-explore-map .main-svg").first).to_be_visible()
    expect(page.locator('[class*="st-key-head-run-"]')).to_have_count(0)
    settle(page)


def section(page: Page, name: str) -> None:
    """Opens a section of the page; where there are many, they are buttons."""
    main = page.get_by_test_id("stMain")
    main.get_by_role("radio", name=name, exact=True).or_(
        main.get_by_role("button", name=name, exact=True)
    ).first.click()
    settle(page)


def chosen_layer(page: Page) -> Locator:
    """The select box on Explore; while a page is drawn anew, the former box stands before it."""
    return page.get_by_test_id("stMain").get_by_role("combobox", name="Layer", exact=True).last


def choose(page: Page, label: str, typed: str) -> None:
    """Chooses in a select box by keyboard, as anybody without a mouse would."""
    box = page.get_by_role("combobox", name=re.compile(label))
    box.click()
    box.fill(typed)
    expect(page.get_by_role("option").filter(has_text=typed).first).to_be_visible()  # Enter takes what is listed
    box.press("Enter")


def tiny_setup(folder: Path) -> dict[str, str]:
    """The query of a set-up of a tiny model, written into a folder."""
    sizes = {"samples": "2", "length": "64", "held_out": "1", "block_size": "32"}
    return {"model": str(save_tiny_llama(folder / "tiny"))} | sizes


def expect_finding(page: Page, says: str, at: int = 0) -> None:
    """Waits until the title above a figure, first figure first, matches, and the figure is drawn."""
    expect(page.locator(".figure-title b").nth(at)).to_have_text(re.compile(says), use_inner_text=True)
    expect(page.get_by_test_id("stPlotlyChart").nth(at).locator(".main-svg").first).to_be_visible()


def click_mark(page: Page, mark: Locator) -> None:
    """Clicks a bar or a mark. Plotly lays a transparent surface over them, so only the pointer reaches them."""
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
