"""Numbers and names as people read them."""

import pytest

from app import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.12345, "0.123"),
        (1.6, "1.60"),
        (99.96, "100"),
        (123.4, "123"),
        (12345.6, "12 346"),
        (-0.5, "−0.500"),
        (0.00002784, "2.78 × 10⁻⁵"),
        (3.31e8, "3.31 × 10⁸"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
    ],
)
def test_number(value, text):
    assert words.number(value) == text


def test_words():
    assert words.count(4, "layer") == "four layers"
    assert words.count(1, "layer") == "one layer"
    assert words.count(0, "layer") == "no layers"
    assert words.count(2100, "layer") == "2 100 layers"


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        (0.1234, 1, "12.3 %"),
        (-0.1234, 1, "−12.3 %"),
        (0.00049, 1, "0.049 %"),
        (-0.0038, 0, "−0.4 %"),
        (-0.0096, 0, "−1 %"),
        (-3e-9, 0, "−3 × 10⁻⁷ %"),
        (0.99, 0, "99 %"),
        (0.0, 1, "0.0 %"),
        (-0.0, 0, "0 %"),
        (float("nan"), 1, "–"),
    ],
)
def test_small_shares_are_not_zero(share, digits, text):
    assert words.percent(share, digits) == text.replace(" %", "\u202f%")


def test_short_layer_names_are_unique():
    assert words.short_layer("model.layers.18.self_attn.o_proj") == "18 · self_attn.o_proj"
    assert words.short_layer("transformer.h.0.attn.c_proj") != words.short_layer("transformer.h.0.mlp.c_proj")
    assert words.short_layer("lm_head") == "lm_head"


@pytest.mark.parametrize(
    ("some", "every", "text"),
    [(4, 4, "all four methods"), (3, 4, "three of four methods"), (0, 4, "none of four methods"),
     (1, 1, "the one method"), (0, 1, "none of one method")],
)  # fmt: skip
def test_counts_are_words(some, every, text):
    assert words.out_of(some, every, "method") == text


def test_durations_have_suitable_units():
    seconds = {45: "45 s", 300: "5 min", 7200: "2.0 h", 348.2 * 3600: "15 days"}
    assert {one: words.duration(one) for one in seconds} == seconds
