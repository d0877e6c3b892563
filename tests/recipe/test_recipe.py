"""Recipes are refused in one sentence, round-trip, and run."""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from inspect import Parameter, signature
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from safetensors.torch import load_file

import rose
from rose import cli
from rose.diffusion.pruning import prune_diffusion
from rose.layer.settings import LayerSettings, SharedSettings
from rose.model.settings import NamedSettings, PruneSettings, TuneSettings
from rose.recipe import Recipe
from rose.recipe.steps import Analyze, CheckCopies, Evaluate, Prune, Slim, Tune
from rose.recipe.tools import SPECS
from rose.spec import Spec
from rose.structured.settings import SlimSettings
from rose.tensor_files import digest
from tests.refusals import refused
from tests.tiny import save_tiny_llama

PRUNE = "recipe: 1\nrun: prune\n"
SMALL = {"samples": 4, "length": 48, "held_out": 2}
REFUSED = {  # text, changes, sentence
    "no YAML": ("a: [", [], "line 1"),
    "no mapping": ("prune", [], "it must have lines NAME: VALUE"),
    "no version": ("run: prune", [], "does not say which version of recipes it is"),
    "later version": ("recipe: 2\nrun: prune", [], "a recipe of version 2, and this program reads version 1"),
    "version of another type": ("recipe: yes\nrun: prune", [], "does not say which version"),
    "unknown run": ("recipe: 1\nrun: magic", [], "A recipe needs a run: analyze, prune, slim"),
    "several steps": ("recipe: 1\nsteps: [{run: slim}, {run: prune}]", [], "make a recipe of each, and run one after"),
    "steps of another kind": (PRUNE + "steps: [{run: prune}]", ["output=x"], "Prune has no field 'steps'"),
    "unknown field": (PRUNE + "sampels: 3", ["output=x"], "Prune has no field 'sampels'; did you mean samples?"),
    "wrong type": (PRUNE + "samples: [1]", ["output=x"], "samples must be a whole number from 1 to 65536, not ['1']."),
    "truth for a number": (PRUNE + "samples: true", ["output=x"], "samples must be a whole number"),
    "out of range": (PRUNE + "samples: 0", ["output=x"], "samples must be a whole number from 1 to 65536, not '0'."),
    "not a number": (PRUNE + "damping: .nan", ["output=x"], "damping must be a number of at least 0, not '.nan'."),
    "choice": (PRUNE + "target: other", ["output=x"], "target must be one of dense, layer, not 'other'."),
    "method": (PRUNE + "method: magic", ["output=x"], "There is no method named 'magic'"),
    "option of a method": (PRUNE + "options: {effort: 99}", ["output=x"], "The option effort must be a whole number"),
    "fields that do not fit": (PRUNE + "target: layer\ntarget_damping: 1", ["output=x"], "Only target dense"),
    "nowhere to write": (PRUNE, [], "does not say where the result goes; add output=FOLDER."),
    "change of nothing": (PRUNE, ["foo=3", "output=x"], "The recipe of prune has no field 'foo'."),
    "no change": (PRUNE, ["samples"], "A change of a recipe is NAME=VALUE, not 'samples'."),
    "alias": ("recipe: 1\na: &x [1]\nb: *x", [], "line 2: anchors, aliases and tags are not allowed"),
    "tag": ("recipe: 1\nrun: !!python/object/apply:os.system [ls]", [], "line 2: anchors, aliases and tags"),
    "field twice": ("recipe: 1\nrun: prune\nrun: slim", [], "line 3: 'run' is not a name, or stands twice"),
    "field without a name": (PRUNE + "? [a]\n: 4", [], "line 3: [ScalarNode"),
    "number as a name": (PRUNE + "3: 4", ["output=x"], "Prune has no field '3'"),
    "list in a list": ("recipe: 1\nrun: check\nmethods: [[a]]", ["dense=x", "pruned=x"], "methods must be a list"),
    "N:M as a change": (PRUNE, ["sparsity=2:5", "output=x"], "2:5 needs a block size divisible by 5"),
    "deep lists": (PRUNE + "layers: " + "[" * 5000, [], "line 3: values are nested too deeply"),
    "long number": (PRUNE + "samples: 0x" + "f" * 9000, ["output=x"], "samples must be a whole number from 1"),
    "no layer": (PRUNE, ["layers=[]", "output=x"], "layers must be a list of names, not []."),
    "other encoding": (PRUNE.encode() + b"model: caf\xe9", [], "it is not UTF-8 text"),
    "rotated heads": (PRUNE + "rotate: heads", ["output=x"], "rotates heads, which is no longer done; take the line"),
    "code of a repository": (PRUNE + "trust_remote_code: true", ["output=x"], "cannot ask for code of a repository"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_recipe_is_refused_in_one_sentence(case: str) -> None:
    text, changes, sentence = REFUSED[case]
    refused(re.escape(sentence), Recipe.parse, text, *changes, is_placed=True)


@pytest.mark.parametrize("text", ["2026", "1e3", "true", "007", "-.5"])
def test_texts_and_paths_are_taken_as_typed(text: str) -> None:
    file = f"recipe: 1\nrun: tune\noutput: x\ndense: {text}\npruned: {text}\nlayers: [{text}, b]\n"
    step = Tune(output="x", dense=text, pruned=text, layers=(text, "b"))
    assert Recipe.parse(file).spec == Recipe.parse(str(Recipe(step)), "output=x").spec == step
    changed = Recipe.parse(PRUNE, f"model={text}: #b", f"layers={text}", "order=1", "order=null", f"output={text}")
    assert changed.spec == Prune(model=f"{text}: #b", layers=(text,), order=None, output=text)


EXAMPLES: list[Spec] = [
    Prune(output="x", options={"effort": 2}, layers=("*.o_proj",), bits=4, group="row", tune=None),
    Prune(output="x", method="rose", order="random:3", budget="layer", sparsity="2:4", target="layer"),
    Slim(output="x", prune="0.5", parts=("heads",), tune=3),
    Tune(output="x", pruned="half", dense="smollm2-135m", minutes=2.5, layers=("a b",)),
    Analyze(methods=("wanda", "rose")),
    CheckCopies(dense="smollm2-135m", pruned=("a", "b"), calibration="packaged", samples=3),
]


@pytest.mark.parametrize("step", EXAMPLES, ids=lambda step: step.run)
def test_recipes_round_trip(step: Spec) -> None:
    text = str(Recipe(step))
    again = Recipe.parse(text, *(["output=x"] if "output" in step.model_fields_set else []))
    assert again.spec == step
    assert str(again) == text


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_field_is_an_option_with_help(spec: type[Spec]) -> None:
    parser = argparse.ArgumentParser()
    spec.add_options(parser)
    needed = {"dense": "d", "pruned": "p", "evaluate": "packaged"}
    given: list[str] = ["--evaluate", "packaged"] if spec is Evaluate else []
    for name, field in spec.fields().items():
        assert field.description
        if field.is_required:
            value = needed.get(name, "x")
            given += [value] if field.extra["form"] == "place" else [field.option, value]
    asked = spec(**vars(parser.parse_args(given)))
    assert asked.to_dict().keys() == {name for name, field in spec.fields().items() if field.extra["kept"]}
    required = {name for name, field in spec.fields().items() if field.is_required}
    assert asked.model_fields_set == required | ({"evaluate"} if spec is Evaluate else set())


def test_a_recipe_gives_the_same_weights_elsewhere_and_after_a_stop(tmp_path, monkeypatch, capsys):
    save_tiny_llama(tmp_path / "model")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    monkeypatch.chdir(tmp_path)
    sizes = ["--samples", "4", "--length", "48", "--held-out", "2", "--block-size", "16", "--calibration", "text.txt"]
    assert cli.main(["prune", "--model", "./model", *sizes, "--sparsity", "0.5", "--output", "first"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    again = ["run", "../first", "output=second", "checkpoint=kept"]
    with monkeypatch.context() as patched:
        patched.setattr(rose, "save_model", Mock(side_effect=KeyboardInterrupt))
        assert cli.main(again) == 130
    assert "the same command resumes from kept" in capsys.readouterr().err
    assert cli.main(again) == 0
    first, second = (load_file(folder / "model.safetensors") for folder in (tmp_path / "first", Path("second")))
    assert digest(first) == digest(second)
    assert (tmp_path / "first" / "recipe.yaml").read_text() == Path("second/recipe.yaml").read_text()
    report = rose.Recipe.read(tmp_path / "first", "sparsity=0.25").run(output=tmp_path / "third")
    assert report.summary["removed_fraction"] == pytest.approx(0.25, abs=1e-3)
    assert json.loads((tmp_path / "third" / "report.json").read_text())["recipe"]["sparsity"] == "0.25"


@pytest.mark.parametrize("given", [["--help"], ["run", "--help"], ["prune", "--output", "x", "--samples", "0"]])
def test_help_and_refusals_import_no_torch(given: list[str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import rose.recipe.tools, rose.cli as cli; "
    code += f"sys.exit(cli.main({given!r}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "torch was imported" not in ended.stderr
    assert ended.returncode == (2 if "0" in given else 0), ended.stderr


FUNCTIONS: dict[Callable[..., Any], tuple[type[Spec], dict[str, Any]]] = {  # and defaults of its own
    rose.prune_layer: (LayerSettings, {"method": Parameter.empty}),
    rose.prune_model: (PruneSettings, {}),
    rose.damage: (LayerSettings, {}),
    rose.tune_model: (TuneSettings, {}),
    rose.prune_structured: (SlimSettings, {}),
    rose.analyze_model: (SharedSettings, {}),
    prune_diffusion: (NamedSettings, {"sparsity": 0.5, "block_size": None}),
}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_keywords_of_functions_are_the_declared_settings(function: Callable[..., Any]) -> None:
    spec, others = FUNCTIONS[function]
    keywords = {name: each.default for name, each in signature(function).parameters.items()}
    for name, field in spec.fields().items():
        default = field.default if name != "options" else None
        expected = others.get(name, float(default) if name == "sparsity" else default)
        assert keywords[name] == expected, name
