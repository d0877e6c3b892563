"""The checks of one layer match the engine, and waiting for the model is not counted."""

import pytest
import torch

from app.study.checking import Findings, LayerCheckRequest, LayerChecks
from app.study.study import Study
from rose.layer.error import direct_error
from rose.model.walk.walk import visit_inputs
from tests.app.tiny_study import COLUMNAR, finish, measured_study

METHODS = ("sparsegpt", "rose", "rose_global", "wanda")


@pytest.fixture(scope="module")
def findings(study: Study) -> Findings:
    return finish(LayerChecks(study, LayerCheckRequest(COLUMNAR, METHODS, "rose", 0.5))).findings


def test_direct_error_matches_the_inputs(study, findings):
    assert study.calibration.tokens is not None
    seen: list[torch.Tensor] = []
    visit_inputs(study.loaded.model, study.calibration.tokens, COLUMNAR, seen.append)
    inputs = torch.cat(seen)
    assert findings.tokens == len(inputs) == 8 * 32
    for method, measures in zip(METHODS, findings.measures, strict=True):
        pruned = study.prune(COLUMNAR, method=method).weight
        assert measures.direct == pytest.approx(direct_error(study.weight(COLUMNAR), pruned, inputs), rel=1e-5)
        assert measures.disagreement < 1e-4
    assert not study.loaded.lock.locked()


def test_last_point_of_the_curve_matches_the_study(study, findings):
    assert [point.tokens for point in findings.curve] == [32, 64, 128, 256]
    result = study.prune(COLUMNAR, method="rose")
    assert findings.curve[-1].calibration_error == pytest.approx(result.relative_error, rel=1e-3)
    assert findings.curve[-1].held_out_error == pytest.approx(findings.held_out[1], rel=1e-3)


def test_n_of_m_is_checked_in_its_groups_and_waiting_is_not_counted():
    run = LayerChecks(measured_study(sparsity="2:4"), LayerCheckRequest(COLUMNAR, ("rose", "wanda"), "rose", 0.5))
    run.job.waited = 1000.0  # as if for a survey that is collecting inputs
    findings = finish(run).findings
    assert [(check.unit, check.units, check.deviation) for check in findings.sparsity] == [("group", 1024, 0)] * 2
    assert findings.seconds == pytest.approx(run.job.seconds - run.job.waited, abs=100)
