"""The table of checks, on a sound tiny model and on broken ones."""

import pandas as pd
import pytest
import torch
from torch import Tensor

import rose
from rose.layer.settings import LayerSettings
from rose.model.measure.layer_checks import CHECKS, check_layers
from rose.model.run.one_layer import measure_layer
from rose.rows import records_table
from tests.model.families import make_model, make_tokens
from tests.model.run.test_allocation import some_tokens, tiny_llama

OPTIONS = {"sparsity": 0.5, "block_size": 8, "damping": 0.01}
SPARSEGPT = LayerSettings.of(method="sparsegpt", **OPTIONS)


def table(held_out: Tensor | None, break_inputs: bool = False) -> pd.DataFrame:
    blocks = list(rose.visit_blocks(tiny_llama(), some_tokens(), held_out=held_out))
    records = []
    for block in blocks:
        if break_inputs and block.block_index == 1:
            block.calibration[block.layers[0].name].update(torch.full((1, 16), float("nan")))
            continue
        for layer in block.layers:
            for method in ("sparsegpt", "rose_global"):
                held = block.held_out.get(layer.name)
                settings = LayerSettings.of(method=method, **OPTIONS)
                records.append(measure_layer(layer, block.calibration[layer.name], held, settings))
    return check_layers(records_table(records), blocks, **OPTIONS)


def test_a_sound_run_passes():
    checks = table(some_tokens())  # held out: the calibration tokens themselves, so nothing over-fits
    assert len(checks) == 3 * 7
    assert (checks[["status", *CHECKS]] == "pass").all(axis=None)
    assert (checks["found"] == "").all()


@pytest.mark.parametrize("are_pruned", [True, False])
def test_the_damping_that_an_experts_few_tokens_call_for_is_not_raised(are_pruned):
    model, tokens = make_model("mixtral"), make_tokens(4, 16)
    blocks = list(rose.visit_blocks(model, tokens))
    layers = [(layer, block.calibration[layer.name]) for block in blocks for layer in block.layers]
    records = records_table([measure_layer(*sample, None, SPARSEGPT) for sample in layers])
    assert (records["damping"] > OPTIONS["damping"]).any()
    assert not records["is_damping_raised"].any()
    checks = check_layers(records if are_pruned else records[:0], blocks, **OPTIONS)
    assert set(checks["Damping as asked"]) == {"pass"}
    raised = check_layers(records.assign(is_damping_raised=True), blocks, **OPTIONS)
    assert set(raised["Damping as asked"]) == {"look"}


def test_a_layer_that_could_not_be_pruned_is_in_the_table():
    checks = table(None, break_inputs=True).set_index("layer")
    row = checks.loc["model.layers.1.self_attn.q_proj"]
    assert (row["status"], row["Finite inputs"], row["Sparsity as asked"]) == ("fail", "fail", "not measured")
    assert row["found"] == "16 of 16 input columns saw NaN or infinity"
    # q, k and v read one tensor; the others are sound.
    assert list(checks.index[checks["status"] == "fail"]) == [f"model.layers.1.self_attn.{x}_proj" for x in "qkv"]


def test_zeros_in_dead_columns_come_on_top_of_the_sparsity_and_no_others():
    model, dead = tiny_llama(), [*range(7), 9]  # more of the first block than what is asked for
    model.model.layers[0].input_layernorm.weight.data[dead] = 0
    (block,) = rose.visit_blocks(model, some_tokens(), layers=["model.layers.0.self_attn.q_proj"])
    (layer,) = block.layers
    record = measure_layer(layer, block.calibration[layer.name], None, SPARSEGPT)
    assert record.sparsity > 0.5
    records = records_table([record])
    assert list(check_layers(records, [block], **OPTIONS)["Sparsity as asked"]) == ["pass"]
    for factor in (0.6, 2.0):  # too few, and more than there are dead columns
        wrong = records.assign(sparsity=records["sparsity"] * factor)
        assert list(check_layers(wrong, [block], **OPTIONS)["Sparsity as asked"]) == ["fail"]
