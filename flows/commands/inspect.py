"""Verbs that answer questions about a run: why, trace, report."""

from typing import Annotated

import typer

from flows.commands.options import Json, Quiet

RunFolder = Annotated[str, typer.Argument(help="A run's folder.", metavar="RUN")]


def report(
    run: RunFolder,
    out: Annotated[str | None, typer.Option("--out", "-o", help="The HTML file; RUN/report.html without.", metavar="FILE")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write the report of a demo run, finished or not: one HTML file that opens offline.

    Example:

        gristmill report runs/first --out report.html
    """
    from pathlib import Path

    from flows.console import summary
    from flows.report.facts import collect
    from flows.report.render import write_report

    path = write_report(collect(Path(run)), out or f"{run.rstrip('/')}/report.html")
    summary("report", {"report": str(path), "bytes": path.stat().st_size}, quiet=quiet, as_json=json)


def add_to(app: typer.Typer) -> None:
    app.command("report", rich_help_panel="Questions")(report)
