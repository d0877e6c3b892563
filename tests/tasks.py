"""A zero-shot task from a file of one's own, which needs no network."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRIC = "  - metric: {}\n    aggregation: mean\n    higher_is_better: true\n"
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
"""


def write_task(
    folder: Path, questions: list[dict[str, Any]], name: str = "sums", metrics: Sequence[str] = ("acc",)
) -> Path:
    """Writes NAME.yaml and NAME.jsonl; each question has `question`, `choices` and the number of the `answer`."""
    rows = folder / f"{name}.jsonl"
    rows.write_text("\n".join(map(json.dumps, questions)))
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, rows=rows) + "".join(map(METRIC.format, metrics)))
    return folder
