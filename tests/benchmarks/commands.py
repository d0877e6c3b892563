"""What README.md's command gives: python -m tests.benchmarks.commands --output FOLDER --evaluate TEXT

Each command runs as a reader types it, with `--output` alone added. The perplexity of its copy and of the dense model
is measured on the first windows of the text's test part. FOLDER keeps the copies and `commands.csv`, which is for
docs/results. Rows and copies that are there are not made again: after a change of defaults, take a new folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rose
from rose import cli
from tests.benchmarks.common import MODEL, Rows, arguments, judged

DEFAULTS = ("method", "calibration", "samples", "length", "seed")  # of a command, when its row was measured


def defaults(command: str) -> dict[str, Any]:
    """What the command does where it names nothing."""
    return cli._read([*command.split(), "--output", "copy"])[0].pick(DEFAULTS)


def measure(command: str, copy: Path, evaluate: str, windows: int, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Makes the copy if it is not there; a row for each length of windows."""
    if not copy.exists() and (status := cli.main([*command.split(), "--output", str(copy)])):
        raise SystemExit(f"rose {command} ended with {status}.")
    models = {"dense_perplexity": rose.load_model(MODEL), "perplexity": rose.load_model(str(copy))}
    rows: list[dict[str, Any]] = []
    for tokens in lengths:
        row = {"command": command, **defaults(command), "windows": windows, "tokens": tokens}
        for name, (model, tokenizer) in models.items():
            row[name] = rose.perplexity(model, judged(evaluate, tokenizer, windows, tokens))
        rows.append(row)
    return rows


def main() -> None:
    options = arguments(
        __doc__, output=Path, evaluate=str, windows=24, lengths=[512, 2048], commands=["prune --sparsity 0.5"]
    )
    rows = Rows(options.output / "commands.csv", ("command", "windows", "tokens"))
    for command in options.commands:
        lengths = [tokens for tokens in options.lengths if (command, options.windows, tokens) not in rows]
        if lengths:
            copy = options.output / command.replace(" --", " ").replace(" ", "-").replace(":", "-")
            rows.add(*measure(command, copy, options.evaluate, options.windows, lengths))


if __name__ == "__main__":
    main()
