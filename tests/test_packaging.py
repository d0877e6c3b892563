"""The wheel holds the files of the packages alone; `make wheel` runs the tests against it."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import rose
from app import server
from rose import cli
from rose.commands import tools

ROOT = Path(__file__).parents[1]
SOURCES = ["rose", "app", "pyproject.toml", "setup.py", "README.md", "LICENSE"]
SOURCES += [".streamlit", *(path.name for path in ROOT.glob("requirements*.txt"))]  # app/.streamlit points to the first
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that the checkout stays clean and no earlier build leaks in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    built = subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def text_of(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def requirements(name: str) -> set[str]:
    lines = (ROOT / f"requirements-{name}.txt").read_text().splitlines()
    return {re.split(r"[<>=\[]", line)[0] for line in lines if line and not line.startswith("#")}


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = [path.relative_to(ROOT) for name in ("rose", "app") for path in (ROOT / name).rglob("*") if path.is_file()]
    expected = {path.as_posix() for path in files if path.suffix != ".pyc"} | {"app/.streamlit/config.toml"}
    assert inside == {f"rose_explorer/{name}" if name.startswith("app/") else name for name in expected}


def test_the_wheel_has_the_version_of_the_program(wheel: zipfile.ZipFile) -> None:
    assert message_from_string(text_of(wheel, "METADATA"))["Version"] == rose.__version__
    assert sorted({*rose.__all__, "__version__"}) == dir(rose)


def test_the_wheel_has_the_requirements_of_the_files(wheel: zipfile.ZipFile) -> None:
    metadata = message_from_string(text_of(wheel, "METADATA"))
    needed: dict[str, set[str]] = {"core": set()}
    for requirement in metadata.get_all("Requires-Dist", []):
        extra = re.search(r'extra == "(\w+)"', requirement)
        name = re.split(r"[<>=\[; ]", requirement)[0]
        needed.setdefault(extra.group(1) if extra else "core", set()).add(name)
        assert re.search(r"[<>]", requirement.partition(";")[0]) or name.startswith("types-"), requirement
    assert needed == {name: requirements(name) for name in ("core", "app", "diffusion", "eval", "dev")}
    assert text_of(wheel, "entry_points.txt").split() == ["[console_scripts]", "rose", "=", "rose.cli:main"]


def test_the_app_starts_from_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unpacked elsewhere, with the checkout out of sight."""
    wheel.extractall(tmp_path)
    script = """
import sys
from pathlib import Path
from streamlit.testing.v1 import AppTest
from rose.commands.tools import app_script
script = app_script()
shown = AppTest.from_file(str(script), default_timeout=240).run()
assert not shown.exception, shown.exception
import app
label, place = shown.selectbox(key="metric").label, script.relative_to(sys.argv[1]).as_posix()
print(label, Path(app.__file__).parent == script.parent, place)
"""
    command = [sys.executable, "-P", "-c", script, str(tmp_path)]
    environment = {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("True rose_explorer/app/main.py")


def test_rose_can_be_imported_from_every_folder(tmp_path: Path) -> None:
    """The environment that make creates knows the checkout, so the README's alias works beside one's model."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", "from importlib.util import find_spec; print(find_spec('rose').origin)"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("rose/__init__.py\n"), done.stderr


def test_rose_app_serves_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its own process: one that it had started would be killed at Ctrl+C, and go on where this one is killed."""
    served: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(server, "main", lambda: served.append((os.getpid(), sys.argv[1:])))
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert cli.main(["app", "--port", "8600", "--server.allowedHosts", "rose.example.org"]) == 0
    assert served == [(os.getpid(), ["--server.port=8600", "--server.allowedHosts", "rose.example.org"])]
    with pytest.raises(SystemExit):
        cli.main(["models", "--server.allowedHosts", "rose.example.org"])


def test_rose_app_names_the_missing_packages(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def said(*arguments: str) -> str:
        assert cli.main(["app", *arguments]) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "from 1 to 65535" in said("--port", "0")
    monkeypatch.setattr(tools, "find_spec", lambda name: None)
    assert "pip install 'rose-explorer[app]'" in said()
    monkeypatch.setattr(tools, "__file__", "/nowhere/rose/commands/tools.py")
    assert "run it from a checkout" in said()
