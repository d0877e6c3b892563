"""A small columnar layer with a narrow last block, pruned in two orders, and a made-up model of twelve layers."""

from collections.abc import Callable, Iterator
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

import rose
from app.figures.explore import Columns
from app.figures.palette import INKS
from app.figures.style import Drawing
from rose.layer.profile import profile
from rose.layer.split import split_error
from tests.app.figures.test_contract import figure_functions, hold

ROWS, COLUMNS, BLOCK = 24, 40, 16  # blocks of 16, 16 and 8 columns


@pytest.fixture(scope="package", autouse=True)
def contract() -> Iterator[None]:
    """Each call of a figure's function draws it in both themes, holds both to the contract, and changes no table."""

    def held(draw: Callable[..., Drawing]) -> Callable[..., Drawing]:
        @wraps(draw)
        def in_both_themes(*args: Any, **options: Any) -> Drawing:
            tables = {place: table.copy() for place, table in enumerate(args) if isinstance(table, pd.DataFrame)}
            drawings = {theme: draw(*args, **options | {"theme": theme}) for theme in INKS}
            for theme, drawing in drawings.items():
                hold(drawing, theme)
            for place, table in tables.items():
                pd.testing.assert_frame_equal(args[place], table)
            return drawings[options.get("theme", "light")]

        return in_both_themes

    with pytest.MonkeyPatch.context() as patch:
        for module, name in list(figure_functions()):
            patch.setattr(module, name, held(getattr(module, name)))
        yield


@pytest.fixture(scope="package")
def lab() -> SimpleNamespace:
    """weight, statistics, plan, and results by order; the last, narrow block is the strong one."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    weight[:, 32:] *= 4
    mixing = torch.eye(COLUMNS) + 0.3 * torch.randn(COLUMNS, COLUMNS, generator=generator)
    statistics = rose.InputStatistics(COLUMNS)
    statistics.update(torch.randn(200, COLUMNS, generator=generator) @ mixing)
    prune = partial(
        rose.prune_layer, weight, statistics, method="sparsegpt", sparsity=0.5, block_size=BLOCK, trace=True
    )
    results = {order: prune(order=order) for order in ("natural", "two_level", "hessian")}
    plan = rose.plan_order(weight, statistics, sparsity=0.5, block_size=BLOCK)
    energy = float(((weight @ statistics.hessian) * weight).sum())
    masks = {order: split_error(weight, statistics, result).mask for order, result in results.items()}
    columns = Columns(profile(weight, plan, (8, 16), has_heads=True), BLOCK, 8, 0.5, plan.relative_range)
    made = {"plan": plan, "results": results, "masks": masks, "energy": energy, "columns": columns}
    return SimpleNamespace(weight=weight, statistics=statistics, **made)


@pytest.fixture(scope="package")
def layers(records: pd.DataFrame) -> pd.DataFrame:
    """One row per layer, as `Study.overview` has it."""
    first = records.drop_duplicates("layer").drop(columns=["method", "relative_error", "held_out_error"])
    wide = records.pivot(index="layer", columns="method", values="relative_error").add_prefix("error_")
    table = first.merge(wide, on="layer")
    return table.assign(gain=1 - table["error_rose"] / table["error_sparsegpt"])


@pytest.fixture(scope="package")
def records() -> pd.DataFrame:
    """Two methods on four decoder blocks of three layers; o_proj of blocks 1 and 3 are columnar."""
    rows = []
    for block in range(4):
        for place, projection in enumerate(("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")):
            spread = 0.6 + 0.1 * block if projection == "self_attn.o_proj" and block % 2 else 0.02 * (1 + block + place)
            for method, error in (("sparsegpt", 0.10 + 0.01 * block), ("rose", 0.09 + 0.01 * block)):
                made = error if spread > 0.5 else 0.10 + 0.01 * block
                rows.append((block, place, projection, method, spread, made, error * 1.5))
    columns = ["block_index", "place", "projection", "method", "relative_range", "relative_error", "held_out_error"]
    table = pd.DataFrame(rows, columns=columns)
    same = {"rows": 10, "columns": 100, "sparsity": 0.7, "dead_columns": 0, "seconds": 0.5}
    first, last = (table["block_index"] == 2) & (table["place"] == 0), table.pop("place") == 2
    return table.assign(
        layer="model.layers." + table["block_index"].astype(str) + "." + table["projection"],
        is_columnar=table["relative_range"] > 0.5,
        held_out_error=table["held_out_error"].mask(last),
        damping=first.map({True: 0.1, False: 0.01}),
        is_damping_raised=first,
        condition=10.0 ** (table["block_index"] + 1),
        **same,
    )
