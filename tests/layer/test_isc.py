"""The improved saliency of Shao et al. against a sweep with explicit inverses."""

import pytest
import torch

import rose
from tests.layer.helpers import damped_by_hand, make_layer


@pytest.mark.parametrize("sparsity", [0.5, 0.7, "2:4", "1:4"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("inverse", ["layer", "remaining"])
def test_masks_by_both_saliencies(sparsity, seed, inverse):
    layer = make_layer(rows=6, columns=32, seed=seed)
    result = layer.prune(method="isc", sparsity=sparsity, options={"inverse": inverse})
    hessian = damped_by_hand(layer, result.added_damping)
    weight = layer.weight.double().clone()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(32)]
    heads = torch.stack([found[0, 0] for found in inverses])
    factor = hessian.diagonal() + 1 / (torch.linalg.inv(hessian).diagonal() if inverse == "layer" else heads)
    for j in range(32):
        if isinstance(sparsity, str) and j % 4 == 0:
            for row in range(6):
                saliency = weight[row, j : j + 4].square() * factor[j : j + 4]
                mask[row, j + saliency.argsort()[: 4 - int(sparsity[0])]] = True
        if isinstance(sparsity, float) and j % 8 == 0:  # block size 8
            saliency = (weight[:, j : j + 8].square() * factor[j : j + 8]).flatten()
            chosen = torch.zeros(48, dtype=torch.bool)
            chosen[saliency.argsort()[: round(sparsity * 48)]] = True
            mask[:, j : j + 8] = chosen.view(6, 8)
        removed = torch.where(mask[:, j], weight[:, j], 0) / inverses[j][0, 0]
        weight[:, j:] -= torch.outer(removed, inverses[j][0])
        weight[mask[:, j], j] = 0
    assert torch.equal(result.mask, mask)
    torch.testing.assert_close(result.weight.double(), weight, rtol=1e-3, atol=1e-3)


def test_with_the_whole_inverse_the_order_does_not_matter():
    """One block of all columns: the mask is chosen before anything is compensated."""
    layer = make_layer(rows=20, columns=32, seed=6)
    reverse = torch.arange(31, -1, -1)
    for inverse, same in (("layer", True), ("remaining", False)):
        masks = [
            rose.prune_layer(
                layer.weight, layer.hessian, method="isc", sparsity=0.6, order=order, options={"inverse": inverse}
            ).mask
            for order in (None, reverse)
        ]
        assert torch.equal(*masks) == same
