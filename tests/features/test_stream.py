from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from itertools import islice
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corit_cli.data.images import read_image
from corit_cli.data.windows import crop
from corit_cli.errors import CoritError
from corit_cli.features import stream as module
from corit_cli.features.extractor import Extractor
from corit_cli.features.stream import Extracted, _batches, _rounds, ahead, forward, forwarded, loaders, stream
from tests.features.conftest import CROPS


def test_reading_ahead_is_bounded_and_in_order() -> None:
    started: list[int] = []
    results = ahead(lambda i: (started.append(i), i)[1], iter(range(1000)), workers=2, window=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(started) <= 8
    assert list(results) == list(range(3, 1000))


def broken(items: list[int]) -> Iterator[int]:
    """They end with an error, as a list with a bad line does."""
    yield from items
    raise CoritError("line 14 is no JSON object")


def test_what_was_given_before_the_items_fail_is_done_first(extractor: Extractor) -> None:
    done: list[int] = []
    with pytest.raises(CoritError, match="line 14"):
        for i in ahead(lambda i: i, broken([*range(13)]), workers=2, window=50):
            done.append(i)
    assert done == [*range(13)]
    windows, seen = np.zeros((3, 32, 32, 3), np.uint8), []
    with pytest.raises(CoritError, match="line 14"):
        for item in stream(extractor, broken([*range(13)]), lambda _: ([windows], None), window=50):
            seen.append(item.item)
            assert len(item.readings) == 1
    assert seen == [*range(13)]


def test_nothing_is_loaded_any_more_when_the_model_fails(extractor: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    windows = np.zeros((3, 32, 32, 3), np.uint8)

    def load(i: int) -> tuple:
        loaded.append(i)
        time.sleep(0.01)
        return [windows], None

    def out_of_memory(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "forward", out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory") as kept:
        next(stream(extractor, range(10**6), load, 2, 60))
    before = len(loaded)
    time.sleep(0.3)
    assert kept.value and len(loaded) <= before + 2


def test_an_error_of_the_function_ends_it_where_it_is() -> None:
    seen: list[int] = []

    def refuse(i: int) -> int:
        if i == 3:
            raise CoritError("no")
        return i

    with pytest.raises(CoritError, match="no"):
        for i in ahead(refuse, range(9), workers=2, window=4):
            seen.append(i)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    ("device", "cores", "threads"), [("cpu", 2, 2), ("cpu", 64, 4), ("cuda", 64, 8), ("cuda", 6, 6)]
)
def test_a_gpu_is_fed_by_more_threads(device: str, cores: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: cores)
    assert loaders(device) == threads


def test_a_stream_takes_as_many_threads_as_its_device_wants(
    extractor: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    monkeypatch.setattr(module, "loaders", lambda device: {"cpu": 3}[device])
    read_ahead = module.ahead

    def ahead(load: object, items: object, workers: int, *others: object) -> object:
        used.append(workers)
        return read_ahead(load, items, workers, *others)

    monkeypatch.setattr(module, "ahead", ahead)
    windows = np.zeros((3, 32, 32, 3), np.uint8)
    assert len(list(stream(extractor, range(2), lambda _: ([windows], None)))) == 2
    assert used[0] == 3


def windows_of(count: int) -> list[np.ndarray]:
    """So many windows, in all of which something is to be seen: an even one's contrasts are rounding errors."""
    return list(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8))


def test_a_stream_takes_a_generator_lazily(extractor: Extractor, files: list[Path]) -> None:
    taken: list[int] = []

    def endless():
        while True:
            taken.append(1)
            yield files[0]

    results = stream(extractor, endless(), lambda path: ([crop(read_image(path), CROPS)], None))
    next(results)
    results.close()
    assert len(taken) < 100


def test_an_item_of_a_stream_may_have_any_number_of_pictures(extractor: Extractor) -> None:
    windows = np.split(np.stack(windows_of(60)), 20)  # three a picture
    counts = [2, 0, 17, 1]
    starts = np.cumsum([0, *counts])

    def load(i: int) -> tuple[list[np.ndarray], str]:
        if not counts[i]:
            raise CoritError("nothing in it")
        return windows[starts[i] : starts[i + 1]], f"item {i}"

    items = list(stream(extractor, range(4), load))
    assert [(item.item, len(item.readings), item.about) for item in items] == [
        (0, 2, "item 0"),
        (1, 0, None),
        (2, 17, "item 2"),
        (3, 1, "item 3"),
    ]
    assert [item.error for item in items] == [None, "nothing in it", None, None]
    for windows_, reading in zip(windows, [r for item in items for r in item.readings], strict=True):
        torch.testing.assert_close(reading, extractor([windows_])[0])


def test_windows_that_are_missing_take_no_room_in_a_batch() -> None:
    window = np.zeros((2, 2, 3), np.uint8)

    def item(name: str, *pictures: int) -> Extracted[str]:
        """Pictures with so many windows, each its own, and one missing."""
        return Extracted(name, pictures=[[*(window.copy() for _ in range(n)), None] for n in pictures])

    items = [item("a", 2), item("b", 1), item("c", 1), item("d", 5), item("e", 0)]
    assert [[one.item for one, _ in batch] for batch in _batches(items, 4)] == [["a", "b", "c"], ["d"], ["e"]]


def test_pictures_of_one_item_stay_together_and_a_window_that_they_share_counts_once() -> None:
    def item(name: str, faces: int = 1) -> Extracted[str]:
        resized, native, *cut = (np.zeros((2, 2, 3), np.uint8) for _ in range(2 + faces))
        return Extracted(name, pictures=[[resized, native, None], *([None, native, face] for face in cut)])

    items = [item(name) for name in "xyz"]
    assert [[one.item for one, _ in batch] for batch in _batches(items, 7)] == [["x", "x", "y", "y"], ["z", "z"]]
    # An item that does not fit is divided.
    found = [[one.item for one, _ in batch] for batch in _batches([items[0], item("crowd", 5)], 4)]
    assert found == [["x", "x"], ["crowd"] * 3, ["crowd"] * 3]


def items_of(*counts: int) -> list[Extracted[int]]:
    """Items of one picture with so many windows each, all of them different."""
    windows = iter(windows_of(sum(counts)))
    return [Extracted(k, pictures=[[*islice(windows, count)]]) for k, count in enumerate(counts)]


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 9), st.integers(1, 4))
def test_all_items_are_dealt_in_order_in_full_lists_and_the_last_ones_evenly(
    counts: list[int], size: int, lanes: int
) -> None:
    rounds = [[[one.item for one in items] for items in some] for some in _rounds(items_of(*counts), size, lanes)]
    assert [k for some in rounds for items in some for k in items] == [*range(len(counts))]
    assert all(items for some in rounds for items in some)
    assert [len(some) for some in rounds[1:-1]] == [1] * len(rounds[1:-1])
    assert not rounds or len(rounds[0]) == (lanes if len(rounds) > 1 else min(lanes, len(counts)))
    for some in rounds[:-1]:
        for items in some:  # no more than it takes
            assert sum(counts[k] for k in items[:-1]) < size <= sum(counts[k] for k in items)
    sizes = [len(items) for some in rounds[-1:] for items in some]
    full = [sum(counts[k] for k in items) >= size for some in rounds[-1:] for items in some]
    assert not sizes or all(full) or (len(sizes) <= lanes and max(sizes) - min(sizes) <= 1)


def test_what_is_dealt_comes_out_before_the_items_fail() -> None:
    seen: list[list[int]] = []
    with pytest.raises(CoritError, match="line 14"):
        for some in _rounds((items_of(1)[0] for _ in broken([*range(13)])), 4, 2):
            seen.append([len(items) for items in some])
    assert seen == [[4, 4], [4], [1]]


def test_what_is_done_does_not_wait_for_what_comes_next(extractor: Extractor, two_threads: None) -> None:
    taken: list[int] = []

    def slow() -> Iterator[Extracted[int]]:
        for one in items_of(*[8] * 9):
            taken.append(one.item)
            time.sleep(0.05)
            yield one

    results = forwarded(extractor, slow())
    assert next(results).item == 0 and len(taken) == 2
    assert next(results).item == 1 and len(taken) <= 3
    results.close()


def test_batches_are_in_the_model_at_the_same_time_and_say_what_each_says_alone(
    extractor: Extractor, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    met, used = Barrier(2, timeout=30), []
    alone = [extractor([picture]) for one in items_of(*[3] * 8) for picture in one.pictures]
    run = Extractor.__call__

    def together(self: Extractor, *arguments: object) -> object:
        met.wait()
        used.append(torch.get_num_threads())
        return run(self, *arguments)

    monkeypatch.setattr(extractor, "batch", 6)
    monkeypatch.setattr(Extractor, "__call__", together)
    found = list(forwarded(extractor, items_of(*[3] * 8)))
    assert [one.item for one in found] == [*range(8)] and used == [1] * 4
    for (own,), one in zip(alone, found, strict=True):
        for mine, theirs in zip(own, one.readings[0], strict=True):
            torch.testing.assert_close(mine, theirs)


def test_one_item_has_all_threads(extractor: Extractor, two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    run = Extractor.__call__
    monkeypatch.setattr(
        Extractor, "__call__", lambda self, *others: (used.append(torch.get_num_threads()), run(self, *others))[1]
    )
    assert len(list(forwarded(extractor, items_of(3)))) == 1
    assert used == [2]
    used.clear()
    assert len(list(forwarded(extractor, items_of(3, 3)))) == 2
    assert used == [1, 1]


def test_who_leaves_tells_those_that_are_at_work_before_waiting_for_them() -> None:
    leave, begun, told = Event(), Event(), []

    def work(i: int) -> int:
        if i == 0:
            assert begun.wait(60)  # by the next
        else:
            begun.set()
            told.append(leave.wait(60))
        return i

    results = ahead(work, range(9), 2, 2, leave)
    assert next(results) == 0
    results.close()
    assert told == [True]


def test_a_batch_that_nobody_wants_any_more_ends_with_a_block(
    extractor: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, blocks = Event(), []
    run = type(extractor.backbone.tower.blocks[0]).forward

    def left(self: torch.nn.Module, *arguments: object) -> object:
        blocks.append(self)
        stop.set()
        return run(self, *arguments)

    monkeypatch.setattr(type(extractor.backbone.tower.blocks[0]), "forward", left)
    with pytest.raises(CancelledError):
        forward(extractor, items_of(3, 3), stop=stop.is_set)
    assert 1 <= len(blocks) <= 2  # of one layer


def test_an_error_in_a_lane_ends_the_stream(
    extractor: Extractor, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    run = Extractor.__call__

    def fails(self: Extractor, *arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return run(self, *arguments)

    monkeypatch.setattr(Extractor, "__call__", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(forwarded(extractor, items_of(*[8] * 40)))
    assert len(calls) < 8
