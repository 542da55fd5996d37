"""The files that are to be looked at, as a stream: folders, globs, lists of them, and what lies at URLs."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Protocol

from corit_cli.bulk import parquet
from corit_cli.bulk.conditions import begun
from corit_cli.data.kinds import SUFFIXES
from corit_cli.data.manifest import PATH_NAMES
from corit_cli.data.urls import file_system, is_url, reason
from corit_cli.errors import CoritError
from corit_cli.texts import uncell

LISTS = (".csv", ".jsonl", ".parquet")

#: Lists the files that paths on this machine stand for: ``collect(paths, recursive)``.
Collect = Callable[[Sequence[str], bool], Iterable[str]]


class LeftOut(Protocol):
    """Told what is left out of folders: files by :meth:`add`, and how many folders, and hidden files and folders."""

    folders: int
    hidden: int
    searched: list[str]

    def add(self, path: str) -> None: ...


def listed(sources: Sequence[str], recursive: bool, collect: Collect, left: LeftOut) -> Iterator[str]:
    """The files that ``sources`` stand for, one after the other, some perhaps twice.

    A source is a list of files (.csv, .jsonl or .parquet with a column that is called path, image, file or filename), a
    URL of a file, a folder, a glob or a list, or whatever ``collect`` knows. A list's relative paths start from its
    folder; those of a table of verdicts from where that was begun, as its .run.json has it, else from here. What lies
    at a URL and cannot be listed is given as if it were a file, to become an error. Raises CoritError for a list that
    cannot be read.
    """
    for source in sources:
        if posixpath.splitext(source)[1].lower() in LISTS and (is_url(source) or os.path.isfile(source)):
            yield from _named_in(source)
        elif is_url(source):
            yield from _at_url(source, recursive, left)
        else:
            yield from collect([source], recursive)


def _named_in(file: str) -> Iterator[str]:
    folder, first = file.rpartition("/")[0], _begun_in(file)
    suffix = posixpath.splitext(file)[1].lower()
    try:
        with _opened(file) as stream:
            named = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[suffix](stream)
            for number, (path, own) in enumerate(named, 1):
                if not _may_name_a_file(path):
                    raise ValueError(f"file {number} of it has no name that a file can have")
                base = first if own else folder
                yield path if is_url(path) or os.path.isabs(path) or not base else f"{base}/{path}"
    except CoritError:
        raise
    except Exception as error:  # a file system is foreign code
        raise CoritError(f"{file} is not a readable list of files: {reason(error)}") from None


def _may_name_a_file(path: object) -> bool:
    try:
        return isinstance(path, str) and bool(os.fsencode(path))
    except UnicodeEncodeError:
        return False


def _opened(file: str) -> AbstractContextManager[IO[bytes]]:
    if not is_url(file):
        return Path(file).open("rb")
    fs, path = file_system(file)
    return fs.open(path, "rb")


def _begun_in(file: str) -> str:
    """The folder from which a table of verdicts, or one that ``file`` is a part of, was begun, if that is known."""
    found = "" if is_url(file) else begun(file).get("folder")
    return found if isinstance(found, str) else ""


def _is_own(names: Iterable[str]) -> bool:
    """Whether columns of these ``names`` are those of a table of verdicts, as they are written here."""
    return {"path", "probability", "verdict"} <= set(names)


def _csv(stream: IO[bytes]) -> Iterator[tuple[str, bool]]:
    """Every path, and whether it stands in a table of verdicts; so of the others."""
    reader = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline=""))
    column, own = _column(reader.fieldnames or ()), _is_own(reader.fieldnames or ())
    return ((uncell(row[column]) if own else row[column], own) for row in reader if row[column])


def _jsonl(stream: IO[bytes]) -> Iterator[tuple[str, bool]]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no JSON object")
            yield row[_column(row)], _is_own(row)


def _parquet(stream: IO[bytes]) -> Iterator[tuple[str, bool]]:
    pa = parquet.arrow()
    try:
        file = pa.parquet.ParquetFile(stream)
        names = file.schema_arrow.names
        if _is_own(names) and "details" in names:
            yield from ((row["path"], True) for row in parquet.read(stream))
            return
        column = _column(names)
        for batch in file.iter_batches(parquet.GROUP, columns=[column]):
            for path in filter(None, batch.column(0).to_pylist()):
                yield os.fsdecode(path) if isinstance(path, bytes) else path, False
    except pa.ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from None


def _column(names: Iterable[str]) -> str:
    """The one of ``names`` that holds paths."""
    known = {name.strip().lower(): name for name in names}
    found = next((known[name] for name in PATH_NAMES if name in known), None)
    if found is None:
        raise ValueError(f"it has no column called {', '.join(PATH_NAMES)}")
    return found


def _at_url(url: str, recursive: bool, left: LeftOut) -> Iterator[str]:
    first, _, inner = url.partition("::")  # such as zip://*::file:///archive.zip

    def named(found: str) -> str:
        return f"{first.partition('://')[0]}://{found}::{inner}" if inner else fs.unstrip_protocol(found)

    try:
        fs, path = file_system(url)
        if any(character in path for character in "*?[") and not fs.exists(path):
            found = [named(file) for file in sorted(fs.glob(path)) if fs.isfile(file)]
        elif fs.isdir(path):
            found = map(named, _folder(fs, path, recursive, left, url))
        else:
            found = []
        yield from found or [url]  # as it is where it stands for nothing: to become an error
    except Exception:  # a file system is foreign code
        yield url


def _folder(fs: Any, folder: str, recursive: bool, left: LeftOut, called: str = "") -> Iterator[str]:
    """As on this machine: in order, hidden names left out, and what lies below looked at where there is nothing else.
    Only what ends as images and videos do is taken: to look into each file would be to fetch it. A folder below that
    cannot be listed is given as if it were a file, to become an error."""
    below, empty = [], True
    for found in sorted(fs.ls(folder, detail=True), key=lambda found: found["name"]):
        path = found["name"].rstrip("/")
        name = posixpath.basename(path)
        if not name or path.strip("/") == folder.strip("/"):
            continue
        if name.startswith("."):
            left.hidden += 1
        elif found["type"] == "directory":
            below.append(path)
        elif posixpath.splitext(name)[1].lower() in SUFFIXES:
            empty = False
            yield path
        else:
            left.add(path)
    if empty and below and not recursive:
        left.searched.append(called)
    elif not recursive:
        left.folders += len(below)
    for path in below if recursive or empty else ():
        try:
            yield from _folder(fs, path, True, left)
        except Exception:
            yield path
