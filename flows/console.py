"""What a person sees while work runs: bars on a terminal, plain throttled lines in a log, nothing when asked for nothing.

Progress goes to stderr; stdout carries the result (the summary screen, or one JSON object with `--json`), so that a
command can be piped.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from flows.steps import STEP
from pipelines.progress import Progress, ProgressEvent, silent

SECONDS_BETWEEN_LINES = 5.0  # in a log file; the first and the last event of a stage are always told

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class _LivePanel:
    """One bar a stage, the newest at the bottom; finished stages stay on the screen as they ended."""

    def __init__(self) -> None:
        self.bars = Bars(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[note]}"),
            console=err,
        )
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: ProgressEvent) -> None:
        if event.unit == STEP:
            self._step(event)
            return
        fields = {"unit": event.unit, "note": escape(event.note)}
        task = self._tasks.get(event.stage)
        if task is None:
            self._tasks[event.stage] = self.bars.add_task(escape(event.stage), total=event.total or None, completed=event.done, **fields)
        else:
            self.bars.update(task, total=event.total or None, completed=event.done, **fields)

    def _step(self, event: ProgressEvent) -> None:
        """A step that ends takes its bars with it and leaves one line."""
        if not event.done:
            return
        for stage in [stage for stage in self._tasks if stage.split(" · ")[0] == event.stage]:
            self.bars.remove_task(self._tasks.pop(stage))
        err.print(f"[green]✓[/] {escape(event.stage)}  [dim]{escape(event.note)}[/]")


class _Lines:
    """For logs: a line when a stage begins, when it ends, and every few seconds between; of stages inside a step, the long ones."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, int]] = {}

    def __call__(self, event: ProgressEvent) -> None:
        now = time.monotonic()
        inner, new = " · " in event.stage, event.stage not in self._told
        if inner and new:
            self._told[event.stage] = (now, event.total)  # its end is no news unless it was told to go on
        told, done = self._told.get(event.stage, (float("-inf"), -1))
        finished = event.total > 0 and event.done >= event.total
        if (now - told < SECONDS_BETWEEN_LINES and not finished) or (finished and done == event.done):
            return
        self._told[event.stage] = (now, event.done)
        note = f"  {event.note}" if event.note else ""
        err.print(f"{event.stage}: {event.done:,}/{event.total:,} {event.unit}{note}", markup=False, soft_wrap=True)


@contextmanager
def progress_on_screen(quiet: bool = False) -> Iterator[Progress]:
    """A `Progress` that draws on stderr: bars on a terminal, lines elsewhere, nothing when quiet."""
    if quiet:
        yield silent
    elif err.is_terminal:
        panel = _LivePanel()
        with panel.bars:
            yield panel
    else:
        yield _Lines()


def summary(title: str, facts: Mapping[str, Any], tables: Sequence[Table] = (), *, quiet: bool = False, as_json: bool = False, result: Any = None) -> None:
    """End a command: a screen for a person, one JSON object for a machine (`result`, by default the facts), or nothing."""
    if as_json:
        out.print(json.dumps(dict(facts) if result is None else result, ensure_ascii=False, default=str), markup=False, soft_wrap=True)
        return
    if quiet:
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", max_width=64)
    grid.add_column(overflow="fold")
    for key, value in facts.items():
        grid.add_row(escape(str(key)), escape(figure(value)))
    out.print(Panel(grid, title=escape(title), title_align="left", border_style="cyan", expand=False))
    for table in tables:
        out.print(table)


def table_of(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A small table; numbers are aligned right."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False, padding=(0, 2))
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) or row[index] is None for row in rows)
        table.add_column(escape(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(figure(value)) for value in row))
    return table


def figure(value: Any) -> str:
    """A value as a person reads it: thousands grouped, floats to three digits, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 0.01 else f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, dict):
        return ", ".join(f"{key} {figure(item)}" for key, item in value.items())
    return str(value)
