"""Faults planted within pruned layers are named by place and kind."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import rose
from rose.layer.target import InputGap
from rose.model.check import agreement
from rose.model.check.agreement import COLUMN, ROW, TILE, misfits, whole_fate
from rose.model.check.check import check_checkpoint
from rose.model.check.costs import with_inputs
from rose.model.check.inputs import LayerInputs
from rose.model.check.verdicts import Verdict, says_part
from tests.model.check.faults import COLUMNS, ROWS, TILES
from tests.model.families import make_model, make_tokens

SIZE = (192, 256)  # rows and columns
AT = 60  # the first row or column of a fault
OTHER = agreement.OTHERS
KINDS = {
    "negated": agreement.NEGATED,
    "constant": agreement.CONSTANT,
    "zero": agreement.EMPTY,
    "reversed": agreement.REVERSED,
    **dict.fromkeys(("times 10", "times 0.1"), agreement.SCALED),
    **dict.fromkeys(("noise", "signs at random", "shuffled"), agreement.UNLIKE_DENSE),
    **dict.fromkeys(("swapped", "duplicated", "those of the row before", "rows in reverse order"), OTHER),
    **dict.fromkeys(("shifted by one column", "shifted by 32 columns"), agreement.SHIFTED),
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

    pruned = {method: prune(method) for method in ("magnitude", "wanda", "sparsegpt")}
    moved = 1 + 0.1 * torch.randn(SIZE, generator=torch.Generator().manual_seed(2))
    pruned |= {"tuned": pruned["sparsegpt"] * moved, "2:4": prune("sparsegpt", "2:4")}
    return pruned | {"rounded": prune("sparsegpt", bits=3, group=64)}


def faulty(bases: dict[str, Tensor], base: str, fault: str, axis: str, size: int) -> Tensor:
    weight = bases[base].clone()
    (ROWS if axis == ROW else COLUMNS)[fault](weight, AT, size, torch.Generator().manual_seed(3))
    return weight


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
    [(name, size) for name in KINDS for size in (1, 12) if (name, size) != ("rows in reverse order", 1)],
)
def test_faulty_rows_are_named_with_their_fault(dense, bases, base, fault, size):
    parts = misfits(dense, faulty(bases, base, fault, ROW, size))
    rows = [part for part in parts if part.axis == ROW and part.rows[0] <= AT + size - 1 and part.rows[1] >= AT]
    assert {part.kind for part in rows} == {KINDS[fault]}
    covered = sum(part.rows[1] - part.rows[0] + 1 for part in rows)
    assert covered > 0.8 * size  # small rows may be empty, and faulty weights may be like their own
    assert not any(part.may_be_lawful for part in rows)
    others = [part for part in parts if part not in rows and not part.may_be_lawful]
    assert {part.kind for part in others} == ({OTHER} if fault == "swapped" else set())


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("fault", [name for name in COLUMNS if name in KINDS])
def test_faulty_columns_are_named_with_their_fault(dense, bases, base, fault):
    parts = misfits(dense, faulty(bases, base, fault, COLUMN, 1))
    parts = tuple(part for part in parts if part.axis == COLUMN and part.columns == (AT, AT))
    assert [part.kind for part in parts] == [KINDS[fault]]
    assert parts[0].may_be_lawful == (base not in ("magnitude", "wanda") and KINDS[fault] == agreement.UNLIKE_DENSE)


@pytest.mark.parametrize("base", ["magnitude", "sparsegpt", "tuned"])
@pytest.mark.parametrize("fault", ["negated", "noise", "signs at random", "constant", "that of the next tile"])
def test_tiles_are_named(dense, bases, base, fault):
    weight = bases[base].clone()
    TILES[fault](weight, 64, 128, 32, 32, torch.Generator().manual_seed(3))
    parts = [part for part in misfits(dense, weight) if not part.may_be_lawful]
    assert {part.axis for part in parts} == {TILE}
    assert all(64 <= part.rows[0] <= part.rows[1] < 96 and part.columns == (128, 159) for part in parts)


@pytest.mark.parametrize(
    ("kind", "base"),
    [(agreement.NEGATED, "sparsegpt"), (agreement.CHANGED, "magnitude"), *((agreement.ABSURD, base) for base in BASES)],
)
def test_a_run_of_weights_and_a_single_weight_are_found(dense, bases, kind, base):
    """A run of 32 in every layer, a changed weight where kept weights did not move, an absurd one everywhere."""
    weight = bases[base].clone()
    row, column = (weight != 0).nonzero()[1234].tolist() if kind == agreement.CHANGED else (AT, 64)
    last = column + 31 if kind == agreement.NEGATED else column
    weight[row, column : last + 1] *= -1
    if kind == agreement.ABSURD:
        weight[row, column] = 1e9
    (misfit,) = (part for part in misfits(dense, weight) if not part.may_be_lawful)
    assert (misfit.kind, misfit.rows, misfit.columns) == (kind, (row, row), (column, last))
    begins = {
        agreement.CHANGED: "the weight is ",
        agreement.ABSURD: "the weight is 1.00 × 10⁹, and no dense weight of this layer is above ",
    }
    beginning = f"Row {row}, column {column}: {begins[kind]}" if kind in begins else f"Row {row}"
    assert says_part(misfit).startswith(beginning)


def test_faults_of_whole_layers_are_named(dense, bases):
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
    layer_inputs = LayerInputs(rose.InputStatistics(SIZE[1]), InputGap(SIZE[1]))
    layer_inputs.statistics.update(twins)
    layer_inputs.gap.update(twins, twins)
    for fault, is_wrong in (("noise", True), ("traded", False)):
        weight = rose.prune_layer(dense, layer_inputs.statistics, method="sparsegpt", sparsity=0.6).weight
        if fault == "noise":
            COLUMNS["noise"](weight, 8, 1, torch.Generator().manual_seed(3))
        else:
            trade = 0.2 * torch.randn(SIZE[0], generator=torch.Generator().manual_seed(4))
            both = (weight[:, 7] != 0) & (weight[:, 8] != 0)
            weight[:, 8] += torch.where(both, trade, 0)
            weight[:, 7] -= torch.where(both, 0.5 * trade, 0)
        parts = misfits(dense, weight)
        assert all(part.may_be_lawful and part.columns[0] in (7, 8) for part in parts)
        assert bool(with_inputs(parts, dense, weight, [layer_inputs])) == is_wrong


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
    check = check_checkpoint(dense, model)
    assert check.wrong["verdict"].tolist() == [Verdict.PART_BROKEN]
    assert "Rows 0 to 54: no weight is left" in check.wrong["reason"][0]


@pytest.mark.parametrize("tokens", [None, make_tokens()])
def test_a_head_is_named_and_a_layer_of_another_scale_is_wrong(tokens):
    dense = make_model("llama")  # 4 heads of 8
    model = copy.deepcopy(dense)
    with torch.no_grad():
        for layer in rose.prunable_layers(model):
            layer.write(layer.weight * (layer.weight.abs() > layer.weight.abs().median()))
        model.model.layers[1].self_attn.o_proj.weight[:, 8:16] *= -1
        model.model.layers[0].self_attn.q_proj.weight[24:32] *= -1
        model.model.layers[0].mlp.up_proj.weight *= 2
    wrong = check_checkpoint(dense, model, tokens, methods=(), block_size=8).wrong.set_index("name")
    assert len(wrong) == 3
    assert "Columns 8 to 15: all" in wrong.loc["model.layers.1.self_attn.o_proj", "reason"]
    assert "Columns of head 1." in wrong.loc["model.layers.1.self_attn.o_proj", "reason"]
    assert "Rows of head 3." in wrong.loc["model.layers.0.self_attn.q_proj", "reason"]
    scaled = wrong.loc["model.layers.0.mlp.up_proj"]
    assert scaled["verdict"] == Verdict.OTHER_MODEL
    assert scaled["reason"].startswith("Kept weights are 2.00 times as large as the dense ones.")


def test_most_rows_of_a_layer_may_be_wrong(dense, bases):
    for share, source, told in ((0.6, 5, 0.4), (0.3, 7, 0.9)):
        weight = bases["sparsegpt"].clone()
        rows = torch.arange(int(share * SIZE[0]))
        weight[rows] = bases["sparsegpt"][(rows + source) % SIZE[0]]
        parts = [part for part in misfits(dense, weight) if part.kind == OTHER]
        assert sum(part.rows[1] - part.rows[0] + 1 for part in parts) > told * len(rows)
        assert parts[0].source == parts[0].rows[0] + source


def test_rows_that_moved_much_are_not_faults_of_tiles():
    """As the row of a massive channel in a sane layer: most in one run of columns, and much in all of them."""
    generator = torch.Generator().manual_seed(0)
    weight, change = (torch.randn(1024, 256, generator=generator) for _ in range(2))
    change *= 0.15
    change[100] *= 10
    change[100, 128:160] *= 3
    weight[100] *= 2
    pruned = (weight + change) * (torch.rand(weight.shape, generator=generator) < 0.5)
    assert misfits(weight, pruned) == ()
    # The few weights that a nearly empty row keeps stand in for all others, and may turn round.
    pruned[200], few = 0, [5, 20, 70]
    pruned[200, few] = -weight[200, few]
    assert misfits(weight, pruned) == ()
    weight[7, 9] = 100  # whose rounding error is larger than those of all other weights
    assert misfits(weight, weight.bfloat16().float()) == ()
