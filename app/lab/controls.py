"""Widgets that several sections of the order lab share: choosing orders and budgets, and making their sweeps."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app import components
from app.components import URL
from app.figures import palette
from app.lab.sweeps import Outcome, Sweep, missing, outcome
from app.study.study import Study
from rose.layer.methods import BUDGETS
from rose.layer.order import order_names

COLUMNS = (1, 2.7)  # controls left, stage right
DAMPING_NOTE = (
    "Final errors are measured without damping; the curves show what the sweep itself accounts for, which "
    "includes it, and so end higher."
)


def label(order: str) -> str:
    return palette.order_style(order).label


def budget_label(budget: str) -> str:
    return {"block": "Block", "layer": "Layer"}[budget]


def choose_budget(key: str, default: str = "block") -> str:
    return components.choose(
        "Budget",
        {budget: budget_label(budget) for budget in BUDGETS},
        key,
        default=default,
        help="Block: every block gives up the same share of its weights. Layer: one threshold for the whole layer "
        "decides how many each block gives up. The total is the same.",
    )


def choose_seed(key: str) -> int:
    return st.number_input("Seed of the random order", 0, 9999, 0, key=key, bind=URL)


def choose_orders(key: str, default: list[str], *, seed_key: str) -> list[str]:
    """Names of orders; the random one with its seed."""
    chosen = st.multiselect("Orders", order_names(), default=default, format_func=label, key=key, bind=URL, wrap=True)
    if "random" not in chosen:
        return chosen
    seed = choose_seed(seed_key)
    return [f"random:{seed}" if name == "random" else name for name in chosen]


def outcomes(study: Study, layer: str, sweeps: Sequence[Sweep], key: str) -> list[Outcome] | None:
    """The outcomes of these sweeps in their order; None while they are being made, with the progress drawn.

    Args:
        key: names the place on the page; a change of layer or sweeps there stops what ran for the former ones.
    """
    pieces = [lambda sweep=sweep: outcome(study, layer, sweep) for sweep in missing(study, layer, sweeps)]
    if not components.finished(pieces, key, (study.created, layer, tuple(sweep.key for sweep in sweeps))):
        return None
    return [outcome(study, layer, sweep) for sweep in sweeps]
