"""Files and links that a disk, a kill or a person has left in a state in which no command leaves them."""

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import rose
from rose import cli
from rose.files import write_atomically
from rose.model.measure import folder as measurements
from rose.model.measure.comparison import ComparisonRow
from rose.model.measure.damage import DamageReport
from rose.model.network.network import read_norms
from rose.model.rules import parse_allocation
from rose.model.run.damages import DamageRecord, read_damages
from rose.rows import read_records, records_table
from tests.tiny import save_tiny_llama

TEXT = "The quick brown fox jumps over the lazy dog. " * 40


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`rose damage` of a tiny model, but for its output."""
    place = tmp_path_factory.mktemp("damage")
    model = save_tiny_llama(place / "model", hidden=32)
    (place / "text.txt").write_text(TEXT)
    calibration = f"--calibration {place / 'text.txt'} --samples 2 --length 16 --held-out 2"
    return f"damage --model {model} {calibration} --sparsity 0.5 --units blocks --output".split()


@pytest.fixture(scope="module")
def damages(call: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files that it has written."""
    folder = tmp_path_factory.mktemp("whole") / "damage"
    assert cli.main([*call, str(folder)]) == 0
    return {path.name: path.read_text() for path in folder.iterdir()}


# ---- links that lead nowhere


@pytest.mark.parametrize("below", ["", "below"])
@pytest.mark.parametrize(
    "command",
    [
        "prune --sparsity 0.5 --output {place}",
        "prune --sparsity 0.5 --output {free} --checkpoint {place}",
        "slim --ratio 0.3 --output {place}",
        "damage --sparsity 0.5 --output {place}",
        "compare --methods wanda --sparsity 0.5 --evaluate packaged --output {place}",
        "analyze --sparsity 0.5 --output {place}",
        "evaluate --tasks piqa --output {place}.csv",
    ],
)
def test_a_link_that_leads_nowhere_is_refused_before_the_run(
    command: str, below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("link", "link.csv"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    name, *options = command.format(place=tmp_path / "link" / below, free=tmp_path / "free").split()
    if below and ".csv" in command:
        options[-1] = str(tmp_path / "link" / "below.csv")
    assert cli.main([name, "--model", "/no/such/model", *options]) == 2
    assert "is a link to" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "nowhere").exists()


# ---- rows


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-40],
        lambda text: text[:-1],
        lambda text: text + "\x00\x01\n",
        lambda text: text + text.splitlines()[-1].replace("*", '"*') + "\n",
        lambda text: text.replace("\n*,-1,", "\n*,x,"),
        lambda text: text.replace("\n*,-1,", "\n*,,"),
        lambda text: text.replace("\n*,-1,", "\n*,-1,1,"),
    ],
    ids=["cut", "unended", "bytes", "quote", "text", "empty", "more"],
)
def test_a_row_that_is_not_whole_is_named_and_can_be_measured_again(
    spoil: Any, call: list[str], damages: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "damage"
    folder.mkdir()
    for name, text in damages.items():
        (folder / name).write_text(text)
    broken = spoil(damages["rows.csv"])
    (folder / "rows.csv").write_text(broken)
    assert cli.main([*call, str(folder)]) == 2
    number = len(broken.splitlines())
    assert f"Line {number} of {folder / 'rows.csv'} is no whole row" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(rose.RoseError, match=f"Line {number} "):
        parse_allocation(f"damage:{folder}").damages()
    (folder / "rows.csv").write_text("".join(line + "\n" for line in broken.splitlines()[: number - 1]))
    assert cli.main([*call, str(folder)]) == 0
    kept, whole = (pd.read_csv(path) for path in (folder / "rows.csv", _written(tmp_path, damages["rows.csv"])))
    pd.testing.assert_frame_equal(kept.drop(columns="seconds"), whole.drop(columns="seconds"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("damage", text) for text in ("abc", "1e308", "1_0")),
        *(("weights", text) for text in ("0", "-5", "²", "9" * 400)),
        *(("held_out_error", text) for text in ("-0.1", "nan", "")),
        *(("unit", text) for text in ("model.layers.0\0", "model.\tlayers.0")),
        *(("loss", text) for text in ("1e308", "inf\0")),
        *[("sparsity", "1.5"), ("block_index", "-2"), ("drift", "-1"), ("standard_error", "-1")],
    ],
)
def test_a_number_that_cannot_be_is_named_with_its_line(
    name: str, text: str, call: list[str], damages: dict[str, str], tmp_path: Path
) -> None:
    rows = pd.read_csv(io.StringIO(damages["rows.csv"]), dtype=str)
    rows.loc[1, name] = text
    rows.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(
        rose.RoseError,
        match=rf"Line 3 of .*rows\.csv is no whole row of damages \({name} {re.escape(repr(text[:40]))}\)",
    ):
        parse_allocation(f"damage:{tmp_path}").damages()


def test_numbers_that_a_measurement_may_come_to_are_read_back(tmp_path: Path) -> None:
    known = DamageRecord(
        "a", 0, "", 9, 0.5, math.inf, 0.1, 0.1, math.nan, math.inf, math.nan, -1.0, math.nan, math.inf, 0.0
    )
    records_table([known], DamageRecord).to_csv(tmp_path / "rows.csv", index=False)
    assert repr(read_damages(tmp_path / "rows.csv")) == repr([known])


@pytest.mark.parametrize("text", ["Infinity", "+iNf", "1e999"])
def test_an_infinite_loss_is_read_in_every_spelling(text: str, damages: dict[str, str], tmp_path: Path) -> None:
    rows = pd.read_csv(io.StringIO(damages["rows.csv"]), dtype=str).assign(loss=text)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    records = read_damages(tmp_path / "rows.csv")
    assert DamageReport.from_records(records).summary["base_loss"] == math.inf


@pytest.mark.parametrize("losses", ["3.1 x", "3.1\0 2", " "])
def test_losses_that_are_no_numbers_are_refused(losses: str, tmp_path: Path) -> None:
    row = ComparisonRow("wanda", "0.5", 0, 20.0, 10.0, 0.1, 0.1, 0.5, 1.0, 9, losses=losses)
    records_table([row], ComparisonRow).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(rose.RoseError, match=r"Line 2 of .* is no whole row of runs \(losses "):
        read_records(tmp_path / "rows.csv", ComparisonRow, "runs")


def _written(folder: Path, text: str) -> Path:
    (folder / "whole.csv").write_text(text)
    return folder / "whole.csv"


@pytest.mark.parametrize("name", ["settings.json", "summary.json"])
@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b""])
def test_a_description_of_nothing_is_refused_or_measured_anew(
    name: str, content: bytes, call: list[str], damages: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "damage"
    folder.mkdir()
    for file, text in damages.items():
        (folder / file).write_text(text)
    (folder / name).write_bytes(content)
    refused = name == "settings.json"
    assert cli.main([*call, str(folder)]) == (2 if refused else 0)
    assert ((folder / name).read_bytes() == content) == refused
    assert read_norms(folder / "summary.json")
    (folder / "summary.json").write_bytes(content)
    assert read_norms(folder / "summary.json") == []


# ---- what a measurement belongs to


def test_damages_know_their_model_whenever_the_command_was_killed(
    call: list[str], damages: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last row was there once before what all rows come to, which then was written without the model."""
    folder = tmp_path / "damage"

    class Killed(BaseException):
        pass

    def write(path: Path, content: bytes) -> None:
        write_atomically(path, content)
        if path.name == "rows.csv":
            raise Killed

    for _ in range(4):
        with monkeypatch.context() as patch:
            patch.setattr(measurements, "write_atomically", write)
            with pytest.raises(Killed):
                cli.main([*call, str(folder)])
    assert len(read_damages(folder / "rows.csv")) == 4
    for _ in range(2):
        assert cli.main([*call, str(folder)]) == 0
        summary = json.loads((folder / "summary.json").read_text())
        assert len(summary["embedding_norms"]) == 8
        assert summary == json.loads(damages["summary.json"])


def test_rows_of_a_model_that_was_replaced_are_not_added_to(
    call: list[str], damages: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = tmp_path / "damage", tmp_path / "model"
    save_tiny_llama(model, hidden=32)
    command = [str(model) if call[place - 1 : place] == ["--model"] else word for place, word in enumerate(call)]
    assert cli.main([*command, str(folder)]) == 0
    rows = (folder / "rows.csv").read_text().splitlines(keepends=True)
    (folder / "rows.csv").write_text("".join(rows[:2]))
    save_tiny_llama(model, hidden=32, seed=1)
    assert cli.main([*command, str(folder)]) == 2
    assert "are those of another model" in " ".join(capsys.readouterr().err.split())
