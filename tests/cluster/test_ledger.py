from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from corit_cli.cluster import ledger as module
from corit_cli.cluster.ledger import KILLED, Ledger, carefully


def test_batches_that_ended_are_forgotten() -> None:
    ledger = Ledger()
    assert [ledger.begin("a"), ledger.begin("a"), ledger.begin("b")] == [0, 1, 0]
    ledger.end("a")
    assert ledger.begin("a") == 0


def test_only_a_file_that_was_begun_and_not_ended_is_suspect() -> None:
    ledger = Ledger()
    assert ledger.touch(None, "1") == 0
    assert ledger.touch("1", "2") == 0  # 2 is begun, and its process dies
    assert ledger.touch(None, "1") == 0
    assert ledger.touch("1", "2") == 1
    assert ledger.touch("2", None) == 0
    assert ledger.touch(None, "2") == 0


def test_how_many_files_were_listed_is_known_when_all_are() -> None:
    ledger = Ledger()
    assert ledger.listed() is None
    ledger.was_listed(7)
    assert ledger.listed() == 7


@pytest.mark.parametrize("bad", [set(), {3}, {0, 1, 7}, {0, 2, 4, 6, 8}, set(range(10))])
def test_every_bad_file_of_a_batch_costs_one_death_and_the_first_two(
    bad: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What kills its worker is done again from the start, as Ray does it."""

    class Death(BaseException):
        pass

    def work(items: list[int]) -> list[str]:
        if bad & set(items):
            raise Death
        return [f"{item} is fine" for item in items]

    def attempt() -> list[str] | None:
        try:
            return carefully(asked, "reading", list(range(10)), str, work, lambda item, why: f"{item}: {why}")
        except Death:
            return None

    monkeypatch.setattr(module, "ray_module", lambda: SimpleNamespace(get=lambda answer: answer))
    ledger = Ledger()
    asked: Any = SimpleNamespace(
        **{name: SimpleNamespace(remote=getattr(ledger, name)) for name in ("begin", "touch", "end")}
    )
    deaths = 0
    while (found := attempt()) is None:
        deaths += 1
    assert deaths == (len(bad) + 1 if bad else 0)
    assert found == [f"{item}: {KILLED}" if item in bad else f"{item} is fine" for item in range(10)]
