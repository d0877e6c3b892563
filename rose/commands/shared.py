"""Shared steps of commands: load a model, draw tokens, estimate the cost, evaluate before and after, save."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn
from transformers import PreTrainedModel

import rose
from rose import output, verdicts
from rose.commands import terminal
from rose.environment import versions
from rose.model.defaults import HELD_OUT, STORED
from rose.model.estimate import Memory, check_free, estimate_evaluation, largest
from rose.model.load.models import parse_dtype, read_as, stored_dtype
from rose.model.load.tokens import check_text, check_windows, text_file
from rose.model.measure.perplexity import perplexity_of, plain_english, window_losses
from rose.model.network.network import Network
from rose.model.network.precision import name_of
from rose.model.workers import Workers
from rose.recipe.file import Recipe
from rose.recipe.steps import Prune, Slim, Tune
from rose.spec import Spec
from rose.wording import apart, count, duration, listing, number, size

logger = logging.getLogger(__name__)

LONG = 10.0  # seconds; a longer run prints its estimated time
TEXTS = ("calibration", "evaluate", "second")
HEADER = ("model", "dtype", "calibration", "seed", "bos")  # fields in a report's header, see `origin`
Asked = TypeVar("Asked", bound=Spec)
Saved = Prune | Slim | Tune


def origin(spec: Spec) -> dict[str, Any]:
    """Model, text and versions, for the header of a file."""
    fields = spec.to_dict()
    return {name: fields[name] for name in HEADER if name in fields} | {"made_with": versions()}


def load(spec: Any, console: Console, name: str | None = None, **options: Any) -> tuple[Any, Any]:
    """The model, or another by name, and its tokenizer. Texts are checked first, and then the length of windows."""
    check_texts(spec)
    options |= spec.pick(("dtype", "trust_remote_code", "stream"))
    with console.status(escape(f"Loading {name or spec.model}")):
        model, tokenizer = rose.load_model(name or spec.model, **options)
    if "length" in spec.fields() and any(getattr(spec, text, None) is not None for text in TEXTS):
        Network(model).check_length(spec.length)
    return model, tokenizer


def settle_dtype(spec: Asked, name: str) -> Asked:
    """The specification with this model's number format in place of "auto". Texts are checked first."""
    check_texts(spec)
    if spec.dtype != STORED:  # type: ignore[attr-defined]
        return spec
    return spec.changed(dtype=name_of(Workers.here().from_first(lambda: read_as(STORED, stored_dtype(name)))))


def check_texts(spec: Any) -> None:
    """Raises RoseError for a missing text or an impossible number of windows."""
    fields = spec.fields()
    for text in TEXTS:
        if getattr(spec, text, None) is not None:
            text_file(getattr(spec, text))
    if "held_out" in fields and spec.calibration is not None and spec.run != "tune":  # `tune` needs only two windows
        check_text(spec.calibration, spec.held_out, spec.length)
    if "windows" in fields:
        check_windows(spec.windows, spec.length)


def tell_cost(
    spec: Any,
    doing: str,
    seconds: float,
    estimates: Sequence[Callable[..., Memory]],
    model: Any,
    console: Console,
    *,
    besides: int = 0,
) -> None:
    """Prints the estimated time and memory of a long or streamed run.

    Args:
        seconds: estimated time in one process.
        estimates: functions that estimate memory; the largest result counts.
        besides: further bytes that the run needs.

    Raises:
        RoseError: that much memory is not free.
    """
    is_long = seconds >= LONG and Workers.here().count == 1
    costs = [duration(seconds)] if is_long else []
    if estimates:
        sizes = spec.extent | {"dtype": parse_dtype(spec.dtype), "held_out": spec.held_out > 0}
        sizes["on_disk"] = getattr(spec, "checkpoint", None) is not None
        most = largest(estimate(model, **sizes) for estimate in estimates)
        streams = getattr(spec, "stream", False)
        needed = besides + (most.peak if streams else most.besides_weights)
        where = "at the peak, besides Python and its libraries" if streams else "besides the model"
        if Network(model).device.type == "cpu" and Workers.here().count == 1:
            advice = "give fewer --samples, a shorter --length, or a larger machine"
            check_free(f"{doing} takes, {where}, about", needed, advice)
        if is_long or streams:
            costs.append(f"{size(needed)} {where}")
    if costs:
        uncounted = [name for name in ("evaluate", "tune") if "tune" in spec.fields() and getattr(spec, name, None)]
        without = f" without --{listing(uncounted)}" if is_long and uncounted else ""
        console.print(f"{doing}: about {' and '.join(costs)}, by estimate{without}", soft_wrap=True)


def calibration(spec: Any, tokenizer: Any, **changed: int) -> tuple[Tensor, Tensor | None, list[str]]:
    """Calibration and held-out windows, (samples, length), and cautions about them. `changed` overrides the seed."""
    cautions: list[str] = []

    def warn(caution: str) -> None:
        logger.warning(caution)
        cautions.append(caution)

    return *spec.draw(tokenizer, warn, **changed), cautions


def windows(spec: Any, text: str, tokenizer: Any) -> Tensor:
    """Evaluation windows of a text."""
    sizes = {"samples": spec.windows} | spec.pick(("length", "bos"))
    return rose.load_tokens(text, tokenizer, seed=None, split="test", **sizes)


def losses(model: Any, windows: Tensor, console: Console, doing: str, compute: str = "float32") -> Tensor:
    """`window_losses`, with a progress bar."""
    with terminal.bar(console, doing, total=len(windows)) as follow:
        return window_losses(model, windows, compute=compute, progress=follow)


def check_saving(spec: Saved) -> None:
    """Raises RoseError, before a model is loaded, unless its copy can be written."""
    output.check_output(spec.output)
    # The output folder must stay empty until the run is over.
    if spec.checkpoint:
        output.check_folder(spec.checkpoint)
    if spec.checkpoint and spec.checkpoint.resolve().is_relative_to(spec.output.resolve()):
        raise rose.RoseError("--checkpoint must not be inside --output, which is empty until the end; choose another.")


def check_room(spec: Saved, model: nn.Module, removed: float = 0.0) -> None:
    """Raises RoseError unless the copy fits on the disk; `removed`: the number of parameters that it will lack."""
    parameters = list(model.parameters())
    stored = sum(parameter.nbytes for parameter in parameters)
    output.check_room(spec.output, round(stored - removed * parameters[0].itemsize))


def evaluation_seconds(spec: Any, model: nn.Module) -> float:
    """Estimated time of an `Evaluation` on held-out windows and on plain English, before and after."""
    if spec.stream or spec.evaluate:
        return 0.0
    return 4 * estimate_evaluation(model, tokens=spec.held_out * spec.length)


class Evaluation:
    """Evaluates a model on the text of --evaluate, else on held-out windows, and on plain English, and saves it.

    `source` names the model to change. A model that is streamed is not evaluated.

    Attributes:
        before: entries for the report on the model before the change, see `measure`.
    """

    def __init__(
        self, spec: Saved, source: str, tokenizer: Any, console: Console, held_out: Tensor | None = None
    ) -> None:
        self.spec, self.tokenizer, self.console = spec, tokenizer, console
        self.windows = windows(spec, spec.evaluate, tokenizer) if spec.evaluate else held_out
        if getattr(spec, "stream", False):
            self.windows = None
        self.before: dict[str, Any] = {}
        stored = stored_dtype(source)
        if stored.itemsize < parse_dtype(spec.dtype).itemsize:
            keeps = f"--dtype {name_of(stored)} keeps {name_of(stored)}"
            console.print(f"The copy will be in {spec.dtype}, twice the bytes; {keeps}", soft_wrap=True)

    def measure(self, model: nn.Module, stage: str, of: str = "") -> dict[str, Any]:
        """Perplexity and losses by window for a report, and perplexity on plain English; None without windows. `of`
        replaces the stage on the bar."""
        windows, doing = self.windows, f"Perplexity {of or stage}"
        if windows is None:
            return {f"perplexity_{stage}": None, f"losses_{stage}": None}
        english = plain_english(model, self.tokenizer)
        english = english[: max(1, windows.numel() // english.shape[1])]  # no more tokens than of the first text
        by_window, second = Workers.here().from_first(
            lambda: tuple(losses(model, text, self.console, doing) for text in (windows, english))
        )
        known = {f"perplexity_{stage}": perplexity_of(by_window), f"losses_{stage}": by_window.tolist()}
        return known | {f"perplexity_second_{stage}": perplexity_of(second)}

    def save(self, model: PreTrainedModel, report: rose.RunReport) -> rose.RunReport:
        """Saves the model with its report, then evaluates it, and returns the report with the perplexity. The saved
        model stays if its evaluation fails."""
        folder, workers = self.spec.output, Workers.here()
        windows = 0 if self.windows is None else len(self.windows)
        report = report.with_summary(
            evaluated_on=self.spec.evaluate or (HELD_OUT if windows else None),
            windows=windows,
            **self.before,
            perplexity_after=None,
            losses_after=None,
        )
        with self.console.status(escape(f"Writing {folder}")):
            workers.from_first(lambda: self._write(model, report))
        if not windows:
            return report
        evaluated = report.with_summary(**self.measure(model, "after"))
        workers.from_first(lambda: evaluated.save(folder))
        return evaluated

    def _write(self, model: PreTrainedModel, report: rose.RunReport) -> None:
        rose.save_model(model, self.tokenizer, self.spec.output, report=report)
        Recipe(self.spec).write(self.spec.output)


def say_targets(report: rose.RunReport) -> None:
    """Prints the drift of the residual stream and the remarks."""
    if report.last_drift is not None:
        where = "after the last pruned decoder block, on held-out tokens"
        terminal.say(f"Drift of the residual stream {where}: {report.last_drift:.4f}")
    terminal.say(*report.remarks)


def say_perplexity(summary: Mapping[str, Any]) -> None:
    """Prints how perplexity moved from the dense model's, and for a tuned model from the pruned one's."""
    if summary["perplexity_after"] is None:
        return
    moved, *odd = verdicts.says_perplexity(summary)
    text = "held-out calibration text" if summary["evaluated_on"] == HELD_OUT else summary["evaluated_on"]
    sentence = f"Perplexity on {text}, {count(summary['windows'], 'window')}: {moved}"
    dense, copy = (summary.get(f"perplexity_second_{stage}") for stage in ("before", "after"))
    if dense is not None and copy is not None:
        before, after = apart(dense, copy)
        sentence += f"; on plain English from {before} to {after}, {number(copy / dense)} times"
    terminal.say(sentence)
    if (tuned := summary.get("tuned", {})).get("perplexity_before") is not None:
        terminal.say(f"Tuning took it {verdicts.says_perplexity(summary, tuned)[0]}")
    if odd:
        terminal.say(*odd, "Add --bos always, and every window begins with a BOS, if the tokenizer has one.")
