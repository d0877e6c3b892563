"""A recipe that is dropped into the dialog: the page that runs it, with its settings filled in."""

from collections.abc import Callable
from typing import Any, NamedTuple

import streamlit as st

import rose
from app import session, words
from app.forms.prune_choices import AS_STORED
from app.runs.checked import setup_of
from app.study.setup import CHOSEN, Setup
from rose.layer.pattern import GROUP
from rose.recipe import Recipe
from rose.recipe.steps import Analyze, CheckCopies, Damage, Prune, Slim, Smaller
from rose.spec import Spec


class Form(NamedTuple):
    """A page that runs such recipes."""

    view: str
    title: str
    key: str  # before the keys of its widgets
    values: Callable[[Any], dict[str, Any]]  # of its widgets, for a recipe
    offered: tuple[str, ...]  # fields of a recipe that the page offers, besides the dialog's
    section: tuple[tuple[str, str], ...] = ()  # of the page: keys of choices, and what is chosen


def _prune(step: Prune) -> dict[str, Any]:
    chosen = {"bits": [str(step.bits or AS_STORED)], "group": str(step.group or GROUP), "sparsities": step.sparsity}
    chosen |= {"methods": [step.method], "targets": [step.target], "layers": " ".join(step.layers or ())}
    return chosen | step.pick(("target_damping", "true_sequential"))


def _damage(step: Damage) -> dict[str, Any]:
    how = "restore" if step.restore else "prune"
    return {"how": how, "path": step.restore or "", "units": step.units, "method": step.method}


def _check(step: CheckCopies) -> dict[str, Any]:
    measured = "tokens" if step.calibration else "weights"
    return {"on": measured, "dense": "", "path": step.pruned[0], "stream": step.stream}


SLIM = ("method", "ratio", "allocation")
CORRECTION = ("target", "target_damping", "true_sequential")
FORMS: dict[type[Spec], Form] = {
    Prune: Form("prune", "Prune", "prune", _prune, ("method", "bits", "group", "threshold", *CORRECTION)),
    Slim: Form(
        *("smaller", "Make it smaller", "slim", lambda step: step.pick(SLIM), SLIM),
        (("smaller_section", "parts"), ("structures_view", "A smaller copy")),
    ),
    Damage: Form(
        *("prune", "Prune", "damage", _damage, ("units", "method", "restore", "threshold")),
        (("prune_section", "sensitivity"),),
    ),
    CheckCopies: Form("check", "Check a checkpoint", "check", _check, ("dense", "pruned")),
    Smaller: Form(
        *("smaller", "Make it smaller", "smaller"),
        lambda step: {"model": "", "second": step.second or "", "minutes": step.minutes},
        ("second", "minutes"),
    ),
}


def take_dropped() -> None:
    """Reads a recipe that was dropped into the dialog, fills the form that runs it, and opens its page."""
    file = st.session_state.pop("recipe-dropped", None)
    if file is None:
        return
    try:
        recipe = Recipe.parse(file.getvalue(), name=file.name, is_placed=False)
        sentence, form = fill(file.name, recipe.spec)
    except rose.RoseError as problem:
        sentence, form = str(problem), None
    st.session_state["recipe_used"] = sentence
    if form is not None:
        st.switch_page(f"views/{form.view}.py")


def fill(name: str, step: Spec) -> tuple[str, Form | None]:
    """Fills the forms; returns a sentence and the page to open next, if any."""
    form = FORMS.get(type(step))
    if form is None and not isinstance(step, Analyze):
        return f"No page runs {name} ({step.run}). Run it in a terminal: rose run {name} output=FOLDER", None
    if form is None:
        session.ask_for_model(Setup.of(step))
        return f"The form has the settings of {name}. Measure the layers next.", None
    session.choose_setup(setup_of(step) if isinstance(step, CheckCopies) else Setup.of(step))
    st.session_state.update({f"{form.key}_{name}": value for name, value in form.values(step).items()})
    st.session_state.update(form.section)
    if "threshold" in form.offered:
        st.session_state.chosen_threshold = step.pick(("threshold",))["threshold"]
    missing = _missing(step, {*form.offered, *CHOSEN})
    without = f" without {words.listing(missing)}, which it does not offer" if missing else ""
    return f"The page {form.title} has the settings of {name}{without}.", form


def _missing(step: Spec, offered: set[str]) -> list[str]:
    """Changed fields of a recipe that its page does not offer."""
    usual = step.model_construct()
    fields = [name for name, field in step.fields().items() if field.extra["changes"] and name not in offered]
    missing = [name for name in fields if getattr(step, name) != getattr(usual, name)]
    return missing + (["the further checkpoints"] if len(getattr(step, "pruned", ())) > 1 else [])
