from __future__ import annotations

from corit_cli.cluster.ledger import Ledger


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
