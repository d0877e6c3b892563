"""`rose report`: finished runs as an HTML file; the app draws it."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from rose.commands import options as shared
from rose.commands import terminal
from rose.commands.app import app_module
from rose.output import check_file
from rose.wording import size


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("report", help="write finished runs as one HTML file, two of them side by side")
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="folder that analyze, prune, slim or tune has written"
    )
    shared.add(parser, "output", metavar="FILE.html", help="needs no network to be read")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> None:
    check_file(options.output)
    html_report = app_module("results.html_report", "A report", ("plotly",))
    with console.status("Drawing"):
        findings = html_report.write_report(options.folders, options.output)
    terminal.say(*findings, f"Written to {options.output}, {size(options.output.stat().st_size)}")
