"""Widgets of the order lab: choosing orders and budgets, and sweeps with progress and cancel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from app import components, lab, session
from app.components import URL
from app.figures import palette
from app.lab import Batch, Outcome, Sweep
from app.study import Study
from rose.layer.methods import BUDGETS
from rose.layer.order import order_names

COLUMNS = (1, 2.7)  # controls left, stage right
DAMPING_NOTE = (
    "Final errors are measured without damping; the curves show what the sweep itself accounts for, which "
    "includes it, and so end higher."
)
PATIENCE = 1.5  # seconds a page waits for sweeps before it shows progress instead


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
    missing = lab.missing(study, layer, sweeps)
    pieces = [lambda sweep=sweep: lab.outcome(study, layer, sweep) for sweep in missing]
    if not finished(pieces, key, (study.created, layer, tuple(sweep.key for sweep in sweeps))):
        return None
    return [lab.outcome(study, layer, sweep) for sweep in sweeps]


def finished(pieces: Sequence[Callable[[], Any]], key: str, signature: object, noun: str = "sweep") -> bool:
    """Runs the pieces in the background and says whether all are finished; draws progress where not.

    What the pieces return must be remembered elsewhere: nothing is run again for the same signature only because
    the page is drawn again. `noun` is what one piece makes.
    """
    slot = f"{key}-batch"
    known, batch = st.session_state.get(slot, (None, None))
    if batch is not None and known != signature:
        session.leave(batch.job)
        del st.session_state[slot]  # or its end would be told to whoever comes back to what it was for
        batch = None
    if batch is None:
        if not pieces:
            return True
        batch = Batch(pieces)
        session.start_job(batch.job, batch.tell)
        st.session_state[slot] = (signature, batch)
        batch.job.wait(PATIENCE)
    if batch.job.status == "done":
        del st.session_state[slot]
        return True
    _progress(batch, key, slot, noun)
    return False


def _progress(batch: Batch, key: str, slot: str, noun: str) -> None:
    running = batch.job.status == "running"

    def made() -> str:
        return f"{batch.done} of {batch.total} {noun if batch.total == 1 else noun + 's'} made"

    def poll() -> None:
        job = batch.job
        if job.status == "running":
            job.watch(session.viewer())
            left = "" if batch.remaining is None else f", about {components.duration(batch.remaining)} left"
            st.progress(batch.done / batch.total, text=f"{made()}{left}")
            components.cancel_button(job, key)
            return
        if running:
            st.rerun()
        if job.status == "failed":
            st.error(job.message, icon=":material/error:")
        else:
            components.stopped(job, f" after {made()}; what was made is kept.")
        if st.button("Make what remains", key=f"{key}-again", icon=":material/refresh:"):
            del st.session_state[slot]
            st.rerun()

    components.live(poll, 0.5 if running else None)
