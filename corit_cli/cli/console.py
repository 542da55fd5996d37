"""What the commands share in talking to a terminal: results on standard output, all else on standard error."""

from __future__ import annotations

import json
from typing import Any

from rich import markup
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from corit_cli.report.words import printable

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

VERDICT_STYLE = {"fake": "bold red", "real": "green", "uncertain": "yellow"}


class RateColumn(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


def progress_bar() -> Progress:
    """A bar on standard error with count, rate and remaining time; it shows on a terminal only and then disappears."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def warn(message: str) -> None:
    """One line on standard error."""
    err.print(f"[yellow]warning:[/] {escape(message)}", soft_wrap=True)


def escape(text: str) -> str:
    """Printable text that rich shows as it is, even where it looks like markup."""
    return markup.escape(printable(text))


def print_json(document: Any) -> None:
    """One JSON document on standard output; what is not finite becomes null."""
    from corit_cli.metrics import plain

    print(json.dumps(plain(document), indent=1, allow_nan=False))
