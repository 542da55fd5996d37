"""Memory that the C library would keep for itself."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_MMAP_THRESHOLD = -3  # mallopt's name for it
_USUAL, _LESS = 32 << 20, 1 << 20


@contextmanager
def given_back() -> Iterator[None]:
    """Blocks of more than a megabyte go back to the system as soon as they are freed, where the C library is glibc.

    It would keep what has less than 32 megabytes, in a heap that results which stay in memory leave full of holes: of
    the activations of many batches, a gigabyte. Where the same blocks come again and again, that is faster.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    adjust = getattr(library, "mallopt", lambda name, value: 1)
    adjust(_MMAP_THRESHOLD, _LESS)
    try:
        yield
    finally:
        adjust(_MMAP_THRESHOLD, _USUAL)
