"""The output of every command is accepted by every consumer or refused in one sentence."""

import re

import pytest

from rose.recipe.tools import COMMANDS
from tests.seams.consumers import CONSUMERS, Refused
from tests.seams.producers import PRODUCERS, Workshop

# "yes": it works, as a number shows; else which of `REFUSALS` is said.
TABLE = """
                       report evaluate check  prune slim   drop  damage restore share plain diffuse Runs   Drift  Text
prune, target layer    yes    yes      yes    yes   zeros  yes   yes    yes     rows  yes   index   yes    yes    yes
prune, target dense    yes    yes      yes    yes   zeros  yes   yes    yes     rows  yes   index   yes    yes    yes
prune, 2:4             yes    yes      yes    yes   zeros  yes   yes    yes     rows  yes   index   yes    yes    yes
prune, low rank        yes    yes      yes    yes   yes    yes   yes    yes     rows  yes   index   yes    yes    yes
prune, owl             yes    yes      yes    yes   zeros  yes   yes    yes     rows  yes   index   yes    yes    yes
prune, sensitivity     yes    yes      yes    yes   zeros  yes   yes    yes     rows  yes   index   yes    yes    yes
prune, some layers     yes    yes      yes    yes   zeros  yes   yes    yes     rows  yes   index   yes    yes    yes
prune, not held out    yes    yes      yes    yes   zeros  yes   yes    yes     rows  yes   index   yes    drift  yes
analyze                yes    model    model  model model  model model  model   rows  type  index   yes    drift  folder
compare                report model    model  model model  model model  model   rows  type  index   report report folder
damage, layers         report model    model  model model  model model  model   yes   type  index   report report folder
damage, blocks         report model    model  model model  model model  model   yes   type  index   report report folder
damage, restored       report model    model  model model  model model  model   gains type  index   report report folder
slim, uniform          yes    yes      fit    yes   yes    yes   yes    shapes  rows  yes   index   yes    yes    yes
slim, cost             yes    yes      fit    yes   differ yes   yes    shapes  rows  sizes index   yes    yes    yes
slim, similarity       yes    yes      fit    yes   differ yes   yes    shapes  rows  sizes index   yes    yes    yes
slim, depth            yes    yes      fewer  yes   yes    yes   yes    blocks  rows  yes   index   yes    drift  yes
slim and prune         yes    yes      fit    yes   zeros  yes   yes    shapes  rows  yes   index   yes    yes    yes
slim and prune, cost   yes    yes      fit    yes   differ yes   yes    shapes  rows  sizes index   yes    yes    yes
slim and prune, depth  yes    yes      fewer  yes   zeros  yes   yes    blocks  rows  yes   index   yes    yes    yes
diffuse prune          yes    model    model  model model  model model  model   rows  type  yes     yes    drift  folder
"""
REFUSALS = {
    "model": r"The folder \S+ holds no config.json, so it is not a checkpoint; choose another folder\.",
    "folder": r"There is no model in \S+; give a folder that `rose prune` or `rose slim` has written\.",
    "report": r"There is no report.json in \S+; give a folder that `rose prune`, `slim`, `tune` or `analyze` wrote\.",
    "drift": r"Without drift the page has no tab for it\.",
    "index": r"\S+ holds no readable model_index.json, so it is not a diffusion pipeline; choose another folder, .*",
    "gains": r"\S+ says what a pruned model gains by layers given back, not what pruning costs; measure damages .*",
    "rows": r"\S+ (cannot be read \(No such file .*\)|is not a table of damages); choose a rows.csv of rose\.",
    "differ": r"The decoder blocks of this model differ in shape already; choose an allocation that lets them .*",
    "zeros": r"\S+ is pruned, and recovery exact and target dense would fill its zeros .*; slim the dense model .*\.",
    "fit": r"\S+ is of shape \(.*\) in the checkpoint and of \(.*\) in the dense model; a model that was .*",
    "fewer": r"The checkpoint has 14 layers and the dense model 21; \S+ is only in the dense model\. .*",
    "shapes": r"There is no dense weight of this shape for \S+; give the same model, dense\.",
    "blocks": r"The model to restore has 2 decoder blocks and the dense one 3, so their layers do not correspond; .*",
    # What transformers says; `rose slim` has said before that only rose reads these.
    "type": r"Unrecognized model in .*",
    "sizes": r"You set `ignore_mismatched_sizes` to `False`, .*",
}


def cells() -> list[tuple[str, str, str]]:
    head, *lines = TABLE.strip("\n").splitlines()
    names = head.split()
    rows = [line.rsplit(maxsplit=len(names)) for line in lines]
    return [(name, consumer, cell) for name, *row in rows for consumer, cell in zip(names, row, strict=True)]


# Commands without a row or a column. `tune` and `export` have tests of what they take and write beside their parts.
LEFT_OUT = {"models", "inspect", "tune", "export", "app", "run", "smaller"}


def test_the_table_has_every_command_and_every_consumer() -> None:
    commands = {name.partition(" ")[0] for name in COMMANDS}
    assert commands - {asked[0] for asked in PRODUCERS.values()} - set(CONSUMERS) == LEFT_OUT
    table = cells()
    assert list(dict.fromkeys(name for name, _, _ in table)) == list(PRODUCERS)
    assert list(dict.fromkeys(consumer for _, consumer, _ in table)) == list(CONSUMERS)
    assert {cell for *_, cell in table} == {"yes", *REFUSALS}


@pytest.mark.parametrize(("name", "consumer", "cell"), cells())
def test_every_folder_is_taken_or_refused_in_a_sentence(name: str, consumer: str, cell: str, shop: Workshop) -> None:
    if cell == "yes":
        CONSUMERS[consumer](shop, name)
        return
    with pytest.raises(Refused) as refused:
        CONSUMERS[consumer](shop, name)
    assert re.fullmatch(REFUSALS[cell], str(refused.value)), refused.value
