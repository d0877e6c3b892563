"""Parts shared by sections of the order lab: choosing orders and making their sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import streamlit as st

from app import components
from app.figures import palette
from app.lab.sweeps import PlannedSweep, SweepResult, missing, outcome
from app.study.study import Study
from rose.layer.registry import order_names

BUDGETS = {"block": "Equal shares", "layer": "One threshold"}
SEEDS = 10  # random orders that are compared with others: one alone may be luck, good or bad
WHO_IS_WHO = (
    "SparseGPT: natural order, an equal share from every block. ROSE: two-level order (columns within blocks, then "
    "blocks, costliest first) where a layer is columnar, else SparseGPT. ROSE global: columns by loss over the whole "
    "layer, and one threshold that decides how much each block gives up."
)


def label(order: str) -> str:
    return palette.order_style(order).label


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


def outcomes(study: Study, layer: str, sweeps: Sequence[PlannedSweep], key: str) -> list[SweepResult] | None:
    """The outcomes of these sweeps in their order; None while they are being made, with the progress drawn.

    The key names the place on the page; a change of layer or sweeps there stops what ran for the former ones.
    """
    pieces = [partial(outcome, study, layer, sweep) for sweep in missing(study, layer, sweeps)]
    if not components.finished(pieces, key, (study.created, layer, tuple(sweep.key for sweep in sweeps))):
        return None
    return [outcome(study, layer, sweep) for sweep in sweeps]
