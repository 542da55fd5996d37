"""A folder of verdicts, here or at a URL, that many processes write to: Parquet parts, each whole or not there.

``run.json`` says under which conditions it was begun, ``summary.json`` what came out.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corit_cli.bulk import conditions, parquet
from corit_cli.bulk.index import Aside, Seen
from corit_cli.bulk.rows import Row, counted
from corit_cli.bulk.table import LOOKERS, STALE, STANDS, Present, groups
from corit_cli.data.urls import file_system, is_url, reason
from corit_cli.errors import CoritError
from corit_cli.features.stream import ahead

#: Rows that parts have when they were put together at the end.
MERGED = 100_000
_REPLACES = b"replaces"


@dataclass(frozen=True)
class Parts:
    """The parts in a ``folder``. It may be pickled, and used from any machine that reaches the folder."""

    folder: str

    @classmethod
    def begin(cls, folder: str, about: dict[str, Any], resume: bool, stack: ExitStack) -> Parts:
        """Begin a folder, or see to it that it was begun under the same conditions. On a disk it is kept for this
        process until ``stack`` closes; at a URL nobody else is kept out.

        Raises CoritError when rows are there and ``resume`` is not given, or were made under other conditions.
        """
        parquet.arrow()
        parts = cls(folder if is_url(folder) else os.path.abspath(folder))
        name = conditions.OF_PARTS
        if parts._list("") and parts._get(name) is None:
            raise CoritError(f"{folder} holds other files: name a new folder")
        place = Path(parts._place[1], name)
        held = conditions.hold(place, folder, stack) if parts._on_disk else None
        kept = held.read() if held else parts._get(name)
        if kept and not resume:
            raise CoritError(f"{folder} is there already: go on with it by --resume, or name another")
        if kept:
            conditions.check(folder, kept, about)
        elif held:
            conditions.write(held, place, about)
        else:
            parts._put(name, conditions.text(about))
        return parts

    def write(self, rows: Sequence[Row], replaces: Sequence[str] = ()) -> str:
        """Write a part and return its name, which its files decide: the same rows a second time replace the first. One
        that ``replaces`` others has a name that never was before: it is none of those."""
        data = io.BytesIO()
        found = parquet.table(rows)
        if replaces:
            found = found.replace_schema_metadata({_REPLACES: json.dumps(list(replaces)).encode()})
        parquet.arrow().parquet.write_table(found, data, compression="zstd")
        digest = hashlib.sha256("\n".join(row["path"] for row in rows).encode("utf-8", "surrogatepass")).hexdigest()
        name = f"merged-{uuid.uuid4().hex}.parquet" if replaces else f"part-{digest[:20]}.parquet"
        self._put(f"parts/{name}", data.getvalue())
        return name

    def read(self, name: str) -> Iterator[Row]:
        """The rows of a part. Raises CoritError when it is damaged."""
        fs, root = self._place
        with fs.open(f"{root}/parts/{name}", "rb") as file:
            yield from parquet.read(file)

    def names(self) -> list[str]:
        """The parts that are there, in order."""
        return sorted(name for name in self._list("parts") if name.endswith(".parquet") and name[0] != ".")

    def take_up(
        self, seen: Seen, base: str, retry_errors: bool = False, checksum: bool = False, aside: Aside | None = None
    ) -> Counter[str]:
        """Put the files whose rows stand into ``seen``, and take the other rows out; returns how many stand, by
        verdict.

        Rows go when their file has changed (paths start from ``base``) or is gone, was seen before, or had an error and
        is to be tried again; those whose file is there are put ``aside``. Raises CoritError, and changes nothing, when
        all files are gone.
        """
        counts: Counter[str] = Counter()
        for name in self._list("parts"):
            if name.startswith("."):  # of a process that was killed
                self._remove(name)
        self._finish_merging()
        present = Present(checksum, retry_errors, base)

        def looked_at(rows: list[Row]) -> list[tuple[Row, str]]:
            return [(row, present.state(row)) for row in rows]

        waiting: list[tuple[str, list[Row]]] = []  # until it is known that the archive is there at all
        for name in self.names():
            rows = list(self.read(name))
            left = []
            for group in ahead(looked_at, groups(rows), workers=LOOKERS, window=4 * LOOKERS):
                left += [row for row, state in group if state == STANDS and seen.add(row["path"])]
                for row in (row for row, state in group if state == STALE and aside is not None):
                    aside.add(row)
            if len(left) < len(rows):
                waiting.append((name, left))
            if present.found:
                self._rewrite(waiting)
            for row in left:
                counts.update(counted(row))
        present.check(self.folder)
        self._rewrite(waiting)
        return counts

    def merge(self, aside: Aside | None = None) -> Counter[str]:
        """Put small parts together, a row a file, with the rows put ``aside`` of files that have no other; returns the
        number of rows of each verdict."""
        counts: Counter[str] = Counter()
        with Seen() as seen:
            waiting: list[Row] = []
            names: list[str] = []
            twice = False
            for name in self.names():
                rows = list(self.read(name))
                once = [row for row in rows if seen.add(row["path"])]
                for row in once:
                    counts.update(counted(row))
                if len(rows) == len(once) >= MERGED // 2:
                    continue
                waiting, names, twice = waiting + once, [*names, name], twice or len(once) < len(rows)
                if len(waiting) >= MERGED:
                    self._replace(names, waiting)
                    waiting, names, twice = [], [], False
            back = [] if aside is None else list(aside.missing(seen))
            for row in back:
                counts.update(counted(row))
            if len(names) > 1 or twice or back:
                self._replace(names, waiting + back)
        return counts

    def summarise(self, summary: dict[str, Any]) -> None:
        """Leave what came out beside the parts."""
        self._put("summary.json", json.dumps(summary, indent=1).encode() + b"\n")

    def _replace(self, names: Sequence[str], rows: list[Row]) -> None:
        """A process that is killed in between leaves both; the new part says what it stands for."""
        if rows:
            self.write(rows, replaces=names)
        for name in names:
            self._remove(name)

    def _rewrite(self, waiting: list[tuple[str, list[Row]]]) -> None:
        while waiting:
            name, rows = waiting.pop()
            self._replace([name], rows)

    def _finish_merging(self) -> None:
        fs, root = self._place
        there = set(self.names())
        for name in sorted(there):
            if name in there and name.startswith("merged-"):
                with fs.open(f"{root}/parts/{name}", "rb") as file:
                    said = (parquet.arrow().parquet.read_schema(file).metadata or {}).get(_REPLACES, b"[]")
                for old in there.intersection(json.loads(said)):
                    self._remove(old)
                    there.discard(old)

    # --- files ------------------------------------------------------------------------------------

    @property
    def _place(self) -> tuple[Any, str]:
        fs, path = file_system(self.folder)
        return fs, path.rstrip("/")

    @property
    def _on_disk(self) -> bool:
        return not is_url(self.folder) or self.folder.startswith(("file://", "local://"))

    def _list(self, below: str) -> list[str]:
        fs, root = self._place
        path = f"{root}/{below}".rstrip("/")
        fs.invalidate_cache(path)  # other processes write here
        try:
            return [posixpath.basename(found.rstrip("/")) for found in fs.ls(path, detail=False)]
        except FileNotFoundError:
            return []
        except Exception as error:  # whatever a file system raises
            raise CoritError(f"{path} cannot be listed: {reason(error)}") from None

    def _get(self, name: str) -> bytes | None:
        fs, root = self._place
        try:
            return fs.cat_file(f"{root}/{name}")
        except FileNotFoundError:
            return None

    def _put(self, name: str, data: bytes) -> None:
        """Write a file all or nothing: stores of objects do so, on a disk it gets its name when it is whole."""
        fs, root = self._place
        path = f"{root}/{name}"
        try:
            if not self._on_disk:
                fs.pipe_file(path, data)
                return
            os.makedirs(os.path.dirname(path), exist_ok=True)
            new = f"{os.path.dirname(path)}/.{uuid.uuid4().hex}-{os.path.basename(path)}"
            with open(new, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        except Exception as error:  # whatever a file system raises
            raise CoritError(f"cannot write {path}: {reason(error)}") from None

    def _remove(self, name: str) -> None:
        fs, root = self._place
        fs.rm_file(f"{root}/parts/{name}")
