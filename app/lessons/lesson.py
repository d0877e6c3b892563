"""A lesson: a text on the left, one stage on the right, and controls and a question for the class.

A lesson is declared once (`app.lessons.story`); the page Learn draws all of them in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.figures.palette import Theme
from app.figures.style import Drawing


@dataclass(frozen=True)
class Slider:
    """A number that the class moves."""

    key: str
    label: str
    values: tuple[Any, ...]
    default: Any
    show: Callable[[Any], str] = str


@dataclass(frozen=True)
class Choice:
    """What the stage shows; the first option is the default."""

    key: str
    label: str
    options: Mapping[str, str]
    follows_answer: bool = False  # shown once the question is answered


@dataclass(frozen=True)
class Question:
    """What a class votes on before the lesson goes on."""

    asks: str
    answers: tuple[str, ...]
    right: int  # position in `answers`


@dataclass(frozen=True)
class Screen:
    """A lesson with everything chosen."""

    claim: str  # the heading, one line
    text: str  # Markdown with formulas
    stage: Callable[[Theme], Drawing] | None = None  # None: the board of `app.lessons.board`


@dataclass(frozen=True)
class Lesson:
    """A lesson's declaration.

    Attributes:
        screen: from the values of all controls by key, and whether the question has been answered.
        proof: name of a button, and the Markdown behind it.
    """

    title: str
    screen: Callable[[Mapping[str, Any], bool], Screen]
    controls: tuple[Slider | Choice, ...] = ()
    question: Question | None = None
    proof: tuple[str, str] | None = None
