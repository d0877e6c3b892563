"""A recipe that a person drops on the start page: its choices become those of the pages."""

import streamlit as st

import rose
from app import session, words
from app.forms import study_form
from app.study.setup import Setup
from rose.recipe import Recipe
from rose.recipe.spec import Spec
from rose.recipe.steps import Analyze, Prune

KEY = "start-recipe"
TOLD = "recipe_told"  # in the session: what became of the recipe that was dropped last


def drop() -> None:
    """The place to drop a recipe, and what became of it."""
    st.file_uploader("Or drop a recipe.yaml here", ["yaml", "yml"], key=KEY, on_change=_take, max_upload_size=1)
    told, page = st.session_state.get(TOLD, ("", ""))
    if told:
        st.caption(words.plain(told))
    if page:
        st.page_link(f"views/{page}.py", label="Open Prune", icon=":material/arrow_forward:")


def _take() -> None:
    """Callback: the choices of the recipe become those of this session."""
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
    """What to say of the recipe, and the page that goes on with it, if any."""
    step = steps[0]
    if len(steps) > 1 or not isinstance(step, Analyze | Prune):
        runs = ", ".join(step.run for step in steps)
        return f"{name} is a recipe for a terminal ({runs}): rose run {name} output=FOLDER does it.", ""
    study_form.forget()
    session.choose_draft(Setup.of(step))
    if isinstance(step, Analyze):
        return f"The choices of {name} are in the form above; measure the layers to go on.", ""
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
    return f"The choices of {name} are those of the page Prune now.", "prune"
