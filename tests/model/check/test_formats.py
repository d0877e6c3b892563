"""Checkpoints as other programs save them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import rose
from rose.layer.statistics import InputStatistics
from rose.layer.target import InputGap
from rose.model.check.change import find_pattern, weight_change
from rose.model.check.costs import Yardsticks
from rose.model.check.inputs import LayerInputs
from rose.model.check.verdicts import Verdict
from tests.tiny import edit_config, save_tiny_llama

CASES = Path(__file__).parents[2] / "fixtures" / "official_cases.npz"
# As llm-compressor writes it after pruning alone, by what its configurations have held over time.
SPARSITY: dict[str, Any] = {"format": "dense", "global_sparsity": 0.5, "ignore": ["lm_head"], "targets": ["Linear"]}
SPARSITY |= {"registry_requires_subclass": False, "sparsity_structure": "2:4"}
QUANTIZED: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "dense", "quantization_status": "frozen"}
QUANTIZED |= {"config_groups": {}, "ignore": None, "kv_cache_scheme": None, "global_compression_ratio": None}
RECORDS: list[dict[str, Any]] = [
    {"sparsity_config": SPARSITY},
    {"compression_config": {"quant_method": "compressed-tensors", "sparsity_config": SPARSITY}},
    {"quantization_config": QUANTIZED | {"sparsity_config": SPARSITY}},
]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path]:
    """A dense model, and a 2:4 copy of it as transformers saves it in half precision, without compensation."""
    dense = save_tiny_llama(tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(dense)
    for block in model.model.layers:
        for module in block.modules():
            if isinstance(module, torch.nn.Linear):
                groups = module.weight.data.unflatten(1, (-1, 4))
                groups.scatter_(2, groups.abs().argsort(2)[..., :2], 0)
    model.half().save_pretrained(tmp_path / "pruned")
    rose.load_model(str(dense))[1].save_pretrained(tmp_path / "pruned")
    return dense, tmp_path / "pruned"


@pytest.mark.parametrize("record", [{}, *RECORDS], ids=["transformers", *("".join(one) for one in RECORDS)])
@pytest.mark.parametrize("stream", [False, True])
def test_plain_weights_are_read_with_any_sparsity_configuration(saved, record, stream):
    edit_config(saved[1], **record)
    (saved[1] / "recipe.yaml").write_text("default_stage: {}\n")
    check = rose.check_checkpoint(*(rose.load_model(str(folder), stream=stream)[0] for folder in saved))
    assert check.is_sane
    assert check.summary["pattern"] == "2:4"
    assert set(check.layers["verdict"]) == {Verdict.MASK_ALONE}
    assert set(check.layers["rounded"]) == {"float16"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("leaf", ["weight_packed", "bitmask", "weight"])
def test_packed_weights_are_refused_in_a_sentence(saved, stream, leaf):
    edit_config(saved[1], **RECORDS[2])
    path = saved[1] / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.up_proj"
    weight = tensors.pop(f"{name}.weight")
    save_file(tensors | {f"{name}.{leaf}": weight.to(torch.int8)}, path, {"format": "pt"})
    with pytest.raises(rose.RoseError, match=rf"packed by compressed-tensors \({name}.{leaf}\).*save_compressed=False"):
        rose.load_model(str(saved[1]), stream=stream)


@pytest.mark.parametrize("case", ["columnar_50", "columnar_70", "flat_60", "nm_2_4"])
def test_the_authors_results_are_recognized(case):
    with np.load(CASES) as archive:
        arrays = {name.partition("/")[2]: archive[name] for name in archive if name.startswith(f"{case}/")}
    weight, inputs = (torch.from_numpy(arrays[name]) for name in "WX")
    gap = InputGap(inputs.shape[1])
    gap.update(inputs, inputs)
    statistics = InputStatistics(inputs.shape[1])
    statistics.update(inputs)
    methods = ("magnitude", "wanda", "sparsegpt", "rose")
    yardsticks = Yardsticks(methods, int(arrays["block_size"]), mu=0.03)
    columnar = float(arrays["relative_range"]) > 0.5

    def found_for(pruned: Tensor) -> tuple[str, float]:
        change = weight_change(weight, pruned)
        costs, nearest = yardsticks.measure(weight, pruned, change, LayerInputs(statistics, gap), None)
        assert nearest.is_same
        assert costs.possible.error < costs.error * 1.001 < costs.mask.error
        assert costs.error == pytest.approx(costs.methods[nearest.method].error, rel=1e-2)
        assert costs.dense_input_error == pytest.approx(costs.error, rel=1e-3)
        return nearest.method, nearest.shared.jaccard

    ordered = "rose" if columnar and case != "nm_2_4" else "sparsegpt"
    for pruned, expected in (("sparsegpt_W", "sparsegpt"), ("rose_W", ordered)):
        assert found_for(torch.from_numpy(arrays[pruned])) == (expected, pytest.approx(1, abs=0.01))


def test_few_zeros_have_no_pattern():
    """One zero is one zero in its row too, and in its block of columns."""
    few, rows = torch.zeros(4, 256, dtype=torch.bool), torch.zeros(4, 256, dtype=torch.bool)
    few[2, 70] = True
    rows[torch.arange(4), torch.arange(4)] = True
    assert (find_pattern(few).name, find_pattern(rows).name) == ("layer", "row")
