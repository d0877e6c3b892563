"""Numbers and lists in words."""

import pytest

from app import words

NAN = float("nan")


@pytest.mark.parametrize(
    ("written", "text"),
    [
        *((words.number(value), text) for value, text in {
            0: "0", 0.12345: "0.123", 1.6: "1.60", 99.96: "100", 123.4: "123", 12345.6: "12 346", -0.5: "−0.500",
            0.00002784: "2.78 × 10⁻⁵", 3.31e8: "3.31 × 10⁸", NAN: "–", float("inf"): "∞",
        }.items()),
        *((words.percent(*share), text.replace(" %", "\u202f%")) for share, text in {
            (0.1234, 1): "12.3 %", (-0.1234, 1): "−12.3 %", (0.00049, 1): "0.049 %", (-0.0038, 0): "−0.4 %",
            (-0.0096, 0): "−1 %", (-3e-9, 0): "−3 × 10⁻⁷ %", (0.99, 0): "99 %", (0.0, 1): "0.0 %", (NAN, 1): "–",
        }.items()),
        (words.percent(-0.0, 0), "0\u202f%"),
        *((words.count(number, "layer"), text) for number, text in {
            4: "four layers", 1: "one layer", 0: "no layers", 2100: "2 100 layers",
        }.items()),
        *((words.out_of(*counts, "method"), text) for counts, text in {
            (4, 4): "all four methods", (3, 4): "three of four methods", (0, 4): "none of four methods",
            (1, 1): "the one method", (0, 1): "none of one method",
        }.items()),
        *((words.duration(seconds), text) for seconds, text in {
            96: "96 s", 300: "5 min", 7200: "2.0 h", 348.2 * 3600: "15 days",
        }.items()),
        (words.short_layer("model.layers.18.self_attn.o_proj"), "18 · o_proj"),
        (words.short_layer("transformer.h.0.attn.c_proj"), "0 · attn.c_proj"),
        (words.short_layer("lm_head"), "lm_head"),
        (words.unused("Wanda", {"Wanda", "Wanda, run 2"}), "Wanda, run 3"),
    ],
)  # fmt: skip
def test_numbers_and_lists_are_worded(written, text):
    assert written == text
