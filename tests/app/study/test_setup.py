"""Setups are written to links, read from links, and checked."""

import hypothesis.strategies as some
import pytest
from hypothesis import given

import rose
from app.runs.pruning import PruneRequest
from app.study.setup import CHOSEN, Setup

SETUPS = some.builds(
    Setup,
    model=some.sampled_from(["smollm2-135m", "meta-llama/Llama-3.2-1B", "/models/my model", "a&b=ü"]),
    calibration=some.sampled_from(["packaged", "c4", "~/a b.txt"]),
    samples=some.integers(1, 4096),
    held_out=some.integers(0, 99),
    layers=some.sampled_from(["*", "model.layers.3.* *.o_proj"]),
    sparsity=some.sampled_from(["0.7", "2:4", "50%"]),
    damping=some.floats(0, 1),
)


@given(SETUPS)
def test_link_restores_the_setup(setup):
    assert Setup.read(setup.to_texts()) == (setup, [])


def test_link_holds_only_differences():
    assert Setup(samples=3, sparsity="2:4").to_texts() == {"samples": "3", "sparsity": "2:4"}
    assert Setup(samples=3, sparsity="2:4").to_texts(Setup(samples=3)) == {"sparsity": "2:4"}
    assert Setup.read({"section": "Losses", "samples": "3"}) == (Setup(samples=3), [])


@pytest.mark.parametrize(
    ("typed", "spelled"),
    [("0.70", "0.7"), (".7", "0.7"), (" 70% ", "0.7"), ("33.3%", "0.333"), ("2 : 4", "2:4"), ("1.0", "1"), ("7", "7")],
)
def test_spellings_of_a_sparsity_are_equal(typed, spelled):
    assert Setup.edited(sparsity=typed) == Setup.edited(sparsity=spelled)
    assert Setup.edited(sparsity=typed).sparsity == spelled
    assert PruneRequest(("rose",), (typed, spelled)).sparsities == (spelled,)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("samples", "many", "samples must be a whole number from 1 to 65536, not 'many'. 16 is used instead."),
        ("damping", "x", "damping must be a number of at least 0, not 'x'"),
        ("seed", "1.5", "seed must be a whole number from 0 to 9223372036854775807, not '1.5'"),
        ("stream", "maybe", "stream must be true or false, not 'maybe'. False is used instead."),
        ("block_size", "10", "2:4 needs a block size divisible by 4, not 10; try 8. 128 is used instead."),
    ],
)
def test_unusable_value_of_a_link_is_named(name, value, says):
    setup, (problem,) = Setup.read({"sparsity": "2:4", name: value, "held_out": "3"})
    assert says in problem
    assert setup == Setup(sparsity="2:4", held_out=3)  # one bad value leaves the others alone


UNUSABLE = {
    "sparsity": ["1.2", "5:4"], "samples": [0], "length": [1], "held_out": [-1], "block_size": [0],
    "damping": [-0.1, float("nan")], "dtype": ["int8"], "model": [" "], "calibration": [""],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in UNUSABLE.items() for value in values])
def test_unusable_values_are_refused(name, value):
    with pytest.raises(rose.RoseError):
        Setup().changed(**{name: value}).check()


def test_calibration_key_holds_only_its_dependencies():
    base = Setup()
    free = {"sparsity": "0.5", "block_size": 64, "damping": 0.1, "stream": True}
    assert base.changed(**free).calibration_key == base.calibration_key
    for name in set(CHOSEN) - set(free):
        value = {"dtype": "bfloat16"}.get(name, 7 if isinstance(getattr(base, name), int) else "other")
        other = base.changed(**{name: value})
        assert other.calibration_key != base.calibration_key, name
