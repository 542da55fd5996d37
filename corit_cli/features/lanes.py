"""Several batches in the model at a time, each on its share of the processor's threads.

Threads that multiply one batch together wait for the slowest of them at every product, and one whose core is taken by
decoding or by another program holds up all. Threads that have a batch each wait for nobody.
"""

from __future__ import annotations

import os
from threading import Thread

import torch

#: Batches at a time, at most: each holds its activations in memory.
MOST = 4
#: Where threads are tied to cores, those that Python starts are tied to the one that starts them.
_TIED = ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


class Lanes:
    """How many batches a device takes at a time, ``count``, each in a thread of its own: :meth:`take`.

    On a processor as many as the threads that torch has, or is to have elsewhere, divide into; one where these are tied
    to cores. A GPU takes one.
    """

    def __init__(self, device: str, threads: int | None = None) -> None:
        self.threads = threads or torch.get_num_threads()
        even = (lanes for lanes in range(MOST, 1, -1) if self.threads % lanes == 0)
        tied = any(os.environ.get(name, "false").lower() not in ("", "false") for name in _TIED)
        self.count = 1 if tied or device != "cpu" else next(even, min(MOST, self.threads))

    def take(self, at_once: int) -> None:
        """Give the calling thread, which does nothing but its lane's work, what one of ``at_once`` lanes has.

        Every thread has a number of its own, and begins with that which any set last: another sets back what this one
        did.
        """
        torch.get_num_threads()  # a thread begins when it asks first
        torch.set_num_threads(max(1, round(self.threads / at_once)))
        other = Thread(target=torch.set_num_threads, args=(self.threads,))
        other.start()
        other.join()
