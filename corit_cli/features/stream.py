"""Decoding ahead of the model, in threads, with memory that stays flat; batches across files, several at a time."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from threading import Event
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor

from corit_cli.errors import CoritError
from corit_cli.features.extractor import Extractor
from corit_cli.features.lanes import Lanes
from corit_cli.progress import Stop, never

T = TypeVar("T")
R = TypeVar("R")
Picture = Sequence[np.ndarray | None]


@dataclass
class Extracted(Generic[T]):
    """What became of one item: the readings of each of its pictures, as :class:`Extractor` gives them, what ``load``
    said ``about`` it, or an ``error``."""

    item: T
    readings: list[list[Tensor]] = field(default_factory=list)
    about: Any = None
    error: str | None = None
    seconds: float = 0.0
    pictures: list[Picture] = field(default_factory=list, repr=False)


def loaders(device: str) -> int:
    """How many threads load ahead of a model on ``device``, cpu or cuda: a GPU waits for them, a processor shares its
    cores with them."""
    return min({"cpu": 4, "cuda": 8}[device], os.cpu_count() or 1)


def ahead(
    function: Callable[[T], R], items: Iterable[T], workers: int, window: int, leave: Event | None = None
) -> Iterator[R]:
    """``map`` in threads, in order, with at most ``window`` results waiting, so that memory stays flat.

    Where ``items`` fail, what they gave before comes out first. ``leave`` is set at the end, before the threads are
    waited for.
    """
    given, failed = iter(items), []
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            while True:
                try:
                    waiting.append(pool.submit(function, next(given)))
                except StopIteration:
                    break
                except Exception as error:
                    failed.append(error)
                    break
                if len(waiting) >= window:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
            if failed:
                raise failed.pop()  # held by nothing that holds this frame
        finally:
            if leave is not None:
                leave.set()
            for future in waiting:
                future.cancel()


def stream(
    extractor: Extractor,
    items: Iterable[T],
    load: Callable[[T], tuple[list[Picture], Any]],
    workers: int | None = None,
    window: int | None = None,
) -> Iterator[Extracted[T]]:
    """Readings of ``items`` in order. Threads load ahead while the model works on full batches of windows.

    ``load`` gives an item's pictures, each as its windows (S, S, 3) uint8, and anything worth keeping about it. An
    item that it raises CoritError for comes out with its ``error``; nothing stops the run but ``items`` that fail, when
    all that they gave is done. At most ``window`` items are loaded, or being loaded, ahead of the model's; by default
    two batches.
    """
    workers = workers or loaders(extractor.device.type)
    with closing(ahead(partial(loaded, load), items, workers, window or 2 * extractor.batch)) as ready:
        yield from forwarded(extractor, ready)


def forwarded(extractor: Extractor, ready: Iterable[Extracted[T]]) -> Iterator[Extracted[T]]:
    """Loaded items in order, read by the model: several batches at a time where the device takes as many."""
    stop = Event()
    with Lanes(extractor.device.type) as lanes:

        def read(part: tuple[list[Extracted[T]], int]) -> list[Extracted[T]]:
            items, beside = part
            lanes.take(beside)
            return forward(extractor, items, 1 / beside, stop.is_set)

        parts = _dealt(ready, extractor.batch, lanes.count)
        with closing(ahead(read, parts, lanes.count, lanes.count + 1, stop)) as done:
            for items in done:
                yield from items


def _dealt(ready: Iterable[Extracted[T]], size: int, lanes: int) -> Iterator[tuple[list[Extracted[T]], int]]:
    """Items in order, as many together as have ``size`` windows, and how many such lists are run beside each other: as
    many as there are lanes, or items where these are fewer. What is left in the end is dealt evenly."""
    full: list[list[Extracted[T]]] = []
    rest: list[Extracted[T]] = []
    failed: list[Exception] = []
    beside = 0
    left = iter(ready)
    while True:
        try:
            rest.append(next(left))
        except StopIteration:
            break
        except Exception as error:
            failed.append(error)
            break
        if sum(_cut(one.pictures) for one in rest) >= size:
            full.append(rest)
            rest = []
        if len(full) == lanes:
            beside = lanes
            yield from ((items, beside) for items in full)
            full = []
    rest = [*(one for items in full for one in items), *rest]
    count = min(lanes, len(rest))
    bounds = [len(rest) * k // max(1, count) for k in range(count + 1)]
    for begin, end in pairwise(bounds):
        yield rest[begin:end], beside or count
    if failed:
        raise failed.pop()


def loaded(load: Callable[[T], tuple[list[Picture], Any]], item: T) -> Extracted[T]:
    """An item with its pictures, not read by the model yet, or with the error that ``load`` raised."""
    start = time.perf_counter()
    out = Extracted(item)
    try:
        out.pictures, out.about = load(item)
    except CoritError as error:
        out.error = str(error)
    out.seconds = time.perf_counter() - start
    return out


def forward(extractor: Extractor, items: list[Extracted[T]], part: float = 1, stop: Stop = never) -> list[Extracted[T]]:
    """Run the model on the windows of all loaded ``items``, batch by batch, on ``part`` of the device: an item's
    seconds are what it would take on the whole."""
    for batch in _batches(items, extractor.batch):
        begun = time.perf_counter()
        readings = extractor([windows for _, windows in batch], stop)
        share = part * (time.perf_counter() - begun) / len(batch)
        for (item, _), reading in zip(batch, readings, strict=True):
            item.readings.append(reading)
            item.seconds += share
    for item in items:
        item.pictures = []
    return items


def _batches(items: Sequence[Extracted[T]], size: int) -> Iterator[list[tuple[Extracted[T], Picture]]]:
    """Pictures in order, as many together as have ``size`` windows at most, or a single one. Those that share windows,
    as a picture and its faces do, stay together where they fit."""
    batch: list[tuple[Extracted[T], Picture]] = []
    for item in items:
        parts: list[list[Picture]] = []
        for picture in item.pictures:
            shares = parts and _cut([*parts[-1], picture]) < _cut(parts[-1]) + _cut([picture])
            if shares and _cut([*parts[-1], picture]) <= size:
                parts[-1].append(picture)
            else:
                parts.append([picture])
        for part in parts:
            if batch and _cut([*(picture for _, picture in batch), *part]) > size:
                yield batch
                batch = []
            batch += [(item, picture) for picture in part]
    if batch:
        yield batch


def _cut(pictures: Sequence[Picture]) -> int:
    """How many windows ``pictures`` have, one that several share counted once."""
    return len({id(window) for picture in pictures for window in picture if window is not None})
