"""Make it smaller: the table opens on the example, and a run fills it."""

from app.runs.slimming import SmallerRun
from tests.app.tiny_study import ended, open_on, open_page, texts

PAGE = "views/smaller.py"


def test_page_opens_on_the_example():
    app = open_page(PAGE)
    measured = app.table[0].value.set_index("Way")
    assert measured.index[0] == "as it is"
    assert measured["Minutes"].loc["8 bits"] == "3.5"
    half = app.main.dataframe[0].value.set_index("Way").loc["half zero"]
    assert half[["Numbers", "Perplexity, times"]].tolist() == ["estimate", "1.20 to 1.33"]
    assert "Same quality: **8 bits**" in texts(app)
    assert "Twice as fast: **Nothing pays here**" in texts(app)


def test_run_estimates_every_way_and_measures_what_fits(setup, folder):
    app = open_on(setup, PAGE, smaller_minutes="0.02", smaller_model=str(folder))
    app.button(key="smaller-start").click().run()
    run: SmallerRun = ended(app.session_state["smaller"])
    app.run()
    assert run.spec.model == str(folder)
    assert run.rows[0].is_measured
    assert len(app.main.dataframe[0].value) == len(run.rows) > 5
