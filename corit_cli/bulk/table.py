"""A table of verdicts on disk that can be gone on with wherever the process that wrote it was stopped.

Rows are appended to a text file. What they depend on stands beside it in ``NAME.run.json``. Parquet cannot be appended
to: rows are gathered in ``NAME.rows.jsonl`` and become Parquet when all are there.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from corit_cli.bulk import conditions, parquet
from corit_cli.bulk.index import Aside, Seen
from corit_cli.bulk.rows import Csv, Form, JsonLines, Row, counted, stamp_of
from corit_cli.bulk.stamps import Stamp, stamp
from corit_cli.data.urls import is_url
from corit_cli.errors import CoritError
from corit_cli.features.stream import ahead
from corit_cli.files import unwritable, write_atomically

T = TypeVar("T")
FORMS: dict[str, type[Csv | JsonLines]] = {".jsonl": JsonLines, ".csv": Csv, ".parquet": JsonLines}
#: Seconds after which rows are on the disk for good, power cut or not.
SYNC = 10
#: Rows that are looked at together when a table is taken up again, and groups of them at once: a store of objects takes
#: its time to answer.
TOGETHER, LOOKERS = 64, 16


class Table(AbstractContextManager["Table"]):
    """Rows in ``path`` (.jsonl, .csv or .parquet), one a file, that were made under the conditions ``about``.

    With ``resume`` a table that is there is taken up: rows that are whole, of files that are as they were, are kept;
    those with errors only unless ``retry_errors``. Others whose file is there stay unless this run lists it: it is
    scored again then. ``checksum`` tells files by their content. ``counts`` says how many
    rows there are of each verdict, ``error`` among them; ``seen`` has the files that have one or are to get one.

    Raises CoritError for another suffix, when something is there and ``resume`` is not given, when it was begun under
    other conditions, when another process writes to it, and when every file that it has a row of is gone.
    """

    def __init__(
        self,
        path: Path,
        about: dict[str, Any],
        *,
        resume: bool = False,
        retry_errors: bool = False,
        checksum: bool = False,
    ) -> None:
        self.path, self.checksum = path.resolve(), checksum  # a link stays one
        self.counts: Counter[str] = Counter()
        self.seen = Seen()
        self._form, self._file = form_of(self.path), rows_file(self.path)
        self._present = Present(checksum, retry_errors)
        self._stack = ExitStack()
        self._stack.enter_context(self.seen)
        self._aside = self._stack.enter_context(Aside())
        self._synced = time.monotonic()
        try:
            begin(self.path, about, resume, self._stack)
            self._take_up()
            self._out = self._stack.enter_context(self._file.open("ab", buffering=0))
        except BaseException:
            self._stack.close()
            raise

    def __exit__(self, *exception: object) -> None:
        with self._stack, suppress(CoritError):  # what ended the run matters more
            self._put_back()

    def todo(self, paths: Iterable[str]) -> Iterator[str]:
        """Those of ``paths`` that have no row yet, each once."""
        return (path for path in paths if self.seen.add(path))

    def add(self, row: Row) -> None:
        """Append a row, whole or not at all."""
        self._append(self._form.encode(row), row)

    def _append(self, record: bytes, row: Row) -> None:
        try:
            written = self._out.write(record)
        except OSError as error:
            raise unwritable(self._file, error) from None
        if written != len(record):
            raise CoritError(f"cannot write {self._file}: the disk is full")
        self.counts.update(counted(row))
        if time.monotonic() - self._synced > SYNC:
            os.fsync(self._out.fileno())
            self._synced = time.monotonic()

    def finish(self) -> None:
        """Bring the rows, all of which are there, into the form that was asked for."""
        self._put_back()
        with suppress(OSError):  # a pipe, or /dev/null
            os.fsync(self._out.fileno())
        if self.path != self._file:
            write_atomically(self.path, self._to_parquet)
            self._file.unlink()

    def _put_back(self) -> None:
        """Append the rows that were put aside, of files that were not listed."""
        for kept in self._aside.missing(self.seen):
            self._append(kept["record"].encode("latin-1"), kept["row"])

    def _to_parquet(self, path: Path) -> None:
        with self._file.open("rb") as text, path.open("wb") as file:
            parquet.write(file, (json.loads(record) for record in self._form.records(text)))

    def _take_up(self) -> None:
        """Keep, of the rows that are there, those that stand."""
        write_atomically(self._file, self._copy)

    def _copy(self, path: Path) -> None:
        with path.open("wb") as file:
            file.write(self._form.header())
            for record in self._standing():
                file.write(record)
            file.flush()
            os.fsync(file.fileno())
        self._present.check(self.path)

    def _standing(self) -> Iterator[bytes]:
        if not self._file.exists() and self.path.exists():  # finished Parquet
            with self.path.open("rb") as file:
                yield from self._kept(self._form.encode(row) for row in parquet.read(file))
        elif self._file.exists():
            with self._file.open("rb") as file:
                yield from self._kept(self._form.records(file))

    def _kept(self, records: Iterable[bytes]) -> Iterator[bytes]:
        for group in ahead(self._look, groups(records), workers=LOOKERS, window=4 * LOOKERS):
            for record, row, state in group:
                if state == STALE:
                    self._aside.add({"path": row["path"], "record": record.decode("latin-1"), "row": row})
                elif state == STANDS and self.seen.add(row["path"]):
                    self.counts.update(counted(row))
                    yield record

    def _look(self, records: list[bytes]) -> list[tuple[bytes, Row, str]]:
        """Those of ``records`` that are whole, with what they say, and whether they stand."""
        decoded = [(record, self._form.decode(record)) for record in records]
        return [(record, row, self._present.state(row)) for record, row in decoded if row is not None]


#: A row stands, or its file is to be scored again, or is gone.
STANDS, STALE, GONE = "stands", "stale", "gone"


class Present:
    """Tells which rows stand, and whether any of their files is there at all (``found``). Relative paths start from
    ``base``, if that is given."""

    def __init__(self, checksum: bool, retry_errors: bool = False, base: str = "") -> None:
        self.checksum, self.retry_errors, self.base = checksum, retry_errors, base
        self.found, self._lost = False, False

    def state(self, row: Row) -> str:
        """``STANDS`` for a row about its file as it is now, and no error that is to be tried again, else ``STALE``, or
        ``GONE`` with its file. What nothing can be known of counts as being as it was."""
        kept, now = stamp_of(row), stamp(located(row["path"], self.base), self.checksum)
        if now is not None and now != Stamp():
            self.found = True
        elif now is not None and kept != now:
            self._lost = True
        if (now is None or kept.same_file(now)) and not (row["error"] and self.retry_errors):
            return STANDS
        return GONE if now == Stamp() else STALE

    def check(self, table: object) -> None:
        """Raise CoritError when all files are gone: their disk is away, rather."""
        if self._lost and not self.found:
            raise CoritError(
                f"not one file that {table} has a row of is there: is a disk away? Else name another table"
            )


def form_of(path: Path) -> Form:
    """How rows are written to ``path``. Raises CoritError for a suffix that is not known, and where what it needs is
    not installed."""
    suffix = path.suffix.lower()
    if suffix not in FORMS:
        raise CoritError(f"{path}: --out takes {', '.join(FORMS)}, or a folder with --ray")
    if suffix == ".parquet":
        parquet.arrow()
    return FORMS[suffix]()


def rows_file(path: Path) -> Path:
    """Where the rows of a table are gathered."""
    return path.with_name(path.name + ".rows.jsonl") if path.suffix.lower() == ".parquet" else path


def begin(path: Path, about: dict[str, Any], resume: bool, stack: ExitStack) -> None:
    """Begin a table, or see to it that it was begun under the same conditions, and keep other processes out."""

    def is_there() -> bool:
        there = path.exists() or rows_file(path).exists()
        if there and not resume:
            raise CoritError(f"{path} is there already: go on with it by --resume, or name another")
        return there

    place = conditions.beside(path)
    if is_there() and not place.is_file():
        conditions.check(path, b"", about)
    held = conditions.hold(place, path, stack)
    if is_there():  # now that no other process can begin it
        conditions.check(path, held.read(), about)
    else:
        conditions.write(held, place, about)


def located(path: str, base: str) -> str:
    """Where a file lies, for a process that may have been started elsewhere."""
    return path if is_url(path) else os.path.join(base, path)


def groups(items: Iterable[T]) -> Iterator[list[T]]:
    """``TOGETHER`` of them at a time."""
    left = iter(items)
    while group := list(islice(left, TOGETHER)):
        yield group
