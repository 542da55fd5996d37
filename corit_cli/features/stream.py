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
from itertools import chain
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
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    window: int,
    leave: Event | None = None,
    begin: Callable[[], object] | None = None,
) -> Iterator[R]:
    """``map`` in threads, in order, with at most ``window`` results waiting, so that memory stays flat.

    Where ``items`` fail, what they gave before comes out first. ``leave`` is set at the end, before the threads are
    waited for. Each thread calls ``begin`` first.
    """
    given, failed = iter(items), []
    with ThreadPoolExecutor(workers, initializer=begin) as pool:
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
                while waiting and (len(waiting) >= window or waiting[0].done()):
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


def on_lanes(
    function: Callable[[T], R], items: Iterable[T], lanes: Lanes, at_once: int, leave: Event | None = None
) -> Iterator[R]:
    """``map`` in order, ``at_once`` items at a time, each in one of the ``lanes``; one by one in the calling thread.
    ``leave`` is set when nobody wants more."""
    if at_once <= 1:
        yield from map(function, items)
    else:
        with closing(ahead(function, items, at_once, at_once, leave, partial(lanes.take, at_once))) as done:
            yield from done


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
    all that they gave is done. At most ``window`` items, by default two batches, are loaded, or being loaded, ahead of
    those whose windows wait for the model or are in it: a few batches.
    """
    workers = workers or loaders(extractor.device.type)
    with closing(ahead(partial(loaded, load), items, workers, window or 2 * extractor.batch)) as ready:
        yield from forwarded(extractor, ready)


def forwarded(extractor: Extractor, ready: Iterable[Extracted[T]]) -> Iterator[Extracted[T]]:
    """Loaded items in order, read by the model: several batches at a time where the device takes as many."""
    lanes, stop = Lanes(extractor.device.type), Event()
    rounds = _rounds(ready, extractor.batch, lanes.count)
    first = next(rounds, [])

    def read(items: list[Extracted[T]]) -> list[Extracted[T]]:
        return forward(extractor, items, 1 / len(first), stop.is_set)

    parts = chain.from_iterable(chain([first], rounds))
    with closing(on_lanes(read, parts, lanes, len(first), stop)) as done:
        for items in done:
            yield from items


def _rounds(ready: Iterable[Extracted[T]], size: int, lanes: int) -> Iterator[list[list[Extracted[T]]]]:
    """Items in order, as many together as have ``size`` windows: as many such lists as there are ``lanes``, and from
    then on each as it is full. What is left in the end is dealt evenly."""
    full: list[list[Extracted[T]]] = []
    rest: list[Extracted[T]] = []
    failed: list[Exception] = []
    windows, wanted, left = 0, lanes, iter(ready)
    while True:
        try:
            rest.append(next(left))
        except StopIteration:
            break
        except Exception as error:
            failed.append(error)
            break
        windows += _cut(rest[-1].pictures)
        if windows >= size:
            full.append(rest)
            windows, rest = 0, []
        if len(full) == wanted:
            yield full
            full, wanted = [], 1
    rest = [*chain.from_iterable(full), *rest]
    count = min(lanes, len(rest))
    if count:
        yield [rest[len(rest) * k // count : len(rest) * (k + 1) // count] for k in range(count)]
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
    """Run the model on the windows of all loaded ``items``, batch by batch. Where ``part`` of the device does that,
    an item's seconds are what it would take on the whole."""
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
