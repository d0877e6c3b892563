"""True-sequential pruning: every layer reads outputs of the pruned layers before it."""

import gc
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import rose
from rose.layer.error import relative_error
from rose.model.network.layers import PrunableLayer
from rose.model.walk.sequential import visit_sequentially
from tests.layer.helpers import statistics_of
from tests.model.families import DENSE, LENGTH, begin_walk, logits, make_model, make_tokens
from tests.model.walk.test_families import hooked_inputs
from tests.refusals import cancelled, refused

pytestmark = pytest.mark.usefixtures("small_batches")
OPTIONS: dict[str, Any] = {"sparsity": 0.5, "block_size": 16, "method": "sparsegpt", "target": "layer"}


def prune(model: nn.Module, **options: Any) -> rose.RunReport:
    return rose.prune_model(model, make_tokens(), true_sequential=True, **OPTIONS | options)


def in_turn(model: PreTrainedModel) -> list[PrunableLayer]:
    layers = {layer.module: layer for layer in rose.prunable_layers(model)}
    seen: list[nn.Module] = []
    with ExitStack() as hooks:
        for module in layers:
            hooks.enter_context(module.register_forward_pre_hook(lambda module, _args: seen.append(module)))
        logits(model, make_tokens(1))
    return [layers[module] for module in seen]


@pytest.mark.parametrize("family", DENSE)
def test_every_layer_reads_the_outputs_of_pruned_layers_before_it(family):
    """Against the whole model run anew before each layer; layers that read one tensor see the same in both."""
    model, by_hand, held_out = make_model(family), make_model(family), make_tokens(2, seed=3)
    report = prune(model, held_out=held_out).layers.set_index("layer")
    assert list(report.index) == [layer.name for layer in rose.prunable_layers(model)]
    for layer in in_turn(by_hand):
        inputs = hooked_inputs(by_hand, [layer.name], make_tokens())[layer.name]
        result = rose.prune_layer(layer.weight, statistics_of(inputs), method="sparsegpt", sparsity=0.5, block_size=16)
        others = statistics_of(hooked_inputs(by_hand, [layer.name], held_out)[layer.name])
        expected = relative_error(layer.weight, result.weight, others.hessian)
        layer.write(result.weight)
        pruned = model.get_submodule(layer.name).weight
        torch.testing.assert_close(pruned, layer.module.weight, rtol=1e-3, atol=1e-4)
        assert report.loc[layer.name, "relative_error"] == pytest.approx(result.relative_error, rel=1e-3)
        assert report.loc[layer.name, "held_out_error"] == pytest.approx(expected, rel=1e-3)


class Routed(nn.Module):
    """Each sample goes to the two of three experts that its router prefers, by number if `in_order`, else by score."""

    def __init__(self, gather: bool, in_order: bool = True) -> None:
        super().__init__()
        self.gather, self.in_order = gather, in_order
        self.router = nn.Linear(32, 3, bias=False)
        first, second = (partial(nn.Linear, *sizes, bias=False) for sizes in ((32, 16), (16, 32)))
        self.experts = nn.ModuleList(nn.Sequential(first(), nn.SiLU(), second()) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        chosen = self.router(hidden).mean(1).topk(2).indices  # (samples, 2)
        if not self.in_order:
            assert len(hidden) == 1
            return sum((self.experts[int(number)](hidden) for number in chosen[0]), torch.zeros_like(hidden))
        output = torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            here = (chosen == number).any(1)
            if self.gather and here.any():
                output[here] += expert(hidden[here])
            elif not self.gather and here.all():  # one sample at a time: router and experts read one tensor
                output = output + expert(hidden)
        return output


def with_mlp(make: Callable[[], nn.Module]) -> Any:
    model = make_model("llama")
    torch.manual_seed(3)
    for block in model.model.layers:
        block.mlp = make()
    return model


def routed_model(gather: bool, in_order: bool = True) -> Any:
    return with_mlp(lambda: Routed(gather, in_order))


@pytest.mark.parametrize("gather", [True, False])
def test_every_expert_sees_all_of_its_tokens(gather, monkeypatch):
    """Against plain hooks on a model in which the same layers are pruned; samples take different experts."""
    monkeypatch.setattr("rose.model.walk.forward.BATCH_TOKENS", LENGTH)  # one sample a batch
    tokens, held_out = make_tokens(8), make_tokens(4, seed=3)
    model, by_hand = routed_model(gather), routed_model(gather)
    walk = begin_walk(model, tokens, held_out)
    pruned, expert_tokens = [], []
    for block in visit_sequentially(walk):
        (layer,) = block.layers
        for stream, statistics in ((tokens, block.calibration), (held_out, block.held_out)):
            inputs = hooked_inputs(by_hand, [layer.name], stream)[layer.name]
            assert statistics[layer.name].tokens == len(inputs), layer.name
            torch.testing.assert_close(statistics[layer.name].hessian, inputs.T @ inputs, rtol=1e-4, atol=1e-4)
        pruned.append(layer.name)
        if "experts" in layer.name:
            expert_tokens.append(block.calibration[layer.name].tokens)
        weight = rose.prune_layer(
            layer.weight, block.calibration[layer.name], method="rose", sparsity=0.5, block_size=16
        ).weight
        layer.write(weight)
        by_hand.get_submodule(layer.name).weight.data.copy_(weight)
    assert pruned == [layer.name for layer in rose.prunable_layers(model)]
    assert len(set(expert_tokens)) > 2  # or the routes would be no test


def test_routes_that_no_order_of_layers_fits_are_refused(monkeypatch):
    monkeypatch.setattr("rose.model.walk.forward.BATCH_TOKENS", LENGTH)
    for target, remedy in (("layer", "prune without true-sequential"), ("dense", "prune with target layer")):
        refused(f"different orders.*{remedy}, or leave", prune, routed_model(False, in_order=False), target=target)


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        read = hidden.clone()
        return self.first(read) + self.second(read.mul_(2))


@pytest.mark.parametrize("target", ["layer", "dense"])
def test_a_tensor_overwritten_between_two_layers_is_counted_anew(target):
    """Without pruning, the second layer's H is four times the first's."""
    walk = begin_walk(with_mlp(Doubling), make_tokens(), layers=["*.0.mlp.*"], is_dense=target == "dense")
    statistics = {name: seen for block in visit_sequentially(walk) for name, seen in block.calibration.items()}
    first, second = (statistics[f"model.layers.0.mlp.{name}"].hessian for name in ("first", "second"))
    torch.testing.assert_close(second, 4 * first)
    assert prune(with_mlp(Doubling), target=target).summary["layers"] == 12


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"target": "layer"}, "prune with true-sequential, or leave this layer out"),
        ({"target": "layer", "allocation": "owl"}, "counted; leave this layer out"),
        ({"target": "layer", "allocation": "owl", "true_sequential": True}, "counted; leave this layer out"),
    ],
)
def test_the_remedy_for_an_overwritten_input_fits_the_options(options, remedy):
    with pytest.raises(rose.RoseError, match=rf"overwrites the input of model\.layers\.0\.mlp\.first.*{remedy}\."):
        rose.prune_model(with_mlp(Doubling), make_tokens(), sparsity=0.5, block_size=16, **options)


def test_a_stopped_run_leaves_no_hook_and_no_batch_under_way():
    model, alive = make_model("llama"), []

    def stop(progress: rose.Progress) -> None:
        if progress.block_index == 1 and progress.stage == "prune":
            alive.extend(weakref.ref(x) for x in gc.get_objects() if type(x).__name__ == "_Batch")
            raise rose.Cancelled

    cancelled(prune, model, progress=stop)
    assert not any(module._forward_pre_hooks for module in model.modules())
    gc.collect()
    assert alive
    assert not any(reference() for reference in alive)
    assert logits(model).isfinite().all()
