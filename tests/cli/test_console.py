"""How far the work is, where there is no terminal and where there is one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from corit_cli.cli import console
from corit_cli.cli.console import Bars


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    written = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=written, width=60, highlight=False))
    return written


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_stage_tells_its_last_note(pipe: io.StringIO, clock: list[float]) -> None:
    with Bars() as bars:
        head = bars("head", 3)
        for loss in (0.9, 0.5, 0.123):
            head(note=f"loss {loss}")
        silent = bars("features", 2)
        silent(2)
    assert pipe.getvalue() == "head: loss 0.123\n"


def test_without_a_terminal_long_stages_tell_how_far_they_are(pipe: io.StringIO, clock: list[float]) -> None:
    with Bars() as bars:
        known, unknown = bars("scoring", 100), bars("reading [a]")
        for _ in range(10):
            clock[0] += 7
            known(5)
            unknown()
    assert pipe.getvalue().splitlines() == [
        "scoring: 25 of 100", "reading [a]: 5", "scoring: 50 of 100", "reading [a]: 10",
    ]  # fmt: skip


def test_on_a_terminal_bars_go_when_the_work_is_done_and_notes_of_epochs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    terminal = Console(file=written, width=120, highlight=False, force_terminal=True, _environ={"TERM": "xterm"})
    monkeypatch.setattr(console, "err", terminal)
    with Bars() as bars:
        advance = bars("head", 3)
        advance(note="loss 0.5")
        bars.bars.refresh()
        shown = written.getvalue()
        advance(2, "loss 0.25")
        assert [task.completed for task in bars.bars.tasks] == [3]
    assert "head (loss 0.5)" in shown and "1/3" in shown
    assert "head: loss 0.25" in written.getvalue()
    assert "head: loss 0.5" not in written.getvalue()  # said by the bar, which went on
