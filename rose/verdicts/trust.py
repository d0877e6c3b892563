"""Cautions about the numbers of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from rose.layer.checks import OVERFIT
from rose.layer.registry import label_of
from rose.wording import count, listing, number, out_of, percent, sentence, word

if TYPE_CHECKING:
    from rose.layer.error import MassiveActivation

SPARSE = 0.05  # a layer with this share of zeros was pruned before
SOME = 0.01  # a smaller share of zeros is chance, as in models read from 4 bits
SHORT = 0.01  # tolerated shortfall of the sparsity, besides one weight a row
FEW_METHODS = 4  # most methods that a caution names
MAINLY = 0.5  # share of the squares above which the first position of windows is mentioned


@dataclass(frozen=True)
class Caution:
    """A reason to doubt the numbers of a layer."""

    brief: str  # text for a table
    says: str  # follows "In three of 210 layers ", or stands alone for a single layer
    needs: tuple[str, ...]  # columns that it reads
    holds: Callable[[pd.DataFrame], pd.Series]  # the rows in which it holds, from the table
    # makes the end of the sentence, from these rows and the noun that names them
    details: Callable[[pd.DataFrame, str | None], str] = lambda _rows, _noun: ""


def massive_text(massive: MassiveActivation, relative_error: float | None = None) -> str:
    """The channels and their position; with the layer's `relative_error`, also the error without these channels."""
    channels = listing([str(channel) for channel in massive.channels])
    text = f"channel{'s' if len(massive.channels) > 1 else ''} {channels}"
    if massive.first_share > MAINLY:
        text += f", at the first position of a window ({percent(massive.first_share, 0)} of the squares)"
    return text if relative_error is None else text + _beside(relative_error, massive.error)


def _beside(error: float, without: float) -> str:
    return f"; calibration error {number(error)}, without these channels {number(without)}"


def _massive_rows(rows: pd.DataFrame, noun: str | None) -> str:
    """Shows the method with the largest error without these channels."""
    if "massive" not in rows:  # rows that summarize layers lack it
        return ""
    texts = rows["massive"].astype(str)
    if {"relative_error", "error_without_massive"} <= set(rows):
        rows = rows.sort_values("error_without_massive", ascending=False, kind="stable")
        texts = rows["massive"] + [_beside(*pair) for pair in rows[["relative_error", "error_without_massive"]].values]
    if noun is None:
        return f": {texts.iloc[0]}"
    texts = (rows[noun] + ", " + texts)[~rows[noun].duplicated()].sort_index()
    return f": {'. '.join(texts)}"


CAUTIONS = (
    Caution(
        "fewer tokens than columns",
        "calibration tokens are fewer than columns: the error on them is far smaller than on other text",
        ("tokens", "columns"),
        lambda table: table["tokens"] < table["columns"],
    ),
    Caution(
        "dead columns",
        "some input columns were 0 on every token",
        ("dead_columns",),
        lambda table: table["dead_columns"] > 0,
    ),
    Caution(
        "damping raised",
        "damping had to be raised to factorize the Hessian",
        ("is_damping_raised",),
        lambda table: table["is_damping_raised"] == True,  # noqa: E712  elementwise, also for None
    ),
    Caution(
        "over-fitted",
        f"the held-out error is more than {OVERFIT:g} times the calibration error",
        ("held_out_error", "relative_error"),
        lambda table: (
            (table["held_out_error"] > OVERFIT * table["relative_error"]) & (table["held_out_error"] < math.inf)
        ),
    ),
    Caution(
        "held-out error infinite",
        "the held-out error is infinite",
        ("held_out_error",),
        lambda table: table["held_out_error"] == math.inf,
    ),
    Caution(
        "nothing held out",
        "nothing was held out, so errors are on the calibration tokens alone",
        ("held_out_error", "relative_error"),
        lambda table: table["held_out_error"].isna() & table["relative_error"].notna(),
    ),
    Caution(
        "zeros before",
        f"more than {percent(SPARSE, 0)} of the weights were zero before pruning: the numbers describe pruning a "
        "pruned model, and zeros gathered in some blocks can alone make a layer columnar",
        ("zeros_before",),
        lambda table: table["zeros_before"] > SPARSE,
    ),
    Caution(
        "nothing removed",
        "no more weights are zero than before: the model was pruned already",
        ("zeros_before", "sparsity"),
        lambda table: (table["zeros_before"] > SOME) & (table["sparsity"] <= table["zeros_before"]),
    ),
    Caution(
        "less removed than asked",
        "clearly less was removed than requested: do not rank these numbers with methods that removed all of it",
        ("sparsity", "asked_sparsity", "columns"),
        lambda table: table["asked_sparsity"] - table["sparsity"] > SHORT + 1 / table["columns"],
    ),
    Caution(
        "massive activations",
        "very few input channels carry nearly all of the input, so that the error says little of the others",
        ("massive",),
        lambda table: table["massive"].fillna("") != "",
        _massive_rows,
    ),
)


def caution_column(table: pd.DataFrame) -> pd.Series:
    """The cautions of every row in brief, "" without any: a column for tables and CSV files. A caution is checked where
    the table has the columns that it needs.
    """
    column = pd.Series("", index=table.index, dtype=object)
    for caution in CAUTIONS:
        if (is_so := _holds(caution, table)) is not None:
            column = column.where(~is_so, column.where(column == "", column + "; ") + caution.brief)
    return column


def _holds(caution: Caution, table: pd.DataFrame) -> pd.Series | None:
    """The rows in which a caution holds; None if columns are missing. Summary rows have a column of cautions."""
    if "cautions" in table:
        return table["cautions"].str.split("; ").map(lambda briefs: caution.brief in briefs)
    return caution.holds(table) if set(caution.needs) <= set(table.columns) else None


def in_brief(table: pd.DataFrame) -> str:
    """All cautions of a table, each once, for its summary row."""
    of_rows = "; ".join(caution_column(table))
    return "; ".join(caution.brief for caution in CAUTIONS if caution.brief in of_rows.split("; "))


def cautions(table: pd.DataFrame, noun: str = "layer") -> list[str]:
    """A sentence for each caution of a table: "In three of 210 layers …".

    `noun` is the column that names the rows; summary rows have `in_brief` in a column cautions.
    """
    sentences, every = [], table[noun].nunique() if noun in table else 0
    for caution in CAUTIONS:
        if every and (holds := _holds(caution, table)) is not None:
            some = table.loc[holds, noun].unique()
            if len(some):
                where = f"in {out_of(len(some), every, noun)} " if every > 1 else ""
                methods = ""
                if (table[noun].isin(some) & ~holds).any():  # a study: the caution holds for some of its methods
                    grouped = table[holds].groupby("method", sort=False) if "method" in table else []
                    counts = {label_of(str(name)): word(rows[noun].nunique()) for name, rows in grouped}
                    parts = [label + (f" in {number}" if every > 1 else "") for label, number in counts.items()]
                    is_short = 0 < len(parts) <= FEW_METHODS
                    methods = f": by {listing(parts)}" if is_short else ", by at least one method"
                details = caution.details(table[holds], noun if every > 1 else None)
                sentences.append(f"{sentence(where + caution.says + methods + details)}.")
    return sentences


VERBS = {"fail": ("fails", "fail"), "look": ("needs review", "need review"), "pass": ("passes", "pass")}


def says_statuses(statuses: Sequence[str], noun: str) -> str:
    """ "12 checks: none fails, one needs review, eleven pass"."""
    parts = []
    for status, (singular, plural) in VERBS.items():
        total = sum(each == status for each in statuses)
        parts.append(f"{word(total)} {singular if total == 1 else plural}" if total else f"none {singular}")
    return f"{sentence(count(len(statuses), noun))}: {', '.join(parts)}"
