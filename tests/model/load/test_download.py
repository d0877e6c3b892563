"""A cancelled download leaves no partial model; the Hub is a local imitation."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, hf_api
from transformers.utils import hub

import rose
from rose.errors import Cancelled
from rose.interrupt import stoppable
from rose.model.load import models
from tests.refusals import refused
from tests.tiny import save_tiny_llama

NAME, COMMIT = "somebody/tiny", "0" * 40
CHUNK = 4096
SLOW = 0.05  # seconds a chunk of weights, which the whole file takes many of


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Hub(ThreadingHTTPServer):
    """Serves one folder as the repository `NAME`; weights come slowly while `is_slow`, and are counted."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder, self.is_slow, self.sent, self.sends = folder, False, 0, threading.Event()


class _Answer(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        status, headers, data = 200, {"X-Repo-Commit": COMMIT}, b""
        path = self.server.folder / self.path.partition("?")[0].rpartition("/")[2]
        if self.path.startswith("/api/"):
            data, headers["Content-Type"] = json.dumps(self.listing()).encode(), "application/json"
        elif path.is_file():
            data = path.read_bytes()
        else:
            status, headers["X-Error-Code"] = 404, "EntryNotFound"
        self.send_response(status)
        for name, value in (headers | {"ETag": f'"{hash_of(data)}"', "Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        slow = self.server.is_slow and path.suffix == ".safetensors"
        with suppress(ConnectionError):  # whoever stops hangs up
            for start in range(0, len(data) if self.command == "GET" else 0, CHUNK):
                self.wfile.write(data[start : start + CHUNK])
                if slow:
                    self.server.sent += CHUNK
                    self.server.sends.set()
                    time.sleep(SLOW)

    do_HEAD = do_GET

    def listing(self) -> Any:
        files = {path.name: path.read_bytes() for path in sorted(self.server.folder.iterdir()) if path.is_file()}
        if "/tree/" in self.path:
            return [{"type": "file", "path": n, "size": len(f), "oid": hash_of(f)} for n, f in files.items()]
        return {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}

    def log_message(self, *_said: Any) -> None:
        pass


@pytest.fixture(params=["one file", "shards"])
def site(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = save_tiny_llama(tmp_path / "repository")
    if request.param == "shards":
        model = rose.load_model(str(folder))[0]
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="100KB")
        assert (folder / "model.safetensors.index.json").is_file()
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, here)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", here)
    for api in (hf_api.api, hub.hf_api()):
        monkeypatch.setattr(api, "endpoint", here)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    huggingface_hub.close_session()
    yield server
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_download_leaves_no_partial_files(site, tmp_path, stream):
    def check() -> None:
        if site.sends.is_set():
            raise Cancelled

    weights = sum(path.stat().st_size for path in site.folder.glob("*.safetensors"))
    site.is_slow = True
    with stoppable(check), pytest.raises(Cancelled):
        rose.load_model(NAME, stream=stream)
    sent = -1
    while sent != site.sent:  # a thread for each file notices at its next chunk
        sent = site.sent
        time.sleep(4 * SLOW)
    assert 0 < sent < weights
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.endswith(".incomplete")]
    for path in (tmp_path / "cache").glob("*/snapshots/*/*"):  # what is there is whole
        assert path.read_bytes() == (site.folder / path.name).read_bytes()
    site.is_slow = False
    model, _ = rose.load_model(NAME, stream=stream)
    names = [layer.name for layer in rose.prunable_layers(model)]
    assert names == [layer.name for layer in rose.prunable_layers(rose.load_model(str(site.folder))[0])]
    assert models.identify(NAME)


def test_duplicate_weights_are_downloaded_once(site, tmp_path):
    (site.folder / "consolidated.safetensors").write_bytes(b"the same again")
    rose.load_model(NAME, stream=True)
    files = {path.name for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert files == {path.name for path in site.folder.glob("model*.safetensors")}


@pytest.mark.parametrize("stream", [False, True])
def test_a_repository_with_two_sets_of_weights_is_refused(site, tmp_path, stream):
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if not (site.folder / name).exists():
            (site.folder / name).write_bytes(b"{}")
    refused(r"holds both model.safetensors and model\S+index.json, of two models", rose.load_model, NAME, stream=stream)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
