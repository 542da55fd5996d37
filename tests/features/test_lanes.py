from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Thread

import pytest
import torch

from corit_cli.features.lanes import Lanes


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Torch's threads as they were, and cores that no thread is tied to."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def elsewhere(work: Callable[[], object]) -> object:
    """What ``work`` gives in a thread that begins now."""
    found: list[object] = []
    thread = Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize(
    ("threads", "count"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (6, 3), (7, 4), (8, 4), (10, 2), (16, 4)]
)
def test_a_processor_has_as_many_lanes_as_its_threads_divide_into(
    threads: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(threads)
    assert Lanes("cpu").count == count and Lanes("cpu", 8).count == 4
    assert Lanes("cuda").count == 1
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    assert Lanes("cpu").count == 1
    monkeypatch.setenv("OMP_PROC_BIND", "FALSE")
    assert Lanes("cpu").count == count


@pytest.mark.parametrize(
    ("threads", "at_once", "own"), [(2, 2, 1), (2, 1, 2), (8, 4, 2), (7, 4, 2), (8, 2, 4), (5, 4, 1)]
)
def test_a_lane_has_its_share_of_the_threads_and_nobody_else(threads: int, at_once: int, own: int) -> None:
    torch.set_num_threads(threads)
    lanes = Lanes("cpu")

    def work() -> tuple[int, object, int]:
        lanes.take(at_once)
        before = torch.get_num_threads()
        torch.rand(64, 64) @ torch.rand(64, 64)
        return before, elsewhere(torch.get_num_threads), torch.get_num_threads()

    assert [elsewhere(work) for _ in range(2)] == [(own, threads, own)] * 2
    assert torch.get_num_threads() == elsewhere(torch.get_num_threads) == threads


def test_who_comes_while_others_are_there_has_all_threads() -> None:
    torch.set_num_threads(2)
    lanes = Lanes("cpu")

    def lane() -> object:
        lanes.take(2)
        return elsewhere(lambda: (Lanes("cpu").threads, Lanes("cpu").count))

    assert elsewhere(lane) == (2, 2)
