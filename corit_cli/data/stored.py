"""Files and their bytes, which are read alike."""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import IO

#: The bytes of a file.
Buffer = bytes | bytearray | memoryview
#: A file: its path, or its bytes.
Stored = str | os.PathLike[str] | Buffer


def opened(source: Stored) -> IO[bytes]:
    """To be read from the start. Raises OSError where a path cannot be opened, or is a pipe or a device, which might
    never give a byte."""
    if not isinstance(source, Buffer) and not stat.S_ISREG(os.stat(source).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(source))
    return io.BytesIO(source) if isinstance(source, Buffer) else open(source, "rb")
