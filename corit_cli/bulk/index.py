"""Paths that were seen, on disk: memory stays flat however many there are."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

from corit_cli.data.urls import is_url
from corit_cli.errors import CoritError


class Seen:
    """A set of paths, ``a`` and ``./a`` being one, in a temporary file, which goes when it is closed, or in a ``file``
    that others may open. All of it raises CoritError where the disk that it lies on is full."""

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
            return self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (_key(path),)).rowcount > 0

    def __contains__(self, path: str) -> bool:
        with _told():
            found = self._db.execute("SELECT 1 FROM seen WHERE path = ?", (_key(path),))
            return found.fetchone() is not None

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with _told():
                self._db.commit()
        finally:
            self._db.close()


class Aside(AbstractContextManager["Aside"]):
    """Rows that may be needed again, in a temporary file. Raises CoritError where that cannot be written."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115, it is closed with this

    def add(self, row: dict[str, Any]) -> None:
        """Put one aside: whatever JSON holds, with a ``path``."""
        with _told():
            self._file.write(json.dumps(row) + "\n")

    def missing(self, seen: Seen) -> Iterator[dict[str, Any]]:
        """The rows whose paths are not among those ``seen``, each path once; now they are."""
        with _told():
            self._file.seek(0)
        for line in self._file:
            row = json.loads(line)
            if seen.add(row["path"]):
                yield row

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def _key(path: str) -> bytes:
    """A path without what says nothing; ``..`` stays, which after a link may lead elsewhere."""
    if is_url(path):
        return path.encode("utf-8", "surrogateescape")
    root = "/" if path.startswith("/") else ""
    return os.fsencode(root + "/".join(part for part in path.split("/") if part not in ("", ".")))


@contextmanager
def _told() -> Iterator[None]:
    """A disk that is full is told as what it is."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        raise CoritError(f"cannot write to the temporary folder {tempfile.gettempdir()}: {error}") from None
