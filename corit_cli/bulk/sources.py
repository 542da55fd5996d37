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
from typing import IO, Any

from corit_cli.bulk import parquet
from corit_cli.data.kinds import SUFFIXES
from corit_cli.data.manifest import PATH_NAMES
from corit_cli.data.urls import file_system, is_url, reason
from corit_cli.errors import CoritError
from corit_cli.texts import uncell

LISTS = (".csv", ".jsonl", ".parquet")

#: Lists the files that paths on this machine stand for: ``collect(paths, recursive)``.
Collect = Callable[[Sequence[str], bool], Iterable[str]]


def listed(sources: Sequence[str], recursive: bool, collect: Collect) -> Iterator[str]:
    """The files that ``sources`` stand for, one after the other, some perhaps twice.

    A source is a list of files (.csv, .jsonl or .parquet with a column that is called path, image, file or filename;
    relative paths start from the list's folder), a URL of a file, a folder, a glob or a list, or whatever ``collect``
    knows. Raises CoritError for a list that cannot be read.
    """
    for source in sources:
        if posixpath.splitext(source)[1].lower() in LISTS and (is_url(source) or os.path.isfile(source)):
            yield from _named_in(source)
        elif is_url(source):
            yield from _at_url(source, recursive)
        else:
            yield from collect([source], recursive)


def _named_in(file: str) -> Iterator[str]:
    folder = file.rpartition("/")[0]
    suffix = posixpath.splitext(file)[1].lower()
    try:
        with _opened(file) as stream:
            for number, path in enumerate({".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[suffix](stream), 1):
                if not _may_name_a_file(path):
                    raise ValueError(f"file {number} of it has no name that a file can have")
                yield path if is_url(path) or os.path.isabs(path) or not folder else f"{folder}/{path}"
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


def _csv(stream: IO[bytes]) -> Iterator[str]:
    reader = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline=""))
    column = _column(reader.fieldnames or ())
    own = {"probability", "verdict"} <= set(reader.fieldnames or ())  # a table of verdicts, as they are written here
    return (uncell(row[column]) if own else row[column] for row in reader if row[column])


def _jsonl(stream: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no object")
            yield row[_column(row)]


def _parquet(stream: IO[bytes]) -> Iterator[str]:
    pa = parquet.arrow()
    try:
        file = pa.parquet.ParquetFile(stream)
        column = _column(file.schema_arrow.names)
        for batch in file.iter_batches(parquet.GROUP, columns=[column]):
            for path in filter(None, batch.column(0).to_pylist()):
                yield os.fsdecode(path) if isinstance(path, bytes) else path
    except pa.ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from None


def _column(names: Iterable[str]) -> str:
    """The one of ``names`` that holds paths."""
    known = {name.strip().lower(): name for name in names}
    found = next((known[name] for name in PATH_NAMES if name in known), None)
    if found is None:
        raise ValueError(f"it has no column called {', '.join(PATH_NAMES)}")
    return found


def _at_url(url: str, recursive: bool) -> Iterator[str]:
    fs, path = file_system(url)
    try:
        if any(character in path for character in "*?[") and not fs.exists(path):
            found = (fs.unstrip_protocol(file) for file in sorted(fs.glob(path)) if fs.isfile(file))
            first = next(found, url)  # as it is where it stands for nothing: to become an error
            yield first
            yield from found
        elif fs.isdir(path):
            yield from (fs.unstrip_protocol(found) for found in _folder(fs, path, recursive))
        else:
            yield url
    except Exception as error:  # a file system is foreign code
        raise CoritError(f"{url} cannot be listed: {reason(error)}") from None


def _folder(fs: Any, folder: str, recursive: bool) -> Iterator[str]:
    """As on this machine: in order, hidden names left out, and only what ends as images and videos do. A folder below
    that cannot be listed is given as if it were a file, to become an error."""
    below = []
    for found in sorted(fs.ls(folder, detail=True), key=lambda found: found["name"]):
        path = found["name"].rstrip("/")
        name = posixpath.basename(path)
        if not name or name.startswith(".") or path == folder.rstrip("/"):
            continue
        if found["type"] == "directory":
            below.append(path)
        elif posixpath.splitext(name)[1].lower() in SUFFIXES:
            yield path
    for path in below if recursive else ():
        try:
            yield from _folder(fs, path, recursive)
        except Exception:
            yield path
