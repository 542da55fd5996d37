"""Memory that the C library would keep for itself."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return memory that is free to the system, where the C library is glibc.

    It keeps its heap, whose holes between results that stay are too small for what comes next: of the activations of
    many batches, a gigabyte.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    trim = getattr(library, "malloc_trim", None)
    if trim is not None:
        trim(0)
