"""Paths that the system will not look at are refused in a sentence, wherever a user may write one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import rose
from app.runs.depth import read_reports
from app.runs.reading import saved_checkpoint
from app.study.preflight import can_stream, check_text
from rose.paths import reachable

TOO_LONG = "x" * 5000


def test_what_is_not_there_is_a_path_all_the_same() -> None:
    assert not reachable("~/nothing/here").exists()


@pytest.mark.parametrize(
    "read",
    [
        reachable,
        rose.load_model,
        rose.load_diffusion,
        read_reports,
        saved_checkpoint,
        can_stream,
        lambda path: check_text(f"{path}.txt"),
    ],
)
@pytest.mark.parametrize("path", [TOO_LONG, "a\0b"], ids=["too long", "null byte"])
def test_names_that_no_file_can_have(read: Callable[[str], object], path: str) -> None:
    with pytest.raises(rose.RoseError, match=r"check the path|neither a folder|no report.json|no model in"):
        read(path)
