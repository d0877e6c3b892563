"""Serves the app: python app/server.py [options of `streamlit run`].

Streamlit reads a page's modules when the first browser asks for it. Here torch, transformers and plotly are read while
the server starts, so that the first page does not wait for them.
"""

import importlib
import sys
import threading
from pathlib import Path

MODULES = ("app.session", "app.sidebar", "app.figures.overview")
HOME = Path(__file__).parent


def read_modules() -> None:
    for name in MODULES:
        importlib.import_module(name)


def main() -> None:
    sys.path.insert(0, str(HOME.parent))  # in place of this folder, whose modules are app.…
    from streamlit.web import cli  # at first: Plotly, which it reads, trips over a pandas that a thread has half read

    threading.Thread(target=read_modules, daemon=True).start()
    sys.argv = ["streamlit", "run", str(HOME / "main.py"), *sys.argv[1:]]
    cli.main()


if __name__ == "__main__":
    main()
