"""One set of folders for all tests here, and a server without runs of its own."""

import math

import pytest

from app import shared
from app.registry import Registry
from tests.app.conftest import components_sought_once  # noqa: F401
from tests.seams.producers import Workshop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("seams"))


@pytest.fixture(autouse=True)
def nothing_on_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "registry", Registry(math.inf))
    monkeypatch.setattr(shared, "find", lambda _setup: None)
