"""How far the work is, where there is no terminal and where there is one."""

from __future__ import annotations

import gc
import io
import sys
import time

import pytest
from rich.console import Console

from corit_cli.cli import console
from corit_cli.cli.console import Bars, importing, working


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
    bars = Bars()
    known, unknown = bars("scoring", 100), bars("reading [a]")
    for _ in range(2):
        clock[0] += 30
        known(5, "1 error")
        unknown()
        bars.tell()
    known(90)
    unknown(58)
    bars.tell()
    assert pipe.getvalue().splitlines() == [
        "scoring: 5 of 100, 1 error, 0.2/s, 0:09:30 left",
        "reading [a]: 1, 0.0/s",
        "scoring: 10 of 100, 1 error, 0.2/s, 0:09:00 left",
        "reading [a]: 2, 0.0/s",
        "reading [a]: 60, 1.0/s",
    ]


def test_work_that_does_not_get_on_tells_that_it_goes_on(pipe: io.StringIO, clock: list[float]) -> None:
    bars = Bars()
    bars("frozen part", 10)(10)
    runs = bars("runs", 66)
    for _ in range(2):
        clock[0] += 30
        bars.tell()
    runs(33)
    clock[0] += 30
    bars.tell()
    assert pipe.getvalue().splitlines() == [
        "runs: 0 of 66, 0:00:30 so far",
        "runs: 0 of 66, 0:01:00 so far",
        "runs: 33 of 66, 0.4/s, 0:01:30 left",
    ]


def test_lines_come_by_themselves(pipe: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "EVERY", 0.01)
    deadline = time.monotonic() + 20
    with working("loading the backbone"):
        while pipe.getvalue().count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    said = pipe.getvalue()
    assert said.startswith("loading the backbone: 0:00:00 so far\n" * 2)
    time.sleep(0.05)
    assert pipe.getvalue().count("\n") <= said.count("\n") + 1  # it ends with the work


def test_imports_run_without_the_collector_and_what_they_leave_is_none_of_its_business(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with importing():
        assert gc.isenabled()  # there is nothing to import any more
    monkeypatch.delitem(sys.modules, "torch")
    before = gc.get_freeze_count()
    try:
        with importing():
            assert not gc.isenabled()
            kept = [[] for _ in range(1000)]
        assert gc.isenabled() and gc.get_freeze_count() >= before + len(kept)
        with pytest.raises(ImportError), importing():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_a_total_may_become_known_on_the_way(pipe: io.StringIO, clock: list[float]) -> None:
    total: list[int | None] = [None]
    bars = Bars()
    advance = bars("detecting", lambda: total[0])
    clock[0] += 10
    advance(20)
    bars.tell()
    total[0] = 50
    advance(10)
    bars.tell()
    advance(20)
    bars.tell()
    assert pipe.getvalue().splitlines() == ["detecting: 20, 2.0/s", "detecting: 30 of 50, 3.0/s, 0:00:07 left"]


def test_a_terminal_that_draws_nothing_anew_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    terminal = Console(file=written, width=60, highlight=False, force_terminal=True, _environ={"TERM": "dumb"})
    monkeypatch.setattr(console, "err", terminal)
    monkeypatch.setattr(console, "EVERY", 0.01)
    deadline = time.monotonic() + 20
    with working("loading the backbone"):
        while "\n" not in written.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert written.getvalue().startswith("loading the backbone: 0:00:00 so far\n")


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
