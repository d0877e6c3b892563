"""Prune: what does the whole model lose, where, and on which words?"""

from app import components
from app.sections import compare_runs, copies, sensitivity, your_text

SECTIONS = {
    "copies": ("What you get", copies.draw),
    "compare": ("Compare runs", compare_runs.draw),
    "sensitivity": ("Layer sensitivity", sensitivity.draw),
    "text": ("Your text", your_text.draw),
}


def draw() -> None:
    section = components.head(SECTIONS, "prune_section")
    if section != "compare":  # which reads files
        components.require_weights()
    SECTIONS[section][1]()


draw()
