"""Pruning of every diffusion family: step weights, weighted statistics of trajectories, and packages."""

import copy
import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils.prune import l1_unstructured

import rose
from rose.diffusion.loading import load_diffusion, save_diffusion
from rose.diffusion.pruning import (
    TrajectoryCalibration,
    convolutions,
    default_block_size,
    find_layers,
    make_packages,
    prune_diffusion,
    step_diagonals,
)
from rose.diffusion.steps import step_weights
from rose.diffusion.trajectory import Trajectories, denoiser_of, record_trajectory, trajectory_drift
from rose.model.network.layers import LEFT, RIGHT
from tests.diffusion.pipelines import FAMILIES, garments
from tests.model.families import stop_when
from tests.refusals import cancelled, refused

TO_Q = "transformer_blocks.0.attn1.to_q"
STEPS = 3


def inputs_by_step(name: str, scheduler: Any = None) -> list[torch.Tensor]:
    """What a layer reads at each step, gathered by plain hooks."""
    pipeline, classes = garments()
    pipeline.scheduler = scheduler or pipeline.scheduler
    inputs: list[torch.Tensor] = []
    module = dict(denoiser_of(pipeline).named_modules())[name]
    with module.register_forward_pre_hook(lambda _m, args: inputs.append(args[0].flatten(0, -2))):
        next(Trajectories(pipeline, classes, steps=STEPS).draw())
    return inputs


def collected(pipeline: Any, classes: list[int], kind: str = "log_decrease") -> dict[str, rose.InputStatistics]:
    """Inputs of the dense model's layers along whole trajectories."""
    calibration = TrajectoryCalibration(pipeline, classes, kind, steps=STEPS)
    return calibration.statistics(find_layers(calibration))


@pytest.mark.parametrize("kind", ["log_decrease", "uniform", "log_increase"])
def test_the_hessian_is_the_weighted_sum_over_steps(kind):
    pipeline, classes = garments()
    statistics = collected(pipeline, classes, kind)
    parts = inputs_by_step(TO_Q)
    assert len(parts) == STEPS
    expected = sum(a * x.T @ x for a, x in zip(step_weights(kind, STEPS), parts, strict=True))
    torch.testing.assert_close(statistics[TO_Q].hessian, expected)
    assert statistics[TO_Q] is statistics["transformer_blocks.0.attn1.to_k"], "q, k and v read one tensor"


def test_step_diagonals_add_up_to_the_hessians():
    pipeline, classes = garments()
    diagonals = step_diagonals(pipeline, classes, steps=STEPS)
    statistics = collected(pipeline, classes, "linear")
    alpha = torch.tensor(step_weights("linear", STEPS))
    assert set(diagonals) == set(statistics)
    for name, parts in diagonals.items():
        torch.testing.assert_close(alpha @ parts, statistics[name].diagonal)


@pytest.mark.parametrize(
    ("kind", "visits"),
    [("HeunDiscreteScheduler", [[0], [1, 2], [3, 4]]), ("KDPM2DiscreteScheduler", [[0, 1], [2, 3], [4]])],
)
def test_repeated_visits_of_a_step_are_summed(kind, visits):
    pipeline, classes = garments()
    pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config)
    parts = [x.square().sum(0) for x in inputs_by_step(TO_Q, copy.deepcopy(pipeline.scheduler))]
    expected = torch.stack([torch.stack([parts[visit] for visit in of_step]).sum(0) for of_step in visits])
    diagonals = step_diagonals(pipeline, classes, steps=STEPS, layers=[TO_Q])[TO_Q]
    torch.testing.assert_close(diagonals, expected)
    weighted = collected(pipeline, classes)[TO_Q]
    torch.testing.assert_close(weighted.diagonal, torch.tensor(step_weights("log_decrease", STEPS)) @ expected)


def test_factors_are_saved_beside_the_sum(tmp_path):
    pipeline, classes = garments()
    report = prune_diffusion(pipeline, classes, steps=STEPS, method="oats", layers=[TO_Q])
    assert report.summary["environment"].endswith("float32")
    assert report.layers["tokens"][0] == sum(len(inputs) for inputs in inputs_by_step(TO_Q))
    save_diffusion(pipeline, tmp_path / "oats")
    factors = load_file(tmp_path / "oats" / "low_rank.safetensors")
    weight = denoiser_of(load_diffusion(str(tmp_path / "oats"))).state_dict()[f"{TO_Q}.weight"]
    rest = weight - factors[TO_Q + LEFT] @ factors[TO_Q + RIGHT]
    assert (rest.abs() < 1e-5 * weight.abs().max()).float().mean() > 0.5


def test_packages_are_calibrated_behind_pruned_packages():
    """With two packages the second block's inputs come from a pruned first block; with one, from a dense one."""
    pipeline, classes = garments()
    dense = copy.deepcopy(pipeline)
    settings = {"method": "sparsegpt", "sparsity": 0.6, "block_size": 8}
    prune_diffusion(pipeline, classes, steps=STEPS, packages=2, **settings)
    name = "transformer_blocks.1.ff.net.2"
    half = copy.deepcopy(dense)
    prune_diffusion(half, classes, steps=STEPS, packages=1, layers=["transformer_blocks.0.*"], **settings)
    statistics = collected(half, classes)
    weight = dict(denoiser_of(dense).named_modules())[name].weight
    expected = rose.prune_layer(weight, statistics[name], **settings).weight
    assert torch.equal(dict(denoiser_of(pipeline).named_modules())[name].weight, expected)


def test_packages_are_runs_of_layers_in_forward_order():
    pipeline, classes = garments()
    layers = find_layers(Trajectories(pipeline, classes))
    packages = make_packages(layers, 5)
    assert [layer for package in packages for layer in package] == layers
    assert {len(package) for package in packages} == {2, 3}
    assert len(make_packages(layers, 100)) == len(layers)
    assert default_block_size(layers) == 8  # a quarter of 32


def test_progress_reaches_its_total_and_can_cancel():
    pipeline, classes = garments()
    seen: list[rose.Progress] = []
    prune_diffusion(pipeline, classes, steps=2, packages=np.int64(2), progress=seen.append)
    assert [event.fraction for event in seen] == sorted(event.fraction for event in seen)
    assert (seen[-1].stage, seen[-1].fraction, seen[-1].layers_done) == ("done", 1.0, 12)

    stop = stop_when(lambda progress: progress.stage == "prune")
    stopped, _ = garments()
    cancelled(prune_diffusion, stopped, classes, sparsity=0.5, steps=2, packages=2, progress=stop)
    layers = [each for each in denoiser_of(stopped).transformer_blocks.modules() if isinstance(each, torch.nn.Linear)]
    shares = [float((layer.weight == 0).float().mean()) for layer in layers]
    assert sum(share > 0.4 for share in shares) == 1, "one layer was done, and is whole"
    assert not [hook for module in denoiser_of(stopped).modules() for hook in module._forward_pre_hooks.values()]


def _adapted(block: Any) -> None:
    """As `pipeline.load_lora_weights` leaves a layer."""
    layer = block.attn1.to_q
    block.attn1.to_q = torch.nn.Sequential(torch.nn.Linear(layer.in_features, layer.out_features))
    block.attn1.to_q.base_layer = layer


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_adapted, r"to_q is a layer with an adapter beside it.*pipeline\.fuse_lora"),
        (lambda block: l1_unstructured(block.attn1.to_q, "weight", 0.3), r"to_q holds weights and their masks apart"),
    ],
)
def test_layers_with_more_than_a_weight_are_refused(change, says):
    pipeline, classes = garments()
    change(denoiser_of(pipeline).transformer_blocks[0])
    for use in (prune_diffusion, step_diagonals):
        refused(says, use, pipeline, classes, steps=2)


def test_noise_does_not_depend_on_the_batch_size():
    pipeline, classes = garments()
    whole = record_trajectory(pipeline, classes, steps=2, batch=3)
    single = record_trajectory(pipeline, classes, steps=2, batch=1)
    assert torch.equal(whole.states[0], single.states[0])
    torch.testing.assert_close(whole.pictures, single.pictures)
    assert not torch.equal(whole.states[0][0], whole.states[0][1]), "every picture has noise of its own"
    for seed in (1, 2**63 - 1):
        other = record_trajectory(pipeline, classes, steps=2, seed=seed)
        assert not torch.equal(whole.states[0], other.states[0])
        assert not torch.equal(other.states[0][0], other.states[0][1])


@pytest.mark.parametrize(
    ("conditions", "settings", "message"),
    [
        (None, {"packages": 0}, "number of packages"),
        (None, {"layers": ["nothing"]}, "No prunable layer"),
        (None, {"batch": 0}, "at least one picture"),
        (None, {"step_weights": [1.0]}, "Step weights are a name or 20 positive numbers"),
        (None, {"steps": 0}, "number of denoising steps"),
        ([], {}, "Say what to draw"),
        ([1, "a cat"], {}, "cannot be mixed"),
        (["a cat"], {}, "takes no prompt; it takes class_labels"),
        ([10], {}, "no class 10"),
        ([{"colour": 3}], {}, "takes no colour"),
    ],
)
def test_bad_input_is_refused_before_any_work(conditions, settings, message):
    pipeline, classes = garments()
    events: list[rose.Progress] = []
    drawn = classes if conditions is None else conditions
    refused(message, prune_diffusion, pipeline, drawn, progress=events.append, **settings)
    assert not events


def test_step_weights_are_the_formulas_of_the_paper_and_its_mirror_images():
    weights = step_weights("log_decrease", 10)
    assert weights == pytest.approx([0.8 + 0.4 * math.log(10 - i) / math.log(10) for i in range(10)])
    assert step_weights("log_increase", 7) == step_weights("log_decrease", 7)[::-1]
    assert step_weights("uniform", 3) == (1.0, 1.0, 1.0)
    assert step_weights("uniform", np.int64(3)) == (1.0, 1.0, 1.0)
    assert step_weights("linear", 5) == pytest.approx([1.2, 1.1, 1.0, 0.9, 0.8])
    assert step_weights([1, 2, 3], 3) == (1.0, 2.0, 3.0)
    assert all(step_weights(kind, 1) == (1.0,) for kind in ("log_decrease", "linear", "uniform"))


# Linear layers that read tokens, by hand from the configurations in `pipelines`.
LAYERS = {
    "garments": 2 * 6,  # q, k, v, out, two of the feed-forward
    "dit": 2 * 6,
    "pixart": 2 * (6 + 4),  # and cross-attention
    "sd3": 2 * (6 + 6) - 3,  # two streams; the last block reads the text stream's q, k, v only and puts out none of it
    "flux": 1 * (6 + 6) + 2 * 5,  # a double block, and two single ones: q, k, v, proj_mlp, proj_out
    "unet": 4 * 4,  # attention of one down block, the middle, and two layers of one up block
}


every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_prunable_layers_of_every_family_are_found(family):
    pipeline, conditions = FAMILIES[family]()
    layers = find_layers(Trajectories(pipeline, conditions, batch=2))
    names = [layer.name for layer in layers]
    assert len(names) == LAYERS[family], names
    assert not [name for name in names if "norm" in name or "emb" in name]
    indices = [layer.block_index for layer in layers]
    assert indices == sorted(indices)
    assert (len(convolutions(denoiser_of(pipeline))) > 0) == (family != "flux")


@every_family
def test_a_family_is_pruned_to_the_sparsity_and_nothing_else_changes(family):
    pipeline, conditions = FAMILIES[family]()
    before = {name: value.clone() for name, value in denoiser_of(pipeline).state_dict().items()}
    settings: dict[str, Any] = {"method": "sparsegpt", "sparsity": 0.5, "packages": 2, "block_size": 8}
    report = prune_diffusion(pipeline, conditions, steps=2, batch=2, **settings)
    after = denoiser_of(pipeline).state_dict()
    pruned = {f"{name}.weight" for name in report.layers["layer"]}
    assert len(pruned) == LAYERS[family]
    for name in pruned:
        assert (after[name] == 0).float().mean() == pytest.approx(0.5, abs=0.01)
    for name in set(before) - pruned:
        assert torch.equal(before[name], after[name]), name
    assert report.summary["removed_fraction"] == pytest.approx(0.5, abs=0.01)


@every_family
def test_trajectories_of_one_seed_start_alike_and_differ_in_the_end(family):
    pipeline, conditions = FAMILIES[family]()
    dense = record_trajectory(pipeline, conditions, steps=3, batch=2)
    again = record_trajectory(pipeline, conditions, steps=3, batch=2)
    assert torch.equal(dense.states, again.states)
    assert len(dense.states) == len(dense.times) == 3
    prune_diffusion(pipeline, conditions, method="magnitude", sparsity=0.8, steps=2, block_size=8)
    pruned = record_trajectory(pipeline, conditions, steps=3, batch=2)
    drift = trajectory_drift(pruned, dense)
    assert drift.shape == (4,)
    assert drift[0] == 0
    assert (drift[1:] > 0).all()
