"""`rose report`: finished runs as an HTML file; the app draws it."""

from __future__ import annotations

from rich.console import Console

from rose.commands import terminal
from rose.commands.app import app_module
from rose.output import check_file
from rose.recipe.tools import WriteReport
from rose.wording import size


def run(spec: WriteReport, console: Console) -> None:
    check_file(spec.output)
    html_report = app_module("results.html_report", "A report", ("plotly",))
    with console.status("Drawing"):
        findings = html_report.write_report(spec.folders, spec.output)
    terminal.say(*findings, f"Written to {spec.output}, {size(spec.output.stat().st_size)}")
