"""Sparsity patterns, and picking exactly so many of the smallest."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rose.layer.loss import smallest
from rose.layer.pattern import Pattern, parse_sparsity
from tests.refusals import refused


@pytest.mark.parametrize(
    ("text", "ratio", "keep", "of"),
    [
        (0.7, 0.7, 0, 0),
        (0, 0.0, 0, 0),
        (1, 1.0, 0, 0),
        ("0.7", 0.7, 0, 0),
        (" 70% ", 0.7, 0, 0),
        ("2:4", 0.5, 2, 4),
        ("1 : 4", 0.75, 1, 4),
        ("4:8", 0.5, 4, 8),
        ("0:2", 1.0, 0, 2),
        ("4:4", 0.0, 4, 4),
        (Pattern(0.5, 2, 4), 0.5, 2, 4),
        (np.float32(0.5), 0.5, 0, 0),
    ],
)
def test_sparsities_are_read(text, ratio, keep, of):
    pattern = parse_sparsity(text)
    assert pattern.ratio == pytest.approx(ratio)
    assert (pattern.keep, pattern.of) == (keep, of)


@pytest.mark.parametrize(
    "text",
    [-0.1, 1.1, float("nan"), float("inf"), "much", "", "%", "5:4", "2:0", "0:0", "-2:4", "2:4:8", ":", None, True],
)
def test_bad_sparsities_are_refused(text):
    refused(r"ratio from 0 to 1 such as 0\.7, or N:M such as 2:4", parse_sparsity, text)


def test_spelling_reads_back():
    for text in ("0.7", "0.123456", "2:4", "1", "0"):
        assert str(parse_sparsity(text)) == text


def test_pattern_must_fit_the_layer():
    pattern = parse_sparsity("2:4")
    pattern.check(12, 8)
    refused("divisible by 4, but this layer has 10", pattern.check, 10, 8)
    refused("block size divisible by 4, not 6; try 4", pattern.check, 12, 6)
    refused("try 4", pattern.check, 12, 2)
    pattern.check(12, np.int64(8))
    for block_size in (0, -1, 2.5, "8", True):
        refused("block size must be a whole number", parse_sparsity(0.5).check, 12, block_size)


# Few distinct values make ties, which is where a threshold would remove too many.
scores = st.lists(st.sampled_from([0.0, 0.0, 1.0, 1.0, 2.0, 3.5]), min_size=1, max_size=40)


@given(values=scores, data=st.data())
def test_smallest_is_a_stable_sort(values, data):
    count = data.draw(st.integers(0, len(values)))
    expected = sorted(range(len(values)), key=lambda i: (values[i], i))[:count]
    for dtype in (torch.float32, torch.float64):  # NumPy selects from the first, torch from all others
        mask = smallest(torch.tensor(values, dtype=dtype), count)
        assert mask.nonzero().flatten().tolist() == sorted(expected)


@given(values=scores, count=st.integers(0, 5), rows=st.integers(1, 4))
def test_smallest_of_rows_looks_at_one_row(values, count, rows):
    score = torch.tensor(values).repeat(rows, 1) * torch.arange(1, rows + 1)[:, None]
    mask = smallest(score, min(count, len(values)), len(values))
    for row, removed in zip(score, mask, strict=True):
        assert torch.equal(removed, smallest(row, min(count, len(values))))


@given(keep=st.integers(0, 6), extra=st.integers(0, 4), groups=st.integers(1, 5), seed=st.integers(0, 999))
def test_smallest_of_groups_keeps_n_of_m(keep, extra, groups, seed):
    of = max(1, keep + extra)
    score = torch.rand(3, groups * of, generator=torch.Generator().manual_seed(seed))
    mask = smallest(score, of - keep, of).view(3, groups, of)
    grouped = score.view(3, groups, of)
    assert (mask.sum(2) == of - keep).all()
    largest_removed = grouped.masked_fill(~mask, -1).amax(2)
    smallest_kept = grouped.masked_fill(mask, 2).amin(2)
    assert (largest_removed <= smallest_kept).all()


@pytest.mark.parametrize(
    "wrong",
    [(1.5,), (-1.0,), (float("nan"),), (0.5, 1, 4), (0.5, 3, 2), (0.5, 2), (0.5, -1, -2), ("0.5",), (None,), (True,)],
)
def test_patterns_that_contradict_themselves_are_refused(wrong):
    refused("is no sparsity", Pattern, *wrong)
