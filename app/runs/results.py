"""Results of many runs over their calibration seeds, from a file."""

from math import inf
from typing import IO

import pandas as pd

from rose import RoseError
from rose.files import check_small
from rose.layer.pattern import parse_sparsity
from rose.model.measure.comparison import LOSSES

OPTIONAL = ("environment", "losses", "cautions")
NUMBERS = ("perplexity", "mean_held_out_error", "seconds")


def read_results(source: str | IO[bytes]) -> pd.DataFrame:
    """Reads a CSV file with the columns method, sparsity, seed, perplexity, mean_held_out_error and seconds.

    Of further columns environment, losses and cautions are kept. The held-out error may be missing, and, of a
    pruned model that does not work any more, the perplexity may be infinite or missing too: `rose compare` writes such
    rows.

    Raises:
        RoseError: no such file, or a row that no run can have come to, with its number.
    """
    wanted = ["method", "sparsity", "seed", *NUMBERS]
    if isinstance(source, str):
        check_small(source)
    try:
        texts = dict.fromkeys(["method", "sparsity", *OPTIONAL], str)
        table = pd.read_csv(source, usecols=lambda name: name in (*wanted, *OPTIONAL), dtype=texts)
        table = table[[*wanted, *(name for name in OPTIONAL if name in table)]]
    except (OSError, ValueError, KeyError) as problem:
        raise RoseError(
            f"The file cannot be read as CSV with the columns {', '.join(wanted)} ({problem}); check the path."
        ) from problem
    if table.empty:
        raise RoseError("The file holds no runs yet.")
    given = table[wanted[2:]].notna()
    table = table.fillna({name: "" for name in OPTIONAL if name in table})
    table[wanted[2:]] = table[wanted[2:]].apply(pd.to_numeric, errors="coerce")
    missing = table[["method", "sparsity", "seed"]].isna().any(axis=1)
    numbers = table["seed"].between(0, 2**63) & (table["seed"] % 1 == 0)
    for name, least, most in (("perplexity", 1, inf), ("mean_held_out_error", 0, inf), ("seconds", 0, 1e12)):
        numbers &= table[name].between(least, most) | ~given[name]
    numbers &= table["losses"].map(LOSSES.__contains__) if "losses" in table else True
    names = table["method"].str.fullmatch(r"[\w .:,/+()@×-]{1,200}") & table["sparsity"].map(_is_sparsity)
    odd = missing | ~numbers | ~names.astype(bool)
    if odd.any():
        raise RoseError(f"Row {int(odd.idxmax()) + 1} has a number that no run can have; correct the file.")
    return table


def _is_sparsity(text: object) -> bool:
    try:
        parse_sparsity(str(text))
    except RoseError:
        return False
    return True
