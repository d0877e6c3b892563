"""The first pictures of a starting server match the example and need neither torch nor a model."""

import subprocess
import sys

import pytest
from streamlit.testing.v1 import AppTest

from app import first, server, shared
from app.figures import maps
from app.study import cache
from app.study.setup import Setup
from app.study.study import Calibration, Study
from tests.app.tiny_study import COLUMNAR, MAIN, measured_study, open_page

CODE = """
import sys
from streamlit.testing.v1 import AppTest
from app import first

first.drawn.set = lambda: 1 / 0  # ends the script once the first picture is sent
for page in first.PAGES:
    app = AppTest.from_file(sys.argv[1])
    if page:
        app.switch_page(f"views/{page}.py")
    app.run()
    assert any("<img" in element.proto.body for element in app.get("html")), page
    assert not {"torch", "transformers", "safetensors", "rose"} & set(sys.modules), page
"""


def test_first_pictures_need_no_torch():
    subprocess.run([sys.executable, "-c", CODE, MAIN], check=True)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_first_pictures_match_the_example(theme):
    study = Study(Setup(), lambda: pytest.fail("no model is needed"), Calibration())
    assert study.restore()
    example = cache.read_example(Setup())
    made = first.pictures()[theme]
    assert {*made} == {"layers", *(f"{page} {name}" for page in ("layer", "order_lab") for name in example.calibration)}
    for picture, draw in zip(made["layers"], (maps.model_map, maps.gain_scatter), strict=True):
        assert picture["finding"] == draw(study.overview(0.5)).figure.layout.meta["finding"]
        assert picture["svg"].startswith("<svg")
    for page in first.PAGES:
        assert open_page(f"views/{page or 'start'}.py").title[0].value == first.pictures()["titles"][page]


def test_order_lab_opens_on_sweeps_that_were_read_ahead(monkeypatch):
    study = measured_study()
    monkeypatch.setattr(server, "WAIT", 0.0)
    monkeypatch.setattr(server, "SPARE", 0)
    monkeypatch.setattr(study, "has_stored", bool)
    monkeypatch.setattr(shared, "skeleton", str)
    monkeypatch.setattr(shared, "find", lambda _: study)
    server.read_ahead()
    sweeps = list(study.remember(("lab", COLUMNAR), dict))
    open_page("views/order_lab.py", study)
    assert list(study.remember(("lab", COLUMNAR), dict)) == sweeps != []


def test_reading_ahead_waits_while_a_page_is_drawn(monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr("app.jobs.is_busy", bool)
    AppTest.from_string("from app import server; server.wait_for_pages(8.5, 2)").run()
    server.wait_for_pages(8.5)
    assert waits.count(8.5) == 2
