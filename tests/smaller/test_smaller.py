"""`rose smaller` on a tiny checkpoint, and its rules on rows made by hand."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import psutil
import pytest
from rich.console import Console

import rose
from rose import cli
from rose.commands import terminal
from rose.model.measure.perplexity import plain_english
from rose.recipe.file import Recipe
from rose.recipe.steps import Smaller
from rose.smaller import Bench, Row, measure, read_rows, table, ways, ways_of
from rose.smaller.ways import RULES, file_sizes
from rose.tensor_files import digest
from rose.verdicts.smaller import recommend
from tests.model.ship.test_export import merging_tokenizer
from tests.tiny import save_tiny_llama

DRAW = ["--samples", "4", "--length", "48", "--held-out", "4", "--tune", "0.005"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_llama(tmp_path_factory.mktemp("tiny") / "model", hidden=128))


@pytest.fixture(scope="module")
def made(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with a few rows, and the copy of 4 bits."""
    folder = tmp_path_factory.mktemp("smaller") / "out"
    with pytest.MonkeyPatch.context() as patch:
        only(patch, "as-is", "bits-4", "slim-fifth", "half-tuned")
        assert cli.main(["smaller", checkpoint, *DRAW, "--write", "bits-4", "--output", str(folder)]) == 0
    return folder


def only(patch: pytest.MonkeyPatch, *keys: str) -> None:
    patch.setattr(ways, "RULES", {key: RULES[key] for key in keys})


def row(key: str, size: int, times: float, **more: object) -> Row:
    """A measured row whose windows all lose the same."""
    losses = " ".join(str(math.log(10 * times) + window) for window in (0.0, 0.1, 0.2))
    quality = dict.fromkeys(("times", "times_low", "times_high", "second_times", "second_high"), times)
    quality |= dict.fromkeys(("perplexity", "second_perplexity"), 10 * times)
    quality |= dict.fromkeys(("losses", "second_losses"), losses)
    return Row(key, key, "measured", None, size, None, None, None, 1.0, 0, **quality | more)


def test_the_table_has_measured_rows_with_sizes_speed_and_both_texts(made: Path, checkpoint: str) -> None:
    rows = {each.key: each for each in read_rows(made)}
    assert list(rows) == ["as-is", "bits-4", "slim-fifth", "half-tuned"]
    assert all(each.is_measured and each.prefill > 0 and len(each.losses.split()) == 4 for each in rows.values())
    dense, bits, slim = rows["as-is"], rows["bits-4"], rows["slim-fifth"]
    assert (dense.times, dense.second_times, dense.prefill_gain) == (1.0, 1.0, None)
    assert dense.safetensors == (Path(checkpoint) / "model.safetensors").stat().st_size
    assert replace(bits, f16=9, q8_0=8, q4_0=7).smallest == "q4_0"
    eight = replace(bits, f16=9, q8_0=8, q4_0=7, bits=8)
    assert (eight.smallest, eight.loads) == ("q8_0", "transformers, vLLM: safetensors; llama.cpp: f16, q8_0")
    assert slim.safetensors < dense.safetensors
    assert slim.prefill_low <= slim.prefill_gain <= slim.prefill_high
    assert bits.times_low <= bits.perplexity / dense.perplexity <= bits.times_high


def test_a_row_equals_the_measurement_of_the_single_command(made: Path, checkpoint: str, tmp_path: Path) -> None:
    """The recipe beside the copy makes the same weights, and their perplexity on the second text is that of the row."""
    assert cli.main(["run", str(made / "bits-4" / "recipe.yaml"), f"output={tmp_path / 'again'}"]) == 0
    (first, tokenizer), (again, _) = (
        rose.load_model(str(folder)) for folder in (made / "bits-4", tmp_path / "again/bits-4")
    )
    assert digest(first.state_dict()) == digest(again.state_dict())
    assert rose.perplexity(again, plain_english(again, tokenizer)) == pytest.approx(
        read_rows(made)[1].second_perplexity, rel=1e-6
    )


def test_ways_that_begin_alike_share_their_first_step(checkpoint: str, tmp_path: Path, monkeypatch) -> None:
    only(monkeypatch, "as-is", "slim-fifth", "slim-fifth-bits-8")
    slim = Mock(wraps=measure.prune_structured)
    monkeypatch.setattr(measure, "prune_structured", slim)
    out, again = tmp_path / "out", tmp_path / "again"
    assert cli.main(["smaller", checkpoint, *DRAW, "--write", "slim-fifth-bits-8", "--output", str(out)]) == 0
    assert slim.call_count == 1
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["slim-fifth-bits-8"]
    assert cli.main(["run", str(out / "slim-fifth-bits-8" / "recipe.yaml"), f"output={again}"]) == 0
    assert len({digest(rose.load_model(folder / "slim-fifth-bits-8")[0].state_dict()) for folder in (out, again)}) == 1


def test_only_the_chosen_copy_is_left_and_a_further_call_measures_further_rows(made, checkpoint, monkeypatch):
    assert [path.name for path in made.iterdir() if path.is_dir()] == ["bits-4"]
    before = (made / "rows.csv").read_text()
    only(monkeypatch, "as-is", "bits-4", "slim-fifth", "half-tuned", "bits-8")
    assert cli.main(["smaller", checkpoint, *DRAW, "--write", "bits-8", "--output", str(made)]) == 0
    assert (made / "rows.csv").read_text().startswith(before)
    assert [path.name for path in made.iterdir() if path.is_dir()] == ["bits-8"]
    assert Recipe.read(made / "bits-8", "output=x").spec.write == "bits-8"
    only(monkeypatch, "as-is", "bits-4", "slim-fifth", "half-tuned", "bits-8", "half")
    assert cli.main(["smaller", checkpoint, *DRAW, "--minutes", "0.0001", "--output", str(made)]) == 0
    assert (read_rows(made)[-1].key, read_rows(made)[-1].basis) == ("half", "estimate")


def test_the_table_is_kept_where_measuring_is_cancelled(checkpoint, tmp_path, monkeypatch):
    only(monkeypatch, "as-is", "bits-4", "bits-3")
    made, stop = Bench.make, Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(Bench, "make", lambda bench, way, go: (stop if way.key == "bits-3" else made)(bench, way, go))
    assert cli.main(["smaller", checkpoint, *DRAW, "--output", str(tmp_path / "out")]) == 130
    rows = read_rows(tmp_path / "out")
    assert [each.key for each in rows if each.is_measured] == ["as-is", "bits-4"]
    assert rows[-1].basis == "estimate"
    assert rows[-1].times_low < rows[-1].times < rows[-1].times_high


def test_a_copy_that_is_not_made_in_time_stays_an_estimate(checkpoint, tmp_path, monkeypatch, capsys):
    only(monkeypatch, "as-is", "bits-3")
    ways = iter(["as-is", "bits-3"])
    monkeypatch.setattr(Bench, "best_next", lambda bench, _seconds: next((bench.way(key) for key in ways), None))
    assert cli.main(["smaller", checkpoint, *DRAW, "--minutes", "0.0001", "--output", str(tmp_path / "out")]) == 0
    assert "Left out: 3 bits. Its copy was not made in the minutes that were left." in capsys.readouterr().out
    assert [each.is_measured for each in read_rows(tmp_path / "out")] == [True, False]


def test_unmeasured_ways_stay_estimates(checkpoint: str, tmp_path: Path) -> None:
    assert cli.main(["smaller", checkpoint, *DRAW, "--minutes", "0.0001", "--output", str(tmp_path / "out")]) == 0
    rows = read_rows(tmp_path / "out")
    assert len(rows) == len(RULES)
    measured = [each.key for each in rows if each.is_measured]
    assert measured == ["as-is", "bits-8", "bits-4"], "whatever the minutes"
    assert all(each.minutes > 0 and each.memory > 0 for each in rows[1:])


def test_recommended_are_the_smallest_that_is_as_good_and_the_best_of_half_the_bytes() -> None:
    rows = [row("as-is", 100, 1.0), row("a", 70, 1.005), row("b", 60, 1.02), row("c", 50, 1.3), row("d", 40, 1.5)]
    assert [choice.key for choice in recommend(rows)] == ["a", "c", ""]
    fast = row("e", 90, 1.4, prefill_gain=2.2, prefill_low=2.1, decoding_gain=1.5, decoding_low=1.4)
    assert [choice.key for choice in recommend([*rows, fast])] == ["a", "c", "e"]
    alike = replace(rows[3], key="f", safetensors=45)
    assert recommend([*rows, alike])[1].key == "f"
    worse = row("g", 45, 1.9)
    first = replace(
        worse, times=1.2, perplexity=12.0, losses=row("", 0, 1.2).losses
    )  # the mean of both texts is above c's
    assert recommend([*rows, first])[1].key == "g"
    assert recommend([*rows, first])[1].text.endswith("The first text has chosen among several.")


def test_nothing_is_recommended_if_no_row_reaches_a_goal() -> None:
    recommendation = recommend([row("as-is", 100, 1.0), row("a", 80, 1.2), row("b", 40, 2.5)])
    assert [choice.key for choice in recommendation] == ["", "", ""]
    assert all("nothing pays here" in choice.text for choice in recommendation)
    assert all(choice.is_complete for choice in recommendation)
    left = replace(row("c", 45, 1.2), basis="estimate")
    assert [choice.is_complete for choice in recommend([row("as-is", 100, 1.0), left])] == [True, False, True]
    assert recommend([left]) == []


def test_ways_that_a_model_does_not_allow_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = rose.load_model(str(save_tiny_llama(tmp_path / "narrow", hidden=48)))
    asked = Smaller(model="x", output=tmp_path)
    ways, left_out = ways_of(asked, model)
    keys = [way.key for way in ways]
    assert keys[0] == "as-is"
    assert "bits-4" not in keys
    assert any(text.startswith("Left out: 8 bits; 4 bits; ") and "48" in text for text in left_out)
    assert "2:4" in keys
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Mock(available=1000))
    ways, left_out = ways_of(asked, model)
    assert not any(way.is_tuned for way in ways)
    assert any("half zero, tuned; 2:4, tuned" in text and "free" in text for text in left_out)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--held-out", "1"], "held_out must be"),
        (["--length", "4096"], "4096"),
        (["--second", "no.txt"], "no.txt"),
        (["--write", "bits-5"], "There is no row 'bits-5'; choose one of as-is, "),
    ],
)
def test_impossible_requests_are_refused(more, says, checkpoint, tmp_path, capsys):
    assert cli.main(["smaller", checkpoint, *DRAW, *more, "--output", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err.replace("\n", " ")


def test_estimates_follow_measured_copies_with_the_same_removal() -> None:
    keys = {"as-is": 1.0, "bits-4": 1.05, "slim-fifth": 1.3, "slim-third": 1.47, "slim-fifth-tuned": 1.15, "half": 1.25}
    estimates = [replace(row(key, 100, times), basis="estimate") for key, times in keys.items()]
    measured = row("slim-fifth", 90, 1.48)
    rows = {each.key: each for each in ways.corrected(estimates, {"slim-fifth": measured}, tune=2.0)}
    assert rows["slim-fifth"] is measured
    assert 1.15 < rows["slim-fifth-tuned"].times < 1.48 < rows["slim-third"].times
    assert (rows["slim-fifth-tuned"].safetensors, rows["slim-third"].safetensors) == (90, 100)
    assert [rows[key].times for key in ("as-is", "bits-4", "half")] == [1.0, 1.05, 1.25]


def exportable(folder: Path) -> str:
    """A tiny checkpoint whose tokenizer llama.cpp knows."""
    path = save_tiny_llama(folder / "model", vocabulary=290)
    merging_tokenizer().save_pretrained(path)
    return str(path)


def test_sizes_match_the_written_files(tmp_path: Path) -> None:
    model, tokenizer = rose.load_model(exportable(tmp_path))
    sizes = file_sizes(model, tokenizer, str(tmp_path / "model"), "copy")
    rose.save_model(model, tokenizer, tmp_path / "copy")
    assert sizes["safetensors"] == (tmp_path / "copy" / "model.safetensors").stat().st_size
    for kind in ("f16", "q8_0", "q4_0"):
        file = tmp_path / f"{kind}.gguf"
        assert cli.main(["export", str(tmp_path / "copy"), "--type", kind, "--output", str(file)]) == 0
        assert sizes[kind] == file.stat().st_size


def test_llama_cpp_is_timed_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "llama-bench"
    answer = [{"n_prompt": 128, "n_gen": 0, "avg_ts": 80.0}, {"n_prompt": 0, "n_gen": 16, "avg_ts": 20.0}]
    program.write_text(f"#!/bin/sh\ntest -f \"$2\" && echo '{json.dumps(answer)}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    speed = measure._llama_speed(exportable(tmp_path), replace(row("x", 9, 1.0), f16=5))
    assert speed == {"llama_prefill": 80.0, "llama_decoding": 20.0}
    assert "as-is reads 80 and writes 20" in table.says_llama([row("as-is", 9, 1.0, **speed)])


def test_runtimes_name_the_programs_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flags = tmp_path / "cpuinfo"
    flags.write_text("flags: avx2 amx_int8\n")
    monkeypatch.setattr(table, "CPU_FLAGS", flags)
    monkeypatch.setattr(table.torch.cuda, "is_available", lambda: False)
    programs = table.runtimes().set_index("name")
    assert programs.loc["MACKO", "here"] == "no: no NVIDIA GPU"
    assert programs.loc["vLLM", "here"] == "no: no longer offered"
    assert table.usable_here("amx") == "yes"
    assert pd.to_datetime(programs["checked"]).notna().all()
    assert programs["source"].str.startswith("https://").all()


def test_time_left_counts_from_the_start_of_each_way(monkeypatch):
    seconds, lines = [0.0], io.StringIO()
    monkeypatch.setattr(terminal, "MINUTE", 0.0)
    console = Console(file=lines, get_time=lambda: seconds[0], width=200)
    with terminal.bar(console, "Measuring") as follow:
        for seconds[0], share in ((100.0, 0.5), (600.0, 0.01), (610.0, 0.5)):
            follow(share, "Pruning")
    assert "Pruning: 50 of 100, 100 s, about 100 s left" in lines.getvalue()
    assert "Pruning: 50 of 100, 10 s, about 10 s left" in lines.getvalue()
