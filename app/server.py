"""Serves the app: python app/server.py [options of `streamlit run`]; `streamlit run app/main.py` works too.

Torch, transformers and plotly are read before the server answers, so that the first page does not wait for them.
"""

import importlib
import signal
import sys
import threading
from pathlib import Path

HOME = Path(__file__).parent
MODULES = (
    "app.components.header",
    "app.forms.recipes",
    "app.figures.explore",
    "app.results.trust",
    "app.results.pairs",
)


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
    from streamlit.web import cli

    for name in MODULES:
        importlib.import_module(name)
    accept_own_pages_only()
    importlib.import_module("app.study.cache").read_example(importlib.import_module("app.study.setup").Setup())
    threading.Thread(target=importlib.import_module("app.shared").let_go_when_idle, daemon=True).start()
    sys.argv = ["streamlit", "run", str(HOME / "main.py"), *sys.argv[1:]]
    cli.main()


if __name__ == "__main__":
    main()
