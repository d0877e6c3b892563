"""The words of the field, with their definitions: of the page Glossary, and where a word stands."""

import re
from functools import cache
from html import escape
from pathlib import Path

FILE = Path(__file__).with_suffix(".md")
# Words on pages that explain themselves, and their entries; longer ones first, as one may hold another.
TERMS = {
    "relative range": "Relative range",
    "held-out error": "Held-out error",
    "massive activations": "Massive activation",
    "output projections": "Output projection",
    "output projection": "Output projection",
    "attention heads": "Head",
    "decoder blocks": "Decoder block",
    "decoder block": "Decoder block",
    "column loss": "Column loss",
    "perplexity": "Perplexity",
    "importance": "Importance",
    "calibration": "Calibration text",
    "undecided": "Undecided",
    "columnar": "Columnar",
    "sparsity": "Sparsity",
    "Hessian": "Hessian",
    "blocks": "Block",
    "budget": "Budget",
    "target": "Target",
    "price": "Price of a column",
    "dense": "Dense",
    "block": "Block",
    "mask": "Mask",
}
_KEPT = re.compile(r"(\$\$.*?\$\$|\$[^$\n]+\$|`[^`]+`|\[[^\]]+\]\([^)]+\))", re.DOTALL)
_WORDS = re.compile(rf"(?<![\w-])({'|'.join(TERMS)})(?![\w-])", re.IGNORECASE)


@cache
def definitions() -> dict[str, str]:
    """The first sentences of each entry, as plain text, by its name."""
    entries = re.findall(r"^\*\*(.+?)\*\*(.*)$", FILE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.strip(" .").partition(",")[0]: _plain(text) for name, text in entries}


def _plain(text: str) -> str:
    text = re.sub(r"\[(.+?)\]\(.+?\)", r"\1", text).replace("`", "").replace("*", "").strip(" .")
    return re.split(r"(?<=[.!?]) (?=[A-Z])", text)[0].rstrip(".") + "."


def explained(text: str) -> str:
    """A text as HTML, in which the first of each known word has its definition."""
    return _marked(escape(text), set())


def marked(markdown: str) -> str:
    """Markdown of our own, in which the first of each known word has its definition; formulas, code and links stay."""
    told = set[str]()
    parts = _KEPT.split(markdown)  # every other part is kept
    return "".join(part if place % 2 else _marked(part, told) for place, part in enumerate(parts))


def _marked(text: str, told: set[str]) -> str:
    def mark(match: re.Match[str]) -> str:
        word, entry = match[0], TERMS.get(match[0]) or TERMS[match[0].lower()]
        meaning = definitions().get(entry)
        if meaning is None or entry in told:
            return word
        told.add(entry)
        return f'<dfn tabindex="0">{word}<span role="tooltip">{escape(meaning)}</span></dfn>'

    return _WORDS.sub(mark, text)
