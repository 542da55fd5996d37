"""What the commands share in talking to a terminal: results on standard output, all else on standard error."""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich import markup
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from corit_cli.progress import Advance, Total
from corit_cli.texts import printable

if TYPE_CHECKING:
    from corit_cli.report.evaluation import Grid

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

VERDICT_STYLE = {"fake": "bold red", "real": "green", "uncertain": "yellow"}
#: Where nothing can be drawn anew, seconds between two lines on how far the work is.
EVERY = 30


def live() -> bool:
    """Whether standard error is a terminal on which what was shown can be drawn anew; rich shows nothing on others."""
    return err.is_terminal and not err.is_dumb_terminal


class RateColumn(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


@dataclass
class Stage:
    """How far a stage of the work is. ``total`` may become known while it runs."""

    title: str
    total: Total
    begun: float = field(default_factory=lambda: time.monotonic())
    done: int = 0
    note: str = ""
    told: int = 0  # how many were done when a line last said so

    @property
    def known(self) -> int | None:
        """How many items there are, if it is known by now."""
        return self.total() if callable(self.total) else self.total

    @property
    def finished(self) -> bool:
        """Whether all items are done; a stage of unknown length never is."""
        total = self.known
        return total is not None and self.done >= total

    def line(self) -> str:
        """The stage in words: items, the last note, rate, and time left where it can be told."""
        total, seconds = self.known, time.monotonic() - self.begun
        of = "" if total is None else f" of {total}"
        parts = [f"{self.done}{of}" if self.done or of else "", self.note]
        if self.done and seconds > 0:
            parts.append(f"{self.done / seconds:.1f}/s")
            if total is not None:
                parts.append(f"{_span(seconds / self.done * max(0, total - self.done))} left")
        else:
            parts.append(f"{_span(seconds)} so far")
        return f"{self.title}: {', '.join(part for part in parts if part)}"


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class Bars(AbstractContextManager["Bars"]):
    """Shows the stages of the work, as ``progress.py`` has them, on standard error.

    Where that can be drawn (:func:`live`) a bar a stage, with count, rate and remaining time, that disappears at the
    end. Elsewhere, every ``EVERY`` seconds, a line for each stage that got on, and for the latest one if none did. The
    last note of every stage stays in either case.
    """

    def __init__(self) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn()
        self.bars = RichProgress(*columns, TimeRemainingColumn(), console=err, transient=True, disable=not live())
        self._stages: list[Stage] = []
        self._over = threading.Event()

    def __enter__(self) -> Bars:
        self.bars.start()
        if not live():
            threading.Thread(target=self._tell_on, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self.bars.stop()

    def __call__(self, title: str, total: Total = None) -> Advance:
        stage = Stage(title, total)
        self._stages.append(stage)
        task = self.bars.add_task(title, total=stage.known)

        def advance(count: int = 1, note: str = "") -> None:
            stage.done, stage.note = stage.done + count, note or stage.note
            described = f"{title} ({note})" if note else title
            self.bars.update(task, advance=count, total=stage.known, description=described)
            if note and not callable(total) and stage.done == total:
                err.print(escape(f"{title}: {note}"), soft_wrap=True)

        return advance

    def tell(self) -> None:
        """Print how far the work is."""
        running = [stage for stage in self._stages if not stage.finished]
        for stage in [stage for stage in running if stage.done != stage.told] or running[-1:]:
            stage.told = stage.done
            err.print(escape(stage.line()), soft_wrap=True)

    def _tell_on(self) -> None:
        while not self._over.wait(EVERY):
            self.tell()


@contextmanager
def working(title: str) -> Iterator[None]:
    """Shows that something is being done whose parts nobody counts."""
    if live():
        with err.status(title):
            yield
    else:
        with Bars() as bars:
            bars(title)
            yield


@contextmanager
def importing() -> Iterator[None]:
    """Imports of torch without the garbage collector, which looks through everything again and again and finds nothing.
    What they leave behind it lets alone afterwards, when the program ends too."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


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
