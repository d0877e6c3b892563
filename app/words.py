"""Numbers and names as people read them."""

import itertools
import re
from collections.abc import Container, Sequence

import numpy as np

from rose import wording
from rose.layer.columnar import Outlier
from rose.model.packaged import PACKAGED
from rose.wording import (  # noqa: F401
    apart,
    count,
    duration,
    listing,
    number,
    out_of,
    place_of,
    sentence,
    short_text,
    size,
    text_name,
    whole,
    word,
)


def held(text: str) -> str:
    """The text with its percentages on one line: on screen a narrow no-break space stands before the sign."""
    return re.sub(r"(?<=\S) %(?!\{)", "\u202f%", text)


def percent(share: float, digits: int = 1) -> str:
    """`rose.wording.percent` as it stands on screen."""
    return held(wording.percent(share, digits))


def because(is_columnar: bool, is_narrow: bool, blocks: int, outlier: Outlier | None) -> str:
    """Why a layer is columnar, or why not, by the block that stands out; `is_narrow`: one is narrower than others."""
    if outlier is None:
        return "It is a single block" if blocks < 2 else "No block loses anything"
    heads = outlier.heads
    block = f"Block {outlier.block}" + (
        f" (head{'s' * (len(heads) > 1)} {listing(list(map(str, heads)), 4)})" if heads else ""
    )
    per = " a column" if is_narrow else ""
    times = f"{number(outlier.ratio, 2)} times" if outlier.is_strong else f"{percent(outlier.ratio, 0)} of"
    text = f"{block} would lose {times} what block {outlier.other} loses{per}"
    if not is_columnar:
        return text
    weights, inputs = ("large", "strong") if outlier.is_strong else ("small", "weak")
    causes = {
        "inputs": f"its inputs are {inputs}",
        "weights": f"its weights are {weights}",
        "both": f"its weights are {weights} and its inputs {inputs}",
        "neither": "its weights and inputs are as in other blocks, but spread differently inside it",
    }
    return f"{text}: {causes[outlier.cause]}"


def carries(diagonal: np.ndarray, channels: Sequence[int]) -> str:
    """ "Input channels 1229 and 1487 carry 99.8 % of the input", by diag(H), (in,); without a full stop."""
    share = percent(float(diagonal[list(channels)].sum() / diagonal.sum()))
    verb, plural = ("carry", "s") if len(channels) > 1 else ("carries", "")
    return f"Input channel{plural} {listing([str(channel) for channel in channels])} {verb} {share} of the input"


def without_massive(errors: tuple[float, float] | None) -> str:
    """A layer's error with its massive activations, and without them; "" where these are not known."""
    if errors is None:
        return ""
    return f" SparseGPT's calibration error is {number(errors[0])}, and {number(errors[1])} without these channels."


_MARKUP = re.compile(
    r"[\\`*$\[\]<>~#&|]"  # of Markdown, formulas and HTML
    r"|(?<![^\W_])_|_(?![^\W_])"  # inside a word it stands for itself
    r"|^[-+](?=\s|$)|(?<=^\d)[.)](?=\s|$)"  # lists
)
_JOINED = re.compile(r"(?i)www(?=\.)|@(?=[-\w]+\.)|-(?=-)|:(?=[\w+-]*[:/\[\\])|(?<!\w):(?=[a-z])")


def plain(text: object) -> str:
    """Anything as Markdown that shows it as it is: no picture, link, icon, formula or tag, and in one line.

    Use it for text from a link, a file, an exception or a name that somebody else has chosen. Streamlit (1.67) finds
    addresses, icons, emoji and dashes even where their signs are escaped: an invisible sign parts those.
    """
    marked = _MARKUP.sub(r"\\\g<0>", re.sub(r"[ \t\r\n\f\v]+", " ", held(str(text))).strip())
    return _JOINED.sub("\\g<0>\N{WORD JOINER}", marked)


def times(ratio: float) -> str:
    """ "× 1.03", "× 9.7": how many times a number another is."""
    return f"× {number(ratio, 3 if ratio < 2 else 2)}"


def of(name: str) -> str:
    return f" of {name}" if name else ""


def expert_of(projection: str) -> tuple[str, int] | None:
    """Which matrix of which expert: "mlp.experts.3.gate_proj" -> ("mlp.experts.*.gate_proj", 3); None for no expert."""
    parts = projection.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal() and "expert" in parts[i - 1]), None)
    return None if not at else (".".join([*parts[:at], "*", *parts[at + 1 :]]), int(parts[at]))


def short_layer(layer: str) -> str:
    """ "model.layers.18.self_attn.o_proj" -> "18 · o_proj", "model.layers.18" -> "decoder block 18"."""
    block, projection = place_of(layer)
    if block is None:
        return layer
    return f"{block} · {short_projection(projection)}" if projection else f"decoder block {block}"


def short_projection(projection: str) -> str:
    return projection.removeprefix("self_attn.").removeprefix("mlp.")


def model_name(model: str) -> str:
    """ "SmolLM2-135M", "Qwen2.5-Coder-0.5B", or the name of a folder or file."""
    name = PACKAGED[model].description.split(",")[0] if model in PACKAGED else model.rstrip("/").rsplit("/", 1)[-1]
    return name.removesuffix(".gguf").removesuffix("-Instruct")


def unused(name: str, used: Container[str]) -> str:
    names = itertools.chain([name], (f"{name}, run {again}" for again in itertools.count(2)))
    return next(free for free in names if free not in used)


def share(sparsity: str) -> str:
    """A sparsity as a part of all weights, or N:M."""
    return sparsity if ":" in sparsity else percent(float(sparsity), 0)


def heads(columns: int, heads: float) -> str:
    """A block size by the heads that a block holds, or, where a model has no head width, in columns."""
    if not heads:
        return str(columns)
    number = {0.5: "½", 1.5: "1½"}.get(heads, f"{heads:g}")
    return f"{number} head{'s' * (heads > 1)}"
