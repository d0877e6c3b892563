"""Pieces that several pages draw: figures, choices, work in progress, and what a page needs before it can draw."""

# ruff: noqa: F401  pages name all of them `components.…`
from app.components.choices import URL, choose, edited_setup, keep_choice, pick_layer, pick_row, section, select_layer
from app.components.figure import SHARE, as_html, continued, in_percent, look, look_over, show, table
from app.components.needs import (
    START_PAGE,
    begin_restored,
    can_have_inputs,
    example,
    left_out,
    require_layer,
    require_study,
    require_weights,
    study_status,
    wait_for,
    while_measured,
)
from app.components.recipe import recipe
from app.components.said import cautions, error, info, success, warning
from app.components.theme import follow_theme
from app.components.work import (
    UNASKED,
    ended,
    finished,
    follow,
    how_far,
    job_status,
    lasting,
    live,
    may_begin,
    progress,
    while_running,
)
