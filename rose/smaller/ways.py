"""Ways to make a model smaller, each a sequence of slimming, pruning, tuning and rounding. Also estimates before a copy
is made: sizes by rule, time, memory, and perplexity as in other models."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from rose.errors import RoseError
from rose.layer.pattern import parse_grid, parse_sparsity
from rose.model.estimate import estimate_cost, estimate_memory, sweeps_of, tuning_memory
from rose.model.load.models import STORED_AS
from rose.model.load.tokens import tuning_draw
from rose.model.network.network import Network
from rose.model.ship.export import gguf_size
from rose.model.tune.task import check_memory
from rose.recipe.parts import TextPart
from rose.recipe.steps import Prune, Slim, Smaller
from rose.smaller.table import ESTIMATE, FILES, Row
from rose.structured.parts import block_parameters
from rose.structured.plan import estimate_slim_memory, estimate_slimming
from rose.structured.settings import SlimSettings
from rose.structured.slimming import check_slimming

AS_IS = "as-is"
NARROW = 32  # input columns that share a scale in a slimmed copy: few heads may be left
FRACTIONS = {"fifth": 0.2, "third": 0.33}
TUNED = "-tuned"
BEFORE = "the copy before"  # stands for the model that a further step changes
SEEN = 1.02  # rules of less than this, times the dense perplexity, correct no other
MISSES = (0.25, 4.0)  # limits of the factor by which the logarithm of a rule is corrected


@dataclass(frozen=True)
class Way:
    """A way to make a model smaller."""

    key: str  # name on a command line, "slim-fifth-bits-4"; `name` is for people
    name: str
    slim: float  # share of the decoder blocks' parameters to take out, 0 for none
    sparsity: str
    bits: int | None  # of kept weights; None without rounding
    is_tuned: bool
    steps: tuple[Slim | Prune, ...]  # that make the copy, one after another; none for the model as it is
    times: tuple[float, float]  # lowest and highest perplexity over the dense model's in docs/results, for estimates


# Key, and the range of perplexity over the dense model's: docs/results/{bits,bits-budget,structured,
# qwen2.5-coder-0.5b-structured}.csv and docs/tuning.md; of slimmed and rounded copies the product of both.
RULES: dict[str, tuple[float, float]] = {
    AS_IS: (1.0, 1.0),
    "bits-8": (1.0, 1.01),
    "bits-4": (1.03, 1.06),
    "bits-3": (1.1, 1.25),
    "slim-fifth": (1.12, 1.5),
    "slim-fifth-tuned": (1.1, 1.2),
    "slim-third": (1.2, 1.81),
    "slim-third-tuned": (1.2, 1.35),
    "half": (1.2, 1.33),
    "half-tuned": (1.1, 1.13),
    "2:4": (1.55, 1.7),
    "2:4-tuned": (1.21, 1.25),
    "half-bits-4": (1.24, 1.37),
    "half-tuned-bits-4": (1.13, 1.2),
    "slim-fifth-bits-8": (1.12, 1.52),
    "slim-fifth-bits-4": (1.18, 1.59),
    "slim-fifth-tuned-bits-4": (1.15, 1.27),
}


def ways_of(spec: Smaller, model: nn.Module) -> tuple[list[Way], list[str]]:
    """The ways that this model and the free memory allow, the model as it is first; and sentences on the other ways."""
    network, ways, left_out = Network(model), list[Way](), dict[str, list[Way]]()
    copy, too_large = sum(parameter.nbytes for parameter in model.parameters()), ""
    try:
        check_memory(network, tuning_draw(spec.length).length, besides=copy)
    except RoseError as problem:
        too_large = str(problem)
    for key, times in RULES.items():
        way = _way(key, times, spec)
        pattern = parse_sparsity(way.sparsity)
        try:
            if way.slim:
                check_slimming(model, SlimSettings(ratio=way.slim))
            if pattern.ratio or way.bits:
                network.to_prune(None, pattern, Prune.fields()["block_size"].default, parse_grid(way.bits, None))
            if way.is_tuned and too_large:
                raise RoseError(too_large)
            ways.append(way)
        except RoseError as problem:
            left_out.setdefault(str(problem), []).append(way)
    return ways, [says_left_out(of_problem, problem) for problem, of_problem in left_out.items()]


def says_left_out(ways: Sequence[Way], problem: object) -> str:
    return f"Left out: {'; '.join(way.name for way in ways)}. {problem}"


def _way(key: str, times: tuple[float, float], spec: Smaller) -> Way:
    words = key.replace("2:4", "pattern").split("-")
    slim = next((FRACTIONS[word] for word in words if word in FRACTIONS), 0.0)
    sparsity = "0.5" if "half" in words else "2:4" if "pattern" in words else "0"
    bits = int(words[-1]) if words[-1].isdecimal() else None
    is_tuned = "tuned" in words
    parts = [f"a {word} slimmed" for word in words if word in FRACTIONS]
    parts += {"0.5": ["half zero"], "2:4": ["2:4"]}.get(sparsity, [])
    parts += ["tuned"] * is_tuned + [f"{bits} bits"] * bool(bits)
    steps = tuple(_steps(slim, sparsity, bits, is_tuned, spec))
    return Way(key, ", ".join(parts) or "as it is", slim, sparsity, bits, is_tuned, steps, times)


def _steps(slim: float, sparsity: str, bits: int | None, is_tuned: bool, spec: Smaller) -> list[Slim | Prune]:
    """Tuning trains kept weights, so that rounding is a step of its own behind it."""
    text = spec.pick(TextPart.fields())
    shared: dict[str, Any] = text | {"dtype": spec.dtype, "output": "copy"}
    grid = {"bits": bits} | ({"group": NARROW} if bits and slim else {})
    tuning = {"tune": spec.tune} if is_tuned else {}
    steps: list[Slim | Prune] = []
    model = spec.model
    if slim:
        steps.append(Slim.of(model=model, ratio=slim, **shared, **tuning))
        model = BEFORE
    if sparsity != "0":
        at_once = {} if is_tuned else grid
        steps.append(Prune.of(model=model, sparsity=sparsity, **shared, **({} if slim else tuning), **at_once))
        model = BEFORE
    if bits and (sparsity == "0" or is_tuned):
        steps.append(Prune.of(model=model, sparsity="0", **grid, **shared))
    return steps


def file_sizes(model: Any, tokenizer: Any, name: str, title: str) -> dict[str, int | None]:
    """Bytes by file, None for those that cannot be written; of a model made from `name`, in a folder of this title."""
    gguf: Mapping[str, int | None] = dict.fromkeys(FILES[1:])
    with suppress(RoseError):  # a family or a tokenizer that GGUF export does not know
        gguf = {kind: gguf_size(name, model, tokenizer, kind, title) for kind in FILES[1:]}
    return {"safetensors": safetensors_size(model), **gguf}


def safetensors_size(model: nn.Module) -> int:
    """Bytes of model.safetensors, as `save_pretrained` writes one file of it; tied weights count once."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, weight in sorted(model.named_parameters()):
        offsets = [end, end + weight.nbytes]
        header[key] = {"dtype": STORED_AS[weight.dtype], "shape": list(weight.shape), "data_offsets": offsets}
        end = offsets[1]
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


def estimated_rows(spec: Smaller, model: nn.Module, ways: Sequence[Way], dense: Mapping[str, int | None]) -> list[Row]:
    """A row for each way, without making a copy; `dense` are `file_sizes` of the model."""
    network = Network(model)
    weights = sum(layer.weight.numel() for layer in network.layers)
    every, rows = sum(parameter.numel() for parameter in model.parameters()), []
    for way in ways:
        seconds, memory = _cost(spec, network, weights, way)
        low, high = way.times
        quality = {"times": math.sqrt(low * high), "times_low": low, "times_high": high}
        cost = {"minutes": seconds / 60, "memory": memory}
        share = 1 - way.slim * block_parameters(model) / every
        sizes = {name: None if size is None else round(size * share) for name, size in dense.items()}
        gain = 1 / (1 - way.slim) if way.slim else None
        facts: Any = sizes | cost | quality
        rows.append(Row(way.key, way.name, ESTIMATE, way.bits, prefill_gain=gain, **facts))
    return rows


def corrected(estimates: Sequence[Row], measured: Mapping[str, Row], tune: float) -> list[Row]:
    """Measured rows in place of their estimates. Other rows follow measured copies with the same kind of removal: their
    log perplexity and bytes are scaled by the factors by which the rules of those copies missed. Minutes are scaled,
    too, except the `tune` minutes of tuning."""
    pairs, rows = [(rule, measured[rule.key]) for rule in estimates if rule.key in measured], []
    for row in estimates:
        kin = [pair for pair in pairs if _removal(pair[0].key)[0] == _removal(row.key)[0]]
        rows.append(measured.get(row.key) or replace(_corrected(row, kin), minutes=_minutes(row, pairs, tune)))
    return rows


def _minutes(row: Row, pairs: Sequence[tuple[Row, Row]], tune: float) -> float:
    def work(other: Row) -> float:
        return max(0.0, other.minutes - tune * (TUNED in other.key))

    alike = [pair for pair in pairs if ("slim" in pair[0].key) == ("slim" in row.key) and work(pair[0])]
    expected = math.fsum(work(rule) for rule, _ in alike or pairs)
    actual = math.fsum(work(result) for _, result in alike or pairs)
    return row.minutes + work(row) * (actual / expected - 1) if expected else row.minutes


def _removal(key: str) -> list[str]:
    """["slim", "fifth"] of "slim-fifth-tuned-bits-4"."""
    return key.partition(TUNED)[0].partition("-bits")[0].split("-")


def _corrected(row: Row, kin: Sequence[tuple[Row, Row]]) -> Row:
    missed = [
        math.log(result.times) / math.log(rule.times)
        for rule, result in kin
        if rule.times and result.times and rule.times > SEEN
    ]
    facts: dict[str, Any] = {}
    if missed:
        power = min(MISSES[1], max(MISSES[0], math.fsum(missed) / len(missed)))
        facts = {name: getattr(row, name) ** power for name in ("times", "times_low", "times_high")}
    # Copies of the same shapes and kind of weights, whose rules miss alike.
    alike = [pair for pair in kin if pair[0].bits == row.bits and _removal(pair[0].key) == _removal(row.key)]
    for name in FILES:
        sizes = [(getattr(rule, name), getattr(result, name)) for rule, result in alike]
        if sizes and None not in (getattr(row, name), *sizes[0]):
            facts[name] = round(getattr(row, name) * sizes[0][1] / sizes[0][0])
    return replace(row, **facts)


def _cost(spec: Smaller, network: Network, weights: int, way: Way) -> tuple[float, int]:
    """Seconds to make a copy, and the most bytes that a step takes besides the models."""
    model: Any = network.model
    drawn: dict[str, Any] = spec.extent
    seconds, memories = 0.0, [0]
    if way.slim:
        settings = SlimSettings(ratio=way.slim)
        seconds += estimate_slimming(model, settings, **drawn)
        memories.append(estimate_slim_memory(model, settings, **drawn).besides_weights)
    for step in way.steps:
        if isinstance(step, Prune):
            sweeps = sweeps_of([step.method], step.grid)
            seconds += estimate_cost(model, sweeps=sweeps, passes=2, target=step.target, **drawn).seconds
            options: dict[str, Any] = {"method": step.method, "dense_targets": step.target == "dense"} | drawn
            memories.append(estimate_memory(model, **options).besides_weights)
    if way.is_tuned:
        memories.append(tuning_memory(network, tuning_draw(spec.length).length, weights))
        seconds += 60 * spec.tune
    return seconds, max(memories)
