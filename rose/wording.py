"""Numbers, shares and lists as text, for verdicts, reports and the app."""

import math
import re
from collections.abc import Sequence
from typing import Any

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MOST_DIGITS = 6  # that tell two numbers apart


def number(value: float, digits: int = 3) -> str:
    """A number with this many significant digits; a power of ten for very large and very small ones."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded value: 99.96 is 100
    if exponent < -4 or exponent >= 6:
        mantissa = value / 10.0**exponent
        return f"{mantissa:.{digits - 1}f} × 10{str(exponent).translate(SUPERSCRIPT)}".replace("-", "−")
    if exponent >= digits:
        return whole(round(value)).replace("-", "−")
    return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace(",", " ").replace("-", "−")


def apart(*values: float) -> list[str]:
    """Numbers with enough digits to tell them apart, at least three: 12.98 and 13.04, not 13.0 twice. Also 519.5 and
    519.4, not 520 and 519, which look farther apart."""
    most = len({number(value, MOST_DIGITS) for value in values})
    for digits in range(3, MOST_DIGITS):
        texts = [number(value, digits) for value in values]
        rounded = [
            float(round(value)) if 10**digits <= abs(value) < 10**6 else float(f"{value:.{digits}g}")
            for value in values
        ]
        if len(set(texts)) == most and not max(rounded) - min(rounded) > 2 * (max(values) - min(values)):
            return texts
    return [number(value, MOST_DIGITS) for value in values]


def percent(share: float, digits: int = 1) -> str:
    """0.123 -> "12.3 %"; a share that would round to 0 has its sign and one or two significant digits: "−0.4 %"."""
    value = 100 * share
    if value and abs(value) < 10.0**-digits:
        return f"{number(value, 2 if digits else 1)} %"
    return "–" if math.isnan(share) else f"{value:z.{digits}f} %".replace("-", "−")


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


def listing(names: Sequence[str], most: int = 4) -> str:
    """ "A", "A and B", "A, B and C"; of more than `most`, "A, B, C and four others"."""
    if len(names) > most:
        left = len(names) - most + 1
        names = [*names[: most - 1], f"{word(left)} others"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def several(names: str | Sequence[str]) -> list[str]:
    """Names as a list; a single name becomes a list of one."""
    return [names] if isinstance(names, str) else list(names)


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def size(stored: float) -> str:
    """Bytes: "1.2 GB", "538 MB", "4.2 MB", "37 kB"."""
    if stored >= 1e9:
        return f"{stored / 1e9:.1f} GB"
    if stored >= 1e6:
        return f"{stored / 1e6:.{int(stored < 1e7)}f} MB"
    return f"{stored / 1e3:.0f} kB"


def short_text(value: Any, most: int = 40) -> str:
    """A setting as short text without markup."""
    return re.sub(r"[^\w .,:%×+=-]", "·", re.sub(r"\((R|TM)\)", "", str(value)))[:most]


def text_name(text: str) -> str:
    """A text in a sentence: "Python's reference", or as it was asked for."""
    return "Python's reference" if text == "packaged" else text


def place_of(layer: str) -> tuple[int | None, str]:
    """Decoder block, where the name has one, and projection: "model.layers.18.mlp.up_proj" -> (18, "mlp.up_proj")."""
    parts = layer.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return (None, layer) if index is None else (int(parts[index]), ".".join(parts[index + 1 :]))
