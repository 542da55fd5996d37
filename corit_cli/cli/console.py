"""What the commands share in talking to a terminal: results on standard output, all else on standard error."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from rich import markup
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from corit_cli.progress import Advance
from corit_cli.texts import printable

if TYPE_CHECKING:
    from corit_cli.report.evaluation import Grid

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

VERDICT_STYLE = {"fake": "bold red", "real": "green", "uncertain": "yellow"}
#: Where there is no terminal, seconds between two lines on how far a stage of the work is.
EVERY = 30


class RateColumn(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


class Bars(AbstractContextManager["Bars"]):
    """Shows the stages of the work, as ``progress.py`` has them, on standard error.

    On a terminal a bar a stage, with count, rate and remaining time, that disappears at the end. Elsewhere a line every
    ``EVERY`` seconds. The last note of every stage stays in either case.
    """

    def __init__(self) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn()
        self.bars = RichProgress(
            *columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal
        )

    def __enter__(self) -> Bars:
        self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def __call__(self, title: str, total: int | None = None) -> Advance:
        task, done, said = self.bars.add_task(title, total=total), 0, time.monotonic()

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done, said
            done += count
            self.bars.update(task, advance=count, description=f"{title} ({note})" if note else title)
            late = not err.is_terminal and time.monotonic() - said >= EVERY
            if late or (note and done == total):
                said = time.monotonic()
                of = f"{done} of {total}" if total else f"{done}"
                err.print(escape(f"{title}: {note or of}"), soft_wrap=True)

        return advance


def warn(message: str) -> None:
    """One line on standard error."""
    err.print(f"[yellow]warning:[/] {escape(message)}", soft_wrap=True)


def warn_of_errors(errors: Sequence[tuple[Any, str]]) -> None:
    """Name the first of the samples that could not be read."""
    for sample, message in errors[:20]:
        warn(f"left out {sample.path}: {message}")
    if len(errors) > 20:
        warn(f"and {len(errors) - 20} more files")


def escape(text: str) -> str:
    """Printable text that rich shows as it is, even where it looks like markup."""
    return markup.escape(printable(text))


def print_table(table: Table) -> None:
    """Print a table. A pipe has no width of its own, so tables keep theirs there."""
    out.print()
    (out if out.is_terminal else Console(width=160, highlight=False)).print(table)


def print_grid(grid: Grid) -> None:
    """Print a table of text, and its notes below it."""
    table = Table(title=escape(grid.title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for i, column in enumerate(grid.columns):
        table.add_column(escape(column), justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
    for row in grid.rows:
        table.add_row(*map(escape, row))
    print_table(table)
    for note in grid.notes:
        out.print(escape(note), soft_wrap=True)


def print_json(document: Any) -> None:
    """One JSON document on standard output; what is not finite becomes null."""
    from corit_cli.metrics import plain

    print(json.dumps(plain(document), indent=1, allow_nan=False))
