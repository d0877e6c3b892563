"""Widgets that several sections of the order lab share: choosing orders and budgets, and making their sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from app import components
from app.figures import palette
from app.lab.sweeps import PlannedSweep, SweepResult, missing, outcome
from app.study.study import Study
from rose.layer.registry import order_names

BUDGETS = {"block": "Block", "layer": "Layer"}
SEEDS = 10  # random orders that are compared with others, as a band: one alone may be luck, good or bad


def label(order: str) -> str:
    return palette.order_style(order).label


def choose_budget(key: str) -> str:
    return components.choose(
        "Budget",
        BUDGETS,
        key,
        help="Block: every block gives up the same share of its weights. Layer: one threshold for the whole layer "
        "decides how many each block gives up. The total is the same.",
    )


def choose_orders(key: str, default: list[str]) -> list[str]:
    """Names of the chosen orders; random stands for all of its seeds."""
    chosen = st.multiselect(
        "Orders",
        order_names(),
        default=default,
        format_func=lambda name: f"{label(name)}, {SEEDS} seeds" if name == "random" else label(name),
        key=key,
        bind=components.URL,
        wrap=True,
    )
    seeds = [f"random:{seed}" for seed in range(SEEDS)]
    return [order for name in chosen for order in (seeds if name == "random" else [name])]


def choose_error(study: Study, layer: str, key: str) -> str:
    """Which tokens errors are on: held-out ones first, where there are any."""
    held_out = {"held_out": "Held-out"} if study.held_out_statistics(layer) is not None else {}
    return components.choose("Error on", held_out | {"calibration": "Calibration"}, key)


def of_error(table: pd.DataFrame, error_on: str, layer: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table with the error on these tokens as `relative_error`, and the look of a figure that says so."""
    look = components.look(layer)
    look["layer"] += f" on {'held-out' if error_on == 'held_out' else 'calibration'} tokens"
    return table.assign(relative_error=table["held_out_error"]) if error_on == "held_out" else table, look


def with_natural(orders: Sequence[str]) -> list[str]:
    """These orders after the natural one, which others are compared with."""
    return ["natural", *(order for order in orders if order != "natural")]


def outcomes(study: Study, layer: str, sweeps: Sequence[PlannedSweep], key: str) -> list[SweepResult] | None:
    """The outcomes of these sweeps in their order; None while they are being made, with the progress drawn.

    The key names the place on the page; a change of layer or sweeps there stops what ran for the former ones.
    """
    pieces = [lambda sweep=sweep: outcome(study, layer, sweep) for sweep in missing(study, layer, sweeps)]
    if not components.finished(pieces, key, (study.created, layer, tuple(sweep.key for sweep in sweeps))):
        return None
    return [outcome(study, layer, sweep) for sweep in sweeps]
