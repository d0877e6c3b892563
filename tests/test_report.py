"""Reports round-trip through JSON, CSV and parquet to the last bit."""

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
import torch

import rose
from rose.rows import LayerRecord, finite
from rose.verdicts import caution_column
from tests.model.families import make_model, make_tokens
from tests.tiny import byte_tokenizer


def record(number: int = 0, **changes: Any) -> LayerRecord:
    place = {"layer": f"model.layers.{number}.mlp.up_proj", "block_index": number, "projection": "mlp.up_proj"}
    run = {"rows": 56, "columns": 32, "method": "rose", "order": "natural", "budget": "block", "is_columnar": False}
    numbers = {"sparsity": 0.5, "relative_range": 1 / 3, "relative_error": 0.1 + 0.2, "held_out_error": 1 / 7}
    more = {"damping": 0.01, "dead_columns": 0, "seconds": 0.012345678901234567}
    return LayerRecord(**(place | run | numbers | more | changes))


WHOLE = '{"version": 2, "recipe": {"method": "rose", "model": "tiny"}, "results": {}, "layers": []}'
SETTINGS: dict[str, Any] = {"method": "rose", "sparsity": "0.5", "damping": 0.01, "held_out_samples": 0}
RECORDS = {
    "plain": [record(0), record(1, is_columnar=True)],
    "without held-out": [record(0, held_out_error=None), record(1, held_out_error=None)],
    "some held-out": [record(0), record(1, held_out_error=None)],
    "tiny and huge": [record(0, relative_error=1.2345678901234567e-13), record(1, relative_error=9.87654321e17)],
    "infinite": [record(0, relative_error=math.inf), record(1, held_out_error=math.inf)],
    "one layer": [record()],
}


@pytest.fixture(params=[*RECORDS, "a real run"])
def report(request: pytest.FixtureRequest) -> rose.RunReport:
    if request.param in RECORDS:
        return rose.RunReport.from_records(RECORDS[request.param], **SETTINGS)
    return rose.prune_model(make_model("llama"), make_tokens(), sparsity=0.5, block_size=16, held_out=make_tokens(2))


assert_same = partial(pd.testing.assert_frame_equal, check_exact=True)


def test_saved_files_round_trip(report: rose.RunReport, tmp_path: Path) -> None:
    report.save(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"report.json", "layers.csv", "layers.parquet"}
    text = (tmp_path / "run" / "report.json").read_text()
    assert text == report.to_json()
    json.loads(text, parse_constant=pytest.fail)  # no NaN, which other programs do not read
    load = rose.RunReport.load
    for again in (rose.RunReport.from_json(text), load(tmp_path / "run"), load(f"{tmp_path}/run/report.json")):
        assert again.summary == finite(report.summary)
        assert_same(again.layers, report.layers)
        assert again != report  # and no error, as tables would make of it
    assert_same(pd.read_parquet(tmp_path / "run" / "layers.parquet"), report.layers)
    table = pd.read_csv(tmp_path / "run" / "layers.csv", float_precision="round_trip")
    empty = table["massive"].fillna("").astype(report.layers["massive"].dtype)
    assert_same(table.drop(columns="cautions").assign(massive=empty), report.layers)
    assert table["cautions"].fillna("").tolist() == caution_column(report.layers).tolist()
    report.save(tmp_path / "run")  # over an old one


def test_totals_are_weighted_sums_of_layers() -> None:
    records = [
        record(0, rows=10, columns=10, sparsity=0.5, relative_error=0.2, held_out_error=0.4, damping=0.01),
        record(1, rows=10, columns=30, sparsity=0.7, relative_error=0.4, held_out_error=None, is_damping_raised=True),
        record(2, rows=10, columns=10, sparsity=0.5, is_columnar=True, relative_error=0.3, held_out_error=0.6),
    ]
    summary = rose.RunReport.from_records(records, damping=0.01).summary
    expected = {"layers": 3, "weights": 500, "removed_fraction": (50 + 210 + 50) / 500, "mean_relative_error": 0.3}
    expected |= {"mean_held_out_error": 0.5, "columnar_layers": 1, "layers_with_raised_damping": 1}
    assert {name: summary[name] for name in expected} == pytest.approx(expected)


def test_layers_pruned_by_several_methods_count_once() -> None:
    records = [record(number, method=method) for number in range(2) for method in ("rose", "wanda")]
    single, both = (rose.RunReport.from_records(chosen).summary for chosen in (records[::2], records))
    for name in ("layers", "columnar_layers", "weights"):
        assert single[name] == both[name]
    records[1] = record(0, method="wanda", relative_error=0.9)
    summary = rose.RunReport.from_records(records).summary
    assert summary["mean_relative_error"] is None
    assert summary["mean_errors"]["wanda"]["mean_relative_error"] == pytest.approx((0.9 + record().relative_error) / 2)


def test_remarks_name_layers_without_a_dense_target() -> None:
    records = [
        record(0, block_index=0, target="dense"),
        record(1, block_index=0, target="dense and stream"),
        record(2, block_index=1, target="layer"),
        record(3, block_index=1, target="dense"),
        record(4, block_index=2, target="layer", sparsity=0.0),  # left dense
    ]
    stream, own_target = rose.RunReport.from_records(records, target="dense").remarks
    assert stream.startswith("In 1 of 2 decoder blocks no pruned layer was seen to write")
    assert own_target.startswith("1 of 4 layers were fitted to their own output")
    assert rose.RunReport.from_records(records[:2], target="dense").remarks == []
    assert rose.RunReport.from_records(records, target="layer").remarks == []


ROW = {"layer": "model.layers.0.mlp.up_proj", "block_index": 0, "method": "rose", "sparsity": 0.5}
ANALYSIS = {"run": "analyze", "methods": ["x"]}
PLACE = {"block_index": 10**9, "drift": 1, "passed_on": 1, "arisen": 1}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        *((text, "") for text in ("", "{", "[]", "3", "null", '{"layers": []}')),
        ({"layers": 3}, "its layers are no list of rows"),
        ({"layers": [{"a": 1}]}, "its rows name no layer"),
        ({"layers": [ROW | {"layer": "<img src=x>"}]}, "a layer has no such name"),
        ({"layers": [ROW, ROW]}, "a layer is there twice"),
        ({"layers": [ROW | {"block_index": 10**9}]}, "a decoder block is no whole number below 4096"),
        ({"layers": [ROW | {"block_index": "x"}]}, "layers[0].block_index cannot be 'x'"),
        ({"layers": [{f"{row} {at}": 1 for at in range(20)} for row in range(20)]}, "its rows have more columns"),
        ({"recipe": {}}, "it names no method"),
        ({"recipe": {"method": "<script>"}}, "it names no method"),
        ({"recipe": ANALYSIS, "layers": []}, "it has no layers"),
        ({"recipe": ANALYSIS, "layers": [ROW | {"method": "<b>"}]}, "a method has no such name"),
        *(({"results": {"drift": drift}}, "") for drift in (5, [{"drift": 1}], [{"arisen": 0.1}])),
        ({"results": {"drift": [PLACE]}}, "its drift is not of decoder blocks"),
        ({"results": {"remarks": [5]}}, "its remarks are no sentences"),
        ({"results": {"text_cautions": [5]}}, "its remarks are no sentences"),
        ({"results": {"padded_windows": 3}}, "'samples'"),
        ({"results": {"perplexity_before": 0}}, "a perplexity is below 1"),
        ({"results": {"tuned": []}}, ""),
        ({"results": {"tuned_before": {"steps": 5}}}, ""),
        *(({"then": then}, "") for then in (5, {}, {"recipe": {}, "results": {"drift": [5]}, "layers": [ROW]})),
    ],
)
def test_foreign_reports_are_refused(changes: Any, says: str, tmp_path: Path) -> None:
    whole = json.loads(WHOLE) | {"layers": [ROW]}
    text = changes if isinstance(changes, str) else json.dumps(whole | changes)
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(rose.RoseError) as refused:
        rose.RunReport.load(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'report.json'} is not a report written by rose ({says}")
    assert str(refused.value).count("written by rose") == 1


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        *(("target", value, f"{value!r}") for value in (5, True, ["dense"], "dense\n")),
        *(("rows", value, f"{value!r}") for value in (-1, 56.5, "56", True, 10**30)),
        *(("sparsity", value, f"{value!r}") for value in (1.5, "0.5", False, {})),
        ("is_columnar", 1, "1"),
        ("relative_error", "inf", "'inf'"),
        ("held_out_error", 10**400, "1" + 38 * "0"),
        ("kept_units", 2.5, "2.5"),
        ("written_by_another", "text", "'text'"),  # the first row has a number there
    ],
)
def test_cells_of_a_wrong_type_are_named(column: str, value: Any, text: str) -> None:
    data = json.loads(rose.RunReport.from_records([record(0), record(1)]).to_json())
    data["layers"][0]["written_by_another"] = 1
    data["layers"][1][column] = value
    with pytest.raises(rose.RoseError, match=rf"layers\[1\]\.{column} cannot be {re.escape(text)}"):
        rose.RunReport.from_json(json.dumps(data))


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), ValueError("no parquet of it")])
def test_a_model_is_kept_if_its_report_fails(problem, tmp_path, monkeypatch):
    model = make_model("llama")
    report = rose.RunReport.from_records([record(0)])
    monkeypatch.setattr(rose.RunReport, "save", Mock(side_effect=problem))
    with pytest.raises(rose.RoseError, match=r"The model is whole in .*its report could not be written"):
        rose.save_model(model, byte_tokenizer(), tmp_path / "model", report=report)
    assert torch.equal(rose.load_model(str(tmp_path / "model"))[0].lm_head.weight, model.lm_head.weight)


def test_other_versions_are_refused() -> None:
    for version, says in (('"summary": {}', "rose 0.1.0, which is no longer"), ('"version": 3', "a later version")):
        with pytest.raises(rose.RoseError, match=f"r.json is a report of {says}"):
            rose.RunReport.from_json(WHOLE.replace('"version": 2', version), "r.json")
