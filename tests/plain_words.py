"""Plain words: `python -m tests.plain_words` lints documents, docstrings, comments and texts on screen.

The rules are those of docs/style.md, as checks of proselint. Documents may break none. The code may break a few: a
pattern cannot tell every sound sentence from an odd one.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, CheckResult, types
from proselint.tools import LintFile

ROOT = Path(__file__).parents[1]
LONGEST = 28  # words
IN_CODE = 3  # findings in a hundred sentences
VAGUE = {"one", "ones", "found", "known", "own", "said", "says", "wanted", "given", "made", "asked", "told", "named"}
VAGUE |= {"taken", "kept", "whose", "much", "gone", "more", "several", "others", "here", "was", "what"}
VAGUE_NAMES = 80  # in rose and app

RULES = {
    "inverted relative clause; make two sentences": r", (?:of|in|by|from|with|for|on) (?:which|whom|whose)\b",
    '"except" or "only" says it plainly': r"\b(?:but|save|next to|other than) (?:for|no|none)\b",
    "repeat the noun": r"\b(?:that|those) (?:of|which|who|in|by|from|with)\b",
    'use a noun in place of "what"': r"\b(?:of|by|to|from|than|as|for|with|on) what\b",
    "name the thing": r"\b(?:one|ones) (?:that|of|which|is|has|by|in)\b",
    "use an active verb": r"\b(?:is|are) (?:told|said|asked|given|known|named|meant)\b",
    "say it with a number or a verb": r"\b(?:so many|so few|as many|none of|next to no)\b",
    "say what there is": r"\b[Tt]here (?:was|were) (?:no|none|nothing)\b",
}


class Prose(NamedTuple):
    """Sentences of a file, each with its line."""

    path: Path
    sentences: list[tuple[int, str]]


def long_sentence(text: str, check: Check) -> Iterator[CheckResult]:
    words = len(text.split())
    if words > LONGEST:
        yield CheckResult(check.path, f"{words} words; {LONGEST} are enough", (0, len(text)), None)


CheckRegistry().register_many(
    (
        *(
            Check(check_type=types.ExistenceSimple(pattern=pattern), path=f"rose.{number}", message=message)
            for number, (message, pattern) in enumerate(RULES.items())
        ),
        Check(check_type=long_sentence, path="rose.length"),
    )
)


def sentences(text: str, line: int) -> Iterator[tuple[int, str]]:
    """Splits a text into its sentences; code, tables and links' targets are blanked."""
    text = re.sub(r"```.*?```|<!--.*?-->", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    for part in re.split(r"(\n\s*\n|\n[ \t]*[-*|#][^\n]*\|?|\n {4}[^\n]*)", text):
        if not part.lstrip().startswith("|") and not part.lstrip("\n").startswith("    "):
            for sentence in re.split(r"(?<=[.!?:;])\s+(?=[A-Z`*\"(\[])", part):
                if len(sentence.split()) > 4:
                    yield line, " ".join(sentence.split())
        line += part.count("\n")


def prose_of_document(path: Path) -> Prose:
    return Prose(path, list(sentences(path.read_text(encoding="utf-8"), 1)))


def prose_of_code(path: Path) -> Prose:
    source = path.read_text(encoding="utf-8")
    texts = [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts += [(token.start[0], token.string.lstrip("# ")) for token in tokens if token.type == tokenize.COMMENT]
    return Prose(path, [sentence for line, text in texts for sentence in sentences(text, line)])


def findings(prose: Prose) -> Iterator[str]:
    for line, sentence in prose.sentences:
        for result in LintFile(source=prose.path.name, content=sentence).lint(
            {"max_errors": 100, "checks": {"rose": True}}
        ):
            yield f"{prose.path.relative_to(ROOT)}:{line}: {result.check_result.message}: {sentence[:160]}"


def vague_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else ""
        if name in VAGUE:
            yield f"{path.relative_to(ROOT)}:{node.lineno}: a name says what it holds: {name}"


def main() -> int:
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    code = [path for room in ("rose", "app") for path in sorted((ROOT / room).rglob("*.py"))]
    in_documents = [
        finding for path in documents if path.name != "style.md" for finding in findings(prose_of_document(path))
    ]
    proses = [prose_of_code(path) for path in code]
    in_code = [finding for prose in proses for finding in findings(prose)]
    names = [finding for path in code for finding in vague_names(path)]
    share = 100 * len(in_code) / sum(len(prose.sentences) for prose in proses)
    shown = in_documents + in_code * (share > IN_CODE) + names * (len(names) > VAGUE_NAMES)
    print(*shown, sep="\n" if shown else "")
    print(
        f"Documents: {len(in_documents)} findings. Code: {share:.1f} in a hundred sentences, {len(names)} vague names."
    )
    return bool(shown)


if __name__ == "__main__":
    sys.exit(main())
