"""Files and their bytes, which are read alike; files that lie in memory alone."""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import IO

_DESCRIPTORS = "/proc/self/fd/"  # of this process, on Linux
#: The bytes of a file.
Buffer = bytes | bytearray | memoryview
#: A file: its path, or its bytes.
Stored = str | os.PathLike[str] | Buffer


#: Device, inode, size in bytes and time of the last change in ns of a file that has a path.
State = tuple[int, int, int, int]


def state(source: object) -> State | None:
    """In which state a file is; None for what has no path, and what cannot be looked at."""
    if not isinstance(source, str | os.PathLike):
        return None
    try:
        found = os.stat(source)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def opened(source: Stored) -> IO[bytes]:
    """To be read from the start. Raises OSError where a path cannot be opened, or is a pipe or a device, which might
    never give a byte."""
    if not isinstance(source, Buffer) and not stat.S_ISREG(os.stat(source).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(source))
    return io.BytesIO(source) if isinstance(source, Buffer) else open(source, "rb")


def called(path: str | os.PathLike[str]) -> str:
    """The name by which one may tell what a file is: its path's, or of a file :class:`Held` in memory its own."""
    name = os.fspath(path)
    if not name.startswith(_DESCRIPTORS):
        return name
    try:
        return os.readlink(name).removesuffix(" (deleted)")
    except OSError:
        return name


def paths_in_memory() -> bool:
    """Whether files in memory have a path here, by which videos are read (Linux)."""
    return hasattr(os, "memfd_create") and os.path.isdir(_DESCRIPTORS)


class Held:
    """A file in memory, which no other program finds and nothing outlives, of a name that ends in ``suffix``.

    Where the system has such files (Linux) it has a path, so that it is read as any other; elsewhere it is read as
    bytes. Once written it may be read from several threads.
    """

    def __init__(self, suffix: str = "") -> None:
        self.size = 0
        self._bytes: bytearray | None = None
        if paths_in_memory():
            self._descriptor = os.memfd_create(f"held{suffix}", os.MFD_CLOEXEC)
        else:
            self._bytes = bytearray()

    def write(self, data: Buffer) -> None:
        """Append. Raises OSError where memory is at its end."""
        self.size += len(data)
        if self._bytes is not None:
            self._bytes += data
            return
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    @property
    def source(self) -> str | Buffer:
        """To be read until the file is closed."""
        return f"{_DESCRIPTORS}{self._descriptor}" if self._bytes is None else self._bytes

    def close(self) -> None:
        """Give the memory back. The path may then come to name another file: nobody may be reading any more."""
        if self._bytes is not None:
            self._bytes = bytearray()
        elif self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
