"""A checkpoint checked against its dense model in the background, see `rose.model.check`; no Streamlit here."""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

import rose
from app.figures.trust import MaskExcerpt
from app.jobs import Job, Run, holding
from app.study.setup import TOKENS, Setup
from app.study.study import LoadedModel
from rose.files import expand
from rose.model.check.check import check_in_stages
from rose.model.check.findings import findings
from rose.model.check.result import CheckpointCheck
from rose.model.defaults import DECIDING, HELD_OUT
from rose.model.estimate import Cost, estimate_cost, estimate_evaluation, sweeps_of
from rose.model.load.tokens import check_text
from rose.model.network.layers import keep_low_rank
from rose.model.network.network import Network
from rose.recipe.steps import CheckCopies
from rose.report import NUMBERS, report_beside
from rose.verdicts import says_perplexity

PICTURED = 12  # layers that break a pattern and have a picture of their mask
AROUND = (24, 64)  # rows and columns of that picture
NEXT = ("Measuring perplexity", "Measuring errors layer by layer")  # after each stage
UNKNOWN = "checkpoint"  # in place of a method that is not known
COLUMNS = {"error": "target_error", "held_out_error": "held_out_target_error", "dense_input_error": "relative_error"}


def request_of(setup: Setup, dense: str, pruned: str, *, with_tokens: bool, stream: bool) -> CheckCopies:
    """Leaves out settings that do not change the result, so that equal checks compare equal.

    Raises RoseError for impossible values.
    """
    tokens = setup.pick(TOKENS) if with_tokens else {}
    models = {"dense": dense or setup.model, "pruned": pruned, "dtype": setup.dtype, "stream": stream}
    return CheckCopies.of(**models, **tokens)


def setup_of(request: CheckCopies) -> Setup:
    """The dense model and the tokens, if it has any."""
    setup = Setup.of(request.changed(calibration=Setup().calibration)).changed(model=request.dense)
    return setup if request.calibration else setup.changed(**Setup().pick(TOKENS))


def name_of(request: CheckCopies) -> str:
    """The checkpoint's name, for people."""
    return expand(request.pruned[0].rstrip("/")).name[:60]


def check(request: CheckCopies, skeletons: Sequence[nn.Module] = ()) -> None:
    """Raises RoseError for an impossible request; `skeletons`: of the models, where available."""
    if request.pruned[0] == request.dense:
        raise rose.RoseError("That is the dense model itself; name a checkpoint that was made from it.")
    if request.calibration is not None:
        check_text(request.calibration, request.held_out, request.length)
        for skeleton in skeletons:
            Network(skeleton).check_length(request.length)


def estimate(request: CheckCopies, skeleton: nn.Module) -> Cost:
    """Of a check with tokens; `skeleton`: of the dense model."""
    sizes = request.extent
    sweeps = 1 + sweeps_of(request.methods)  # and a refit
    cost = estimate_cost(skeleton, **sizes, passes=2, sweeps=sweeps, target="dense")
    windows = (request.held_out + DECIDING) * request.length
    return replace(cost, seconds=cost.seconds + 2 * estimate_evaluation(skeleton, tokens=windows))


class CheckpointRun(Run):
    """One check, which grows in stages, with `excerpts` of masks that break a pattern, by layer."""

    def __init__(self, request: CheckCopies, load: Callable[[], LoadedModel]) -> None:
        super().__init__()
        self.request, self.setup, self._load = request, setup_of(request), load
        self.check: CheckpointCheck | None = None
        self.cautions: list[str] = []  # on the calibration text
        self.excerpts: dict[str, MaskExcerpt] = {}
        self.recorded = ""  # what the report beside the checkpoint says of perplexity, on other windows than this check
        self.seconds = 0.0
        self.stages = 0  # of the check that are there

    @property
    def drawn(self) -> dict[str, Any]:
        """Its tokens, as reports name them; once it is done."""
        assert self.check is not None
        return self.setup.drawn | {"bos_token": self.check.summary["bos_token"]}

    def _run(self, job: Job) -> None:
        setup = self.setup
        self._say("Loading the dense model")
        loaded = self._load()
        tokens = held_out = windows = None
        if self.request.calibration is not None:
            tokens, held_out = setup.draw(loaded.tokenizer, self.cautions.append)
            windows = self.request.windows(loaded.tokenizer, tokens, held_out)
        self._say("Reading the checkpoint")
        options: Any = {"dtype": setup.dtype, "stream": setup.stream, "tokenizer": setup.model}
        pruned, _ = rose.load_model(self.request.pruned[0], finite=False, **options)
        keep_low_rank(pruned, expand(self.request.pruned[0]))
        self.recorded = _recorded(expand(self.request.pruned[0]))
        self._say("Comparing weights")
        with holding(loaded.lock, job):
            chosen = {"held_out": held_out, "windows": windows, **self.request.pick(("methods", "compute"))}
            for check in check_in_stages(loaded.model, pruned, tokens, progress=self._follow(), **chosen):
                self.excerpts = _excerpts(check, Network(pruned))
                self.check, self.stages = check, self.stages + 1
                job.message = NEXT[min(self.stages, len(NEXT)) - 1]
        self.fraction, self.seconds = 1.0, job.worked


def _excerpts(check: CheckpointCheck, network: Network) -> dict[str, MaskExcerpt]:
    """Parts of the masks of layers that break their pattern, or the pattern of most layers."""
    layers = {layer.name: layer for layer in network.layers}
    excerpts: dict[str, MaskExcerpt] = {}
    usual = str(check.summary["pattern"])
    for row in check.layers[check.layers["is_wrong"]].itertuples():
        pattern = re.fullmatch(r"(\d+):(\d+)", str(row.pattern) if row.broken_groups else usual)
        if pattern and len(excerpts) < PICTURED:
            mask = network.residence.read_weight(layers[row.layer]) == 0
            excerpt = excerpt_of(mask, int(pattern[1]), int(pattern[2]))
            if excerpt is not None:
                excerpts[row.layer] = excerpt
    return excerpts


def excerpt_of(mask: Tensor, keep: int, of: int) -> MaskExcerpt | None:
    """The part of a mask, (out, in), around the first group with more than `keep` of `of` weights; None without one."""
    if mask.shape[1] % of:
        return None
    broken = (~mask).unflatten(1, (-1, of)).sum(2) > keep  # (out, groups)
    if not broken.any():
        return None
    row, group = (int(place) for place in broken.nonzero()[0])
    first_row = max(0, min(row - AROUND[0] // 2, mask.shape[0] - AROUND[0]))
    across = AROUND[1] // of
    first_group = max(0, min(group - across // 2, broken.shape[1] - across))
    rows, groups = slice(first_row, first_row + AROUND[0]), slice(first_group, first_group + across)
    columns = slice(first_group * of, (first_group + across) * of)
    inside = [(first_row + int(i), (first_group + int(j)) * of) for i, j in broken[rows, groups].nonzero()]
    part = mask[rows, columns].cpu().numpy()
    return MaskExcerpt(part, first_row, columns.start, keep, of, inside)


def differs(check: CheckpointCheck) -> bool:
    """Whether verdicts differ, so that a map of them shows something."""
    return len(check.layers[["verdict", "is_wrong"]].drop_duplicates()) > 1


def facts(run: CheckpointRun) -> list[str]:
    """Sentences on the whole besides headline and verdicts, the cautions first."""
    assert run.check is not None
    drawn = None if run.request.calibration is None else run.drawn
    return run.cautions + findings(run.check, expand(run.request.pruned[0]), drawn)


def _recorded(folder: Path) -> str:
    """The perplexity in our report beside a checkpoint; "" without one."""
    with suppress(rose.RoseError):  # of a damaged report; `facts` says so
        report = report_beside(folder)
        summary = {} if report is None else report.summary
        if {"perplexity_before", "perplexity_after", "windows"} <= summary.keys():
            size = f"{summary['windows']} × {summary.get('window_length', summary.get('length'))}"
            return f"When it was made, on {size} other tokens: perplexity {says_perplexity(summary)[0]}."
    return ""


def record_of(run: CheckpointRun) -> rose.RunReport:
    """The record of a check.

    Errors compare with the dense model's output, as with target dense. Errors on the dense model's inputs, as in a
    study, are included where they were measured. The drift is that after each decoder block.
    """
    check, setup = run.check, run.setup
    assert check is not None
    table = check.layers.rename(columns=COLUMNS).reindex(columns=["layer", "block_index", "projection", *NUMBERS])
    table["zeros_before"] /= table["rows"] * table["columns"]  # which it counts
    summary = check.summary
    results: dict[str, Any] = {
        "method": (summary["method"] or {"name": UNKNOWN})["name"],
        "model": setup.model,
        "dtype": setup.dtype,
        "checkpoint": run.request.pruned[0],
        "sparsity": summary["pattern"] if ":" in summary["pattern"] else round(summary["sparsity"], 3),
        "layers": summary["layers"],
        "weights": summary["weights"],
        "removed_fraction": summary["sparsity"],
        "seconds": run.seconds,
        "remarks": run.cautions + check.cautions,
    }
    if run.request.calibration is not None:
        results |= run.drawn | {"windows": setup.held_out or setup.samples, "window_length": setup.length}
        text = HELD_OUT if setup.held_out else setup.calibration
        results |= {"evaluated_on": text, "environment": summary["environment"]}
        results |= {name: value for name, value in summary.items() if name.startswith(("perplexity_", "losses_"))}
        results["drift"] = [entry | {"passed_on": np.nan, "arisen": np.nan} for entry in summary["drift"]]
    report = rose.RunReport(table, results, called=f"{name_of(run.request)} (checked)", origin=check)
    return report.signed(run.request)
