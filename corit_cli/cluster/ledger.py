"""Who was working on what when a worker died: so that a file that kills its workers is left alone.

Ray does a piece of work again whose worker was killed. The first time a whole batch is done at once. Where a batch was
begun before and not ended, its files are done one by one, each noted before it is touched; a file that was noted and
not ended is the one that did it, and is not touched again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from corit_cli.cluster.session import ray_module

T = TypeVar("T")
R = TypeVar("R")

#: What is said of a file that killed its worker, in its batch and then alone.
KILLED = "the process that read it was killed"


class Ledger:
    """Batches and files that were begun and not ended. Lives in one process, which all workers ask."""

    def __init__(self) -> None:
        self._batches: Counter[str] = Counter()
        self._files: Counter[str] = Counter()
        self._listed: int | None = None

    def begin(self, batch: str) -> int:
        """How many times ``batch`` was begun before, and not ended."""
        self._batches[batch] += 1
        return self._batches[batch] - 1

    def touch(self, ended: str | None, file: str | None) -> int:
        """Note that the file ``ended`` is done, and that another is begun; how many times that was before."""
        if ended is not None:
            self._files.pop(ended, None)
        if file is None:
            return 0
        self._files[file] += 1
        return self._files[file] - 1

    def end(self, batch: str) -> None:
        """``batch`` is done."""
        self._batches.pop(batch, None)

    def was_listed(self, count: int) -> None:
        """Keep how many files were found to work on."""
        self._listed = count

    def listed(self) -> int | None:
        """How many files were found, once all of them are."""
        return self._listed


def carefully(
    ledger: Any,
    stage: str,
    items: Sequence[T],
    name: Callable[[T], str],
    work: Callable[[list[T]], list[R]],
    give_up: Callable[[T, str], R],
) -> list[R]:
    """What ``work`` makes of ``items``, in order; ``give_up`` of those that killed their worker.

    ``ledger`` is an actor of :class:`Ledger`; ``work`` makes one result an item, alike in batches and alone.
    """
    ray = ray_module()
    batch = hashlib.sha256("\n".join([stage, *map(name, items)]).encode("utf-8", "surrogatepass")).hexdigest()
    if not ray.get(ledger.begin.remote(batch)):
        found = work(list(items))
    else:
        found, ended = [], None
        for item in items:
            key = f"{stage} {name(item)}"
            before = ray.get(ledger.touch.remote(ended, key))
            found += [give_up(item, KILLED)] if before else work([item])
            ended = None if before else key
        ray.get(ledger.touch.remote(ended, None))
    ray.get(ledger.end.remote(batch))
    return found
