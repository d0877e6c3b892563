"""Reads a recipe that a person drops on the start page, and fills the pages' forms with it."""

import streamlit as st

import rose
from app import session, words
from app.forms import study_form
from app.study.setup import Setup
from rose.recipe import Recipe
from rose.recipe.spec import Spec
from rose.recipe.steps import Analyze, Prune

KEY = "start-recipe"
TOLD = "recipe_told"  # in the session: how the last recipe was used


def drop() -> None:
    """Draws the place to drop a recipe, and says how the last recipe was used."""
    st.file_uploader("Or drop a recipe.yaml here", ["yaml", "yml"], key=KEY, on_change=_take, max_upload_size=1)
    sentence, page = st.session_state.get(TOLD, ("", ""))
    if sentence:
        st.caption(words.plain(sentence))
    if page:
        st.page_link(f"views/{page}.py", label="Open Prune", icon=":material/arrow_forward:")


def _take() -> None:
    """Callback: reads the recipe and fills the forms."""
    file = st.session_state[KEY]
    if file is None:
        st.session_state.pop(TOLD, None)
        return
    try:
        recipe = Recipe.parse(file.getvalue().decode(errors="replace"), name=file.name, is_placed=False)
        st.session_state[TOLD] = _use(file.name, recipe.steps)
    except rose.RoseError as problem:
        st.session_state[TOLD] = str(problem), ""


def _use(name: str, steps: tuple[Spec, ...]) -> tuple[str, str]:
    """Fills the forms; returns a sentence and the page to open next, if any."""
    step = steps[0]
    if len(steps) > 1 or not isinstance(step, Analyze | Prune):
        runs = ", ".join(step.run for step in steps)
        return f"This page cannot run {name} ({runs}). Run it in a terminal: rose run {name} output=FOLDER", ""
    study_form.forget()
    session.choose_draft(Setup.of(step))
    if isinstance(step, Analyze):
        return f"The form above has the settings of {name}. Measure the layers next.", ""
    session.use_draft()
    chosen = {
        "prune_methods": [step.method],
        "prune_sparsities": step.sparsity,
        "prune_bits": ["stored" if step.bits is None else str(step.bits)],
        "prune_group": str(step.group or 64),
        "prune_targets": [step.target],
        "prune_target_damping": step.target_damping,
        "prune_true_sequential": step.true_sequential,
        "prune_layers": "" if step.layers is None else " ".join(step.layers),
    }
    st.session_state.update(chosen)
    return f"The page Prune has the settings of {name}.", "prune"
