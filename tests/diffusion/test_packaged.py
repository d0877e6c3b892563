"""The packaged diffusion model is sampled, pruned, saved, read and measured, in Python and by commands."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rose
from rose import cli
from rose.diffusion.evaluation import classes_in_turn, frechet_distance, load_classifier, load_references
from rose.diffusion.trajectory import denoiser_of
from tests.refusals import refused


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """Shared: copy it before changing it."""
    return rose.load_diffusion()


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packaged model pruned at 50 % by the command line."""
    folder = tmp_path_factory.mktemp("diffusion") / "pruned"
    arguments = ["--samples", "10", "--steps", "5", "--sparsity", "0.5", "--output", str(folder)]
    assert cli.main(["diffuse", "prune", *arguments]) == 0
    return folder


def test_the_packaged_model_draws_the_classes_asked_for(pipeline):
    drawn = rose.draw_pictures(pipeline, classes_in_turn(50), steps=20, batch=50)
    assert drawn.shape == (50, 1, 28, 28)
    recognized = load_classifier()(drawn).argmax(1) == torch.tensor(classes_in_turn(50))
    assert recognized.float().mean() > 0.7  # a tenth by chance


def test_the_classifier_knows_real_pictures():
    references = load_references()
    recognized = load_classifier()(references["pictures"]).argmax(1) == references["classes"]
    assert recognized.float().mean() > 0.85


def test_frechet_distance_of_known_distributions():
    """Equal covariances leave the means; diagonal ones, Σ (√a − √b)²."""
    eye, zero = torch.eye(3).double(), torch.zeros(3).double()
    assert frechet_distance(zero, eye, zero, eye) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(zero + 2, eye, zero, eye) == pytest.approx(12)
    assert frechet_distance(zero, 4 * eye, zero, 9 * eye) == pytest.approx(3)


def test_pruning_from_the_command_line_saves_a_pipeline_that_loads(pruned):
    weights = denoiser_of(rose.load_diffusion(str(pruned))).state_dict()
    report = rose.RunReport.from_json((pruned / "report.json").read_text())
    assert len(report.layers) == 24
    assert (report.layers["relative_range"] > 0.5).sum() == 1  # columnar, as docs/diffusion.md says
    for name in report.layers["layer"]:
        assert (weights[f"{name}.weight"] == 0).float().mean() == pytest.approx(0.5, abs=0.001)
    assert report.summary["convolutions_left_dense"] == 1
    assert report.summary["step_weights"] == "log_decrease"


def test_more_pruning_moves_the_pictures_further(pipeline, pruned):
    dense = rose.evaluation_trajectory(pipeline, pictures=70, steps=3)
    for other in ({"steps": 4}, {"steps": 3, "pictures": 71}):
        refused("other steps or pictures", rose.evaluate_diffusion, pipeline, dense, **{"pictures": 70} | other)
    scores = rose.evaluate_diffusion(rose.load_diffusion(str(pruned)), dense, pictures=70, steps=3)
    measured = rose.evaluate_diffusion(pipeline, dense, pictures=70, steps=3)
    assert scores.drift[0] == 0
    assert len(scores.drift) == 4
    assert 0 < scores.drift[1] < scores.drift[-1] < 1
    assert measured.drift == (0.0,) * 4
    assert np.mean(scores.loss) > np.mean(measured.loss)
    assert scores.frechet > 0


def test_pictures_of_two_models_share_one_file(pruned, tmp_path, capsys):
    path = tmp_path / "pictures.png"
    command = ["diffuse", "sample", "--model", str(pruned), "--beside", "garments", "--steps", "2"]
    assert cli.main([*command, "--classes", "bag,Sneaker", "--count", "12", "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "twelve pictures" in printed
    assert "garments above: bag, sneaker, bag" in printed
    assert Image.open(path).size == (10 * 30 * 4, 4 * 30 * 4)  # ten of both models, and two


def test_the_command_prints_scores(pruned, tmp_path, capsys):
    path = tmp_path / "scores.json"
    command = ["diffuse", "evaluate", "--model", str(pruned), "--count", "65", "--steps", "2", "--output", str(path)]
    assert cli.main(command) == 0
    scores = json.loads(path.read_text())
    assert len(scores["drift"]) == 3
    assert f"Fréchet distance {scores['frechet']:.3f}" in " ".join(capsys.readouterr().out.split())


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
        (["evaluate", "--count", "10"], "at least 65 pictures"),
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
