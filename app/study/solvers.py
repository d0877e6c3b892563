"""Solvers of one layer's problem, watched: the states that each goes through, kept small. No Streamlit here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from app.study.study import Study, error_on
from rose.layer.pattern import parse_sparsity
from rose.layer.solvers import SOLVERS, watch_solver

LABELS = {"sweep": "One sweep", "refit": "Sweep and refit", "stages": "Five stages", "admm": "ADMM"}


@dataclass(frozen=True)
class Watched:
    """One solver's way, with a row of `table` for each state.

    Its columns: step, work, is_complete, removed (weights), changed (mask entries that differ from the state before),
    relative_error, held_out_error (NaN without held-out tokens).
    """

    table: pd.DataFrame
    masks: list[np.ndarray]  # of each state, bits packed along columns, (out, ⌈in/8⌉) uint8
    columns: int  # of the layer

    def mask(self, state: int) -> np.ndarray:
        """True = removed, (out, in) bool; nothing is removed before the first state, -1."""
        if state < 0:
            return np.zeros((len(self.masks[0]), self.columns), dtype=bool)
        return np.unpackbits(self.masks[state], axis=1, count=self.columns).astype(bool)

    def at(self, work: float) -> int:
        """The last state reached with so much work; -1 where none is."""
        return int((self.table["work"] <= work + 1e-9).sum()) - 1


def offered(study: Study) -> list[str]:
    """Solvers for the study's pattern: N:M cannot be reached in stages."""
    grouped = parse_sparsity(study.setup.sparsity).is_grouped
    return [name for name in SOLVERS if not (grouped and name == "stages")]


def watched(study: Study, layer: str, solver: str, order: str) -> Watched:
    """Runs the solver, unless it has been run before."""
    order = "" if solver == "admm" else order  # it has none
    return study.remember(("solver", layer, solver, order), lambda: _watch(study, layer, solver, order or "natural"))


def _watch(study: Study, layer: str, solver: str, order: str) -> Watched:
    weight, statistics, held_out = study.weight(layer), study.statistics(layer), study.held_out_statistics(layer)
    states = watch_solver(solver, weight, statistics, order=order, **study.layer_options())
    rows, masks, last = [], [], None
    for state in states:
        mask = state.mask.cpu().numpy()
        masks.append(np.packbits(mask, axis=1))
        rows.append(
            {
                "step": state.step,
                "work": state.work,
                "is_complete": state.is_complete,
                "removed": int(mask.sum()),
                "changed": int((mask if last is None else mask != last).sum()),
                "relative_error": error_on(statistics, weight, state.weight),
                "held_out_error": error_on(held_out, weight, state.weight),
            }
        )
        last = mask
    return Watched(pd.DataFrame(rows), masks, weight.shape[1])
