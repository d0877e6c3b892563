"""Make it smaller: what does each way give, and which heads and channels can go?"""

from app import components
from app.sections import heads_and_channels, ways

SECTIONS = {"ways": ("Every way", ways.draw), "parts": ("Heads and channels", heads_and_channels.draw)}


def draw() -> None:
    section = components.head(SECTIONS, "smaller_section")
    components.require_weights()
    SECTIONS[section][1]()


draw()
