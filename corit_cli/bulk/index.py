"""Paths that were seen, on disk: memory stays flat however many there are."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from corit_cli.errors import CoritError


class Seen:
    """A set of paths in a temporary file, which goes when it is closed, or in a ``file`` that others may open. All of
    it raises CoritError where the disk that it lies on is full."""

    def __init__(self, file: str = "") -> None:
        with _told():
            self._db = sqlite3.connect(file, isolation_level=None)  # kept in memory until it is large
            for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -32768"):
                self._db.execute(f"PRAGMA {setting}")
            self._db.execute("CREATE TABLE IF NOT EXISTS seen (path BLOB PRIMARY KEY) WITHOUT ROWID")
            self._db.execute("BEGIN")

    def add(self, path: str) -> bool:
        """Whether ``path`` was not there; now it is."""
        with _told():
            return self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (os.fsencode(path),)).rowcount > 0

    def __contains__(self, path: str) -> bool:
        with _told():
            found = self._db.execute("SELECT 1 FROM seen WHERE path = ?", (os.fsencode(path),))
            return found.fetchone() is not None

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with _told():
                self._db.commit()
        finally:
            self._db.close()


@contextmanager
def _told() -> Iterator[None]:
    """A disk that is full is told as what it is."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise CoritError(f"cannot write to the temporary folder {tempfile.gettempdir()}: {error}") from None
