from __future__ import annotations

from threading import Thread

import pytest
import torch

from corit_cli.features import lanes as module
from corit_cli.features.lanes import Lanes


@pytest.fixture(autouse=True)
def threads():
    """Torch's threads as they were."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "count"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (6, 3), (7, 4), (8, 4), (10, 2), (16, 4)]
)
def test_a_processor_has_as_many_lanes_as_its_threads_divide_into(threads: int, count: int) -> None:
    torch.set_num_threads(threads)
    with Lanes("cpu") as lanes:
        assert (lanes.count, lanes.threads) == (count, threads)
    with Lanes("cuda") as lanes:
        assert lanes.count == 1


@pytest.mark.parametrize(
    ("threads", "beside", "own"), [(2, 2, 1), (2, 1, 2), (8, 4, 2), (7, 4, 2), (8, 2, 4), (5, 4, 1)]
)
def test_a_lane_has_its_share_of_the_threads_and_they_are_given_back(threads: int, beside: int, own: int) -> None:
    torch.set_num_threads(threads)
    found: list[int] = []

    def work(lanes: Lanes) -> None:
        lanes.take(beside)
        found.append(torch.get_num_threads())

    with Lanes("cpu") as lanes:
        for _ in range(2):
            thread = Thread(target=work, args=(lanes,))
            thread.start()
            thread.join()
    assert found == [own, own] and torch.get_num_threads() == threads
    new: list[int] = []
    thread = Thread(target=lambda: new.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert new == [threads]


@pytest.mark.parametrize("first_leaves_first", [False, True])
def test_who_comes_while_others_are_there_finds_what_they_found(first_leaves_first: bool) -> None:
    torch.set_num_threads(2)
    first, second = Lanes("cpu"), Lanes("cpu")
    first.__enter__()
    first.take(2)  # this thread's, as a lane's would be
    assert torch.get_num_threads() == 1
    second.__enter__()
    assert (second.threads, second.count) == (2, 2)
    for one in (first, second) if first_leaves_first else (second, first):
        assert torch.get_num_threads() == 1
        one.__exit__(None, None, None)
    assert torch.get_num_threads() == 2 and module._users == 0


def test_a_gpus_lane_leaves_the_processors_threads_alone() -> None:
    torch.set_num_threads(2)
    with Lanes("cuda") as lanes:
        lanes.take(1)
        assert torch.get_num_threads() == 2
