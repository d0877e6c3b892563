"""Rows of tables: their declared types, read and written as CSV and JSON."""

import csv
import dataclasses
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

import pandas as pd

from rose.errors import RoseError
from rose.verdicts import caution_column
from rose.wording import sentence

Record = TypeVar("Record")
FLOAT32_MAX = 3.5e38  # no finite number beyond it was computed from a model's outputs


class Within(NamedTuple):
    """Bounds of a number in a file, for `Annotated`; infinity is allowed with the default upper bound."""

    low: float
    high: float = FLOAT32_MAX
    or_nan: bool = False

    def __call__(self, value: float) -> bool:
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
ERRORS = ("relative_error", "held_out_error", "target_error", "held_out_target_error")  # of a layer, or of a part
INFINITE = "Infinity"  # an error in a report.json
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # no name and no sentence has such a character
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a text begins with that a spreadsheet would compute


@dataclass(frozen=True)
class LayerRecord:
    """One pruned layer in numbers; errors are relative to the dense output, `seconds` is pruning alone.

    `relative_error` and `held_out_error` are against what the layer's dense weight puts out on the same, pruned inputs;
    `target_error` and `held_out_target_error` against the dense model's output, where that was the target (see
    `rose.layer.target`). `target`: "layer", its own output; "dense"; or "dense and stream",
    which also corrects what the residual stream has lost. Held-out ones are None where no held-out tokens were given.
    `damping` and `target_damping` are relative to the mean of diag(H). `tokens` of calibration have reached the layer:
    few or none where it is of an expert, which may then have been left dense, with sparsity 0.
    `is_damping_raised`: the Hessian could not be factorized with the damping asked for, or with the target damping.
    `sparsity` counts weights that were zero before too; `zeros_before` is their share, and `asked_sparsity` what was
    asked of this layer, None in reports of former versions, and where it was left dense.
    `order` and `budget` are those used, which tells what ROSE decided and what "measured" chose.
    `column_variation`: see `OrderPlan`; None in reports of former versions, and where nothing was pruned.
    `pruning_error` and `rounding_error`, None where nothing was rounded: what each adds, on calibration tokens, to
    `target_error` where the dense model is the target, and else to `relative_error`, which is their sum. The rest of
    `target_error` is left by the weights that pruning and rounding approximate. See `rose.layer.result.LayerResult`.
    `mask_error`, where it was asked for: what exactly refitted weights leave of `relative_error`; the rest is the
    sequence's part, see `rose.layer.split`.
    `range_low` to `range_high`: the 95 % interval of `relative_range` over draws of text, see `OrderPlan.interval`.
    `heads_per_block`, of an output projection: attention heads whose columns a block holds; `between_heads` is the
    share of the variance of column losses that lies between heads.
    `massive` names the few input channels that carry nearly all of the input, and where; it is "" without any.
    `error_without_massive` is `relative_error` over all other channels. See `rose.layer.error`.
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
    massive: str = ""
    error_without_massive: float | None = None
    mask_error: float | None = None
    range_low: float | None = None
    range_high: float | None = None
    heads_per_block: float | None = None
    between_heads: float | None = None


@dataclass(frozen=True)
class DamageRecord:
    """The model's loss by one unit, as `rose damage` measures it; see `rose.model.measure.damage`."""

    unit: str  # name of the layer, or of the decoder block; "*" for all units at once, with block_index −1
    block_index: Annotated[int, Within(-1, 10**6)]
    projection: str  # the layer's name within the block; "" for a block and the whole
    weights: Annotated[int, Within(1, 10**15)]
    sparsity: Share  # the fraction of the unit's weights that is removed (or restored)
    # relative_error, held_out_error: ‖ΔW Xᵀ‖²/‖W Xᵀ‖² on calibration and on window tokens, mean over its layers
    relative_error: NotNegative
    held_out_error: NotNegative
    output_error: NotNegative  # ‖ΔW x‖² in units of the layer's output, mean over window tokens, summed over layers
    # ‖Δh‖²/‖h‖² of the residual stream after the block, mean over window tokens; NaN for the whole
    drift: NotNegativeOrNan
    loss: NotNegativeOrNan  # nats per token with the change
    delta_loss: Measured  # change of the loss, below 0 where restoring pays
    damage: Measured  # `delta_loss` of a pruned unit, −`delta_loss` of a restored one
    standard_error: NotNegativeOrNan  # of both, over windows; NaN for one window
    perplexity_ratio: NotNegativeOrNan  # exp(delta_loss)
    seconds: NotNegative
    cautions: str = ""  # on its layers, see `rose.verdicts.in_brief`
    massive: str = ""  # its layers' massive activations: channels, and the error with and without them


@dataclass(frozen=True)
class PartRecord:
    """One part of a decoder block in numbers; errors are relative to the mean square of the dense projection's output.
    What has the name of a field of `LayerRecord` means the same."""

    block_index: int
    part: str
    layer: str
    method: str
    recovery: str
    units: Count  # query heads or channels
    kept_units: Count
    groups: Count
    kept_groups: Count
    parameters: Count
    kept_parameters: Count
    relative_error: float
    unrecovered_error: float  # without recovery
    held_out_error: float | None
    swapped: Count  # units that came back in place of others
    seconds: float
    target_error: float | None = None
    held_out_target_error: float | None = None
    columns: int | None = None  # of the output projection
    tokens: int | None = None
    dead_columns: int | None = None
    damping: float | None = None
    is_damping_raised: bool = False


def pruned_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The layers that were pruned or rounded. Means are over these alone, as dense ones have no error."""
    is_pruned = table["sparsity"] != 0
    return table[is_pruned | table["rounding_error"].notna() if "rounding_error" in table else is_pruned]


def removed_fraction(table: pd.DataFrame) -> float:
    """The share of removed weights in all these layers."""
    sizes = table["rows"] * table["columns"]
    return float((table["sparsity"] * sizes).sum() / sizes.sum())


def json_table(rows: Any) -> pd.DataFrame:
    """Rows of layers or parts from JSON, where an infinite error is a text.

    Raises ValueError unless each cell is None or has the declared type of its column; undeclared columns must have one
    type.
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
    table = pd.DataFrame(rows)
    return table.astype({name: float for name in (*ERRORS, *_optional(LayerRecord)) if name in table})


def _holds(value: Any, hint: Any) -> bool:
    """Whether a value has the declared type, and no limit, a function of it, returns None or False for it; functions
    that read a text raise ValueError instead."""
    declared, *limits = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    types = get_args(declared) or (declared,)  # two of `float | None`
    if float in types or int in types:
        is_number = type(value) is float or (type(value) is int and abs(value) < WHOLE_NUMBER)
        is_typed = is_number and (float in types or value % 1 == 0)
    else:
        is_typed = type(value) in types and type(value) in (str, bool)
        is_typed = is_typed and not (type(value) is str and _CONTROL.search(value))
    return is_typed and all(limit(value) not in (None, False) for limit in limits)


def with_cautions(layers: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `cautions`, unless it holds parts."""
    return layers.assign(cautions=caution_column(layers)) if "relative_error" in layers else layers


def csv_text(table: pd.DataFrame) -> str:
    """The table as CSV, without index and formulas."""
    return without_formulas(table).to_csv(index=False)


def without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """The table with an apostrophe before texts that a spreadsheet would compute."""

    def plain(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value

    return table.rename(columns=plain).map(plain)


def json_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON values; pandas' to_json has too few decimals."""
    return finite(table.to_dict(orient="records"))


def finite(value: Any) -> Any:
    """The value with None for every NaN and infinity in it."""
    if isinstance(value, Mapping):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def mean_or_none(column: pd.Series) -> float | None:
    """The mean of known values; None without any."""
    values = pd.to_numeric(column).dropna()
    return float(values.mean()) if len(values) else None


def records_table(records: Sequence[Any], kind: type = LayerRecord) -> pd.DataFrame:
    """One row per record of this dataclass; the columns are there even when no record is.

    Columns that may be empty are floats: None everywhere has no dtype.
    """
    table = pd.DataFrame(map(dataclasses.asdict, records), columns=[*get_type_hints(kind)])
    return table.astype(dict.fromkeys(_optional(kind), float))


def read_records(
    source: str | Path | bytes, kind: type[Record], holds: str, absent: Mapping[str, Any] | None = None
) -> list[Record]:
    """Reads a CSV file of `records_table` from its path or content. Fields with a default may be missing; fields in
    `absent` get its values. `holds` is a noun for the rows, such as "damages". Raises RoseError: another file, or a
    line that is cut off or holds a wrong value, with its number."""
    name = "the file" if isinstance(source, bytes) else str(source)
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        refusal = f"of {name} is no whole row of {holds}"
        return list(_records(content.decode("utf-8-sig"), kind, absent or {}, refusal))
    except OSError as problem:
        raise RoseError(f"{name} cannot be read ({problem.strerror}); choose a rows.csv of rose.") from problem
    except RoseError:
        raise
    except (ValueError, csv.Error) as problem:
        raise RoseError(f"{sentence(name)} is not a table of {holds}; choose a rows.csv of rose.") from problem


def _records(content: str, kind: type[Record], absent: Mapping[str, Any], refusal: str) -> Iterator[Record]:
    """The records of a CSV text; RoseError for a line that holds none, ValueError for other columns."""
    lines, hints = csv.reader(io.StringIO(content)), get_type_hints(kind, include_extras=True)
    names, fields = next(lines, []), cast(Any, dataclasses.fields)(kind)
    required = {field.name for field in fields if field.default is dataclasses.MISSING} - absent.keys()
    if not required <= {*names} or len({*names}) < len(names):
        raise ValueError("columns are missing, or there twice")
    try:
        for texts in filter(None, lines):
            if len(texts) != len(names):
                raise ValueError
            columns = zip(names, texts, strict=True)
            values = {name: _read(name, text, hints[name]) for name, text in columns if name in hints}
            yield kind(**{**absent, **values})
        if not content.endswith("\n"):
            raise ValueError
    except ValueError as problem:
        remedy = "remove it, and the command that wrote the file adds it again"
        raise RoseError(f"Line {lines.line_num} {refusal}{problem}; {remedy}.") from problem


def _read(name: str, text: str, hint: Any) -> Any:
    """The value of a text for a field of this type; ValueError names a bad one."""
    declared = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    value: Any = text
    if declared is not str:
        if not text and type(None) in get_args(declared):
            return None
        number = text if text.isascii() and "_" not in text else "x"  # what Python reads as a number, and nothing else
        with suppress(ValueError):
            value = int(number) if declared is int else float(number or "nan")
    with suppress(ValueError):
        if _holds(value, hint):
            return value
    raise ValueError(f" ({name} {text[:40]!r})")


def _optional(kind: type) -> list[str]:
    """Fields that are a number or None."""
    return [name for name, hint in get_type_hints(kind).items() if hint in (float | None, int | None)]


def read_damages(path: str | Path) -> list[DamageRecord]:
    """Reads a rows.csv of `rose damage`, complete or not; raises RoseError for another file."""
    return read_records(path, DamageRecord, "damages")
