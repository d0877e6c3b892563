"""Compare runs over calibration seeds: many runs from one file, their means and how far they lie apart."""

import streamlit as st

import rose
from app import components, session
from app.figures import methods
from app.forms.widgets import file_input
from rose.model.measure.comparison import cautions_of, over_seeds, read_comparison, results_of

NUMBERS = ("perplexity", "mean_held_out_error", "seconds")


def draw() -> None:
    source = file_input(
        "Results of many runs, CSV",
        "seeds",
        ["csv"],
        "comparison/rows.csv",
        "rows.csv of `python -m rose compare`, or any CSV file with the columns method, sparsity, seed, "
        "perplexity, mean_held_out_error and seconds.",
    )
    if not source:
        st.info(
            "Perplexities after pruning vary by several per cent between calibration seeds. `python -m rose compare` "
            "runs methods over several seeds; open its rows.csv here to see means and spread."
        )
        return
    try:
        table = read_comparison(source if isinstance(source, str) else source.getvalue())
    except rose.RoseError as problem:
        components.error(problem)
        return
    left, right = st.columns(2)
    sparsities = list(dict.fromkeys(table["sparsity"]))
    with left:
        sparsity = components.choose("Sparsity", {one: one for one in sparsities}, "seeds_sparsity")
    with right:
        column = components.choose("Compare", methods.MEASURES, "seeds_column")
    try:
        components.show(methods.over_seeds_bars(table, sparsity, column=column, theme=session.theme()), "over-seeds")
        components.show(
            methods.time_and_perplexity(results_of(table, sparsity), theme=session.theme()),
            "time-and-perplexity-over-seeds",
        )
    except rose.RoseError as problem:
        components.info(problem)
    components.cautions(cautions_of(table))
    means = over_seeds(table, NUMBERS).drop(columns="seconds_spread")
    st.dataframe(means, hide_index=True, alt="Means and spread by method and sparsity")
