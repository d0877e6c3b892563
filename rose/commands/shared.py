"""What several commands do: load a model, draw calibration tokens and windows, tell what a run costs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
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
TEXTS = ("calibration", "evaluate", "text")
HEADER = ("model", "dtype", "calibration", "seed", "bos", "rotate")  # of a report's header, see `origin`
Asked = TypeVar("Asked", bound=Spec)


@dataclass(frozen=True)
class Drawn:
    """Calibration and held-out windows, (samples, length), and how far they can be trusted, a sentence each."""

    tokens: Tensor
    held_out: Tensor | None
    cautions: tuple[str, ...] = ()


def pick(spec: Spec, names: Iterable[str]) -> dict[str, Any]:
    """The fields of these names that the specification has."""
    return {name: getattr(spec, name) for name in names if name in spec.fields()}


def origin(spec: Spec) -> dict[str, Any]:
    """What a file says of where it comes from: model, text, and with which programs it was made."""
    asked = spec.to_dict()
    return {name: asked[name] for name in HEADER if name in asked} | {"made_with": versions()}


def signed(report: rose.RunReport, spec: Spec, drawn: Drawn | None = None) -> rose.RunReport:
    """The report with all that was asked, and cautions on the text."""
    return report.signed(spec, **({} if drawn is None else {"text_cautions": list(drawn.cautions)}))


def load(spec: Any, console: Console, name: str | None = None, **more: Any) -> tuple[Any, Any]:
    """The model and its tokenizer; of another name, one that is read as this one. Texts and their windows are checked
    first, and at once whether the model takes windows so long."""
    check_texts(spec)
    more |= pick(spec, ("dtype", "trust_remote_code", "stream"))
    with console.status(escape(f"Loading {name or spec.model}")):
        model, tokenizer = rose.load_model(name or spec.model, **more)
    if "length" in spec.fields() and any(getattr(spec, text, None) is not None for text in TEXTS):
        Network(model).check_length(spec.length)
    return model, tokenizer


def settle_dtype(spec: Asked, name: str) -> Asked:
    """The specification with the number format that this model is read in where dtype leaves it open, found by the
    first process for all. Texts are checked first, as they need no model."""
    check_texts(spec)
    if spec.dtype != STORED:  # type: ignore[attr-defined]
        return spec
    return spec.changed(dtype=name_of(Workers.here().from_first(lambda: read_as(STORED, stored_dtype(name)))))


def check_texts(spec: Any) -> None:
    """Raises RoseError for a text that there is not, and for numbers of windows that cannot be."""
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
    what: str,
    seconds: float,
    estimates: Sequence[Callable[..., Memory]],
    model: Any,
    console: Console,
    *,
    besides: int = 0,
) -> None:
    """Prints the estimated time and memory of a long or streamed run, and the parts left out.

    Args:
        seconds: estimated time in one process.
        estimates: functions that estimate memory; the largest result counts.
        besides: further bytes that the run needs.

    Raises:
        RoseError: that much memory is not free.
    """
    left_out = _not_counted(spec)
    is_long = seconds >= (LONG / 10 if left_out else LONG) and Workers.here().count == 1
    taken = [duration(seconds)] if is_long else []
    if estimates:
        given = drawn_sizes(spec) | {"dtype": parse_dtype(spec.dtype), "held_out": spec.held_out > 0}
        given["on_disk"] = getattr(spec, "checkpoint", None) is not None
        most = largest(estimate(model, **given) for estimate in estimates)
        streams = getattr(spec, "stream", False)
        needed = besides + (most.peak if streams else most.besides_weights)
        where = "at the peak, besides Python and its libraries" if streams else "besides the model"
        if Network(model).device.type == "cpu" and Workers.here().count == 1:
            advice = "give fewer --samples, a shorter --length, or a larger machine"
            check_free(f"{what} takes, {where}, about", needed, advice)
        if is_long or streams:
            taken.append(f"{size(needed)} {where}")
    if taken:
        but = _but(spec, left_out) if is_long else ""
        console.print(f"{what}: about {' and '.join(taken)}, by estimate{but}", soft_wrap=True)


def _not_counted(spec: Any) -> list[str]:
    """What a run does that its estimate of time leaves out."""
    given = {name: getattr(spec, name) for name in spec.fields()}
    does = {
        "finding outliers": given.get("allocation") == "owl",
        "measuring sensitivities": str(given.get("allocation")).startswith("sensitivity"),
        "rotating heads": given.get("rotate"),
        "measuring perplexity": "tune" in given and given.get("evaluate"),  # `damage` and `compare` count it
        "tuning": given.get("tune"),
    }
    return [what for what, is_done in does.items() if is_done]


def _but(spec: Any, left_out: Sequence[str]) -> str:
    """What an estimate leaves out, and whether an interrupted run has done some of it."""
    kept: Path | None = spec.output if spec.run in ("compare", "damage") else getattr(spec, "checkpoint", None)
    begun = kept is not None and any(path for name in ("rows.csv", "block-*") for path in kept.glob(name))
    counted = f" without {listing(left_out, len(left_out))}" if left_out else ""
    return counted + (f"; less, as {kept} holds some of it already" if begun else "")


def pruning_seconds(spec: Any, model: Any, method: str, target: str) -> float:
    """How long pruning by this method will take, by estimate."""
    passes = 1 if spec.true_sequential and target != "dense" else 2
    sizes = drawn_sizes(spec) | pick(spec, ("layers", "compute"))
    sweeps = sweeps_of([method], spec.bits)
    return estimate_cost(model, sweeps=sweeps, passes=passes, target=target, **sizes).seconds


def drawn_sizes(spec: Any) -> dict[str, Any]:
    """How much text will be read for calibration, as estimates take it: held-out windows, too."""
    return {"samples": spec.samples + spec.held_out, "length": spec.length}


def calibration(spec: Any, tokenizer: Any, seed: int) -> Drawn:
    """Calibration and held-out windows, which do not overlap where the text is long enough; else a caution says so."""
    cautions: list[str] = []

    def warn(caution: str) -> None:
        logger.warning(caution)
        cautions.append(caution)

    sizes = pick(spec, ("samples", "held_out", "length", "bos"))
    tokens, held_out = load_calibration(spec.calibration, tokenizer, seed=seed, warn=warn, **sizes)
    return Drawn(tokens, held_out, tuple(cautions))


def rotate(spec: Any, model: Any, tokens: Tensor, settings: Sequence[Settings], console: Console) -> None:
    """Rotates heads where that is asked for and lowers the errors of these settings' methods; says where it did."""
    if not spec.rotate:
        return
    with terminal.bar(console, "Rotating heads") as follow:
        tried = rotate_heads(model, tokens, by=settings, progress=follow, **pick(spec, ("layers", "compute")))
    turned = tried[tried["rotated"]]
    says = f"Rotated the heads of {len(turned)} of {len(tried)} output projections; the model's output is unchanged."
    if (ratio := mean_ratio(turned["error"], turned["rotated_error"])) is not None:
        says += " On calibration samples kept back for this test, their error is on average "
        says += f"{ratio.value:.3f} times that before."
    console.print(says, soft_wrap=True)


def windows(spec: Any, text: str, tokenizer: Any) -> Tensor:
    """The windows of a text to evaluate on."""
    sizes = {"samples": spec.windows} | pick(spec, ("length", "bos"))
    return rose.load_tokens(text, tokenizer, seed=None, split="test", **sizes)


def losses(model: Any, windows: Tensor, console: Console, what: str, compute: str = "float32") -> Tensor:
    """`window_losses`, with a progress bar."""
    with terminal.bar(console, what, total=len(windows)) as follow:
        return window_losses(model, windows, compute=compute, progress=follow)


def run_options(spec: Spec) -> dict[str, Any]:
    """Keywords of `rose.prune_model`: those of them that the specification has."""
    return pick(spec, (name for name in PruneSettings.fields() if name != "layers"))
