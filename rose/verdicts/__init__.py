"""Verdicts: which of several results is better, whether they may be compared, and how far a layer's numbers can be
trusted. Every page, table, report and command uses these rules. Nothing here measures anything.

`interval`: uncertainty; `comparison`: which result is better; `changes`: how far numbers moved; `trust`: cautions of
layers; `smaller`: recommended copies.
"""

# ruff: noqa: F401  callers write verdicts.rank, whichever file defines it
from rose.verdicts.changes import (
    says_change,
    says_layers,
    says_lost,
    says_move,
    says_odd_windows,
    says_perplexity,
    sides,
)
from rose.verdicts.comparison import (
    BOS,
    SAME,
    SAME_TIME,
    WINDOWS,
    EvaluationSetup,
    Result,
    Verdict,
    compare,
    front,
    is_same,
    is_same_model,
    mean_losses,
    on_other_windows,
    rank,
    says_ranking,
    shared_tasks,
)
from rose.verdicts.interval import (
    Interval,
    difference,
    mean_interval,
    mean_ratio,
    paired_ratio,
    rank_correlation,
    says_correlation,
)
from rose.verdicts.trust import SPARSE, caution_column, cautions, in_brief, massive_text, says_statuses
