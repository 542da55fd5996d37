"""Files and their bytes, which are read alike."""

from __future__ import annotations

import io
import os
from typing import IO

#: The bytes of a file.
Buffer = bytes | bytearray | memoryview
#: A file: its path, or its bytes.
Stored = str | os.PathLike[str] | Buffer


def opened(source: Stored) -> IO[bytes]:
    """To be read from the start. Raises OSError where a path cannot be opened."""
    return io.BytesIO(source) if isinstance(source, Buffer) else open(source, "rb")
