"""Make it smaller: the table opens on the example, and a run fills it."""

import json

from app.runs import example
from app.runs.slimming import SmallerRun
from app.words import number
from tests.app.tiny_study import ended, figures, open_on, open_page, run_in, texts, titles

PAGE = "views/smaller.py"


def test_page_opens_on_the_example():
    app = open_page(PAGE)
    measured = app.table[0].value.set_index("Way")
    assert measured.index[0] == "the same weights"
    rows = {row.name: row for row in example.smaller().rows}
    assert measured["Makes in"].loc["8 bits"] == f"{number(rows['8 bits'].minutes, 2)} min"
    half = app.main.dataframe[0].value.set_index("Way").loc["half zero"]
    low, high = (number(value) for value in (rows["half zero"].times_low, rows["half zero"].times_high))
    assert half[["Numbers", "Perplexity, times"]].tolist() == ["estimate", f"{low} to {high}"]
    assert all(text in texts(app) for text in ("Same quality: 8 bits", "Twice as fast: nothing pays here"))
    assert titles(app)[0].startswith("8 bits cost nothing, zeros alone save no byte")
    drawn = {point for trace in json.loads(figures(app)[0])["data"] for point in trace.get("text", ())}
    assert drawn == {name for name in rows if name != "3 bits"}, "no file has 3 bits"


def test_a_run_estimates_every_way_and_measures_those_that_fit(setup, folder):
    app = open_on(setup, PAGE, smaller_minutes="0.02", smaller_model=str(folder))
    app.button(key="smaller-start").click().run()
    run: SmallerRun = ended(run_in(app, "smaller"))
    app.run()
    assert run.request.model == str(folder)
    assert run.rows[0].is_measured
    assert len(app.main.dataframe[0].value) == len(run.rows) > 5
