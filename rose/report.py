"""Typed results as pandas, JSON, CSV and parquet; the report of a run."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

import pandas as pd

from rose.errors import RoseError
from rose.files import check_small, reachable, write_atomically
from rose.output import check_folder, new_folder
from rose.verdicts import caution_column, cautions

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
_BEGINS = b'{\n "summary": {'  # a report.json of ours
_ENTRIES: dict[str, tuple[type[list] | type[dict], type]] = {  # of a summary: a container, and what is in it
    "drift": (list, dict),
    "pruned": (dict, str),
    "tuned": (dict, str),
    "tuned_before": (list, dict),
    "text_cautions": (list, str),
    "remarks": (list, str),
}
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
    """A run over a model.

    Attributes:
        layers: one row per layer (and method), columns as in `LayerRecord`.
        summary: settings, totals, and what was evaluated.
    """

    layers: pd.DataFrame
    summary: dict[str, Any]

    @classmethod
    def from_records(cls, records: Sequence[LayerRecord], **settings: Any) -> RunReport:
        """Builds the table and adds totals to the settings."""
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
        return cls(table, {**settings, **totals})

    @property
    def last_drift(self) -> float | None:
        """Drift of the residual stream after the last pruned decoder block; None without held-out tokens.

        See `rose.model.walk.dense_states.BlockDrift`.
        """
        return self.summary["drift"][-1]["drift"] if self.summary.get("drift") else None

    @property
    def remarks(self) -> list[str]:
        """How far the numbers can be trusted, and where target dense could not do all that it is for, a sentence
        each. `text_cautions` of the summary are those of whoever has drawn the calibration text."""
        said = [*self.summary.get("text_cautions", []), *cautions(self.layers)]
        if self.summary.get("is_language_part"):
            said.append(LANGUAGE_PART)
        if padded := self.summary.get("padded_windows"):
            said.append(
                f"{padded} of {self.summary['samples']} calibration windows begin or end in one token repeated, as "
                "padding does, which counts like text here; give windows of text alone, as load_tokens does."
            )
        if self.summary.get("target") != "dense" or "target" not in self.layers:  # parts do not say
            return said
        pruned = pruned_rows(self.layers)
        blocks = set(pruned["block_index"])
        corrected = set(pruned.loc[pruned["target"] == "dense and stream", "block_index"])
        if len(corrected) < len(blocks):
            said.append(
                f"In {len(blocks - corrected)} of {len(blocks)} decoder blocks no pruned layer is known to write into "
                "the residual stream, so what it has lost is not made good there."
            )
        if own := int((pruned["target"] == "layer").sum()):
            said.append(
                f"{own} of {len(pruned)} layers were pruned towards their own output, because it is not known what "
                "they read in the dense model."
            )
        return said

    @property
    def stages(self) -> list[RunReport]:
        """The report itself; where what slimming had left was pruned, one of each."""
        rest = self.summary.get("pruned")
        if rest is None:
            return [self]
        return [
            RunReport(self.layers.iloc[: -rest["layers"]], self.summary),
            RunReport(self.layers.iloc[-rest["layers"] :], rest),
        ]

    def without_errors(self) -> RunReport:
        """What still holds of a report once its model is tuned: errors of layers, drift and sizes were those before.
        Of a run in two stages, the first one's stay."""
        *first, last = self.stages
        gone = [name for name in (*ERRORS, "pruning_error", "rounding_error") if name in self.layers]
        gone_too = ("drift", "plain_bytes", "packed_bytes")
        kept = {
            name: one for name, one in last.summary.items() if not name.startswith("mean_") and name not in gone_too
        }
        if not first:
            return RunReport(self.layers.drop(columns=gone), kept)
        layers = self.layers.copy()
        layers.loc[last.layers.index, gone] = math.nan
        return RunReport(layers, {**self.summary, "pruned": kept})

    def with_summary(self, **entries: Any) -> RunReport:
        """The same report with further entries in its summary."""
        return RunReport(self.layers, {**self.summary, **entries})

    def to_json(self) -> str:
        """As JSON, which knows neither NaN nor infinity: both become null, but an infinite error of a layer is a text,
        for none would read as not measured."""
        errors = [name for name in ERRORS if name in self.layers]
        rows = json_rows(self.layers.replace(dict.fromkeys(errors, math.inf), INFINITE))
        known = {"summary": finite(self.summary), "layers": rows}
        return json.dumps(known, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, name: str = "This") -> RunReport:
        """Reads what `to_json` wrote.

        Raises:
            RoseError: the text is not a report.
        """
        try:
            data = json.loads(text)
            if r"\ud" in text.lower():  # half of a pair of surrogates is no character, and cannot be written
                data = json.loads(json.dumps(data, ensure_ascii=False).encode(errors="replace"))
            rows, summary = data["layers"], dict(data["summary"])
            _check_rows(rows)
            _check_summary(summary, len(rows))
            table = pd.DataFrame(rows)
            table = table.astype({name: float for name in (*ERRORS, *_optional(LayerRecord)) if name in table})
            return cls(table, summary)
        except (ValueError, KeyError, TypeError, RecursionError) as problem:
            raise RoseError(f"{name} is not a report written by rose ({problem!s:.100}); choose another.") from problem

    @classmethod
    def load(cls, path: str | Path) -> RunReport:
        """Reads what `save` wrote: a report.json, or the one in a folder.

        Raises:
            RoseError: it is not there, cannot be looked up, or is not a report.
        """
        place = reachable(path)
        place = place / "report.json" if place.is_dir() else place
        check_small(place)
        return cls.from_json(place.read_text(encoding="utf-8", errors="replace"), str(place))

    def save(self, folder: str | Path) -> None:
        """Writes report.json, layers.csv and layers.parquet into a folder, each whole or not at all.

        Raises:
            RoseError: it is a file, or not writable.
        """
        check_folder(folder)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "report.json", self.to_json().encode())
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


def _check_summary(summary: dict[str, Any], rows: int) -> None:
    """Raises ValueError unless those entries that `RunReport` reads by itself are of the types that a run writes."""
    for name, (container, inner) in _ENTRIES.items():
        entry = summary.get(name)
        if entry is not None and not (isinstance(entry, container) and all(isinstance(each, inner) for each in entry)):
            raise ValueError(f"its {name} cannot be {entry!r:.40}")
    if any("drift" not in each for each in summary.get("drift") or ()):
        raise ValueError("its drift has no numbers")
    rest = summary.get("pruned")
    if rest is not None:
        if not (type(rest.get("layers")) is int and 0 < rest["layers"] <= rows):
            raise ValueError("it does not say how many of its rows were pruned")
        _check_summary(rest, rows)


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


def report_beside(folder: Path) -> RunReport | None:
    """The report.json in the folder of a model; None where there is none, or another program's.

    Raises:
        RoseError: it is ours, and damaged.
    """
    place = folder / "report.json"
    try:
        return RunReport.load(place)
    except RoseError as problem:
        if not _is_ours(place):
            return None
        why = f"is damaged ({problem.__cause__ or problem!s:.100})"
        raise RoseError(f"{place} {why}; bring back a whole one, or remove it to go on without.") from problem


def _is_ours(place: Path) -> bool:
    """Whether `RunReport.save` wrote this file: it begins as ours do, if only that is left, beside our table."""
    with suppress(OSError, ValueError), place.open("rb") as file:
        begins = file.read(len(_BEGINS)).strip(b"\0")
        table = place.with_name("layers.parquet")
        return begins == _BEGINS or (_BEGINS.startswith(begins) and table.is_file())
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
