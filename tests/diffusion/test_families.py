"""Every family of denoisers is walked and pruned by the same code, found by structure."""

import pytest
import torch

import rose
from rose.diffusion.calibration import convolutions, find_layers
from rose.diffusion.trajectory import Trajectories, denoiser_of
from tests.diffusion.pipelines import FAMILIES

# Linear layers that read tokens, by hand from the configurations in `pipelines`.
LAYERS = {
    "garments": 2 * 6,  # q, k, v, out, two of the feed-forward
    "dit": 2 * 6,
    "pixart": 2 * (6 + 4),  # and cross-attention
    "sd3": 2 * (6 + 6) - 3,  # two streams; the last block reads the text stream's q, k, v only and puts out none of it
    "flux": 1 * (6 + 6) + 2 * 5,  # a double block, and two single ones: q, k, v, proj_mlp, proj_out
    "unet": 4 * 4,  # attention of one down block, the middle, and two layers of one up block
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def test_layers_are_found_by_what_they_read(family):
    pipeline, conditions = FAMILIES[family]()
    layers = find_layers(Trajectories(pipeline, conditions, batch=2))
    names = [layer.name for layer in layers]
    assert len(names) == LAYERS[family], names
    assert not [name for name in names if "norm" in name or "emb" in name]
    indices = [layer.block_index for layer in layers]
    assert indices == sorted(indices)
    assert (len(convolutions(denoiser_of(pipeline))) > 0) == (family != "flux")


def test_a_family_is_pruned_to_the_sparsity_and_nothing_else_changes(family):
    pipeline, conditions = FAMILIES[family]()
    before = {name: value.clone() for name, value in denoiser_of(pipeline).state_dict().items()}
    report = rose.prune_diffusion(
        pipeline, conditions, method="sparsegpt", sparsity=0.5, steps=2, packages=2, block_size=8, batch=2
    )
    after = denoiser_of(pipeline).state_dict()
    pruned = {f"{name}.weight" for name in report.layers["layer"]}
    assert len(pruned) == LAYERS[family]
    for name in pruned:
        assert (after[name] == 0).float().mean() == pytest.approx(0.5, abs=0.01)
    for name in set(before) - pruned:
        assert torch.equal(before[name], after[name]), name
    assert report.summary["removed_fraction"] == pytest.approx(0.5, abs=0.01)


def test_trajectories_of_one_seed_start_alike_and_differ_in_the_end(family):
    pipeline, conditions = FAMILIES[family]()
    dense = rose.record_trajectory(pipeline, conditions, steps=3, batch=2)
    again = rose.record_trajectory(pipeline, conditions, steps=3, batch=2)
    assert torch.equal(dense.states, again.states)
    assert len(dense.states) == len(dense.times) == 3
    rose.prune_diffusion(pipeline, conditions, method="magnitude", sparsity=0.8, steps=2, block_size=8)
    pruned = rose.record_trajectory(pipeline, conditions, steps=3, batch=2)
    drift = rose.trajectory_drift(pruned, dense)
    assert drift.shape == (4,)
    assert drift[0] == 0
    assert (drift[1:] > 0).all()
