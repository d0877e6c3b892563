"""Sweeps of the order lab: kept without matrices, made once, and one's own orders in links."""

import pytest

from app.lab.sweeps import PlannedSweep, missing, outcome, read_own, write_own
from app.study.study import Study
from tests.app.tiny_study import COLUMNAR


@pytest.mark.parametrize("link", ["blocks:1.0", "nonsense:0.1.2.3", "natural", "natural:0.1.2.x", ":"])
def test_links_that_do_not_fit_are_left_out(study: Study, link: str) -> None:
    assert read_own(link, study.plan(COLUMNAR)) is None


def test_own_order_is_written_as_it_is_read(study: Study) -> None:
    assert read_own(write_own("random:2", [3, 1, 0, 2]), study.plan(COLUMNAR)) == ("random:2", [3, 1, 0, 2])


def test_outcomes_keep_no_matrix_and_are_not_made_twice(study: Study) -> None:
    one = outcome(study, COLUMNAR, PlannedSweep("columns", "layer"))
    assert one.result.weight.numel() == one.result.mask.numel() == 0
    assert one.result.plan is study.plan(COLUMNAR, sparsity="0.7")
    assert outcome(study, COLUMNAR, PlannedSweep("columns", "layer")) is one
    assert missing(study, COLUMNAR, [PlannedSweep("columns", "layer"), PlannedSweep("columns", "layer", "0.55")]) == [
        PlannedSweep("columns", "layer", "0.55")
    ]
