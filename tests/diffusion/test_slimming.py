"""Heads and channels taken out of diffusion transformers."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

import rose
from rose import cli
from rose.diffusion import parts
from rose.diffusion.parts import RECORD, find_parts
from rose.diffusion.pruning import find_layers
from rose.diffusion.trajectory import Trajectories, denoiser_of
from rose.structured.problem import error
from tests.diffusion.pipelines import FAMILIES
from tests.model.families import stop_when
from tests.refusals import cancelled, refused


def slim(family: str, **options: Any) -> tuple[Any, list[Any], rose.RunReport]:
    pipeline, conditions = FAMILIES[family]()
    options = {"ratio": 0.5, "steps": 2, "packages": 2, "multiple": 1} | options
    return pipeline, conditions, rose.prune_diffusion_structured(pipeline, conditions, **options)


def drawn(pipeline: Any, conditions: list[Any]) -> Tensor:
    return rose.record_trajectory(pipeline, conditions, steps=2).pictures


@pytest.mark.parametrize("family", ["garments", "dit", "pixart"])
def test_a_transformer_shrinks_by_the_requested_ratio(family):
    pipeline, conditions, report = slim(family)
    dense, _ = FAMILIES[family]()
    before, after = (sum(p.numel() for p in denoiser_of(model).parameters()) for model in (dense, pipeline))
    assert report.summary["removed_fraction"] == pytest.approx(0.5, abs=0.02)
    assert (before, after) == (report.summary["parameters"], report.summary["kept_parameters"])
    gone = report.layers["parameters"].sum() - report.layers["kept_parameters"].sum()
    assert before - after == gone
    assert (report.layers["relative_error"] < report.layers["unrecovered_error"]).all()
    assert drawn(pipeline, conditions).isfinite().all()
    kinds = [part.kind for part in find_parts(denoiser_of(pipeline))[0]]
    assert kinds == (["heads", "heads", "channels"] if family == "pixart" else ["heads", "channels"])


@pytest.mark.parametrize("method", ["obs", "slimllm", "wanda", "magnitude"])
def test_errors_are_measured_on_inputs_of_the_dense_model(method):
    """In one package every part reads the dense model's inputs, so that errors follow from its statistics."""
    pipeline, conditions, report = slim("garments", method=method, packages=1, parts=["channels"])
    dense, _ = FAMILIES["garments"]()
    names = list(report.layers["layer"])
    statistics = rose.collect_diffusion_statistics(dense, conditions, steps=2, layers=names)
    for row in report.layers.itertuples():
        old, new = (denoiser_of(model).get_submodule(row.layer) for model in (dense, pipeline))
        # A dense channel stays where its row of the layer before is still there.
        before = row.layer.replace("net.2", "net.0.proj")
        rows_old, rows_new = (denoiser_of(model).get_submodule(before).weight for model in (dense, pipeline))
        rows_left = torch.cdist(rows_new, rows_old).argmin(1)
        full = torch.zeros_like(old.weight)
        full[:, rows_left] = new.weight
        seen = statistics[row.layer]
        second = seen.hessian / seen.total_weight
        missed = error(old.weight, full, new.bias - old.bias, second, seen.mean)
        scale = error(old.weight, torch.zeros_like(full), None, second, seen.mean)
        assert row.relative_error == pytest.approx(missed / scale, rel=1e-3, abs=1e-6)


def test_cutting_zeroed_units_changes_no_output(monkeypatch):
    """Removed units set to zero, and removed units gone, draw the same."""
    pipeline, conditions = FAMILIES["pixart"]()
    seen: list[Tensor] = []

    def cut(denoiser: Any, cuts: Any) -> None:
        seen.append(drawn(pipeline, conditions))
        reshape(denoiser, cuts)

    reshape = parts.reshape
    monkeypatch.setattr(parts, "reshape", cut)
    rose.prune_diffusion_structured(pipeline, conditions, ratio=0.5, steps=2, multiple=1)
    assert not torch.equal(seen[0], drawn(FAMILIES["pixart"]()[0], conditions))
    torch.testing.assert_close(drawn(pipeline, conditions), seen[0], atol=1e-5, rtol=1e-4)


def test_a_slimmed_pipeline_is_saved_and_read_and_made_smaller_again(tmp_path):
    pipeline, conditions, report = slim("garments", ratio=0.3)
    rose.save_diffusion(pipeline, tmp_path / "small", report=report)
    again = rose.load_diffusion(str(tmp_path / "small"))
    assert type(denoiser_of(again)) is type(denoiser_of(pipeline))
    assert torch.equal(drawn(again, conditions), drawn(pipeline, conditions))
    second = rose.prune_diffusion_structured(again, conditions, ratio=0.3, steps=2, multiple=1)
    assert second.summary["kept_parameters"] < report.summary["kept_parameters"]
    rose.save_diffusion(again, tmp_path / "smaller")
    last = rose.load_diffusion(str(tmp_path / "smaller"))
    assert torch.equal(drawn(last, conditions), drawn(again, conditions))
    assert len(find_layers(Trajectories(last, conditions))) == 12


def test_a_record_that_does_not_fit_is_refused(tmp_path):
    pipeline, _, _ = slim("garments", ratio=0.3)
    rose.save_diffusion(pipeline, tmp_path / "small")
    path = tmp_path / "small" / "transformer" / "config.json"
    config = json.loads(path.read_text())
    for bad in ({"transformer_blocks.0.attn1": 99}, {"nowhere": 1}, {"transformer_blocks.0.ff": "many"}):
        path.write_text(json.dumps(config | {RECORD: bad}))
        refused("do not fit the model", rose.load_diffusion, str(tmp_path / "small"))
    path.write_text(json.dumps(config | {RECORD: 3}))
    refused("no shapes", rose.load_diffusion, str(tmp_path / "small"))


def test_joint_attention_keeps_its_heads():
    refused(r"heads of SD3Transformer2DModel .* try channels alone", slim, "sd3")
    pipeline, conditions, report = slim("sd3", parts=["channels"])
    assert set(report.layers["part"]) == {"channels"}
    assert drawn(pipeline, conditions).isfinite().all()


def test_a_run_that_is_stopped_leaves_the_model_as_it_was():
    pipeline, conditions = FAMILIES["garments"]()
    before = {name: value.clone() for name, value in denoiser_of(pipeline).state_dict().items()}

    stop = stop_when(lambda progress: progress.layers_done == 3)
    cancelled(rose.prune_diffusion_structured, pipeline, conditions, ratio=0.5, steps=2, multiple=1, progress=stop)
    after = denoiser_of(pipeline).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_command_saves_a_slimmed_pipeline(tmp_path, capsys):
    options = ["--ratio", "0.3", "--samples", "10", "--steps", "2", "--output", str(tmp_path / "small")]
    assert cli.main(["diffuse", "slim", *options]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 795 585 parameters before, 1 499 505 after: 29.6 % of heads and channels taken out" in printed
    assert "nothing was held out, so errors are on the calibration tokens alone" in printed
    assert rose.load_diffusion(str(tmp_path / "small")).transformer.config[RECORD]["transformer_blocks.0.attn1"] == 3
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    assert report["results"]["kept_parameters"] == 1_499_505
    assert (report["recipe"]["run"], report["recipe"]["ratio"]) == ("diffuse slim", 0.3)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("flux", {}, "cannot be taken out"),
        ("garments", {"method": "depth"}, "drops whole blocks"),
        ("garments", {"allocation": "cost"}, "no option 'allocation' here"),
        ("garments", {"ratio": 0.001, "parts": "heads"}, "would remove nothing"),
        ("garments", {"ratio": 0.97, "parts": ["channels"]}, "cannot save that much"),
    ],
)
def test_bad_input_is_refused(family, options, message):
    refused(message, slim, family, **options)
