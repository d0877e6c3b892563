"""Faults within a layer, planted in plain torch into pruned layers: each is named by its place and by what happened."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import rose
from rose import cli
from rose.layer import agreement
from rose.layer.agreement import COLUMN, ROW, TILE, Misfit, misfits, whole_fate
from rose.layer.target import InputGap
from rose.model.check import verdicts
from rose.model.check.check import check_checkpoint
from rose.model.check.costs import with_inputs
from rose.model.check.inputs import LayerInputs
from rose.model.check.verdicts import says_part
from tests.model.check.faults_within import COLUMNS, ROWS, TILES
from tests.model.families import make_model
from tests.tiny import save_tiny_llama

SIZE = (192, 256)  # rows and columns
AT = 60  # the first row or column of a fault
OTHER = agreement.OTHERS
KINDS = {
    "negated": agreement.NEGATED,
    "times 10": agreement.SCALED,
    "times 0.1": agreement.SCALED,
    "noise": agreement.UNLIKE_DENSE,
    "signs at random": agreement.UNLIKE_DENSE,
    "shuffled": agreement.UNLIKE_DENSE,
    "constant": agreement.CONSTANT,
    "zero": agreement.EMPTY,
    "swapped": OTHER,
    "duplicated": OTHER,
    "those of the row before": OTHER,
    "rows in reverse order": OTHER,
    "shifted by one column": agreement.SHIFTED,
    "shifted by 32 columns": agreement.SHIFTED,
    "reversed": agreement.REVERSED,
}
BASES = ("magnitude", "wanda", "sparsegpt", "tuned", "2:4", "rounded")


@pytest.fixture(scope="module")
def dense() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(SIZE[0], 1, generator=generator) + 0.5
    return 0.05 * scales * torch.randn(SIZE, generator=generator)


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    """Correlated, with columns of very different size, one of them massive; (tokens, in)."""
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(1024, 32, generator=generator) @ torch.randn(32, SIZE[1], generator=generator)
    scales = 1 + torch.rand(SIZE[1], generator=generator)
    scales[7] = 300
    return (0.2 * common + torch.randn(1024, SIZE[1], generator=generator)) * scales


@pytest.fixture(scope="module")
def bases(dense: Tensor, inputs: Tensor) -> dict[str, Tensor]:
    hessian = inputs.T @ inputs

    def prune(method: str, sparsity: float | str = 0.6, **more: Any) -> Tensor:
        return rose.prune_layer(dense, hessian, method=method, sparsity=sparsity, **more).weight

    found = {method: prune(method) for method in ("magnitude", "wanda", "sparsegpt")}
    moved = 1 + 0.1 * torch.randn(SIZE, generator=torch.Generator().manual_seed(2))
    found |= {"tuned": found["sparsegpt"] * moved, "2:4": prune("sparsegpt", "2:4")}
    return found | {"rounded": prune("sparsegpt", bits=3, group=64)}


def faulty(bases: dict[str, Tensor], base: str, fault: str, axis: str, size: int) -> Tensor:
    weight = bases[base].clone()
    (ROWS if axis == ROW else COLUMNS)[fault](weight, AT, size, torch.Generator().manual_seed(3))
    return weight


def at_place(found: tuple[Misfit, ...], axis: str, size: int) -> list[Misfit]:
    """Those that cover exactly the rows or columns of the fault."""
    ends = [(part, part.rows if axis == ROW else part.columns) for part in found if part.axis == axis]
    return [part for part, place in ends if place == (AT, AT + size - 1)]


@pytest.mark.parametrize("base", [*BASES, "rose_admm", "alps", "rose_dealt", "oats"])
def test_a_sane_layer_has_no_misfits(dense, inputs, bases, base):
    weight = bases.get(base)
    if weight is None:
        weight = rose.prune_layer(dense, inputs.T @ inputs, method=base, sparsity=0.6).weight
    assert not [part for part in misfits(dense, weight) if not part.may_be_lawful]
    assert misfits(dense, weight.bfloat16()) == () or base not in ("magnitude", "wanda")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    ("fault", "size"),
    [
        (name, size)
        for name in ROWS
        if name in KINDS
        for size in (1, 12)
        if (name, size) != ("rows in reverse order", 1)
    ],
)
def test_rows_are_named_with_what_happened(dense, bases, base, fault, size):
    found = misfits(dense, faulty(bases, base, fault, ROW, size))
    rows = [part for part in found if part.axis == ROW and part.rows[0] <= AT + size - 1 and part.rows[1] >= AT]
    assert {part.kind for part in rows} == {KINDS[fault]}
    covered = sum(part.rows[1] - part.rows[0] + 1 for part in rows)
    assert covered > 0.8 * size  # small rows may be empty, and faulty weights may be like their own
    assert not any(part.may_be_lawful for part in rows)
    others = [part for part in found if part not in rows and not part.may_be_lawful]
    assert {part.kind for part in others} == ({OTHER} if fault == "swapped" else set())


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("fault", [name for name in COLUMNS if name in KINDS])
def test_faulty_columns_are_named_with_what_happened(dense, bases, base, fault):
    found = at_place(misfits(dense, faulty(bases, base, fault, COLUMN, 1)), COLUMN, 1)
    is_moved = base not in ("magnitude", "wanda")
    if is_moved and fault == "times 10":
        assert not found  # as compensation scales columns too
        return
    assert [part.kind for part in found] == [KINDS[fault]]
    assert found[0].may_be_lawful == (is_moved and KINDS[fault] == agreement.UNLIKE_DENSE)


@pytest.mark.parametrize("base", ["magnitude", "sparsegpt", "tuned"])
@pytest.mark.parametrize("fault", ["negated", "noise", "signs at random", "constant", "that of the next tile"])
def test_tiles_are_named(dense, bases, base, fault):
    weight = bases[base].clone()
    TILES[fault](weight, 64, 128, 32, 32, torch.Generator().manual_seed(3))
    found = [part for part in misfits(dense, weight) if not part.may_be_lawful]
    assert {part.axis for part in found} == {TILE}
    assert all(64 <= part.rows[0] <= part.rows[1] < 96 and part.columns == (128, 159) for part in found)


def test_negated_runs_of_32_weights_are_found_in_a_compensated_layer(dense, bases):
    weight = bases["sparsegpt"].clone()
    weight[AT, 64:96] *= -1
    found = [part for part in misfits(dense, weight) if not part.may_be_lawful]
    assert [(part.kind, part.rows, part.columns) for part in found] == [(agreement.NEGATED, (AT, AT), (64, 95))]


def test_single_weights_are_found_where_kept_weights_did_not_move(dense, bases):
    weight = bases["magnitude"].clone()
    row, column = (weight != 0).nonzero()[1234].tolist()
    weight[row, column] *= -1
    (found,) = misfits(dense, weight)
    assert (found.kind, found.rows, found.columns) == (agreement.CHANGED, (row, row), (column, column))
    assert says_part(found).startswith(f"Row {row}, column {column}: the weight is ")


@pytest.mark.parametrize("base", BASES)
def test_an_absurd_weight_is_found_in_every_layer(dense, bases, base):
    weight = bases[base].clone()
    weight[3, 5] = 1e9
    absurd = [part for part in misfits(dense, weight) if not part.may_be_lawful]
    assert [(part.kind, part.rows, part.columns) for part in absurd] == [(agreement.ABSURD, (3, 3), (5, 5))]
    assert says_part(absurd[0]).startswith("Row 3, column 5: the weight is 1.00 × 10⁹, and no dense weight")


def test_the_fate_of_a_whole_layer_is_named(dense, bases):
    weight = bases["sparsegpt"]
    square = dense[:, : SIZE[0]]
    fates = {
        "has the opposite sign": (dense, -weight),
        "has every row shifted by 1": (dense, weight.roll(1, 1)),
        "has the dense layer's rows in another order": (dense, weight[torch.randperm(SIZE[0])]),
        "has the dense layer's columns in another order": (dense, weight[:, torch.randperm(SIZE[1])]),
        "is the dense layer's transpose": (square, square.T * (square.T.abs() > 0.03)),
    }
    assert {fate: whole_fate(*pair) for fate, pair in fates.items()} == {fate: fate for fate in fates}
    assert whole_fate(dense, torch.randn(SIZE)) is None


def test_inputs_decide_whether_a_column_is_lawful(dense, inputs, bases):
    """A column of noise is a fault; one that was traded for a collinear one, as massive activations are, is none."""
    twins = inputs.clone()
    twins[:, 8] = 0.5 * twins[:, 7] + 1e-3 * inputs[:, 8]
    known = LayerInputs(rose.InputStatistics(SIZE[1]), InputGap(SIZE[1]))
    known.statistics.update(twins)
    known.gap.update(twins, twins)
    for fault, is_wrong in (("noise", True), ("traded", False)):
        weight = rose.prune_layer(dense, known.statistics, method="sparsegpt", sparsity=0.6).weight
        if fault == "noise":
            COLUMNS["noise"](weight, 8, 1, torch.Generator().manual_seed(3))
        else:
            trade = 0.2 * torch.randn(SIZE[0], generator=torch.Generator().manual_seed(4))
            both = (weight[:, 7] != 0) & (weight[:, 8] != 0)
            weight[:, 8] += torch.where(both, trade, 0)
            weight[:, 7] -= torch.where(both, 0.5 * trade, 0)
        found = misfits(dense, weight)
        assert all(part.may_be_lawful and part.columns[0] in (7, 8) for part in found)
        assert bool(with_inputs(found, dense, weight, [known])) == is_wrong


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_command_names_a_negated_row_of_a_masked_copy(tmp_path, capsys, calibrated):
    dense = save_tiny_llama(tmp_path / "dense")
    model, tokenizer = rose.load_model(str(dense))
    with torch.no_grad():
        for layer in rose.prunable_layers(model):
            layer.write(layer.weight * (layer.weight.abs() > layer.weight.abs().flatten().quantile(0.7)))
        row = model.model.layers[2].self_attn.o_proj.weight[9]
        row *= -1
        kept = int((row != 0).sum())
    rose.save_model(model, tokenizer, tmp_path / "pruned")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"The quick brown fox jumps over {number} lazy dogs." for number in range(40)))
    more = ["--calibration", str(text), "--samples", "2", "--length", "32", "--methods", "magnitude"]
    assert cli.main(["check", str(dense), str(tmp_path / "pruned"), *(more if calibrated else [])]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "model.layers.2.self_attn.o_proj, part broken: Row 9" in said
    assert f"all {kept} kept weights have the opposite sign" in said


def test_rows_emptied_by_structured_pruning_are_no_faults(packaged):
    dense = copy.deepcopy(packaged[0])
    dense.model.layers = dense.model.layers[:2]
    dense.config.num_hidden_layers = 2
    model = copy.deepcopy(dense)
    with torch.no_grad():
        for layer in rose.prunable_layers(model):
            layer.write(layer.weight * (layer.weight.abs() > layer.weight.abs().median()))
            layer.weight[:64] = 0
        assert check_checkpoint(dense, model).is_sane
        for layer in rose.prunable_layers(model)[1:]:
            was = dense.get_submodule(layer.name).weight
            layer.write(was * (was.abs() > was.abs().median()))
    found = check_checkpoint(dense, model)
    assert found.wrong["verdict"].tolist() == [verdicts.PART_BROKEN]
    assert "Rows 0 to 54: no weight is left" in found.wrong["reason"][0]


def test_a_head_is_named_and_a_layer_of_another_scale_is_wrong():
    dense = make_model("llama")  # 4 heads of 8
    model = copy.deepcopy(dense)
    with torch.no_grad():
        for layer in rose.prunable_layers(model):
            layer.write(layer.weight * (layer.weight.abs() > layer.weight.abs().median()))
        model.model.layers[1].self_attn.o_proj.weight[:, 8:16] *= -1
        model.model.layers[0].self_attn.q_proj.weight[24:32] *= -1
        model.model.layers[0].mlp.up_proj.weight *= 2
    found = check_checkpoint(dense, model).wrong.set_index("name")
    assert len(found) == 3
    assert "Columns 8 to 15: all" in found.loc["model.layers.1.self_attn.o_proj", "reason"]
    assert "Columns of head 1." in found.loc["model.layers.1.self_attn.o_proj", "reason"]
    assert "Rows of head 3." in found.loc["model.layers.0.self_attn.q_proj", "reason"]
    scaled = found.loc["model.layers.0.mlp.up_proj"]
    assert scaled["verdict"] == verdicts.OTHER_MODEL
    assert scaled["reason"].startswith("Kept weights are 2.00 times as large as the dense ones.")


def test_most_rows_of_a_layer_may_be_wrong(dense, bases):
    for share, source, told in ((0.6, 5, 0.4), (0.3, 7, 0.9)):
        weight = bases["sparsegpt"].clone()
        rows = torch.arange(int(share * SIZE[0]))
        weight[rows] = bases["sparsegpt"][(rows + source) % SIZE[0]]
        found = [part for part in misfits(dense, weight) if part.kind == OTHER]
        assert sum(part.rows[1] - part.rows[0] + 1 for part in found) > told * len(rows)
        assert found[0].source == found[0].rows[0] + source


def test_a_row_that_moved_much_is_no_fault_of_a_tile():
    """As the row of a massive channel in a sane layer: most in one run of columns, and much in all of them."""
    generator = torch.Generator().manual_seed(0)
    weight, change = (torch.randn(1024, 256, generator=generator) for _ in range(2))
    change *= 0.15
    change[100] *= 10
    change[100, 128:160] *= 3
    weight[100] *= 2
    kept = torch.rand(weight.shape, generator=generator) < 0.5
    assert misfits(weight, (weight + change) * kept) == ()
