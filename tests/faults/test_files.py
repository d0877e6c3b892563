"""Files may come from anybody: what they say is checked before anything is built, computed or shown by it."""

from pathlib import Path

import pandas as pd
import pytest

import rose
from rose.model.load.tokens import load_text
from rose.rows import csv_text
from tests.app.results.made_reports import made_report
from tests.tiny import byte_tokenizer


def test_no_text_of_a_csv_file_is_a_formula() -> None:
    texts = ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "a=b", None]
    table = pd.DataFrame({"=name": texts, "number": [-0.5, 1, 2, 3, 4, 5]})
    rows = csv_text(table).splitlines()
    assert rows[:3] == ["'=name,number", "'=HYPERLINK(1),-0.5", "'+1,1.0"]
    assert rows[3:] == ["'-1,2.0", "'@SUM(1),3.0", "a=b,4.0", ",5.0"]


def test_deep_json_and_accuracies_above_one_are_no_report(tmp_path: Path) -> None:
    deep = "[" * 100_000
    with pytest.raises(rose.RoseError, match="not a report"):
        rose.RunReport.from_json(deep)
    (tmp_path / "deep.jsonl").write_text(deep)
    with pytest.raises(rose.RoseError, match="line 1 is not a JSON object"):
        load_text(str(tmp_path / "deep.jsonl"))
    made_report().save(tmp_path)
    pd.DataFrame({"task": ["piqa"], "questions": [10], "accuracy": [2.5]}).to_csv(tmp_path / "zero_shot.csv")
    with pytest.raises(rose.RoseError, match="an accuracy is not from 0 to 1"):
        rose.RunReport.load(tmp_path)


def test_more_tokens_than_can_be_had_are_refused_before_the_text_is_read() -> None:
    with pytest.raises(rose.RoseError, match="ask for fewer"):
        rose.load_tokens("/no/such.txt", byte_tokenizer(), samples=10**9, length=2048)
