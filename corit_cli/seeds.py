"""Random numbers: what is drawn here leaves the caller's own as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """torch's sequence of random numbers, on the CPU and on GPUs that are in use already, goes on afterwards as if none
    had been drawn. Also a decorator."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        yield
