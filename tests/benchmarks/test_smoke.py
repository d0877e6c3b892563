"""Every benchmark explains its options, and a short one runs to its end and resumes."""

import importlib
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.benchmarks import targets
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
