"""The commands that write a folder, on one tiny model; a folder is made when a test asks for it first."""

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

import rose
from rose import cli
from tests.tiny import save_tiny_llama

BLOCKS = 3
TEXT = "The quick brown fox jumps over the lazy dog, and a rose is a rose is a rose. " * 30
WINDOWS, LENGTH = 3, 32
CALIBRATION = ("--calibration", "{text}", "--samples", "4", "--length", LENGTH)
HELD_OUT = (*CALIBRATION, "--held-out", "2")
EVALUATE = ("--evaluate", "{text}", "--windows", WINDOWS)
PRUNE = ("prune", "--model", "{dense}", *HELD_OUT, "--block-size", "16", *EVALUATE, "--method")
HALF = (*PRUNE, "sparsegpt", "--sparsity", "0.5")
DEPTH = ("slim", "--model", "{dense}", *HELD_OUT, *EVALUATE, "--ratio", "0.3")
SLIM = (*DEPTH, "--multiple", "8")
THEN = ("--prune", "0.5", "--prune-method", "sparsegpt")
RESTORE = ("damage", "--model", "{dense}", *HELD_OUT)
DAMAGE = (*RESTORE, "--block-size", "16", "--method", "sparsegpt", "--sparsity", "0.5")
DIFFUSE = ("--model", "{pipeline}", "--steps", "3", "--samples", "2", "--packages", "1")

# {dense}, {pipeline}: a model and a diffusion pipeline; {text}: a file; {any other name}: the folder of that command.
PRODUCERS: dict[str, tuple[Any, ...]] = {
    "prune, target layer": (*HALF, "--target", "layer"),
    "prune, target dense": HALF,
    "prune, 2:4": (*PRUNE, "rose", "--sparsity", "2:4"),
    "prune, low rank": (*PRUNE, "oats", "--sparsity", "0.5"),
    "prune, owl": (*HALF, "--allocation", "owl"),
    "prune, sensitivity": (*HALF, "--allocation", "sensitivity"),
    "prune, some layers": (*HALF, "--layers", "*.o_proj"),
    "prune, not held out": (*HALF, "--held-out", "0"),
    "analyze": ("analyze", "--model", "{dense}", *HELD_OUT, "--block-size", "16", "--sparsity", "0.5"),
    "compare": (
        *("compare", "--model", "{dense}", *HELD_OUT, "--block-size", "16", *EVALUATE),
        *("--methods", "wanda,sparsegpt", "--sparsity", "0.5", "--seeds", "0,1"),
    ),
    "damage, layers": DAMAGE,
    "damage, blocks": (*DAMAGE, "--units", "blocks"),
    "damage, restored": (*RESTORE, "--restore", "{prune, target layer}"),
    "slim, uniform": SLIM,
    "slim, cost": (*SLIM, "--allocation", "cost"),
    "slim, similarity": (*SLIM, "--allocation", "similarity", "--method", "slimllm"),
    "slim, depth": (*DEPTH, "--method", "depth"),
    "slim and prune": (*SLIM, *THEN),
    "slim and prune, cost": (*SLIM, "--allocation", "cost", *THEN),
    "slim and prune, depth": (*DEPTH, "--method", "depth", *THEN),
    "diffuse prune": ("diffuse", "prune", *DIFFUSE),
}


class Workshop:
    """Makes the folders, each once."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.made = {"dense": save_tiny_llama(place / "dense", blocks=BLOCKS), "text": place / "a.txt"}
        self.made["text"].write_text(TEXT)

    def folder(self, name: str) -> Path:
        """The folder that this command has written."""
        if name == "pipeline" and name not in self.made:
            self._save_pipeline()
        if name not in self.made:
            self.made[name] = self.new(name.replace(",", "").replace(" ", "-"))
            given = [self.filled(str(argument)) for argument in PRODUCERS[name]]
            assert cli.main([*given, "--output", str(self.made[name])]) == 0
        return self.made[name]

    @cached_property
    def windows(self) -> Tensor:
        """The windows that commands evaluate on, (windows, length)."""
        _, tokenizer = rose.load_model(str(self.folder("dense")))
        return rose.load_tokens(
            str(self.folder("text")), tokenizer, samples=WINDOWS, length=LENGTH, seed=None, split="test"
        )

    def new(self, name: str) -> Path:
        """A path that nothing has been written to."""
        return self.place / f"{len(list(self.place.iterdir()))}-{name}"

    def report(self, name: str) -> dict[str, Any]:
        """The summary of its report."""
        return self.report_in(self.folder(name))

    def report_in(self, folder: Path) -> dict[str, Any]:
        return rose.RunReport.load(folder).summary

    def filled(self, argument: str) -> str:
        """An argument with the path in place of {name}."""
        return str(self.folder(argument[1:-1])) if argument[:1] == "{" else argument

    def _save_pipeline(self) -> None:
        from rose.diffusion.loading import save_diffusion
        from tests.diffusion.pipelines import garments

        self.made["pipeline"] = self.place / "pipeline"
        save_diffusion(garments()[0], self.made["pipeline"])
