"""Tuning, measured: python -m tests.benchmarks.tuning table | choose | moved ...

table --text TEXT --judge TEXT --output FOLDER
    perplexity before and after tuning by each draw, way of pruning, and number of windows (0: pruned alone), on the
    judged text and on another one. A way is METHOD@SPARSITY, or METHOD@slim-RATIO for models made smaller; METHOD may
    name an order, a budget and a target, as for `rose compare`.
choose --text TEXT --output FOLDER
    perplexity and divergence from the dense model before and after each rule, on windows of the same text that were not
    trained on, and on another one. A rule is NAME=VALUE,... of constants in rose.model.tune.
moved --text TEXT --output FOLDER
    how far each layer moves, its first and its last quarter of columns apart; and by decoder block, drift on held-out
    windows and what the loss gains by restoring the block, before and after.

Rows are kept as they come, and the same command goes on; pruned models are kept in FOLDER/pruned. Times are of the
processor, all threads together, which other programs disturb little. `--layers` prunes and tunes a part, `--minutes`
tunes until then.
"""

import ast
import copy
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import rose
from rose.layer.registry import get_method
from rose.model.defaults import TUNING
from rose.model.load.tokens import load_apart
from rose.model.measure.comparison import parse_variant
from rose.model.measure.damage import dense_weights
from rose.model.network.network import Network
from rose.model.network.precision import Precision
from rose.model.tune import task, tuning
from rose.model.tune.task import divergence
from rose.model.walk.forward import Boundaries
from rose.model.walk.storage import token_drift
from rose.verdicts import Result
from tests.benchmarks.common import MODEL, Rows, arguments, judged

SAMPLES = 16  # to prune with
LENGTH = 512  # of the windows that are calibrated on and judged
JUDGED = 12  # windows of the text itself on which rules are compared
WAY = ["model", "seed", "method", "sparsity"]


def pruned(options: Any, seed: int, way: str) -> Any:
    """The model of one draw that was pruned this way, from FOLDER/pruned, where it is put first."""
    method, _, sparsity = way.rpartition("@")
    folder = folder_of(options, seed, way)
    if not folder.exists():
        began = time.process_time()
        model, tokenizer = rose.load_model(options.model)
        tokens = rose.load_tokens(options.text, tokenizer, samples=options.samples, length=LENGTH, seed=seed)
        if sparsity.startswith("slim-"):
            name, _, target = method.partition(":")
            rose.prune_structured(model, tokens, method=name, ratio=float(sparsity[5:]), target=target or "dense")
        else:
            chosen: dict[str, Any] = {"target": "dense", "layers": options.layers or None} | parse_variant(method)
            rose.prune_model(model, tokens, sparsity=sparsity, **chosen)
        took = time.process_time() - began
        rose.save_model(model, tokenizer, folder)
        seconds_of(folder).write_text(f"{took:.1f}")
    return rose.load_model(str(folder))[0]


def folder_of(options: Any, seed: int, way: str) -> Path:
    name = f"{Path(options.model).stem}-{way.replace('@', '-')}-{seed}"
    if options.samples != SAMPLES:
        name += f"-{options.samples}"
    return Path(options.output) / "pruned" / name.replace("/", "-").replace(":", "-")


def seconds_of(folder: Path) -> Path:
    """The file of the processor's seconds that pruning took."""
    return folder.with_name(f"{folder.name}.seconds")


def table(options: Any) -> None:
    rows = Rows(Path(options.output) / "tuning.csv", [*WAY, "samples", "windows"])
    dense, tokenizer = rose.load_model(options.model)
    texts = {"perplexity": judged(options.judge or options.text, tokenizer, length=LENGTH)}
    texts |= other_text(options, tokenizer, "other")
    if (options.model, -1, "dense", "", 0, 0) not in rows:
        none: dict[str, Any] = {"seed": -1, "method": "dense", "sparsity": "", "samples": 0, "windows": 0}
        rows.add(model=options.model, **none, **perplexities(dense, texts))
    for windows, way, seed in itertools.product(options.windows, options.ways, options.seeds):
        method, _, sparsity = way.rpartition("@")
        key = {"model": options.model, "seed": seed, "method": method, "sparsity": sparsity, "samples": options.samples}
        if (*key.values(), 0) not in rows:
            before = perplexities(pruned(options, seed, way), texts)
            took = seconds_of(folder_of(options, seed, way))
            rows.add(**key, windows=0, **before, processor_seconds=took.read_text() if took.exists() else "")
        if (*key.values(), windows) in rows:
            continue
        model = pruned(options, seed, way)
        tokens, held_out = apart(options, tokenizer, seed, windows, TUNING.held_out, texts["perplexity"])
        found = tuned(model, dense, tokens, held_out, options)
        rows.add(**key, windows=windows, **perplexities(model, texts), **found)
    print(rows.means(["model", "method", "sparsity", "samples", "windows"], list(texts)))


def choose(options: Any) -> None:
    rows = Rows(Path(options.output) / "tuning-rules.csv", [*WAY, "windows", "rule"])
    dense, tokenizer = rose.load_model(options.model)
    texts = other_text(options, tokenizer, "other_")
    for rule in options.rules:
        for key, model, tokens, held_out, judge in apart_from_judged(options, rows, tokenizer, rule=rule):
            before = judgement(model, dense, texts | {"": judge}).add_suffix("_before")
            with ruled(rule):
                found = tuned(model, dense, tokens, held_out, options)
            after = judgement(model, dense, texts | {"": judge}).add_suffix("_after")
            rows.add(**key, **before, **after, **found)
    print(rows.means(["model", "method", "sparsity", "windows", "rule"], ["perplexity_after", "divergence_after"]))


def moved(options: Any) -> None:
    layers = Rows(Path(options.output) / "tuning-layers.csv", [*WAY, "windows"])
    blocks = Rows(Path(options.output) / "tuning-blocks.csv", [*WAY, "windows"])
    dense, tokenizer = rose.load_model(options.model)
    for key, model, tokens, held_out, judge in apart_from_judged(options, blocks, tokenizer):
        start = copy.deepcopy(model)
        before = by_block(model, dense, judge).add_suffix("_before")
        tuned(model, dense, tokens, held_out, options)
        both = before.join(by_block(model, dense, judge).add_suffix("_after")).round(5)
        if tuple(key.values()) not in layers:
            layers.add(*(key | row for row in changes(start, model)))
        blocks.add(*(key | {"block": at} | row for at, row in enumerate(both.to_dict("records"))))


def apart_from_judged(
    options: Any, rows: Rows, tokenizer: Any, **more: Any
) -> Iterator[tuple[dict[str, Any], Any, Tensor, Tensor, Tensor]]:
    """For each row that is not there yet: its key, the pruned model, and windows to train on, to stop by and to judge
    by."""
    away = judged(options.judge or options.text, tokenizer, length=LENGTH)
    for windows, way, seed in itertools.product(options.windows, options.ways, options.seeds):
        method, _, sparsity = way.rpartition("@")
        key = {"model": options.model, "seed": seed, "method": method, "sparsity": sparsity, "windows": windows, **more}
        if tuple(key.values()) not in rows:
            tokens, kept = apart(options, tokenizer, seed, windows, TUNING.held_out + JUDGED, away)
            yield key, pruned(options, seed, way), tokens, kept[: TUNING.held_out], kept[TUNING.held_out :]


def changes(start: Any, model: Any) -> Iterator[dict[str, Any]]:
    """‖ΔW‖/‖W‖ of each layer, and of the first and last quarter of its columns alone."""
    for was, now in zip(rose.prunable_layers(start), rose.prunable_layers(model), strict=True):
        quarter = was.weight.shape[1] // 4
        parts = {"change": slice(None), "first_columns": slice(quarter), "last_columns": slice(-quarter, None)}
        pairs = {name: (was.weight[:, part].float(), now.weight[:, part].float()) for name, part in parts.items()}
        yield {"layer": was.name} | {
            name: round(float((new - old).norm() / old.norm()), 5) for name, (old, new) in pairs.items()
        }


def by_block(model: Any, dense: Any, windows: Tensor) -> pd.DataFrame:
    """Drift after each decoder block, and what the loss gains where the block alone is restored, in nats a token."""
    states = (states_of(one, windows) for one in (model, dense))
    drift = [float(token_drift(own, wanted).mean()) for own, wanted in zip(*states, strict=True)]
    found = rose.damage(model, windows, held_out=windows, units="blocks", restore=dense_weights(dense, model)).units
    return pd.DataFrame({"drift": drift, "damage": found["damage"]})


@torch.no_grad()
def states_of(model: Any, windows: Tensor) -> list[Tensor]:
    """What leaves each decoder block, (windows, length, hidden)."""
    network = Network(model)
    boundaries = Boundaries(network, range(len(network.blocks)))
    with boundaries.record():
        for window in windows.split(1):
            model(input_ids=window, use_cache=False)
    return [torch.cat(boundaries.outputs[block]).float() for block in range(len(network.blocks))]


def apart(options: Any, tokenizer: Any, seed: int, windows: int, held_out: int, away: Tensor) -> tuple[Tensor, Tensor]:
    """Windows to train on and held-out ones, of which the latter are the same however many the former."""
    sizes: dict[str, Any] = {"samples": windows, "held_out": held_out, "length": options.length}
    return load_apart(options.text, tokenizer, **sizes, seed=seed, apart_from=away)


def tuned(model: Any, dense: Any, tokens: Tensor, held_out: Tensor, options: Any) -> dict[str, Any]:
    """Tunes the model, one pass over the windows; what that took and gave."""
    sizes: dict[str, Any] = {"minutes": options.minutes} if options.minutes else {"epochs": 1.0}
    began = time.process_time()
    report = rose.tune_model(
        model, dense, tokens, held_out=held_out, layers=options.layers or None, seed=options.order,
        **sizes,
    )  # fmt: skip
    said = report.summary
    return {
        "steps": said["steps"], "kept_step": said["kept_step"], "zeros": said["zeros"],
        "held_out_before": said["held_out_before"], "held_out_after": said["held_out_after"],
        "curve": " ".join(f"{value:.4f}" for value in report.curve["held_out"]),
        "processor_seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


def perplexities(model: Any, texts: dict[str, Tensor]) -> dict[str, float]:
    return {name: round(rose.perplexity(model, windows), 3) for name, windows in texts.items()}


def other_text(options: Any, tokenizer: Any, name: str) -> dict[str, Tensor]:
    """Windows of the text that is not trained on, under this name, if there is one."""
    return {name: judged(options.other, tokenizer, windows=16, length=LENGTH)} if options.other else {}


def judgement(model: Any, dense: Any, texts: dict[str, Tensor]) -> pd.Series:
    """By next tokens, and by the way to the dense model's distributions; names begin with that of the text."""
    found = {}
    for name, windows in texts.items():
        found[f"{name}perplexity"] = rose.perplexity(model, windows)
        found[f"{name}divergence"] = away_from_dense(model, dense, windows)
    return pd.Series(found).astype(float).round(4)


@torch.no_grad()
def away_from_dense(model: Any, dense: Any, windows: Tensor) -> float:
    """KL(dense ‖ model) in nats a token."""
    device = torch.device("cpu")
    precision, total = Precision.of("auto", torch.float32, device), 0.0
    for window in windows.split(1):
        with precision.computing(device):
            own, wanted = (one(input_ids=window, use_cache=False).logits for one in (model, dense))
        total += float(divergence(own, wanted))
    return round(total / windows.numel(), 5)


@contextmanager
def ruled(rule: str) -> Iterator[None]:
    """While this lasts, these constants of tuning have these values."""
    call = ast.parse(f"dict({rule})", mode="eval").body
    assert isinstance(call, ast.Call)
    values = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    homes = {name: next(home for home in (tuning, task) if hasattr(home, name)) for name in values}
    were = {name: getattr(homes[name], name) for name in values}
    for name, value in values.items():
        setattr(homes[name], name, value)
    try:
        yield
    finally:
        for name, value in were.items():
            setattr(homes[name], name, value)


def costs_and_worths(rows: pd.DataFrame, sparsity: str) -> list[Result]:
    """Time and perplexity of pruning alone, with few and many windows, and with tuning, for
    `app.figures.methods.time_and_perplexity`: seconds of the processor, means over draws; of what has them all."""
    rows = rows[rows["sparsity"] == sparsity]
    draws = rows["seed"].nunique()
    pruning = rows[rows["windows"] == 0].groupby(["method", "samples"])["processor_seconds"].mean()
    found = []
    for (method, samples, windows), part in rows.groupby(["method", "samples", "windows"]):
        if len(part) < draws:
            continue
        variant = parse_variant(method)
        name = f"{get_method(str(variant['method'])).label} {samples}" + (f" + {windows} tuned" if windows else "")
        seconds = pruning[method, samples] + (part["processor_seconds"].mean() if windows else 0.0)
        drawn, target = part.set_index("seed")["perplexity"], variant.get("target") or "dense"
        known: dict[str, Any] = {"draws": drawn.to_dict(), "seconds": seconds, "target": target}
        found.append(Result(name, str(variant["method"]), drawn.mean(), **known))
    return found


STUDIES = {"table": table, "choose": choose, "moved": moved}


def main() -> None:
    options = arguments(
        __doc__, "studies", output=str, model=MODEL, text="packaged", judge="", other="", samples=SAMPLES,
        seeds=[0, 1, 2], ways=["rose_admm@0.7"], windows=[64], rules=[""], layers=[""], minutes=0.0, order=0,
        length=LENGTH,
    )  # fmt: skip
    options.layers = [name for name in options.layers if name]
    for name in options.studies or ("table",):
        STUDIES[name](options)


if __name__ == "__main__":
    main()
