"""The headline table resumes and never mixes environments."""

from pathlib import Path

import pandas as pd

from rose.layer.registry import METHODS
from tests.benchmarks.headline import Comparison, Table, Way

METHODS.pop("sparsegpt_shrunk", None)  # of the benchmark alone: other tests try every method

HALF = Comparison("headline 0.5", "tiny", "0.5", (Way("wanda", "wanda"), Way("rose", "rose")))
OTHER = ("headline 0.7", "wanda", 0, "there")


def table(path: Path, *rows: tuple[str, str, int, str]) -> Table:
    """With rows of comparison, method, seed and environment in the file, for who is `here`."""
    names = ["comparison", "method", "seed", "environment"]
    pd.DataFrame(rows, columns=names).assign(tuned=False).to_csv(path, index=False)
    return Table(path, HALF, [0, 1], "here")


def left(one: Table) -> list[tuple[int, str]]:
    return [(seed, way.name) for seed, way in one.lacks("here")]


def test_comparisons_from_another_environment_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    begun = table(path, OTHER, (HALF.name, "wanda", 0, "here"))
    assert begun.begin()
    assert left(begun) == [(0, "rose"), (1, "wanda"), (1, "rose")]
    begun = table(path, OTHER, (HALF.name, "wanda", 0, "there"), (HALF.name, "rose", 0, "here"))
    assert begun.begin()
    assert pd.read_csv(path)["comparison"].tolist() == [OTHER[0], HALF.name]
    assert left(begun) == [(0, "wanda"), (1, "wanda"), (1, "rose")]


def test_finished_comparisons_of_another_environment_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    done = [(HALF.name, way.name, seed, "there") for seed in (0, 1) for way in HALF.ways]
    assert not table(path, *done).begin()
    assert len(pd.read_csv(path)) == 4
