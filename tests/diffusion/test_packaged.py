"""The packaged diffusion model is sampled, pruned, saved and read, in Python and by commands."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import rose
from rose import cli
from rose.diffusion.loading import classes_in_turn, load_diffusion
from rose.diffusion.trajectory import denoiser_of, distance, draw_pictures
from rose.wording import number


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """Shared: copy it before changing it."""
    return load_diffusion()


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packaged model pruned at 50 % by the command line."""
    folder = tmp_path_factory.mktemp("diffusion") / "pruned"
    arguments = ["--samples", "10", "--steps", "5", "--sparsity", "0.5", "--output", str(folder)]
    assert cli.main(["diffuse", "prune", *arguments]) == 0
    return folder


def test_the_packaged_model_draws_the_classes_asked_for(pipeline):
    """A picture is nearer to the mean of its class in other pictures than to the mean of any other class."""
    drawn = draw_pictures(pipeline, classes_in_turn(100), steps=20, batch=50)
    assert drawn.shape == (100, 1, 28, 28)
    first, second = drawn.flatten(1).view(2, 5, 10, -1)
    nearest = torch.cdist(second.flatten(0, 1), first.mean(0)).argmin(1)
    assert (nearest == torch.tensor(classes_in_turn(50))).float().mean() > 0.6  # a tenth by chance


def test_pruning_from_the_command_line_saves_a_pipeline_that_loads(pruned):
    weights = denoiser_of(load_diffusion(str(pruned))).state_dict()
    report = rose.RunReport.from_json((pruned / "report.json").read_text())
    assert len(report.layers) == 24
    assert (report.layers["relative_range"] > 0.5).sum() == 1  # columnar, as docs/diffusion.md says
    for name in report.layers["layer"]:
        assert (weights[f"{name}.weight"] == 0).float().mean() == pytest.approx(0.5, abs=0.001)
    assert report.summary["convolutions_left_dense"] == 1
    assert report.summary["step_weights"] == "log_decrease"


def test_pictures_of_two_models_share_one_file(pruned, tmp_path, capsys):
    path = tmp_path / "pictures.png"
    command = ["diffuse", "sample", "--model", str(pruned), "--beside", "garments", "--steps", "2"]
    assert cli.main([*command, "--classes", "bag,Sneaker", "--count", "12", "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "twelve pictures" in printed
    assert "garments above: bag, sneaker, bag" in printed
    pictures = [draw_pictures(load_diffusion(name), [8, 7] * 6, steps=2) for name in (pruned, "garments")]
    assert f"garments's is {number(float(distance(*pictures)))} of" in " ".join(printed.split())
    assert Image.open(path).size == (10 * 30 * 4, 4 * 30 * 4)  # ten of both models, and two


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prune", "--output", "{here}"], "not an empty folder"),
        (["prune", "--output", "{here}/new", "--option", "fast"], "NAME=VALUE"),
        (["prune", "--output", "{here}/new", "--model", "{here}"], "no readable model_index.json"),
        (["prune", "--output", "{here}/new", "--model", "{here}/deep"], "no readable model_index.json"),
        (["prune", "--output", "{here}/new", "--model", "{here}/list"], "no readable model_index.json"),
        (["prune", "--output", "{here}/new", "--prompts", "{here}/none.txt"], "cannot be read"),
        (["sample", "--output", "{here}/p.png", "--classes", "hat"], "no class 'hat'"),
        (["sample", "--output", "{here}/none/p.png"], "a folder that exists"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(arguments, says, tmp_path, capsys):
    (tmp_path / "kept.txt").write_text("")
    for name, content in (("deep", "[" * 100_000), ("list", "[1]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(content)
    assert cli.main(["diffuse", *(word.replace("{here}", str(tmp_path)) for word in arguments)]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in message
    assert not (tmp_path / "new").exists()
