"""Make it smaller: the table opens on the example, and a run fills it."""

from app.runs.slimming import SmallerRun
from app.study.setup import Setup
from tests.app.tiny_study import ended, open_on, open_page, texts

PAGE = "views/smaller.py"


def test_page_opens_on_the_example():
    app = open_page(PAGE)
    table = app.table[0].value
    assert table["Way"].iloc[0] == "as it is"
    assert table["Perplexity"].str.startswith("≈").any()  # estimates look different
    assert table.set_index("Way")["Minutes"].loc[["8 bits", "half zero"]].tolist() == ["3.5", "≈\u00a08.2"]
    assert "same quality" in texts(app).lower()


def test_run_estimates_every_way_and_measures_what_fits(folder):
    app = open_on(Setup(model=str(folder), samples=4, length=32, held_out=2), PAGE, smaller_minutes="0.02")
    app.button(key="smaller-start").click().run()
    run: SmallerRun = ended(app.session_state["smaller"])
    app.run()
    assert run.rows[0].is_measured
    assert len(app.table[0].value) == len(run.rows) > 5
