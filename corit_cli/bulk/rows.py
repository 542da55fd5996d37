"""Rows of verdicts as text: JSON lines, or CSV. What a killed process left unfinished is told from what is whole."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import IO, Any, Protocol

from corit_cli.bulk.stamps import Stamp
from corit_cli.texts import cell, uncell

#: A file's verdict, as ``corit detect --jsonl`` prints it, with its stamp's fields.
Row = dict[str, Any]
COLUMNS = (
    "path", "probability", "verdict", "faces", "face_max", "flips", "error", "declared", "ground", "notes",
    "size", "mtime_ns", "sha256",
)  # fmt: skip
#: What files are counted as, each as one of these.
VERDICTS = ("fake", "uncertain", "real", "error")


def counted(row: Row) -> Iterator[str]:
    """What a row counts as: by its file's pixels, and by what the file declares."""
    yield row["verdict"] or "error"
    if row.get("declared"):
        yield row["declared"]


def number_of(counts: Mapping[str, int]) -> int:
    """How many rows were :func:`counted`."""
    return sum(counts.get(verdict, 0) for verdict in VERDICTS)


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of JSON as a table's cells have it: the number of faces, or of persons in a video, and the highest of their
    probabilities, whether the verdict flips, and in one line the notes and what of a video could not be read. None
    where there is nothing to tell."""
    faces, stability, video = row.get("faces"), row.get("stability"), row.get("video")
    scores = None if faces is None else [face["probability"] for face in faces]
    notes = list(row.get("notes") or ())
    if video is not None:
        scores = list(video["tracks"].values()) or None
        notes += [video["incomplete"]] if video.get("incomplete") else []
    return {
        **row,
        "faces": None if scores is None else len(scores),
        "face_max": max(scores or (), default=None),
        "flips": None if stability is None else int(stability["flips"]),
        "notes": "; ".join(notes) or None,
    }


class Form(Protocol):
    """A way to write rows down, each as one record of bytes."""

    def header(self) -> bytes:
        """What a file begins with."""
        ...

    def encode(self, row: Row) -> bytes:
        """A row as one record, its end included."""
        ...

    def decode(self, record: bytes) -> Row | None:
        """Path, verdict, error and stamp of a whole record at least; None where it is none."""
        ...

    def records(self, file: IO[bytes]) -> Iterator[bytes]:
        """The whole records of a file, after its header. What follows the last of them was cut off."""
        ...


class JsonLines:
    """One JSON object a line."""

    def header(self) -> bytes:
        return b""

    def encode(self, row: Row) -> bytes:
        return json.dumps(row).encode() + b"\n"

    def decode(self, record: bytes) -> Row | None:
        try:
            row = json.loads(record)
            return row if _is_whole(row) else None
        except (ValueError, RecursionError):
            return None

    def records(self, file: IO[bytes]) -> Iterator[bytes]:
        return (line for line in file if line.endswith(b"\n"))


class Csv:
    """Rows of ``COLUMNS``, much as ``corit detect --csv`` has them; without the seconds, the same run gives the same
    bytes."""

    def header(self) -> bytes:
        return self._line(COLUMNS)

    def encode(self, row: Row) -> bytes:
        cells = flat(row)
        values = [cells.get(name) for name in COLUMNS]
        return self._line([cell(value) if isinstance(value, str) else value for value in values])

    def decode(self, record: bytes) -> Row | None:
        try:
            cells = next(csv.reader(io.StringIO(_text(record), newline="")), [])
            if len(cells) != len(COLUMNS):
                return None
            row: Row = {name: uncell(text) or None for name, text in zip(COLUMNS, cells, strict=True)}
            row |= {name: int(row[name]) if row[name] else None for name in ("size", "mtime_ns")}
            return row if _is_whole(row) else None
        except (ValueError, csv.Error):
            return None

    def records(self, file: IO[bytes]) -> Iterator[bytes]:
        lines = (line for line in file if line.endswith(b"\n"))  # no cell holds a line break
        return islice(lines, 1, None)

    def _line(self, cells: Any) -> bytes:
        line = io.StringIO(newline="")
        csv.writer(line).writerow(cells)
        return line.getvalue().encode("utf-8", "surrogateescape")


def _is_whole(row: object) -> bool:
    """Whether this is a row that can be counted and whose file can be looked for. Raises ValueError for a path that no
    file can have."""
    if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not {"verdict", "error"} <= row.keys():
        return False
    os.fsencode(row["path"])
    return row["verdict"] in (None, *VERDICTS) and isinstance(row.get("declared"), str | None)


def _text(record: bytes) -> str:
    return record.decode("utf-8", "surrogateescape")


def stamp_of(row: Row) -> Stamp:
    """The state of the file that a row is about."""
    return Stamp(row.get("size"), row.get("mtime_ns"), row.get("sha256"))
