"""Files and links that a full disk, a kill or a person has damaged."""

import io
import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest

import rose
from rose import cli
from rose.files import write_atomically
from rose.model.load.tokens import load_text
from rose.model.measure import folder as measurements
from rose.model.measure.comparison import ComparisonRow
from rose.model.measure.damage import DamageReport
from rose.model.network.network import read_norms
from rose.model.rules import parse_allocation
from rose.rows import DamageRecord, csv_text, read_damages, read_records, records_table
from tests.app.results.made_reports import made_report
from tests.refusals import refused
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


@pytest.fixture
def folder(damages: dict[str, str], tmp_path: Path) -> Path:
    """A copy of that folder."""
    (tmp_path / "damage").mkdir()
    for name, text in damages.items():
        (tmp_path / "damage" / name).write_text(text)
    return tmp_path / "damage"


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
def test_a_link_that_leads_nowhere_is_refused_before_the_run(command, below, tmp_path, capsys):
    for name in ("link", "link.csv"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    name, *options = command.format(place=tmp_path / "link" / below, free=tmp_path / "free").split()
    if below and ".csv" in command:
        options[-1] = str(tmp_path / "link" / "below.csv")
    assert cli.main([name, "--model", "/no/such/model", *options]) == 2
    assert "is a link to" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "nowhere").exists()


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
def test_an_incomplete_row_is_named_and_can_be_measured_again(spoil, call, damages, folder, capsys):
    broken = spoil(damages["rows.csv"])
    (folder / "rows.csv").write_text(broken)
    assert cli.main([*call, str(folder)]) == 2
    number = len(broken.splitlines())
    assert f"Line {number} of {folder / 'rows.csv'} is no whole row" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(rose.RoseError, match=f"Line {number} "):
        list(parse_allocation(f"damage:{folder}").damages)
    (folder / "rows.csv").write_text("".join(line + "\n" for line in broken.splitlines()[: number - 1]))
    assert cli.main([*call, str(folder)]) == 0
    remeasured, whole = (pd.read_csv(rows) for rows in (folder / "rows.csv", io.StringIO(damages["rows.csv"])))
    pd.testing.assert_frame_equal(remeasured.drop(columns="seconds"), whole.drop(columns="seconds"))


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
def test_an_impossible_number_is_reported_with_its_line(name: str, text: str, folder: Path) -> None:
    rows = pd.read_csv(folder / "rows.csv", dtype=str)
    rows.loc[1, name] = text
    rows.to_csv(folder / "rows.csv", index=False)
    sentence = rf"Line 3 of .*rows\.csv is no whole row of damages \({name} {re.escape(repr(text[:40]))}\)"
    with pytest.raises(rose.RoseError, match=sentence):
        list(parse_allocation(f"damage:{folder}").damages)


def test_infinite_and_missing_measurements_round_trip(tmp_path: Path) -> None:
    numbers = (0.5, math.inf, 0.1, 0.1, math.nan, math.inf, math.nan, -1.0, math.nan, math.inf, 0.0)
    record = DamageRecord("a", 0, "", 9, *numbers)
    records_table([record], DamageRecord).to_csv(tmp_path / "rows.csv", index=False)
    assert repr(read_damages(tmp_path / "rows.csv")) == repr([record])


@pytest.mark.parametrize("text", ["Infinity", "+iNf", "1e999"])
def test_an_infinite_loss_is_read_in_every_spelling(text: str, folder: Path) -> None:
    rows = pd.read_csv(folder / "rows.csv", dtype=str).assign(loss=text)
    rows.to_csv(folder / "rows.csv", index=False)
    records = read_damages(folder / "rows.csv")
    assert DamageReport.from_records(records).summary["base_loss"] == math.inf


@pytest.mark.parametrize("losses", ["3.1 x", "3.1\0 2", " "])
def test_losses_that_are_not_numbers_are_refused(losses: str, tmp_path: Path) -> None:
    row = ComparisonRow("wanda", "0.5", 0, 20.0, 10.0, 0.1, 0.1, 0.5, 1.0, 9, losses=losses)
    records_table([row], ComparisonRow).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(rose.RoseError, match=r"Line 2 of .* is no whole row of runs \(losses "):
        read_records(tmp_path / "rows.csv", ComparisonRow, "runs")


@pytest.mark.parametrize("name", ["settings.json", "summary.json"])
@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b""])
def test_an_empty_description_is_refused_or_measured_again(name, content, call, folder):
    (folder / name).write_bytes(content)
    is_refused = name == "settings.json"
    assert cli.main([*call, str(folder)]) == (2 if is_refused else 0)
    assert ((folder / name).read_bytes() == content) == is_refused
    assert read_norms(folder / "summary.json")
    (folder / "summary.json").write_bytes(content)
    assert read_norms(folder / "summary.json") == []


def test_damages_name_their_model_after_any_kill(call, damages, tmp_path, monkeypatch):
    """The last row was there once before the summary, which then was written without the model."""
    folder = tmp_path / "damage"

    def write(path: Path, content: bytes) -> None:
        write_atomically(path, content)
        if path.name == "rows.csv":
            raise SystemExit

    for _ in range(4):
        with monkeypatch.context() as patch:
            patch.setattr(measurements, "write_atomically", write)
            with pytest.raises(SystemExit):
                cli.main([*call, str(folder)])
    assert len(read_damages(folder / "rows.csv")) == 4
    for _ in range(2):
        assert cli.main([*call, str(folder)]) == 0
        summary = json.loads((folder / "summary.json").read_text())
        assert len(summary["embedding_norms"]) == 8
        assert summary == json.loads(damages["summary.json"])


def test_rows_of_a_model_that_was_replaced_are_not_added_to(call, tmp_path, capsys):
    folder, model = tmp_path / "damage", tmp_path / "model"
    save_tiny_llama(model, hidden=32)
    command = [str(model) if call[place - 1 : place] == ["--model"] else word for place, word in enumerate(call)]
    assert cli.main([*command, str(folder)]) == 0
    rows = (folder / "rows.csv").read_text().splitlines(keepends=True)
    (folder / "rows.csv").write_text("".join(rows[:2]))
    save_tiny_llama(model, hidden=32, seed=1)
    assert cli.main([*command, str(folder)]) == 2
    assert "are those of another model" in " ".join(capsys.readouterr().err.split())


# ---- files from anybody: what they say is checked before anything is built, computed or shown by it


def test_texts_in_csv_files_are_never_formulas() -> None:
    texts = ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "a=b", None]
    table = pd.DataFrame({"=name": texts, "number": [-0.5, 1, 2, 3, 4, 5]})
    rows = csv_text(table).splitlines()
    assert rows[:3] == ["'=name,number", "'=HYPERLINK(1),-0.5", "'+1,1.0"]
    assert rows[3:] == ["'-1,2.0", "'@SUM(1),3.0", "a=b,4.0", ",5.0"]


def test_deep_json_and_accuracies_above_one_are_refused(tmp_path: Path) -> None:
    deep = "[" * 100_000
    refused("not a report", rose.RunReport.from_json, deep)
    (tmp_path / "deep.jsonl").write_text(deep)
    refused("line 1 is not a JSON object", load_text, str(tmp_path / "deep.jsonl"))
    made_report().save(tmp_path)
    pd.DataFrame({"task": ["piqa"], "questions": [10], "accuracy": [2.5]}).to_csv(tmp_path / "zero_shot.csv")
    refused("an accuracy is not from 0 to 1", rose.RunReport.load, tmp_path)
    (tmp_path / "zero_shot.csv").write_text(f"task,questions,accuracy\npiqa,{'1' * 400},0.5\n")
    refused("holds no accuracies", rose.RunReport.load, tmp_path)
