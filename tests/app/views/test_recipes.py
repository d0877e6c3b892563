"""The recipe that a page offers fills that page again, dropped into the dialog, and is what the page runs."""

from pathlib import Path
from typing import Any

import pytest
import streamlit as st

from app import shared
from app.forms import recipes
from app.runs.checked import CheckpointRun
from app.runs.damage import DamageRun
from app.study.setup import Setup
from rose.recipe import Recipe
from tests.app.tiny_study import MAIN, AppTest, latest, open_on, run_in

PARTS, DAMAGE = {"smaller_section": "Heads and channels"}, {"prune_section": "Layer sensitivity"}
PLACES: dict[str, tuple[dict[str, str], Any]] = {  # by page: choices, and its run's recipe
    "prune": (
        {"prune_methods": "SparseGPT", "prune_layers": "*.o_proj", "prune_bits": "4 bits", "prune_targets": "layer"},
        lambda app: shared.prunings()[app.session_state["pruning"]].request.cases(app.session_state["setup"])[0],
    ),
    "structures": (
        {
            "smaller_section": "Heads and channels",
            "structures_view": "A smaller copy",
            "slim_method": "wanda",
            "slim_ratio": "0.25",
        },
        lambda app: run_in(app, "slimming").request,
    ),
    "damage": (
        {
            "prune_section": "Layer sensitivity",
            "damage_units": "Layers",
            "damage_method": "Wanda",
            "layers": "*.o_proj",
        },
        lambda _: latest(DamageRun).request,
    ),
    "check": ({"check_path": "PRUNED"}, lambda _: latest(CheckpointRun).request),
    "smaller": ({"smaller_minutes": "0.01"}, lambda app: run_in(app, "smaller").request),
}


@pytest.mark.parametrize("name", PLACES)
def test_page_runs_the_recipe_that_it_offers(name: str, setup: Setup, pruned_folder: Path) -> None:
    query, recipe_of = PLACES[name]
    view = {"structures": "smaller", "damage": "prune"}.get(name, name)
    page = f"views/{view}.py"
    app = open_on(setup, page, **{key: value.replace("PRUNED", str(pruned_folder)) for key, value in query.items()})
    text = app.code[0].value
    st.session_state.clear()
    st.session_state.setup = Setup()  # of another session
    sentence, form = recipes.fill("my.yaml", Recipe.parse(text).spec)
    assert form.view == view
    assert sentence == f"The page {form.title} has the settings of my.yaml."
    other = AppTest.from_file(MAIN, default_timeout=60).run()
    for key, value in st.session_state.to_dict().items():
        other.session_state[key] = value
    other.switch_page(page).run()
    assert other.code[0].value == text
    other.button(key="slim-start" if name == "structures" else f"{name}-start").click().run()
    assert str(Recipe(recipe_of(other))).rstrip() == text


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"run": "prune", "min_expert_tokens": 2}, "without min_expert_tokens, which it does not offer."),
        ({"run": "check", "dense": "a", "pruned": ["b", "c"]}, "without the further checkpoints, which it does"),
        ({"run": "diffuse prune"}, "No page runs my.yaml (diffuse prune). Run it in a terminal"),
        (
            {"run": "evaluate", "evaluate": "packaged"},
            "No page runs my.yaml (evaluate). Run it in a terminal",
        ),
    ],
)
def test_what_a_page_cannot_offer_is_named(fields: dict[str, Any], sentence: str) -> None:
    st.session_state.clear()
    st.session_state.setup = Setup()
    spec = Recipe.parse("\n".join(["recipe: 1", *(f"{name}: {value}" for name, value in fields.items())])).spec
    assert sentence in recipes.fill("my.yaml", spec)[0]
