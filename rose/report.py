"""The record of a run: its recipe and its results, with one writer and one reader."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from rose.environment import versions
from rose.errors import RoseError
from rose.files import check_small, expand, reachable, write_atomically
from rose.layer.pattern import BITS, GROUP, GROUPS, Grid
from rose.layer.registry import label_of
from rose.output import check_folder, new_folder
from rose.recipe.file import PLACE
from rose.recipe.tools import SPECS
from rose.rows import (
    ERRORS,
    INFINITE,
    LayerRecord,
    csv_text,
    finite,
    json_rows,
    json_table,
    mean_or_none,
    pruned_rows,
    records_table,
    removed_fraction,
    with_cautions,
)
from rose.spec import Spec
from rose.verdicts import EvaluationSetup, Result, caution_column, cautions
from rose.wording import duration, out_of, place_of, sentence, short_text, whole

if TYPE_CHECKING:
    from rose.layer.columnar import PaperFigures


LANGUAGE_PART = "Only the language model of these files was read: a copy is for text alone, not for pictures or sounds."
_BEGINS = b'{\n "version": '  # a report.json of ours
_BEGAN = b'{\n "summary": {'  # one of version 0.1.0
_NAME = re.compile(r"[\w.:@/%+-]{1,200}")  # of layers, projections and methods
REPORT, ZERO_SHOT = "report.json", "zero_shot.csv"
VERSION = 2  # of a report.json; rose 0.1.0 wrote none
MOST_RUNS = 40  # in one folder of folders
MOST_BLOCKS = 4096  # decoder blocks
CONDITION = 200  # longest description of an evaluation, in characters
ENOUGH = 0.8  # a copy is named by its planned minutes if it was tuned for this share of them
# what reading a file of another program may raise
FOREIGN = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
TARGETS = ("layer", "dense", "dense and stream")  # of a layer
FLAGS = ("is_columnar", "is_damping_raised")
NUMBERS = (
    *("rows", "columns", "sparsity", "relative_error", "held_out_error", "target_error", "held_out_target_error"),
    *("pruning_error", "rounding_error", "error_without_massive", "relative_range", "damping", "target_damping"),
    *("dead_columns", "seconds", "tokens", "change", "zeros_before", "asked_sparsity"),
)
CONCLUDED = (  # results of a run in two stages that hold for the second stage too
    *("model", "dtype", "calibration", "seed", "bos", "evaluated_on", "windows", "perplexity_before"),
    *("perplexity_after", "losses_before", "losses_after", "made_with", "tuned", "tuned_before"),
)
Kind = Literal["prune", "slim", "study", "check"]
KINDS: dict[str, Kind] = {"slim": "slim", "analyze": "study", "check": "check"}  # others prune


@dataclass(frozen=True, eq=False)  # tables have no == that is one truth
class RunReport:
    """The record of a run over a model.

    Attributes:
        layers: a row per layer (and method), columns as in `LayerRecord`; for slimming, a row per part.
        results: totals, evaluations before and after, versions and environment.
        recipe: the settings of the run; "run" names its command.
        called: a name that replaces the usual name when runs are shown side by side.
        place: the folder that the record was read from; "" for a run of this process.
        origin: identifies the run whatever its name; None if this object identifies it.
        then: the record of a second stage, which pruned the model that this stage, slimming, left.
    """

    layers: pd.DataFrame
    results: Mapping[str, Any]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    called: str = ""
    place: str = ""
    origin: Any = None
    then: RunReport | None = None

    @classmethod
    def from_records(
        cls, records: Sequence[LayerRecord], recipe: Mapping[str, Any] | None = None, **results: Any
    ) -> RunReport:
        """Builds the table and adds totals to the results."""
        table = records_table(records)
        pruned = pruned_rows(table)
        layers = table.drop_duplicates("layer")  # each method may have a row
        errors = _mean_errors(pruned)
        totals: dict[str, Any] = {
            "layers": len(layers),
            "columnar_layers": int(layers["is_columnar"].sum()),
            "weights": int((layers["rows"] * layers["columns"]).sum()),
            "removed_fraction": removed_fraction(table),
            **errors,
            "layers_with_raised_damping": int(table["is_damping_raised"].sum()),
        }
        if table["method"].nunique() > 1:  # a mean over methods has no meaning
            by_method = {method: _mean_errors(rows) for method, rows in pruned.groupby("method", sort=False)}
            totals |= dict.fromkeys(errors) | {"mean_errors": by_method}
        return cls(table, {**results, **totals}, recipe or {})

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Recipe and results in one mapping."""
        return {**self.recipe, **self.results}

    def with_summary(self, **entries: Any) -> RunReport:
        """A copy of the record with further results."""
        return replace(self, results={**self.results, **entries})

    def with_recipe(self, **settings: Any) -> RunReport:
        """A copy of the record with further settings."""
        return replace(self, recipe={**self.recipe, **settings})

    def signed(self, spec: Spec, **results: Any) -> RunReport:
        """A copy of the record with the whole recipe, program versions, and further results."""
        fields = {name: value for name, value in spec.to_dict().items() if value is not None}
        recipe = {"run": spec.run, **fields, **self.recipe}
        return replace(self, recipe=recipe, results={**self.results, **results, "made_with": versions()})

    def as_step(self) -> Spec | None:
        """The step of a recipe that repeats the run; None if the record has no valid recipe."""
        spec = SPECS.get(str(self.recipe.get("run")))
        if spec is None or not self.recipe.keys() & {"model", "dense"}:  # a run from Python
            return None
        if self.recipe.get("rotate"):  # of version 0.1.0
            return None
        fields = {name: value for name, value in self.recipe.items() if name in spec.fields()}
        try:
            return spec.of(**{"output": PLACE} | fields if "output" in spec.fields() else fields)
        except RoseError:
            return None

    # ---- which run it is

    @property
    def kind(self) -> Kind:
        """ "prune" and "slim" changed a model block by block; a "study" measured each layer of the dense model alone;
        a "check" compared a checkpoint with its dense model."""
        return KINDS.get(str(self.recipe.get("run")), "prune")

    @property
    def is_analysis(self) -> bool:
        """Whether there is a row for each layer and method."""
        return "methods" in self.summary and "method" not in self.summary

    @property
    def identity(self) -> Any:
        """Identifies the run, whatever its name."""
        if self.place:
            return self.place, self.kind, self.method
        return self if self.origin is None else self.origin

    @property
    def method(self) -> str:
        return str(self.summary.get("method"))

    @property
    def grid(self) -> Grid | None:
        """The grid of kept weights; None where they were not rounded."""
        bits, group = self.summary.get("bits"), self.summary.get("group") or GROUP
        return Grid(bits, group) if bits in BITS and group in GROUPS else None

    @property
    def target(self) -> str:
        """ "layer" or "dense"; "" if unknown, as for a model pruned elsewhere."""
        target = self.summary.get("target", "layer" if self.kind == "study" else "")
        return target if target in ("layer", "dense") else ""

    @property
    def asked(self) -> str:
        """What the run removes: "0.7", "0.7, 4 bits", "20 % out"."""
        if self.kind == "slim":
            return f"{100 * float(self.summary['ratio']):g} % out"
        return short_text(self.summary.get("sparsity")) + (f", {self.grid.brief}" if self.grid else "")

    @property
    def is_tuned(self) -> bool:
        return "tuned" in self.summary

    @property
    def start(self) -> str:
        """The model that the run changed: "dense", or "slimmed" after slimming."""
        return "slimmed" if "after" in self.summary else "dense"

    @property
    def name(self) -> str:
        """ "ROSE at 0.7, 4 bits", "ROSE at 0.7, target layer, tuned 3 min"; or `called`."""
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
    def tuned_suffix(self) -> str:
        """ ", tuned 3 min": the planned time, or the real time if that is clearly less; "" without tuning."""
        if not self.is_tuned:
            return ""
        tuned = self.tuned
        planned = 60 * (tuned.get("minutes") or 0)
        if tuned["steps"] < tuned["steps_planned"] or tuned["seconds"] < ENOUGH * planned:
            return f", tuned {duration(tuned['seconds'])}"
        return f", tuned {duration(planned)}" if planned else f", tuned {whole(tuned['steps'])} steps"

    # ---- results

    @property
    def last_drift(self) -> float | None:
        """Drift after the last pruned decoder block; None without held-out tokens."""
        return self.summary["drift"][-1]["drift"] if self.summary.get("drift") else None

    @cached_property
    def drift(self) -> list[dict[str, Any]]:
        """Drift by decoder block; empty where hidden states overflowed."""
        parts = ("drift", "passed_on", "arisen")
        drift = [
            {"block_index": int(entry["block_index"]), **{part: _number(entry[part]) for part in parts}}
            for entry in self.summary.get("drift") or []
        ]
        _require(all(0 <= entry["block_index"] < MOST_BLOCKS for entry in drift), "its drift is not of decoder blocks")
        places = parts if self.kind != "check" else parts[:1]  # a check does not measure where drift arises
        return drift if all(math.isfinite(entry[part]) for entry in drift for part in places) else []

    @property
    def seconds(self) -> float:
        """Seconds of pruning and tuning; 0 if unknown."""
        stages = [self.summary, *self.summary.get("tuned_before", []), self.summary.get("tuned", {})]
        return sum(float(stage.get("seconds", 0.0)) for stage in stages)

    @cached_property
    def tuned(self) -> dict[str, Any]:
        """The last tuning, see `rose.model.tune.task.TuneReport.facts`; {} without tuning."""
        return _tuning(self.summary["tuned"]) if self.is_tuned else {}

    @cached_property
    def zero_shot(self) -> pd.DataFrame | None:
        """A row per task: task, questions, accuracy, accuracy_error, accuracy_norm; None without tasks."""
        rows = self.summary.get("zero_shot")
        return _accuracies(pd.DataFrame(rows)) if isinstance(rows, list) and rows else None

    @cached_property
    def paper(self) -> PaperFigures | None:
        """Orders that an analysis tried on one layer."""
        from rose.layer.columnar import read_paper_figures  # with torch: a report alone needs none

        paper = read_paper_figures(self.summary["paper"]) if self.summary.get("paper") else None
        _require(paper is None or _is_name(paper.layer), "a layer has no such name")
        return paper

    def number(self, name: str) -> float | None:
        """A total or setting; None unless it is a number that a figure can draw."""
        value = self.summary.get(name)
        if isinstance(value, bool) or not isinstance(value, float | int):
            return None
        return float(value) if abs(value) < 1e300 else None

    @property
    def perplexity(self) -> float:
        """Perplexity after the run; NaN if not measured, NaN or infinite for a ruined model."""
        value = self.summary.get("perplexity_after")
        return float(value) if isinstance(value, float | int) else math.nan

    def losses(self, stage: str) -> tuple[float, ...]:
        """Loss of each evaluation window in nats a token, "before" (dense) or "after"; () where not kept."""
        return _losses(self.summary.get(f"losses_{stage}"))

    @property
    def setup(self) -> EvaluationSetup:
        """The conditions that must agree before this run is compared with another."""
        summary, norms = self.summary, self.summary.get("embedding_norms")
        text, length = summary.get("evaluated_on"), summary.get("window_length", summary.get("length"))
        environment = summary.get("environment")
        return EvaluationSetup(
            model=short_text(model, CONDITION) if (model := summary.get("model")) else None,
            norms=tuple(norms) if isinstance(norms, list) and all(isinstance(norm, float) for norm in norms) else (),
            windows=short_text(f"{summary.get('windows')} × {length} of {text}", CONDITION) if text else None,
            dense=self.number("perplexity_before"),
            layers=frozenset(self.by_layer["layer"]),
            environment=short_text(environment, CONDITION) if isinstance(environment, str) else None,
        )

    @property
    def result(self) -> Result:
        """The perplexity in the form that `rose.verdicts` compares."""
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
        """A row per layer: layer, block_index, projection, `NUMBERS` and cautions; `FLAGS` and target if known.

        Unknown and infinite numbers are NaN. The table is empty where whole decoder blocks were dropped.
        """
        table, change = self.layers, self.tuned.get("change")
        if change is not None and "layer" in table:
            table = table.assign(change=table["layer"].map(change))
        # Cautions are about errors on calibration tokens.
        return _by_layer(table).drop(columns=["cautions"] if self.kind == "check" else [], errors="ignore")

    @property
    def pruned(self) -> pd.DataFrame:
        """The rows of `by_layer` that count in means: without experts that were left dense."""
        pruned = self.by_layer if self.kind == "slim" else pruned_rows(self.by_layer)
        return self.by_layer if pruned.empty else pruned

    @cached_property
    def remarks(self) -> list[str]:
        """Cautions about the numbers, a sentence each."""
        remarks = list(self.summary.get("remarks", ()))
        if self.kind != "check":  # cautions are about errors on calibration tokens
            texts = self.summary.get("text_cautions", [])
            remarks = [*texts, *cautions(self.layers), *self._own_remarks(), *remarks]
            is_finite = self.pruned["relative_error"].notna() if not self.is_analysis else pd.Series(dtype=bool)
            if is_finite.any() and not is_finite.all():  # a tuned copy has none at all
                where = sentence(f"in {out_of(int((~is_finite).sum()), len(is_finite), 'layer')}")
                remarks.append(f"{where} the error on calibration tokens is not finite; means leave it out.")
        return list(dict.fromkeys(remarks))

    def _own_remarks(self) -> Iterator[str]:
        if self.summary.get("is_language_part"):
            yield LANGUAGE_PART
        if padded := self.summary.get("padded_windows"):
            yield (
                f"{padded} of {self.summary['samples']} calibration windows begin or end with one repeated token, like "
                "padding, which counts as text here; give windows without padding, as load_tokens does."
            )
        if self.summary.get("target") != "dense" or "target" not in self.layers:  # parts have no such column
            return
        pruned = pruned_rows(self.layers)
        blocks = set(pruned["block_index"])
        corrected = set(pruned.loc[pruned["target"] == "dense and stream", "block_index"])
        if len(corrected) < len(blocks):
            yield (
                f"In {len(blocks - corrected)} of {len(blocks)} decoder blocks no pruned layer was seen to write into "
                "the residual stream, so its drift is not corrected there."
            )
        if uncorrected := int((pruned["target"] == "layer").sum()):
            yield (
                f"{uncorrected} of {len(pruned)} layers were fitted to their own output, because their input in the "
                "dense model is not known."
            )

    # ---- stages

    @cached_property
    def runs(self) -> list[RunReport]:
        """A record per stage, or per method of an analysis. Raises ValueError for foreign records."""
        if not self.is_analysis:
            return self.stages
        _require("method" in self.layers and len(self.layers) > 0, "it has no layers")
        runs, shared = [], {name: value for name, value in self.results.items() if name != "mean_errors"}
        for method, rows in self.layers.groupby("method", sort=False):
            _require(_is_name(method), "a method has no such name")
            origin = None if self.origin is None else (*self.origin, method)
            runs.append(replace(self, layers=rows, results=shared | {"method": str(method)}, origin=origin))
        return runs

    @property
    def stages(self) -> list[RunReport]:
        """The record itself, or a record per stage with the evaluation after it."""
        if self.then is None:
            return [self]
        of_second = ("perplexity_after", "losses_after", "tuned", "tuned_before")
        results = {name: value for name, value in self.results.items() if name not in of_second}
        results = {name.replace("slimmed", "after"): value for name, value in results.items()}
        slimmed = replace(self, results=results, then=None)
        concluded = {name: self.summary[name] for name in CONCLUDED if name in self.summary}
        results = {**concluded, **self.then.results, "after": slimmed.name}
        return [slimmed, replace(self, layers=self.then.layers, results=results, recipe=self.then.recipe, then=None)]

    def without_errors(self) -> RunReport:
        """The record without errors of layers and drift, which tuning changes. A first stage stays."""
        if self.then is not None:
            return replace(self, then=self.then.without_errors())
        of_layers = (*ERRORS, "pruning_error", "rounding_error", "error_without_massive")
        layers = self.layers.drop(columns=[name for name in of_layers if name in self.layers])
        outdated = {"drift", *(name for name in self.results if name.startswith("mean_"))}
        results = {name: value for name, value in self.results.items() if name not in outdated}
        return replace(self, layers=layers, results=results)

    # ---- files

    def to_json(self) -> str:
        """The record as JSON: NaN and infinity as null, but an infinite error as a text."""
        return json.dumps({"version": VERSION, **self._parts()}, indent=1, allow_nan=False)

    def _parts(self) -> dict[str, Any]:
        errors = [name for name in ERRORS if name in self.layers]
        rows = json_rows(self.layers.replace(dict.fromkeys(errors, math.inf), INFINITE))
        parts = {"recipe": finite(self.recipe), "results": finite(self.results), "layers": rows}
        return parts if self.then is None else parts | {"then": self.then._parts()}

    @classmethod
    def from_json(cls, text: str, name: str = "This") -> RunReport:
        """Reads the text of `to_json`, and checks everything that pages show. Raises RoseError for any other text."""
        try:
            data = json.loads(text)
            if r"\ud" in text.lower():  # half of a surrogate pair cannot be written
                data = json.loads(json.dumps(data, ensure_ascii=False).encode(errors="replace"))
            version = data.get("version")
            if version is None and {"summary", "layers"} <= data.keys():
                raise RoseError(
                    f"{name} is a report of rose 0.1.0, which is no longer read; make it again or remove it."
                )
            if isinstance(version, int) and version > VERSION:
                raise RoseError(f"{name} is a report of a later version of rose; update rose to read it.")
            _require(version == VERSION, "it has no version")
            report = cls._of(data)
            if "then" in data:
                report = replace(report, then=cls._of(data["then"]))
            for run in report.runs:
                run._check()
            return report
        except RoseError:
            raise
        except FOREIGN as problem:
            raise RoseError(f"{name} is not a report written by rose ({problem!s:.100}); choose another.") from problem

    @classmethod
    def _of(cls, parts: Mapping[str, Any]) -> RunReport:
        return cls(json_table(parts["layers"]), dict(parts["results"]), dict(parts["recipe"]))

    def _check(self) -> None:
        """Raises ValueError or TypeError if a page could not show the record."""
        _require(_is_name(self.summary.get("method")), "it names no method")
        _ = self.name, self.by_layer, self.drift, self.zero_shot, self.paper, self.seconds
        for tuning in self.summary.get("tuned_before", []):
            _tuning(tuning)
        for facts in (self.summary, self.summary.get("tuned") or {}):
            perplexities = [facts.get(f"perplexity_{stage}") for stage in ("before", "after", "slimmed")]
            _require(not any(_number(each) < 1 for each in perplexities), "a perplexity is below 1")
        _require(all(isinstance(remark, str) for remark in self.remarks), "its remarks are no sentences")

    @classmethod
    def load(cls, path: str | Path) -> RunReport:
        """Reads a report.json, or a folder's, with the accuracies beside it. Raises RoseError for any other file."""
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
        except FOREIGN as problem:
            raise RoseError(f"{beside} holds no accuracies ({problem!s:.100}); remove it.") from problem
        return replace(report, place=str(place.parent))

    def save(self, folder: str | Path) -> None:
        """Writes report.json, layers.csv and layers.parquet into a folder, each whole or not at all. Raises RoseError:
        the folder is a file, or not writable."""
        check_folder(folder)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / REPORT, self.to_json().encode())
        table = pd.concat([run.layers for run in (self, self.then) if run is not None], ignore_index=True)
        write_atomically(folder / "layers.csv", csv_text(with_cautions(table)).encode())
        write_atomically(folder / "layers.parquet", table.to_parquet(index=False))


@contextmanager
def new_checkpoint(folder: str | Path, report: RunReport | None) -> Iterator[Path]:
    """`rose.output.new_folder` for a model and its report, if any. A failing report leaves the model in place. Raises
    RoseError: as `new_folder`; or the report cannot be written."""
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
            "without a report, or file an issue."
        ) from failure


def name_of_run(method: str, amount: str, target: str = "dense") -> str:
    """ "ROSE at 0.7", "ROSE at 0.7, target layer"; dense is the usual target."""
    return f"{label_of(method)} at {amount}" + ("" if target == "dense" else f", target {target}")


def read_runs(path: str, skip: Callable[[RoseError], Any] | None = None) -> list[RunReport]:
    """The runs of a report.json, of a folder, or of the folders in a folder; RoseError names a bad file.

    `skip` gets the error of a bad file among several; the others are read.
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
    runs: list[RunReport] = []
    for file in files:
        try:
            runs += RunReport.load(file).runs
        except RoseError as problem:
            if skip is None or len(files) == 1:
                raise
            skip(problem)
    return runs


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(_NAME.fullmatch(value))


def _by_layer(table: pd.DataFrame) -> pd.DataFrame:
    table = pd.DataFrame(columns=["layer", "block_index"]) if table.empty else table.reset_index(drop=True)
    _require({"layer", "block_index"} <= {*table}, "its rows name no layer and no decoder block")
    layers, blocks = table["layer"].tolist(), pd.to_numeric(table["block_index"])
    _require(all(map(_is_name, layers)), "a layer has no such name")
    _require(len(set(layers)) == len(layers), "a layer is there twice")
    _require(bool(blocks.isin(range(MOST_BLOCKS)).all()), f"a decoder block is no whole number below {MOST_BLOCKS}")
    kinds = zip(table.get("projection", [None] * len(layers)), layers, strict=True)
    places = [kind if _is_name(kind) else place_of(layer)[1] for kind, layer in kinds]
    result = _floats(table, NUMBERS)
    if "kept_parameters" in table:  # of a slimmed model
        counts = _floats(table, ("kept_parameters", "parameters"))
        result["sparsity"] = 1 - counts["kept_parameters"] / counts["parameters"]
    result = table[["layer"]].assign(block_index=blocks.astype(int), projection=places).join(result)
    if "target" in table and table["target"].isin(TARGETS).all():
        result["target"] = table["target"]
    for name in table.columns.intersection(FLAGS, sort=False):
        result[name] = table[name] == True  # noqa: E712  None is no bool
    result["cautions"] = caution_column(result.join(table.filter(["massive"])))  # cautions need infinite errors
    return result.replace([math.inf, -math.inf], math.nan)


def _floats(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """These columns as floats; NaN for missing numbers."""
    return table.reindex(columns=[*names]).apply(pd.to_numeric, errors="coerce").astype(float)


def _mean_errors(pruned: pd.DataFrame) -> dict[str, float | None]:
    """Means over pruned layers; 0 where none was pruned."""
    means = {f"mean_{name}": mean_or_none(pruned[name]) for name in (*ERRORS, "pruning_error", "rounding_error")}
    means["mean_relative_error"] = means["mean_relative_error"] or 0.0
    return {name: mean for name, mean in means.items() if mean is not None or name.removeprefix("mean_") in ERRORS}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _losses(losses: Any) -> tuple[float, ...]:
    is_whole = isinstance(losses, list) and all(type(loss) is float and math.isfinite(loss) for loss in losses)
    return tuple(losses) if is_whole else ()


def _tuning(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a tuning, checked."""
    names = ("steps", "steps_planned", "kept_step", "zeros", "weights", "samples", "length")
    counts = {name: int(facts[name]) for name in names}
    numbers = {name: float(facts[name]) for name in ("seconds", "rate")}
    optional = {name: None if facts.get(name) is None else float(facts[name]) for name in ("minutes", "held_out_dense")}
    change = {str(layer): float(moved) for layer, moved in facts["change"].items()}
    numbers["perplexity_before"] = _number(facts.get("perplexity_before"))
    finite_numbers = (numbers["seconds"], numbers["rate"], optional["minutes"] or 0.0)
    _require(all(map(math.isfinite, finite_numbers)), "a number of its tuning is not finite")
    _require(min(counts.values()) >= 0, "a count of its tuning is negative")
    curve = [{name: _number(row[name]) for name in ("step", "seconds", "loss", "held_out")} for row in facts["curve"]]
    losses = {"losses_before": _losses(facts.get("losses_before"))}
    return {**facts, **counts, **numbers, **optional, **losses, "change": change, "curve": curve}


def _accuracies(table: pd.DataFrame) -> pd.DataFrame:
    _require({"task", "questions", "accuracy"} <= set(table.columns), "its zero-shot table names no task or accuracy")
    result = _floats(table, ("questions", "accuracy", "accuracy_error", "accuracy_norm"))
    result.insert(0, "task", table["task"].map(short_text))
    _require(bool(result["accuracy"].dropna().between(0, 1).all()), "an accuracy is not from 0 to 1")
    return result.drop_duplicates("task", ignore_index=True)


def report_beside(folder: Path) -> RunReport | None:
    """The report.json beside a model; None if it is missing or another program's; RoseError if it is ours, damaged."""
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
    """Whether `RunReport.save` wrote this file, even if it was cut off."""
    with suppress(OSError, ValueError), place.open("rb") as file:
        begins = file.read(len(beginning)).strip(b"\0")
        table = place.with_name("layers.parquet")
        return begins == beginning or (beginning.startswith(begins) and table.is_file())
    return False
