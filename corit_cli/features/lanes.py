"""Several batches in the model at a time, each on its share of the processor's threads.

Threads that multiply one batch together wait for the slowest of them at every product, and one whose core is taken by
decoding or by another program holds up all. Threads that have a batch each wait for nobody.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from threading import Lock

import torch

#: Batches at a time, at most: each holds its activations in memory.
MOST = 4

_lock = Lock()
_users = 0
_threads = 0  # torch's, before the first user came


class Lanes(AbstractContextManager["Lanes"]):
    """How many batches a device takes at a time, ``count``; within the context they share torch's ``threads``.

    PyTorch has one number of threads for a process. Each lane takes its share of it (:meth:`take`), and when the last
    user of lanes has left, whatever the order in which they came, it is what it was.
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def __enter__(self) -> Lanes:
        global _users, _threads
        with _lock:
            if not _users:
                _threads = torch.get_num_threads()
            _users += 1
            self.threads = _threads
        even = (lanes for lanes in range(MOST, 1, -1) if self.threads % lanes == 0)
        self.count = next(even, min(MOST, self.threads)) if self.device == "cpu" else 1
        return self

    def __exit__(self, *exception: object) -> None:
        global _users
        with _lock:
            _users -= 1
            if not _users:
                torch.set_num_threads(_threads)

    def take(self, lanes: int) -> None:
        """Give this thread what one of ``lanes`` has."""
        if self.device == "cpu":
            torch.set_num_threads(max(1, round(self.threads / lanes)))
