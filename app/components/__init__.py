"""Pieces that several pages draw: figures, choices, work in progress, and what a page needs before it can draw."""

# ruff: noqa: F401  pages name all of them `components.…`
from app.components.choices import (
    URL,
    choose,
    choose_layer,
    keep_choice,
    labelled,
    own_or_other,
    pick_layer,
    section,
    select_layer,
)
from app.components.figure import (
    SHARE,
    continued,
    follow_theme,
    frame,
    in_percent,
    look,
    look_over,
    recipe,
    show,
    table,
)
from app.components.needs import (
    EXPLORE,
    example,
    head,
    inputs_of,
    left_out,
    measure_button,
    offer_inputs,
    require_study,
    require_weights,
    wait_for,
    while_measured,
)
from app.components.work import (
    UNASKED,
    cautions,
    ended,
    error,
    finished,
    info,
    lasting,
    live,
    may_begin,
    success,
    warning,
    while_running,
)
