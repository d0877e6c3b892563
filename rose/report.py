"""Typed results as pandas, JSON, CSV and parquet; the report of a run."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
import pandas as pd

from rose.errors import RoseError
from rose.files import check_small, expand, reachable, write_atomically
from rose.layer.registry import label_of
from rose.output import check_folder, new_folder
from rose.verdicts import EvaluationSetup, Result, caution_column, cautions
from rose.wording import duration, out_of, place_of, sentence, short_text, whole

if TYPE_CHECKING:
    from rose.layer.paper import PaperFigures

Record = TypeVar("Record")
FLOAT32_MAX = 3.5e38  # no finite number beyond it was computed from a model's outputs


class Within(NamedTuple):
    """What a number that is read from a file may be: its bounds, and whether it may be NaN, for `Annotated`.

    Infinity is an overflow that was measured, where the bound is the default.
    """

    low: float
    high: float = FLOAT32_MAX
    or_nan: bool = False

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, float | int)
        if value != value:  # math.isnan does not take every whole number
            return self.or_nan
        return self.low <= value <= self.high or (value == math.inf and self.high == FLOAT32_MAX)


Count = Annotated[int, Within(0, 10**15)]
Share = Annotated[float, Within(0, 1)]
NotNegative = Annotated[float, Within(0)]
NotNegativeOrNan = Annotated[float, Within(0, or_nan=True)]
Measured = Annotated[float, Within(-FLOAT32_MAX, or_nan=True)]
WHOLE_NUMBER = 2**63  # from which on no column of whole numbers can hold one
MOST_COLUMNS = 200  # of a table of rows, which has about 30
LANGUAGE_PART = "Only the language model of these files was read: a copy is for text alone, not for pictures or sounds."
ERRORS = ("relative_error", "held_out_error", "target_error", "held_out_target_error")  # of a layer, or of a part
INFINITE = "Infinity"  # an error in a report.json
_BEGINS = b'{\n "version": '  # a report.json of ours
_BEGAN = b'{\n "summary": {'  # one of version 0.1.0
_NAME = re.compile(r"[\w.:@/%+-]{1,200}")  # of layers, projections and methods
REPORT, ZERO_SHOT = "report.json", "zero_shot.csv"
VERSION = 2  # of a report.json; those of rose 0.1.0 have none
MOST_RUNS = 40  # of one folder of folders
MOST_BLOCKS = 4096  # decoder blocks
CONDITION = 200  # characters of what two runs must have in common, to the last of which they are compared
ENOUGH = 0.8  # of the minutes asked for, from which on a tuned copy is named by them
TARGETS = ("layer", "dense", "dense and stream")  # of a layer
FLAGS = ("is_columnar", "is_damping_raised")
NUMBERS = (
    *("rows", "columns", "sparsity", "relative_error", "held_out_error", "target_error", "held_out_target_error"),
    *("pruning_error", "rounding_error"),
    *("relative_range", "damping", "target_damping", "dead_columns", "seconds", "tokens", "change"),
    *("zeros_before", "asked_sparsity"),
)
# Of the summary of a run in two stages, what holds for the second as well.
CONCLUDED = (
    *("model", "dtype", "calibration", "seed", "bos", "evaluated_on", "windows", "perplexity_before"),
    *("perplexity_after", "losses_before", "losses_after", "command", "made_with", "tuned", "tuned_before"),
)
Kind = Literal["prune", "slim", "study", "check"]
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # no name and no sentence has such a character
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a text begins with that a spreadsheet would compute


@dataclass(frozen=True)
class LayerRecord:
    """One pruned layer in numbers; errors are relative to the dense output, `seconds` is pruning alone.

    `relative_error` and `held_out_error` are against what the layer's dense weight puts out on the same, pruned inputs;
    `target_error` and `held_out_target_error` against the dense model's output, where that was the target (see
    `rose.layer.target`). `target` says which one that was: "layer", its own output; "dense"; or "dense and stream",
    which makes good what the residual stream has lost, too. Held-out ones are None where no held-out tokens were given.
    `damping` and `target_damping` are relative to the mean of diag(H). `tokens` of calibration have reached the layer:
    few or none where it is of an expert, which may then have been left dense, with sparsity 0.
    `is_damping_raised`: the Hessian could not be factorized with the damping asked for, or with the target damping.
    `sparsity` counts weights that were zero before too; `zeros_before` is their share, and `asked_sparsity` what was
    asked of this layer, None in reports of former versions, and where it was left dense.
    `order` and `budget` are those used, which tells what ROSE decided and what "measured" chose.
    `column_variation` is that of `OrderPlan`; None in reports of former versions, and where nothing was pruned.
    `pruning_error` and `rounding_error`: what each adds to the error against the weights that the layer was to have,
    its own or those corrected towards the dense target, both relative to the outputs of these; None where nothing was
    rounded. See `rose.layer.methods.LayerResult`.
    """

    layer: str
    block_index: int
    projection: str
    rows: Count
    columns: Count
    method: str
    sparsity: Share
    relative_range: float
    is_columnar: bool
    relative_error: float
    held_out_error: float | None
    damping: float
    dead_columns: Count
    seconds: float
    order: str
    budget: str
    target_error: float | None = None
    held_out_target_error: float | None = None
    target_damping: float | None = None
    tokens: int | None = None
    target: str = "layer"
    is_damping_raised: bool = False
    zeros_before: float = 0.0
    asked_sparsity: float | None = None
    column_variation: float | None = None
    pruning_error: float | None = None
    rounding_error: float | None = None


@dataclass(frozen=True)
class PartRecord:
    """One part of a decoder block in numbers; errors are relative to the mean square of the dense projection's output.

    `unrecovered_error` is that of the kept columns as they were; `target_error` and `held_out_target_error` are those
    against the dense model's output, where that was the target. `units` counts query heads or channels, `swapped` those
    that came back in place of others. `columns` of the output projection, `tokens` that they were seen on,
    `dead_columns` and the damping are as in `LayerRecord`; None in reports of former versions.
    """

    block_index: int
    part: str
    layer: str
    method: str
    recovery: str
    units: Count
    kept_units: Count
    groups: Count
    kept_groups: Count
    parameters: Count
    kept_parameters: Count
    relative_error: float
    unrecovered_error: float
    held_out_error: float | None
    swapped: Count
    seconds: float
    target_error: float | None = None
    held_out_target_error: float | None = None
    columns: int | None = None
    tokens: int | None = None
    dead_columns: int | None = None
    damping: float | None = None
    is_damping_raised: bool = False


def pruned_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The layers that were pruned or rounded, which count in means: some that were left dense, such as experts without
    tokens, would make the errors of the others look small."""
    is_pruned = table["sparsity"] != 0
    return table[is_pruned | table["rounding_error"].notna() if "rounding_error" in table else is_pruned]


def removed_fraction(table: pd.DataFrame) -> float:
    """Of all weights of these layers."""
    sizes = table["rows"] * table["columns"]
    return float((table["sparsity"] * sizes).sum() / sizes.sum())


@dataclass(frozen=True, eq=False)  # tables have no == that is one truth
class RunReport:
    """The record of a run over a model: what was asked, what came out.

    Attributes:
        layers: one row per layer (and method), columns as in `LayerRecord`; of slimming, per part.
        results: totals, what was evaluated before and after, versions and environment.
        recipe: the settings of the run.
        called: a name for people that replaces the usual one, where several runs stand beside each other.
        place: the folder that it was read from; "" of a run of this process.
        origin: what tells the run from others, whatever it is called; None where this object does.
    """

    layers: pd.DataFrame
    results: Mapping[str, Any]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    called: str = ""
    place: str = ""
    origin: Any = None

    @classmethod
    def from_records(
        cls, records: Sequence[LayerRecord], recipe: Mapping[str, Any] | None = None, **results: Any
    ) -> RunReport:
        """Builds the table and adds totals to the results."""
        table = records_table(records)
        pruned = pruned_rows(table)
        every = table.drop_duplicates("layer")  # several methods may have a row each
        errors = _mean_errors(pruned)
        totals: dict[str, Any] = {
            "layers": len(every),
            "columnar_layers": int(every["is_columnar"].sum()),
            "weights": int((every["rows"] * every["columns"]).sum()),
            "removed_fraction": removed_fraction(table),
            **errors,
            "layers_with_raised_damping": int(table["is_damping_raised"].sum()),
        }
        if table["method"].nunique() > 1:  # a mean over methods would say nothing
            by_method = {method: _mean_errors(rows) for method, rows in pruned.groupby("method", sort=False)}
            totals |= dict.fromkeys(errors) | {"mean_errors": by_method}
        return cls(table, {**results, **totals}, recipe or {})

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The recipe and the results by name: settings, totals, and what was evaluated."""
        return {**self.recipe, **self.results}

    def with_summary(self, **entries: Any) -> RunReport:
        """The same record with further results."""
        return replace(self, results={**self.results, **entries})

    def with_recipe(self, **settings: Any) -> RunReport:
        """The same record with further settings."""
        return replace(self, recipe={**self.recipe, **settings})

    # ---- which run it is

    @property
    def kind(self) -> Kind:
        """ "prune" and "slim" have changed a model, block by block; a "study" has measured every layer of the dense
        model by itself; a "check" has compared a checkpoint with its dense model."""
        marks: dict[str, Kind] = {"checkpoint": "check", "ratio": "slim", "methods": "study"}
        return next((kind for name, kind in marks.items() if name in self.summary), "prune")

    @property
    def is_analysis(self) -> bool:
        """Whether there is a row for each layer and method; see `runs`."""
        return "methods" in self.summary and "method" not in self.summary

    @property
    def identity(self) -> Any:
        """The same for as long as the run is offered, whatever it is called."""
        if self.place:
            return self.place, self.kind, self.method
        return self if self.origin is None else self.origin

    @property
    def method(self) -> str:
        return str(self.summary.get("method"))

    @property
    def bits(self) -> int | None:
        """Of kept weights, where they were rounded."""
        bits = self.summary.get("bits")
        return bits if isinstance(bits, int) else None

    @property
    def target(self) -> str:
        """ "layer" or "dense"; "" where nothing says which, as of a model that was pruned elsewhere."""
        target = self.summary.get("target", "layer" if self.kind == "study" else "")
        return target if target in ("layer", "dense") else ""

    @property
    def asked(self) -> str:
        """What was to be taken away: "0.7", "0.7, 4 bits", "20 % out"."""
        if self.kind == "slim":
            return f"{100 * float(self.summary['ratio']):g} % out"
        return short_text(self.summary.get("sparsity")) + ("" if self.bits is None else f", {self.bits} bits")

    @property
    def is_tuned(self) -> bool:
        return "tuned" in self.summary

    @property
    def start(self) -> str:
        """The model that the run has changed: "dense", or "slimmed" where slimming came before."""
        return "slimmed" if "after" in self.summary else "dense"

    @property
    def name(self) -> str:
        """For people: "ROSE at 0.7, 4 bits", "ROSE at 0.7, target layer, tuned 3 min"; see `called`."""
        if self.called:
            return self.called
        if self.kind == "study":
            return sentence(f"{label_of(self.method)} at {self.asked} (study)")
        if self.kind == "slim":
            name = f"Slim by {self.method}, {self.asked}"
        else:
            name = name_of_run(self.method, self.asked, self.target or "dense")
        before = f"{after}, then " if (after := self.summary.get("after")) else ""
        return f"{before}{name}{self.tuned_suffix}"

    @property
    def untuned_name(self) -> str:
        """The name of the copy that was tuned."""
        return self.name.replace(self.tuned_suffix, "", 1)

    @property
    def tuned_suffix(self) -> str:
        """ ", tuned 3 min": the minutes asked for, or what was done where that is less; "" without tuning."""
        if not self.is_tuned:
            return ""
        tuned = self.tuned
        asked = 60 * (tuned.get("minutes") or 0)
        if tuned["steps"] < tuned["steps_planned"] or tuned["seconds"] < ENOUGH * asked:
            return f", tuned {duration(tuned['seconds'])}"
        return f", tuned {duration(asked)}" if asked else f", tuned {whole(tuned['steps'])} steps"

    # ---- what came out

    @property
    def last_drift(self) -> float | None:
        """Drift of the residual stream after the last pruned decoder block; None without held-out tokens.

        See `rose.model.walk.dense_states.BlockDrift`.
        """
        return self.summary["drift"][-1]["drift"] if self.summary.get("drift") else None

    @cached_property
    def drift(self) -> list[dict[str, Any]]:
        """Drift by decoder block; none where hidden states overflowed, as no figure can draw that."""
        parts = ("drift", "passed_on", "arisen")
        drift = [
            {"block_index": int(entry["block_index"]), **{part: _number(entry[part]) for part in parts}}
            for entry in self.summary.get("drift") or []
        ]
        _require(all(0 <= entry["block_index"] < MOST_BLOCKS for entry in drift), "its drift is not of decoder blocks")
        places = parts if self.kind != "check" else parts[:1]  # which does not know where drift arises
        return drift if all(math.isfinite(entry[part]) for entry in drift for part in places) else []

    @property
    def seconds(self) -> float:
        """What it took to make the copy: pruning, and tuning where that followed; 0 where neither is given."""
        stages = [self.summary, *self.summary.get("tuned_before", []), self.summary.get("tuned", {})]
        return sum(float(stage.get("seconds", 0.0)) for stage in stages)

    @cached_property
    def tuned(self) -> dict[str, Any]:
        """What the last tuning did, see `rose.model.tune.task.TuneReport.facts`; {} without tuning."""
        return _tuning(self.summary["tuned"]) if self.is_tuned else {}

    @cached_property
    def zero_shot(self) -> pd.DataFrame | None:
        """A row a task: task, questions, accuracy, accuracy_error, accuracy_norm; None where none was answered."""
        rows = self.summary.get("zero_shot")
        return _accuracies(pd.DataFrame(rows)) if isinstance(rows, list) and rows else None

    @cached_property
    def paper(self) -> PaperFigures | None:
        """Orders that an analysis has tried on one layer."""
        from rose.layer.paper import read_paper_figures  # with torch: a report alone needs none

        paper = read_paper_figures(self.summary["paper"]) if self.summary.get("paper") else None
        _require(paper is None or bool(_NAME.fullmatch(paper.layer)), "a layer has no such name")
        return paper

    def number(self, name: str) -> float | None:
        """A total or setting; None where it is no number that a figure can draw."""
        value = self.summary.get(name)
        if isinstance(value, bool) or not isinstance(value, float | int):
            return None
        return float(value) if abs(value) < 1e300 else None

    @property
    def perplexity(self) -> float:
        """After the run; NaN or infinite where the model is ruined, and NaN where it was not measured."""
        value = self.summary.get("perplexity_after")
        return float(value) if isinstance(value, float | int) else math.nan

    def losses(self, stage: str) -> tuple[float, ...]:
        """Of each evaluation window, "before" (the dense model) or "after", in nats a token; () where not kept."""
        return _losses(self.summary.get(f"losses_{stage}"))

    @property
    def setup(self) -> EvaluationSetup:
        """What must be the same before numbers of this run are compared with those of another."""
        known, norms = self.summary, self.summary.get("embedding_norms")
        text, length = known.get("evaluated_on"), known.get("window_length", known.get("length"))
        environment = known.get("environment")
        return EvaluationSetup(
            model=short_text(model, CONDITION) if (model := known.get("model")) else None,
            norms=tuple(norms) if isinstance(norms, list) and all(isinstance(norm, float) for norm in norms) else (),
            windows=short_text(f"{known.get('windows')} × {length} of {text}", CONDITION) if text else None,
            dense=self.number("perplexity_before"),
            layers=frozenset(self.by_layer["layer"]),
            environment=short_text(environment, CONDITION) if isinstance(environment, str) else None,
        )

    @property
    def result(self) -> Result:
        """Its perplexity as `rose.verdicts` compares it."""
        return Result(
            name=self.name,
            method=self.method,
            value=self.perplexity,
            losses=self.losses("after"),
            setup=self.setup,
            amount=self.asked,
            seconds=self.seconds if self.number("seconds") else math.nan,
            target=self.target,
            is_tuned=self.is_tuned,
        )

    # ---- layers

    @cached_property
    def by_layer(self) -> pd.DataFrame:
        """A row a layer for comparisons and figures: layer, block_index, projection, `NUMBERS` and cautions; `FLAGS`
        and target where they are known.

        Numbers are NaN where they are not known, or infinite. Empty where whole decoder blocks went.
        """
        table, change = self.layers, self.tuned.get("change")
        if change is not None and "layer" in table:
            table = table.assign(change=table["layer"].map(change))
        result = _by_layer(table)
        if self.kind == "check":  # whose errors are no method's on what it was fitted to
            result = result.drop(columns="cautions", errors="ignore")
        return result

    @property
    def pruned(self) -> pd.DataFrame:
        """The rows of `by_layer` that count in means: without experts that were left dense beside pruned ones."""
        pruned = self.by_layer if self.kind == "slim" else pruned_rows(self.by_layer)
        return self.by_layer if pruned.empty else pruned

    @property
    def remarks(self) -> list[str]:
        """How far the numbers can be trusted, and where target dense could not do all that it is for, a sentence
        each. `text_cautions` of the results are those of whoever has drawn the calibration text."""
        remarks = list(self.summary.get("remarks", ()))
        if self.kind != "check":  # whose errors are no method's on what it was fitted to
            own = [*self.summary.get("text_cautions", []), *cautions(self.layers), *self._of_windows(), *self._target()]
            remarks = [*own, *remarks, *(() if self.is_analysis else self._lost())]
        return list(dict.fromkeys(remarks))

    def _of_windows(self) -> Iterator[str]:
        if self.summary.get("is_language_part"):
            yield LANGUAGE_PART
        if padded := self.summary.get("padded_windows"):
            yield (
                f"{padded} of {self.summary['samples']} calibration windows begin or end in one token repeated, as "
                "padding does, which counts like text here; give windows of text alone, as load_tokens does."
            )

    def _target(self) -> Iterator[str]:
        if self.summary.get("target") != "dense" or "target" not in self.layers:  # parts do not say
            return
        pruned = pruned_rows(self.layers)
        blocks = set(pruned["block_index"])
        corrected = set(pruned.loc[pruned["target"] == "dense and stream", "block_index"])
        if len(corrected) < len(blocks):
            yield (
                f"In {len(blocks - corrected)} of {len(blocks)} decoder blocks no pruned layer is known to write into "
                "the residual stream, so what it has lost is not made good there."
            )
        if own := int((pruned["target"] == "layer").sum()):
            yield (
                f"{own} of {len(pruned)} layers were pruned towards their own output, because it is not known what "
                "they read in the dense model."
            )

    def _lost(self) -> Iterator[str]:
        """How many layers are in no mean, which files and figures have no number for; errors of none are those of a
        tuned copy."""
        finite = self.pruned["relative_error"].notna()
        if finite.any() and not finite.all():
            some = sentence(f"in {out_of(int((~finite).sum()), len(finite), 'layer')}")
            yield f"{some} the error on calibration is no finite number, so no mean holds it."

    # ---- stages

    @cached_property
    def runs(self) -> list[RunReport]:
        """This run; of slimming and pruning, one record for each; of an analysis, one for each method.

        Raises ValueError for what `rose` does not write.
        """
        if "pruned" in self.summary:
            return self.stages
        return self._by_method() if self.is_analysis else [self]

    @property
    def stages(self) -> list[RunReport]:
        """The record itself; where what slimming had left was pruned, one of each, with what was evaluated after it."""
        rest = self.summary.get("pruned")
        if rest is None:
            return [self]
        _require(
            type(rest.get("layers")) is int and 0 < rest["layers"] <= len(self.layers),
            "it does not say how many of its rows were pruned",
        )
        of_rest = ("pruned", "perplexity_slimmed", "perplexity_after", "losses_after", "tuned", "tuned_before")
        own = {name: value for name, value in self.results.items() if name not in of_rest}
        for number in ("perplexity", "losses"):
            if f"{number}_slimmed" in self.results:
                own[f"{number}_after"] = self.results[f"{number}_slimmed"]
        tables = self.layers.iloc[: -rest["layers"]], self.layers.iloc[-rest["layers"] :]
        first, second = (table.dropna(axis=1, how="all") for table in tables)  # each has columns of its own
        slimmed = replace(self, layers=first, results=own)
        concluded = {name: self.summary[name] for name in CONCLUDED if name in self.summary}
        results = {**concluded, **rest, "after": slimmed.name}
        return [slimmed, replace(self, layers=second, results=results, recipe={})]

    def _by_method(self) -> list[RunReport]:
        _require("method" in self.layers and len(self.layers) > 0, "it has no layers")
        runs = []
        for method, rows in self.layers.groupby("method", sort=False):
            _require(bool(_NAME.fullmatch(str(method))), "a method has no such name")
            results = {name: value for name, value in self.results.items() if name not in ("layers", "mean_errors")}
            run = replace(self, layers=rows, results=results | {"method": str(method)})
            totals = {
                "layers": len(rows),
                "columnar_layers": int(run.by_layer["is_columnar"].sum()) if "is_columnar" in run.by_layer else None,
                "mean_relative_error": mean_or_none(run.pruned["relative_error"]),
                "mean_held_out_error": mean_or_none(run.pruned["held_out_error"]),
            }
            origin = None if self.origin is None else (*self.origin, method)
            runs.append(replace(run.with_summary(**totals), origin=origin))
        return runs

    def without_errors(self) -> RunReport:
        """What still holds of a record once its model is tuned: errors of layers, drift and sizes were those before.
        Of a run in two stages, the first one's stay."""
        of_layers = [name for name in (*ERRORS, "pruning_error", "rounding_error") if name in self.layers]
        gone = ("drift", "plain_bytes", "packed_bytes")

        def kept(results: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in results.items() if not name.startswith("mean_") and name not in gone}

        if "pruned" not in self.summary:
            return replace(self, layers=self.layers.drop(columns=of_layers), results=kept(self.results))
        layers = self.layers.copy()
        layers.loc[layers.index[-self.summary["pruned"]["layers"] :], of_layers] = math.nan
        return replace(self, layers=layers).with_summary(pruned=kept(self.summary["pruned"]))

    # ---- files

    def to_json(self) -> str:
        """As JSON, which knows neither NaN nor infinity: both become null, but an infinite error of a layer is a text,
        for none would read as not measured."""
        errors = [name for name in ERRORS if name in self.layers]
        rows = json_rows(self.layers.replace(dict.fromkeys(errors, math.inf), INFINITE))
        content = {
            "version": VERSION,
            "recipe": finite(self.recipe),
            "results": finite(self.results),
            "layers": rows,
        }
        return json.dumps(content, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, name: str = "This") -> RunReport:
        """Reads what `to_json` wrote, and checks that every page can show it: somebody else may have written it.

        Raises:
            RoseError: the text is not a report, or one of another version.
        """
        try:
            data = json.loads(text)
            if r"\ud" in text.lower():  # half of a pair of surrogates is no character, and cannot be written
                data = json.loads(json.dumps(data, ensure_ascii=False).encode(errors="replace"))
            _check_version(data, name)
            _check_rows(data["layers"])
            table = pd.DataFrame(data["layers"])
            table = table.astype({name: float for name in (*ERRORS, *_optional(LayerRecord)) if name in table})
            report = cls(table, dict(data["results"]), dict(data["recipe"]))
            for run in report.runs:
                run._check()
            return report
        except RoseError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as problem:
            raise RoseError(f"{name} is not a report written by rose ({problem!s:.100}); choose another.") from problem

    def _check(self) -> None:
        """Raises ValueError, TypeError and others where something that a page shows cannot be made of the record."""
        method = self.summary.get("method")
        _require(isinstance(method, str) and bool(_NAME.fullmatch(method)), "it names no method")
        _ = self.name, self.by_layer, self.drift, self.zero_shot, self.paper, self.seconds
        for tuning in self.summary.get("tuned_before", []):
            _tuning(tuning)
        _require(all(isinstance(remark, str) for remark in self.remarks), "its remarks are no sentences")

    @classmethod
    def load(cls, path: str | Path) -> RunReport:
        """Reads what `save` wrote: a report.json, or the one in a folder, with the accuracies beside it.

        Raises:
            RoseError: it is not there, cannot be looked up, or is not a report.
        """
        place = reachable(path)
        place = place / REPORT if place.is_dir() else place
        check_small(place)
        try:
            report = cls.from_json(place.read_text(encoding="utf-8", errors="replace"), str(place))
            beside = place.with_name(ZERO_SHOT)
            if beside.is_file():
                report = report.with_summary(zero_shot=_accuracies(pd.read_csv(beside)).to_dict("records"))
        except OSError as problem:
            raise RoseError(f"{place} cannot be read ({problem.strerror}); check the path.") from problem
        except RoseError:
            raise
        except (ValueError, KeyError) as problem:
            raise RoseError(f"{beside} holds no accuracies ({problem!s:.100}); remove it.") from problem
        return replace(report, place=str(place.parent))

    def save(self, folder: str | Path) -> None:
        """Writes report.json, layers.csv and layers.parquet into a folder, each whole or not at all.

        Raises:
            RoseError: it is a file, or not writable.
        """
        check_folder(folder)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / REPORT, self.to_json().encode())
        write_atomically(folder / "layers.csv", csv_text(with_cautions(self.layers)).encode())
        write_atomically(folder / "layers.parquet", self.layers.to_parquet(index=False))


def _check_rows(rows: Any) -> None:
    """Raises ValueError unless each cell holds what its column is declared to hold in a record, or None.

    A column that no record declares must hold values of one type, or no table can be written of it.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("its layers are no list of rows")
    hints = get_type_hints(PartRecord, include_extras=True) | get_type_hints(LayerRecord, include_extras=True)
    for number, row in enumerate(rows):
        for name, value in row.items():
            if value is None or (value == INFINITE and name in ERRORS):
                continue
            hint = hints.setdefault(name, float if type(value) is int else type(value))
            if not _holds(value, hint):
                raise ValueError(f"layers[{number}].{name[:40]} cannot be {value!r:.40}")
        if len(hints) > MOST_COLUMNS:
            raise ValueError("its rows have more columns than any run writes")


def _holds(value: Any, hint: Any) -> bool:
    """Whether a value is of the declared type, `Annotated` or not, and within its limits."""
    declared, *limits = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    types = get_args(declared) or (declared,)  # those of `float | None`
    if float in types or int in types:
        is_number = type(value) is float or (type(value) is int and abs(value) < WHOLE_NUMBER)
        is_typed = is_number and (float in types or value % 1 == 0)
    else:
        is_typed = type(value) in types and type(value) in (str, bool)
        is_typed = is_typed and not (type(value) is str and _CONTROL.search(value))
    return is_typed and all(value in limit for limit in limits)


@contextmanager
def new_checkpoint(folder: str | Path, report: RunReport | None) -> Iterator[Path]:
    """`rose.output.new_folder` for the files of a model, which gets its report as well, where there is one.

    Whatever fails while the report is written, the model is kept.

    Raises:
        RoseError: as `new_folder`; or the report cannot be written.
    """
    failure = None
    with new_folder(folder) as temporary:
        yield temporary
        try:
            if report is not None:
                report.save(temporary)
        except Exception as problem:
            failure = problem
    if failure:
        raise RoseError(
            f"The model is whole in {folder}, but its report could not be written ({failure!s:.200}); use the model "
            "without a report, or report this."
        ) from failure


def name_of_run(method: str, asked: str, target: str = "dense") -> str:
    """ "ROSE at 0.7", "ROSE at 0.7, target layer". Dense is the usual target, so that names tell only the other."""
    return f"{label_of(method)} at {asked}" + ("" if target == "dense" else f", target {target}")


def read_reports(path: str, skip: Callable[[RoseError], Any] | None = None) -> list[RunReport]:
    """Reads a report.json, the one in a folder, or those in the folders of a folder; RoseError names a bad file.

    Of several, each that cannot be read goes to `skip`, where that is given, and the others are read.
    """
    place = expand(path.strip())
    try:
        files = [place] if place.is_file() else [place / REPORT] if (place / REPORT).is_file() else []
        files = files or sorted(place.glob(f"*/{REPORT}"))
    except (OSError, ValueError) as problem:
        raise RoseError(f"{path[:200]} cannot be read ({problem}); check the path.") from problem
    if not files:
        raise RoseError(
            f"There is no {REPORT} in {place}; give a folder that `rose prune`, `slim`, `tune` or `analyze` wrote."
        )
    if len(files) > MOST_RUNS:
        raise RoseError(f"{place} holds {len(files)} runs; give a folder of at most {MOST_RUNS}, or a single one.")
    reports = []
    for file in files:
        try:
            reports.append(RunReport.load(file))
        except RoseError as problem:
            if skip is None or len(files) == 1:
                raise
            skip(problem)
    return reports


def _check_version(data: Any, name: str) -> None:
    version = data.get("version")
    if version is None and {"summary", "layers"} <= data.keys():
        raise RoseError(f"{name} is a report of version 0.1.0, which is not read any more; make it again or remove it.")
    if isinstance(version, int) and version > VERSION:
        raise RoseError(f"{name} is a report of a later version of rose; update rose to read it.")
    _require(version == VERSION, "it has no version")


def _require(holds: bool, problem: str) -> None:
    """Raises ValueError for what `rose` does not write."""
    if not holds:
        raise ValueError(problem)


def _by_layer(table: pd.DataFrame) -> pd.DataFrame:
    names = ["layer", "block_index", "projection", *NUMBERS]
    if table.empty:
        return pd.DataFrame(columns=names).astype(dict.fromkeys(NUMBERS, float))
    _require("layer" in table and "block_index" in table, "its rows name no layer and no decoder block")
    layers = table["layer"].tolist()
    _require(all(isinstance(name, str) and _NAME.fullmatch(name) for name in layers), "a layer has no such name")
    _require(len(set(layers)) == len(layers), "a layer is there twice")
    blocks = pd.to_numeric(table["block_index"])
    _require(bool(blocks.isin(range(MOST_BLOCKS)).all()), f"a decoder block is no whole number below {MOST_BLOCKS}")
    kinds = table["projection"].tolist() if "projection" in table else [None] * len(layers)
    projections = [
        kind if isinstance(kind, str) and _NAME.fullmatch(kind) else place_of(layer)[1]
        for kind, layer in zip(kinds, layers, strict=True)
    ]
    numbers = {name: _numbers(table, name) for name in NUMBERS}
    if "kept_parameters" in table:  # of a slimmed model
        numbers["sparsity"] = 1 - _numbers(table, "kept_parameters") / _numbers(table, "parameters")
    places = {"layer": layers, "block_index": blocks.astype(int).to_numpy(), "projection": projections}
    result = pd.DataFrame(places | numbers)
    if "target" in table and table["target"].isin(TARGETS).all():
        result["target"] = table["target"].to_numpy()
    for name in FLAGS:
        if name in table:
            result[name] = (table[name] == True).to_numpy()  # noqa: E712  None is no bool
    result["cautions"] = caution_column(result)  # before what no figure can draw goes
    return result.replace([math.inf, -math.inf], math.nan)


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    """A column as floats, NaN where there is no number."""
    if name not in table:
        return np.full(len(table), np.nan)
    return pd.to_numeric(table[name], errors="coerce").to_numpy(float)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _losses(losses: Any) -> tuple[float, ...]:
    if not isinstance(losses, list) or not all(type(loss) is float and math.isfinite(loss) for loss in losses):
        return ()
    return tuple(losses)


def _tuning(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a record tells of a tuning, checked."""
    names = ("steps", "steps_planned", "kept_step", "zeros", "weights", "samples", "length")
    counts = {name: int(facts[name]) for name in names}
    numbers = {name: float(facts[name]) for name in ("seconds", "rate")}
    given = {name: None if facts.get(name) is None else float(facts[name]) for name in ("minutes", "held_out_dense")}
    change = {str(layer): float(moved) for layer, moved in facts["change"].items()}
    numbers["perplexity_before"] = _number(facts.get("perplexity_before"))
    _require(math.isfinite(numbers["seconds"] + numbers["rate"]), "a number of its tuning is not finite")
    _require(min(counts.values()) >= 0 and math.isfinite(given["minutes"] or 0.0), "a count of its tuning is negative")
    curve = [{name: _number(row[name]) for name in ("step", "seconds", "loss", "held_out")} for row in facts["curve"]]
    losses = {"losses_before": _losses(facts.get("losses_before"))}
    return {**facts, **counts, **numbers, **given, **losses, "change": change, "curve": curve}


def _accuracies(table: pd.DataFrame) -> pd.DataFrame:
    _require({"task", "questions", "accuracy"} <= set(table.columns), "its zero-shot table names no task or accuracy")
    result = pd.DataFrame({"task": [short_text(task) for task in table["task"]]})
    for name in ("questions", "accuracy", "accuracy_error", "accuracy_norm"):
        result[name] = _numbers(table, name)
    _require(bool(result["accuracy"].dropna().between(0, 1).all()), "an accuracy is not from 0 to 1")
    return result.drop_duplicates("task", ignore_index=True)


def report_beside(folder: Path) -> RunReport | None:
    """The report.json in the folder of a model; None where there is none, or another program's.

    Raises:
        RoseError: it is ours, and damaged.
    """
    place = folder / "report.json"
    try:
        return RunReport.load(place)
    except RoseError as problem:
        if not _begins(place, _BEGINS):
            if _begins(place, _BEGAN):
                raise
            return None
        why = f"is damaged ({problem.__cause__ or problem!s:.100})"
        raise RoseError(f"{place} {why}; bring back a whole one, or remove it to go on without.") from problem


def _begins(place: Path, beginning: bytes) -> bool:
    """Whether `RunReport.save` wrote this file: it begins as ours do, if only that is left, beside our table."""
    with suppress(OSError, ValueError), place.open("rb") as file:
        begins = file.read(len(beginning)).strip(b"\0")
        table = place.with_name("layers.parquet")
        return begins == beginning or (beginning.startswith(begins) and table.is_file())
    return False


def with_cautions(layers: pd.DataFrame) -> pd.DataFrame:
    """A table of layers with its column `cautions`, see `rose.verdicts`; as it is where it holds parts."""
    return layers.assign(cautions=caution_column(layers)) if "relative_error" in layers else layers


def csv_text(table: pd.DataFrame) -> str:
    """The table as CSV for people, without its index and without formulas."""
    return without_formulas(table).to_csv(index=False)


def without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """The table with an apostrophe before every text that a spreadsheet would compute."""
    safe = table.rename(columns=_no_formula)
    for place, column in enumerate(table.dtypes):
        if not pd.api.types.is_numeric_dtype(column):
            safe.isetitem(place, table.iloc[:, place].map(_no_formula))
    return safe


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def json_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON has them. Not by pandas' own to_json: its decimals are too few for a small error."""
    return finite(table.to_dict(orient="records"))


def finite(value: Any) -> Any:
    """The value with None for every NaN and infinity in it."""
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def mean_or_none(column: pd.Series) -> float | None:
    """The mean of what is known; None where nothing is."""
    values = pd.to_numeric(column).dropna()
    return float(values.mean()) if len(values) else None


def _mean_errors(pruned: pd.DataFrame) -> dict[str, float | None]:
    """Means over the layers that were pruned; where none was, the error is 0."""
    relative = mean_or_none(pruned["relative_error"]) or 0.0
    means = {"mean_relative_error": relative} | {f"mean_{name}": mean_or_none(pruned[name]) for name in ERRORS[1:]}
    apart = {f"mean_{name}": mean_or_none(pruned[name]) for name in ("pruning_error", "rounding_error")}
    return means | {name: mean for name, mean in apart.items() if mean is not None}


def records_table(records: Sequence[Any], kind: type = LayerRecord) -> pd.DataFrame:
    """One row per record of this dataclass; the columns are there even when no record is.

    Columns that may be empty are floats: None everywhere has no dtype.
    """
    table = pd.DataFrame(map(dataclasses.asdict, records), columns=[*get_type_hints(kind)])
    return table.astype(dict.fromkeys(_optional(kind), float))


def read_records(path: str | Path, kind: type[Record], holds: str) -> list[Record]:
    """Reads a CSV file of `records_table`; fields that have a default may be missing.

    Raises RoseError for another file, and says there what it should hold: `holds`, such as "damages". Also for a line
    that is no whole row, which it names: cut off, or with something else for a number, or a number that cannot be.
    """
    try:
        content = Path(path).read_text(encoding="utf-8")
        return list(_records(content, kind, f"of {path} is no whole row of {holds}"))
    except OSError as problem:
        raise RoseError(f"{path} cannot be read ({problem.strerror}); choose a rows.csv of rose.") from problem
    except RoseError:
        raise
    except (ValueError, csv.Error) as problem:
        raise RoseError(f"{path} is not a table of {holds}; choose a rows.csv of rose.") from problem


def _records(content: str, kind: type[Record], refusal: str) -> Iterator[Record]:
    """The records of a CSV text; RoseError for a line that holds none, ValueError for other columns."""
    lines, hints = csv.reader(io.StringIO(content)), get_type_hints(kind, include_extras=True)
    names, fields = next(lines, []), cast(Any, dataclasses.fields)(kind)
    required = {field.name for field in fields if field.default is dataclasses.MISSING}
    if not required <= {*names} or len({*names}) < len(names):
        raise ValueError("columns are missing, or there twice")
    for texts in filter(None, lines):
        try:
            if len(texts) != len(names):
                raise ValueError
            columns = zip(names, texts, strict=True)
            yield kind(**{name: _read(name, text, hints[name]) for name, text in columns if name in hints})
        except ValueError as problem:
            raise _broken(lines.line_num, refusal, problem) from problem
    if not content.endswith("\n"):
        raise _broken(lines.line_num, refusal, "")


def _broken(line: int, refusal: str, why: object) -> RoseError:
    return RoseError(f"Line {line} {refusal}{why}; remove it, and the command that wrote the file adds it again.")


def _read(name: str, text: str, hint: Any) -> Any:
    """The value that a field of this type, `Annotated` or not, was written as; ValueError names another text."""
    declared = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    value: Any = text
    if declared is not str:
        if not text and type(None) in get_args(declared):
            return None
        number = text if text.isascii() and "_" not in text else "x"  # what Python reads as a number, and nothing else
        with suppress(ValueError):
            value = int(number) if declared is int else float(number or "nan")
    if not _holds(value, hint):
        raise ValueError(f" ({name} {text[:40]!r})")
    return value


def _optional(kind: type) -> list[str]:
    """Fields that are a number or None."""
    return [name for name, hint in get_type_hints(kind).items() if hint in (float | None, int | None)]
