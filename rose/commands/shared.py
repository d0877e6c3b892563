"""Shared steps of commands: load a model, draw tokens, estimate the cost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from torch import Tensor

import rose
from rose.commands import terminal
from rose.environment import versions
from rose.layer.methods import Settings
from rose.model.defaults import STORED
from rose.model.estimate.duration import estimate_cost, sweeps_of
from rose.model.estimate.memory import Memory, check_free, largest
from rose.model.load.models import parse_dtype, read_as, stored_dtype
from rose.model.load.tokens import check_text, check_windows, load_calibration, text_file
from rose.model.measure.perplexity import window_losses
from rose.model.network.network import Network
from rose.model.network.precision import name_of
from rose.model.run.rotation import check_samples, rotate_heads
from rose.model.workers import Workers
from rose.recipe.parts import PruneSettings
from rose.recipe.spec import Spec
from rose.verdicts import mean_ratio
from rose.wording import duration, listing, size

logger = logging.getLogger(__name__)

LONG = 10.0  # seconds; a longer run prints its estimated time
TEXTS = ("calibration", "evaluate", "text", "second")
HEADER = ("model", "dtype", "calibration", "seed", "bos", "rotate")  # of a report's header, see `origin`
Asked = TypeVar("Asked", bound=Spec)


@dataclass(frozen=True)
class Drawn:
    """Calibration and held-out windows, (samples, length), and cautions about them."""

    tokens: Tensor
    held_out: Tensor | None
    cautions: tuple[str, ...] = ()


def pick(spec: Spec, names: Iterable[str]) -> dict[str, Any]:
    """The fields of these names that the specification has."""
    return {name: getattr(spec, name) for name in names if name in spec.fields()}


def origin(spec: Spec) -> dict[str, Any]:
    """Model, text and versions, for the header of a file."""
    fields = spec.to_dict()
    return {name: fields[name] for name in HEADER if name in fields} | {"made_with": versions()}


def signed(report: rose.RunReport, spec: Spec, drawn: Drawn | None = None) -> rose.RunReport:
    """The report with its recipe and cautions on the text."""
    return report.signed(spec, **({} if drawn is None else {"text_cautions": list(drawn.cautions)}))


def load(spec: Any, console: Console, name: str | None = None, **options: Any) -> tuple[Any, Any]:
    """The model and its tokenizer, or another one by name. Texts are checked first, and then the length of windows."""
    check_texts(spec)
    options |= pick(spec, ("dtype", "trust_remote_code", "stream"))
    with console.status(escape(f"Loading {name or spec.model}")):
        model, tokenizer = rose.load_model(name or spec.model, **options)
    if "length" in spec.fields() and any(getattr(spec, text, None) is not None for text in TEXTS):
        Network(model).check_length(spec.length)
    return model, tokenizer


def settle_dtype(spec: Asked, name: str) -> Asked:
    """The specification with the number format of this model in place of "auto". Texts are checked first."""
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
    if "held_out" in fields and spec.calibration is not None and spec.run != "tune":  # `tune` makes do with two windows
        check_text(spec.calibration, spec.held_out, spec.length)
    if getattr(spec, "rotate", None):
        check_samples(spec.samples)
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
        sizes = drawn_sizes(spec) | {"dtype": parse_dtype(spec.dtype), "held_out": spec.held_out > 0}
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
        more = [
            name for name in ("rotate", "evaluate", "tune") if "tune" in spec.fields() and getattr(spec, name, None)
        ]
        without = f" without --{listing(more)}" if is_long and more else ""
        console.print(f"{doing}: about {' and '.join(costs)}, by estimate{without}", soft_wrap=True)


def pruning_seconds(spec: Any, model: Any, method: str, target: str) -> float:
    """How long pruning by this method will take, by estimate."""
    passes = 1 if spec.true_sequential and target != "dense" else 2
    sizes = drawn_sizes(spec) | pick(spec, ("layers", "compute"))
    sweeps = sweeps_of([method], spec.bits)
    return estimate_cost(model, sweeps=sweeps, passes=passes, target=target, **sizes).seconds


def drawn_sizes(spec: Any) -> dict[str, Any]:
    """Sizes of the calibration text for estimates, with held-out windows."""
    return {"samples": spec.samples + spec.held_out, "length": spec.length}


def calibration(spec: Any, tokenizer: Any, seed: int) -> Drawn:
    """Calibration and held-out windows; a caution says if they overlap."""
    cautions: list[str] = []

    def warn(caution: str) -> None:
        logger.warning(caution)
        cautions.append(caution)

    sizes = pick(spec, ("samples", "held_out", "length", "bos"))
    tokens, held_out = load_calibration(spec.calibration, tokenizer, seed=seed, warn=warn, **sizes)
    return Drawn(tokens, held_out, tuple(cautions))


def rotate(spec: Any, model: Any, tokens: Tensor, settings: Sequence[Settings], console: Console) -> None:
    """Rotates heads, if asked to, where that lowers the error of these settings; prints how many."""
    if not spec.rotate:
        return
    with terminal.bar(console, "Rotating heads") as follow:
        tried = rotate_heads(model, tokens, by=settings, progress=follow, **pick(spec, ("layers", "compute")))
    turned = tried[tried["rotated"]]
    text = f"Rotated the heads of {len(turned)} of {len(tried)} output projections; the model's output is unchanged."
    if (ratio := mean_ratio(turned["error"], turned["rotated_error"])) is not None:
        text += " On calibration samples kept back for this test, their error is on average "
        text += f"{ratio.value:.3f} times that before."
    console.print(text, soft_wrap=True)


def windows(spec: Any, text: str, tokenizer: Any) -> Tensor:
    """Evaluation windows of a text."""
    sizes = {"samples": spec.windows} | pick(spec, ("length", "bos"))
    return rose.load_tokens(text, tokenizer, seed=None, split="test", **sizes)


def losses(model: Any, windows: Tensor, console: Console, doing: str, compute: str = "float32") -> Tensor:
    """`window_losses`, with a progress bar."""
    with terminal.bar(console, doing, total=len(windows)) as follow:
        return window_losses(model, windows, compute=compute, progress=follow)


def run_options(spec: Spec) -> dict[str, Any]:
    """The keywords of `rose.prune_model` that the specification has."""
    return pick(spec, (name for name in PruneSettings.fields() if name != "layers"))
