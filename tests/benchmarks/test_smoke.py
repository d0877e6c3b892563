"""Every benchmark explains its options, and a short one runs to its end and resumes."""

import importlib
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.benchmarks import targets
from tests.benchmarks.common import changes
from tests.tiny import save_tiny_llama

WITHOUT_OPTIONS = {"document_numbers", "example_runs", "screenshots"}
HELPERS = {"__init__", "common", "reference", "shapes"}
NAMES = {path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("test_")}


@pytest.mark.parametrize("name", sorted(NAMES - WITHOUT_OPTIONS - HELPERS))
def test_a_benchmark_explains_its_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"tests.benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        module.main()
    usage, _, explained = capsys.readouterr().out.partition("\n\n")
    assert usage.startswith(f"usage: {name}")
    assert explained


def test_rows_that_differ_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "before.csv", tmp_path / "after.csv"
    before.write_text("command,output,value,exact\na,x,1,f\na,y,2 3.000001,g\nb,x,4,h\nc,x,5,i\n")
    after.write_text("command,output,value,exact\na,x,7,f\na,y,2 3.000002,k\nb,z,4,h\nc,x,5,i\n")
    assert changes(before, after, ("command", "output")) == 1
    gone, added, changed, rounded = capsys.readouterr().out.splitlines()
    assert (gone, added) == ("gone: b, 1 rows: x", "added: b, 1 rows: z")
    assert changed == "changed: a · x: value 1 → 7"
    assert rounded == "rounded otherwise: a · y: value 2 3.000001 → 2 3.000002"
    assert changes(after, after, ("command", "output")) == 0


def test_a_benchmark_writes_its_rows_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny_llama(tmp_path / "model", blocks=1)
    command = f"targets --output {tmp_path} --model {model} --samples 2 --length 16 --windows 2 --seeds 0"
    monkeypatch.setattr(sys, "argv", command.split())
    targets.main()
    rows = pd.read_csv(tmp_path / "damping.csv")
    assert list(rows["damping"].astype(str)) == ["layer", "rule", "0.1", "0.3", "1", "3", "10"]
    assert rows["perplexity"].between(1, 1000).all()
    with monkeypatch.context() as patch:
        patch.setattr(targets.rose, "prune_model", lambda *_, **__: pytest.fail("a finished run is made again"))
        targets.main()
    assert rows.equals(pd.read_csv(tmp_path / "damping.csv"))
