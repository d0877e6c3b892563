"""The page docs/one-layer.md matches the engine, and a notebook shows the same loop."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import rose
from rose.layer.sweep import prune_block
from tests.layer.helpers import make_layer

PAGE = (Path(__file__).parents[2] / "docs/one-layer.md").read_text()
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(OUTPUT,) = re.findall(r"^It prints\n\n```\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "one_layer"}
    exec(CODE, names)
    return names


@pytest.mark.parametrize("method", ["sparsegpt", "rose"])
@pytest.mark.parametrize(
    ("columns", "dead", "loud", "sparsity", "is_columnar"),
    [
        (32, (), 0, 0.5, False),
        (32, (), 8, 0.7, True),
        (36, (), 5, 0.7, True),  # the last of the blocks of 8 has 4 columns
        (36, (3, 9, 30), 5, 0.6, True),
        (34, (), 0, 0.7, False),  # summed, and not per column, the loss of the last two columns would look low
        (36, (), 0, 0.0, False),
        (20, (), 0, 1.0, False),
    ],
)
def test_the_page_matches_the_engine(page, method, columns, dead, loud, sparsity, is_columnar):
    layer = make_layer(rows=24, columns=columns, tokens=200, dead=dead, loud=loud)
    W, H = layer.weight, layer.hessian
    result = rose.prune_layer(W, H, method=method, sparsity=sparsity, block_size=8, threshold=0.6)
    blocks = torch.arange(columns).split(8)
    if method == "rose":
        assert result.plan.is_columnar == is_columnar
        blocks = page["rose_blocks"](W, H, sparsity, 8, 0.6)
    assert torch.equal(torch.cat(list(blocks)), result.order.permutation)
    assert tuple(map(len, blocks)) == result.order.widths
    pruned = page["sweep"](W, H, blocks, sparsity)
    assert torch.equal(pruned == 0, result.weight == 0)
    torch.testing.assert_close(pruned, result.weight, rtol=1e-4, atol=1e-5)


def test_the_page_prints_the_output_it_shows(capsys):
    exec(CODE, {"__name__": "__main__"})
    assert capsys.readouterr().out == OUTPUT
    lines = CODE.splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("shown", ["docs/one-layer.md", "notebooks/pruning_order.ipynb"])
def test_documents_show_the_loop_of_the_engine(shown):
    text = (Path(__file__).parents[2] / shown).read_text()
    steps = [
        line.partition("  #")[0].strip() for line in inspect.getsource(prune_block).splitlines() if "[j, j" in line
    ]
    assert len(steps) == 2
    assert all(step in text for step in steps)
