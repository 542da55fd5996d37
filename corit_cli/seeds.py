"""Random numbers: what is drawn here leaves the caller's own as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """The caller's sequence of torch's random numbers goes on afterwards as if none had been drawn. Also a
    decorator."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        yield
