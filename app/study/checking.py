"""The checks of one layer, run in the background: prune by several methods, then read the layer's inputs in batches."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import rose
from app.jobs import GivenBack, Job, Run, holding
from app.study.study import Study, error_on
from rose.layer.checks import (
    CalibrationCurve,
    Check,
    CurvePoint,
    DirectError,
    ErrorMeasures,
    RealisedSparsity,
    check_overfitting,
    measure_error,
    prefix_lengths,
    realised_sparsity,
)
from rose.model.estimate import Cost, estimate_cost, sweeps_of
from rose.model.walk.walk import visit_inputs


@dataclass(frozen=True)
class LayerCheckRequest:
    """What is to be checked."""

    layer: str
    methods: tuple[str, ...]  # whose errors are measured three times
    curve_method: str  # is fitted to ever more of the calibration
    threshold: float


@dataclass(frozen=True)
class Findings:
    """What was found; the first three have an entry per method of the request."""

    measures: tuple[ErrorMeasures, ...]
    sparsity: tuple[RealisedSparsity, ...]
    held_out: tuple[float | None, ...]  # relative error; None without held-out tokens
    curve: tuple[CurvePoint, ...]  # error against the length of the calibration
    tokens: int  # of the calibration, that were measured on
    seconds: float

    def checks(self) -> list[tuple[str, Check]]:
        """Every check, with its method."""
        checks = []
        for measures, sparsity, held_out in zip(self.measures, self.sparsity, self.held_out, strict=True):
            every = measures.check, sparsity.check, check_overfitting(measures.relative_error, held_out)
            checks += [(measures.method, check) for check in every if check is not None]
        return checks


class LayerChecks(Run):
    """One run of the checks of one layer; its findings are None until it is done."""

    def __init__(self, study: Study, request: LayerCheckRequest) -> None:
        super().__init__()
        self.request = request
        self.findings: Findings | None = None
        self._study: Study | None = study  # until it is over: the runs that a session keeps must not hold models

    def _run(self, job: Job) -> None:
        request = self.request
        study, self._study = self._study, None
        assert study is not None  # a job runs once
        study.use()
        weight, statistics = study.weight(request.layer), study.statistics(request.layer)
        held_out = study.held_out_statistics(request.layer)
        results = {}
        for method in request.methods:
            self._say(f"Pruning {request.layer} by {rose.METHODS[method].label}")
            results[method] = study.prune(request.layer, method=method, threshold=request.threshold)
        direct = DirectError(weight, {method: result.weight for method, result in results.items()})
        lengths = prefix_lengths(study.setup.samples, study.setup.length)
        options = study.layer_options() | {"method": request.curve_method, "threshold": request.threshold}
        curve = CalibrationCurve(weight, held_out, lengths, **options)
        if (loaded := study.loaded) is None:
            raise GivenBack
        tokens = study.calibration.draw(study.setup, loaded)
        self._say(f"Running the model up to {request.layer}")

        def visit(inputs: Tensor) -> None:
            for sample in inputs.split(tokens.shape[1]):
                direct.update(sample)
                curve.update(sample)
                job.check()

        with holding(loaded.lock, job):
            visit_inputs(loaded.model, tokens, request.layer, visit, self._follow())
        pruned = [result.weight for result in results.values()]
        errors = [None if held_out is None else error_on(held_out, weight, each) for each in pruned]
        self.findings = Findings(
            tuple(measure_error(weight, statistics, results[name], direct.errors[name]) for name in results),
            tuple(realised_sparsity(result, study.setup.sparsity) for result in results.values()),
            tuple(errors),
            tuple(curve.points),
            direct.tokens,
            job.worked,
        )


def estimate(study: Study, request: LayerCheckRequest) -> Cost:
    assert study.loaded is not None
    setup = study.setup
    points = len(prefix_lengths(setup.samples, setup.length))
    sweeps = sweeps_of([*request.methods, *[request.curve_method] * points])
    sizes: dict[str, Any] = {"samples": setup.samples, "length": setup.length, "layers": [request.layer]}
    return estimate_cost(study.loaded.model, sweeps=sweeps, **sizes)
