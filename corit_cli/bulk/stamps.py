"""Which state of a file was scored: its size, when it was last changed, and its content where that is asked for."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from corit_cli.data.urls import changed, fetch, file_system, is_gone, is_url
from corit_cli.files import content_sha256


@dataclass(frozen=True)
class Stamp:
    """Bytes, time of the last change in ns, and SHA-256 of the content if it was taken; None where there is no file."""

    size: int | None = None
    mtime_ns: int | None = None
    sha256: str | None = None

    def same_file(self, other: Stamp) -> bool:
        """Whether both are of the same content, by all that is known of it."""
        if self.sha256 is not None:
            return self.sha256 == other.sha256
        return (self.size, self.mtime_ns) == (other.size, other.mtime_ns)


def stamp(path: str, checksum: bool = False) -> Stamp | None:
    """The present state of a file, None where nothing can be known of it; with ``checksum`` all of it is read."""
    try:
        return _at_url(path, checksum) if is_url(path) else _on_disk(path, checksum)
    except Exception as error:  # a file system is foreign code
        return Stamp() if is_gone(error) else None  # a disk or a server may not have answered


def _on_disk(path: str, checksum: bool) -> Stamp:
    if "\0" in path:
        raise FileNotFoundError
    found = os.stat(path)
    content = content_sha256(Path(path)) if checksum else None
    if checksum and content is None and stat.S_ISREG(found.st_mode):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)
    return Stamp(found.st_size, found.st_mtime_ns, content)


def _at_url(url: str, checksum: bool) -> Stamp:
    fs, path = file_system(url)
    info = fs.info(path)
    content = hashlib.sha256(fetch(url)).hexdigest() if checksum else None
    return Stamp(info.get("size"), changed(info), content)


@dataclass(frozen=True)
class Shard:
    """Part ``number`` (from 1) of ``count`` that a list is cut into. A file's part depends on its path alone, so that
    it stays where it is when others are added."""

    number: int = 1
    count: int = 1

    def __contains__(self, path: str) -> bool:
        digest = hashlib.sha256(os.fsencode(path)).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
