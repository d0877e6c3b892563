"""Numbers and names as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the words are there before the engine is
    from rose import OrderPlan
    from rose.layer.columnar import Outlier

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float) -> str:
    """Three significant digits, with a power of ten only where zeros would be hard to count."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    exponent = int(f"{value:.2e}".partition("e")[2])  # of the rounded value: 99.96 is 100
    if exponent < -4 or exponent >= 6:
        mantissa = value / 10.0**exponent
        return f"{mantissa:.2f} × 10{str(exponent).translate(SUPERSCRIPT)}".replace("-", "−")
    if exponent >= 3:
        return whole(round(value)).replace("-", "−")
    return f"{value:.{max(0, 2 - exponent)}f}".replace("-", "−")


def percent(share: float, digits: int = 1) -> str:
    """0.123 -> "12.3 %"."""
    return "–" if math.isnan(share) else f"{100 * share:.{digits}f} %".replace("-", "−")


_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def whole(value: int) -> str:
    """12345 -> "12 345"."""
    return f"{value:,}".replace(",", " ")


def word(value: int) -> str:
    """ "no", "four", "210"."""
    return _WORDS[value] if 0 <= value < len(_WORDS) else whole(value)


def count(value: int, noun: str, plural: str | None = None) -> str:
    """ "no layers", "one layer", "four layers", "210 layers"."""
    return f"{word(value)} {noun if value == 1 else plural or noun + 's'}"


def out_of(some: int, every: int, noun: str) -> str:
    """ "all four methods", "three of four methods", "none of four methods", "the one method"."""
    if some == every:
        return ("all " if every > 1 else "the ") + count(every, noun)
    return f"{word(some) if some else 'none'} of {count(every, noun)}"


def listed(names: Sequence[object]) -> str:
    """ "1", "1 and 2", "1, 2 and 3"."""
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last


def because(plan: OrderPlan, found: Outlier | None) -> str:
    """Why a layer is columnar, or why not, from its plan and the block that stands out; without a full stop.

    "Columnar because block 4 (head 8) loses 25 % of what block 0 loses: its inputs are weak".
    """
    if found is None:
        return "Not columnar: it is a single block" if len(plan.block_width) < 2 else "Not columnar: no block loses"
    heads = f" (head{'s' if len(found.heads) > 1 else ''} {listed(found.heads)})" if found.heads else ""
    times = f"{number(found.ratio)} times" if found.is_strong else f"{percent(found.ratio, 0)} of"
    per_column = " per column" if len(set(plan.block_width)) > 1 else ""
    loses = f"block {found.block}{heads} loses {{}}{times} what block {found.other} loses{per_column}"
    if not plan.is_columnar:
        return f"Not columnar: {loses.format('no more than ' if found.is_strong else 'still ')}"
    weights, inputs = ("large", "strong") if found.is_strong else ("small", "weak")
    causes = {
        "inputs": f"its inputs are {inputs}",
        "weights": f"its weights are {weights}",
        "both": f"its weights are {weights} and its inputs {inputs}",
        "neither": "its weights and inputs are as in other blocks, but spread differently inside it",
    }
    return f"Columnar because {loses.format('')}: {causes[found.cause]}"


def which_way(found: Outlier) -> str:
    """Of the two ways to be columnar, this layer's; a sentence."""
    if found.is_strong:
        return "There are two ways to be columnar: a few strong blocks, as here, or a few weak ones."
    return "There are two ways to be columnar: a few strong blocks or, as here, a few weak ones."


_MARKUP = re.compile(
    r"[\\`*$\[\]<>~#&|]"  # of Markdown, formulas and HTML
    r"|(?<![^\W_])_|_(?![^\W_])"  # inside a word it stands for itself
    r"|^[-+](?=\s|$)|(?<=^\d)[.)](?=\s|$)"  # lists
)
_JOINED = re.compile(r"(?i)www(?=\.)|@(?=[-\w]+\.)|-(?=-)|:(?=[\w+-]*[:/\[\\])|(?<!\w):(?=[a-z])")


def plain(text: object) -> str:
    """Anything as Markdown that shows it as it is: no picture, link, icon, formula or tag, and in one line.

    For what comes from a link, a file, an exception or a name that somebody else has chosen. Streamlit (1.67) finds
    addresses, icons, emoji and dashes even where their signs are escaped: an invisible sign parts those.
    """
    marked = _MARKUP.sub(r"\\\g<0>", re.sub(r"[ \t\r\n\f\v]+", " ", str(text)).strip())
    return _JOINED.sub("\\g<0>\N{WORD JOINER}", marked)


def sentence(text: str) -> str:
    """With a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]


def of(name: str) -> str:
    return f" of {name}" if name else ""


def place_of(layer: str) -> tuple[int | None, str]:
    """Decoder block, where the name has one, and projection: "model.layers.18.mlp.up_proj" -> (18, "mlp.up_proj")."""
    parts = layer.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return (None, layer) if index is None else (int(parts[index]), ".".join(parts[index + 1 :]))


def expert_of(projection: str) -> tuple[str, int] | None:
    """Which matrix of which expert: "mlp.experts.3.gate_proj" -> ("mlp.experts.*.gate_proj", 3); None for no expert."""
    parts = projection.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal() and "expert" in parts[i - 1]), None)
    return None if not at else (".".join([*parts[:at], "*", *parts[at + 1 :]]), int(parts[at]))


def short_layer(layer: str) -> str:
    """ "model.layers.18.self_attn.o_proj" -> "18 · self_attn.o_proj", "model.layers.18" -> "decoder block 18".

    All of the projection's name: GPT-2 has an attn.c_proj and an mlp.c_proj in every decoder block.
    """
    block, projection = place_of(layer)
    if block is None:
        return layer
    return f"{block} · {projection}" if projection else f"decoder block {block}"


def unused(name: str, used: Container[str]) -> str:
    number, free = 2, name
    while free in used:
        number, free = number + 1, f"{name}, run {number}"
    return free
