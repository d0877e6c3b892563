"""Pages of the app, timed and counted: `python -m tests.benchmarks.pages [--root CHECKOUT] [--output pages.csv]`.

For each page, opened from the finished example: seconds from a cold server to the first drawn figure (`cold`), from a
click on a link to the settled page (`click`; both medians of rounds), the server's processor seconds for a click
(`processor`), and controls, words and figures in its main part. `--root` serves another checkout, for a comparison in
one run; its pages may differ. `--large` opens pages on a study of 224 layers of a 7B model, made of the example's
numbers, without weights.
"""

import dataclasses
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pandas as pd
import psutil
from playwright.sync_api import Browser, Page, sync_playwright
from transformers import LlamaConfig

from app.study import cache as disk
from app.study.setup import Setup
from tests.benchmarks.common import arguments

ROOT = Path(__file__).parents[2]
PORT = 8791
COLD = ["", "order_lab"]  # "" is Explore
PATIENCE = 120_000  # milliseconds
SETTLED = '[data-testid="stApp"][data-test-script-state="notRunning"]'
COUNTS = """() => {
  const main = document.querySelector('[data-testid=stMain]');
  const shown = (selector) => [...main.querySelectorAll(selector)].filter((node) => node.checkVisibility()).length;
  const icons = [...main.querySelectorAll('[data-testid=stIconMaterial]')].map((icon) => icon.innerText).join(' ');
  const count = (text) => text.split(/\\s+/).filter(Boolean).length;
  return {
    controls: shown('button:not(.modebar-btn), input, select, textarea, [role=slider], [role=combobox]'),
    words: count(main.innerText) - count(icons),
    figures: shown('.js-plotly-plot, table, [data-testid=stDataFrame]'),
  };
}"""


@contextmanager
def served(root: Path, cache: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The app's address and its process."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    environment |= {"ROSE_CACHE": str(cache)}
    command = [sys.executable, "app/server.py", f"--server.port={PORT}", "--server.headless=true"]
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment | {"ROSE_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{PORT}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def drawn(page: Page) -> None:
    """Waits for the script's end and for the figures that it sent."""
    page.locator(SETTLED).wait_for(state="attached", timeout=PATIENCE)
    page.wait_for_function("() => !document.querySelector('[data-testid=stSkeleton]')", timeout=PATIENCE)


def pages_of(browser: Browser, address: str) -> list[str]:
    """Addresses of the pages, as the navigation lists them."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address)
    drawn(page)
    links = page.locator('[data-testid="stTopNavLink"]')
    paths = [_path(str(link.get_attribute("href"))) for link in links.all()]
    page.close()
    return paths


def cold(browser: Browser, root: Path, path: str, cache: Path) -> float:
    """Seconds from the first request to a server that has drawn nothing to the first figure."""
    with served(root, cache) as (address, _):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        began = time.perf_counter()
        page.goto(f"{address}/{path}")
        page.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=PATIENCE)
        took = time.perf_counter() - began
        page.close()
    return took


def click(page: Page, path: str, server: psutil.Process) -> tuple[float, float]:
    """Seconds from a click in the navigation to the settled page, and processor seconds of the server."""
    links = page.locator('[data-testid="stTopNavLink"]').all()
    (link,) = [link for link in links if _path(str(link.get_attribute("href"))) == path]
    began, used = time.perf_counter(), sum(server.cpu_times()[:2])
    link.click()
    page.wait_for_function("(path) => location.pathname === '/' + path", arg=path, timeout=PATIENCE)
    page.wait_for_timeout(50)  # the address changes before the script begins
    drawn(page)
    return time.perf_counter() - began, sum(server.cpu_times()[:2]) - used


def large_study(folder: Path, cache: Path) -> str:
    """Keeps a study of a model of LLaMA-7B's shapes on disk, whose numbers are the example's; returns its link."""
    folder.mkdir(parents=True, exist_ok=True)
    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(folder)  # 32 decoder blocks of 4096 channels
    os.environ["ROSE_CACHE"] = str(cache)
    setup, example = Setup(model=str(folder)), disk.read_example(Setup())
    assert example is not None
    blocks = 1 + max(record.block_index for record in example.records)
    shapes = {"mlp.down_proj": (4096, 11008), "mlp.up_proj": (11008, 4096), "mlp.gate_proj": (11008, 4096)}
    records, condition, forecast = [], {}, {}
    for block in range(32):
        for record in (record for record in example.records if record.block_index == block % blocks):
            layer = f"model.layers.{block}.{record.projection}"
            rows, columns = shapes.get(record.projection, (4096, 4096))
            records.append(dataclasses.replace(record, layer=layer, block_index=block, rows=rows, columns=columns))
            condition[layer], forecast[layer] = example.condition[record.layer], example.forecast[record.layer]
    place = disk.folder_of(setup, disk.files_of(setup))
    assert place is not None
    disk.keep_study(place, setup, disk.Kept(records, condition, forecast))
    return f"?{urlencode(setup.to_texts())}"


def _path(address: str) -> str:
    return re.sub(r"^https?://[^/]+|\?.*$", "", address).strip("/")


def main() -> None:
    options = arguments(__doc__, root=str(ROOT), output="pages.csv", rounds=3, cold=COLD, large=False)
    root, cache, rows, link = Path(options.root).resolve(), Path(options.output).with_suffix(".cache").resolve(), [], ""
    if options.large:
        link = large_study(cache / "7b", cache)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        with served(root, cache) as (address, server):
            paths = pages_of(browser, address)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(f"{address}/{link}")
            drawn(page)
            times: dict[str, list[tuple[float, float]]] = {path: [] for path in paths}
            counts = {}
            for _ in range(options.rounds + 1):
                for path in paths:
                    times[path].append(click(page, path, server))
                    page.wait_for_timeout(700)
                    counts[path] = page.evaluate(COUNTS)
        for path in paths:
            (first, _), *rest = times[path]
            seconds, processor = (statistics.median(part) for part in zip(*rest, strict=True))
            row = {"page": path or "explore", "first": first, "click": seconds, "processor": processor, **counts[path]}
            if path in options.cold and not link:
                row["cold"] = statistics.median(cold(browser, root, path, cache) for _ in range(options.rounds))
            rows.append(row)
            pd.DataFrame(rows).to_csv(options.output, index=False)
            print(row, flush=True)


if __name__ == "__main__":
    main()
