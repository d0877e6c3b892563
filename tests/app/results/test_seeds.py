"""Rows of many runs from a file of anybody's."""

import pytest

import rose
from app.figures.methods import over_seeds_bars
from rose.model.measure.comparison import read_comparison, results_of

CSV = """method,sparsity,seed,perplexity,dense_perplexity,mean_held_out_error,seconds
rose,0.7,0,20,10,0.1,5
rose,0.7,1,26,10,0.3,7
sparsegpt,0.7,0,30,10,,5
rose,2:4,0,15,10,0.1,5
"""
BROKEN = [
    (3, "26", "much", "perplexity 'much'"),
    (3, "26", "0.5", "perplexity '0.5'"),
    (3, "26", "-inf", "perplexity '-inf'"),
    (3, "0.3,7", "0.3,-7", "seconds '-7'"),
    (3, "0.3,7", "-0.3,7", "mean_held_out_error '-0.3'"),
    (3, "0.7,1", "0.7,1.5", "seed '1.5'"),
    (3, "0.7,1", "0.7,", "seed ''"),
    (5, "2:4", "[x](http://a.example)", "sparsity '[x](http://a.example)'"),
    (4, "sparsegpt", "<b>", "method '<b>'"),
]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "The file is not a table of comparison runs; choose a rows.csv of rose."),
        ("method,sparsity\nrose,0.7\n", "The file is not a table of comparison runs; choose a rows.csv of rose."),
        (CSV.splitlines()[0] + "\n", "The file holds no runs yet."),
        *(
            (CSV.replace(old, new), f"Line {line} of the file is no whole row of comparison runs ({why});")
            for line, old, new, why in BROKEN
        ),
    ],
)
def test_other_files_are_refused(text: str, says: str) -> None:
    with pytest.raises(rose.RoseError) as refused:
        read_comparison(text.encode())
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize("path", ["/dev/zero", "/no/such.csv", "/tmp"])
def test_rows_are_read_from_a_file_only(path: str) -> None:
    with pytest.raises(rose.RoseError, match=f"There is no file {path}"):
        read_comparison(path)


@pytest.mark.parametrize("perplexity", ["inf", ""])
def test_a_method_with_a_ruined_run_has_no_mean(perplexity: str) -> None:
    table = read_comparison(CSV.replace("26", perplexity).rstrip("\n").encode())
    drawing = over_seeds_bars(table, "0.7")
    assert drawing.data["method"].tolist() == ["sparsegpt"]
    assert drawing.caption.endswith("Without ROSE: not finite for a seed.")
    assert [result.method for result in results_of(table, "0.7")] == ["sparsegpt"]
