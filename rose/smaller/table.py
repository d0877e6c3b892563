"""A row of the table of smaller copies, and the folder that keeps measured rows as they come."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from rose.errors import RoseError
from rose.model.measure.folder import MeasurementFolder
from rose.rows import Count, NotNegative, Within, csv_text, read_records, records_table
from rose.verdicts import Result
from rose.verdicts.smaller import recommend

MEASURED, ESTIMATE = "measured", "estimate"
FILES = ("safetensors", "packed", "f16", "q8_0", "q4_0")
TABLE, SUMMARY = "table.csv", "summary.json"
Positive = Annotated[float | None, Within(0)]


@dataclass(frozen=True)
class Row:
    """A way to make a model smaller, in numbers; `basis` says "measured" or "estimate".

    `safetensors` to `q4_0` are bytes of files, None for a file that cannot be written; a packed file is counted without
    its header. `prefill` and `decoding` are tokens a second in torch on this machine; `…_gain` is the speed over the
    dense model's, measured in turns, with its 95 % interval, and None for copies of the dense model's shapes. `llama_…`
    are speeds in llama.cpp, if llama-bench is installed. `times` is perplexity on held-out calibration windows over the
    dense model's, with its paired interval; an estimate has the range seen in other models. `second_…` are the same on
    the second text. `losses` are in nats a token. `minutes` and `memory` (bytes besides the model) make the copy.
    """

    key: str
    name: str
    basis: str
    bits: int | None
    safetensors: Count
    packed: int | None
    f16: int | None
    q8_0: int | None
    q4_0: int | None
    loads: str
    minutes: NotNegative
    memory: Count
    perplexity: Positive = None
    times: Positive = None
    times_low: Positive = None
    times_high: Positive = None
    second_perplexity: Positive = None
    second_times: Positive = None
    second_low: Positive = None
    second_high: Positive = None
    prefill: Positive = None
    decoding: Positive = None
    prefill_gain: Positive = None
    prefill_low: Positive = None
    prefill_high: Positive = None
    decoding_gain: Positive = None
    decoding_low: Positive = None
    decoding_high: Positive = None
    llama_prefill: Positive = None
    llama_decoding: Positive = None
    losses: str = ""
    second_losses: str = ""
    environment: str = ""

    @property
    def is_measured(self) -> bool:
        return self.basis == MEASURED

    @property
    def exact(self) -> tuple[str, ...]:
        """Files that hold the layers exactly: q8_0 and q4_0 round whatever has more bits."""
        bits = math.inf if self.bits is None else self.bits
        rounded = {"q8_0": bits > 8, "q4_0": bits > 4}
        return tuple(name for name in FILES if getattr(self, name) is not None and not rounded.get(name))

    @property
    def bytes(self) -> int:
        """Of the smallest file that holds the layers exactly."""
        return int(min(getattr(self, name) for name in self.exact))

    @property
    def smallest(self) -> str:
        return min(self.exact, key=lambda name: getattr(self, name))

    def result(self, text: str = "") -> Result:
        """Perplexity on the calibration text, or on the "second" one, as verdicts compare it."""
        prefix = f"{text}_" if text else ""
        losses = getattr(self, f"{prefix}losses")
        value = getattr(self, f"{prefix}perplexity")
        values = tuple(map(float, losses.split()))
        return Result(self.name, self.key, float("nan") if value is None else value, values)


class SmallerFolder(MeasurementFolder[Row]):
    """Measured rows; table.csv has the estimates of all others too, and summary.json what is recommended."""

    kind, key = Row, ("key",)
    holds = ("table of smaller copies", "a row of smaller copies")
    summaries = (TABLE, SUMMARY)
    estimated: Sequence[Row] = ()

    @property
    def table(self) -> list[Row]:
        """A row a way, measured where it was."""
        measured = {row.key: row for row in self.rows}
        return [measured.get(row.key, row) for row in self.estimated] or list(self.rows)

    def summarize(self, settings: dict[str, Any]) -> dict[str, str]:
        recommendations = [asdict(recommendation) for recommendation in recommend(self.table)]
        return {
            TABLE: csv_text(records_table(self.table, Row)),
            SUMMARY: json.dumps({"settings": settings, "recommendations": recommendations}, indent=1),
        }


def read_rows(folder: str | Path) -> list[Row]:
    """The table of a folder that `rose smaller` has written.

    Raises:
        RoseError: the table is missing, or a line is not a whole row.
    """
    path = Path(folder) / TABLE
    if not path.is_file():
        raise RoseError(f"There is no {TABLE} in {folder}; give a folder that `rose smaller` has written.")
    return read_records(path, Row, "smaller copies")
