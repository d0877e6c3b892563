"""A method and an order from a plugin: on the command line, in comparisons, and in the app."""

import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pandas as pd
import pytest
import torch

import rose
from rose import cli, plugins
from rose.layer.order import ORDERS
from rose.layer.registry import METHODS, order_names
from tests.app.tiny_study import figures, measured_study, open_page
from tests.layer.helpers import make_layer
from tests.tiny import save_tiny_llama

PLUGIN = """
import rose

@rose.register_order("backwards")
def backwards(plan, ascending=False):
    return rose.sort_columns(plan, plan.column_loss.new_tensor(range(len(plan.column_loss))), ascending)

@rose.register("largest", "Largest first", "Removes what matters most, to see how bad it gets.")
def largest(weight, statistics, settings):
    return rose.prune_by_score(weight, statistics, settings, -weight.abs(), budget="row")
"""


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As they were, whatever a test loads; the registries are known by identity elsewhere."""
    monkeypatch.setattr(plugins, "_loaded", set())
    before = [dict(METHODS), dict(ORDERS)]
    yield
    for registry, old in zip((METHODS, ORDERS), before, strict=True):
        registry.clear()
        registry.update(old)  # type: ignore[arg-type]


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "my_plugin.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def named(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROSE_PLUGINS", str(plugin))
    return plugin


def test_a_file_adds_a_method_and_an_order(plugin: Path) -> None:
    rose.load_plugins(plugin)
    layer = make_layer(rows=8, columns=24)
    pruned = rose.prune_layer(layer.weight, layer.hessian, method="largest", sparsity=0.5, block_size=8)
    magnitudes = layer.weight.abs()
    assert (pruned.mask.sum(1) == 12).all()
    for row, removed in zip(magnitudes, pruned.mask, strict=True):
        assert row[removed].min() >= row[~removed].max()
    plan = rose.plan_order(layer.weight, layer.hessian, block_size=8)
    assert rose.make_order(plan, "backwards").permutation.tolist() == list(range(24))[::-1]
    assert rose.make_order(plan, "backwards_ascending").permutation.tolist() == list(range(24))
    assert {"backwards", "backwards_ascending"} <= set(order_names())


@pytest.mark.parametrize("imported_before", [False, True])
def test_an_installed_package_is_found_by_its_entry_point(imported_before, plugin, monkeypatch):
    monkeypatch.syspath_prepend(plugin.parent)
    entry = EntryPoint("mine", plugin.stem, plugins.GROUP)
    monkeypatch.setattr(plugins, "_installed", lambda: EntryPoints([entry]))
    if imported_before:
        importlib.import_module(plugin.stem)
    rose.load_plugins()
    assert "largest" in rose.METHODS
    del sys.modules[plugin.stem]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (PLUGIN + "\n1 / 0", "my_plugin.py failed: ZeroDivisionError: division by zero."),
        (PLUGIN + "\ndef broken(", "my_plugin.py failed: SyntaxError"),
        (PLUGIN.replace('"largest"', '"wanda"'), "takes the name 'wanda', which is in use; choose another."),
        (PLUGIN.replace('"backwards"', '"two_level"'), "takes the name 'two_level', which is in use"),
        (PLUGIN.replace('"largest"', '"my method"', 1), "A method cannot be named 'my method'"),
        (PLUGIN.replace('"backwards"', '"x_ascending"'), "An order cannot be named 'x_ascending'"),
        (PLUGIN.replace('"backwards"', '"random"'), "An order cannot be named 'random'"),
        ("import rose", "registers no method and no order"),
    ],
)
def test_a_failing_plugin_is_reported_and_registers_nothing(plugin: Path, text: str, complaint: str) -> None:
    plugin.write_text(text)
    before = [dict(METHODS), dict(ORDERS)]
    with pytest.raises(rose.RoseError) as problem:
        rose.load_plugins(plugin)
    assert complaint in str(problem.value)
    assert [dict(METHODS), dict(ORDERS)] == before
    plugin.write_text(PLUGIN)  # mended, it loads in the same process
    rose.load_plugins(plugin)
    assert "largest" in rose.METHODS


def test_an_order_from_a_plugin_is_checked_each_time() -> None:
    layer = make_layer(rows=8, columns=24)
    plan = rose.plan_order(layer.weight, layer.hessian, block_size=8, sparsity="2:4")
    rose.register_order("torn")(lambda plan, ascending: torch.arange(24).view(8, 3).T.flatten())
    rose.register_order("short")(lambda plan, ascending: torch.arange(23))
    rose.register_order("nothing")(lambda plan, ascending: None)  # type: ignore[arg-type, return-value]
    rose.register_order("broken")(lambda plan, ascending: {}["x"])
    each = "must name each of the 24 columns exactly once"
    refusals = {"torn": "must keep each group of 4", "short": each, "nothing": each, "broken": "failed: KeyError: 'x'"}
    for name, message in refusals.items():
        with pytest.raises(rose.RoseError, match=f"The order {name} {message}"):
            rose.make_order(plan, name)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_llama(tmp_path_factory.mktemp("tiny") / "model", blocks=1))


def test_the_command_line_offers_the_plugin(named: Path, checkpoint: str, tmp_path: Path, capsys) -> None:
    assert cli.main(["models"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("smollm2-135m", "largest", "backwards", *METHODS))
    common = ["--model", checkpoint, "--samples", "4", "--length", "48", "--held-out", "2", "--block-size", "16"]
    analyze = [*common, "--methods", "largest,wanda", "--output", str(tmp_path / "analysis")]
    assert cli.main(["analyze", *analyze]) == 0
    table = pd.read_csv(tmp_path / "analysis" / "layers.csv")
    errors = table.pivot(index="layer", columns="method", values="relative_error")
    assert (errors["largest"] > errors["wanda"]).all()
    prune = [*common, "--method", "rose", "--order", "backwards", "--output", str(tmp_path / "pruned")]
    assert cli.main(["prune", *prune]) == 0
    assert set(pd.read_csv(tmp_path / "pruned" / "layers.csv")["order"]) == {"backwards"}
    with pytest.raises(SystemExit):
        cli.main(["prune", "--help"])
    assert "largest" in capsys.readouterr().out


def test_the_command_line_reports_a_broken_plugin_in_one_line(named: Path, capsys) -> None:
    named.write_text("1 / 0")
    assert cli.main(["models"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"rose: The plugin {named} failed: ZeroDivisionError: division by zero."


def test_the_app_offers_and_draws_the_plugin(named: Path) -> None:
    study = measured_study()
    for page, key in (("prune", "prune_methods"), ("explore", "check_methods")):
        app = open_page(f"views/{page}.py", study, section="Errors of the methods")
        assert "Largest first" in app.multiselect(key=key).options, page
    app = open_page("views/order_lab.py", study, lab_section="Inside a sweep")
    assert "Backwards" in app.selectbox(key="lab_sweep_order").options
    app.selectbox(key="lab_sweep_order").set_value("backwards").run()
    assert any("Backwards" in drawn for drawn in figures(app))


def test_the_app_reports_a_broken_plugin_and_goes_on(named: Path) -> None:
    named.write_text("1 / 0")
    app = open_page("views/explore.py")
    (problem,) = app.error
    assert "ZeroDivisionError" in problem.value
    assert figures(app)
